"""Cutting against PIL's ``resize(box=...)``, against a slow loop from the formula, and on its own terms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from transferkit.errors import ArgumentError
from transferkit.sampler import PatchGrid, crop_and_resize


def noise(channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, height, width), generator=source, dtype=torch.uint8)


def pil_patches(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    photo = Image.fromarray(image.cpu().permute(1, 2, 0).numpy())
    cut = [photo.resize((size, size), Image.Resampling.BILINEAR, box=tuple(box)) for box in boxes.tolist()]
    return torch.stack([torch.from_numpy(np.array(patch)).permute(2, 0, 1) for patch in cut])


@st.composite
def images_and_boxes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    ends = st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted)
    boxes = draw(st.lists(st.tuples(ends, ends), min_size=1, max_size=4))
    scaled = [[x[0] * width, y[0] * height, x[1] * width, y[1] * height] for x, y in boxes]
    return noise(3, height, width, draw(st.integers(0, 9))), torch.tensor(scaled, dtype=torch.float64)


def slow_resample(values: np.ndarray, start: float, end: float, count: int, antialias: bool) -> np.ndarray:
    """Resample the last axis: a triangle around each sampled point, over the pixels there are."""
    scale = (end - start) / count
    width = max(scale, 1.0) if antialias else 1.0
    columns = []
    for i in range(count):
        center = start + (i + 0.5) * scale
        weights = [max(0.0, 1 - abs(k + 0.5 - center) / width) for k in range(values.shape[-1])]
        columns.append((values * weights).sum(-1) / sum(weights))
    return np.stack(columns, axis=-1)


@settings(deadline=None, max_examples=100)
@given(images_and_boxes(), st.booleans())
def test_a_slow_loop_from_the_formula_agrees(case: tuple[Tensor, Tensor], antialias: bool) -> None:
    image, boxes = case
    patches = crop_and_resize(image, boxes, (5, 7), antialias, dtype=torch.float32)
    for patch, (left, top, right, bottom) in zip(patches, boxes.tolist(), strict=True):
        across = slow_resample(image.double().numpy(), left, right, 7, antialias)
        expected = slow_resample(across.swapaxes(1, 2), top, bottom, 5, antialias).swapaxes(1, 2)
        np.testing.assert_allclose(patch.numpy(), expected, atol=1e-3)


@settings(deadline=None, max_examples=50)
@given(images_and_boxes())
def test_a_batch_equals_singles_bit_for_bit(case: tuple[Tensor, Tensor]) -> None:
    image, boxes = case
    for dtype in (torch.uint8, torch.float32):
        together = crop_and_resize(image, boxes, 9, dtype=dtype)
        assert all(
            torch.equal(crop_and_resize(image, boxes[i : i + 1], 9, dtype=dtype)[0], together[i])
            for i in range(len(boxes))
        )


def test_noise_as_pil_cuts_it(device: torch.device) -> None:
    image = noise(3, 97, 131).to(device)
    source = torch.Generator().manual_seed(1)
    corners = torch.rand(200, 2, 2, generator=source, dtype=torch.float64).sort(dim=1).values
    boxes = (corners * torch.tensor([131, 97])).flatten(1)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2] > 0.5).all(dim=1)]
    ours, pils = crop_and_resize(image, boxes, 32).cpu().int(), pil_patches(image, boxes, 32).int()
    assert (ours - pils).abs().max() <= 1
    assert (ours - pils).abs().double().mean() < 0.25


def random_boxes(height: int, width: int, seed: int) -> Tensor:
    """Boxes of any place, size and shape."""
    corners = torch.rand(40, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (corners.sort(dim=1).values * torch.tensor([width, height])).flatten(1)


@pytest.mark.parametrize("kind", ["grid", "random"])
def test_photos_as_pil_cuts_them(shared: Path, device: torch.device, kind: str) -> None:
    photos = sorted((shared / "voc").rglob("JPEGImages/*.jpg"))[::150]
    assert photos
    differences = []
    for number, path in enumerate(photos):
        photo = np.array(Image.open(path).convert("RGB"))
        image = torch.from_numpy(photo).permute(2, 0, 1).contiguous().to(device)
        height, width = photo.shape[:2]
        boxes = PatchGrid()((height, width)) if kind == "grid" else random_boxes(height, width, number)
        some = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(number))[:40]
        ours = crop_and_resize(image, boxes[some], 224).cpu().int()
        differences.append((ours - pil_patches(image, boxes[some], 224).int()).abs())
    found = torch.cat(differences)
    assert found.max() <= 1
    assert found.double().mean() < 0.25


def test_whole_pixels_is_to_cut_first_and_resize_then() -> None:
    image = noise(3, 50, 60)
    boxes = torch.tensor(
        [[3.7, 4.2, 40.9, 45.0], [10.0, 0.0, 12.9, 49.9], [59.9, 49.8, 60.0, 50.0], [7, 7, 7, 7.0]]
    )
    photo = Image.fromarray(image.permute(1, 2, 0).numpy())
    for box, patch in zip(boxes.tolist(), crop_and_resize(image, boxes, 16, whole_pixels=True), strict=True):
        left, top, right, bottom = map(int, box)
        cut = photo.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
        expected = torch.from_numpy(np.array(cut.resize((16, 16), Image.Resampling.BILINEAR))).permute(2, 0, 1)
        assert (patch.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
def test_an_even_image_stays_even(level: int, device: torch.device) -> None:
    image = torch.full((3, 40, 30), level, dtype=torch.uint8, device=device)
    boxes = PatchGrid()((40, 30))
    assert (crop_and_resize(image, boxes, 20) == level).all()
    torch.testing.assert_close(
        crop_and_resize(image, boxes, 20, dtype=torch.float32),
        torch.full((len(boxes), 3, 20, 20), float(level)).to(device),
    )


def test_the_whole_image_at_its_own_size_is_itself(device: torch.device) -> None:
    image = noise(2, 17, 23).to(device)
    assert torch.equal(crop_and_resize(image, torch.tensor([[0, 0, 23, 17]]), (17, 23))[0], image)


def test_more_boxes_than_are_planned_at_once() -> None:
    image, boxes = noise(1, 20, 20), PatchGrid()((20, 20)).repeat(3, 1)
    assert torch.equal(
        crop_and_resize(image, boxes, 4), crop_and_resize(image, boxes[: len(boxes) // 3], 4).repeat(3, 1, 1, 1)
    )


def test_kinds_of_output(device: torch.device) -> None:
    image, boxes = noise(3, 20, 30).to(device), torch.tensor([[1.5, 2.0, 17.25, 19.0]])
    exact = crop_and_resize(image, boxes, 8, dtype=torch.float32)
    assert torch.equal(crop_and_resize(image, boxes, 8), (exact + 0.5).to(torch.uint8))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(crop_and_resize(image, boxes, 8, dtype=dtype), exact.to(dtype))
        assert crop_and_resize(image.to(dtype), boxes, 8).dtype == dtype
    place = torch.zeros(1, 3, 8, 8, device=device)
    assert crop_and_resize(image, boxes, 8, out=place) is place
    assert torch.equal(place, exact)
    assert crop_and_resize(image, torch.zeros(0, 4), 8).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crop_and_resize(noise(3, 9, 9)[0], torch.zeros(1, 4), 4), r"image must be \(C, H, W\)"),
        (lambda: crop_and_resize(noise(3, 9, 9).int(), torch.zeros(1, 4), 4), "image must be"),
        (lambda: crop_and_resize(noise(3, 9, 9), torch.zeros(1, 3), 4), r"boxes must be \(N, 4\)"),
        (
            lambda: crop_and_resize(noise(3, 9, 8), torch.tensor([[0, 0, 8, 9], [0, 0, 9, 8]]), 4),
            r"8 wide .* at row 1",
        ),
        (
            lambda: crop_and_resize(noise(3, 9, 9), torch.tensor([[-0.1, 0, 8, 9]]), 4),
            "must lie inside the image",
        ),
        (lambda: crop_and_resize(noise(3, 9, 9), torch.tensor([[0, 0, torch.nan, 9]]), 4), "must be finite"),
        (lambda: crop_and_resize(noise(3, 9, 9), torch.zeros(1, 4), 0), "size must be 1 or more"),
        (
            lambda: crop_and_resize(noise(3, 9, 9), torch.zeros(1, 4), 4, dtype=torch.int32),
            "dtype must be floating",
        ),
        (
            lambda: crop_and_resize(noise(3, 9, 9), torch.zeros(1, 4), 4, out=torch.zeros(1, 3, 4, 5)),
            "out must be",
        ),
    ],
)
def test_bad_input_is_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()
