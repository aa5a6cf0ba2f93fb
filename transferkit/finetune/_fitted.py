"""A fitted network: what it is, and its file.

The file holds plain values and tensors. Reading it imports nothing and runs no code from it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transferkit import heads, labeling, optimization, sampler, scorer
from transferkit.checkpoints import Checkpoint
from transferkit.errors import ArgumentError, CheckpointError, TransferKitError, listed
from transferkit.features._photos import digest_of, digest_of_tensor
from transferkit.files import write_atomically
from transferkit.finetune._fitting import Setup, put_head_on
from transferkit.finetune.networks import Network
from transferkit.finetune.protocol import Optimization, Protocol
from transferkit.finetune.run import Run, read_saved
from transferkit.layers import layers_of
from transferkit.preprocessing import Preprocessing
from transferkit.scorer.calibration import Calibration
from transferkit.transfer import WeightTransfer, by_name, freeze

FORMAT = "transferkit-classifier"
VERSION = 2  # 1 had all weights in every file, and no card
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
    card: Mapping[str, Any] | None = None  # the card in the file that it was loaded from


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


def digest_of_fitted(fitted: Fitted) -> str:
    """Return a digest of what a fitted network computes, in so far as its weights and recipe say it."""
    return digest_of(repr(fitted.protocol), _digest(fitted.model.state_dict()))


def state_of(fitted: Fitted, setup: Setup, whole: bool | None) -> dict[str, Any]:
    """Return a fitted classifier as plain values and tensors, without those that its pretrained weights hold."""
    features, left_out = setup.features, _left_out(fitted, setup, whole)
    without = _tensors_of(fitted.model, fitted.frozen) if left_out else ()
    return {
        "network": setup.network_name,
        "named": setup.is_named,
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
        "left_out": left_out,
        "model": {name: value for name, value in fitted.model.state_dict().items() if name not in without},
    }


def _left_out(fitted: Fitted, setup: Setup, whole: bool | None) -> str | None:
    """Return the digest of the frozen layers if pretrained weights have the same, so that a file can do without."""
    if whole or (whole is None and (not setup.is_named or setup.start.weights is not None)):
        return None
    own = _digest(_tensors_of(fitted.model, fitted.frozen))
    problem = "no layer is frozen" if setup.start.from_scratch or not fitted.frozen else ""
    try:
        if not problem and own != _digest(_pretrained(_built(setup, fitted.class_names), setup, fitted.frozen)):
            problem = "these differ"
    except TransferKitError as error:
        problem = str(error)
    if problem and whole is False:
        raise ArgumentError(
            f"whole=False leaves out frozen layers that are as in the pretrained weights: {problem}; save all with "
            "whole=True"
        )
    return None if problem else own


def _built(setup: Setup, class_names: tuple[str, ...]) -> Network:
    """Build the network with the recipe's head, both with initial weights."""
    with torch.random.fork_rng():  # which are replaced, and draw random numbers
        network = setup.build()
        put_head_on(network, setup, len(class_names))
    return network


def _pretrained(network: Network, setup: Setup, layers: Collection[str]) -> dict[str, Tensor]:
    """Put the pretrained weights of some layers on a network; return their tensors."""
    source: Checkpoint = network.checkpoint(setup.start.weights)
    WeightTransfer(source, select=by_name(*layers)).apply(network.model)
    return _tensors_of(network.model, layers)


def _tensors_of(model: nn.Module, layers: Collection[str]) -> dict[str, Tensor]:
    chosen = [layer for layer in layers_of(model) if layer.name in layers]
    return {layer.key(short): tensor for layer in chosen for short, tensor in layer.tensors.items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return digest_of(*(f"{name} {digest_of_tensor(tensors[name])}" for name in sorted(tensors)))


def fitted_from(state: Mapping[str, Any], setup: Setup, path: str | os.PathLike[str]) -> Fitted:
    """Build the network and put the saved tensors on it, and those that are left out from the pretrained weights."""
    names, frozen = tuple(state["class_names"]), tuple(state["frozen"])
    network = _built(setup, names)
    model, backbone = network.model, _backbone(network, setup, state, path) if state["left_out"] else {}
    WeightTransfer(Checkpoint.from_state_dict({**backbone, **state["model"]})).apply(model)
    if frozen:
        freeze(model, by_name(*frozen))
    preprocessing = Preprocessing.from_dict(state["preprocessing"])
    known = state.get("calibration")
    calibration = None if known is None else Calibration.from_dict(known)
    return Fitted(model.eval(), preprocessing, setup.protocol, names, frozen, None, calibration, state["card"])


def _backbone(
    network: Network, setup: Setup, state: Mapping[str, Any], path: str | os.PathLike[str]
) -> dict[str, Tensor]:
    """Return the tensors that a file leaves out, from the pretrained weights; refuse others than it was fitted on."""
    advice = (
        "give the file of those that it was fitted on: SceneClassifier.load(path, weights=...); or save it again "
        "where it was fitted: classifier.save(path, whole=True)"
    )
    try:
        found = _pretrained(network, setup, state["frozen"])
    except TransferKitError as error:
        raise CheckpointError(
            f"{path} holds no backbone, and its weights cannot be had: {error}; {advice}"
        ) from error
    if (digest := _digest(found)) != state["left_out"]:
        source = setup.start.weights or f"the weights that {setup.network_name} has here"
        raise CheckpointError(
            f"{path} wants a backbone with digest {state['left_out']}, {source} give one with {digest}; {advice}"
        )
    return found


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
    if state.get("version") not in range(1, VERSION + 1):
        raise CheckpointError(
            f"{path} is a classifier of version {state.get('version')}, this transferkit reads 1 to {VERSION}; "
            "install the transferkit that wrote it, or save it again with this one"
        )
    if lacking := [name for name in _PARTS if name not in state]:
        raise CheckpointError(
            f"{path} is a damaged classifier: it lacks {listed(lacking)}; save it again with "
            "SceneClassifier.save"
        )
    return {"left_out": None, "card": None, **state}
