"""Source layers that are several joined, a part of one, or tensors of several: ``Part``, and what is made of it.

A fused attention keeps its query, key and value in one layer; GPT-2 keeps its weights transposed. What a target layer
takes is described piece by piece, and put together only as it is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from transferkit.checkpoints._optimizers import ParameterState
from transferkit.errors import TransferError, listed, require
from transferkit.layers import Layer


@dataclass(frozen=True)
class Part:
    """One of several equal parts of a source layer, along its outputs: a mapping's value.

    Args:
        layer: Name of the source layer; a glob or template where the mapping's key is one.
        place: Which part, counted from 0.
        of: How many parts there are.

    Example:
        >>> from torch import nn
        >>> from transferkit.transfer import WeightTransfer
        >>> fused, query = nn.ModuleDict({"qkv": nn.Linear(4, 12)}), nn.ModuleDict({"query": nn.Linear(4, 4)})
        >>> report = WeightTransfer(fused, mapping={"query": Part("qkv", 0, of=3)}).apply(query)
        >>> bool((query["query"].weight == fused["qkv"].weight[:4]).all())
        True
    """

    layer: str
    place: int
    of: int

    def __post_init__(self) -> None:
        require(self.of >= 1, "of", "at least 1", self.of)
        require(0 <= self.place < self.of, "place", f"from 0 to {self.of - 1}", self.place)


Sources = str | Part | Sequence[str | Part]
"""What a mapping may give for a target layer: a source layer, a part of one, or several joined in that order."""


@dataclass(frozen=True)
class Piece:
    """One tensor of a source layer, or one of several equal parts of it; zeros where the layer has no such bias."""

    layer: Layer
    short: str
    place: int = 0
    of: int = 1

    @property
    def whole(self) -> Tensor:
        """The whole tensor, outputs first."""
        found = self.layer.tensors.get(self.short)
        if found is None:
            weight = next(tensor for tensor in self.layer.tensors.values() if tensor.ndim > 1)
            return weight.new_zeros(len(outputs_first(self.layer, weight)))
        return outputs_first(self.layer, found)

    def cut(self, whole: Tensor) -> Tensor:
        """Return this part of a tensor that has its outputs first."""
        if self.of == 1:
            return whole
        rows, rest = divmod(len(whole), self.of)
        if rest:
            raise TransferError(
                f"{self.layer.key(self.short)} {list(whole.shape)} has no {self.of} equal parts; "
                "the model is bit for bit as it was. Next step: give Part another of="
            )
        return whole[self.place * rows : (self.place + 1) * rows]


@dataclass(frozen=True, eq=False)
class Composed(Layer):
    """A layer put together from pieces of others; until then its tensors are shapes alone.

    Attributes:
        pieces: What each tensor is made of, joined in that order.
        how: What the report calls it.
    """

    pieces: Mapping[str, tuple[Piece, ...]] = field(default_factory=dict)
    how: str = ""

    def assembled(self) -> Layer:
        """Return the layer with its values, and with the optimizer states that go along."""
        made = {
            short: self._joined(short, [p.cut(p.whole) for p in self.pieces[short]]) for short in self.tensors
        }
        states = {short: state for short in self.tensors if (state := self._state(short))}
        return replace(plain(self), tensors=made, states=states)

    def _joined(self, short: str, cuts: Sequence[Tensor]) -> Tensor:
        joined = cuts[0] if len(cuts) == 1 else torch.cat(list(cuts))
        turned = joined.mT if self.kind == "conv1d" and joined.ndim == 2 else joined
        return turned.reshape(self.tensors[short].shape)

    def _state(self, short: str) -> Mapping[str, Any]:
        """Return the optimizer states of the pieces as one; tensors of their shape are cut and joined alike."""
        pieces = self.pieces[short]
        states = [piece.layer.states.get(piece.short) for piece in pieces]
        first = states[0]
        if not first or any(state is None or state.keys() != first.keys() for state in states):
            return {}
        joined: dict[str, Any] = {}
        for name in first:
            values = [state[name] for state in states if state is not None]
            if all(_is_like(value, piece) for value, piece in zip(values, pieces, strict=True)):
                cuts = [p.cut(outputs_first(p.layer, v)) for v, p in zip(values, pieces, strict=True)]
                joined[name] = self._joined(short, cuts)
            elif all(not isinstance(value, Tensor) or value.ndim == 0 for value in values) and all(
                value == values[0] for value in values
            ):
                joined[name] = values[0]
            else:
                return {}
        return replace(first, values_by_name=joined) if isinstance(first, ParameterState) else joined


def plain(layer: Layer) -> Layer:
    """Return a layer as no more than one."""
    return Layer(**{each.name: getattr(layer, each.name) for each in fields(Layer)})


def pieces_of(layer: Layer) -> list[Layer]:
    """Return the layers that a composed one is made of; none for any other."""
    groups = layer.pieces.values() if isinstance(layer, Composed) else ()
    return [piece.layer for pieces in groups for piece in pieces]


def renamed(layer: Layer, taken: Mapping[str, str]) -> Layer:
    """Return a layer with tensors under other short names, from old to new; they keep their keys."""
    changed: dict[str, Any] = {
        "tensors": {taken.get(short, short): tensor for short, tensor in layer.tensors.items()},
        "states": {taken.get(short, short): state for short, state in layer.states.items()},
        "keys": {taken.get(short, short): layer.key(short) for short in layer.tensors},
    }
    if isinstance(layer, Composed):
        changed["pieces"] = {taken.get(short, short): pieces for short, pieces in layer.pieces.items()}
    return replace(layer, **changed)


def of_pieces(
    like: Layer,
    name: str,
    pieces: Mapping[str, tuple[Piece, ...]],
    how: str,
    as_shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> Composed:
    """Return a layer of pieces, for a target layer.

    Raises:
        TransferError: They cannot be joined; they are named.
    """
    first = next(iter(pieces.values()))[0].layer
    made = Composed(first.index, name, like.kind, {}, ordered=first.ordered, pieces=pieces, how=how)
    shapes = {short: as_shapes.get(short) or _shape(made, short, parts) for short, parts in pieces.items()}
    return replace(
        made,
        tensors={
            short: torch.empty(shape, dtype=pieces[short][0].whole.dtype, device="meta")
            for short, shape in shapes.items()
        },
        keys={short: parts[0].layer.key(parts[0].short) for short, parts in pieces.items()},
    )


def _shape(made: Composed, short: str, pieces: Sequence[Piece]) -> tuple[int, ...]:
    shapes = [tuple(piece.cut(piece.whole.to("meta")).shape) for piece in pieces]
    if len({shape[1:] for shape in shapes}) > 1:
        parts = listed([f"{p.layer.key(p.short)} {list(p.layer.tensors[p.short].shape)}" for p in pieces])
        raise TransferError(
            f"these cannot be joined for {made.name!r}: {parts}; the model is bit for bit as it was"
        )
    whole = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    return whole[::-1] if made.kind == "conv1d" and len(whole) == 2 else whole


def compose(target: Layer, parts: Sequence[tuple[Layer, int, int]], how: str, name: str = "") -> Layer:
    """Return several source layers joined, or a part of one, as a target layer has them.

    Args:
        target: The layer to fill; its names decide which tensor is which, ``in_proj_weight`` being a weight.
        parts: Source layers, each with which part of how many it is.
        how: What the report calls it.
        name: What the layer is called; by default after its parts.
    """
    pieces: dict[str, tuple[Piece, ...]] = {}
    shorts = {short: [_find(layer, short) for layer, _, _ in parts] for short in target.tensors}
    for short, found in shorts.items():
        if all(found) or (any(found) and short.endswith("bias")):
            pieces[short] = tuple(
                Piece(layer, own or short, place, of)
                for own, (layer, place, of) in zip(found, parts, strict=True)
            )
    used = {(id(piece.layer), piece.short) for group in pieces.values() for piece in group}
    for number, (layer, _, _) in enumerate(parts):
        for short in layer.tensors:
            if (id(layer), short) not in used:
                pieces[
                    short if short not in target.tensors and short not in pieces else f"{number}.{short}"
                ] = (Piece(layer, short),)
    return of_pieces(target, name or " + ".join(layer.name for layer, _, _ in parts), pieces, how)


def _find(layer: Layer, short: str) -> str:
    """Return what a source layer calls a target's tensor, or an empty string."""
    bare = short.removeprefix("in_proj_")
    return next((name for name in (short, bare, f"in_proj_{bare}") if name in layer.tensors), "")


def outputs_first(layer: Layer, tensor: Tensor) -> Tensor:
    """Return a layer's tensor with its outputs first, as torch has them and GPT-2 has not."""
    return tensor.mT if layer.kind == "conv1d" and tensor.ndim == 2 else tensor


def _is_like(value: object, piece: Piece) -> bool:
    own = piece.layer.tensors.get(piece.short)
    return isinstance(value, Tensor) and own is not None and own.ndim > 0 and value.shape == own.shape


def may_be_parts(target: Layer, sources: Iterable[Layer]) -> list[Layer]:
    """Return source layers of one module and one look whose outputs together are as many as a target layer's."""
    whole = target.tensors.get("weight")
    groups: dict[object, list[Layer]] = {}
    for layer in sources:
        groups.setdefault((layer.name.rpartition(".")[0], str(layer.shapes)), []).append(layer)
    for group in groups.values():
        part = group[0].tensors.get("weight")
        if whole is None or part is None or not 1 < len(group) < 5 or whole.ndim != 2 or part.ndim != 2:
            continue
        if (len(group) * part.shape[0], part.shape[1]) == tuple(whole.shape):
            return group
    return []


def settle_layouts(sources: Sequence[Layer]) -> Sequence[Layer]:
    """Return a file's layers with those of GPT-2's kind told: a weight of (in, out) beside a bias of (out).

    A square weight does not tell; the others of its model do.
    """
    theirs = [layer for layer in sources if layer.name.rpartition(".")[2] in _CONV1D and layer.module is None]
    if not any(_is_turned(layer) for layer in theirs):
        return sources
    told = {id(layer) for layer in theirs}
    return [replace(layer, kind="conv1d") if id(layer) in told else layer for layer in sources]


_CONV1D = ("c_attn", "c_fc", "c_proj", "q_attn")


def _is_turned(layer: Layer) -> bool:
    weight, bias = layer.tensors.get("weight"), layer.tensors.get("bias")
    if weight is None or bias is None or weight.ndim != 2:
        return False
    return bias.shape == weight.shape[1:] and weight.shape[0] != weight.shape[1]
