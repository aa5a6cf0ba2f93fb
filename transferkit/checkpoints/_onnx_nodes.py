"""What a node of an ONNX graph says of its layer: weights, by way of other nodes, and attributes in torch's words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from transferkit.errors import harmless

if TYPE_CHECKING:
    from transferkit.checkpoints._onnx import Constant, Node

_TORCHS_ACTIVATIONS = {"LSTM": ("sigmoid tanh tanh",), "GRU": ("sigmoid tanh",), "RNN": ("tanh", "relu")}
# torch's functions by the operators of ONNX.
_ACTIVATIONS = {"HardSwish": "hardswish", "HardSigmoid": "hardsigmoid", "LeakyRelu": "leaky_relu"}
_ACTIVATIONS |= {
    op: op.lower() for op in ("Relu", "Sigmoid", "Tanh", "Elu", "Selu", "Gelu", "Softplus", "Softmax", "Mish")
}
_LONGEST_PATH = 16  # nodes between a layer and what tells something of it
_BIASES_AFTER = ("MatMul", "Mul", "Conv", "ConvTranspose")


@dataclass
class Weight:
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


def weight_of(node: Node, place: int) -> Weight | None:
    """Return an input that is a constant, also by way of transposes and casts."""
    if place >= len(node.inputs):
        return None
    graph, name, names, perm = node.graph, node.inputs[place], [], None
    for _ in range(_LONGEST_PATH):
        names.append(name)
        if (constant := graph.constants.get(name)) is not None:
            return Weight(names, constant, perm)
        maker = graph.makers.get(name)
        if maker is None or maker.op not in ("Identity", "Cast", "Transpose") or not maker.inputs:
            return None
        if maker.op == "Transpose":
            own = maker.ints("perm")
            perm = own if perm is None else tuple(own[axis] for axis in perm)
        name = maker.inputs[0]
    return None


def with_bias(node: Node, found: dict[str, Weight]) -> Node:
    """Add the bias that an addition after the node adds, if it has none of its own; return the last of them."""
    weight, channels = found["weight"], _channels(node, found["weight"])
    if "bias" in found and math.prod(found["bias"].shape) != channels:
        del found["bias"]
    if len(found) > 1 or node.op not in _BIASES_AFTER:
        return node
    before, users = node, node.users()
    if node.op == "MatMul" and [user.op for user in users] == ["Reshape"]:  # into heads, say
        before, users = users[0], users[0].users()
    if [user.op for user in users] != ["Add"]:
        return node
    bias = weight_of(users[0], int(users[0].inputs[0] == before.outputs[0]))
    behind = len(weight.shape) - 1 if node.op.startswith("Conv") else 1  # places from the end to the channels
    if bias is None or math.prod(bias.shape) != channels:
        return node
    if before is node and bias.shape[-behind:][:1] != [channels] and bias.shape != weight.shape:
        return node
    found["bias"] = bias
    return users[0]


def has_outputs_last(node: Node) -> bool:
    return node.op == "MatMul" or (node.op == "Gemm" and not node.number("transB", 0))


def _channels(node: Node, weight: Weight) -> int:
    """Return how many channels come out of a node."""
    shape = weight.shape
    if node.op == "ConvTranspose":
        return shape[1] * node.number("group", 1)
    return math.prod(shape) if node.op == "Mul" else shape[-1 if has_outputs_last(node) else 0]


# What a node says of its layer.


def attributes_of(node: Node, weight: Weight) -> dict[str, Any] | None:
    """Return what a node says of its layer beside its weights, ``None`` where it is no layer."""
    if node.op.startswith("Conv"):
        return _of_convolution(node, len(weight.shape) - 2)
    if node.op in ("MatMul", "Gemm"):
        if len(weight.shape) != 2 or node.number("transA", 0):
            return None
        scales = {name: value for name in ("alpha", "beta") if (value := node.real(name, 1.0)) != 1}
        return scales | _flatten(node, weight)
    if node.op == "Gather":
        is_table = len(weight.shape) == 2 and weight.constant.floating
        return {} if is_table and node.number("axis", 0) == 0 else None
    if node.op == "Mul":
        return _of_norm_in_parts(node)
    if node.op == "InstanceNormalization" and any(map(_of_norm_in_parts, _users_after(node, "Reshape"))):
        return None  # the first half of a group norm
    return {} if node.op == "PRelu" else _of_norm(node)


def _of_norm(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {"eps": node.real("epsilon", 1e-5)}
    if node.op == "BatchNormalization":
        found["momentum"] = round(1 - node.real("momentum", 0.9), 7)
    if node.op == "GroupNormalization":
        found["num_groups"] = node.number("num_groups", 1)
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
            if eps and math.prod(eps.shape) == 1:
                return {"eps": float(f"{eps.tensor.item():.7g}")}
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
        "groups": node.number("group", 1),
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


def activation_after(node: Node) -> dict[str, Any]:
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
        given = [user.constant(place) for place in (1, 2)]
        ends = [each.tensor.item() if each and each.is_one_number else None for each in given]
        ends = [user.real("min", 0.0), user.real("max", 0.0)] if "max" in user.attributes else ends
        return {"activation": "relu6"} if ends == [0, 6] else {}
    if user.op == "LeakyRelu":
        return {"activation": "leaky_relu", "negative_slope": user.real("alpha", 0.01)}
    return {"activation": _ACTIVATIONS[user.op]} if user.op in _ACTIVATIONS else {}


def _flatten(node: Node, weight: Weight) -> dict[str, Any]:
    """Return (H, W, C) of a map whose channels were put last before it was made flat for a linear layer.

    The order of columns hangs on the channels alone, so that a map whose sides are not told passes as (H * W, 1, C).
    """
    flat, maker = False, node.maker()
    for _ in range(_LONGEST_PATH):
        if maker is None:
            return {}
        if maker.op == "Transpose":
            perm = maker.ints("perm")
            channels = _channels_before(maker) if flat and perm == (0, *range(2, len(perm)), 1) else 0
            inputs = math.prod(weight.shape) // _channels(node, weight)
            return {"flatten": (inputs // channels, 1, channels)} if channels else {}
        flat = flat or maker.op in ("Reshape", "Flatten")
        if maker.op not in ("Reshape", "Flatten", "Identity", "Dropout", "Cast", *_ACTIVATIONS):
            return {}
        maker = maker.maker()
    return {}


def _channels_before(node: Node) -> int:
    """Return how many channels come out of the convolution before a node."""
    maker = node.maker()
    for _ in range(_LONGEST_PATH):
        if maker is None or maker.op in ("Conv", "ConvTranspose"):
            break
        maker = maker.maker()
    weight = None if maker is None else weight_of(maker, 1)
    return _channels(maker, weight) if maker is not None and weight is not None else 0


def not_torchs(node: Node) -> str:
    """Return what keeps torch's layer of this kind from computing the same, or an empty string."""
    directions = 1 + ((node.texts("direction") or [""])[0] == "bidirectional")
    activations = " ".join(node.texts("activations")).lower()
    usual = [" ".join([each] * directions) for each in _TORCHS_ACTIVATIONS[node.op]]
    if activations and activations not in usual:
        return f"activations {harmless(activations)}"
    if node.op == "GRU" and not node.number("linear_before_reset", 0):
        return "linear_before_reset 0"
    if len(node.inputs) > 7 and node.inputs[7]:
        return "peepholes"
    return "clip or input_forget" if "clip" in node.attributes or node.number("input_forget", 0) else ""
