"""Which map of patch scores points at the object, if the classifier of patches does what it was taught?

Patches of real photos get the labels that training would give them, and probabilities simulated from the labels: a
logit of -3, 4 more for a patch of the class, and normal noise. No network, no pixels: what is measured is how a map is
read from patches. A class counts in a photo if one of its patches is labeled so.

    python -m tests.benchmarks.map_readings --data_dir ../shared/voc

Measured on the first 100 training photos (108 cases), pointing and CorLoc in %; the boxes are cut at a quarter of the
maximum for the sum by nearness and at half of it for the others, where each does best:

    exponent                              1             2             5
    sum by nearness (score_map)     82.4  37.0    82.4  36.1    79.6  32.4
    sum over the covering patches   72.2  33.3    73.1  38.0    74.1  42.6
    mean over the covering patches  38.0  10.2    38.9  12.0    35.2  13.9
    middle of the best patch        78.7  37.0
    middle of the photo             71.3  20.4
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from transferkit.boxes import iou
from transferkit.datasets import VOCDataset
from transferkit.labeling import label_patches
from transferkit.sampler import PatchGrid
from transferkit.scorer import map_box, map_peak, score_map

EXPONENTS = (1, 2, 5)


def main() -> None:
    """Print pointing accuracy and CorLoc of every map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--patches", type=int, default=96)
    parser.add_argument("--noise", type=float, default=1.5)
    args = parser.parse_args()
    photos = VOCDataset(args.data_dir, image_set="trainval", max_images=args.photos)
    grid, generator = PatchGrid(), torch.Generator().manual_seed(0)
    found: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for item in photos:
        size = tuple(item.image.shape[-2:])
        boxes = grid(size).double()
        boxes = boxes[torch.randperm(len(boxes), generator=generator)[: args.patches]]
        labels = label_patches(boxes, item.boxes, item.classes).labels
        for k in set(item.classes[~item.difficult].tolist()) & set(labels.tolist()):
            noise = torch.randn(len(boxes), generator=generator, dtype=torch.float64)
            probs = torch.sigmoid(4.0 * (labels == k) - 3 + args.noise * noise)
            objects = item.boxes[item.classes == k].double()
            for name, point, box in readings(probs, boxes, size):
                found[name].append((inside(point, objects), bool((iou(box[None], objects) >= 0.5).any())))
    print(f"{len(found['middle of the photo'])} classes in {len(photos)} photos, {args.patches} patches each")
    for name, hits in sorted(found.items(), key=lambda item: -sum(hit for hit, _ in item[1])):
        pointing, corloc = (100 * sum(each) / len(hits) for each in zip(*hits, strict=True))
        print(f"{name:32} pointing {pointing:5.1f} %   CorLoc {corloc:5.1f} %")


def readings(
    probs: Tensor, boxes: Tensor, size: tuple[int, int]
) -> list[tuple[str, tuple[float, float], Tensor]]:
    """Return the name, peak and box of each way to read (P,) probabilities."""
    height, width = size
    frame = torch.tensor([0.0, 0, width, height], dtype=torch.float64)
    best = boxes[probs.argmax()]
    read = [("middle of the photo", center(frame), frame), ("middle of the best patch", center(best), best)]
    covering = plain_sum(torch.ones_like(probs), boxes, size)
    for exponent in EXPONENTS:
        total = plain_sum(probs**exponent, boxes, size)
        maps = {
            "sum by nearness": (score_map(probs[:, None], boxes, size, exponent)[0], 0.25),
            "sum": (total, 0.5),
            "mean": (total / covering.clamp(min=1), 0.5),
        }
        for name, (values, threshold) in maps.items():
            read.append((f"{name}, exponent {exponent}", map_peak(values), map_box(values, threshold)))
    return read


def plain_sum(scores: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the (H, W) sum of the scores of the patches that cover each pixel."""
    height, width = size
    y, x = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    rows = ((boxes[:, 1:2] <= y) & (y < boxes[:, 3:4])).double()
    columns = ((boxes[:, 0:1] <= x) & (x < boxes[:, 2:3])).double()
    return (rows * scores[:, None]).T @ columns


def center(box: Tensor) -> tuple[float, float]:
    """Return the middle of a box."""
    x0, y0, x1, y1 = box.tolist()
    return (x0 + x1) / 2, (y0 + y1) / 2


def inside(point: tuple[float, float], boxes: Tensor) -> bool:
    """Tell whether a point lies in any of the boxes."""
    x, y = point
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    return bool(((x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)).any())


if __name__ == "__main__":
    main()
