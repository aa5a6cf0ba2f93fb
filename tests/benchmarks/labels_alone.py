"""What boxes are worth: RECOMMENDED with boxes, with the labels of whole photos alone, and with boxes for a tenth of the photos.

    python -m tests.benchmarks.labels_alone --data_dir DIR --weights FILE --out OUT

Features, splits and seeds are those of tests.benchmarks.recipes, which shares --out. Beside the mean AP on the test photos
stands how often the maximum of a class's map lies in an object of the class (pointing), though no box was seen.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from tests.benchmarks.recipes import EveryPhoto, OnBackbone, Split, add_arguments, on_backbones, show_tables
from tests.benchmarks.table import Table
from transferkit.annotated import Presence
from transferkit.finetune import RECOMMENDED
from transferkit.optimization import hold_out
from transferkit.scorer import LocalizationMeter, PatchLog

KNOWN = {"boxes": 1.0, "boxes for a tenth": 0.1, "labels alone": 0.0}  # of the photos, the share with boxes


class PartlyBoxed(EveryPhoto):
    """The photos, of some of which only the classes are known."""

    def __init__(self, root: Path, most: int | None) -> None:
        super().__init__(root, most)
        self.boxed = torch.ones(len(self), dtype=torch.bool)  # (N,)

    def presence(self) -> Presence:
        """Return which classes each photo shows, and of which photos boxes are known."""
        found = super().presence()
        return Presence(found.present, found.difficult_only, self.boxed)

    def objects(self, index: int) -> tuple[Tensor, ...]:
        """Return the objects of a photo, none where only its classes are known."""
        first = len(self.datasets[0])
        data, place = (self.datasets[0], index) if index < first else (self.datasets[1], index - first)
        kept = slice(None) if self.boxed[index] else slice(0, 0)
        return tuple(column[kept] for column in data.objects(place))


def measured(on: OnBackbone, known: str, number: int, seed: int) -> dict[str, Any]:
    """Return what one fit comes to on the test photos."""
    photos = on.photos
    assert isinstance(photos, PartlyBoxed)
    split = photos.split(number)
    photos.boxed = torch.ones(len(photos), dtype=torch.bool)
    if KNOWN[known] < 1:
        train = torch.tensor(split.train)
        photos.boxed[train] = False
        if KNOWN[known]:
            parts = hold_out(on.truth.present[train][:, 1:], KNOWN[known], seed)
            photos.boxed[train[parts.held]] = True
    scales = tuple(on.options.pyramid_scales)
    classifier = on.classifier(replace(RECOMMENDED, pyramid_scales=scales), seed)
    cache = classifier.cache(photos)
    cache.fill()
    began = time.perf_counter()
    classifier.fit(Subset(cache, split.train))
    seconds = time.perf_counter() - began
    log = classifier.score(Subset(cache, split.test), keep_patches=True)
    assert isinstance(log, PatchLog)
    return {
        "mean_ap": on.mean_ap(log.compute().cpu(), split.test),
        "pointing": 100 * pointing(photos, split, log),
        "seconds": seconds,
        "epochs": classifier.decided.epochs,
        "exponent": classifier.decided.exponent,
    }


def pointing(photos: PartlyBoxed, split: Split, log: PatchLog) -> float:
    """Return the share of test photos whose maps have their maximum in an object, the mean over classes."""
    meter = LocalizationMeter(photos.class_names)
    data: Any = Subset(photos, split.test)
    for n in range(len(data)):
        item = data[n]
        meter.add_image(*log.patches(n), item.image.shape[-2:], item.boxes, item.classes, item.difficult)
    return meter.compute().mean().pointing


def compared(on: OnBackbone, options: argparse.Namespace, number: int) -> Table:
    """Return the table of one backbone and split."""
    table = Table(
        f"{on.backbone}, split {number}, {options.seeds} seeds",
        {
            "known": "",
            "mAP, %": ".2f",
            "pointing, %": ".1f",
            "fit, minutes": ".1f",
            "epochs": ",.0f",
            "exponent": "g",
        },
    )
    for known in options.known:
        runs = [
            on.parts.figures(f"{known}_{number}_{seed}", partial(measured, on, known, number, seed))
            for seed in range(options.seeds)
        ]
        columns = [
            [run[key] for run in runs] for key in ("mean_ap", "pointing", "seconds", "epochs", "exponent")
        ]
        columns[2] = [seconds / 60 for seconds in columns[2]]
        table.add(known, *columns)
    table.notes.append(
        "All-points AP, difficult objects ignored; minutes of choice and training, on features that are there."
    )
    return table


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--pyramid_scales", type=float, nargs="+", default=RECOMMENDED.pyramid_scales)
    parser.add_argument("--known", nargs="+", default=list(KNOWN), choices=KNOWN)
    options = parser.parse_args()
    sets = on_backbones(options, PartlyBoxed)
    show_tables(options, (compared(on, options, number) for on in sets for number in options.splits))


if __name__ == "__main__":
    main()
