"""Handlers for what networks of one architecture keep in other places: fused attention, tokens, ones in a shape."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from transferkit.errors import HandlerError, TransferKitError, listed
from transferkit.layers import Layer
from transferkit.transfer._name_evidence import role_of
from transferkit.transfer.handlers.registry import register_handler
from transferkit.transfer.parts import Composed, Piece, compose, may_be_parts, of_pieces, outputs_first
from transferkit.transfer.structure import tensor_names

Shape = tuple[int, ...]
Triple = tuple[Layer, Layer, Layer]

# Leaf names that spell the order. query_key_value does not: Bloom and NeoX keep it head by head.
_FUSED = re.compile(r"w?qkv(_proj|_lin)?|in_proj|c_attn", re.IGNORECASE)


@register_handler("fused")
@dataclass(frozen=True)
class Fused:
    """Joins query, key and value to the one layer that the target has, or takes that apart; turns GPT-2's weights.

    Done where the names spell the order: ``qkv``, ``in_proj`` or ``c_attn`` (or the weights of
    ``nn.MultiheadAttention``) on one side; query, key and value, however abbreviated, as children of one module on
    the other. Anything else is said in a mapping: ``{"attn.all": ("attn.left", "attn.right")}``.

    Example:
        >>> from torch import nn
        >>> from transferkit.transfer import WeightTransfer
        >>> apart = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("query", "key", "value")})
        >>> report = WeightTransfer(apart, handlers=["fused"]).apply(nn.ModuleDict({"qkv": nn.Linear(4, 12)}))
        >>> [side.key for side in report.entries[0].sources]
        ['query.weight', 'key.weight', 'value.weight']
    """

    def join(self, sources: Sequence[Layer], targets: Sequence[Layer]) -> list[Layer]:
        """Return the source's layers, attention fused or apart as in the target."""
        ours, theirs = _triples(targets), _triples(sources)
        whole_here = _wholes(targets)
        made: dict[int, list[Layer]] = {}
        for triple in theirs:
            like = whole_here.get(_joined_shape(triple))
            if like is None or _joined_shape(triple) in map(_joined_shape, ours):
                continue
            first, *others = sorted(triple, key=sources.index)
            made |= {id(other): [] for other in others}
            name = _sibling(triple[0].name, "" if like.kind == "attention" else _leaf(like))
            made[id(first)] = [compose(like, [(layer, 0, 1) for layer in triple], "join", name)]
        apart = {_joined_shape(triple): triple for triple in ours}
        for layer in sources:
            likes = apart.get(_shape(layer)) if _is_fused(layer) else None
            if likes is None or _shape(layer) in whole_here:
                continue
            stem = layer.name if layer.kind == "attention" else layer.name.rpartition(".")[0]
            made[id(layer)] = [
                compose(like, [(layer, place, 3)], "part", f"{stem}.{_leaf(like)}".lstrip("."))
                for place, like in sorted(enumerate(likes), key=lambda part: targets.index(part[1]))
            ]
        return [new for layer in sources for new in made.get(id(layer), [layer])]

    def __call__(self, source: Layer, target: Layer) -> None:
        """Apply to no layer alone."""


def _triples(layers: Iterable[Layer]) -> list[Triple]:
    """Return the query, key and value of every module that has the three."""
    groups: dict[tuple[str, ...], dict[str, Layer]] = {}
    for layer in layers:
        parent, _, leaf = layer.name.rpartition(".")
        role, rest = role_of(leaf)
        if role in ("query", "key", "value") and _weight(layer) is not None:
            groups.setdefault((parent, *rest), {})[role] = layer
    return [(g["query"], g["key"], g["value"]) for g in groups.values() if len(g) == 3]


def _wholes(layers: Iterable[Layer]) -> dict[Shape, Layer]:
    """Return a fused layer of each shape."""
    return {_shape(layer): layer for layer in layers if _is_fused(layer)}


def _is_fused(layer: Layer) -> bool:
    return (_FUSED.fullmatch(_leaf(layer)) or "in_proj_weight" in layer.tensors) and _weight(layer) is not None


def _weight(layer: Layer) -> Tensor | None:
    weight = layer.tensors.get("weight", layer.tensors.get("in_proj_weight"))
    return outputs_first(layer, weight) if weight is not None and weight.ndim == 2 else None


def _shape(layer: Layer) -> Shape:
    weight = _weight(layer)
    return () if weight is None else tuple(weight.shape)


def _joined_shape(triple: Triple) -> Shape:
    shapes = [_shape(layer) for layer in triple]
    same = len({shape[1:] for shape in shapes}) == 1
    return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if same else ()


def _leaf(layer: Layer) -> str:
    return layer.name.rpartition(".")[2]


def _sibling(name: str, leaf: str) -> str:
    return ".".join(filter(None, (name.rpartition(".")[0], leaf)))


# Class token and position embeddings: in the root of one library, in a child module of the next.

_TOKENS = {
    "class": r"(cls|class)_(token|emb(edding)?)",
    "distillation": r"dist(illation)?_token",
    "registers": r"reg(ister)?_tokens?",
    "positions": r"(abs_)?pos(ition(al)?)?_?emb(ed(ding)?s?)?",
    "mask": r"mask_token",
}


@register_handler("tokens")
@dataclass(frozen=True)
class Tokens:
    """Finds class token, registers and position embeddings in whichever module the source keeps them.

    Told by name, where each side has one of a kind. Ones at the front of a shape may differ: (C,) for (1, 1, C).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from transferkit.transfer import WeightTransfer
        >>> net = nn.Module()
        >>> net.register_parameter("cls_token", nn.Parameter(torch.zeros(1, 1, 4)))
        >>> WeightTransfer({"embeddings.class_embedding": torch.ones(4)}, handlers=["tokens"]).apply(net).adapted
        ('cls_token',)
    """

    def join(self, sources: Sequence[Layer], targets: Sequence[Layer]) -> list[Layer]:
        """Return the source's layers with its tokens in layers of the target's.

        Raises:
            HandlerError: One side has positions for its tokens, the other for the grid alone.
        """
        held, ours = _tokens(sources), _tokens(targets)
        _require_same_positions(held, ours)
        layers, taken = list(sources), set()
        for target in targets:
            wanted = {short: role for role, (layer, short) in ours.items() if layer is target}
            found = {short: held[role] for short, role in wanted.items() if role in held}
            if not found or _is_same(target, found):
                continue
            same = next((layer for layer in layers if layer.name == target.name), None)
            rest = {s for s in target.tensors if same and s in same.tensors} - found.keys()
            pieces = {short: (Piece(*place),) for short, place in found.items()}
            pieces |= {short: (Piece(same, short),) for short in rest if same}
            shapes = {
                short: _like(layer.tensors[s], target.tensors[short]) for short, (layer, s) in found.items()
            }
            made = of_pieces(target, target.name, pieces, "tokens", shapes)
            taken |= {(id(p.layer), p.short) for (p,) in pieces.values()}
            layers.insert(min(layers.index(p.layer) for (p,) in pieces.values()), made)
        return [left for layer in layers if (left := _without(layer, taken))]

    def __call__(self, source: Layer, target: Layer) -> None:
        """Apply to no layer alone."""


def _tokens(layers: Iterable[Layer]) -> dict[str, tuple[Layer, str]]:
    """Return the layer and short name of each kind of token that there is one of."""
    found: dict[str, list[tuple[Layer, str]]] = {}
    for layer in layers:
        for short in layer.tensors:
            name = f".{layer.key(short)}".removesuffix(".weight").rpartition(".")[2]
            for role, pattern in _TOKENS.items():
                if re.fullmatch(pattern, name, re.IGNORECASE):
                    found.setdefault(role, []).append((layer, short))
    return {role: places[0] for role, places in found.items() if len(places) == 1}


def _require_same_positions(
    held: Mapping[str, tuple[Layer, str]], ours: Mapping[str, tuple[Layer, str]]
) -> None:
    """Refuse positions that count the tokens before the grid on one side alone: dropped, they would be missed."""
    if "positions" not in held or "positions" not in ours:
        return
    theirs, own = (len(layer.tensors[s].flatten(0, -2)) for layer, s in (held["positions"], ours["positions"]))
    tokens = [len({"class", "distillation"} & side.keys()) for side in (held, ours)]
    if 0 < abs(theirs - own) <= 2 and theirs - own != tokens[0] - tokens[1]:
        raise HandlerError(
            f"the source has {theirs} positions and {tokens[0]} tokens beside the grid, the target {own} and "
            f"{tokens[1]}: one counts its tokens among the positions, the other adds none to them. Give a state dict "
            "of the target's kind: a token that had a position, plus that; or zeros as a token's position"
        )


def _is_same(target: Layer, found: Mapping[str, tuple[Layer, str]]) -> bool:
    """Tell whether one source layer has these, under these names and in this form."""
    holders = {id(layer): layer for layer, _ in found.values()}
    (one, *others) = holders.values()
    return not others and all(
        short == own and target.tensors[short].ndim == one.tensors[own].ndim
        for short, (_, own) in found.items()
    )


def _like(value: Tensor, own: Tensor) -> Shape:
    """Return a tensor's shape with as many ones in front as the target's has."""
    shape = tuple(value.shape)
    while len(shape) > own.ndim and shape[0] == 1:
        shape = shape[1:]
    return (1,) * (own.ndim - len(shape)) + shape


def _without(layer: Layer, taken: set[tuple[int, str]]) -> Layer | None:
    """Return a layer without the tensors that another one has now."""
    if isinstance(layer, Composed):
        return layer
    rest = {short: tensor for short, tensor in layer.tensors.items() if (id(layer), short) not in taken}
    if len(rest) == len(layer.tensors):
        return layer
    return replace(layer, tensors=rest) if rest else None


@register_handler("reshape")
def reshape(source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
    """Take tensors whose shape differs in ones alone, or whose name does: (C,) for (C, 1, 1), a matrix for a kernel.

    Args:
        source: A layer with as many tensors as the target's.
        target: The layer to fill.

    Returns:
        Views of the source's tensors; ``None`` where more than ones and names differ, or nothing.
    """
    names = tensor_names(target, source) or {
        short: short for short in target.tensors if short in source.tensors
    }
    tensors = {short: source.tensors[other] for short, other in names.items()}
    if not all(_is_reshaped(value.shape, target.tensors[short].shape) for short, value in tensors.items()):
        return None
    made = {
        short: value
        if value.shape == target.tensors[short].shape
        else value.reshape(target.tensors[short].shape)
        for short, value in tensors.items()
    }
    kept = {
        short: value for short, value in source.tensors.items() if short in target.tensors and short not in made
    }
    return (
        None if all(value is source.tensors.get(short) for short, value in made.items()) else {**kept, **made}
    )


reshape.moves_states = True  # type: ignore[attr-defined]


def _is_reshaped(one: torch.Size, two: torch.Size) -> bool:
    """Tell whether two shapes are the same but for ones at the end of the longer, or a matrix and a kernel."""
    shorter, longer = sorted((tuple(one), tuple(two)), key=len)
    if (
        len(shorter) == 2 and len(longer) == 4
    ):  # a linear layer on a flattened map, and the convolution of all of it
        return shorter == (longer[0], prod(longer[1:]))
    return longer == shorter + (1,) * (len(longer) - len(shorter))


def ways_to_join(sources: Sequence[Layer], targets: Sequence[Layer], tried: Collection[str]) -> tuple[str, ...]:
    """Tell which handler would find target layers that have no source, or which source layers may be their parts."""
    joins = {"fused": Fused().join, "tokens": Tokens().join}
    names = []
    for name in joins.keys() - set(tried):
        with suppress(TransferKitError):  # what it cannot join it is no advice for
            names += [name] if joins[name](sources, targets) != list(sources) else []
    if names:
        return (f"join or take apart what the source keeps in other layers: handlers={sorted(names)!r}",)
    for target in targets[:16]:
        if parts := may_be_parts(target, sources):
            order = ", ".join(["'...'"] * len(parts))
            return (
                f"where {target.name!r} is {listed([repr(part.name) for part in parts])} joined, say in which order: "
                f"mapping={{{target.name!r}: ({order})}}",
            )
    return ()
