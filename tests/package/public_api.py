"""The names and signatures of every public part of the package, as text.

    python tests/package/public_api.py       writes tests/package/public_api.txt, to be looked at and committed

A change to the text is a change to what users write. It belongs in the changelog, and where it takes something away,
transferkit.deprecation keeps the old spelling working for a while.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType

import transferkit

SNAPSHOT = Path(__file__).with_suffix(".txt")


def public_modules() -> list[ModuleType]:
    """Return the package and all modules in it that say what is public in them."""
    found = [transferkit]
    for part in pkgutil.walk_packages(transferkit.__path__, "transferkit."):
        if not any(piece.startswith("_") for piece in part.name.split(".")) and ".cli" not in part.name:
            module = importlib.import_module(part.name)
            found += [module] if hasattr(module, "__all__") else []
    return found


def describe() -> str:
    """Return one line a name, sorted."""
    return "\n".join(line for module in public_modules() for line in _lines(module)) + "\n"


def _lines(module: ModuleType) -> Iterator[str]:
    for name in sorted(module.__all__):
        value = getattr(module, name)
        path = f"{module.__name__}.{name}"
        if module is transferkit:
            yield path  # its signature stands with the part that it comes from
        elif inspect.isclass(value) and value.__module__.startswith("transferkit"):
            yield f"{path}{_signature(value)}"
            yield from (f"{path}.{member}" for member in _members(value))
        else:
            yield f"{path}{_signature(value)}"


def _members(owner: type) -> Iterator[str]:
    """Yield a class's public methods, properties and values, inherited ones of the package included."""
    if issubclass(owner, Enum):
        yield from (member.name for member in owner)
        return
    ours = [base for base in owner.__mro__ if base.__module__.startswith("transferkit")]
    for name in sorted({name for base in ours for name in vars(base) if not name.startswith("_")}):
        value = inspect.getattr_static(owner, name)
        plain = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        yield f"{name}{_signature(plain)}" if inspect.isfunction(plain) else name


def _signature(value: object) -> str:
    if not callable(value):
        return f": {type(value).__name__}"
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return ""
    return re.sub(r"<(?:function|class|object) '?([\w.]+)[^>]*>|<([\w.]+) object at 0x[^>]*>", r"<\1\2>", text)


if __name__ == "__main__":
    SNAPSHOT.write_text(describe(), encoding="utf-8")
    print(f"{SNAPSHOT.name}: {describe().count(chr(10))} lines")
