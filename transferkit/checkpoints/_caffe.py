"""Caffe: a net's layers with their blobs, read as the protocol buffer that a .caffemodel is (caffe.proto)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.checkpoints._protobuf import Message, file_bytes, message_in
from transferkit.checkpoints._raw import tensor_of
from transferkit.checkpoints._state_dicts import check_names
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError, harmless, listed

_NET_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 100})
_LAYERS, _FIRST_LAYERS = 100, 2  # of two versions of the format
_KINDS = {
    "Convolution": "conv",
    "Deconvolution": "conv",
    "InnerProduct": "linear",
    "BatchNorm": "norm",
    "Scale": "norm",
    "Embed": "embedding",
    "PReLU": "other",
    "Bias": "other",
    "Normalize": "norm",
}
_FIRST_TYPES = {
    4: "Convolution",
    39: "Deconvolution",
    14: "InnerProduct",
    18: "ReLU",
    19: "Sigmoid",
    23: "TanH",
}
_ACTIVATIONS = {"ReLU": "relu", "Sigmoid": "sigmoid", "TanH": "tanh", "ELU": "elu", "Softmax": "softmax"}
_MERGED = "a scale is part of the batch norm before it"
_AS_IT_IS = "kept as they stand in the file, since their kind is not known"
_UPGRADE = "upgrade it with Caffe's upgrade_net_proto_binary, and read what that writes"


def _matches(path: Path, head: bytes) -> bool:
    if head[:1] not in (b"\x0a", b"\x12", b"\x1a") and head[:2] != b"\xa2\x06":
        return False
    net = message_in(path)
    if net is None or not net.fields.keys() <= _NET_FIELDS or len(net.fields.get(1, ())) > 1:
        return False
    try:
        return any(layer.has_name for layer in _layers(net))
    except CheckpointError:
        return False


@dataclass
class _Layer:
    """One layer of either version, with torch's tensors once they were taken."""

    name: str
    type: str
    bottoms: list[str]
    tops: list[str]
    blobs: list[memoryview]
    of_convolution: Message
    of_linear: Message
    message: Message
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def has_name(self) -> bool:
        return bool(self.name and self.type and (self.bottoms or self.tops))


def _layers(net: Message) -> Iterator[_Layer]:
    for layer in net.messages(_LAYERS):
        own = layer.text(1), layer.text(2), layer.texts(3), layer.texts(4), layer.views(7)
        yield _Layer(*own, layer.message(106), layer.message(117), layer)
    for layer in net.messages(_FIRST_LAYERS):
        if 1 in layer:
            raise CheckpointError(f"a net of Caffe's first format; {_UPGRADE}")
        kind = _FIRST_TYPES.get(layer.number(5), f"type {layer.number(5)}")
        own = layer.text(4), kind, layer.texts(2), layer.texts(3), layer.views(6)
        yield _Layer(*own, layer.message(10), layer.message(17), layer)


@register_reader("caffe", matches=_matches, suffixes=(".caffemodel",))
def read_caffe(path: Path, options: ReadOptions) -> Contents:
    """Read a net's weights in its order and in torch's conventions; a Scale behind a BatchNorm becomes part of it."""
    net = Message(file_bytes(path))
    found = _Found()
    for layer in _layers(net):
        found.take(layer)
    if not found.tensors:
        raise CheckpointError("it holds no weights, as a network's description; read the .caffemodel beside it")
    check_names(found.tensors)
    notes = [f"{words}: {listed(names)}" for words, names in found.told.items()]
    return Contents(
        found.tensors,
        notes=tuple(notes),
        metadata={"net": net.text(1)},
        kinds=found.kinds,
        attributes=found.attributes,
    )


@dataclass
class _Found:
    """The tensors of the layers so far, and the last layer that writes each blob."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    told: dict[str, list[str]] = field(default_factory=dict)
    makers: dict[str, _Layer] = field(default_factory=dict)

    def take(self, layer: _Layer) -> None:
        """Add a layer, or its scale to the batch norm before it, or its activation to any layer before it."""
        before = self.makers.get(layer.bottoms[0]) if len(layer.bottoms) == 1 else None
        own = _tensors(layer, [_blob(Message(blob), layer.name) for blob in layer.blobs])
        is_scale = before is not None and (layer.type, before.type) == ("Scale", "BatchNorm")
        if before is not None and layer.type in _ACTIVATIONS:
            before.attributes["activation"] = _ACTIVATIONS[layer.type]
        if before is not None and is_scale and f"{before.name}.weight" not in self.tensors:
            self.told.setdefault(_MERGED, []).append(f"{layer.name} in {before.name}")
            layer.name, layer.attributes = before.name, before.attributes
        elif own and layer.name in self.kinds:
            raise CheckpointError(f"refused: two layers are called {layer.name!r}")
        self.makers.update(dict.fromkeys(layer.tops, layer))
        if own:
            self.tensors.update((f"{layer.name}.{short}", tensor) for short, tensor in own.items())
            self.kinds.setdefault(layer.name, _KINDS.get(layer.type, "other"))
            self.attributes[layer.name] = layer.attributes
        if "blob_0" in own:
            self.told.setdefault(_AS_IT_IS, []).append(f"{layer.name} ({layer.type})")


def _tensors(layer: _Layer, blobs: list[Tensor]) -> dict[str, Tensor]:
    """Return a layer's blobs by torch's names, and note what the layer says of itself."""
    if not blobs:
        return {}
    weight = blobs[0]
    if layer.type == "BatchNorm" and len(blobs) == 3:
        layer.attributes["eps"] = _single(layer.message.message(139), 3, 1e-5)
        scale = blobs[2].reshape(-1)[0].item()  # the sums that the file holds are of so many batches
        factor = 1 / scale if scale else 0.0
        return {"running_mean": blobs[0] * factor, "running_var": blobs[1] * factor}
    if layer.type not in _KINDS or layer.type == "BatchNorm" or len(blobs) > 2:
        return {f"blob_{number}": blob for number, blob in enumerate(blobs)}
    if layer.type in ("InnerProduct", "Embed"):
        weight = weight.reshape(weight.shape[-2:])
        weight = weight.t() if layer.of_linear.number(6) else weight
    elif _KINDS[layer.type] == "conv":
        layer.attributes |= _of_convolution(layer.of_convolution, weight.ndim - 2)
    elif layer.type == "PReLU":
        weight = weight.reshape(-1)
    if layer.type == "Bias":
        return {"bias": weight}
    return {"weight": weight} | ({"bias": blobs[1].reshape(-1)} if len(blobs) > 1 else {})


def _of_convolution(told: Message, axes: int) -> dict[str, Any]:
    """Return stride, padding, dilation and groups, each said once, for each axis, or for height and width."""

    def sides(number: int, default: int, height: int = 0) -> tuple[int, ...]:
        if height and (height in told or height + 1 in told):
            return told.number(height, default), told.number(height + 1, default)
        found = tuple(told.ints(number)) or (default,)
        return found * axes if len(found) == 1 else found

    return {
        "stride": sides(6, 1, 13),
        "padding": sides(3, 0, 9),
        "dilation": sides(18, 1),
        "groups": told.number(5, 1),
    }


def _blob(blob: Message, name: str) -> Tensor:
    """Return a blob; older files give four sides of it, whatever it is."""
    shape = blob.message(7).ints(1) if 7 in blob else [blob.number(side, 1) for side in (1, 2, 3, 4)]
    if 8 in blob:
        return tensor_of(_bytes(blob, 8, "<f8"), torch.float64, shape, name)
    if 5 not in blob and 10 in blob:
        raise CheckpointError(f"{harmless(name)!r} has packed weights; read the net that it was made from")
    return tensor_of(_bytes(blob, 5, "<f4"), torch.float32, shape, name)


def _bytes(blob: Message, number: int, dtype: str) -> memoryview:
    return blob.array(number, dtype).view(np.uint8).data


def _single(told: Message, number: int, default: float) -> float:
    """Return a number of single precision as people write it."""
    found = told.array(number, "<f4").tolist()
    return float(f"{found[-1]:.7g}") if found else default
