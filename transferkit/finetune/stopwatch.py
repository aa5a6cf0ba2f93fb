"""Seconds by phase."""

from __future__ import annotations

import time


class Stopwatch:
    """Tell how long each phase of a run took.

    Attributes:
        laps: Wall seconds by phase, in order.

    Example:
        >>> stopwatch = Stopwatch()
        >>> stopwatch.lap("read data")
        >>> str(stopwatch)
        'read data 0.0 s'
    """

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Count the time since the last lap to ``phase``."""
        now = time.perf_counter()
        self.laps[phase] = self.laps.get(phase, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        return ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in self.laps.items())
