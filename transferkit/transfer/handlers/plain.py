"""Handlers for any layer: another kind of number, a narrower layer, other classes."""

from __future__ import annotations

import copy
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from transferkit.errors import HandlerError, did_you_mean, listed
from transferkit.layers import Layer
from transferkit.transfer.handlers.registry import register_handler


@register_handler("cast")
def cast(source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
    """Cast the tensors of a layer to the target's dtypes.

    Between floating dtypes, and between complex ones, that is done anyway and needs no handler. To or from whole
    numbers every value must stay what it is.

    Args:
        source: A layer with tensors of the target's shapes.
        target: The layer to fill.

    Returns:
        The source's tensors in the target's dtypes; ``None`` where a shape differs.

    Raises:
        HandlerError: Values would change: the dtype has no such number, or none that exact.
    """
    shared = [short for short in target.tensors if short in source.tensors]
    if any(source.tensors[short].shape != target.tensors[short].shape for short in shared):
        return None
    return {short: _cast(short, source.tensors[short], target.tensors[short].dtype) for short in shared}


def _cast(short: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    if value.dtype == dtype:
        return value
    if value.is_complex() and not dtype.is_complex:
        raise HandlerError(
            f"{short} is complex and would lose its imaginary part; take .real or .abs() of it first"
        )
    made = value.to(dtype)
    rounds = (value.is_floating_point() or value.is_complex()) and (dtype.is_floating_point or dtype.is_complex)
    if not (rounds or made.is_meta or torch.equal(made.to(value.dtype), value)):
        changed = int((made.to(value.dtype) != value).sum())
        raise HandlerError(f"{changed} of {value.numel()} values of {short} would change as {dtype}")
    return made


cast.moves_states = True  # type: ignore[attr-defined]


# A narrower layer out of a wider one.


@register_handler("slices")
def slices(source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
    """Take the leading part of every tensor, as large as the target's.

    Layers that feed each other stay consistent, since each takes the leading channels. What comes out is a start
    for training: it computes nothing that the wide network did. Where rows are stacked in blocks (queries, keys and
    values, the gates of a recurrent layer, the groups of a convolution), the leading ones are no narrower layer.

    Args:
        source: A layer none of whose tensors is smaller than the target's.
        target: The layer to fill.

    Returns:
        Views of the source's tensors; ``None`` where a tensor is smaller, none is larger, or rows are stacked.
    """
    if _is_stacked(source, target):
        return None
    tensors = dict(source.tensors)
    for short, own in target.tensors.items():
        value = source.tensors.get(short)
        if (
            value is None
            or value.ndim != own.ndim
            or any(a < b for a, b in zip(value.shape, own.shape, strict=True))
        ):
            return None
        if value.shape != own.shape:
            tensors[short] = value[tuple(slice(length) for length in own.shape)]
    return None if all(tensors[short] is source.tensors[short] for short in tensors) else tensors


slices.moves_states = True  # type: ignore[attr-defined]

_STACKED = re.compile(r"qkv|in_proj|c_attn|gate_up", re.IGNORECASE)


def _is_stacked(source: Layer, target: Layer) -> bool:
    """Tell whether a layer's leading rows are not those of a narrower one."""
    if target.kind in ("attention", "recurrent") or _STACKED.search(target.name):
        return True
    groups = max(getattr(layer.module, "groups", 1) for layer in (source, target))
    depthwise = all(
        layer.tensors["weight"].shape[1] == 1 for layer in (source, target) if "weight" in layer.tensors
    )
    return target.kind == "conv" and groups > 1 and not depthwise


def own_rows(own: Tensor, like: Tensor) -> Tensor:
    """Return the target's own values for what the source does not know, in the source's dtype and place."""
    if own.is_meta and not like.is_meta:
        raise HandlerError(
            "what the source does not know keeps the target's values, and on the meta device it has none; build the "
            "model on a real device"
        )
    return own.detach().to(like)


# A classification layer for other classes: rows picked, or merged, by class name.


@register_handler("class_rows")
@dataclass(frozen=True)
class ClassRows:
    """Gives each class of the target the source's row of that name, or the mean of several rows.

    The mean is the row whose logit is the mean of the several logits: a start for training, not an exact union.

    Args:
        source: The source's class names, one per row.
        target: The target's class names, one per row.
        merge: Source classes that make up a target class, where it is not one of the same name:
            ``{"bird": ["robin", "jay"]}``.
        new: Target classes that the source does not know; they keep the target's own rows.

    Example:
        >>> from torch import nn
        >>> from transferkit.layers import layers_of
        >>> (old,), (head,) = layers_of(nn.Linear(4, 3)), layers_of(nn.Linear(4, 2))
        >>> rows = ClassRows(["cat", "robin", "jay"], ["bird", "cat"], merge={"bird": ["robin", "jay"]})(old, head)
        >>> torch.equal(rows["weight"][1], old.tensors["weight"][0])
        True
    """

    source: Sequence[str]
    target: Sequence[str]
    merge: Mapping[str, Sequence[str]] = field(default_factory=dict)
    new: Sequence[str] = ()
    moves_states = True

    def __call__(self, source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
        """Return the target's rows; ``None`` where the layers' rows are not the classes.

        Raises:
            HandlerError: A target class has no source class and is not declared new, a name stands for several rows,
                or ``merge`` or ``new`` names what the target has not; all of them are named.
        """
        if any(tensor.shape[:1] != (len(self.source),) for tensor in source.tensors.values()):
            return None
        if any(tensor.shape[:1] != (len(self.target),) for tensor in target.tensors.values()):
            return None
        rows = self._rows()
        return {
            short: torch.stack(
                [
                    _row(rows[name], source.tensors[short], own)
                    for name, own in zip(self.target, tensor, strict=True)
                ]
            )
            for short, tensor in target.tensors.items()
            if short in source.tensors and source.tensors[short].shape[1:] == tensor.shape[1:]
        }

    def _rows(self) -> dict[str, list[int]]:
        """Return the source rows of each target class."""
        numbers, ours = _numbered(self.source), _numbered(self.target)
        problems = [
            f"{name}: {_rows_named(ours[name])} of the target have that name"
            for name in ours
            if len(ours[name]) > 1
        ]
        problems += [f"{name}: no class of the target" for name in (*self.merge, *self.new) if name not in ours]
        rows: dict[str, list[int]] = {}
        for name in ours:
            wanted = [] if name in self.new else self.merge.get(name, [name])
            problems += [f"{name}: {why}" for other in wanted if (why := _why_no_row(other, numbers))]
            rows[name] = [numbers[other][0] for other in wanted if other in numbers]
        if problems:
            raise HandlerError(
                "classes without a row of their own; give every row a name of its own, and name a class's sources in "
                "merge={...} or list it in new=[...]:\n  " + "\n  ".join(problems)
            )
        return rows


def _numbered(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of each name."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return rows


def _why_no_row(name: str, numbers: Mapping[str, Sequence[int]]) -> str:
    """Say why a source class has not one row, or return an empty string."""
    if name not in numbers:
        return f"the source has no class {name!r}{did_you_mean(name, numbers)}"
    several = len(numbers[name]) > 1
    return f"{_rows_named(numbers[name])} of the source are both {name!r}" if several else ""


def _rows_named(rows: Sequence[int]) -> str:
    return f"rows {listed([str(row) for row in rows[:-1]])} and {rows[-1]}"


def _row(numbers: Sequence[int], source: Tensor, own: Tensor) -> Tensor:
    if not numbers:
        return own_rows(own, source)
    if len(numbers) == 1:
        return source[numbers[0]]
    return source[list(numbers)].mean(dim=0)


# Codes of quantized weights, which no handler may take for weights.


# weight_scale, weight_scale_inv, weight_zero_point, scales, qzeros, SCB, absmax, weight_amax: compressed-tensors,
# DeepSeek, AWQ and GPTQ, bitsandbytes, ModelOpt. Layers of plain values may have a scale too, but no codes.
_SCALE = re.compile(r"(^|_)(scales?|scb|absmax|amax|q?zeros?|zero_points?|zp)(_|$)", re.IGNORECASE)

WAY_OUT = (
    "dequantize the source first, a weight is its codes times their scale, and give the state dict of that"
)

UNASKED = (
    "whole numbers for a parameter may be the codes of a quantized weight, which is its codes times a scale: "
    "dequantize the source first; or, where they are the values themselves, handlers=['cast']"
)


class Scales:
    """The scales that a source keeps for its quantized tensors, beside them or in layers under them.

    Args:
        sources: All layers of the source.

    Example:
        >>> codes = torch.ones(2, 2, dtype=torch.int8)
        >>> source = Layer(0, "fc", "linear", {"weight": codes, "weight_scale": torch.ones(2, 1)})
        >>> target = Layer(0, "fc", "linear", {"weight": torch.zeros(2, 2)})
        >>> Scales([source]).codes(source, target)
        {'weight': "codes of a quantized weight, int8, whose 'fc.weight_scale' the target does not have"}
    """

    def __init__(self, sources: Iterable[Layer]) -> None:
        self._keys = [
            (layer.name, short, layer.key(short))
            for layer in sources
            for short in layer.tensors
            if _SCALE.search(short)
        ]

    def codes(self, source: Layer, target: Layer) -> dict[str, str]:
        """Say of each source tensor that is the codes of a quantized weight, for a target of values, that it is."""
        coded = [
            short
            for short, own in target.tensors.items()
            if short in source.tensors and _would_become_values(source.tensors[short], own)
        ]
        scales = self._left_out(source, target) if coded else []
        if not scales:
            return {}
        names = listed([repr(key) for key in scales], 3)
        dtypes = {short: str(source.tensors[short].dtype).removeprefix("torch.") for short in coded}
        return {
            short: f"codes of a quantized weight, {dtype}, whose {names} the target does not have"
            for short, dtype in dtypes.items()
        }

    def _left_out(self, source: Layer, target: Layer) -> list[str]:
        return [
            key
            for name, short, key in self._keys
            if (name == source.name and short not in target.tensors)
            or (source.name and name.startswith(f"{source.name}."))
        ]


def _would_become_values(value: Tensor, own: Tensor) -> bool:
    return own.is_floating_point() and value.dtype != own.dtype and _may_be_codes(value.dtype)


def _may_be_codes(dtype: torch.dtype) -> bool:
    """Tell whether a dtype is of whole numbers, or of floating ones so short that they want a scale."""
    whole = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    return whole or (dtype.itemsize == 1 and dtype != torch.bool)


# Weights stored in parts: weight norm and other parametrizations.


_OWN = "parametrizations."


@register_handler("parametrizations")
def parametrizations(source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
    """Put together a weight that is stored in parts, or take it apart as the target stores it.

    Weight norm is understood on both sides, in torch's old spelling (``weight_g``, ``weight_v``) and its new one,
    which in a file is told by its shapes: one length for every row, column or for the whole weight.
    Any other parametrization is understood on the target's side, if it has a ``right_inverse``. The layer computes
    with the same weight afterwards where the parametrization can represent it.

    Args:
        source: A layer with whole weights, or weight norm's parts.
        target: The layer to fill.

    Returns:
        The target's tensors; ``None`` where neither side stores a weight in parts.
    """
    whole = _put_together(source)
    if not any(short.startswith(_OWN) or short.endswith("_g") for short in target.tensors):
        return None if whole == source.tensors else whole
    tensors: dict[str, Tensor] = {}
    for short, own in target.tensors.items():
        if short in whole:
            tensors[short] = whole[short]
        elif short.endswith("_g") and short[:-2] in whole and _are_norm(short[:-2], own, whole[short[:-2]]):
            weight = whole[short[:-2]]
            tensors |= {short: _length(weight, own), f"{short[:-2]}_v": weight}
    return {**tensors, **_by_right_inverse(whole, target)}


def _put_together(source: Layer) -> dict[str, Tensor]:
    """Return the tensors with each pair of weight norm's parts made one."""
    whole = dict(source.tensors)
    for short in source.tensors:
        if short.endswith("_g"):
            name, other = short[:-2], f"{short[:-2]}_v"
        elif short.startswith(_OWN) and short.endswith(".original0") and _may_be_norm(source.module, short):
            name, other = short.split(".")[1], f"{short[:-1]}1"
        else:
            continue
        if other in whole and _are_norm(name, whole[short], whole[other]):
            gain, direction = whole.pop(short), whole.pop(other)
            whole[name] = direction * (gain / _length(direction, gain))
    return whole


def _may_be_norm(module: nn.Module | None, short: str) -> bool:
    """Tell whether two parts of a weight may be weight norm's: a live module says what it does with them."""
    lists = getattr(module, "parametrizations", None)
    steps = [] if lists is None else [type(step).__name__ for step in lists[short.split(".")[1]]]
    return lists is None or steps == ["_WeightNorm"]


def _are_norm(name: str, gain: Tensor, direction: Tensor) -> bool:
    """Tell whether one tensor has the length of another as a whole, or of each of its rows or columns."""
    if gain.ndim == 0:
        return True
    if gain.ndim != direction.ndim or (gain.shape == direction.shape and name != "weight"):
        return False  # tensors of one shape under other names may be anything: a gate and a value, say
    kept = [axis for axis in range(gain.ndim) if gain.shape[axis] != 1]
    return len(kept) <= 1 and all(gain.shape[axis] == direction.shape[axis] for axis in kept)


def _length(direction: Tensor, gain: Tensor) -> Tensor:
    axes = [axis for axis in range(direction.ndim) if gain.ndim == 0 or gain.shape[axis] == 1]
    length: Tensor = torch.linalg.vector_norm(direction, dim=axes, keepdim=gain.ndim > 0)
    return length


def _by_right_inverse(whole: Mapping[str, Tensor], target: Layer) -> dict[str, Tensor]:
    """Return the parts, and buffers, with which the target's own parametrizations make these weights.

    Raises:
        ValueError: They cannot make such a weight.
    """
    tensors: dict[str, Tensor] = {}
    lists = typing.cast("Mapping[str, nn.ModuleList]", getattr(target.module, "parametrizations", {}))
    for name, steps in lists.items():
        prefix = f"{_OWN}{name}."
        stored = {short: own for short, own in target.tensors.items() if short.startswith(prefix)}
        if name not in whole or not all(hasattr(step, "right_inverse") for step in steps):
            continue
        if whole[name].is_meta:  # the plan needs shapes, and a right inverse may not work without values
            tensors |= {short: torch.empty_like(own, device="meta") for short, own in stored.items()}
            continue
        # A right inverse may change its module's buffers; the target's are not to be touched yet.
        made = copy.deepcopy(steps)
        parts = value = whole[name].to(next(iter(stored.values())))
        for step in reversed(list(made)):
            parts = step.right_inverse(parts)  # type: ignore[operator]
        several = [parts] if isinstance(parts, Tensor) else list(parts)
        first, *others = made
        again = first(*several)
        for step in others:
            again = step(again)
        if not torch.allclose(again, value, rtol=1e-3, atol=1e-5):
            raise ValueError(f"the target's parametrization of {name} cannot represent this weight")
        originals = [short for short in stored if short.startswith(f"{prefix}original")]
        tensors |= dict(zip(originals, several, strict=True))
        buffers = {f"{prefix}{key}": buffer for key, buffer in made.named_buffers()}
        tensors |= {short: buffer for short, buffer in buffers.items() if short in stored}
    return tensors
