"""SIGTERM, which schedulers send before they kill: training ends after the step in work, on all ranks together."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from transferkit.distributed import in_process_group, sum_over_ranks

GRACE = 20  # seconds for the step in work; torchrun and SLURM kill 30 s after the signal


class Stopped(SystemExit):
    """SIGTERM came. Raised by ``fit``, the run is as the last step left it: save it, and it goes on from there."""


@dataclass
class _State:
    heeded: bool = False
    training: int = 0
    asked: bool = False
    late: torch.Tensor | None = None


_state = _State()


def stop_on_sigterm() -> None:
    """From now on let SIGTERM end training after the step in work, and anything else at once, by :class:`Stopped`.

    Of several ranks all end after the same step, whichever of them was told; all must call this, in their main
    thread. A step that takes longer than 20 s is not waited for.
    """
    _state.heeded = True
    signal.signal(signal.SIGTERM, _note)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _note)


def _note(number: int, frame: object) -> None:
    if not _state.training or _state.asked:
        raise Stopped(128 + signal.SIGTERM)
    _state.asked = True
    if hasattr(signal, "alarm"):
        signal.alarm(GRACE)


@contextmanager
def ended_between_steps() -> Iterator[None]:
    """Within this block let :func:`asked_to_stop` tell of SIGTERM; at its end raise :class:`Stopped` if it came."""
    _state.training += 1
    try:
        yield
    finally:
        _state.training -= 1
    if _state.asked and not _state.training:
        end_now()


def end_now() -> None:
    """Raise :class:`Stopped`."""
    if hasattr(signal, "alarm"):
        signal.alarm(0)
    raise Stopped(128 + signal.SIGTERM)


def asked_to_stop(device: torch.device) -> bool:
    """Tell whether any rank was sent SIGTERM; the same on all, each of which must ask after every step."""
    if not _state.heeded or not in_process_group():
        return _state.asked
    now = sum_over_ranks(torch.full((1,), float(_state.asked), device=device))
    # A GPU is asked for what it has counted a step ago, lest it wait for its host.
    told, _state.late = (_state.late, now) if device.type == "cuda" else (now, None)
    return told is not None and bool(told.item())
