"""ONNX: a graph of nodes, whose initializers and constants become the layers of the nodes that use them.

The file is read as the protocol buffer that it is, so that its tensors are viewed where they lie and no library that
parses all of it stands between; field numbers are those of onnx.proto.
"""

from __future__ import annotations

import math
import re
from collections import ChainMap
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.checkpoints._onnx_layers import STANDARD, OnnxLayers
from transferkit.checkpoints._protobuf import Message, file_bytes, message_in
from transferkit.checkpoints._raw import Neighbors, tensor_of
from transferkit.checkpoints._state_dicts import check_names
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError, listed

_MODEL_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_GRAPH = 7
_MOST_NESTED = 32
_MOST_USERS = 9
_EXTERNAL = 1
_SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"  # lists the parameters by name
_HOLD_GRAPHS = ("If", "Loop", "Scan", "SequenceMap")

# onnx.TensorProto.DataType, from 1 on, in torch's words; torch has no tensors of text.
_NAMES = (
    "float32 uint8 int8 uint16 int16 int32 int64 text bool float16 float64 uint32 uint64 complex64 complex128 "
    "bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz"
)
_DTYPES = {code: getattr(torch, name) for code, name in enumerate(_NAMES.split(), 1) if name != "text"}
_RAW, _SEGMENT = 9, 3
# Fields of numbers that are not raw bytes, with their width.
_TYPED = {4: "<f4", 10: "<f8"}
_TYPED_VARINTS = (5, 7, 11)


def _matches(path: Path, head: bytes) -> bool:
    if not head or head[0] not in (0x08, 0x12, 0x3A, 0x42):  # ir_version, producer_name, graph, opset_import
        return False
    found = message_in(path)
    return (
        found is not None
        and found.fields.keys() <= _MODEL_FIELDS
        and _GRAPH in found
        and (1 in found or 8 in found)
    )


@register_reader("onnx", matches=_matches, suffixes=(".onnx",))
def read_onnx(path: Path, options: ReadOptions) -> Contents:
    """Read the weights of a graph in its order, in torch's conventions, and what its nodes say of each layer."""
    model = Message(file_bytes(path))
    parts = _Parts(Neighbors(path.parent))
    parts.read(model.message(_GRAPH), None)
    told = {entry.text(1): entry.text(2) for entry in model.message(_GRAPH).messages(16)}
    parameters = re.findall(r"target='([^']+)'", told.get(_SIGNATURE, ""))
    found = OnnxLayers(model.text(2).lower() == "pytorch", parameters, parts.graphs[0].constants)
    for node in parts.nodes:
        found.take(node)
    found.take_others(parts.graphs)
    refused = [*found.packed, *parts.sparse]
    if refused:
        raise CheckpointError(
            f"not plain tensors: {listed(refused, 4)}. Read the model that it was quantized or pruned from, or the "
            "ONNX file before that"
        )
    if not found.tensors:
        raise CheckpointError(
            f"it holds no weights, in {len(parts.nodes)} nodes: {listed(sorted({node.op for node in parts.nodes}))}"
        )
    check_names(found.tensors)
    notes = found.notes()
    if 25 in model:
        notes += [f"left out the constants within {len(model.views(25))} functions of the file's own"]
    return Contents(
        found.tensors,
        notes=tuple(notes),
        metadata=_metadata(model),
        files=(path, *parts.neighbors.opened),
        kinds=found.kinds,
        attributes=found.attributes,
    )


def _metadata(model: Message) -> dict[str, Any]:
    """Return who wrote the file, for which version of ONNX, and the texts that it carries."""
    opsets = {each.text(1) or "ai.onnx": each.number(2) for each in model.messages(8)}
    found: dict[str, Any] = {"producer": f"{model.text(2)} {model.text(3)}".strip()}
    found |= {f"opset of {domain}": version for domain, version in opsets.items()}
    return found | {entry.text(1): entry.text(2) for entry in model.messages(14)}


@dataclass(eq=False)
class Graph:
    """What the nodes of a graph can see: constants and the makers of values, also of the graphs around it."""

    constants: ChainMap[str, Constant]
    makers: ChainMap[str, Node]
    users: dict[str, list[Node]] = field(default_factory=dict)


@dataclass(eq=False)
class Constant:
    """One initializer, or the value of a Constant node; its tensor is made when it is asked for."""

    name: str
    message: Message
    neighbors: Neighbors
    initializer: bool
    used: bool = False

    @cached_property
    def shape(self) -> list[int]:
        return self.message.ints(1)

    @property
    def floating(self) -> bool:
        dtype = _DTYPES.get(self.message.number(2))
        return dtype is not None and (dtype.is_floating_point or dtype.is_complex)

    @property
    def is_one_number(self) -> bool:
        """Whether it holds one number only, once or repeated, as what a value starts with or is compared to."""
        return math.prod(self.shape) < 2 or bool((self.tensor == self.tensor.flatten()[0]).all())

    @cached_property
    def tensor(self) -> Tensor:
        """The tensor, from raw bytes, from typed fields or from a file beside this one."""
        code, proto = self.message.number(2), self.message
        dtype, shape = _DTYPES.get(code), self.shape
        if dtype is None or _SEGMENT in proto:
            raise CheckpointError(
                f"{self.name!r} has the data type {code} of ONNX, which torch has no tensors of"
            )
        if proto.number(14) == _EXTERNAL:
            place = {entry.text(1): entry.text(2) for entry in proto.messages(13)}
            size = int(place["length"]) if place.get("length") else None
            where = place.get("location", ""), int(place.get("offset") or 0), size
            return self.neighbors.tensor(*where, dtype, shape, self.name)
        if _RAW in proto:
            return tensor_of(proto.views(_RAW)[-1], dtype, shape, self.name)
        return self._typed(dtype, shape)

    def _typed(self, dtype: torch.dtype, shape: list[int]) -> Tensor:
        for number, code in _TYPED.items():
            if number in self.message:
                return tensor_of(self.message.array(number, code).view(np.uint8).data, dtype, shape, self.name)
        numbers = np.concatenate([self.message.int_array(number) for number in _TYPED_VARINTS])
        width = dtype.itemsize  # of fp16 and bfloat16 the bits stand there, as a number
        kind = torch.uint8 if dtype == torch.bool else dtype
        return tensor_of(numbers.astype(f"<i{width}").view(np.uint8).data, kind, shape, self.name).to(dtype)


class Node:
    """One node, whose attributes are read when they are asked for."""

    def __init__(self, message: Message, graph: Graph) -> None:
        self.graph = graph
        self.inputs, self.outputs = message.texts(1), message.texts(2)
        self.name, self.domain = message.text(3), message.text(7)
        self.op = {"FusedConv": "Conv", "FusedGemm": "Gemm"}.get(
            message.text(4), message.text(4)
        )  # of onnxruntime
        self._message = message

    @cached_property
    def attributes(self) -> dict[str, Message]:
        return {each.text(1): each for each in self._message.messages(5)}

    @cached_property
    def metadata(self) -> dict[str, str]:
        return {entry.text(1): entry.text(2) for entry in self._message.messages(9)}

    def ints(self, name: str) -> tuple[int, ...]:
        return tuple(self.attributes[name].ints(8)) if name in self.attributes else ()

    def number(self, name: str, default: int) -> int:
        return self.attributes[name].number(3) if name in self.attributes else default

    def real(self, name: str, default: float) -> float:
        """Return a number of single precision as people write it: 1e-05."""
        found = self.attributes[name].array(2, "<f4").tolist() if name in self.attributes else []
        return float(f"{found[-1]:.7g}") if found else default

    def texts(self, name: str) -> list[str]:
        """Return one text or several."""
        found = self.attributes.get(name)
        return [] if found is None else [*found.texts(4), *found.texts(9)]

    def constant(self, place: int) -> Constant | None:
        name = self.inputs[place] if place < len(self.inputs) else ""
        return self.graph.constants.get(name)

    def maker(self, place: int = 0) -> Node | None:
        """Return the node that makes one of the inputs."""
        return self.graph.makers.get(self.inputs[place]) if place < len(self.inputs) else None

    def users(self) -> list[Node]:
        """Return the first of the nodes that use the first output; no more of them tell anything."""
        return self.graph.users.get(self.outputs[0], [])[:_MOST_USERS] if self.outputs else []


@dataclass
class _Parts:
    """The graphs of a file and their nodes, in order."""

    neighbors: Neighbors
    graphs: list[Graph] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    sparse: list[str] = field(default_factory=list)

    def read(self, message: Message, around: Graph | None, depth: int = 0) -> None:
        """Add a graph and those in it."""
        if depth > _MOST_NESTED:
            raise CheckpointError(f"refused: graphs nested more than {_MOST_NESTED} deep")
        if around is None:
            graph = Graph(ChainMap(), ChainMap())
        else:
            graph = Graph(around.constants.new_child(), around.makers.new_child())
        self.graphs.append(graph)
        for proto in message.messages(5):
            name = proto.text(8)
            if name in graph.constants.maps[0]:
                raise CheckpointError(f"refused: two initializers are called {name!r}")
            graph.constants[name] = Constant(name, proto, self.neighbors, initializer=True)
        self.sparse += [f"{proto.message(1).text(8)} (sparse)" for proto in message.messages(15)]
        for proto in message.messages(1):
            self._add(Node(proto, graph), depth)

    def _add(self, node: Node, depth: int) -> None:
        graph = node.graph
        for name in filter(None, node.outputs):
            if graph.makers.maps[0].setdefault(name, node) is not node:
                raise CheckpointError(f"refused: two nodes make the value {name!r}")
        for name in dict.fromkeys(node.inputs):
            graph.users.setdefault(name, []).append(node)
        if node.op == "Constant" and node.outputs:
            self._add_constant(node, node.outputs[0])
            return
        self.nodes.append(node)
        if node.op in _HOLD_GRAPHS or node.domain not in STANDARD:
            for attribute in node.attributes.values():
                for inner in (*attribute.messages(6), *attribute.messages(11)):
                    self.read(inner, graph, depth + 1)

    def _add_constant(self, node: Node, name: str) -> None:
        self.sparse += [f"{name} (sparse)"] * ("sparse_value" in node.attributes)
        if "value" in node.attributes:
            value = node.attributes["value"].message(5)
            node.graph.constants[name] = Constant(name, value, self.neighbors, initializer=False)
