"""How fast are patches cut, and how exactly, against other ways of doing it?

    python -m tests.benchmarks.sampler_throughput ../shared/voc --images 16 --workers 2

Every way decodes the same photos and cuts the same 448 patches of each to 224 x 224. The sampler cuts in this process
what its workers decoded; the others decode and cut in as many workers, except the recipe, which did all in the process
that trained. All are run in turn, round by round, so that other work on the machine touches all alike, and the ratios are
those of each round. Processor time is that of this process and its workers, in the round with the least: what a way costs
where it has the machine to itself, roughly, however crowded the machine is. The error is the difference from PIL's
``resize(box=...)`` in gray levels; a way that is more than 1 off on average, or 3 anywhere, cuts something else.

OpenCV and kornia are left out where they are not installed.

Measured on two cores, 5 rounds, patches per second (torch 2.13.0, OpenCV 5.0.0): the sampler 4,391; PIL ``resize(box=...)``,
the only other that is exact enough, 2,739 (the sampler is 1.60 times as fast, 1.32 to 1.87 over the rounds); the recipe's
own way 682 (6.30 times, 4.97 to 7.50), the same in bytes 1,529 (2.87 times), in bytes and in workers 2,193. Cutting alone in
workers, crop_and_resize does 5,717. Not exact enough: OpenCV linear 5,878, F.interpolate 5,580, OpenCV area 5,453, OpenCV
warpAffine 3,472, grid_sample 2,457, kornia 1,014.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks.rounds import in_turn, ratios
from tests.benchmarks.table import Table, write_tables
from transferkit.datasets import VOCDataset
from transferkit.sampler import (
    MultiscaleSampler,
    PatchGrid,
    RandomSubset,
    crop_and_resize,
    generator,
)

SIDE = 224
Boxes = list[list[float]]


def recipe(photo: Image.Image, boxes: Boxes) -> Tensor:
    """The recipe's own way: crop, resize, copy into an array with the patch axis last, float32 as neon's readers."""
    return _patch_axis_last(photo, boxes, np.float32)


def recipe_in_bytes(photo: Image.Image, boxes: Boxes) -> Tensor:
    return _patch_axis_last(photo, boxes, np.uint8)


def _patch_axis_last(photo: Image.Image, boxes: Boxes, dtype: type) -> Tensor:
    out = np.empty((3, SIDE, SIDE, len(boxes)), dtype=dtype)
    for i, box in enumerate(boxes):
        patch = photo.crop(tuple(map(int, box))).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        out[..., i] = np.asarray(patch).transpose(2, 0, 1)
    return torch.from_numpy(out).permute(3, 0, 1, 2)


def pil(photo: Image.Image, boxes: Boxes) -> Tensor:
    out = torch.empty(len(boxes), 3, SIDE, SIDE, dtype=torch.uint8)
    for i, box in enumerate(boxes):
        patch = photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=tuple(box))
        out[i] = torch.from_numpy(np.array(patch)).permute(2, 0, 1)
    return out


def opencv_area(photo: Image.Image, boxes: Boxes) -> Tensor:
    return _opencv(photo, boxes, lambda cv2, crop: cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def opencv_linear(photo: Image.Image, boxes: Boxes) -> Tensor:
    return _opencv(
        photo, boxes, lambda cv2, crop: cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    )


def _opencv(photo: Image.Image, boxes: Boxes, resize: Callable[..., np.ndarray]) -> Tensor:
    import cv2

    cv2.setNumThreads(1)
    pixels = np.asarray(photo)
    out = torch.empty(len(boxes), 3, SIDE, SIDE, dtype=torch.uint8)
    for i, box in enumerate(boxes):
        x0, y0, x1, y1 = (round(side) for side in box)
        out[i] = torch.from_numpy(resize(cv2, pixels[y0:y1, x0:x1])).permute(2, 0, 1)
    return out


def opencv_warp(photo: Image.Image, boxes: Boxes) -> Tensor:
    import cv2

    cv2.setNumThreads(1)
    pixels = np.asarray(photo)
    out = torch.empty(len(boxes), 3, SIDE, SIDE, dtype=torch.uint8)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        across, down = (x1 - x0) / SIDE, (y1 - y0) / SIDE
        matrix = np.array([[across, 0, x0 + across / 2 - 0.5], [0, down, y0 + down / 2 - 0.5]])
        patch = cv2.warpAffine(pixels, matrix, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        out[i] = torch.from_numpy(patch).permute(2, 0, 1)
    return out


def kornia(photo: Image.Image, boxes: Boxes) -> Tensor:
    from kornia.geometry.transform import crop_and_resize as kornia_crop

    image = _tensor(photo)[None].float()
    out = torch.empty(len(boxes), 3, SIDE, SIDE, dtype=torch.uint8)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        corners = torch.tensor([[[x0, y0], [x1 - 1, y0], [x1 - 1, y1 - 1], [x0, y1 - 1]]])
        out[i] = (kornia_crop(image, corners, (SIDE, SIDE))[0] + 0.5).clamp(0, 255).to(torch.uint8)
    return out


def grid_sample(photo: Image.Image, boxes: Boxes) -> Tensor:
    image = _tensor(photo)[None].float()
    size = torch.tensor([photo.width, photo.height])
    steps = (torch.arange(SIDE) + 0.5) / SIDE
    out = torch.empty(len(boxes), 3, SIDE, SIDE, dtype=torch.uint8)
    for i, box in enumerate(torch.tensor(boxes, dtype=torch.float32)):
        x, y = ((box[:2, None] + (box[2:] - box[:2])[:, None] * steps) / size[:, None] * 2 - 1).unbind()
        at = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
        patch = F.grid_sample(image, at, mode="bilinear", padding_mode="border", align_corners=False)
        out[i] = (patch[0] + 0.5).to(torch.uint8)
    return out


def interpolate(photo: Image.Image, boxes: Boxes) -> Tensor:
    image = _tensor(photo)[None].to(memory_format=torch.channels_last)
    out = torch.empty(len(boxes), 3, SIDE, SIDE, dtype=torch.uint8)
    for i, box in enumerate(boxes):
        x0, y0, x1, y1 = (round(side) for side in box)
        crop = image[:, :, y0:y1, x0:x1]
        out[i] = F.interpolate(crop, size=(SIDE, SIDE), mode="bilinear", antialias=True)[0]
    return out


def ours(photo: Image.Image, boxes: Boxes) -> Tensor:
    return crop_and_resize(_tensor(photo), torch.tensor(boxes, dtype=torch.float64), SIDE)


def _tensor(photo: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous()


WAYS: dict[str, Callable[[Image.Image, Boxes], Tensor]] = {
    "the recipe's way, uint8, in workers": recipe_in_bytes,
    "PIL resize(box=...)": pil,
    "OpenCV resize, area": opencv_area,
    "OpenCV resize, linear": opencv_linear,
    "OpenCV warpAffine": opencv_warp,
    "kornia crop_and_resize": kornia,
    "grid_sample": grid_sample,
    "F.interpolate, antialias": interpolate,
    "crop_and_resize, in workers": ours,
}


class Cut(Dataset[Tensor]):
    """Decodes a photo and cuts the patches of ``boxes``."""

    def __init__(
        self, paths: list[Path], boxes: list[Boxes], way: Callable[[Image.Image, Boxes], Tensor]
    ) -> None:
        self.paths, self.boxes, self.way = paths, boxes, way

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as photo:
            return self.way(photo.convert("RGB"), self.boxes[index])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("voc", help="a folder with VOCdevkit")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--patches", type=int, default=448, help="per image")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="of this process, in which the sampler cuts"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    data = VOCDataset(options.voc, max_images=options.images)
    paths = [data.folder / "JPEGImages" / f"{image_id}.jpg" for image_id in data.ids]
    boxes = [chosen(data, index, options.patches) for index in range(len(data))]
    ways = {name: way for name, way in WAYS.items() if installed(way)}
    errors = {name: error(way, paths, boxes) for name, way in ways.items()}
    runs: dict[str, Callable[[], int]] = {
        "MultiscaleSampler": lambda: sampled(data, options),
        "MultiscaleSampler, float32": lambda: sampled(data, options, dtype=torch.float32),
        **{
            name: (lambda way=way: in_workers(Cut(paths, boxes, way), options.workers))
            for name, way in ways.items()
        },
    }
    for name, way in (("the recipe's own way", recipe), ("the recipe's way, uint8", recipe_in_bytes)):
        runs[name] = lambda way=way: in_workers(Cut(paths, boxes, way), 0)
        errors[name] = errors["the recipe's way, uint8, in workers"]
    patches = sum(map(len, boxes))
    found = in_turn({name: lambda _, run=run: run() for name, run in runs.items()}, options.rounds)
    seconds = {name: [spent.seconds for spent in rounds] for name, rounds in found.items()}
    spent = {name: [spent.processor for spent in rounds] for name, rounds in found.items()}
    for name in ("MultiscaleSampler", "MultiscaleSampler, float32"):
        errors[name] = errors["crop_and_resize, in workers"]
    table = report(seconds, spent, errors, patches, options)
    print(table.markdown())
    if options.json:
        write_tables(options.json, [table])


def chosen(data: VOCDataset, index: int, count: int) -> Boxes:
    boxes = PatchGrid()(data.image_size(index))
    rows = RandomSubset()(torch.zeros(len(boxes)), count, generator(0, index))
    found: Boxes = boxes[rows].tolist()
    return found


def installed(way: Callable[[Image.Image, Boxes], Tensor]) -> bool:
    try:
        way(Image.new("RGB", (50, 40)), [[1.0, 2.0, 30.0, 31.0]])
    except ImportError:
        return False
    return True


def error(
    way: Callable[[Image.Image, Boxes], Tensor], paths: list[Path], boxes: list[Boxes]
) -> tuple[float, int]:
    """Return the mean and the largest difference from PIL, over some patches of some photos."""
    differences = []
    for path, some in list(zip(paths, boxes, strict=True))[::4]:
        with Image.open(path) as photo:
            rgb = photo.convert("RGB")
        differences.append((way(rgb, some[::9]).int() - pil(rgb, some[::9]).int()).abs())
    every = torch.cat(differences)
    return float(every.double().mean()), int(every.max())


def sampled(data: VOCDataset, options: argparse.Namespace, dtype: torch.dtype = torch.uint8) -> int:
    settings = {"mode": "test", "num_workers": options.workers, "patch_size": SIDE, "dtype": dtype}
    sampler = MultiscaleSampler(data, patches_per_image=options.patches, **settings)
    return sum(len(batch) for batch in sampler)


def in_workers(cut: Cut, workers: int) -> int:
    loader = DataLoader(cut, batch_size=None, num_workers=workers)
    return sum(len(patches) for patches in loader)


def report(
    seconds: dict[str, list[float]],
    spent: dict[str, list[float]],
    errors: dict[str, tuple[float, int]],
    patches: int,
    options: argparse.Namespace,
) -> Table:
    reference = seconds["MultiscaleSampler"]
    table = Table(
        f"{options.images} photos, {options.patches} patches of {SIDE} x {SIDE} each, {options.workers} workers, "
        f"{options.rounds} rounds",
        {
            "way": "",
            "patches/s": ",.0f",
            "per second of processor time": ",.0f",
            "the sampler is faster by": ".2f",
            "mean error, gray levels": ".2f",
            "largest": ".0f",
            "exact enough": "",
        },
    )
    for name, found in sorted(seconds.items(), key=lambda pair: min(pair[1])):
        mean, largest = errors[name]
        exact = "yes" if mean <= 1 and largest <= 3 else "no"
        table.add(
            name,
            [patches / s for s in found],
            patches / min(spent[name]),
            ratios(found, reference),
            mean,
            largest,
            exact,
        )
    return table


if __name__ == "__main__":
    main()
