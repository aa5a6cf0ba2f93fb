"""The layers of an ONNX graph: which inputs of its nodes are weights, in torch's axes and order, and their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from transferkit.checkpoints._onnx_nodes import (
    Weight,
    activation_after,
    attributes_of,
    has_outputs_last,
    not_torchs,
    weight_of,
    with_bias,
)
from transferkit.checkpoints._state_dicts import LONGEST_NAME
from transferkit.errors import listed
from transferkit.layers import split_key

if TYPE_CHECKING:
    from transferkit.checkpoints._onnx import Constant, Graph, Node

STANDARD = ("", "ai.onnx")
_WEIGHT_BIAS = {1: "weight", 2: "bias"}
_NORMS = ("Instance", "Layer", "Group", "RMS", "SimplifiedLayer")

_W_R_B = {1: "W", 2: "R", 3: "B"}

# The kind of a node, and torch's names of its inputs by place.
_ROLES: dict[str, tuple[str, dict[int, str]]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), ("conv", _WEIGHT_BIAS)),
    "Gemm": ("linear", _WEIGHT_BIAS),
    "MatMul": ("linear", {1: "weight"}),
    "BatchNormalization": ("norm", _WEIGHT_BIAS | {3: "running_mean", 4: "running_var"}),
    **dict.fromkeys((f"{norm}Normalization" for norm in _NORMS), ("norm", _WEIGHT_BIAS)),
    "Mul": ("norm", {0: "weight", 1: "weight"}),  # where it ends a norm that stands there in parts
    "PRelu": ("other", {1: "weight"}),
    "Gather": ("embedding", {0: "weight"}),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), ("recurrent", _W_R_B)),
}
# torch's gates, each by its place in ONNX's order: iofc, zrh.
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_PACKED = re.compile(
    r"QLinear|DequantizeLinear|ConvInteger|MatMulInteger|MatMulNBits|QGemm|QAttention|GatherBlockQ|DynamicQuantize(?!Linear)"
)

# Names that an exporter made up; names of torch's parameters; and how others write a layer's name and a tensor's.
_MADE_UP = re.compile(r"|/.*|ConvBnFusion_.*|\d+|val_\d+|.*::.*|.*_output_\d+", re.DOTALL)
_TORCHS = re.compile(r"(\w+\.)*(\w+_)?(weight|bias|running_mean|running_var)(_[ih]h_l\d+(_reverse)?)?")
_OTHERS = re.compile(
    r"(.+?)[._/](weights?|bias(es)?|kernel|gamma|beta|(moving|running)_(mean|var|variance)|scale|[wbWRB](_0)?)"
    r"(/Read|/read|/ReadVariableOp|/resource|:0)*"
)
_WORDS = {"weight", "bias", "running_mean", "running_var"}
_FOLDED_NAMES = re.compile(r"merged_input|fused_bn|batch_?norm", re.IGNORECASE)
_SCOPES = "pkg.torch.onnx.name_scopes"  # of each node: ['', 'mlp', 'mlp.0', 'linear']

# What is to be said of layers or constants.
_FOLDED = "the exporter folded batch norms into layers, whose weight and bias are now of both"
_INEXACT = "kept in ONNX's own order, since torch's layer computes another function"
_AS_IT_IS = "kept as they stand in the file, since no node of a known kind uses them"
_LEFT_OUT = "left out constants that are no weights (shapes, indices, single numbers)"


class OnnxLayers:
    """Collects tensors by torch's names, kinds and attributes by layer, as nodes come in the order of the graph.

    Args:
        is_torch: Whether torch exported it, so that names are those of a state dict unless they were made up.
        parameters: The names of a state dict, where the exporter left a list.
        initializers: The names of all initializers.
    """

    def __init__(self, is_torch: bool, parameters: Iterable[str], initializers: Iterable[str]) -> None:
        self.is_torch = is_torch
        self.parameters = frozenset(parameters)
        self.has_names = any(map(_TORCHS.fullmatch, initializers))  # the first exporters had only numbers
        self.tensors: dict[str, Tensor] = {}
        self.kinds: dict[str, str] = {}
        self.attributes: dict[str, dict[str, Any]] = {}
        self.packed: list[str] = []
        self._origins: dict[str, Any] = {}  # what each tensor was made of
        self._scopes: dict[str, str] = {}  # the module that used each parameter first
        self._reordered: dict[Any, list[Tensor]] = {}
        self._numbers: Counter[str] = Counter()  # layers of one name
        self._stacks: dict[str, dict[Any, int]] = {}  # recurrent layers of one module, by what each was made of
        self._told: dict[str, list[str]] = {}  # layers or constants by what is to be said of them

    def take(self, node: Node) -> None:
        """Take the weights of one node."""
        if _PACKED.match(node.op):
            places = range(1 if node.op == "DequantizeLinear" else len(node.inputs))
            constants = [found for place in places if (found := node.constant(place)) and any(found.shape)]
            self.packed += [f"{constant.name} ({node.op})" for constant in constants]
        known = node.domain in (*STANDARD, "com.microsoft")
        kind, shorts = _ROLES.get(node.op if known else "", ("", {}))
        weights = {short: weight for place, short in shorts.items() if (weight := weight_of(node, place))}
        if kind == "recurrent" and "W" in weights and "R" in weights:
            self._take_recurrent(node, weights)
        elif "weight" in weights and (attributes := attributes_of(node, weights["weight"])) is not None:
            self._take(node, kind, weights, attributes)

    def _take(self, node: Node, kind: str, found: dict[str, Weight], attributes: dict[str, Any]) -> None:
        last = with_bias(node, found)
        keys = self._keys(node, found)
        weight = found["weight"]
        is_own = self.is_torch and weight.perm is None and self._own(weight.names, "weight") is not None
        is_turned = has_outputs_last(node)
        if is_turned and is_own:  # the module's own parameter, which it multiplies as it is
            attributes["transposed"], is_turned = True, False
        is_flat = node.op in ("PRelu", "GroupNormalization") or "num_groups" in attributes
        parts = {}
        for short, weight in found.items():
            tensor = weight.tensor.reshape(-1) if is_flat or short == "bias" else weight.tensor
            parts[keys[short]] = (tensor.t() if is_turned and short == "weight" else tensor, weight.origin)
        if self._is_folded(node, found):
            attributes["batch_norm_folded"] = True
        self._put(node, parts, kind, attributes | activation_after(last))

    def _put(
        self, node: Node, parts: Mapping[str, tuple[Tensor, Any]], kind: str, attributes: dict[str, Any]
    ) -> str:
        """Add a layer; what is there already stays, and others of its name get one of their own."""
        layer = split_key(next(iter(parts)))[0]
        keys = {key: key for key in parts}
        if any(self._origins.get(key, origin) != origin for key, (_, origin) in parts.items()):
            self._numbers[layer] += 1
            layer = f"{layer or node.op}_{self._numbers[layer]}"
            keys = {key: f"{layer}.{split_key(key)[1]}" for key in parts}
        for key, (tensor, origin) in parts.items():
            self.tensors.setdefault(keys[key], tensor)
            self._origins[keys[key]] = origin
        if "batch_norm_folded" in attributes and layer not in self.attributes:
            self._told.setdefault(_FOLDED, []).append(layer)
        if not _is_called(next(iter(parts)), {"in_proj"}):  # attention is told by its tensors
            self.kinds.setdefault(layer, kind)
        self.attributes.setdefault(layer, attributes)
        return layer

    # Names.

    def _own(self, names: Sequence[str], short: str) -> str | None:
        """Return the key that the exporter's own name of a parameter tells, if one does."""
        for name in (each for each in names if len(each) <= LONGEST_NAME):
            if self.is_torch:
                name = re.sub(r"\.weight_bias$", ".bias", name)  # made when a norm was folded in
                if name in self.parameters or (not self.parameters and self._is_named(name, name == names[-1])):
                    return name
            elif _TORCHS.fullmatch(name):
                return name
            elif other := _OTHERS.fullmatch(name):
                return f"{_module_of_path(other[1].split('/'))}.{short}"
        return None

    def _is_named(self, name: str, is_constant: bool) -> bool:
        """Whether a name is a parameter's; one on the way from a constant may be that of an operator's result."""
        return not _MADE_UP.fullmatch(name) and bool(is_constant or _TORCHS.fullmatch(name))

    def _keys(self, node: Node, found: Mapping[str, Weight]) -> dict[str, str]:
        """Return the state-dict key of each weight: its own, one beside another's of the layer, or by the node."""
        scope = _scope(node, self.is_torch)
        own = {}
        for short, weight in found.items():
            key = self._own(weight.names, short)
            others = _WORDS - {short} if short in _WORDS else ()  # of equal tensors an exporter keeps one name
            if key is not None and not _is_called(key, others):
                own[short] = self._elsewhere(key, scope, node)
        if not own:
            module = scope if scope is not None else self._module_of(node, found)
            return {short: f"{module}.{short}" if module else short for short in found}
        known, key = next(iter(own.items()))
        return {short: own.get(short) or _beside(key, known, short) for short in found}

    def _module_of(self, node: Node, found: Mapping[str, Weight]) -> str:
        """Return the module that the path of a node, or of a weight in TensorFlow's words, tells."""
        weights = [] if self.is_torch else [weight.names[-1] for weight in found.values()]
        paths = [path for path in (*weights, node.name) if "/" in path and len(path) <= LONGEST_NAME]
        if not paths:
            return node.name or node.op
        parts = re.sub(r"(/Read|/read|/ReadVariableOp|/resource|:0)+$", "", paths[0]).split("/")[:-1]
        return _module_of_path(parts) or node.op

    def _elsewhere(self, key: str, scope: str | None, node: Node) -> str:
        """Return the key of a parameter in the module that uses it, where another one used it before."""
        if scope is None:
            return key
        layer, short = split_key(key)
        first = self._scopes.setdefault(key, scope)
        if re.sub(r"_\d+(?=\.|$)", "", scope) == layer:  # the module once more
            return key
        if node.op == "Gather" and scope and not f"{layer}.".startswith(f"{scope}."):
            return f"{scope}.{short}"
        if scope != first and f"{layer}.".startswith(f"{first}."):
            return scope + key[len(first) :]
        return key

    def _is_folded(self, node: Node, found: Mapping[str, Weight]) -> bool:
        """Whether the exporter computed weights of a convolution's and those of a batch norm behind it."""
        if not node.op.startswith("Conv"):
            return False
        if not self.is_torch:
            return any(_FOLDED_NAMES.search(name) for weight in found.values() for name in weight.names)
        if "batch_norm" in node.metadata.get(_SCOPES, "").rpartition(",")[2]:
            return True
        names = [weight.names[-1] for short, weight in found.items() if self._own(weight.names, short) is None]
        return len(names) == 2 and (self.has_names or "::" in names[0])

    # Recurrent layers.

    def _take_recurrent(self, node: Node, found: dict[str, Weight]) -> None:
        keys = self._keys(node, found)
        attributes: dict[str, Any] = {}
        if (direction := (node.texts("direction") or ["forward"])[0]) == "reverse":
            attributes["direction"] = direction
        if node.op == "RNN":
            attributes["nonlinearity"] = ([each.lower() for each in node.texts("activations")] or ["tanh"])[0]
        if why := not_torchs(node):
            kept = {keys[short]: (weight.tensor, weight.origin) for short, weight in found.items()}
            layer = self._put(node, kept, "recurrent", attributes)
            self._told.setdefault(_INEXACT, []).append(f"{layer} ({node.op}, {why})")
            return
        prefix = keys["W"].rpartition(".")[0]
        stack = self._stacks.setdefault(prefix, {})
        number = stack.setdefault(found["W"].origin, len(stack)) if self.is_torch else 0
        parts: dict[str, tuple[Tensor, Any]] = {}
        for weight, name, tensors in self._torchs_parts(node, found):
            for tensor, reverse in zip(tensors, ("", "_reverse"), strict=False):
                parts[f"{prefix}.{name}_l{number}{reverse}".lstrip(".")] = tensor, (weight.origin, reverse)
        self._put(node, parts, "recurrent", attributes)

    def _torchs_parts(self, node: Node, found: dict[str, Weight]) -> Iterator[tuple[Weight, str, list[Tensor]]]:
        """Yield weights with torch's name for each and the tensors of each direction."""
        yield found["W"], "weight_ih", self._in_torchs_order(node, found["W"], 1)
        yield found["R"], "weight_hh", self._in_torchs_order(node, found["R"], 1)
        if "B" in found:
            both = self._in_torchs_order(node, found["B"], 2)
            yield found["B"], "bias_ih", [each[0] for each in both]
            yield found["B"], "bias_hh", [each[1] for each in both]

    def _in_torchs_order(self, node: Node, weight: Weight, halves: int) -> list[Tensor]:
        """Return each direction's gates in torch's order, made once for each constant."""
        key = (weight.origin, node.op, halves)
        if key not in self._reordered:
            order = _GATES[node.op]
            tensor = weight.tensor  # (directions, halves * gates * hidden, ...)
            gates = tensor.reshape(len(tensor), halves, len(order), -1, *tensor.shape[2:])
            gates = gates.index_select(2, torch.tensor(order)).flatten(2, 3)
            self._reordered[key] = list(gates if halves == 2 else gates.squeeze(1))
        return self._reordered[key]

    # What no node of a known kind uses, and what is told of all.

    def take_others(self, graphs: Iterable[Graph]) -> None:
        """Take the constants that are left: parameters under their own names, others with more than one number."""
        for graph in graphs:
            for constant in graph.constants.maps[0].values():
                if not constant.used:
                    self._take_other(graph, constant)

    def _take_other(self, graph: Graph, constant: Constant) -> None:
        key, users = constant.name, graph.users.get(constant.name, [])
        told = "." in key or key in self.parameters or constant.floating  # of shapes no one tells
        if not (constant.initializer and self.is_torch and told and self._own([key], "") is not None):
            if not constant.floating or constant.is_one_number:
                self._told.setdefault(_LEFT_OUT, []).append(key)
                return
            scope = _scope(users[0], self.is_torch) if users else ""
            key = ".".join(filter(None, [scope, key.removesuffix(":0").strip("/").replace("/", ".")]))
            self._told.setdefault(_AS_IT_IS, []).append(key)
        self._numbers[key] += key in self.tensors
        self.tensors[f"{key}_{self._numbers[key]}" if key in self.tensors else key] = constant.tensor

    def notes(self) -> list[str]:
        """Return what a user should know, a sentence each."""
        return [f"{words}: {listed(names)}" for words, names in self._told.items()]


# Names of modules.


def _scope(node: Node, is_torch: bool) -> str | None:
    """Return the module of a node where torch's exporter says it: in the metadata, or by the path that names it."""
    scopes: list[str] = re.findall(r"'([^']*)'", node.metadata.get(_SCOPES, ""))
    if len(scopes) > 1:
        return scopes[-2]
    path = node.name.split("/")
    return (_module_of_path(path[:-1]) or None) if is_torch and len(path) > 2 else None


def _module_of_path(parts: list[str]) -> str:
    """Return a dotted name of a path, in which the parts of a sequence repeat its name: a/a.0 is a.0."""
    names: list[str] = []
    for part in filter(None, parts):
        if part in ("StatefulPartitionedCall", "PartitionedCall"):
            continue
        if names and part.startswith(f"{names[-1]}."):
            names[-1] = part
        else:
            names.append(part)
    return ".".join(names)


def _is_called(key: str, words: Collection[str]) -> bool:
    last = split_key(key)[1]
    return any(word in last for word in words)


def _beside(key: str, known: str, short: str) -> str:
    """Return the key of a tensor beside a known one: in_proj_bias -> in_proj_weight."""
    layer, last = split_key(key)
    name = last.replace(known, short) if known in last else short
    return f"{layer}.{name}" if layer else name
