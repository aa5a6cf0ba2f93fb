"""Ways of doing one thing, timed in turn, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

Way = Callable[[int], object]
"""Does its work for a round, given the round's number."""


def in_turn(ways: Mapping[str, Way], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way in each round."""
    found = [one_round(ways, number) for number in range(rounds)]
    return {name: [seconds[name] for seconds in found] for name in ways}


def one_round(ways: Mapping[str, Way], number: int) -> dict[str, float]:
    """Run all ways one after the other and return the seconds of each.

    Every other round runs them in reverse order, so that none always follows the same neighbour.
    """
    order = list(ways.items())
    seconds = {}
    for name, way in order if number % 2 == 0 else reversed(order):
        started = time.perf_counter()
        way(number)
        seconds[name] = time.perf_counter() - started
        say(f"round {number + 1}: {name}, {seconds[name]:.2f} s")
    return seconds


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the quotient in each round: times faster, where ``over`` is the yardstick's seconds."""
    return [a / b for a, b in zip(over, under, strict=True)]


def say(text: str) -> None:
    """Tell what is being done."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
