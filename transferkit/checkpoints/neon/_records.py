"""A neon model file as a tree of layers; neon 1.0's is a bare list of parameters.

A file of version 1.0 has neither layer types nor shapes, so both are inferred. The bias or batch norm after a matrix
has one entry per output: as many as a convolution's matrix has columns, or a linear layer's has rows. The kernel's
side follows from the number of input channels.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transferkit.errors import CheckpointError

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Record:
    """One layer of a neon file, with or without parameters.

    Attributes:
        number: Place in the file, counting every layer, as neon's own scripts do.
        name: Dotted name, unique in the file.
        type: neon's class: ``"Convolution"``, ``"Bias"``, ``"Pooling"``.
        config: The arguments of that class that differ from their defaults.
        params: Parameters in neon's layout and under neon's names.
        states: Optimizer state of each parameter, in the optimizer's order.
    """

    number: int
    name: str
    type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Array] = field(default_factory=dict)
    states: Mapping[str, tuple[Array, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Container:
    """Parallel sequences: the branches of a merge, or the backbone and side branches of a tree.

    Attributes:
        type: neon's class: ``"MergeSum"``, ``"Tree"``, ``"Sequential"``.
        branches: The sequences; a plain ``Sequential`` has one.
    """

    type: str
    branches: tuple[Steps, ...]


Steps = tuple[Record | Container, ...]

# The parameters that neon's optimizers keep state for, in the order in which it is stored.
_STATEFUL = (("beta", "gamma"), ("W", "weight_bias"), ("W",))

_MOST_LAYERS = 20_000
_MOST_REPEATED = 1 << 27  # bytes of arrays that more than one layer has
_LONGEST_NAME = 1000  # characters of a layer's name and type
_SEQUENTIAL = ("Sequential", "Encoder", "Decoder", "RoiPooling")


def records_of(steps: Steps) -> Iterator[Record]:
    """Yield every record of a tree in the file's order."""
    for step in steps:
        if isinstance(step, Record):
            yield step
        else:
            for branch in step.branches:
                yield from records_of(branch)


def refuse_repeats(steps: Steps) -> None:
    """Refuse arrays that many layers have, since each makes a copy of its own and a file can name one forever."""
    seen: set[int] = set()
    repeated = 0
    for record in records_of(steps):
        for array in (*record.params.values(), *(each for states in record.states.values() for each in states)):
            repeated += array.nbytes * (id(array) in seen)
            seen.add(id(array))
    if repeated > _MOST_REPEATED:
        raise CheckpointError(f"refused: layers of a neon model that share arrays of {repeated:,} bytes in all")


def tree_of(model: Any) -> Steps:
    """Return the layers of a ``"model"`` entry, as neon writes it since version 1.1.

    Raises:
        CheckpointError: Something in it is not what neon writes.
    """
    entry = _dict(model, "model")
    is_sequence = _type(entry) in ("", *_SEQUENTIAL)
    steps = _Tree().branch(entry, "") if is_sequence else (_Tree().container(entry, ""),)
    return with_unique_names(steps)


def with_unique_names(steps: Steps) -> Steps:
    """Return the tree with each repeated name followed by the layer's number."""
    counts = Counter(record.name for record in records_of(steps))
    return _with_numbers(steps, counts, {name for name, count in counts.items() if count == 1})


def _with_numbers(steps: Steps, counts: Mapping[str, int], taken: set[str]) -> Steps:
    result: list[Record | Container] = []
    for step in steps:
        if isinstance(step, Container):
            branches = tuple(_with_numbers(branch, counts, taken) for branch in step.branches)
            result.append(replace(step, branches=branches))
        elif counts[step.name] > 1:
            name = f"{step.name}_{step.number}"
            while name in taken:
                name += f"_{step.number}"
            taken.add(name)
            result.append(replace(step, name=name))
        else:
            result.append(step)
    return tuple(result)


class _Tree:
    """Reads entries in the file's order and numbers the layers."""

    def __init__(self) -> None:
        self.count = 0

    def branch(self, entry: Mapping[str, Any], prefix: str) -> Steps:
        """Return the layers inside one sequential container."""
        layers = _dict(entry.get("config"), "config").get("layers")
        if not isinstance(layers, list | tuple):
            raise CheckpointError("not a neon model: a container without a list of layers")
        return tuple(self.step(_dict(layer, "layer"), prefix) for layer in layers)

    def step(self, entry: Mapping[str, Any], prefix: str) -> Record | Container:
        type_ = _type(entry)
        config = _dict(entry.get("config", {}), "config")
        name = _plain(config.get("name", ""), f"{type_}_{self.count}")
        if "layers" not in config:
            return self.record(entry, type_, f"{prefix}{name}", config)
        if type_ in _SEQUENTIAL:
            return Container(type_, (self.branch(entry, f"{prefix}{name}."),))
        return self.container(entry, f"{prefix}{name}.")

    def container(self, entry: Mapping[str, Any], prefix: str) -> Container:
        """Return a container of branches, each a sequence or a single layer."""
        inner_layers = _dict(entry.get("config"), "config").get("layers")
        if not isinstance(inner_layers, list | tuple):
            raise CheckpointError("not a neon model: a container without a list of layers")
        branches: list[Steps] = []
        for place, inner in enumerate(_dict(layer, "layer") for layer in inner_layers):
            config = _dict(inner.get("config", {}), "config")
            if "layers" in config and _type(inner) in _SEQUENTIAL:
                branches.append(self.branch(inner, f"{prefix}{_plain(config.get('name', ''), str(place))}."))
            else:
                branches.append((self.step(inner, prefix),))
        return Container(_type(entry), tuple(branches))

    def record(self, entry: Mapping[str, Any], type_: str, name: str, config: Mapping[str, Any]) -> Record:
        number, self.count = self.count, self.count + 1
        if self.count > _MOST_LAYERS or len(name) + len(type_) > _LONGEST_NAME:
            raise CheckpointError("refused: a neon model with more layers, or longer names, than any has")
        params = arrays_of(entry.get("params", {}))
        return Record(number, name, type_, config, params, states_of(params, entry.get("states", [])))


def arrays_of(params: Any) -> dict[str, Array]:
    """Return a layer's parameters by name, in any of the layouts that neon has used.

    A single array is ``W``; four of them are those of a batch norm, both from version 1.0.
    """
    if isinstance(params, np.ndarray):
        return {"W": params}
    if isinstance(params, list | tuple) and len(params) == 4:
        params = dict(zip(("beta", "gamma", "gmean", "gvar"), params, strict=True))
    return {key: value for key, value in _dict(params, "params").items() if isinstance(value, np.ndarray)}


def states_of(params: Mapping[str, Array], states: Any) -> dict[str, tuple[Array, ...]]:
    """Return the optimizer states of each parameter: neon stores a list for one, nested lists for several."""
    if not isinstance(states, list | tuple) or not states:
        return {}
    stateful = next((keys for keys in _STATEFUL if all(key in params for key in keys)), ())
    per_parameter = [states] if len(stateful) == 1 else list(states)
    result = {}
    for key, found in zip(stateful, per_parameter, strict=False):
        arrays = tuple(item for item in found if isinstance(item, np.ndarray)) if found is not None else ()
        if arrays and all(array.shape == params[key].shape for array in arrays):
            result[key] = arrays
    return result


def _type(entry: Mapping[str, Any]) -> str:
    """Return neon's class without its module."""
    return str(entry.get("type", "")).rpartition(".")[2]


def _plain(name: Any, otherwise: str) -> str:
    """Return a name that can be part of a dotted path."""
    return re.sub(r"[.\s]+", "_", name).strip("_") if isinstance(name, str) and name.strip(". ") else otherwise


def _dict(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CheckpointError(f"not a neon model: {what} is a {type(value).__name__}, not a dict")
    return value


# neon 1.0's files: a bare list of parameters, whose types and shapes are inferred where possible.

_INPUT_CHANNELS = (3, 1)


def records_of_first_version(entries: Any) -> tuple[Record, ...]:
    """Return the layers of a ``"layer_params_states"`` list.

    Raises:
        CheckpointError: It is not a list of layers.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError("not a neon model: layer_params_states is not a list of layers")
    if len(entries) > _MOST_LAYERS:
        raise CheckpointError(f"refused: a neon model of {len(entries):,} layers")
    params = [arrays_of(entry.get("params", {})) for entry in entries]
    records: list[Record] = []
    types: set[str] = set()
    channels: int | None = None
    for number, (entry, own) in enumerate(zip(entries, params, strict=True)):
        following = params[number + 1] if number + 1 < len(params) else {}
        given = _given_name(entry)
        type_ = _type_of(own, following, given, types)
        types.add(type_)
        config, channels = _described(type_, own, channels)
        name = (given or type_ or "layer").replace(".", "_")
        records.append(
            Record(number, name[:_LONGEST_NAME], type_, config, own, states_of(own, entry.get("states", [])))
        )
    return tuple(records_of(with_unique_names(tuple(records))))


def _type_of(own: dict[str, Array], following: dict[str, Array], name: str, before: set[str]) -> str:
    """Return neon's class of a layer, or an empty string where it cannot be inferred."""
    if "gamma" in own:
        return "BatchNorm"
    weight = own.get("W")
    if weight is None or weight.ndim != 2:
        return ""
    rows, columns = weight.shape
    if columns == 1:
        return "Bias"
    per_output = following.get("gamma", following.get("W"))
    if rows != columns and per_output is not None and per_output.shape in ((rows, 1), (columns, 1)):
        return "Linear" if per_output.size == rows else "Convolution"
    if re.search("conv", name, re.IGNORECASE):
        return "" if re.search("deconv", name, re.IGNORECASE) else "Convolution"
    if "Linear" in before or re.search("linear|affine|fc", name, re.IGNORECASE):
        return "Linear"
    return ""


def _described(type_: str, own: dict[str, Array], channels: int | None) -> tuple[dict[str, Any], int | None]:
    """Return a layer's settings and its number of outputs, given those of the layers before it."""
    if type_ == "Linear":
        return {}, own["W"].shape[0]
    if type_ != "Convolution":
        return {}, channels
    rows, columns = own["W"].shape
    side = _kernel_side(rows, (channels,) if channels else _INPUT_CHANNELS)
    return ({"fshape": (side, side, columns)} if side else {}), columns


def _kernel_side(rows: int, possible_channels: tuple[int, ...]) -> int | None:
    """Return the side of the square kernel that ``rows`` weights per output channel make, if there is one."""
    for channels in possible_channels:
        side = math.isqrt(rows // channels)
        if side and channels * side * side == rows:
            return side
    return None


def _given_name(entry: dict[str, Any]) -> str:
    params = entry.get("params")
    name = params.get("name") if isinstance(params, dict) else None
    return name if isinstance(name, str) else ""
