"""Old spellings warn, work, and are told from mistakes."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, replace

import pytest

from transferkit.deprecation import moved_names, renamed_argument, renamed_fields
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


@renamed_fields(width="size", colour="color", until="0.4")
@dataclass(frozen=True)
class Patch:
    size: int = 224
    color: str = "red"


def test_old_fields_warn_where_they_are_written_and_work() -> None:
    with pytest.warns(DeprecationWarning, match=r"Patch\(width=...\) is Patch\(size=...\) now") as caught:
        assert Patch(width=64) == Patch(64)  # type: ignore[call-arg]
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(DeprecationWarning) as caught:
        assert replace(Patch(), colour="blue", width=64) == Patch(64, "blue")
    assert [str(warning.message).split("(")[1] for warning in caught] == [
        "width=...) is Patch",
        "colour=...) is Patch",
    ]
    assert {warning.filename for warning in caught} == {__file__}
    with pytest.warns(DeprecationWarning, match=r"Patch\.width is Patch\.size now") as caught:
        assert Patch(64).width == 64  # type: ignore[attr-defined]
    assert caught[0].filename == __file__


def test_fields_under_their_present_names_do_not_warn_and_unknown_ones_are_errors() -> None:
    assert replace(Patch(64), color="blue") == Patch(64, "blue")
    with pytest.raises(TypeError, match="wdth"):
        Patch(wdth=64)  # type: ignore[call-arg]


def test_a_moved_name_is_found_by_import_and_any_other_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("old_place")
    module.__getattr__ = moved_names("old_place", {"find": "transferkit.boxes.area"}, until="0.4")
    monkeypatch.setitem(sys.modules, "old_place", module)
    with pytest.warns(DeprecationWarning, match="old_place.find is transferkit.boxes.area now"):
        from old_place import find
    assert find.__name__ == "area"
    with pytest.raises(ImportError, match="cannot import name 'fnd'"):
        from old_place import fnd  # noqa: F401
