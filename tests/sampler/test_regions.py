"""Images of any channels and type, read whole or by region, with further maps that are cut alike."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from transferkit.errors import ArgumentError, DataError
from transferkit.sampler import (
    AllPatches,
    ArrayReader,
    BackgroundFraction,
    ColorJitter,
    MultiscaleSampler,
    PatchBatch,
    RandomFlip,
    RegionReader,
)

HEIGHT, WIDTH, SIDE = 96, 80, 32


def bands(channels: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, 120, (channels, HEIGHT, WIDTH), generator=source).to(dtype)


def tiles(size: tuple[int, int]) -> Tensor:
    columns, rows = (torch.arange(0, max(0, side - 31), 16) for side in size[::-1])
    corners = torch.cartesian_prod(columns, rows)
    return torch.cat([corners, corners + SIDE], dim=1)


def anywhere(item: Any, generator: torch.Generator) -> Tensor:
    corners = torch.rand(7, 2, generator=generator) * torch.tensor([WIDTH - SIDE, HEIGHT - SIDE])
    return torch.cat([corners, corners + SIDE], dim=1)


def item(image: Any, **more: Any) -> SimpleNamespace:
    objects = {"boxes": torch.tensor([[4.0, 4.0, 30.0, 40.0]]), "classes": torch.tensor([1])}
    return SimpleNamespace(image=image, **objects, **more)


def stream(data: Any, **changes: Any) -> MultiscaleSampler:
    settings = {"grid": tiles, "patch_size": SIDE, "patches_per_image": 6, "batch_size": 4, "seed": 3}
    return MultiscaleSampler(data, **{**settings, **changes})


def equal(one: list[PatchBatch], other: list[PatchBatch]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(
        torch.equal(a.pixels, b.pixels) and torch.equal(a.boxes, b.boxes) and torch.equal(a.labels, b.labels)
        for a, b in pairs
    )


class Counting(ArrayReader):
    """Counts what is read of it."""

    def __init__(self, array: Any) -> None:
        super().__init__(array)
        object.__setattr__(self, "reads", [])

    def read(self, box: tuple[int, int, int, int]) -> Tensor:
        self.reads.append(box)  # type: ignore[attr-defined]
        return super().read(box)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("make", [lambda image: image, ArrayReader, lambda image: image.numpy()])
def test_patches_keep_channels_type_and_values(dtype: torch.dtype, make: Any) -> None:
    image = bands(13, dtype)
    (batch,) = stream([item(make(image))], balance=AllPatches(), batch_size=99, mode="test")
    assert batch.pixels.dtype == dtype and len(batch) == 20
    for patch, (x0, y0, x1, y1) in zip(batch.pixels, batch.boxes.long().tolist(), strict=True):
        assert torch.equal(patch, image[:, y0:y1, x0:x1])


@pytest.mark.parametrize("size", [13, 16, 64])
def test_a_region_s_patch_is_its_pixels_resized(size: int) -> None:
    image = bands()
    reader = ArrayReader(image.permute(1, 2, 0).numpy(), channels_last=True)
    (batch,) = stream([item(reader)], balance=AllPatches(), batch_size=99, mode="test", patch_size=size)
    for patch, (x0, y0, x1, y1) in zip(batch.pixels, batch.boxes.long().tolist(), strict=True):
        expected = interpolate(image[None, :, y0:y1, x0:x1], (size, size), mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(patch, expected)
    (whole,) = stream([item(image)], balance=AllPatches(), batch_size=99, mode="test", patch_size=size, whole_pixels=True)  # fmt: skip
    torch.testing.assert_close(batch.pixels, whole.pixels)


def test_each_chosen_box_is_read_once_and_nothing_else() -> None:
    readers = [Counting(bands(seed=seed)) for seed in range(3)]
    data = [item(reader) for reader in readers]
    proposals = lambda item: torch.cat([tiles((HEIGHT, WIDTH))] * 2)  # noqa: E731 - each box twice
    settings = {"grid": None, "proposals": proposals, "balance": BackgroundFraction(0.5)}  # counted beforehand
    boxes = torch.cat([batch.boxes[batch.image_index == 1] for batch in stream(data, mix_images=2, **settings)])
    assert Counter(readers[1].reads) == Counter({tuple(box) for box in boxes.long().tolist()})


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("mix_images", [1, 2])
@pytest.mark.parametrize("read", [ArrayReader, lambda image: image])
def test_random_positions_are_the_same_for_any_workers_ranks_and_restarts(mix_images: int, read: Any) -> None:
    data = [item(read(bands(seed=seed))) for seed in range(4)]
    settings = {"grid": None, "proposals": anywhere, "mix_images": mix_images}
    alone = list(stream(data, **settings))
    assert len({tuple(box) for batch in alone for box in batch.boxes.tolist()}) > 20
    for num_workers in (2, 4):
        assert equal(alone, list(stream(data, num_workers=num_workers, **settings)))
    first, second = stream(data, **settings), stream(data, num_workers=2, **settings)
    begun = iter(first)
    seen = [next(begun) for _ in range(3)]
    second.load_state_dict(first.state_dict())
    assert equal(alone, [*seen, *second])
    ranks = [batch for rank in range(3) for batch in stream(data, rank=rank, world_size=3, **settings)]
    together = sorted(tuple(box) for batch in ranks for box in batch.boxes[batch.image_index >= 0].tolist())
    assert together == sorted(tuple(box) for batch in alone for box in batch.boxes.tolist())
    assert not equal(list(first), alone)  # the next epoch has others


def test_a_rank_without_images_keeps_step_with_patches_of_the_same_form() -> None:
    data = [item(bands(13), mask=bands(1, torch.uint8)[0])]
    (batch, _) = stream(data, rank=1, world_size=2, mix_images=2, maps={"mask": "nearest"})
    assert batch.pixels.shape == (4, 13, SIDE, SIDE) and batch.is_filler and (batch.image_index == -1).all()
    assert batch.maps["mask"].dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int16, torch.bool])
@pytest.mark.parametrize("read", [ArrayReader, lambda image: image])
def test_maps_of_any_type_keep_it_in_shared_minibatches(read: Any, dtype: torch.dtype) -> None:
    data = [item(bands(seed=seed), levels=read(bands(seed=seed).to(dtype))) for seed in range(2)]
    for batch in stream(data, maps={"levels": "nearest"}, mix_images=2, transforms=(RandomFlip(),)):
        assert batch.maps["levels"].dtype == dtype
        assert torch.equal(batch.maps["levels"].int(), batch.pixels.to(dtype).int())


@pytest.mark.parametrize("mix_images", [1, 2])
@pytest.mark.parametrize("read", [ArrayReader, lambda image: image])
def test_maps_are_cut_and_mirrored_like_the_image(mix_images: int, read: Any) -> None:
    images = [bands(seed=seed) for seed in range(2)]
    data = [item(read(image), mask=read(image[0].to(torch.int32)), depth=read(image)) for image in images]
    maps = {"mask": "nearest", "depth": "bilinear"}
    found = list(
        stream(data, maps=maps, mix_images=mix_images, transforms=(RandomFlip(), ColorJitter(0, 0, 0)))
    )
    assert [batch.maps["mask"].shape for batch in found] == [(len(batch), 1, SIDE, SIDE) for batch in found]
    for batch in found:
        assert batch.maps["mask"].dtype == torch.int32
        assert torch.equal(batch.maps["depth"], batch.pixels)
        assert torch.equal(batch.maps["mask"][:, 0].float(), batch.pixels[:, 0])


def test_nearest_keeps_class_numbers() -> None:
    mask = torch.tensor([0, 3, 7, 255], dtype=torch.uint8)[torch.randint(0, 4, (HEIGHT, WIDTH))]
    (batch, *_) = stream([item(bands(), mask=mask)], maps={"mask": "nearest"}, patch_size=13)
    assert set(batch.maps["mask"].unique().tolist()) <= {0, 3, 7, 255}


def test_slides_are_read_where_they_are_coarse_enough() -> None:
    fine, coarse = Counting(bands()), Counting(bands()[:, ::4, ::4])
    object.__setattr__(fine, "coarser", (coarse,))
    (batch,) = stream([item(fine)], balance=AllPatches(), batch_size=99, mode="test", patch_size=8)
    assert not fine.reads and len(coarse.reads) == 20
    (x0, y0, x1, y1) = (batch.boxes[5] / 4).long().tolist()
    assert torch.equal(batch.pixels[5], coarse.array[:, y0:y1, x0:x1])
    list(stream([item(fine)], patch_size=9))
    assert len(fine.reads) == 6


def test_labels_of_one_s_own_need_no_objects() -> None:
    data = [SimpleNamespace(image=bands())]
    brightest = lambda item, boxes: (boxes[:, 0] > 16).long()  # noqa: E731
    for batch in stream(data, labels=brightest, mode="test"):
        assert torch.equal(batch.labels, (batch.boxes[:, 0] > 16).long())


def test_an_image_without_patches_is_passed_over_and_counted() -> None:
    data = [item(bands()[:, : 20 + 76 * (index != 1)]) for index in range(3)]
    sampler = stream(data)
    assert set(torch.cat([batch.image_index for batch in sampler]).tolist()) == {0, 2}
    assert sampler.empty_images == {1} and not sampler.bad_images
    with pytest.raises(DataError, match="no image can be used; the first: neither grid nor proposals lay"):
        list(stream(data[1:2]))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("where", ["item", "size", "read"])
def test_whatever_a_reader_raises_is_skipped_and_listed(where: str, num_workers: int) -> None:
    class Broken:
        @property
        def size(self) -> tuple[int, int]:
            if where == "size":
                raise RuntimeError("no header")
            return HEIGHT, WIDTH

        def read(self, box: Any) -> Tensor:
            raise KeyError("no tile")

    class Data(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            if index == 1 and where == "item":
                raise RuntimeError("not a DICOM file")
            return super().__getitem__(index)

    data = Data([item(bands()), item(Broken())])
    sampler = stream(data, on_bad_image="skip", num_workers=num_workers)
    with pytest.warns(UserWarning, match="skipped an image"):
        assert {int(index) for batch in sampler for index in batch.image_index} == {0}
    assert list(sampler.bad_images) == [1]
    with pytest.raises(DataError, match="image 1 of the data set cannot be used"):
        list(stream(data, num_workers=num_workers))


@pytest.mark.parametrize(
    "told",
    [
        {"image_size": 512},
        {"image_size": (40, 40)},
        {"ids": None},
        {"ids": {"a": 0}},
        {"ids": "ab"},
        {"ids": ["a"]},
        {"class_names": None},
        {"patch_source": "atlas"},
    ],
)
def test_an_attribute_that_means_something_else_is_left_alone(told: dict[str, Any]) -> None:
    class Data(list[Any]):
        pass

    data = Data([item(bands()), item(bands())])
    vars(data).update(told)
    for mode in ("train", "test"):
        sampler = stream(data, mode=mode)
        assert len(list(sampler)) == len(sampler)
        assert sampler.state_dict()["ids"] is sampler.state_dict()["class_names"] is None
    data.image_size = lambda index: 512  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"image_size\(0\) must return \(height, width\), got 512"):
        len(stream(data, mode="test"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (item("slide.svs"), "image must be .* got str"),
        (item(ArrayReader(bands()[None])), r"read\(.*\) must return \(C, 32, 32\), got \(1, 3, 32, 32\)"),
        (item(np.ma.masked_equal(bands().numpy(), 3)), r"image has masked values.* array\.filled\(0\)"),
        (item(ArrayReader(np.ma.masked_equal(bands().numpy(), 3))), "image has masked values"),
        (item(bands(), mask=bands()[:, :40]), r"mask must be of the image's size \(96, 80\), got \(40, 80\)"),
        (
            item(SimpleNamespace(size=(96, 80), read=lambda box: np.zeros((3, 5, 5)))),
            r"must return \(C, 32, 32\)",
        ),
    ],
)
def test_what_cannot_be_used_is_named(wrong: Any, message: str) -> None:
    wrong.mask = getattr(wrong, "mask", bands()[0])
    with pytest.raises(DataError, match=message):
        list(stream([wrong], maps={"mask": "nearest"}))


@pytest.mark.parametrize("read", [ArrayReader, lambda image: image])
def test_a_grid_that_leaves_the_image_needs_a_fill(read: Any) -> None:
    with pytest.raises(DataError, match="image 0 .* boxes must lie inside the image, 80 wide and 96 high, got"):
        list(stream([item(read(bands()))], grid=lambda size: tiles(size) + 20))


def test_what_lies_outside_is_filled_in_each_as_it_is_told() -> None:
    data = [item(bands(1, torch.int16), mask=ArrayReader(bands(1, torch.uint8)[0]))]
    fill = {"image": -1000, "mask": 255}
    settings = {"balance": AllPatches(), "batch_size": 99, "maps": {"mask": "nearest"}}
    (batch,) = stream(data, grid=lambda size: tiles(size) + 48, fill=fill, **settings)
    outside = batch.pixels == -1000
    assert outside.any() and not outside.all() and torch.equal(batch.maps["mask"] == 255, outside)
    with pytest.raises(ArgumentError, match=r"fill must be one value, or one for each of \('image', 'mask'\)"):
        stream(data, fill={"image": 0}, **settings)


def test_colors_need_three_channels() -> None:
    with pytest.raises(ArgumentError, match="ColorJitter needs three channels.* got 13 of torch.float32"):
        list(stream([item(bands(13))], transforms=(ColorJitter(),)))


@pytest.mark.parametrize("mix_images", [1, 2])
@pytest.mark.parametrize("other", [bands(4), bands(3, torch.uint8)])
def test_images_that_differ_in_form_are_named(mix_images: int, other: Tensor) -> None:
    with pytest.raises(DataError, match="all images must have the same channels and type: patches of image 1"):
        list(stream([item(bands()), item(other)], mix_images=mix_images, mode="test"))


def test_unsigned_patches_are_mirrored() -> None:
    patches = torch.arange(16).reshape(2, 1, 2, 4).to(torch.uint16)
    mirrored = RandomFlip().apply(patches, torch.tensor([[1.0], [0.0]]))
    assert mirrored.dtype == torch.uint16
    assert torch.equal(mirrored.int(), torch.stack([patches[0].int().flip(2), patches[1].int()]))


# Files and processes.


class Files:
    """A memmap per image, opened by whichever process reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for place in range(3):
            np.save(folder / f"{place}.npy", bands(seed=place).numpy())

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return item(np.load(self.folder / f"{index}.npy", mmap_mode="r"))


def note(folder: Path, worker: int) -> None:
    (folder / f"worker{worker}").write_text(str(os.getpid()))


@pytest.mark.parametrize("context", [None, "spawn"])
def test_files_are_opened_in_workers_started_in_any_way(tmp_path: Path, context: str | None) -> None:
    data = Files(tmp_path)
    alone = list(stream(data))
    sampler = stream(
        data, num_workers=2, multiprocessing_context=context, worker_init_fn=partial(note, tmp_path)
    )
    assert equal(alone, list(sampler))
    processes = {(tmp_path / f"worker{worker}").read_text() for worker in range(2)}
    assert len(processes) == 2 and str(os.getpid()) not in processes


def test_a_picture_larger_than_memory() -> None:
    huge = np.broadcast_to(np.arange(100_000, dtype=np.uint8), (3, 100_000, 100_000))  # 30 GB of it
    reader: RegionReader = ArrayReader(huge)
    ends = torch.tensor([[0, 0, 32, 32], [99_968, 99_968, 100_000, 100_000]])
    (batch,) = stream([item(reader)], grid=None, proposals=lambda item: ends, balance=AllPatches(), mode="test")
    assert torch.equal(batch.pixels[1, 0, 0], torch.from_numpy(huge[0, 0, -32:].copy()))


def test_a_minibatch_moves_as_a_whole() -> None:
    (batch, *_) = stream([item(bands(), mask=bands()[0])], maps={"mask": "bilinear"})
    moved = batch.to("meta")
    assert moved.pixels.is_meta and moved.labels.is_meta and moved.maps["mask"].is_meta
    assert moved.boxes is batch.boxes and len(moved) == len(batch)
