"""A photo is its content: whatever else has its name, its place or its number of neighbors gets features of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

from tests.features.scenes import GRID, SIDE, features
from transferkit.datasets import ImageListDataset, TargetDictDataset
from transferkit.errors import UncachableError
from transferkit.features import FeatureCache, _photos
from transferkit.sampler import AnnotatedImage, MultiscaleSampler

BOXES, CLASSES = [[[5, 5, 30, 30]]] * 3, [[1]] * 3


def picture(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, 40, 56), dtype=torch.uint8, generator=generator)


def write(path: Path, seed: int) -> Path:
    Image.fromarray(picture(seed).permute(1, 2, 0).numpy()).save(path, "BMP")  # all of one size
    return path


def in_files(folder: Path, *seeds: int, **settings: Any) -> ImageListDataset:
    files = [write(folder / f"{place}.bmp", seed) for place, seed in enumerate(seeds)]
    return listed(files, **settings)


def listed(images: Any, **settings: Any) -> ImageListDataset:
    return ImageListDataset(images, **{"boxes": BOXES, "classes": CLASSES, **settings})


def cache_of(folder: Path, data: Any, *, fill: bool = True) -> FeatureCache:
    cache = FeatureCache(folder, features(), data, grid=GRID, precision=torch.float32)
    if fill:
        cache.fill()
    return cache


def assert_right(cache: FeatureCache, data: Any) -> None:
    """Its patches, features and objects are those of the data set."""
    for index in range(len(data)):
        found, item = cache[index], data[index]
        assert torch.equal(found.patches, GRID(item.image.shape[1:]))
        assert torch.equal(torch.from_numpy(found.features.copy()), features()(item.image, found.patches))
        assert torch.equal(found.boxes, item.boxes) and torch.equal(found.classes, item.classes)


class Plain(Dataset[AnnotatedImage]):
    """The least that a data set is."""

    def __init__(self, seeds: tuple[int, ...], label: int = 1) -> None:
        self.seeds, self.label = seeds, label

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> AnnotatedImage:
        boxes, flags = torch.tensor([[1.0, 2, 20, 30]]).double(), torch.tensor([False])
        label = torch.tensor([self.label])
        return AnnotatedImage(picture(self.seeds[index]), boxes, label, flags, flags, "same")


KINDS: dict[str, Callable[[Path, tuple[int, ...]], Any]] = {
    "in memory": lambda folder, seeds: listed([picture(seed) for seed in seeds]),
    "in files": lambda folder, seeds: in_files(folder, *seeds),
    "of one's own": lambda folder, seeds: Plain(seeds),
    "a list": lambda folder, seeds: [Plain(seeds)[place] for place in range(3)],
    "target dicts": lambda folder, seeds: TargetDictDataset(
        [(picture(seed), {"boxes": BOXES[0], "labels": CLASSES[0]}) for seed in seeds]
    ),
    "views": lambda folder, seeds: ConcatDataset(
        [Subset(listed([picture(seed) for seed in seeds]), [0, 1]), Subset(Plain(seeds), [2])]
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_data_sets_of_equal_length_share_what_is_equal_and_nothing_else(tmp_path: Path, kind: str) -> None:
    (tmp_path / "photos").mkdir()
    for seeds, missing in (((1, 2, 3), [0, 1, 2]), ((4, 2, 5), [0, 2]), ((3, 2, 1), [])):
        data = KINDS[kind](tmp_path / "photos", seeds)
        cache = cache_of(tmp_path / "cache", data, fill=False)
        assert cache.missing() == missing
        cache.fill(num_workers=2 if missing == [0, 2] else 0)
        assert_right(cache, data)


def rewrite(path: Path) -> None:
    write(path, 9)


def rewrite_and_set_the_time_back(path: Path) -> None:
    before = path.stat()
    write(path, 9)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rename_another_over_it(path: Path) -> None:
    before = path.stat()
    other = write(path.with_name("other"), 9)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [rewrite, rewrite_and_set_the_time_back, rename_another_over_it])
@pytest.mark.parametrize("wait", [0.0, 0.1], ids=["at-once", "later"])
def test_a_photo_changed_under_its_name_costs_one_photo(
    tmp_path: Path, change: Callable[[Path], None], wait: float
) -> None:
    data = in_files(tmp_path, 1, 2, 3)
    time.sleep(wait)
    cache = cache_of(tmp_path / "cache", data)
    change(tmp_path / "1.bmp")
    assert cache.missing() == [1]  # the same cache sees it
    again = cache_of(tmp_path / "cache", data, fill=False)
    assert again.missing() == [1]
    again.fill()
    assert_right(again, data)
    assert cache.missing() == []
    assert_right(cache, data)


def test_labels_and_boxes_are_those_of_the_data_set(tmp_path: Path) -> None:
    cache_of(tmp_path / "cache", in_files(tmp_path, 1, 2, 3))
    cache_of(tmp_path / "cache", Plain((1, 2, 3)))
    for data in (
        in_files(tmp_path, 1, 2, 3, boxes=[[[1, 1, 50, 39]]] * 3, classes=[[2]] * 3),
        Plain((1, 2, 3), label=2),
    ):
        corrected = cache_of(tmp_path / "cache", data, fill=False)
        assert corrected.missing() == []
        assert_right(corrected, data)
    data = in_files(tmp_path, 1, 2, 3)
    cache = cache_of(tmp_path / "cache", data, fill=False)
    data._objects[1] = (data._objects[1][0], torch.tensor([2]), *data._objects[1][2:])
    assert cache[1].classes.tolist() == [2]  # though it was corrected when the cache was there


class Negative(ImageListDataset):
    def __getitem__(self, index: int) -> AnnotatedImage:
        item = super().__getitem__(index)
        return AnnotatedImage(255 - item.image, *self.objects(index), id=item.id)


class Wrapped(Dataset[AnnotatedImage]):
    """Passes on what the data set tells, but not its pixels."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> AnnotatedImage:
        item = self.data[index]
        return AnnotatedImage(item.image.flip(2), *self.data.objects(index), id=item.id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)


class Cropped(Subset[AnnotatedImage]):
    def __getitem__(self, index: Any) -> AnnotatedImage:
        item = super().__getitem__(index)
        return AnnotatedImage(
            item.image[:, :39], item.boxes, item.classes, item.difficult, item.truncated, item.id
        )

    def __getitems__(self, indices: list[int]) -> list[AnnotatedImage]:  # torch asks for it
        return [self[index] for index in indices]


def test_what_hands_out_other_pixels_of_the_same_files_does_not_share_them(tmp_path: Path) -> None:
    data = in_files(tmp_path, 1, 2, 3)
    cache_of(tmp_path / "cache", data)
    files = [tmp_path / f"{place}.bmp" for place in range(3)]
    for other in (Negative(files, BOXES, CLASSES), Wrapped(data), Cropped(data, [0, 1, 2])):
        cache = cache_of(tmp_path / "cache", other, fill=False)
        assert cache.missing() == [0, 1, 2]
        cache.fill()
        assert_right(cache, other)


class Restless(Plain):
    def __getitem__(self, index: int) -> AnnotatedImage:
        item = super().__getitem__(index)
        item.image.add_(torch.randint(1, 9, (3, 40, 56), dtype=torch.uint8))
        return item


def test_pixels_that_differ_each_time_are_not_cached(tmp_path: Path) -> None:
    for num_workers in (0, 2):
        with pytest.raises(UncachableError, match="image 0 .*other pixels or patches each time.*not cached"):
            cache_of(tmp_path, Restless((1, 2, 3)), fill=False).fill(num_workers=num_workers)


def test_a_photo_is_read_for_its_digest_once_and_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = in_files(tmp_path, 1, 2, 3)
    time.sleep(0.1)  # so long that a change would show in the files' times
    cache_of(tmp_path / "cache", data)
    read: list[str] = []
    whole = _photos.read_digest
    monkeypatch.setattr(_photos, "read_digest", lambda path: read.append(path.name) or whole(path))
    monkeypatch.setattr(ImageListDataset, "__getitem__", lambda self, index: pytest.fail("decoded"))
    cache = cache_of(tmp_path / "cache", data)
    next(iter(MultiscaleSampler(cache, grid=GRID, patch_size=SIDE, patches_per_image=4, batch_size=4)))
    assert cache.missing() == [] and cache.size().exact and read == []
    (tmp_path / "1.bmp").touch()
    assert cache_of(tmp_path / "cache", data).missing() == [] and set(read) == {"1.bmp"}
    read.clear()
    cache_of(tmp_path / "cache", data).fill(verify=True)
    assert {"0.bmp", "1.bmp", "2.bmp"} <= set(read)


def test_verify_finds_what_sizes_and_times_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = in_files(tmp_path, 1, 2, 3)
    cache_of(tmp_path / "cache", data)
    monkeypatch.setattr(_photos.Stamp, "of", lambda path: _photos.Stamp(7, 7, 7))
    cache = cache_of(tmp_path / "cache", data)
    write(tmp_path / "2.bmp", 9)
    shard = next(cache.folder.glob("*.features"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert cache.missing() == []
    cache.fill(verify=True)
    assert_right(cache, data)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\n[]", b"\xff" * 100, b"[" * 99_999])
def test_an_index_that_is_damaged_or_gone_only_costs_reading(tmp_path: Path, damage: bytes) -> None:
    data = in_files(tmp_path, 1, 2, 3)
    cache = cache_of(tmp_path / "cache", data)
    for path in (tmp_path / "cache" / "photos.index", cache.folder / "shards.index"):
        path.write_bytes(damage) if damage else path.unlink(missing_ok=True)
    again = cache_of(tmp_path / "cache", data, fill=False)
    assert again.missing() == []
    assert_right(again, data)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_where_data_sets_tell_the_same_file_and_reading_pixels_are_the_same(
    tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(1).permute(1, 2, 0).numpy()).save(tmp_path / "a.png", exif=exif)
    sets = [
        listed([tmp_path / "a.png"], boxes=None, classes=None, float_range=floats) for floats in (None, (0, 1))
    ]
    told: dict[Any, list[np.ndarray[Any, Any]]] = {}
    for data in sets:
        told.setdefault(data.photo_file(0), []).append(data[0].image.numpy())
    assert all(np.array_equal(pixels[0], other) for pixels in told.values() for other in pixels)
