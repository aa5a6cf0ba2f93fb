"""What a saved position in a stream belongs to: the data and every setting that decides its patches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from transferkit.errors import StateError


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
    digests = {}
    for name in ("ids", "class_names"):
        values = getattr(dataset, name, None)
        joined = None if values is None else "\0".join(map(str, values))
        digests[name] = None if joined is None else hashlib.blake2b(joined.encode(), digest_size=8).hexdigest()
    return {"images": len(dataset), **digests}


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
