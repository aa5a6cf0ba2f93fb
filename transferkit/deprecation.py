"""Old spellings that go on working for a while, with a warning that says what to write instead.

For a function or class that is removed, ``typing_extensions.deprecated`` is enough, and type checkers know it. This
module has what it cannot do: renamed arguments, fields and flags, and names that moved to another module.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from transferkit.errors import ArgumentError

__all__ = ["moved_names", "renamed_argument", "renamed_fields", "renamed_flag"]

Function = TypeVar("Function", bound=Callable[..., Any])
Value = TypeVar("Value")


def renamed_argument(old: str, new: str, *, until: str) -> Callable[[Function], Function]:
    """Let callers go on using an argument's old name.

    Args:
        old: The name that it had.
        new: The name that the function itself has now.
        until: The version in which the old name goes.

    Returns:
        A decorator. The decorated function raises :class:`~transferkit.errors.ArgumentError` where both are given.

    Example:
        >>> @renamed_argument("rate", "drop_rate", until="0.4")
        ... def head(drop_rate=0.5):
        ...     return drop_rate
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     head(rate=0.1)
        0.1
        >>> print(caught[0].message)
        head(rate=...) is head(drop_rate=...) now; the old name goes in 0.4
    """

    def decorate(function: Function) -> Function:
        name = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

        @functools.wraps(function)
        def accept_both(*arguments: Any, **named: Any) -> Any:
            if old in named:
                if new in named:
                    raise ArgumentError(f"{name}() got {new!r} and its old name {old!r}; give {new!r} alone")
                message = f"{name}({old}=...) is {name}({new}=...) now; the old name goes in {until}"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                named[new] = named.pop(old)
            return function(*arguments, **named)

        return accept_both  # type: ignore[return-value]

    return decorate


def moved_names(module: str, moved: Mapping[str, str], *, until: str) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a module that still answers for names which moved elsewhere.

    Args:
        module: ``__name__`` of the module.
        moved: Where each old name is now: ``{"PatchSampler": "transferkit.sampler.MultiscaleSampler"}``.
        until: The version in which the old names go.

    Example:
        >>> __getattr__ = moved_names("transferkit.old", {"boxes_of": "transferkit.boxes.as_boxes"}, until="0.4")
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     __getattr__("boxes_of").__name__
        'as_boxes'
        >>> print(caught[0].message)
        transferkit.old.boxes_of is transferkit.boxes.as_boxes now; the old name goes in 0.4
    """

    def look_up(name: str) -> Any:
        if name not in moved:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        message = f"{module}.{name} is {moved[name]} now; the old name goes in {until}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        owner, _, new = moved[name].rpartition(".")
        return getattr(importlib.import_module(owner), new)

    return look_up


def renamed_fields(*, until: str, **renamed: str) -> Callable[[type[Value]], type[Value]]:
    """Let a frozen dataclass be made, changed and read under the old names of its fields.

    ``dataclasses.replace`` passes every field under its present name; there an old name that is given wins.

    Args:
        until: The version in which the old names go.
        renamed: The present name of each old one: ``train_trunk="train_backbone"``.

    Example:
        >>> from dataclasses import dataclass, replace
        >>> @renamed_fields(width="size", until="0.4")
        ... @dataclass(frozen=True)
        ... class Patch:
        ...     size: int = 224
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     replace(Patch(), width=64), Patch(64).width
        (Patch(size=64), 64)
        >>> print(caught[0].message)
        Patch(width=...) is Patch(size=...) now; the old name goes in 0.4
    """

    def decorate(kind: type[Value]) -> type[Value]:
        own = kind.__init__

        @functools.wraps(own)
        def accept_both(self: Any, *arguments: Any, **named: Any) -> None:
            name = kind.__name__
            for old in [old for old in renamed if old in named]:
                message = f"{name}({old}=...) is {name}({renamed[old]}=...) now; the old name goes in {until}"
                warnings.warn(message, DeprecationWarning, stacklevel=_level_outside_dataclasses())
                named[renamed[old]] = named.pop(old)
            own(self, *arguments, **named)

        def read_as(old: str, new: str) -> property:
            def read(self: Any) -> Any:
                message = f"{kind.__name__}.{old} is {kind.__name__}.{new} now; the old name goes in {until}"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                return getattr(self, new)

            return property(read)

        setattr(kind, "__init__", accept_both)  # noqa: B010 - a type checker minds the other way
        for old, new in renamed.items():
            setattr(kind, old, read_as(old, new))
        return kind

    return decorate


def _level_outside_dataclasses() -> int:
    """Return the ``stacklevel`` of the code that called a class or ``dataclasses.replace`` from ``__init__``."""
    frame, level = sys._getframe(2), 2
    while frame.f_back is not None and frame.f_globals.get("__name__") == "dataclasses":
        frame, level = frame.f_back, level + 1
    return level


def renamed_flag(old: str, new: str, *, until: str) -> type[argparse.Action]:
    """Return the action of a command line's old flag, which sets what the new one sets.

    Args:
        old: The flag as it was.
        new: The flag as it is now.
        until: The version in which the old flag goes.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> action = renamed_flag("--levels", "--pyramid_scales", until="0.4")
        >>> _ = parser.add_argument("--levels", dest="pyramid_scales", action=action, help=argparse.SUPPRESS)
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     parser.parse_args(["--levels", "3"]).pyramid_scales
        '3'
        >>> print(caught[0].message)
        --levels is --pyramid_scales now; the old flag goes in 0.4
    """

    class OldFlag(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
            warnings.warn(f"{old} is {new} now; the old flag goes in {until}", DeprecationWarning, stacklevel=2)
            setattr(namespace, self.dest, values)

    return OldFlag
