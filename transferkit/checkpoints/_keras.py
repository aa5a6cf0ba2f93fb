"""Keras: archives (.keras), and HDF5 files with a model or with weights alone, of Keras 2 and 3.

The model's description names the layers and tells what each is; its tensors are then in torch's conventions. Weights
without a description keep their names and axes. Nothing of a model is built: no Lambda and no custom class runs.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from transferkit.checkpoints._archives import open_zip, place_of, zip_names
from transferkit.checkpoints._hdf5 import MAGIC, Tree, not_read, read_tree, tree_contents
from transferkit.checkpoints._keras_flow import Orders
from transferkit.checkpoints._keras_layers import Converted, converted, described, undescribed
from transferkit.checkpoints._safetensors import json_object
from transferkit.checkpoints._state_dicts import check_names
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError, listed

_WEIGHTS, _CONFIG, _METADATA = "model.weights.h5", "config.json", "metadata.json"
_LARGEST_CONFIG = 1 << 26  # bytes
_BESIDE = ("optimizer", "optimizer_weights", "metrics", "_metrics", "compile_metrics", "loss", "_loss_tracker")


@register_reader("keras", matches=lambda path, head: head.startswith(b"PK") and _WEIGHTS in zip_names(path))
def read_keras(path: Path, options: ReadOptions) -> Contents:
    """Read a .keras archive; its weights are mapped from it."""
    with open_zip(path) as archive:
        config, metadata = (_member(archive, name) for name in (_CONFIG, _METADATA))
        weights = archive.getinfo(_WEIGHTS)
        others = [name for name in archive.namelist() if name not in (_CONFIG, _METADATA, _WEIGHTS)]
    if weights.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(
            f"{_WEIGHTS} in it is compressed, which Keras never does: unpack the archive and read that file"
        )
    tree = read_tree(path, place_of(path, weights, path.stat().st_size), weights.compress_size)
    tree.others += others
    return _contents(tree, config, {"keras_version": metadata.get("keras_version")})


@register_reader("hdf5", matches=lambda path, head: head.startswith(MAGIC), suffixes=(".h5", ".hdf5"))
def read_hdf5(path: Path, options: ReadOptions) -> Contents:
    """Read an HDF5 file: Keras's by its layers, any other as a tree of arrays."""
    tree = read_tree(path)
    config = tree.texts.get(("", "model_config"))
    version = tree.texts.get(("", "keras_version")) or tree.texts.get(("model_weights", "keras_version"))
    layered = any("vars" in name.split("/") for name in tree.tensors)
    if not (config or version or layered):
        return replace(tree_contents(tree, options.key), format="hdf5")
    model = json_object(config.encode(), "its model_config") if isinstance(config, str) else {}
    return _contents(tree, model, {"keras_version": version})


def _member(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    """Return a JSON object that an archive may have."""
    if name not in archive.namelist():
        return {}
    if archive.getinfo(name).file_size > _LARGEST_CONFIG:
        raise CheckpointError(f"refused: {name} in it is larger than any model's description")
    return json_object(archive.read(name), name)


def _contents(tree: Tree, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> Contents:
    """Return the layers of a Keras file."""
    root = "model_weights/" if any(name.startswith("model_weights/") for name in tree.tensors) else ""
    beside = [name for name in tree.tensors if name.split("/")[0] in _BESIDE]
    weights = {name.removeprefix(root): t for name, t in tree.tensors.items() if name not in set(beside)}
    texts = {(path.removeprefix(root).rstrip("/"), name): text for (path, name), text in tree.texts.items()}
    told = described(config, weights, texts)
    known = {path for layer in told for path in layer.paths}
    bare = undescribed({path: tensor for path, tensor in weights.items() if path not in known}, texts)
    orders = Orders()
    try:
        orders.follow(config)
    except (TypeError, ValueError, ArithmeticError):  # a custom class may describe itself in words of its own
        orders.unknown += [layer.name for layer in told if layer.kind == "Linear"]
    layers = [converted(layer) for layer in [*told, *bare]]
    attributes = {name: dict(own) for name, own in orders.attributes.items()}
    for layer in layers:
        for inner, own in layer.attributes.items():
            name = f"{layer.name}.{inner}".strip(".")
            attributes[name] = _plain_values(own) | attributes.get(name, {})
    return Contents(
        _by_key(layers),
        notes=(*_notes(layers, orders, beside, described=bool(told)), *not_read(tree)),
        metadata={key: value for key, value in metadata.items() if isinstance(value, str)},
        format="keras",
        ordered=not bare or ("", "layer_names") in texts,
        kinds={layer.name: layer.kind for layer in layers if layer.kind},
        attributes=attributes,
        layout="keras" if any(layer.tensors and not layer.class_name for layer in bare) else "torch",
    )


def _by_key(layers: Sequence[Converted]) -> dict[str, Tensor]:
    """Return the tensors of all layers by full key."""
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        for short, tensor in layer.tensors.items():
            key = f"{layer.name}.{short}".strip(".")
            if key in tensors:
                raise CheckpointError(f"refused: two tensors of the model are called {key!r}")
            tensors[key] = tensor
    if not tensors:
        raise CheckpointError("a Keras file without weights: save the model after it was built")
    check_names(tensors)
    return tensors


def _plain_values(own: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in own.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _notes(layers: Sequence[Converted], orders: Orders, beside: Sequence[str], *, described: bool) -> list[str]:
    """Return what a user should know of a file, one sentence each."""
    problems = [layer.problem for layer in layers if layer.problem]
    lost = [name for name in orders.unknown if any(layer.name == name for layer in layers)]
    first = {name.split("/")[0] for name in beside}
    notes = []
    if not described:
        notes.append(
            "no description of the model is in it, which tells what each layer is, its epsilon and the order behind "
            "a Flatten; what is not known has Keras's names and axes, and is turned by the layers that it is given to"
        )
    if problems and described:
        notes.append(f"without a counterpart in torch, left with Keras's names and axes: {listed(problems, 4)}")
    if lost:
        notes.append(f"not known in which order these see what was flattened before them: {listed(lost, 4)}")
    if orders.programs:
        notes.append(
            f"Lambda layers are programs, which are not run; write in torch what they do: {listed(orders.programs)}"
        )
    if first:
        notes.append(f"left out: {len(beside)} tensors beside the model's, under {', '.join(sorted(first))}")
    return notes
