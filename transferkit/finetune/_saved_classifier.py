"""The file of a fitted classifier: plain values and tensors. Reading it imports nothing and runs no code from it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from transferkit import heads, labeling, optimization, sampler, scorer
from transferkit.checkpoints import Checkpoint
from transferkit.errors import ArgumentError, CheckpointError, MissingFileError
from transferkit.files import write_atomically
from transferkit.finetune._fitting import Fitted, Setup, Start, prepare
from transferkit.finetune.networks import Network
from transferkit.finetune.protocol import Optimization, Protocol
from transferkit.finetune.settings import FeatureSettings
from transferkit.preprocessing import Preprocessing
from transferkit.transfer import WeightTransfer, by_name, freeze

FORMAT = "transferkit-classifier"
VERSION = 1
_KIND = "kind"

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
        return _KNOWN[name](**{key: from_plain(part) for key, part in value.items() if key != _KIND})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the recipe's {name} cannot be read: {error}") from error


def state_of(fitted: Fitted, features: FeatureSettings) -> dict[str, Any]:
    """Return a fitted classifier as plain values and tensors, without its network's name."""
    return {
        "protocol": plain(fitted.protocol),
        "class_names": list(fitted.class_names),
        "preprocessing": fitted.preprocessing.to_dict(),
        "features": {
            "method": features.method_for(fitted.protocol),
            "pyramid_scales": features.scales_for(fitted.protocol),
            "amp": features.amp,
        },
        "frozen": list(fitted.frozen),
        "model": fitted.model.state_dict(),
    }


def fitted_from(state: Mapping[str, Any], network: Network, setup: Setup) -> Fitted:
    """Put a saved head and saved weights on ``network``, which is changed in place."""
    names, frozen = tuple(state["class_names"]), tuple(state["frozen"])
    model = prepare(setup, network, len(names), Start(from_scratch=True), None).model
    WeightTransfer(Checkpoint.from_state_dict(state["model"])).apply(model)
    if frozen:
        freeze(model, by_name(*frozen))
    preprocessing = Preprocessing.from_dict(state["preprocessing"])
    return Fitted(model.eval(), preprocessing, setup.protocol, names, frozen)


def write_classifier(path: str | os.PathLike[str], state: dict[str, Any]) -> Path:
    """Write a classifier's state, atomically."""
    path = Path(path)
    whole = {"format": FORMAT, "version": VERSION, "torch": str(torch.__version__), **state}
    return write_atomically(path, lambda file: torch.save(whole, file))


def read_classifier(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a classifier's state to the CPU, running no code from it."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no classifier at {path}; SceneClassifier.save writes one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a classifier: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is no saved classifier (no format {FORMAT!r} in it); give a file of weights to "
            "SceneClassifier(weights=...), and a run to classifier.restore"
        )
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is a classifier of version {state.get('version')}, this transferkit reads version {VERSION}; "
            "install the transferkit that wrote it, or save it again with this one"
        )
    return state
