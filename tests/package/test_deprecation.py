"""Old spellings warn, work, and are told from mistakes."""

from __future__ import annotations

import sys
import types

import pytest

from transferkit.deprecation import moved_names, renamed_argument
from transferkit.errors import ArgumentError


@renamed_argument("rate", "drop_rate", until="0.4")
def head(width: int, *, drop_rate: float = 0.5) -> tuple[int, float]:
    """Build."""
    return width, drop_rate


def test_the_old_argument_warns_where_it_is_written_and_works() -> None:
    with pytest.warns(DeprecationWarning, match=r"head\(rate=...\) is head\(drop_rate=...\) now") as caught:
        assert head(3, rate=0.1) == (3, 0.1)
    assert caught[0].filename == __file__


def test_the_new_argument_does_not_warn_and_both_are_an_error() -> None:
    assert head(3, drop_rate=0.2) == (3, 0.2)
    assert head.__name__ == "head" and head.__doc__ == "Build."
    with pytest.raises(ArgumentError, match="give 'drop_rate' alone"):
        head(3, rate=0.1, drop_rate=0.2)
    with pytest.raises(TypeError, match="drop_rat"):
        head(3, drop_rat=0.1)


def test_a_moved_name_is_found_by_import_and_any_other_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("old_place")
    module.__getattr__ = moved_names("old_place", {"find": "transferkit.boxes.area"}, until="0.4")
    monkeypatch.setitem(sys.modules, "old_place", module)
    with pytest.warns(DeprecationWarning, match="old_place.find is transferkit.boxes.area now"):
        from old_place import find
    assert find.__name__ == "area"
    with pytest.raises(ImportError, match="cannot import name 'fnd'"):
        from old_place import fnd  # noqa: F401
