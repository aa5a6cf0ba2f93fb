"""Heads for the feature benchmarks, trained once on the features of the training photos and kept."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from torch import Tensor, nn

from tests.benchmarks import ways
from tests.benchmarks.kept_features import score_kept, train_head
from tests.benchmarks.parts import Parts
from tests.benchmarks.plain_training import all_features, timed_epoch
from tests.benchmarks.setting import Photos, mean_ap, new_head

EXACT, SHARED = "exact features", "shared features"


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what heads depend on; the same values in all members let them share what is kept."""
    parser.add_argument("--train_photos", type=int, default=200)
    parser.add_argument("--train_patches", type=int, default=448, help="of a photo in an epoch")
    parser.add_argument("--grid_patches", type=int, help="of a photo to choose from (default all of the grid)")
    parser.add_argument(
        "--training_pyramid_scales", type=int, default=6, help="of the features that are shared in training"
    )
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=2, help="heads are trained from so many seeds")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)


def add_test_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what mean AP is measured on."""
    parser.add_argument("--test_photos", type=int, default=500, help="for mean AP")
    parser.add_argument("--test_patches", type=int, default=64, help="of each")


class Training:
    """The training photos, their features by plain PyTorch and shared between patches, and the heads trained on them.

    Everything is made when it is asked for first, and kept.
    """

    def __init__(self, options: argparse.Namespace, backbone: nn.Module) -> None:
        self.options, self.backbone = options, backbone
        photos = Photos.read(options.data_dir, "trainval", options.train_photos)
        self.photos = photos.random_subset(options.grid_patches) if options.grid_patches else photos
        self.num_classes = len(self.photos.data.class_names)
        names = (
            "train_photos",
            "train_patches",
            "grid_patches",
            "training_pyramid_scales",
            "epochs",
            "data_dir",
            "weights",
        )
        self.parts = Parts(options.out, name="training", **{name: getattr(options, name) for name in names})

    def plain_epoch(self, number: int) -> dict[str, list[Any]]:
        """Return what :func:`timed_epoch` does."""
        o = self.options
        epoch = partial(timed_epoch, self.photos, self.backbone, self.num_classes, o.train_patches, o.workers)
        return self.parts.tensors(f"plain_epoch_{number}", epoch)

    def features(self, kind: str) -> list[Tensor]:
        """Return the features of all patches, N times (P, C * h * w): plain PyTorch's, or shared ones."""
        if kind == EXACT:
            epoch = self.plain_epoch(1)
            make = partial(all_features, self.photos, self.backbone, epoch, self.options.workers)
        else:
            way = ways.shared(self.backbone, self.options.training_pyramid_scales)
            make = partial(ways.kept_features, way, self.photos, self.options.workers)
        return self.parts.tensors(f"{kind.replace(' ', '_')}", make)

    def heads(self, kind: str) -> list[nn.Module]:
        """Return heads trained on one kind of features, one for each seed."""
        found = []
        for seed in range(self.options.seeds):
            head = new_head(self.num_classes)
            make = partial(self._trained, kind, seed)
            head.load_state_dict(self.parts.tensors(f"head_on_{kind.replace(' ', '_')}_{seed}", make))
            found.append(head.eval())
        return found

    def _trained(self, kind: str, seed: int) -> dict[str, Tensor]:
        o = self.options
        head = train_head(
            self.features(kind), self.photos.labels, self.num_classes, o.epochs, seed, o.train_patches
        )
        return head.state_dict()


class Testing:
    """The test photos, and their features by each way, kept.

    Args:
        options: With those of :func:`add_test_arguments`.
        backbone: Frozen.
    """

    def __init__(self, options: argparse.Namespace, backbone: nn.Module) -> None:
        self.options, self.backbone = options, backbone
        self.photos = Photos.read(options.data_dir, "test", options.test_photos).random_subset(
            options.test_patches
        )
        names = ("test_photos", "test_patches", "data_dir", "weights")
        self.parts = Parts(
            options.out, name="test_features", **{name: getattr(options, name) for name in names}
        )

    def scores(self, way: str, features: ways.Features, heads: list[nn.Module]) -> list[Tensor]:
        """Return the photos' scores, (N, K), by each head on the features of one way."""
        make = partial(ways.kept_features, features, self.photos, self.options.workers)
        found = self.parts.tensors(way.replace(" ", "_").replace(",", ""), make)
        return [score_kept(head, found) for head in heads]

    def mean_aps(self, scores: list[Tensor]) -> list[float]:
        """Return the mean AP of each head's scores, percent."""
        return [mean_ap(one, self.photos.data) for one in scores]
