"""What reading by region takes: a scene, a slide, a zarr volume and a scan, larger than anyone would load.

    python -m tests.neighbours.large_pictures [--side 20000] [--folder DIR]

in the environment that .ci/neighbours makes, on Linux; 1 GB of disk. Every figure is of a process of its own.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from tests.docs.pages import ROOT, definitions
from transferkit.sampler import ArrayReader, MultiscaleSampler, RandomSubset, Tiles

PAGE = ROOT / "docs" / "how-to" / "read-by-region.md"
VISITS, PATCHES, SHOWN = 4, 64, 224
Pixels = NDArray[Any]


# Content that is known everywhere without being stored: what numpy would slice from the whole.


def content(channels: Sequence[int], rows: Any, columns: Any, dtype: str) -> Pixels:
    """Return the pixels at some places, (C, h, w): steps of 16 pixels, which compress well."""
    across, down = np.asarray(columns) // 16 * 29, np.asarray(rows) // 16 * 41
    bands = np.asarray(channels) * 977
    high = {"uint8": 256, "int16": 20_000, "uint16": 65_536}[dtype]
    plane = (down[:, None] + across).astype(np.int32) % high
    return np.stack([((plane + band) % high).astype(dtype) for band in bands])


def stripes(side: int, step: int) -> Iterator[tuple[int, int]]:
    return ((top, min(top + step, side)) for top in range(0, side, step))


def write_scene(folder: Path, side: int) -> None:
    import rasterio

    form = {
        "driver": "GTiff",
        "height": side,
        "width": side,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
    }
    for name, count, dtype in (("scene.tif", 13, "uint16"), ("mask.tif", 1, "uint8")):
        with rasterio.open(
            folder / name, "w", count=count, dtype=dtype, compress="zstd", zstd_level=1, **form
        ) as file:
            for top, bottom in stripes(side, 256):
                pixels = content(range(count), range(top, bottom), range(side), dtype)
                file.write(pixels, window=((top, bottom), (0, side)))


def write_slide(folder: Path, side: int) -> None:
    import tifffile

    def tiles(step: int) -> Iterator[Pixels]:
        extent = -(-side // step)
        for top in range(0, extent, 256):
            rows = np.arange(top, top + 256) * step
            stripe = content(range(3), rows, np.arange(-(-extent // 256) * 256) * step, "uint8").transpose(
                1, 2, 0
            )
            yield from (np.ascontiguousarray(stripe[:, left : left + 256]) for left in range(0, extent, 256))

    with tifffile.TiffWriter(folder / "slide.tif", bigtiff=True) as file:
        for step in (1, 4, 16):
            shape, dtype = (-(-side // step),) * 2 + (3,), "uint8"
            form = {
                "tile": (256, 256),
                "photometric": "rgb",
                "compression": "zlib",
                "subfiletype": int(step > 1),
            }
            file.write(tiles(step), shape=shape, dtype=dtype, **form)


def write_volume(folder: Path, side: int) -> None:
    import zarr

    shape = (32, side // 2, side // 2)
    array = zarr.create_array(folder / "volume.zarr", shape=shape, chunks=(8, 256, 256), dtype="uint16")
    for top, bottom in stripes(shape[1], 256):
        array[:, top:bottom] = content(range(shape[0]), range(top, bottom), range(shape[2]), "uint16")


def scan_side(side: int) -> int:
    return max(side // 25, 288)


def write_scan(folder: Path, side: int) -> None:
    import nibabel

    side = scan_side(side)
    pixels = content(range(side // 2), range(side), range(side), "int16")
    nibabel.save(nibabel.Nifti1Image(pixels.transpose(1, 2, 0), np.eye(4)), folder / "scan.nii")


# A user's lines: the page's readers, and a data set of a few visits to the picture, which workers share.


def scene(readers: SimpleNamespace, folder: Path, **settings: Any) -> MultiscaleSampler:
    item = SimpleNamespace(image=readers.Raster(folder / "scene.tif"), mask=readers.Raster(folder / "mask.tif"))
    return MultiscaleSampler([item] * VISITS, grid=Tiles(256), maps={"mask": "nearest"}, **settings)


def slide(readers: SimpleNamespace, folder: Path, **settings: Any) -> MultiscaleSampler:
    item = SimpleNamespace(image=readers.Slide(folder / "slide.tif"))
    return MultiscaleSampler([item] * VISITS, grid=Tiles(256), **settings)


def slide_coarse(readers: SimpleNamespace, folder: Path, **settings: Any) -> MultiscaleSampler:
    item = SimpleNamespace(image=readers.Slide(folder / "slide.tif"))
    return MultiscaleSampler([item] * VISITS, grid=Tiles(1024), **settings)


def volume(readers: SimpleNamespace, folder: Path, **settings: Any) -> MultiscaleSampler:
    import zarr

    item = SimpleNamespace(image=ArrayReader(zarr.open_array(folder / "volume.zarr", mode="r")))
    return MultiscaleSampler([item] * VISITS, grid=Tiles(256), **settings)


def scan(readers: SimpleNamespace, folder: Path, **settings: Any) -> MultiscaleSampler:
    items = [
        SimpleNamespace(image=readers.Slices(folder / "scan.nii", 5 * n, 5 * n + 5)) for n in range(VISITS)
    ]
    return MultiscaleSampler(items, grid=Tiles(256, stride=32), **settings)


class Case(NamedTuple):
    """A picture, and how it is read."""

    stream: Callable[..., MultiscaleSampler]
    write: Callable[[Path, int], None]
    file: str
    reader: str | None  # the page's
    channels: int
    dtype: str
    step: int = 1  # of the level that is read

    def truth(self, place: int, box: Sequence[int]) -> Pixels:
        """Return what numpy would slice."""
        x0, y0, x1, y1 = box
        first = self.channels * place if self.stream is scan else 0
        rows, columns = range(y0, y1, self.step), range(x0, x1, self.step)
        return content(range(first, first + self.channels), rows, columns, self.dtype)


CASES = {
    "GeoTIFF, 13 bands of uint16, with a mask": Case(scene, write_scene, "scene.tif", "Raster", 13, "uint16"),
    "slide, RGB, tiles of 256": Case(slide, write_slide, "slide.tif", "Slide", 3, "uint8"),
    "slide, RGB, tiles of 1,024": Case(slide_coarse, write_slide, "slide.tif", "Slide", 3, "uint8", 4),
    "zarr, 32 slices of uint16": Case(volume, write_volume, "volume.zarr", None, 32, "uint16"),
    "NIfTI, 5 slices of int16 at a time": Case(scan, write_scan, "scan.nii", "Slices", 5, "int16"),
}


def lines(case: Case) -> tuple[int, int]:
    """Return how many lines of a user's own the reader takes, and its use; without docstrings."""
    use = ast.parse(inspect.getsource(case.stream)).body[0]
    classes = {
        node.name: node
        for text in PAGE.read_text(encoding="utf-8").split("```python")
        if "class " in text
        for node in ast.parse(text.split("\n", 1)[1].split("```")[0]).body
        if isinstance(node, ast.ClassDef)
    }
    reader = ast.unparse(classes[case.reader]).split("\n") if case.reader else []
    return sum(bool(line) and '"""' not in line for line in reader), len(ast.unparse(use).split("\n")) - 1


# One process: an epoch at the tiles' own size, and one that is resized.


def measured(case: Case, folder: Path, num_workers: int) -> dict[str, Any]:
    """Return what an epoch of each kind takes, and whether its pixels are right."""
    readers = SimpleNamespace(**definitions(PAGE))
    reads = counted(ArrayReader if case.reader is None else getattr(readers, case.reader))
    settings = {"labels": no_label, "balance": RandomSubset(), "patches_per_image": PATCHES, "seed": 2}
    settings |= {"mode": "test", "num_workers": num_workers}
    own = 256 if case.step == 1 else 1024 // case.step
    stream = partial(case.stream, readers, folder, **settings)
    sampler = stream(patch_size=own)
    before, began = since_now(), time.perf_counter()
    digests = [checksum(batch) for batch in sampler]
    seconds = time.perf_counter() - began
    grown = [memory("VmHWM", process) - before for process in ("self", *(c.pid for c in active_children()))]
    result = {"seconds": seconds, "grown": max(grown), "regions": len(reads), "read": sum(reads) / 2**20}
    result |= {"digest": digests, "slices": 0.0, "resized": 0.0}
    del sampler
    for size, name in ((own, "slices"), (SHOWN, "resized")):
        for batch in stream(patch_size=size):
            difference = max(map(partial(differs, case), batch.pixels, batch.boxes, batch.image_index))
            result[name] = max(result[name], difference)
            if "mask" in batch.maps and size == own:
                masks = Case(slide, write_scene, "", None, 1, "uint8")
                result[name] = max(
                    result[name],
                    *map(partial(differs, masks), batch.maps["mask"], batch.boxes, batch.image_index),
                )
    return result


def no_label(item: Any, boxes: torch.Tensor) -> torch.Tensor:
    return boxes.new_zeros(len(boxes)).long()


def counted(kind: type[Any]) -> list[int]:
    """Return the bytes of each region that readers of a kind read from now on in this process."""
    reads, read = [], kind.read

    def counting(self: Any, box: Any) -> Any:
        pixels = read(self, box)
        reads.append(pixels.nbytes)
        return pixels

    kind.read = counting
    return reads


def differs(case: Case, patch: torch.Tensor, box: torch.Tensor, place: torch.Tensor) -> float:
    """Return the largest difference from numpy's slice, as torch resizes it; in float32 torch itself errs by 0.2."""
    expected = torch.from_numpy(case.truth(int(place), box.int().tolist()).astype(np.float64))
    if expected.shape[1:] != patch.shape[1:]:
        expected = interpolate(expected[None], patch.shape[1:], mode="bilinear", antialias=True)[0]
    return float((patch.to(torch.float64) - expected).abs().max())


def checksum(batch: Any) -> int:
    """Return a number of all pixels, without a copy of them."""
    total = 0
    for part in (batch.pixels, *batch.maps.values()):
        total = zlib.crc32(part.numpy(), total)
    return total


def since_now() -> float:
    """Forget the most memory that this process has had; return what it has now, MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS", "self")


def memory(what: str, process: str | int | None) -> float:
    """Return what Linux counts of a process, MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(what))) / 1024


# All of them.


def table(folder: Path, side: int) -> Iterator[str]:
    """Yield the rows of a Markdown table, as they are measured."""
    yield "| picture | on disk | as an array | lines: reader, use | regions | MiB read | MiB of memory more, 0 workers | 4, the largest process | seconds, 0 | 4 | from numpy's slices | from torch's resize | alike |"
    yield "| --- |" + " ---: |" * 11 + " --- |"
    for name, case in CASES.items():
        if not (folder / case.file).exists():
            case.write(folder, side)
        alone, among = (alone_in_a_process(name, folder, workers) for workers in (0, 4))
        reader, use = lines(case)
        sizes = f"{on_disk(folder / case.file):,.0f} MB | {as_array(case, side):.1f} GB"
        memory = f"{alone['grown']:.0f} MiB | {among['grown']:.0f} MiB"
        seconds = f"{alone['seconds']:.1f} | {among['seconds']:.1f}"
        errors = f"{alone['slices']:g} | {max(alone['resized'], among['resized']):.2f}"
        alike = "yes" if alone["digest"] == among["digest"] and alone["slices"] == among["slices"] else "NO"
        reads = f"{alone['regions']} | {alone['read']:.0f}"
        yield f"| {name} | {sizes} | {reader}, {use} | {reads} | {memory} | {seconds} | {errors} | {alike} |"


def alone_in_a_process(name: str, folder: Path, num_workers: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, "--one", name]  # type: ignore[union-attr]
    command += ["--folder", str(folder), "--workers", str(num_workers)]
    env = {**os.environ, "GDAL_CACHEMAX": "64", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def on_disk(path: Path) -> float:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files) / 1e6


def as_array(case: Case, side: int) -> float:
    channels, width = case.channels, {scan: scan_side(side), volume: side // 2}.get(case.stream, side)
    channels = width // 2 if case.stream is scan else channels
    return channels * width**2 * np.dtype(case.dtype).itemsize / 1e9


def main() -> None:
    """Print the table, or what one process measures."""
    parser = argparse.ArgumentParser(prog="python -m tests.neighbours.large_pictures", description=__doc__)
    parser.add_argument("--side", type=int, default=20_000, help="of the scene and the slide, pixels")
    parser.add_argument("--folder", type=Path, help="where the pictures are kept")
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(CASES[options.one], options.folder, options.workers)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for row in table(folder, options.side):
            print(row, flush=True)


if __name__ == "__main__":
    main()
