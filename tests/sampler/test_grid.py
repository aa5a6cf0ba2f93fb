"""The grid against neon's recorded patches, and what must hold for any image and any settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transferkit.errors import ArgumentError
from transferkit.finetune import OQUAB2014
from transferkit.labeling import OverlapRule, label_patches
from transferkit.sampler import NEON_SCALES, PatchGrid

photos = st.tuples(st.integers(1, 700), st.integers(1, 700)).filter(lambda size: max(size) < 60 * min(size))
slivers = st.tuples(st.integers(1, 3), st.integers(1, 1500)) | st.tuples(
    st.integers(1, 1500), st.integers(1, 3)
)
sizes = photos | slivers  # down to one pixel, and of any aspect ratio
fractions = st.sampled_from([0, 0.1, 0.25, 0.3, 0.5, 0.6, 0.75, Fraction(1, 3)])
scale_lists = st.lists(
    st.sampled_from([*NEON_SCALES, Fraction(7, 3), 1.7]), min_size=1, max_size=4, unique=True
)
grids = st.builds(
    PatchGrid,
    scales=scale_lists.map(tuple),
    density=st.integers(1, 3),
    target=st.none() | st.integers(1, 300),
    min_scales=st.integers(1, 5),
    min_overlap=st.none() | fractions,
    reach=st.sampled_from(["last_pixel", "edge"]),
)


def test_neon_patches_and_labels_to_the_last_digit(shared: Path) -> None:
    golden = np.load(shared / "golden" / "neon_patches.npz")
    images = sorted({name.split("_")[0] for name in golden.files}, key=int)
    assert len(images) == 12
    for image in images:
        width, height = golden[f"{image}_size"].tolist()
        grid = PatchGrid()
        boxes = grid((height, width))
        assert grid.counts((height, width)) == tuple(golden[f"{image}_counts"])
        np.testing.assert_allclose(boxes.numpy(), golden[f"{image}_boxes"], rtol=0, atol=1e-9)
        objects, classes = (torch.from_numpy(golden[f"{image}_{part}"]) for part in ("rois", "roi_labels"))
        labels, matched = label_patches(boxes, objects, classes, rule=OverlapRule(0.2, 0.6))
        np.testing.assert_array_equal(labels.numpy(), golden[f"{image}_labels"])
        np.testing.assert_array_equal(matched.numpy(), golden[f"{image}_match"])


def slow_axis(extent: Fraction, side: Fraction, density: int) -> list[tuple[Fraction, Fraction]]:
    """One axis as the recipe words it: as many patches as cover it, twice as many if several, evenly by their centers."""
    count = 1
    while count * side < extent:
        count += 1
    if count == 1:
        return [((extent - side) / 2, (extent + side) / 2)]
    count *= density
    first, last = side / 2, extent - side / 2
    centers = [first + (last - first) * index / (count - 1) for index in range(count)]
    return [(center - side / 2, center + side / 2) for center in centers]


@settings(deadline=None, max_examples=60)
@given(photos.filter(lambda size: max(size) < 12 * min(size)), scale_lists, st.integers(1, 3))
def test_a_slow_loop_from_the_definition_agrees(size: tuple[int, int], scales: list[Any], density: int) -> None:
    height, width = (Fraction(max(dim - 1, 1)) for dim in size)
    expected = []
    for scale in scales:
        side = min(height, width) / (scale if isinstance(scale, Fraction) else Fraction(str(scale)))
        for left, right in slow_axis(width, side, density):
            for top, bottom in slow_axis(height, side, density):
                expected.append([float(edge) for edge in (left, top, right, bottom)])
    assert PatchGrid(tuple(scales), density, target=None)(size).tolist() == expected


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (500, 500), (281, 500), (1000, 1500)])
def test_the_papers_grid_has_about_500_patches_that_overlap_by_half(size: tuple[int, int]) -> None:
    grid = OQUAB2014.grid
    boxes, counts = grid(size), grid.counts(size)
    assert 440 <= len(boxes) <= 580
    for start, count in zip(np.cumsum([0, *counts]), counts, strict=False):
        for axis in (0, 1):
            edges = sorted(set(map(tuple, boxes[start : start + count, [axis, axis + 2]].tolist())))
            assert all(a[1] - b[0] >= (1 - 1e-9) * (a[1] - a[0]) / 2 for a, b in pairwise(edges))


@settings(deadline=None, max_examples=150)
@given(grids, sizes)
@example(PatchGrid(), (1, 1))
@example(PatchGrid(), (1, 37))
@example(PatchGrid(), (4000, 1))
@example(PatchGrid(reach="edge", min_overlap=0.5), (50, 1))
def test_patches_are_squares_inside_the_image_and_counted_beforehand(
    grid: PatchGrid, size: tuple[int, int]
) -> None:
    boxes = grid(size)
    height, width = size
    assert len(boxes) == grid.count(size) == sum(grid.counts(size))
    assert (boxes >= 0).all()
    assert (boxes[:, 0::2] <= width).all()
    assert (boxes[:, 1::2] <= height).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides > 0).all()
    torch.testing.assert_close(sides[:, 0], sides[:, 1])


@settings(deadline=None, max_examples=100)
@given(grids, sizes)
def test_every_pixel_is_covered_at_every_scale(grid: PatchGrid, size: tuple[int, int]) -> None:
    boxes, counts = grid(size), grid.counts(size)
    for start, count in zip(np.cumsum([0, *counts]), counts, strict=False):
        for axis, dim in ((0, size[1]), (1, size[0])):
            extent = max(dim - 1, 1) if grid.reach == "last_pixel" else dim
            starts, ends = boxes[start : start + count, [axis, axis + 2]].unique(dim=0).unbind(dim=1)
            assert math.isclose(float(starts[0]), 0, abs_tol=1e-9)
            assert math.isclose(float(ends[-1]), extent, rel_tol=1e-12)
            assert (ends[:-1] >= starts[1:] - 1e-9).all()


@settings(deadline=None, max_examples=100)
@given(sizes, scale_lists, fractions)
def test_no_fewer_patches_would_overlap_enough(size: tuple[int, int], scales: list[Any], overlap: Any) -> None:
    grid = PatchGrid(tuple(scales), target=None, min_overlap=overlap, reach="edge")
    least = Fraction(str(overlap)) if not isinstance(overlap, Fraction) else overlap
    for index, scale in enumerate(scales):
        side = Fraction(min(size)) / (scale if isinstance(scale, Fraction) else Fraction(str(scale)))
        axes = []
        for extent in (size[1], size[0]):
            count = 1
            while side + (count - 1) * side * (1 - least) < extent:
                count += 1
            axes.append(count)
        assert grid.counts(size)[index] == axes[0] * axes[1]


def test_ceilings_are_exact_where_floats_tip_over() -> None:
    tipped = [
        (side, scale)
        for side in range(2, 500)
        for scale in NEON_SCALES
        if math.ceil(side * 10 / (side / scale)) != math.ceil(10 * Fraction(str(scale)))
    ]
    assert tipped
    for side, scale in tipped[:50]:
        grid = PatchGrid((scale,), density=1, reach="edge")
        assert grid.count((side, side * 10)) == math.ceil(10 * Fraction(str(scale))) * math.ceil(
            Fraction(str(scale))
        )


@settings(deadline=None, max_examples=100)
@given(sizes, st.integers(1, 2000), st.integers(1, 13))
def test_it_stops_at_the_first_scale_that_reaches_the_target(
    size: tuple[int, int], target: int, min_scales: int
) -> None:
    every = PatchGrid(target=None).counts(size)
    used = PatchGrid(target=target, min_scales=min_scales).counts(size)
    assert used == every[: len(used)]
    assert len(used) >= min_scales
    if len(used) > min_scales:
        assert sum(used[:-1]) < target
    if len(used) < len(every):
        assert sum(used) >= target


def test_a_grid_is_a_plain_value() -> None:
    assert PatchGrid() == PatchGrid(scales=list(NEON_SCALES))  # type: ignore[arg-type]
    assert eval(repr(PatchGrid(min_overlap=0.5))) == PatchGrid(min_overlap=0.5)
    assert len({PatchGrid(), PatchGrid()}) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchGrid(scales=()), "scales must be at least one number"),
        (lambda: PatchGrid(scales=(0.5,)), "scales must be 1 or more"),
        (lambda: PatchGrid(scales=(1, math.inf)), "scales must be 1 or more"),
        (lambda: PatchGrid(density=0), "density must be a whole number, 1 or more"),
        (lambda: PatchGrid(density=1.5), "density must be a whole number"),  # type: ignore[arg-type]
        (lambda: PatchGrid(target=0), "target must be 1 or more, or None"),
        (lambda: PatchGrid(min_scales=0), "min_scales"),
        (lambda: PatchGrid(min_overlap=1), "min_overlap must be from 0 to below 1"),
        (lambda: PatchGrid(reach="border"), "reach must be"),  # type: ignore[arg-type]
        (lambda: PatchGrid()((0, 5)), "image_size must be"),
    ],
)
def test_settings_are_checked(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
