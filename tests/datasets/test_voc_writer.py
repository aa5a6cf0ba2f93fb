"""What is written as VOC is read back the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.annotated import AnnotatedImage
from transferkit.datasets import VOCDataset, write_voc_images


@st.composite
def items(draw: Any, name: str) -> AnnotatedImage:
    height, width = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    count = draw(st.integers(0, 4))
    starts = [(draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))) for _ in range(count)]
    boxes = [(x, y, draw(st.integers(x + 1, width)), draw(st.integers(y + 1, height))) for x, y in starts]
    flags = torch.tensor(
        draw(st.lists(st.booleans(), min_size=2 * count, max_size=2 * count)), dtype=torch.bool
    )
    return AnnotatedImage(
        image=torch.full((3, height, width), draw(st.integers(0, 255)), dtype=torch.uint8),
        boxes=torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        classes=torch.tensor([draw(st.integers(1, 3)) for _ in range(count)], dtype=torch.int64),
        difficult=flags[:count],
        truncated=flags[count:],
        id=name,
    )


@given(st.tuples(items("one"), items("two")))
@settings(deadline=None, max_examples=40)
def test_round_trip(written: tuple[AnnotatedImage, ...]) -> None:
    names = ("background", "a & b", "c<d>", "é")
    with tempfile.TemporaryDirectory() as folder:
        write_voc_images(Path(folder), "trainval", written, names)
        data = VOCDataset(folder, class_names=names)
        assert data.ids == ("one", "two")
        for item, read in zip(written, data, strict=True):
            for field in ("boxes", "classes", "difficult", "truncated"):
                ours, theirs = getattr(item, field), getattr(read, field)
                assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
            assert (item.image.int() - read.image.int()).abs().max() <= 1
