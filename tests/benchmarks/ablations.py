"""Is each part of RECOMMENDED worth its place? One thing changed at a time, on folds of the training photos.

    python -m tests.benchmarks.ablations --data_dir DIR --weights FILE --out OUT

The photos' own 1,000 training photos are dealt into three folds: trained on two, measured on the third. No test photo is
looked at. Features are those of tests.benchmarks.recipes, and shared with it where --out is the same. A line's mean
AP is that of the exponent which is best for it on the measured fold, so all lines flatter themselves alike; its difference
from the first line is taken fold by fold. --mirrored also computes features of the measured photos mirrored, and adds the
scores of both, and --train draws fewer photos to train on. Whatever was measured is kept in --out, so a run that was
stopped goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from tests.benchmarks.parts import digest
from tests.benchmarks.recipes import OnBackbone, Split, add_arguments, on_backbones, show_tables
from tests.benchmarks.table import Table
from transferkit.finetune import RECOMMENDED, Protocol
from transferkit.labeling import OverlapRule
from transferkit.optimization import EarlyStopping, HeldOutChoice, WarmupCosine
from transferkit.sampler import PositivesFirst

FOLDS = 3
EXPONENTS = (1.0, 2.0, 3.0, 5.0, 8.0)
EPOCHS = (4, 6, 8, 10, 14, 20, 40)
BASE = replace(RECOMMENDED, choice=None)
SCHEDULE = WarmupCosine(RECOMMENDED.epochs)
MIRRORED = "mirrored photos scored too"
CHANGES = {
    "as it is": BASE,
    "no loss of images": replace(BASE, image_loss=None),
    "the last weights instead of their average": replace(BASE, average=None),
    "no warm-up": replace(BASE, scratch=replace(BASE.scratch, schedule=SCHEDULE)),
    "one rate throughout": replace(BASE, scratch=replace(BASE.scratch, schedule=None)),
    "epochs by early stopping on a fifth": replace(
        RECOMMENDED, choice=HeldOutChoice(stopping=EarlyStopping(patience=3))
    ),
    **{f"{epochs} epochs": BASE.adjusted(epochs=epochs) for epochs in EPOCHS if epochs != BASE.epochs},
    "patches with objects first, whatever their classes": replace(BASE, train_balance=PositivesFirst()),
    "patches of several objects are background": replace(
        BASE, rule=OverlapRule(patch_fraction=0.2, object_fraction=0.6, several="background")
    ),
    "dropout 0.3": replace(BASE, drop_rate=0.3),
    "no dropout": replace(BASE, drop_rate=0.0),
}


class Mirrored:
    """Photos with left and right exchanged, and the boxes with them.

    Args:
        photos: Of a data set.
        rows: Which of them.
    """

    def __init__(self, photos: Dataset[Any], rows: Sequence[int]) -> None:
        self.photos, self.class_names = Subset(photos, rows), photos.class_names

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Any:
        item = self.photos[index]
        left, top, right, bottom = item.boxes.unbind(dim=1)
        width = item.image.shape[-1]
        boxes = torch.stack([width - right, top, width - left, bottom], dim=1)
        return replace(item, image=item.image.flip(-1), boxes=boxes)


def fold(rows: Sequence[int], number: int, most: int | None = None) -> Split:
    """Return two folds of the rows to train on, or at most so many rows of them, and one to measure on."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    held = set(order.tensor_split(FOLDS)[number].tolist())
    train = [row for place, row in enumerate(rows) if place not in held]
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(number))[:most]
    return Split(
        sorted(train[place] for place in drawn.tolist()),
        [row for place, row in enumerate(rows) if place in held],
    )


def measured(on: OnBackbone, protocol: Protocol, number: int, mirrored: bool) -> dict[str, Any]:
    """Return mean APs by exponent of a recipe trained and measured on a fold; of an earlier run if that came so far."""
    most = on.options.train
    name = f"ablation_{digest(repr(protocol).encode())}_fold_{number}{'_mirrored' * mirrored}"
    name += f"_train_{most}" * (most is not None)
    return on.parts.figures(name, partial(measure, on, name, protocol, number, mirrored))


def measure(on: OnBackbone, name: str, protocol: Protocol, number: int, mirrored: bool) -> dict[str, Any]:
    """Train on two folds and measure on the third, for the part of that name."""
    split = fold(on.photos.split(0).train, number, on.options.train)
    classifier = on.classifier(protocol, seed=number)
    cache, _ = on.filled(classifier)
    started = time.perf_counter()
    earlier = on.fitted(name, classifier, Subset(cache, split.train))
    log = classifier.score(Subset(cache, split.test), keep_patches=True)
    scores = {exponent: log.compute(exponent) for exponent in EXPONENTS}
    found = {
        "mean_aps": [on.mean_ap(of, split.test) for of in scores.values()],
        "epochs": classifier.decided.epochs,
        "seconds": earlier + time.perf_counter() - started,
    }
    if mirrored:
        folder = on.options.out / f"mirrored_{number}"
        other = on.classifier(protocol, number, features=replace(classifier.features, folder=folder))
        mirror = other.cache(Mirrored(on.photos, split.test))
        mirror.fill(num_workers=on.options.workers, progress=True)
        twice = classifier.score(mirror, keep_patches=True)
        found["mirrored"] = [
            on.mean_ap(of + twice.compute(exponent), split.test) for exponent, of in scores.items()
        ]
    return found


def main() -> None:
    """Run the benchmark."""
    options = parse_arguments()
    show_tables(options, (ablations(options, on) for on in on_backbones(options)))


def ablations(options: argparse.Namespace, on: OnBackbone) -> Table:
    """Return RECOMMENDED beside itself with one thing changed."""
    table = Table(
        f"{on.backbone}: RECOMMENDED with one thing changed, {options.folds} of {FOLDS} folds of the training photos, "
        f"{len(fold(on.photos.split(0).train, 0, options.train).train)} to train on",
        {
            "setting": "",
            "mAP, %": ".2f",
            "minus the first": "+.2f",
            "exponent": "g",
            "epochs": "g",
            "seconds": ".0f",
        },
    )
    first: list[float] = []
    for change, protocol in CHANGES.items():
        if change not in options.changes:
            continue
        base = protocol == BASE
        runs = [measured(on, protocol, number, options.mirrored and base) for number in range(options.folds)]
        rest = [run["epochs"] for run in runs], [run["seconds"] for run in runs]
        first = first or best_of(run["mean_aps"] for run in runs)[0]
        for name, key in (
            (change, "mean_aps"),
            *([(MIRRORED, "mirrored")] if options.mirrored and base else []),
        ):
            aps, exponents = best_of(run[key] for run in runs)
            table.add(name, aps, [ap - of for ap, of in zip(aps, first, strict=True)], exponents, *rest)
    table.notes.append(
        "All-points AP, difficult objects ignored, with the exponent that is best on the measured fold. Seconds are for "
        "training and measuring, features at hand; of mirrored photos there are none counted."
    )
    return table


def best_of(runs: Any) -> tuple[list[float], list[float]]:
    """Return each run's best mean AP and its exponent."""
    best = [max(zip(run, EXPONENTS, strict=True)) for run in runs]
    return [ap for ap, _ in best], [exponent for _, exponent in best]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument(
        "--folds", type=int, default=FOLDS, choices=range(1, FOLDS + 1), help="measured, of three"
    )
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), choices=CHANGES, metavar="SETTING",
                        help=f"of {list(CHANGES)}; compared with the first of those given")  # fmt: skip
    parser.add_argument("--train", type=int, help="at most so many photos to train on (default two folds)")
    parser.add_argument("--mirrored", action="store_true", help="also score mirrored photos")
    return parser.parse_args()


if __name__ == "__main__":
    main()
