"""Tiles against a loop over positions, what is cut by them and stitched back, and shares of maps against sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from transferkit.errors import ArgumentError
from transferkit.sampler import Tiles, coverage, crop_and_resize
from transferkit.scorer import Stitcher

sides = st.integers(1, 24)
KINDS = [
    torch.uint8,
    torch.int8,
    torch.uint16,
    torch.int16,
    torch.uint32,
    torch.int32,
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
]


@settings(deadline=None, max_examples=200)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(sides, sides),
    st.tuples(sides, sides),
    st.data(),
)
def test_what_each_edge_promises(
    extents: tuple[int, int], size: tuple[int, int], stride: tuple[int, int], data: st.DataObject
) -> None:
    edge = data.draw(
        st.sampled_from(
            ["inside", "drop", "over"] if extents[0] >= size[0] and extents[1] >= size[1] else ["drop", "over"]
        )
    )
    tiles = Tiles(size, stride, edge=edge)
    boxes = tiles(extents)
    assert tiles.count(extents) == len(boxes) == len(boxes.unique(dim=0))
    x, y = np.meshgrid(boxes[:, 0].unique(), boxes[:, 1].unique(), indexing="ij")  # column by column
    assert torch.equal(boxes[:, :2], torch.from_numpy(np.stack([x.ravel(), y.ravel()], axis=1)).double())
    for axis, (extent, side, step) in enumerate(zip(extents[::-1], size[::-1], stride[::-1], strict=True)):
        starts = boxes[:, axis].unique().tolist()
        assert (boxes[:, axis + 2] - boxes[:, axis] == side).all()
        fit = [start for start in range(0, extent, step) if start + side <= extent]
        if edge == "drop":
            assert len(boxes) == 0 or starts == fit
        elif edge == "inside":
            assert starts == sorted({*fit, extent - side})
        else:
            assert starts[: len(fit)] == fit and len(starts) <= len(fit) + 1
            assert starts[-1] + side >= extent or starts[-1] + step >= extent


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    window=st.sampled_from(["flat", "hann", "gaussian"]),
    dtype=st.sampled_from(KINDS),
)
def test_cut_and_stitched_is_the_image_bit_for_bit(seed: int, window: str, dtype: torch.dtype) -> None:
    draw = np.random.default_rng(seed)
    size, channels = draw.integers(1, 20, 2), int(draw.integers(1, 4))
    stride, extents = draw.integers(1, size + 1), size + draw.integers(0, 40, 2)
    edge = str(draw.choice(["inside", "over"]))
    bytes_ = draw.integers(0, 256, (channels, *extents, dtype.itemsize), dtype=np.uint8)
    image = torch.from_numpy(bytes_).view(dtype)[..., 0]
    if dtype.is_floating_point:
        image = image.where(image.isfinite(), 0.0) + 0.0  # a sum has no -0.0
        image = torch.where(torch.from_numpy(draw.random(image.shape) < 0.01), torch.inf, image)
    boxes = Tiles(tuple(size), tuple(stride), edge=edge)(tuple(extents))
    patches = crop_and_resize(image, boxes, tuple(size), fill=3)
    stitcher = Stitcher(channels, tuple(extents), window)
    for some in torch.randperm(len(boxes)).split(7):
        stitcher.add(patches[some], boxes[some])
    found = stitcher.compute()
    assert found.dtype == dtype
    same = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(found.view(same), image.view(same))


def test_coverage_is_a_weight_that_rounding_never_takes_below_nothing_or_above_all() -> None:
    tissue = torch.zeros(100, 150, dtype=torch.bool)
    tissue[25:75, 20:50] = True
    boxes = Tiles(256)((2000, 3000)) / 20
    shares, others = coverage(tissue, boxes), coverage(~tissue, boxes)
    assert shares.min() >= 0 and others.max() <= 1
    assert torch.allclose(shares + others, torch.ones_like(shares))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_coverage_is_the_mean_of_the_pixels_by_their_area(seed: int) -> None:
    draw = np.random.default_rng(seed)
    height, width = draw.integers(1, 12, 2)
    values = draw.normal(size=(2, height, width))
    ends = np.sort(draw.uniform(-3, 14, (6, 2, 2)), axis=1).reshape(6, 4)
    ends = np.round(ends) if seed % 2 else ends
    found = coverage(values, ends)
    for row, (x0, y0, x1, y1) in zip(found, ends, strict=True):
        x, y = np.arange(width), np.arange(height)
        across = np.clip(np.minimum(x + 1, x1) - np.maximum(x, x0), 0, None)
        down = np.clip(np.minimum(y + 1, y1) - np.maximum(y, y0), 0, None)
        weight = down[:, None] * across
        if weight.sum() == 0:
            assert row.isnan().all()
        else:
            np.testing.assert_allclose(
                row, (values * weight).sum((1, 2)) / weight.sum(), atol=1e-9 / weight.sum()
            )
    mask = values[0] > 0
    assert torch.equal(coverage(mask, ends).nan_to_num(9), coverage(mask.astype(np.uint16), ends).nan_to_num(9))
    whole = torch.tensor([[0, 0, width, height]])
    assert coverage(mask, whole).tolist() == [mask.mean()]


def test_tiles_are_those_of_sahi() -> None:
    boxes = Tiles(640, overlap=128)((1080, 1920))
    assert boxes[:, 0].unique().tolist() == [0, 512, 1024, 1280]
    assert boxes[:, 1].unique().tolist() == [0, 440]
    assert torch.equal(boxes, Tiles(np.int64(640), stride=(512, 512))(np.array([1080, 1920])))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Tiles(0), "size must be 1 or more"),
        (lambda: Tiles(8, stride=4, overlap=4), "stride must be given, or overlap, not both"),
        (lambda: Tiles((8, 6), overlap=6), r"overlap must be below the size \(8, 6\), got 6"),
        (lambda: Tiles(8, stride=0), "stride must be 1 or more"),
        (lambda: Tiles(8, edge="wrap"), "edge must be one of"),
        (lambda: Tiles(8)((7, 9)), r"hold a tile of .* \(8, 8\), got \(7, 9\): .*edge='over'"),
        (lambda: coverage(torch.zeros(4), torch.zeros(1, 4)), r"values must be \(H, W\)"),
        (lambda: coverage(torch.tensor([[0.0, torch.nan]]), torch.zeros(1, 4)), r"values.isnan\(\)"),
        (lambda: coverage(torch.zeros(4, 4), torch.zeros(1, 3)), r"boxes must be \(N, 4\)"),
    ],
)
def test_bad_settings_are_named(call, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()


def test_a_picture_smaller_than_its_tiles() -> None:
    assert Tiles(8, edge="drop")((7, 9)).shape == (0, 4)
    boxes = Tiles(8, edge="over")((7, 9))
    image: Tensor = torch.arange(63.0).reshape(1, 7, 9)
    patches = crop_and_resize(image, boxes, 8, fill=torch.nan)
    assert int(patches.isnan().sum()) == patches.numel() - image.numel()
    assert torch.equal(Stitcher(1, (7, 9)).add(patches, boxes).compute(), image)
