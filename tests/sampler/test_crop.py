"""Cutting against PIL's ``resize(box=...)``, against a slow loop from the formula, and on its own terms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        (
            lambda: crop_and_resize(noise(3, 9, 9).long(), torch.zeros(1, 4), 4),
            "image must be .* mode='nearest'",
        ),
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


@pytest.mark.parametrize("size", [4, 12, 24, 30])
def test_what_is_not_finite_is_seen_where_it_weighs_something_as_torch_and_pil_have_it(size: int) -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        image = torch.zeros(1, 12, 12)
        image[0, 6, 6] = value
        ours = crop_and_resize(
            image, torch.tensor([[0, 0, 12, 12], [0, 0, 6, 6], [6, 0, 12, 12]]), size, whole_pixels=True
        )
        for patch, (x0, x1, y1) in zip(ours, ((0, 12, 12), (0, 6, 6), (6, 12, 12)), strict=True):
            photo = Image.fromarray(image[0].numpy()).crop((x0, 0, x1, y1))
            pil = torch.tensor(np.asarray(photo.resize((size, size), Image.Resampling.BILINEAR)))
            assert torch.equal(patch[0].isfinite(), pil.isfinite())
            assert torch.equal(patch[0].isinf(), pil.isinf())


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_boxes_far_apart_are_cut_as_each_alone(seed: int) -> None:
    source = np.random.default_rng(seed)
    image = noise(2, 400, 300, seed % 9)
    image = image.float() if seed % 2 else image
    sides, columns = source.integers(1, 40, (12, 2)), source.choice(source.integers(0, 250, 4), 12)
    corner = np.stack([columns, source.integers(0, 350, 12)], axis=1) + source.choice([0.0, 0.25])
    boxes = torch.from_numpy(np.concatenate([corner, corner + sides], axis=1))
    together = crop_and_resize(image, boxes, 8)
    assert torch.equal(together, torch.cat([crop_and_resize(image, box[None], 8) for box in boxes]))


def test_a_picture_too_large_for_one_window_is_cut_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    image, boxes = noise(2, 60, 90), PatchGrid(target=None)((60, 90))
    whole, sizes = crop_and_resize(image, boxes, 8), []
    original = torch.empty
    monkeypatch.setattr("transferkit.sampler.crop._VALUES_IN_WINDOW", 2 * 60 * 89)
    monkeypatch.setattr(
        torch, "empty", lambda *shape, **kind: (sizes.append(shape), original(*shape, **kind))[1]
    )
    assert torch.equal(crop_and_resize(image, boxes, 8), whole)
    assert len(sizes) > 13


def test_boxes_far_apart_cost_what_they_show() -> None:
    seen: list[int] = []

    class Regions:
        shape, dtype = (1, 100_000, 100_000), np.dtype(np.uint16)

        def __getitem__(self, key: tuple[slice, slice, slice]) -> np.ndarray:
            part = np.zeros((1, *(some.stop - some.start for some in key[1:])), self.dtype) + 7
            seen.append(part.size)
            return part

    corners = torch.tensor([[0, 0], [0, 99_000], [99_000, 0], [99_000, 99_500], [50_000, 0]])
    for mode in ("bilinear", "nearest"):
        assert (crop_and_resize(Regions(), torch.cat([corners, corners + 64], 1), 64, mode=mode) == 7).all()
    assert sum(seen) <= 2 * 5 * 66**2


KINDS = [
    torch.uint8,
    torch.int8,
    torch.uint16,
    torch.int16,
    torch.uint32,
    torch.int32,
    torch.float16,
    torch.float32,
    torch.float64,
]


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_every_dtype_keeps_its_values_and_rounds_to_the_nearest(
    dtype: torch.dtype, device: torch.device
) -> None:
    source = torch.Generator().manual_seed(1)
    limits = torch.iinfo(dtype) if not dtype.is_floating_point else torch.finfo(torch.float16)
    values = (
        torch.rand(5, 30, 40, generator=source, dtype=torch.float64) * (limits.max - limits.min) + limits.min
    )
    image = values.to(dtype).to(device)
    boxes = torch.tensor([[3, 4, 19, 14], [0, 20, 16, 30]])
    for patch, (x0, y0, x1, y1) in zip(crop_and_resize(image, boxes, (10, 16)), boxes.tolist(), strict=True):
        assert torch.equal(patch, image[:, y0:y1, x0:x1])
    # One box of another size takes the way of all that is resized.
    resized = crop_and_resize(image, torch.tensor([[3, 4, 19, 14], [0, 20, 15, 30]]), (10, 16))
    assert torch.equal(resized[0], image[:, 4:14, 3:19])
    exact = torch.nn.functional.interpolate(
        image[None].double().cpu(), (9, 11), mode="bilinear", antialias=True
    )[0]
    found = crop_and_resize(image, torch.tensor([[0, 0, 40, 30]]), (9, 11))[0]
    assert found.dtype == dtype
    if dtype.is_floating_point:
        close = {torch.float16: 1e-3, torch.float32: 1e-6, torch.float64: 1e-15}[dtype]
        torch.testing.assert_close(found.double().cpu(), exact, rtol=0, atol=close * 2 * limits.max)
    else:
        slack = 1e-2 if dtype.itemsize < 4 else 1e-5
        assert (found.double().cpu() - exact).abs().max() <= 0.5 + slack


@pytest.mark.parametrize("dtype", [*KINDS, torch.int64, torch.bool], ids=str)
def test_nearest_takes_the_pixel_under_the_center(dtype: torch.dtype, device: torch.device) -> None:
    image = noise(2, 30, 40).to(dtype).to(device)
    boxes = torch.tensor([[3.0, 4.0, 23.0, 16.0], [0.5, 20.25, 17.0, 30.0], [40.0, 30.0, 40.0, 30.0]])
    for patch, (x0, y0, x1, y1) in zip(
        crop_and_resize(image, boxes, (6, 7), mode="nearest"), boxes.tolist(), strict=True
    ):
        y = [min(int(y0 + (i + 0.5) * (y1 - y0) / 6), 29) for i in range(6)]
        x = [min(int(x0 + (i + 0.5) * (x1 - x0) / 7), 39) for i in range(7)]
        assert torch.equal(patch.double(), image.double()[:, y][:, :, x])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["bilinear", "nearest"]), st.booleans())
def test_fill_is_what_lies_outside(seed: int, mode: str, whole: bool) -> None:
    source = np.random.default_rng(seed)
    image = noise(2, 9, 14, seed % 9)
    corner = source.integers(-12, 20, (5, 2))
    boxes = torch.from_numpy(np.concatenate([corner, corner + source.integers(1, 12, (5, 2))], axis=1))
    padded = torch.nn.functional.pad(image, (40, 40, 40, 40), value=200)
    expected = [
        crop_and_resize(
            padded[:, y0 + 40 : y1 + 40, x0 + 40 : x1 + 40],
            torch.tensor([[0, 0, x1 - x0, y1 - y0]]),
            6,
            mode=mode,
        )
        for x0, y0, x1, y1 in boxes.tolist()
    ]
    found = crop_and_resize(image, boxes, 6, fill=200, mode=mode, whole_pixels=True)
    assert torch.equal(found, torch.cat(expected))
    inside = torch.tensor([[0.25, 1.5, 14, 9]])
    both = torch.cat([inside, boxes.double()])
    there = crop_and_resize(image, both, 6, fill=200, mode=mode, whole_pixels=whole)[:1]
    assert torch.equal(there, crop_and_resize(image, inside, 6, mode=mode, whole_pixels=whole))


def test_arrays_and_sizes_of_numpy(tmp_path: Path) -> None:
    image, boxes = noise(3, 20, 30), torch.tensor([[1.5, 2.0, 17.25, 19.0]])
    expected = crop_and_resize(image, boxes, 8)
    array = image.numpy()
    array.setflags(write=False)
    np.save(tmp_path / "image.npy", array)
    for same in (array, array[:, ::-1][:, ::-1], np.load(tmp_path / "image.npy", mmap_mode="r")):
        for size in (np.int64(8), (np.int32(8), 8), [8, 8], np.array([8, 8])):
            assert torch.equal(crop_and_resize(same, boxes.numpy(), size), expected)
    swapped = image.numpy().astype(">u2")
    assert torch.equal(crop_and_resize(swapped, boxes, 8).to(torch.uint8), expected)
    for own in ((20, 30), 1, 8):
        assert crop_and_resize(image.float(), torch.zeros(0, 4), own).dtype == torch.float32


@pytest.mark.parametrize(
    ("image", "settings", "message"),
    [
        ([[[0.0]]], {}, "image must be a tensor or an array"),
        (torch.zeros(1, 9, 9, dtype=torch.bool), {}, "mode='nearest'.*, got torch.bool"),
        (torch.zeros(1, 9, 9, dtype=torch.complex64), {"mode": "nearest"}, "image must be .* real"),
        (np.zeros((1, 9, 9), object), {}, "image must be a tensor, or numbers"),
        (noise(1, 9, 9), {"mode": "cubic"}, "mode must be 'bilinear' or 'nearest'"),
        (noise(1, 9, 9), {"fill": 256}, "fill must be one value of the image's torch.uint8"),
        (noise(1, 9, 9), {"fill": (0, 0, 0)}, "fill must be one value"),
        (noise(1, 9, 9), {"size": 4.0}, "size must be 1 or more"),
    ],
)
def test_what_cannot_be_cut_is_named(image: Tensor, settings: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        crop_and_resize(image, torch.tensor([[0, 0, 4, 4]]), **{"size": 4, **settings})


def test_a_tensor_of_others_is_cut_as_a_plain_one() -> None:
    """MONAI's and torchvision's images are subclasses that read torch's functions otherwise."""

    class Theirs(Tensor):
        def new_empty(self, *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
            raise TypeError("argument 'size' must be a tuple")

    image, boxes = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4), torch.tensor([[0.5, 1, 2.5, 3]])
    patches = crop_and_resize(image.as_subclass(Theirs), boxes.as_subclass(Theirs), 2)
    assert type(patches) is Tensor and torch.equal(patches, crop_and_resize(image, boxes, 2))
