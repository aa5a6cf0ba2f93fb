"""The file of a fitted classifier: plain values and tensors, from which nothing is imported and no code runs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from transferkit import heads, labeling, optimization, sampler, scorer
from transferkit.errors import ArgumentError, CheckpointError, MissingFileError
from transferkit.files import write_atomically
from transferkit.finetune.protocol import Optimization, Protocol

FORMAT = "transferkit-classifier"
VERSION = 1
_KIND = "kind"

# The values that a recipe of this library is made of; a file can name these and no others.
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
    """Return a recipe, or a value in it, as plain containers.

    Raises:
        ArgumentError: A value of another kind, such as a function of one's own.

    Example:
        >>> plain(optimization.EarlyStopping(patience=2))
        {'kind': 'EarlyStopping', 'patience': 2, 'min_gain': 0.0}
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if _KNOWN.get(type(value).__name__) is not type(value):
        raise ArgumentError(
            f"{value!r} of the recipe cannot be saved: a file imports nothing, and {type(value).__name__} is none of "
            "this library's values; use one of those, or save classifier.model's state dict yourself"
        )
    recipe: Any = value  # one of the dataclasses above
    fields = {
        field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(recipe) if field.init
    }
    return {_KIND: type(value).__name__, **fields}


def from_plain(value: Any) -> Any:
    """Return what :func:`plain` was given.

    Raises:
        CheckpointError: A kind of value that this version does not know.
    """
    if isinstance(value, list):
        return tuple(from_plain(part) for part in value)
    if not isinstance(value, Mapping):
        return value
    name = value.get(_KIND)
    if name not in _KNOWN:
        raise CheckpointError(f"the recipe holds a {name!r}, which this transferkit does not know; update it")
    try:
        return _KNOWN[name](**{key: from_plain(part) for key, part in value.items() if key != _KIND})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the recipe's {name} cannot be read: {error}") from error


def write_classifier(path: str | os.PathLike[str], state: dict[str, Any]) -> Path:
    """Write a classifier's state, atomically."""
    path = Path(path)
    whole = {"format": FORMAT, "version": VERSION, "torch": str(torch.__version__), **state}
    return write_atomically(path, lambda file: torch.save(whole, file))


def read_classifier(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a classifier's state to the CPU, running no code from it.

    Raises:
        MissingFileError: There is no such file.
        CheckpointError: It is no classifier, damaged, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no classifier at {path}; SceneClassifier.save writes one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a classifier: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is no saved classifier (no format {FORMAT!r} in it); weights go to "
            "SceneClassifier(weights=...), a run goes to classifier.restore"
        )
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is a classifier of version {state.get('version')}, this transferkit reads version {VERSION}; "
            "install the transferkit that wrote it, or save it again with this one"
        )
    return state
