"""Ways of doing one thing, timed in turn, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Way = Callable[[int], object]
"""Does its work for a round, given the round's number."""


class Spent(NamedTuple):
    """What a way took in a round.

    Attributes:
        seconds: Of wall time.
        processor: Seconds of processor time, workers included, which a crowded machine distorts less.
    """

    seconds: float
    processor: float


def in_turn(ways: Mapping[str, Way], rounds: int) -> dict[str, list[Spent]]:
    """Return what each way took in each round."""
    found = [one_round(ways, number) for number in range(rounds)]
    return {name: [spent[name] for spent in found] for name in ways}


def one_round(ways: Mapping[str, Way], number: int) -> dict[str, Spent]:
    """Run all ways one after the other and return what each took.

    Every other round runs them in reverse order, so that none always follows the same neighbor.
    """
    order = list(ways.items())
    found = {}
    for name, way in order if number % 2 == 0 else reversed(order):
        started, before = time.perf_counter(), processor_seconds()
        way(number)
        found[name] = Spent(time.perf_counter() - started, processor_seconds() - before)
        say(f"round {number + 1}: {name}, {found[name].seconds:.2f} s")
    return found


def processor_seconds() -> float:
    """Return the processor time of this process and of its workers that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the quotient in each round: times faster, where ``over`` is the yardstick's seconds."""
    return [a / b for a, b in zip(over, under, strict=True)]


def say(text: str) -> None:
    """Tell what is being done."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
