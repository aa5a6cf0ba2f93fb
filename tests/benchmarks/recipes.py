"""The recipes side by side on real photos: mean AP, its spread over seeds, and minutes, with a backbone of choice.

    python -m tests.benchmarks.recipes --data_dir DIR --weights FILE --out OUT

Every recipe trains a head over the frozen backbone, whose features are read from maps that the recipes share, at the sizes
that RECOMMENDED looks at, and cached from empty, for all photos and recipes at once; what that takes is counted into each
run. So recipes differ in their patches, labels and training, and not in what a patch looks like. Fewer --pyramid_scales make the
features cheaper, and fine patches blurred; the patches stay. The baseline is what
everyone would try first: logistic regression over the features of whole photos. Settings that a recipe leaves open are
chosen on a fifth of its training photos. Split 0 is the photos' own, 1,000 to train and 500 to test; the others deal the same photos
out anew. Whatever was measured is kept in --out, and a run that was stopped goes on after its last whole epoch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

import transferkit as tk
from tests.benchmarks import ways
from tests.benchmarks.parts import Parts, digest
from tests.benchmarks.rounds import say
from tests.benchmarks.shared_maps import fill_together
from tests.benchmarks.table import Table, write_tables
from transferkit.backbones import fold_batch_norms, truncate
from transferkit.datasets import Presence, VOCDataset
from transferkit.estimators import ImageFeatures, LinearProbe
from transferkit.features import FeatureCache
from transferkit.finetune import (
    NEON2016,
    OQUAB2014,
    RECOMMENDED,
    FeatureSettings,
    Protocol,
    build_network,
    read_run,
    use_huge_pages,
)
from transferkit.heads import find_head
from transferkit.scorer import VOC2010

BACKBONES = ("alexnet-convolutions", "efficientnet-lite0")
BASELINE = "whole photo, linear"


@dataclass(frozen=True)
class Split:
    """Rows of the photos to train on and to test on."""

    train: list[int]
    test: list[int]


class EveryPhoto(ConcatDataset[Any]):
    """The photos of both image sets, as one data set.

    Args:
        root: Holds ``VOCdevkit``.
        most: Of each image set; ``None`` for all.
    """

    def __init__(self, root: Path, most: int | None) -> None:
        super().__init__([VOCDataset(root, image_set=name, max_images=most) for name in ("trainval", "test")])
        self.class_names = self.datasets[0].class_names

    def presence(self) -> Presence:
        """Return which classes each photo shows."""
        found = [photos.presence() for photos in self.datasets]
        return Presence(
            *(torch.cat([getattr(one, name) for one in found]) for name in ("present", "difficult_only"))
        )

    def split(self, seed: int) -> Split:
        """Return the photos' own split for 0, another one of the same sizes for any other seed."""
        order = range(len(self))
        if seed:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        first = len(self.datasets[0])
        return Split(sorted(order[:first]), sorted(order[first:]))


class OnBackbone:
    """Recipes on one backbone.

    Args:
        options: The command line's.
        photos: All of them.
        backbone: A name of :func:`build_network`.
    """

    def __init__(self, options: argparse.Namespace, photos: EveryPhoto, backbone: str) -> None:
        self.options, self.photos, self.backbone = options, photos, backbone
        self.device = torch.device(options.device)
        self.weights = options.weights if backbone.startswith("alexnet") else None
        self.truth = photos.presence()
        names = ("data_dir", "photos", "bfloat16", "device")
        self.parts = Parts(
            options.out, name="recipes", backbone=backbone, **{name: getattr(options, name) for name in names}
        )

    def classifier(self, protocol: Protocol, seed: int, **settings: Any) -> tk.SceneClassifier:
        """Return a classifier whose backbone is frozen, with features read from maps and kept in ``--out``."""
        features = FeatureSettings(
            method="shared", amp=self.options.bfloat16, folder=self.options.out / "features"
        )
        on_gpu = (
            self.device.type == "cuda"
        )  # on the cpu a worker that reads features takes a core from the training
        return tk.SceneClassifier(
            self.backbone,
            replace(protocol, train_backbone=False),
            weights=self.weights,
            seed=seed,
            device=self.device,
            num_workers=self.options.workers * on_gpu,
            **{"features": features, **settings},
        )

    def baseline(self, split: Split) -> dict[str, float]:
        """Return mean AP and seconds of a linear classifier over whole photos."""
        kept = self.parts.tensors("whole_photos", self._whole_photos)
        started = time.perf_counter()
        absent = self.truth.difficult_only.double() * torch.nan
        targets = torch.where(self.truth.difficult_only, absent, self.truth.present.double())[:, 1:]
        probe = LinearProbe().fit(kept["features"][split.train].numpy(), targets[split.train].numpy())
        scores = torch.zeros(len(self.photos), len(self.photos.class_names), dtype=torch.float64)
        scores[:, 1:] = torch.as_tensor(probe.decision_function(kept["features"].numpy()))
        return {
            "mean_ap": self.mean_ap(scores[split.test], split.test),
            "seconds": kept["seconds"] + time.perf_counter() - started,
        }

    def run(self, protocol: Protocol, number: int, seed: int) -> dict[str, float]:
        """Return what one run of a recipe on a numbered split comes to; of an earlier run if that came so far."""
        name = f"{protocol.name}_{digest(repr(protocol).encode())}_split_{number}_seed_{seed}"
        return self.parts.figures(name, partial(self.recipe, name, protocol, self.photos.split(number), seed))

    def recipe(self, name: str, protocol: Protocol, split: Split, seed: int) -> dict[str, float]:
        """Return what one run of a recipe, the part of that name, comes to, and what it chose."""
        classifier = self.classifier(protocol, seed)
        cache, seconds = self.filled(classifier)
        started = time.perf_counter()
        earlier = self.fitted(name, classifier, Subset(cache, split.train))
        scores = classifier.score(Subset(cache, split.test)).compute().cpu()
        return {
            "mean_ap": self.mean_ap(scores, split.test),
            "seconds": seconds + earlier + time.perf_counter() - started,
            "epochs": classifier.decided.epochs,
            "exponent": classifier.decided.exponent,
        }

    def fitted(self, name: str, classifier: tk.SceneClassifier, train: Dataset[Any]) -> float:
        """Fit a classifier for the part of that name; return the seconds of epochs that an earlier run had done."""
        saved = self.parts.in_progress(name)
        earlier = sum(epoch["seconds"] for epoch in read_run(saved)["history"]) if saved.is_file() else 0.0
        classifier.fit(train, run_file=saved, resume=True, log=say)
        return earlier

    def filled(self, classifier: tk.SceneClassifier) -> tuple[FeatureCache, float]:
        """Return the features of all photos for a classifier, and the seconds that they took."""
        cache = classifier.cache(self.photos)
        return cache, self.parts.figures(f"fill_{cache.key}", partial(self._fill, [cache]))

    def fill(self, protocols: list[Protocol]) -> None:
        """Compute the features of all photos for several recipes; the seconds for all are counted to each."""
        caches = [self.classifier(protocol, seed=0).cache(self.photos) for protocol in protocols]
        together = digest(" ".join(sorted(cache.key for cache in caches)).encode())
        seconds = self.parts.figures(f"fill_together_{together}", partial(self._fill, caches))
        for cache in caches:
            self.parts.figures(f"fill_{cache.key}", lambda: seconds)

    def mean_ap(self, scores: Tensor, rows: list[int]) -> float:
        """Return the mean AP in percent, all-points, difficult objects ignored."""
        aps = VOC2010.average_precision(scores, self.truth.present[rows], self.truth.difficult_only[rows])
        return 100 * aps.nanmean().item()

    def _fill(self, caches: list[FeatureCache]) -> float:
        for cache in caches:
            say(str(cache.size()))
        started = time.perf_counter()
        fill_together(caches, self.options.workers)
        return time.perf_counter() - started

    def _whole_photos(self) -> dict[str, Any]:
        network = build_network(self.backbone)
        head = find_head(network.model).name
        source = network.checkpoint(self.weights)
        tk.WeightTransfer(source, select=~tk.by_name(f"{head}*")).apply(network.model)
        model = network.model.eval().to(self.device)
        started = time.perf_counter()
        if self.backbone.startswith("alexnet"):  # its map as it is, 6 x 6 cells
            backbone, pooling = truncate(model, "features"), "none"
        else:
            backbone, pooling = truncate(model, before=head), "average"
            backbone = fold_batch_norms(backbone, torch.rand(1, 3, 224, 224, device=self.device))
        preprocessing, amp = network.preprocessing.preprocessing, self.options.bfloat16
        features = ImageFeatures(
            backbone, pooling=pooling, image_size=224, preprocessing=preprocessing, amp=amp
        )
        found = features.fit_transform(self.photos)
        return {"features": torch.from_numpy(found), "seconds": time.perf_counter() - started}


def main() -> None:
    """Run the benchmark."""
    options = parse_arguments()
    show_tables(options, every_comparison(options))


def every_comparison(options: argparse.Namespace) -> Iterator[Table]:
    """Yield the recipes side by side on each backbone and split."""
    for on in on_backbones(options):
        on.fill(recipes(options))
        for number in options.splits:
            yield compared(options, on, number)


def on_backbones(options: argparse.Namespace, kind: type[EveryPhoto] = EveryPhoto) -> Iterator[OnBackbone]:
    """Yield each backbone of the command line, with the process made ready for it."""
    use_huge_pages()
    torch.set_num_threads(options.threads)
    photos = kind(options.data_dir, options.photos)
    for backbone in options.backbones:
        yield OnBackbone(options, photos, backbone)


def show_tables(options: argparse.Namespace, tables: Iterable[Table]) -> None:
    """Print each table as soon as it is there, and write those so far where the command line says."""
    found: list[Table] = []
    for table in tables:
        found.append(table)
        print(table.markdown(), end="\n\n")
        if options.json:
            write_tables(options.json, found)


def compared(options: argparse.Namespace, on: OnBackbone, number: int) -> Table:
    """Return the recipes side by side on one split."""
    split = on.photos.split(number)
    table = Table(
        f"{on.backbone}, split {number}: {len(split.train)} photos to train on, {len(split.test)} to test on, "
        f"{options.seeds} seeds",
        {"recipe": "", "mAP, %": ".2f", "minutes": ".1f", "epochs": ",.0f", "exponent": "g"},
    )
    if "baseline" in options.recipes:
        found = on.parts.figures(f"baseline_{number}", partial(on.baseline, split))
        table.add(BASELINE, found["mean_ap"], found["seconds"] / 60, "", "")
    for protocol in recipes(options):
        runs = [on.run(protocol, number, seed) for seed in range(options.seeds)]
        minutes = [run["seconds"] / 60 for run in runs]
        chosen = ([run[key] for run in runs] for key in ("epochs", "exponent"))
        table.add(title_of(protocol), [run["mean_ap"] for run in runs], minutes, *chosen)
    table.notes.append(
        "All-points AP, difficult objects ignored; the test photos had no say in any setting. Minutes count the features "
        "of all photos for all recipes, from empty; they come from maps at the sizes "
        f"{', '.join(f'{level:g}' for level in options.pyramid_scales)}."
    )
    return table


def recipes(options: argparse.Namespace) -> list[Protocol]:
    """Return the recipes that are compared, all over frozen layers; the published ones may be shortened."""
    published = (
        protocol.adjusted(patches_per_image=options.patches, epochs=options.epochs)
        for protocol in (NEON2016, OQUAB2014)
    )
    return [
        replace(protocol, pyramid_scales=tuple(options.pyramid_scales))
        for protocol in (*published, RECOMMENDED)
        if protocol.name in options.recipes
    ]


def title_of(protocol: Protocol) -> str:
    """Return a recipe's name and how much it was given."""
    return f"{protocol.name}, {protocol.patches_per_image} patches, at most {protocol.epochs} epochs"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--recipes", nargs="+", default=["baseline", "neon2016", "oquab2014", "recommended"])
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--patches", type=int, help="of a photo and epoch in the published recipes (default theirs)"
    )
    parser.add_argument("--epochs", type=int, help="of the published recipes (default theirs)")
    parser.add_argument("--pyramid_scales", type=float, nargs="+", default=RECOMMENDED.grid.scales,
                        help="sizes of the photo whose maps patches are read from (default those of its patches)")  # fmt: skip
    return parser.parse_args()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what all that is measured on backbones has in common."""
    parser.add_argument("--data_dir", type=Path, required=True, help="folder that holds VOCdevkit")
    parser.add_argument("--weights", type=Path, required=True, help="AlexNet's convolutions")
    parser.add_argument("--out", type=Path, required=True, help="where features and figures are kept")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), help="names of networks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--photos", type=int, help="at most so many of each image set")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=ways.has_bfloat16(),
                        help="compute features in half precision (default where the processor has it)")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the tables here")


if __name__ == "__main__":
    main()
