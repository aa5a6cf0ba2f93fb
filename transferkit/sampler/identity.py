"""What a saved position in a stream belongs to: the data and every setting that decides its patches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from transferkit.errors import StateError
from transferkit.sampler.views import tellers_of


def described(value: object) -> str | int | float | bool | None:
    """Return a plain value that is the same in another process for an equal setting.

    Values print themselves; functions and objects that print only their address are known by their names.
    """
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    text = repr(value)
    if " at 0x" not in text:
        return text
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def describe_data(dataset: Any) -> dict[str, str | int | None]:
    """Return the number of images, and the digest of their ids and class names where the data set tells them."""
    named, classed = tellers_of(dataset, "ids"), tellers_of(dataset, "class_names")
    names = dict.fromkeys(tuple(data.class_names) for data, _ in classed or ())
    return {
        "images": len(dataset),
        "ids": _digest([data.ids[place] for data, place in named]) if named else None,
        "class_names": _digest([name for some in names for name in some]) if names else None,
    }


def _digest(values: Sequence[object]) -> str:
    joined = "\0".join(map(str, values))
    return hashlib.blake2b(joined.encode(), digest_size=8).hexdigest()


def require_same(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise unless the saved data and settings are those of now.

    Raises:
        StateError: Naming each that differs.
    """
    different = [
        f"  {name}: {saved.get(name, 'unknown')!r} when it was saved, {value!r} now"
        for name, value in now.items()
        if name not in saved or saved[name] != value
    ]
    if different:
        raise StateError(
            "the sampler's state belongs to other data or settings, and its patches would be others:\n"
            + "\n".join(different)
        )
