"""Source layers that have another format's axes and names, or see another order, on their way into a torch layer.

A tree of Flax, or Keras weights without a model, does not tell what its layers are: the target's module does. Keras
flattens a map with its channels last, torch with its channels first; its file tells where.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from transferkit.checkpoints.layouts import Row, row_for, sources_of, turned
from transferkit.layers import Layer

# What Flax keeps in layers of their own and torch in one, by the class that does.
_PARTS = {
    "MultiheadAttention": ("query", "key", "value"),
    "LSTM": ("ii", "if", "ig", "io", "hi", "hf", "hg", "ho"),
    "GRU": ("ir", "iz", "in", "hr", "hz", "hn"),
}


@dataclass(frozen=True)
class Turn:
    """What is done to a source layer before anything else, and what reports call it.

    Attributes:
        name: ``"flax layout"``, ``"flatten order"``, or both.
        row: The row of the table of layouts, or none.
        orders: Maps (H, W, C) that an axis is in Keras's order of: the shape, the axis, and whether vectors have it.
    """

    name: str
    row: Row
    orders: tuple[tuple[tuple[int, ...], int, bool], ...] = ()

    def __call__(self, source: Layer) -> Layer:
        """Return the layer with torch's names, axes and order; as it is where its tensors have other axes."""
        try:
            tensors = _in_torch(source.tensors, self.row) if self.row else dict(source.tensors)
        except (IndexError, RuntimeError):
            return source
        for shape, axis, vectors in self.orders:
            for short, tensor in tensors.items():
                if tensor.ndim > (not vectors) and tensor.shape[axis] == math.prod(shape):
                    tensors[short] = _channels_first(tensor, shape, axis)
        return replace(source, tensors=tensors, layout="torch")


def turn_for(source: Layer, target: Layer) -> Turn | None:
    """Return what turns a source layer for a target layer; ``None`` where it is in torch's conventions."""
    row = _row(source, target)
    columns, rows = (source.attributes.get(key) or () for key in ("flatten", "unflatten"))
    axes = {"linear": ((columns, -1, False), (rows, 0, True)), "norm": ((columns or rows, 0, True),)}
    orders = tuple(order for order in axes.get(target.kind, ()) if isinstance(order[0], tuple) and order[0])
    names = [f"{source.layout} layout"] * bool(row) + ["flatten order"] * bool(orders)
    return Turn(" and ".join(names), row, orders) if names else None


def in_torch(source: Layer, target: Layer) -> Layer:
    """Return the shapes of a source layer as the target's module would have them; no values."""
    turn = turn_for(source, target)
    if turn is None:
        return source
    shapes = {short: tensor.detach().to("meta") for short, tensor in source.tensors.items()}
    return turn(replace(source, tensors=shapes))


def _row(source: Layer, target: Layer) -> Row:
    """Return the row by which a layer is turned for the target's module, empty if there is none."""
    kinds = [each.__name__ for each in type(target.module).__mro__]
    if source.layout == "torch" or "weight" in source.tensors:
        return {}
    kernel, bias = source.tensors.get("kernel"), source.tensors.get("bias")
    if source.layout == "flax" and target.kind == "linear" and kernel is not None and kernel.ndim > 2:
        # A projection to heads has a bias for each place of each head; one from them has one for each output.
        last = source.name.rpartition(".")[2]
        to_heads = last in _PARTS["MultiheadAttention"] if bias is None else bias.ndim > 1
        kinds = ["from heads"] if to_heads else ["to heads"] if bias is not None or last == "out" else []
    return row_for(source.layout, *kinds, target.kind) or {}


def _in_torch(tensors: Mapping[str, Tensor], row: Row) -> dict[str, Tensor]:
    """Return a layer's tensors by a row; what the row does not read stays as it is."""
    if tensors and all(short.isdigit() for short in tensors):  # variables by number
        order = sources_of(row)
        if len(tensors) == len(order) or (len(tensors) == len(order) - 1 and order[-1] == "bias"):
            tensors = {
                order[int(short)]: tensor for short, tensor in tensors.items() if int(short) < len(order)
            }
    made = turned(tensors, row)
    read = sources_of({short: row[short] for short in made}, alternatives=True)
    return {**{short: tensor for short, tensor in tensors.items() if short not in read}, **made}


def _channels_first(tensor: Tensor, shape: tuple[int, ...], axis: int) -> Tensor:
    """Return a tensor with one axis in the order (C, H, W) instead of (H, W, C)."""
    last = tensor.movedim(axis, -1)
    places = last.reshape(*last.shape[:-1], -1, shape[-1])
    return places.transpose(-1, -2).flatten(-2).movedim(-1, axis)


def joined(sources: Sequence[Layer], targets: Sequence[Layer]) -> Sequence[Layer]:
    """Return the source's layers with those that one module of the target has together made one.

    Attention's projection of its outputs is called as torch calls it.
    """
    if all(layer.layout != "flax" for layer in sources):
        return sources
    wanted = [kind for kind in _PARTS if any(_is_a(layer, kind) for layer in targets)]
    inside: dict[str, set[str]] = defaultdict(set)
    for layer in sources:
        parent, _, last = layer.name.rpartition(".")
        if layer.layout == "flax":
            inside[parent].add(last)
    kinds = {p: kind for p, names in inside.items() for kind in wanted if names.issuperset(_PARTS[kind])}
    whole: dict[str, Layer] = {}
    for layer in sources:
        parent, _, last = layer.name.rpartition(".")
        if layer.layout != "flax" or parent not in kinds or last not in (*_PARTS[kinds[parent]], "out"):
            whole[layer.name] = layer
        elif last == "out":
            keys = {short: layer.key(short) for short in layer.tensors}
            whole[f"{parent}.out_proj"] = replace(layer, name=f"{parent}.out_proj", keys=keys)
        else:
            own = {f"{last}.{short}": tensor for short, tensor in layer.tensors.items()}
            before = whole.get(parent, replace(layer, name=parent, tensors={}, kind="other"))
            whole[parent] = replace(before, tensors={**before.tensors, **own})
    return list(whole.values())


def _is_a(layer: Layer, kind: str) -> bool:
    return any(each.__name__ == kind for each in type(layer.module).__mro__)
