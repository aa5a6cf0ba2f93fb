"""The layers of an ONNX graph: which inputs of a node are weights, in torch's axes and gate order, and their names."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from transferkit.errors import listed
from transferkit.layers import split_key

if TYPE_CHECKING:
    from transferkit.checkpoints._onnx import Constant, Graph, Node

STANDARD = ("", "ai.onnx")
_WEIGHT_BIAS = {1: "weight", 2: "bias"}

# The kind of a node, and torch's names of its inputs by place.
_ROLES: dict[str, tuple[str, dict[int, str]]] = {
    "Conv": ("conv", _WEIGHT_BIAS),
    "ConvTranspose": ("conv", _WEIGHT_BIAS),
    "Gemm": ("linear", _WEIGHT_BIAS),
    "MatMul": ("linear", {1: "weight"}),
    "BatchNormalization": ("norm", _WEIGHT_BIAS | {3: "running_mean", 4: "running_var"}),
    "InstanceNormalization": ("norm", _WEIGHT_BIAS),
    "LayerNormalization": ("norm", _WEIGHT_BIAS),
    "GroupNormalization": ("norm", _WEIGHT_BIAS),
    "RMSNormalization": ("norm", {1: "weight"}),
    "SimplifiedLayerNormalization": ("norm", {1: "weight"}),
    "PRelu": ("other", {1: "weight"}),
    "Gather": ("embedding", {0: "weight"}),
    "Mul": ("norm", {0: "weight", 1: "weight"}),  # where it ends a norm that stands there in parts
    "LSTM": ("recurrent", {1: "W", 2: "R", 3: "B"}),
    "GRU": ("recurrent", {1: "W", 2: "R", 3: "B"}),
    "RNN": ("recurrent", {1: "W", 2: "R", 3: "B"}),
}
# torch's gates, each by its place in ONNX's order: iofc, zrh.
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_USUAL_ACTIVATIONS = {
    "LSTM": [["sigmoid", "tanh", "tanh"]],
    "GRU": [["sigmoid", "tanh"]],
    "RNN": [["tanh"], ["relu"]],
}
_PACKED = re.compile(
    r"QLinear|DequantizeLinear|ConvInteger|MatMulInteger|MatMulNBits|QGemm|QAttention|GatherBlockQ|DynamicQuantize(?!Linear)"
)
_ACTIVATIONS = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "LeakyRelu": "leaky_relu",
    "Elu": "elu",
    "Selu": "selu",
    "Gelu": "gelu",
    "Softplus": "softplus",
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "HardSwish": "hardswish",
    "HardSigmoid": "hardsigmoid",
    "Mish": "mish",
}
_LONGEST_PATH = 16  # nodes between a layer and what tells something of it

# Names that an exporter made up; names of torch's parameters; and how others write a layer's name and a tensor's.
_MADE_UP = re.compile(r"|/.*|\d+|val_\d+|.*::.*|.*_output_\d+", re.DOTALL)
_TORCHS = re.compile(r"(\w+\.)*(\w+_)?(weight|bias|running_mean|running_var)(_[ih]h_l\d+(_reverse)?)?")
_OTHERS = re.compile(
    r"(.+?)[._/](weights?|bias(es)?|kernel|gamma|beta|(moving|running)_(mean|var|variance)|scale|[wbWRB](_0)?)"
    r"((/Read|/read|/ReadVariableOp|/resource)?(:0)?)*"
)
_FOLDED_NAMES = re.compile(r"merged_input|fused_bn|batch_?norm", re.IGNORECASE)
_SCOPES = (
    "pkg.torch.onnx.name_scopes"  # what torch's exporter says of each node: ['', 'mlp', 'mlp.0', 'linear']
)
_BIASES_AFTER = ("MatMul", "Mul", "Conv", "ConvTranspose")

# What is to be said of layers or constants.
_FOLDED = "the exporter folded batch norms into layers, whose weight and bias are now of both: {names}"
_INEXACT = "kept in ONNX's own order, since torch's layer computes another function: {names}"
_AS_IT_IS = "kept as they stand in the file, since no node of a known kind uses them: {names}"
_LEFT_OUT = "left out {count} constants that are no weights (shapes, indices, single numbers): {names}"


@dataclass
class _Weight:
    """A constant that is a weight, with the names that it has on its way to the node."""

    names: list[str]
    constant: Constant
    perm: tuple[int, ...] | None = None

    @property
    def origin(self) -> tuple[int, Any]:
        return id(self.constant), self.perm

    @property
    def shape(self) -> list[int]:
        shape = self.constant.shape
        return shape if self.perm is None else [shape[axis] for axis in self.perm]

    @property
    def tensor(self) -> Tensor:
        self.constant.used = True
        tensor = self.constant.tensor
        return tensor if self.perm is None else tensor.permute(self.perm)


class OnnxLayers:
    """Collects tensors by torch's names, kinds and attributes by layer, as nodes come in the order of the graph.

    Args:
        is_torch: Whether torch exported it, so that names are those of a state dict unless they were made up.
        parameters: The names of a state dict, where the exporter left a list.
    """

    def __init__(self, is_torch: bool, parameters: Collection[str] = ()) -> None:
        self.is_torch = is_torch
        self.parameters = frozenset(parameters)
        self.tensors: dict[str, Tensor] = {}
        self.kinds: dict[str, str] = {}
        self.attributes: dict[str, dict[str, Any]] = {}
        self.packed: list[str] = []
        self._origins: dict[str, Any] = {}  # what each tensor was made of
        self._scopes: dict[str, str] = {}  # the module that used each parameter first
        self._reordered: dict[Any, list[Tensor]] = {}
        self._told: dict[str, list[str]] = {}  # layers or constants by what is to be said of them

    def take(self, node: Node) -> None:
        """Take the weights of one node."""
        if _PACKED.match(node.op):
            places = [0] if node.op == "DequantizeLinear" else range(len(node.inputs))
            self.packed += [
                f"{found.name} ({node.op})"
                for place in places
                if (found := node.constant(place)) and any(found.shape)
            ]
        kind, places = (
            _ROLES.get(node.op, ("", {})) if node.domain in (*STANDARD, "com.microsoft") else ("", {})
        )
        found = {short: weight for place, short in places.items() if (weight := _weight(node, place))}
        if kind == "recurrent" and "W" in found and "R" in found:
            self._take_recurrent(node, found)
        elif "weight" in found and (attributes := _attributes(node, found)) is not None:
            self._take(node, kind, found, attributes)

    def _take(self, node: Node, kind: str, found: dict[str, _Weight], attributes: dict[str, Any]) -> None:
        last = _with_bias(node, found)
        keys = self._keys(node, found)
        is_own = self.is_torch and not _MADE_UP.fullmatch(found["weight"].names[0])
        if node.op == "MatMul" or (node.op == "Gemm" and not node.int("transB", 0)):
            attributes |= (
                {"transposed": True} if is_own else {}
            )  # the module's parameter is multiplied as it is
            is_turned = not is_own
        else:
            is_turned = False
        is_flat = node.op in ("PRelu", "GroupNormalization") or "num_groups" in attributes
        parts = {}
        for short, weight in found.items():
            tensor = weight.tensor.reshape(-1) if is_flat or short == "bias" else weight.tensor
            parts[keys[short]] = (tensor.t() if is_turned and short == "weight" else tensor, weight.origin)
        if self._is_folded(node, found):
            attributes["batch_norm_folded"] = True
        self._put(node, parts, kind, attributes | _activation(last))

    def _put(
        self, node: Node, parts: Mapping[str, tuple[Tensor, Any]], kind: str, attributes: dict[str, Any]
    ) -> str:
        """Add a layer; what is there already stays, and others of its name get one of their own."""
        layer = first = split_key(next(iter(parts)))[0]
        keys = {key: key for key in parts}
        number = 0
        while any(self._origins.get(new, parts[key][1]) != parts[key][1] for key, new in keys.items()):
            number += 1
            layer = f"{first or node.op}_{number}"
            keys = {key: f"{layer}.{split_key(key)[1]}" for key in parts}
        for key, (tensor, origin) in parts.items():
            self.tensors.setdefault(keys[key], tensor)
            self._origins[keys[key]] = origin
        if "batch_norm_folded" in attributes and layer not in self.attributes:
            self._told.setdefault(_FOLDED, []).append(layer)
        self.kinds.setdefault(layer, kind)
        self.attributes.setdefault(layer, attributes)
        return layer

    # Names.

    def _own(self, names: Iterable[str], short: str) -> str | None:
        """Return the key that the exporter's own name of a parameter tells, if one does."""
        for name in names:
            if self.is_torch:
                name = re.sub(
                    r"\.weight_bias$", ".bias", name
                )  # where there was none before a norm was folded in
                if name in self.parameters or not (self.parameters or _MADE_UP.fullmatch(name)):
                    return name
            elif _TORCHS.fullmatch(name):
                return name
            elif other := _OTHERS.fullmatch(name):
                return f"{_module_of_path(other[1].split('/'))}.{short}"
        return None

    def _keys(self, node: Node, found: Mapping[str, _Weight]) -> dict[str, str]:
        """Return the state-dict key of each weight: its own, one beside another's of the layer, or by the node."""
        scope = _scope(node, self.is_torch)
        own = {short: key for short, weight in found.items() if (key := self._own(weight.names, short))}
        own = {short: self._elsewhere(key, scope, node) for short, key in own.items()}
        if not own:
            module = scope if scope is not None else self._module_of(node, found)
            return {short: f"{module}.{short}" if module else short for short in found}
        known, key = next(iter(own.items()))
        return {short: own.get(short) or _beside(key, known, short) for short in found}

    def _module_of(self, node: Node, found: Mapping[str, _Weight]) -> str:
        """Return the module that the path of a node, or of a weight in TensorFlow's words, tells."""
        weights = [] if self.is_torch else [weight.names[-1] for weight in found.values()]
        paths = [path for path in (*weights, node.name) if "/" in path]
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

    def _is_folded(self, node: Node, found: Mapping[str, _Weight]) -> bool:
        """Whether the exporter computed weights of a convolution's and those of a batch norm behind it."""
        if not node.op.startswith("Conv"):
            return False
        if not self.is_torch:
            return any(_FOLDED_NAMES.search(name) for weight in found.values() for name in weight.names)
        if "batch_norm" in node.metadata.get(_SCOPES, "").rpartition(",")[2]:
            return True
        made_up = [short for short, weight in found.items() if self._own(weight.names, short) is None]
        return len(made_up) == 2

    # Recurrent layers.

    def _take_recurrent(self, node: Node, found: dict[str, _Weight]) -> None:
        keys = self._keys(node, found)
        attributes: dict[str, Any] = {}
        if (direction := (node.texts("direction") or ["forward"])[0]) == "reverse":
            attributes["direction"] = direction
        if node.op == "RNN":
            attributes["nonlinearity"] = ([each.lower() for each in node.texts("activations")] or ["tanh"])[0]
        if why := _not_torchs(node):
            parts = {keys[short]: (weight.tensor, weight.origin) for short, weight in found.items()}
            layer = self._put(node, parts, "recurrent", attributes)
            self._told.setdefault(_INEXACT, []).append(f"{layer} ({node.op}, {why})")
            return
        prefix = keys["W"].rpartition(".")[0]
        number = 0  # torch's layers one above the other are nodes of one module
        while True:
            parts = {
                ".".join(filter(None, [prefix, f"{name}_l{number}{reverse}"])): (
                    tensor,
                    (weight.origin, reverse),
                )
                for weight, name, tensors in self._torchs_parts(node, found)
                for tensor, reverse in zip(tensors, ("", "_reverse"), strict=False)
            }
            if all(self._origins.get(key, origin) == origin for key, (_, origin) in parts.items()):
                break
            number += 1
        self._put(node, parts, "recurrent", attributes)

    def _torchs_parts(
        self, node: Node, found: dict[str, _Weight]
    ) -> Iterator[tuple[_Weight, str, list[Tensor]]]:
        """Yield weights with torch's name for each and the tensors of each direction."""
        yield found["W"], "weight_ih", self._in_torchs_order(node, found["W"], 1)
        yield found["R"], "weight_hh", self._in_torchs_order(node, found["R"], 1)
        if "B" in found:
            both = self._in_torchs_order(node, found["B"], 2)
            yield found["B"], "bias_ih", [each[0] for each in both]
            yield found["B"], "bias_hh", [each[1] for each in both]

    def _in_torchs_order(self, node: Node, weight: _Weight, halves: int) -> list[Tensor]:
        """Return each direction's gates in torch's order, made once for each constant."""
        key = (weight.origin, node.op, halves)
        if key not in self._reordered:
            order = _GATES[node.op]
            gates = weight.tensor.unflatten(1, (halves, len(order), -1))
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
        name, users = constant.name, graph.users.get(constant.name, [])
        if constant.initializer and self.is_torch and self._own([name], "") is not None:
            self.tensors.setdefault(name, constant.tensor)
        elif not constant.floating or constant.is_one_number:
            self._told.setdefault(_LEFT_OUT, []).append(name)
        else:
            scope = _scope(users[0], self.is_torch) if users else ""
            key = ".".join(filter(None, [scope, name.removesuffix(":0").strip("/").replace("/", ".")]))
            self.tensors.setdefault(key, constant.tensor)
            self._told.setdefault(_AS_IT_IS, []).append(key)

    def notes(self) -> list[str]:
        """Return what a user should know, a sentence each."""
        return [words.format(count=len(names), names=listed(names)) for words, names in self._told.items()]


def _weight(node: Node, place: int) -> _Weight | None:
    """Return an input that is a constant, also by way of transposes and casts."""
    if place >= len(node.inputs):
        return None
    graph, name, names, perm = node.graph, node.inputs[place], [], None
    for _ in range(_LONGEST_PATH):
        names.append(name)
        if (constant := graph.constants.get(name)) is not None:
            return _Weight(names, constant, perm)
        maker = graph.makers.get(name)
        if maker is None or maker.op not in ("Identity", "Cast", "Transpose") or not maker.inputs:
            return None
        if maker.op == "Transpose":
            own = maker.ints("perm")
            perm = own if perm is None else tuple(own[axis] for axis in perm)
        name = maker.inputs[0]
    return None


def _with_bias(node: Node, found: dict[str, _Weight]) -> Node:
    """Add the bias that an addition after the node adds, if it has none of its own; return the last of them."""
    channels = _channels(node, found["weight"])
    users = node.users()
    reshaped = node.op == "MatMul" and len(users) == 1 and users[0].op == "Reshape"
    before = users[0] if reshaped else node
    users = before.users()
    if "bias" in found and math.prod(found["bias"].shape) != channels:
        del found["bias"]
    elif "bias" not in found and len(users) == 1 and users[0].op == "Add" and node.op in _BIASES_AFTER:
        bias = _weight(users[0], int(users[0].inputs[0] == before.outputs[0]))
        behind = len(found["weight"].shape) - 2 if node.op.startswith("Conv") else 0
        fits = bias is not None and (
            bias.shape == found["weight"].shape
            if node.op == "Mul"
            else math.prod(bias.shape) == channels
            and (reshaped or bias.shape[len(bias.shape) - behind - 1 :][:1] == [channels])
        )
        if bias is not None and fits:
            found["bias"] = bias
            return users[0]
    return node


def _channels(node: Node, weight: _Weight) -> int:
    """Return how many channels come out of a node."""
    shape = weight.shape
    if node.op == "ConvTranspose":
        return shape[1] * node.int("group", 1)
    return shape[-1] if node.op == "MatMul" or (node.op == "Gemm" and not node.int("transB", 0)) else shape[0]


# What a node says of its layer.


def _attributes(node: Node, found: dict[str, _Weight]) -> dict[str, Any] | None:
    """Return what a node says of its layer beside its weights, ``None`` where it is no layer."""
    weight = found["weight"]
    if node.op.startswith("Conv"):
        return _of_convolution(node, len(weight.shape) - 2)
    if node.op in ("MatMul", "Gemm"):
        if len(weight.shape) != 2 or node.int("transA", 0):
            return None
        scales = {name: value for name in ("alpha", "beta") if (value := node.float(name, 1.0)) != 1}
        return scales | _flatten(node)
    if node.op == "Gather":
        is_table = node.int("axis", 0) == 0 and len(weight.shape) == 2 and weight.constant.floating
        return {} if is_table else None
    if node.op == "Mul":
        return _of_norm_in_parts(node)
    if node.op == "InstanceNormalization" and any(
        _of_norm_in_parts(mul) for mul in _users_after(node, "Reshape")
    ):
        return None
    return {} if node.op == "PRelu" else _of_norm(node)


def _of_norm(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {"eps": node.float("epsilon", 1e-5)}
    if node.op == "BatchNormalization":
        found["momentum"] = round(1 - node.float("momentum", 0.9), 7)
    if node.op == "GroupNormalization":
        found["num_groups"] = node.int("num_groups", 1)
    return found


def _of_norm_in_parts(node: Node) -> dict[str, Any] | None:
    """Return the attributes of a layer or group norm that ends in this multiplication, of operators before both."""
    for place in (0, 1):
        maker = node.maker(place)
        if maker is None or node.op != "Mul":
            continue
        before = maker.maker(int(maker.op == "Div"))
        if before is not None and (maker.op, before.op) == ("Reshape", "InstanceNormalization"):
            scale = before.constant(1)
            return _of_norm(before) | {"num_groups": math.prod(scale.shape) if scale else None}
        if before is not None and (maker.op, before.op) == ("Div", "Sqrt"):
            plus = before.maker()
            eps = plus and (plus.constant(1) or plus.constant(0))
            return {"eps": float(f"{eps.tensor.item():.7g}")} if eps and not math.prod(eps.shape) > 1 else {}
    return None


def _users_after(node: Node, op: str) -> list[Node]:
    """Return the nodes that use what an operator makes of a node's output."""
    return [user for each in node.users() if each.op == op for user in each.users()]


def _of_convolution(node: Node, axes: int) -> dict[str, Any]:
    ones = (1,) * axes
    found = {
        "stride": node.ints("strides") or ones,
        "padding": _padding(node, axes),
        "dilation": node.ints("dilations") or ones,
        "groups": node.int("group", 1),
    }
    if node.op == "ConvTranspose":
        found["output_padding"] = node.ints("output_padding") or (0,) * axes
    return found


def _padding(node: Node, axes: int) -> Any:
    """Return the padding of each axis, or pairs of before and after where these differ."""
    automatic = (node.texts("auto_pad") or ["NOTSET"])[0]
    if automatic.startswith("SAME"):
        return {"SAME_UPPER": "same"}.get(automatic, automatic.lower())
    pads = node.ints("pads") or (0,) * (2 * axes)
    before, after = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    return before if before == after else tuple(zip(before, after, strict=False))


def _activation(node: Node) -> dict[str, Any]:
    """Return the activation that alone uses a node's output."""
    users = node.users()
    ops = sorted(user.op for user in users)
    if ops == ["Mul", "Sigmoid"]:
        return {"activation": "silu"}
    if any(user.op == "Erf" for user in _users_after(node, "Div")):
        return {"activation": "gelu"}
    if len(users) != 1:
        return {}
    user = users[0]
    if user.op == "Clip":
        bounds = [user.constant(place) for place in (1, 2)]
        ends = [each.tensor.item() if each and not math.prod(each.shape) > 1 else None for each in bounds]
        ends = [
            user.float(name, 0) if name in user.attributes else end for name, end in zip(("min", "max"), ends)
        ]
        return {"activation": "relu6"} if ends == [0, 6] else {}
    if user.op == "LeakyRelu":
        return {"activation": "leaky_relu", "negative_slope": user.float("alpha", 0.01)}
    return {"activation": _ACTIVATIONS[user.op]} if user.op in _ACTIVATIONS else {}


def _flatten(node: Node) -> dict[str, Any]:
    """Return (H, W, C) of a map whose channels were put last before it was made flat for a linear layer."""
    flat, maker = False, node.maker()
    for _ in range(_LONGEST_PATH):
        if maker is None:
            return {}
        if maker.op == "Transpose":
            rank = len(maker.ints("perm"))
            if not flat or rank < 3 or maker.ints("perm") != (0, *range(2, rank), 1):
                return {}
            channels, size = _channels_before(maker), _weight(node, 1)
            if not channels or size is None:
                return {}
            inputs = math.prod(size.shape) // _channels(node, size)
            return {"flatten": _map(maker, inputs, channels)}
        flat = flat or maker.op in ("Reshape", "Flatten")
        if maker.op not in ("Reshape", "Flatten", "Identity", "Dropout", "Cast", *_ACTIVATIONS):
            return {}
        maker = maker.maker()
    return {}


def _map(transpose: Node, inputs: int, channels: int) -> tuple[int, ...]:
    """Return the sides of the map as far as the file tells them: their order alone decides that of the columns."""
    sides = transpose.graph.shapes.get(transpose.inputs[0], [])[2:]
    if sides and math.prod(sides) * channels == inputs and min(sides) > 0:
        return (*sides, channels)
    return (inputs // channels, 1, channels)


def _channels_before(node: Node) -> int:
    """Return how many channels a map has, by what is said of it or by the convolution that made it."""
    for _ in range(_LONGEST_PATH):
        shape = node.graph.shapes.get(node.inputs[0], []) if node.inputs else []
        if len(shape) > 1 and shape[1] > 0:
            return shape[1]
        maker = node.maker()
        if maker is None:
            return 0
        if maker.op in ("Conv", "ConvTranspose"):
            weight = _weight(maker, 1)
            return _channels(maker, weight) if weight else 0
        node = maker
    return 0


def _not_torchs(node: Node) -> str:
    """Return what keeps torch's layer of this kind from computing the same, or an empty string."""
    activations = [each.lower() for each in node.texts("activations")]
    usual = _USUAL_ACTIVATIONS[node.op]
    directions = 1 + ((node.texts("direction") or [""])[0] == "bidirectional")
    if activations and activations not in [each * directions for each in usual]:
        return f"activations {listed(activations)}"
    if node.op == "GRU" and not node.int("linear_before_reset", 0):
        return "linear_before_reset 0"
    if len(node.inputs) > 7 and node.inputs[7]:
        return "peepholes"
    return "clip or input_forget" if "clip" in node.attributes or node.int("input_forget", 0) else ""


# Names of modules.


def _scope(node: Node, is_torch: bool) -> str | None:
    """Return the module of a node where torch's exporter says it: in the metadata, or in the path that is its name."""
    scopes = re.findall(r"'([^']*)'", node.metadata.get(_SCOPES, ""))
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


def _beside(key: str, known: str, short: str) -> str:
    """Return the key of a tensor beside a known one: in_proj_bias -> in_proj_weight."""
    layer, last = split_key(key)
    name = last.replace(known, short) if known in last else short
    return f"{layer}.{name}" if layer else name
