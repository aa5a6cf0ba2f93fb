"""Ways of doing one thing, timed in turn, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

Way = Callable[[int], object]
"""Does its work for a round, given the round's number."""


def in_turn(ways: Mapping[str, Way], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way in each round.

    Every round runs all ways one after the other; every other round in reverse order, so that none always follows the
    same neighbour.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        order = list(ways.items())
        for name, way in order if number % 2 == 0 else reversed(order):
            started = time.perf_counter()
            way(number)
            seconds[name].append(time.perf_counter() - started)
            say(f"round {number + 1} of {rounds}: {name}, {seconds[name][-1]:.2f} s")
    return seconds


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the quotient in each round: times faster, where ``over`` is the yardstick's seconds."""
    return [a / b for a, b in zip(over, under, strict=True)]


def say(text: str) -> None:
    """Tell what is being done."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
