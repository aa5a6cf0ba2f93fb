"""In which order a Keras model's linear layers see what was a map, followed through the model's description.

Keras flattens a map (H, W, C) with the channels last, torch (C, H, W): the columns of the linear layer behind a
Flatten are in another order, and so are the rows of one whose outputs are made a map.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transferkit.checkpoints._keras_layers import layers_in, plain_name, unwrapped

Shape = tuple[Any, ...]

_SPATIAL = re.compile(
    r"(Separable|Depthwise)?Conv(?:olution)?\dD(Transpose)?|(Max|Average)Pooling\dD|ZeroPadding\dD|Cropping\dD|UpSampling\dD"
)
_POINTWISE = re.compile(
    r"Activation|.*ReLU|ReLU|ELU|Softmax|.*Dropout(\dD)?|Gaussian\w+|(Sync)?\w*Normalization(V1)?|Add|Multiply|Average|Maximum|"
    r"Minimum|Subtract|Rescaling|ActivityRegularization|MultiHeadAttention|Random\w+|Masking"
)
_SEQUENCES = re.compile(r"(CuDNN)?LSTM|(CuDNN)?GRU|SimpleRNN|Bidirectional|RNN|Embedding")
_MOST_BEHIND = 64  # norms in a row
_OWNS_VECTORS = re.compile(r"\w*Normalization(V1)?|PReLU")


@dataclass(frozen=True)
class _Flow:
    """What flows between two layers.

    Attributes:
        shape: Its shape without the batch, ``None`` where it is not known.
        map: Whether it is a map with the channels last, for which torch has another order.
        flat: The shape of the map that was flattened to it; ``None`` where one was, and its shape is not known.
        behind: Layers whose outputs it is, in their order, since it was no map.
    """

    shape: Shape | None = None
    map: bool = False
    flat: Shape | None = ()
    behind: tuple[str, ...] = ()


@dataclass
class Orders:
    """What was found.

    Attributes:
        attributes: ``flatten`` and ``unflatten``, a map (H, W, C) or ``"unknown"``, by layer name.
        unknown: Layers of which the order is not known.
        programs: Lambda layers, which compute what no weight tells.
    """

    attributes: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    unknown: list[str] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)

    def follow(self, model: Any, given: _Flow | None = None, prefix: str = "") -> _Flow:
        """Follow what flows through a model, and return what comes out."""
        flows: dict[str, _Flow] = {}
        before = given
        for name, class_name, config, entry in layers_in(model):
            sources = [
                flows.get(source, _Flow()) for source in dict.fromkeys(_sources(entry.get("inbound_nodes")))
            ]
            if not sources and before is not None and class_name != "InputLayer":
                sources = [before]
            flow = self._at(sources, _declared(config, entry), before if class_name == "InputLayer" else None)
            dotted = f"{prefix}{plain_name(name)}"
            if layers_in(entry):
                flow = self.follow(entry, flow, f"{dotted}.")
            elif class_name != "InputLayer":
                flow = self._through(dotted, class_name, config, flow)
            flows[name], before = flow, flow
        return before or _Flow()

    def _at(self, sources: Sequence[_Flow], declared: Shape | None, given: _Flow | None) -> _Flow:
        """Return what a layer is given: by the layers before it, or by its description."""
        if given is not None:
            return given
        if not sources:
            return _Flow(declared, declared is not None and len(declared) > 2)
        if len(sources) > 1 and any(source.flat != sources[0].flat for source in sources):
            return _Flow(None, flat=None)
        flow = sources[0]
        if flow.shape is None and declared is not None:
            flow = replace(flow, shape=declared)
            if len(declared) > 1:  # whatever came before did not flatten it
                flow = replace(flow, map=flow.map or len(declared) > 2, flat=())
        return flow

    def _through(self, name: str, class_name: str, config: Mapping[str, Any], flow: _Flow) -> _Flow:
        """Return what a layer makes of what it is given."""
        class_name, config, _ = unwrapped(class_name, config)
        if class_name == "Lambda":
            self.programs.append(name)
        if _SPATIAL.fullmatch(class_name):
            self._mark(flow.behind, "unflatten", flow.shape)
            first = config.get("data_format") == "channels_first"
            return _Flow() if first else _Flow(_spatial(class_name, config, flow.shape), True)
        if class_name == "Dense":
            self._mark([name], "flatten", flow.flat)
            whole = flow.shape is not None and len(flow.shape) > 1
            shape = None if flow.shape is None else (*flow.shape[:-1], config.get("units"))
            return _Flow(shape, flow.map, (), ()) if whole else _Flow(shape, behind=(name,))
        if class_name in ("Flatten", "Reshape"):
            return _reshaped(class_name, config, flow)
        if class_name == "Concatenate":
            return replace(flow, shape=None, flat=None if flow.flat else flow.flat, behind=())
        if _POINTWISE.fullmatch(class_name):
            if not _OWNS_VECTORS.fullmatch(class_name):
                return flow
            self._mark([name], "flatten", flow.flat)
            grows = 0 < len(flow.behind) < _MOST_BEHIND and _is_vector(flow)
            return replace(flow, behind=(*flow.behind, name)) if grows else flow
        return _Flow(
            None, flat=() if _SEQUENCES.fullmatch(class_name) or class_name.startswith("Global") else None
        )

    def _mark(self, names: Sequence[str], key: str, shape: Shape | None) -> None:
        """Keep the order of layers' columns or rows, where torch has another."""
        known = shape is not None and all(isinstance(side, int) for side in shape)
        for name in names:
            if not known:
                self.unknown.append(name)
                self.attributes[name][key] = "unknown"
            elif shape and math.prod(shape[:-1]) > 1 and shape[-1] > 1:
                self.attributes[name][key] = shape


def _is_vector(flow: _Flow) -> bool:
    return flow.shape is not None and len(flow.shape) == 1


def _declared(config: Mapping[str, Any], entry: Mapping[str, Any]) -> Shape | None:
    """Return the shape that the description gives a layer's input, without the batch."""
    built = entry.get("build_config")
    shapes = [config.get("batch_input_shape"), config.get("batch_shape")]
    shapes.append(built.get("input_shape") if isinstance(built, Mapping) else None)
    return next((tuple(shape[1:]) for shape in shapes if isinstance(shape, list) and _is_shape(shape)), None)


def _is_shape(shape: list[Any]) -> bool:
    return len(shape) > 1 and all(side is None or isinstance(side, int) for side in shape)


def _sources(nodes: Any) -> Iterator[str]:
    """Yield the names of the layers that a layer is first called with: lists of a name and two numbers."""
    waiting = deque(nodes[:1] if isinstance(nodes, list) else ())
    while waiting:
        node = waiting.popleft()
        if isinstance(node, list) and len(node) > 2 and isinstance(node[0], str) and isinstance(node[1], int):
            yield node[0]
        elif isinstance(node, list | dict):
            waiting += node.values() if isinstance(node, dict) else node


def _reshaped(class_name: str, config: Mapping[str, Any], flow: _Flow) -> _Flow:
    target = config.get("target_shape") if class_name == "Reshape" else [-1]
    target = tuple(target) if isinstance(target, list) else (None,)
    known = flow.shape is not None and all(isinstance(side, int) for side in flow.shape)
    size = math.prod(flow.shape) if known and flow.shape is not None else None
    if -1 in target:
        rest = math.prod(side for side in target if isinstance(side, int) and side > 0)
        target = tuple(size // rest if side == -1 and size is not None and rest else side for side in target)
    if len(target) > 1:
        return _Flow(target, len(target) > 2, (), flow.behind if _is_vector(flow) and not flow.flat else ())
    if config.get("data_format") == "channels_first" and (flow.shape is None or len(flow.shape) > 1):
        return _Flow(target, flat=None)
    if flow.shape is None:
        return _Flow(target, flat=None)
    if not flow.map:
        return replace(flow, shape=target)
    return _Flow(target, flat=flow.shape if known else None)


def _spatial(class_name: str, config: Mapping[str, Any], shape: Shape | None) -> Shape | None:
    """Return the shape behind a convolution, a pooling or a padding; sides that are not known are ``None``."""
    if shape is None:
        return None
    channels = config.get("filters", shape[-1])
    if class_name.startswith("Depthwise"):
        channels = channels * config.get("depth_multiplier", 1)
    known = all(isinstance(side, int) for side in shape[:-1]) and config.get("output_padding") is None
    sides = _sides(class_name, config, list(shape[:-1])) if known else [None] * (len(shape) - 1)
    return (*sides, channels)


def _sides(class_name: str, config: Mapping[str, Any], sides: list[int]) -> list[int]:
    if class_name.startswith(("ZeroPadding", "Cropping")):
        sign = 1 if class_name.startswith("Zero") else -1
        amounts = _each(config.get("padding", config.get("cropping")), len(sides))
        totals = [sum(amount) if isinstance(amount, list) else 2 * amount for amount in amounts]
        return [side + sign * total for side, total in zip(sides, totals, strict=True)]
    if class_name.startswith("UpSampling"):
        return [side * by for side, by in zip(sides, _each(config.get("size"), len(sides)), strict=True)]
    kernels = _each(config.get("kernel_size", config.get("pool_size")), len(sides))
    strides = _each(config.get("strides") or kernels, len(sides))
    dilations = _each(config.get("dilation_rate", 1), len(sides))
    padded = config.get("padding") in ("same", "causal")
    found = []
    for side, kernel, stride, dilation in zip(sides, kernels, strides, dilations, strict=True):
        reach = 0 if padded else dilation * (kernel - 1)
        if class_name.endswith("Transpose"):
            found.append(side * stride + (0 if padded else max(reach + 1 - stride, 0)))
        else:
            found.append(-(-(side - reach) // stride))
    return found


def _each(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) and len(value) == count else [value] * count
