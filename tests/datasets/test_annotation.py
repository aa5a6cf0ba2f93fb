"""The annotation reader: everything VOC and its imitators write is read, everything else is one clear error."""

from __future__ import annotations

import string
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.datasets.voc_files import VOCAnnotation, VOCObject, parse_annotation, read_annotation
from transferkit.errors import DataError

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_PART = (
    "<part><name>head</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></part>"
)
_EXTRAS = [
    "<pose>Left</pose>",
    "<occluded>1</occluded>",
    "<point><x>7</x><y>9</y></point>",
    "<actions><jumping>1</jumping></actions>",
    "<!-- checked -->",
    _PART,
]
_FLAGS = {
    "1": True,
    "0": False,
    " 1 ": True,
    "True": True,
    "false": False,
    "Unspecified": False,
    "0.0597": True,
}

names = st.text(string.ascii_letters + string.digits + "-_ &<>'é中", min_size=1).map(str.strip).filter(bool)
sides = st.one_of(st.integers(-5, 2000).map(float), st.floats(-5, 2000, allow_nan=False))


def _tag(name: str, text: str) -> str:
    return f"<{name}>{text}</{name}>"


@st.composite
def written_objects(draw: Any) -> tuple[str, VOCObject]:
    """An ``<object>`` with its children in any order, and what it says."""
    name = draw(names)
    (xmin, xmax), (ymin, ymax) = (sorted(draw(st.tuples(sides, sides))) for _ in "xy")
    box = (xmin, ymin, xmax, ymax)
    lines = draw(st.permutations([_tag(side, f" {value!r} ") for side, value in zip(_SIDES, box, strict=True)]))
    children = [_tag("name", f"\n{escape(name)}\t"), _tag("bndbox", "".join(lines))]
    flags = {}
    for tag in ("difficult", "truncated"):
        text = draw(st.sampled_from([None, "", *_FLAGS]))
        flags[tag] = _FLAGS.get(text, False)
        children += [_tag(tag, text)] * (text is not None)
    children += draw(st.lists(st.sampled_from(_EXTRAS), max_size=4))
    return _tag("object", "\n\t".join(draw(st.permutations(children)))), VOCObject(name, box, **flags)


@st.composite
def written_annotations(draw: Any) -> tuple[bytes, VOCAnnotation]:
    """A whole file, and what it says."""
    objects = draw(st.lists(written_objects(), max_size=4))
    size = draw(st.none() | st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
    children = [text for text, _ in objects]
    if size:
        children.insert(0, _tag("size", f"<width>{size[1]}</width><height>{size[0]}</height><depth>3</depth>"))
    children.insert(0, "<owner><name>dog</name></owner>")
    header = draw(
        st.sampled_from(["", "\ufeff", '<?xml version="1.0"?>', '<?xml version="1.0" encoding="utf-8"?>\n'])
    )
    text = header + f"<annotation>{''.join(children)}</annotation>"
    return text.encode(), VOCAnnotation(size, tuple(thing for _, thing in objects))


@given(written_annotations())
@settings(deadline=None, max_examples=200)
def test_what_is_written_is_read(pair: tuple[bytes, VOCAnnotation]) -> None:
    data, expected = pair
    assert parse_annotation(data) == expected


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(deadline=None, max_examples=200)
def test_anything_else_is_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError):
        parse_annotation(data)


@given(written_annotations(), st.data())
@settings(deadline=None, max_examples=200)
def test_damage_gives_an_annotation_or_a_data_error(
    pair: tuple[bytes, VOCAnnotation], data: st.DataObject
) -> None:
    whole, _ = pair
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(start + 30, len(whole))))
    damaged = whole[:start] + data.draw(st.binary(max_size=5)) + whole[end:]
    with suppress(DataError):
        assert isinstance(parse_annotation(damaged), VOCAnnotation)


_LAUGHS = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol">
<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">
<!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;"><!ENTITY e "&d;&d;&d;&d;&d;&d;&d;&d;&d;&d;">
<!ENTITY f "&e;&e;&e;&e;&e;&e;&e;&e;&e;&e;"><!ENTITY g "&f;&f;&f;&f;&f;&f;&f;&f;&f;&f;">
<!ENTITY h "&g;&g;&g;&g;&g;&g;&g;&g;&g;&g;"><!ENTITY i "&h;&h;&h;&h;&h;&h;&h;&h;&h;&h;">
]><annotation><filename>&i;</filename></annotation>"""


@pytest.mark.parametrize(
    "data",
    [
        _LAUGHS.encode(),
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation><filename>&x;</filename></annotation>',
        _LAUGHS.encode("utf-16"),
        _LAUGHS.replace('"1.0"', '"1.0" encoding="utf-16"').encode("utf-16-le"),
        b'<?xml version="1.0" encoding="cp037"?>' + _LAUGHS[21:].encode("cp037"),
        b"<annotation>&undefined;</annotation>",
    ],
    ids=["laughs", "external", "utf-16", "utf-16-le", "ebcdic", "undefined"],
)
def test_entities_are_refused_in_any_encoding(data: bytes) -> None:
    with pytest.raises(DataError, match="refused|not well-formed"):
        parse_annotation(data)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<object></object>", "has no <name> in object 1$"),
        ("<object><name>dog</name></object>", r"has no <bndbox> in object 1 \(dog\)"),
        ("<object><name>dog</name><bndbox><xmin>1</xmin></bndbox></object>", r"no <ymin> in object 1 \(dog\)"),
        ("<size><width>5</width></size>", "has no <height> in <size>"),
        ("<size><width>5</width><height>x</height></size>", "has no number in <height> of <size>: 'x'"),
        ("<size><width>5</width><height>-4</height></size>", "has a <size> that is no size: 5 x -4"),
        ("<size><width>5.5</width><height>4</height></size>", "has a <size> that is no size: 5.5 x 4"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, body: str, message: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(f"<annotation>{body}</annotation>")
    with pytest.raises(DataError, match=rf"a\.xml .*{message}"):
        read_annotation(path)


def test_a_size_of_zero_says_nothing() -> None:
    data = b"<annotation><size><width>0</width><height>0</height></size></annotation>"
    assert parse_annotation(data).image_size is None


def test_other_roots_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its root is <annotations>, not <annotation>"):
        parse_annotation(b"<annotations/>")
    with pytest.raises(DataError, match=r"none\.xml cannot be read: No such file"):
        read_annotation(tmp_path / "none.xml")
