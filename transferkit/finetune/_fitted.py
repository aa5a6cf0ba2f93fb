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
from transferkit.errors import ArgumentError, CheckpointError, DownloadError, TransferKitError, listed
from transferkit.features._photos import digest_of, digest_of_tensor
from transferkit.files import write_atomically
from transferkit.finetune._fitting import Setup, put_head_on
from transferkit.finetune.networks import NETWORKS, Network
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
    features = setup.features
    layers = _left_out(fitted, setup, whole)
    left_out = _tensors_of(fitted.model, layers)
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
        "left_out": {"layers": layers, "digest": _digest(left_out)} if layers else None,
        "model": {name: value for name, value in fitted.model.state_dict().items() if name not in left_out},
    }


def _left_out(fitted: Fitted, setup: Setup, whole: bool | None) -> list[str]:
    """Return the frozen layers that are bit for bit those of the pretrained weights; none if all are to be saved."""
    start = setup.start
    if whole is None:
        own = isinstance(setup.network, str) and setup.network in NETWORKS and start.weights is None
        may = bool(own and fitted.frozen and not start.from_scratch)
    else:
        may = not whole
    if not may:
        return []
    try:
        pretrained = _with_weights(_built(fitted, setup), setup, fitted.frozen)
    except TransferKitError:
        if whole is None:  # they can no longer be had here, so perhaps nowhere else
            return []
        raise
    theirs = {layer.name: layer.tensors for layer in layers_of(pretrained)}
    same = [
        layer.name
        for layer in layers_of(fitted.model)
        if layer.name in fitted.frozen
        and all(torch.equal(value, theirs[layer.name][short]) for short, value in layer.tensors.items())
    ]
    if whole is False and not same:
        raise ArgumentError(
            f"whole=False leaves out frozen layers that are as in the pretrained weights; of {len(fitted.frozen)} "
            "frozen layers none is; save all with whole=True"
        )
    return same


def _built(fitted: Fitted, setup: Setup) -> Network:
    """Build the network with the recipe's head, both with initial weights."""
    with torch.random.fork_rng():  # which are replaced, and draw random numbers
        network = setup.build()
        put_head_on(network, setup, len(fitted.class_names))
    return network


def _with_weights(network: Network, setup: Setup, layers: Collection[str]) -> nn.Module:
    """Put the pretrained weights of some layers on a network; return its module."""
    source: Checkpoint = network.checkpoint(setup.start.weights)
    WeightTransfer(source, select=lambda index, layer: layer.name in layers).apply(network.model)
    return network.model


def _tensors_of(model: nn.Module, layers: Collection[str]) -> dict[str, Tensor]:
    return {
        layer.key(short): tensor
        for layer in layers_of(model)
        if layer.name in layers
        for short, tensor in layer.tensors.items()
    }


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return digest_of(*(f"{name} {digest_of_tensor(tensors[name])}" for name in sorted(tensors)))


def fitted_from(state: Mapping[str, Any], setup: Setup, path: str | os.PathLike[str]) -> Fitted:
    """Build the network and put the saved head and weights on it, with a backbone from its pretrained weights."""
    preprocessing = Preprocessing.from_dict(state["preprocessing"])
    names, frozen = tuple(state["class_names"]), tuple(state["frozen"])
    known = state.get("calibration")
    calibration = None if known is None else Calibration.from_dict(known)
    fitted = Fitted(nn.Module(), preprocessing, setup.protocol, names, frozen, None, calibration, state["card"])
    network = _built(fitted, setup)
    given = _backbone(network, setup, state["left_out"], path) if state["left_out"] else {}
    WeightTransfer(Checkpoint.from_state_dict({**given, **state["model"]})).apply(network.model)
    if frozen:
        freeze(network.model, by_name(*frozen))
    return dataclasses.replace(fitted, model=network.model.eval())


def _backbone(
    network: Network, setup: Setup, left_out: Mapping[str, Any], path: str | os.PathLike[str]
) -> dict[str, Tensor]:
    """Return the tensors that a file leaves out, from the pretrained weights; refuse others than it was fitted on."""
    advice = (
        "give the file of those that it was fitted with: SceneClassifier.load(path, weights=...); or save it again "
        "where it was fitted: classifier.save(path, whole=True)"
    )
    try:
        found = _tensors_of(_with_weights(network, setup, left_out["layers"]), left_out["layers"])
    except (ArgumentError, DownloadError) as error:
        raise CheckpointError(
            f"{path} holds no backbone, and its weights cannot be had: {error}; {advice}"
        ) from error
    if _digest(found) != left_out["digest"]:
        raise CheckpointError(
            f"{path} was fitted on a backbone with digest {left_out['digest']}; "
            f"{setup.start.weights or f'the weights that {setup.network_name} has here'} give one with digest "
            f"{_digest(found)}; {advice}"
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
