"""A fitted network: what it is, and its file.

The file holds plain values and tensors. Reading it imports nothing and runs no code from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transferkit import heads, labeling, optimization, sampler, scorer
from transferkit.checkpoints import Checkpoint
from transferkit.errors import ArgumentError, CheckpointError, listed
from transferkit.features._photos import digest_of_tensor
from transferkit.files import write_atomically
from transferkit.finetune._fitting import Setup, put_head_on
from transferkit.finetune.networks import NETWORKS
from transferkit.finetune.protocol import Optimization, Protocol
from transferkit.finetune.run import Run, read_saved
from transferkit.preprocessing import Preprocessing
from transferkit.scorer.calibration import Calibration
from transferkit.transfer import WeightTransfer, by_name, freeze

FORMAT = "transferkit-classifier"
VERSION = 1
_KIND = "kind"
_PARTS = ("network", "named", "protocol", "class_names", "preprocessing", "features", "seed", "frozen", "model")

# The classes that a file may name: those that the library's recipes are made of.
_KNOWN: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        Protocol,
        Optimization,
        *(
            value
            for part in (heads, labeling, optimization, sampler, scorer)
            for value in (getattr(part, name) for name in part.__all__)
            if isinstance(value, type) and (dataclasses.is_dataclass(value) or issubclass(value, Enum))
        ),
    )
}


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted network with everything that testing, predicting and saving need."""

    model: nn.Module
    preprocessing: Preprocessing
    protocol: Protocol
    class_names: tuple[str, ...]
    frozen: tuple[str, ...]
    run: Run | None = None  # None for a classifier loaded from a file
    calibration: Calibration | None = None


def fitted_by(
    run: Run, protocol: Protocol, class_names: tuple[str, ...], calibration: Calibration | None
) -> Fitted:
    """Return the network of a run to test and keep, with the same layers frozen as in training."""
    tested = run.tested_model  # an average of weights requires no gradient anywhere
    for parameter, trained in zip(tested.parameters(), run.model.parameters(), strict=True):
        parameter.requires_grad_(trained.requires_grad)
    return Fitted(tested, run.preprocessing, protocol, class_names, run.frozen, run, calibration)


def plain(value: Any) -> Any:
    """Return a recipe, or a value in it, as plain containers; a dataclass becomes ``{"kind": name, **fields}``."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if _KNOWN.get(type(value).__name__) is not type(value):
        raise ArgumentError(
            f"the recipe's {value!r} cannot be saved: reading a file imports nothing, and {type(value).__name__} is "
            "not a class of this library; use one that is, or save classifier.model's state dict yourself"
        )
    recipe: Any = value  # one of the dataclasses above
    fields = {
        field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(recipe) if field.init
    }
    return {_KIND: type(value).__name__, **fields}


def from_plain(value: Any) -> Any:
    """Return the value that :func:`plain` made plain; lists become tuples."""
    if isinstance(value, list):
        return tuple(from_plain(part) for part in value)
    if not isinstance(value, Mapping):
        return value
    name = value.get(_KIND)
    if name not in _KNOWN:
        raise CheckpointError(
            f"the recipe holds a {name!r}, which this transferkit does not know; update transferkit"
        )
    try:
        return _KNOWN[name](**from_plain_values({key: part for key, part in value.items() if key != _KIND}))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the recipe's {name} cannot be read: {error}") from error


def from_plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return each value by :func:`from_plain`."""
    return {name: from_plain(value) for name, value in values.items()}


def digest_of(fitted: Fitted) -> str:
    """Return a digest of what a fitted network computes, in so far as its weights and recipe say it."""
    digest = hashlib.sha256(repr(fitted.protocol).encode())
    for name, tensor in fitted.model.state_dict().items():
        digest.update(f"{name} {digest_of_tensor(tensor)}".encode())
    return digest.hexdigest()


def state_of(fitted: Fitted, setup: Setup) -> dict[str, Any]:
    """Return a fitted classifier as plain values and tensors."""
    features = setup.features
    return {
        "network": setup.network_name,
        "named": setup.network in NETWORKS if isinstance(setup.network, str) else False,
        "protocol": plain(fitted.protocol),
        "class_names": list(fitted.class_names),
        "preprocessing": fitted.preprocessing.to_dict(),
        "features": {
            "method": features.method_for(fitted.protocol),
            "pyramid_scales": features.scales_for(fitted.protocol),
            "amp": features.amp,
        },
        "seed": setup.seed,  # a recipe may test on a random part of the patches
        "frozen": list(fitted.frozen),
        "calibration": None if fitted.calibration is None else fitted.calibration.to_dict(),
        "model": fitted.model.state_dict(),
    }


def fitted_from(state: Mapping[str, Any], setup: Setup) -> Fitted:
    """Build the network and put the saved head and weights on it."""
    names, frozen = tuple(state["class_names"]), tuple(state["frozen"])
    with torch.random.fork_rng():  # initial weights, which the file's replace, draw random numbers
        network = setup.build()
        put_head_on(network, setup, len(names))
    model = network.model
    WeightTransfer(Checkpoint.from_state_dict(state["model"])).apply(model)
    if frozen:
        freeze(model, by_name(*frozen))
    preprocessing = Preprocessing.from_dict(state["preprocessing"])
    known = state.get("calibration")
    calibration = None if known is None else Calibration.from_dict(known)
    return Fitted(model.eval(), preprocessing, setup.protocol, names, frozen, None, calibration)


def write_classifier(path: str | os.PathLike[str], state: dict[str, Any]) -> Path:
    """Write a classifier's state, atomically."""
    path = Path(path)
    whole = {"format": FORMAT, "version": VERSION, "torch": str(torch.__version__), **state}
    return write_atomically(path, lambda file: torch.save(whole, file))


def read_classifier(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a classifier's state to the CPU, running no code from it."""
    state = read_saved(
        Path(path),
        "saved classifier",
        FORMAT,
        missing="SceneClassifier.save writes one",
        other="give a file of weights to SceneClassifier(weights=...), and a run to classifier.restore",
    )
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is a classifier of version {state.get('version')}, this transferkit reads version {VERSION}; "
            "install the transferkit that wrote it, or save it again with this one"
        )
    if lacking := [name for name in _PARTS if name not in state]:
        raise CheckpointError(
            f"{path} is a damaged classifier: it lacks {listed(lacking)}; save it again with "
            "SceneClassifier.save"
        )
    return state
