"""The how-to's readers, word for word, on real files: pixels are numpy's slices, and the same for any workers."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import nibabel
import numpy as np
import openslide
import pydicom
import pytest
import rasterio
import tifffile
import tiffslide
import torch
import zarr
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from tests.docs.pages import ROOT, run
from transferkit.sampler import ArrayReader, MultiscaleSampler, PatchBatch, RandomSubset, Tiles

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores

HEIGHT, WIDTH = 300, 260
Pixels = NDArray[Any]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page defines, after all of it has run and printed what it says."""
    names: dict[str, Any] = {}
    with chdir(tmp_path_factory.mktemp("page")):
        wrong = list(run(ROOT / "docs/how-to/read-by-region.md", names, neighbours=True))
    assert not wrong, wrong
    return names


class Kind(NamedTuple):
    """How a library writes a file, (C, H, W), and how the page reads it."""

    dtype: str
    channels: int
    write: Callable[[Path, Pixels], object]
    read: Callable[[dict[str, Any], Path], Any]


def write_raster(path: Path, pixels: Pixels) -> None:
    tiled = {"driver": "GTiff", "tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    count, height, width = pixels.shape
    form = {"count": count, "height": height, "width": width, "dtype": pixels.dtype.name}
    with rasterio.open(path, "w", **form, **tiled) as file:
        file.write(pixels)


def write_slide(path: Path, pixels: Pixels) -> None:
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for step in (1, 4):
            level = np.ascontiguousarray(pixels[:, ::step, ::step].transpose(1, 2, 0))
            form = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
            file.write(level, subfiletype=int(step > 1), **form)


def write_volume(path: Path, pixels: Pixels) -> None:
    nibabel.save(nibabel.Nifti1Image(pixels.transpose(1, 2, 0), np.eye(4)), path)


def write_big_endian(path: Path, pixels: Pixels) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(pixels.dtype.newbyteorder(">"))
    nibabel.save(nibabel.Nifti1Image(pixels.transpose(1, 2, 0), np.eye(4), header), path)


def write_zarr(path: Path, pixels: Pixels) -> None:
    zarr.create_array(path, shape=pixels.shape, chunks=(1, 64, 64), dtype=pixels.dtype)[:] = pixels


KINDS = {
    "scene.tif": Kind("uint16", 13, write_raster, lambda page, path: page["Raster"](path)),
    "floats.tif": Kind("float32", 2, write_raster, lambda page, path: page["Raster"](path)),
    "slide.tiff": Kind("uint8", 3, write_slide, lambda page, path: page["Slide"](path)),
    "open.tiff": Kind("uint8", 3, write_slide, lambda page, path: open_slide(page, path)),
    "volume.zarr": Kind(
        "int16", 4, write_zarr, lambda page, path: ArrayReader(zarr.open_array(path, mode="r"))
    ),
    "volume.nii": Kind("int16", 6, write_volume, lambda page, path: page["Slices"](path, 0, 6)),
    "volume.nii.gz": Kind("float32", 3, write_volume, lambda page, path: page["Slices"](path, 0, 3)),
    "big.nii": Kind("int16", 3, write_big_endian, lambda page, path: page["Slices"](path, 0, 3)),
}


def open_slide(page: dict[str, Any], path: Path) -> Any:
    """The page's reader over openslide, as its comment says."""
    names = dict(page)
    text = (ROOT / "docs/how-to/read-by-region.md").read_text(encoding="utf-8")
    code = text[text.index("class Slide:") : text.index("```", text.index("class Slide:"))]
    exec(code, names | {"TiffSlide": openslide.OpenSlide}, found := dict[str, Any]())
    return found["Slide"](path)


class Opened:
    """Pictures of one file each, opened in whichever process looks at them."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return SimpleNamespace(image=self.items[index])


def no_label(item: Any, boxes: torch.Tensor) -> torch.Tensor:
    return boxes.new_zeros(len(boxes)).long()


def epoch(readers: list[Any], num_workers: int, **changes: Any) -> list[PatchBatch]:
    settings = {"grid": Tiles(48, stride=37), "balance": RandomSubset(), "patches_per_image": 12, "seed": 4}
    settings |= {"batch_size": 12, "patch_size": 48, "labels": no_label, "num_workers": num_workers}
    return list(MultiscaleSampler(Opened(readers), **{**settings, **changes}))


@pytest.mark.parametrize("name", KINDS)
def test_patches_are_numpy_s_slices_with_no_worker_and_with_four(
    page: dict[str, Any], tmp_path: Path, name: str
) -> None:
    kind = KINDS[name]
    source, pictures = np.random.default_rng(0), []
    for place in range(4):
        pictures.append(source.integers(0, 250, (kind.channels, HEIGHT, WIDTH)).astype(kind.dtype))
        kind.write(tmp_path / f"{place}_{name}", pictures[-1])
    readers = [kind.read(page, tmp_path / f"{place}_{name}") for place in range(4)]
    alone, among = epoch(readers, 0), epoch(readers, 4)  # files are open here when workers begin
    assert sum(map(len, alone)) == 48
    for batch, other in zip(alone, among, strict=True):
        assert torch.equal(batch.pixels, other.pixels) and torch.equal(batch.boxes, other.boxes)
        for patch, box, place in zip(batch.pixels, batch.boxes.int().tolist(), batch.image_index, strict=True):
            x0, y0, x1, y1 = box
            expected = pictures[int(place)][:, y0:y1, x0:x1]
            assert patch.numpy().dtype == expected.dtype and np.array_equal(patch, expected)


@pytest.mark.parametrize("name", ["slide.tiff", "open.tiff"])
@pytest.mark.parametrize("size", [8, 13, 60])
def test_slides_are_read_at_their_levels(page: dict[str, Any], tmp_path: Path, name: str, size: int) -> None:
    picture = np.random.default_rng(0).integers(0, 250, (3, HEIGHT, WIDTH)).astype(np.uint8)
    write_slide(tmp_path / name, picture)
    reader = KINDS[name].read(page, tmp_path / name)
    assert [each.size for each in (reader, *reader.coarser)] == [(300, 260), (75, 65)]
    step = 4 if size <= 12 else 1
    level = torch.from_numpy(picture[:, ::step, ::step].astype(np.float32))
    for batch in epoch([reader], 0, patch_size=size, grid=Tiles(48, stride=36)):
        for patch, box in zip(batch.pixels, (batch.boxes / step).int().tolist(), strict=True):
            cut = level[None, :, box[1] : box[3], box[0] : box[2]]
            expected = interpolate(cut, (size, size), mode="bilinear", antialias=True)[0]
            assert (patch - expected).abs().max() <= 0.5 + 1e-3  # to the nearest byte


BROKEN: dict[str, Callable[[Path], Any]] = {
    "rasterio": rasterio.open,
    "tifffile": tifffile.imread,
    "openslide": openslide.OpenSlide,
    "tiffslide": tiffslide.TiffSlide,
    "nibabel": nibabel.load,
    "pydicom": pydicom.dcmread,
    "zarr": lambda path: zarr.open_array(path, mode="r"),
}


@pytest.mark.parametrize("library", BROKEN)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_whatever_a_library_raises_is_skipped_and_listed(
    tmp_path: Path, library: str, num_workers: int
) -> None:
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"this is no image at all" * 20)

    class Files(Opened):
        def __getitem__(self, index: int) -> Any:
            if index == 1:
                BROKEN[library](broken)
            return super().__getitem__(index)

    good = torch.zeros(1, HEIGHT, WIDTH)
    stream = MultiscaleSampler(
        Files([good, good]),
        grid=Tiles(64),
        labels=no_label,
        num_workers=num_workers,
        on_bad_image="skip",
        patch_size=8,
    )
    with pytest.warns(UserWarning, match="skipped an image"):
        assert {int(place) for batch in stream for place in batch.image_index} == {0}
    assert list(stream.bad_images) == [1]


def test_a_file_is_opened_once_by_each_process(page: dict[str, Any], tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif", np.zeros((1, HEIGHT, WIDTH), np.uint8))
    here = page["opened"](rasterio.open, tmp_path / "scene.tif")
    assert page["opened"](rasterio.open, tmp_path / "scene.tif") is here
    child = os.fork()
    if not child:
        os._exit(page["opened"](rasterio.open, tmp_path / "scene.tif") is here)
    assert os.waitpid(child, 0)[1] == 0
