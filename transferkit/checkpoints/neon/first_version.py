"""neon 1.0's files: a bare list of parameters, without types and shapes, which are found again where possible.

Such a file lists the layers that have parameters and nothing else. What follows a matrix, a bias or a batch
norm, tells a convolution from a linear layer: it is as long as the one is wide and the other high. The kernel's
side follows from the number of channels before it.
"""

from __future__ import annotations

import math
import re
from typing import Any

from transferkit.checkpoints.neon.records import (
    Array,
    Record,
    arrays_of,
    records_of,
    states_of,
    with_unique_names,
)
from transferkit.errors import CheckpointError

_INPUT_CHANNELS = (3, 1)


def records_of_first_version(entries: Any) -> tuple[Record, ...]:
    """Return the layers of a ``"layer_params_states"`` list.

    Raises:
        CheckpointError: It is not a list of layers.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError("not a neon model: layer_params_states is no list of layers")
    params = [arrays_of(entry.get("params", {})) for entry in entries]
    records: list[Record] = []
    channels: int | None = None
    for number, (entry, own) in enumerate(zip(entries, params, strict=True)):
        following = params[number + 1] if number + 1 < len(params) else {}
        given = _given_name(entry)
        type_ = _type_of(own, following, given, [record.type for record in records])
        config, channels = _described(type_, own, channels)
        name = (given or type_ or "layer").replace(".", "_")
        records.append(Record(number, name, type_, config, own, states_of(own, entry.get("states", []))))
    return tuple(records_of(with_unique_names(tuple(records))))


def _type_of(own: dict[str, Array], following: dict[str, Array], name: str, before: list[str]) -> str:
    """Return neon's class of a layer, or an empty string where nothing tells it."""
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
