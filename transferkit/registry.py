"""A registry of named objects: built in, registered by a program, or announced by installed packages."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from transferkit.errors import ArgumentError, did_you_mean

Value = TypeVar("Value")


class Registry(Generic[Value]):
    """Objects of one kind by name, in the order in which they were added.

    An installed package announces an object in the entry-point group ``transferkit.{kind}s``: either the object
    itself, or the module that adds it.

    Args:
        kind: The word for one of them in messages, such as ``"reader"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.group = f"transferkit.{kind}s"
        self._values: dict[str, Value] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def require_free(self, name: str) -> None:
        """Raise ``ArgumentError`` if a name is taken."""
        if name in self._values:
            raise ArgumentError(f"name must be one that no {self.kind} has yet, got {name!r}")

    def add(self, name: str, value: Value) -> None:
        """Add one under a name that is free."""
        self.require_free(name)
        self._values[name] = value

    def remove(self, name: str) -> None:
        """Remove one."""
        if self._values.pop(name, None) is None:
            raise ArgumentError(
                f"no {self.kind} named {name!r} is registered{did_you_mean(name, self._values)}"
            )

    def names(self) -> tuple[str, ...]:
        """Return the names of all that were added, then of those that installed packages announce."""
        return tuple(dict.fromkeys([*self._values, *self.announced]))

    @cached_property
    def announced(self) -> dict[str, EntryPoint]:
        """Entry points of installed packages, by name."""
        return {point.name: point for point in entry_points(group=self.group)}

    def load(self, name: str) -> None:
        """Load an entry point: it is the object itself, or importing its module adds the object."""
        point = self.announced[name]
        try:
            loaded = point.load()
        except Exception as error:
            raise ArgumentError(f"{self.kind} {name!r} ({point.value}) cannot be loaded: {error}") from error
        if name not in self._values:
            self.add(name, loaded)

    @cached_property
    def _all_loaded(self) -> bool:
        for name, point in self.announced.items():
            try:
                point.load()
            except Exception as error:
                message = f"the {self.kind} {name!r} ({point.value}) could not be loaded: {error}"
                warnings.warn(message, stacklevel=4)
        return True

    def load_all(self) -> None:
        """Load every entry point once; one that fails causes a warning and does not affect the others."""
        self._all_loaded  # noqa: B018 - once
