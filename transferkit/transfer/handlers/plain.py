"""Handlers for any layer: another kind of number, a narrower layer, other classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from transferkit.errors import HandlerError, did_you_mean
from transferkit.layers import Layer
from transferkit.transfer.handlers.registry import register_handler


@register_handler("cast")
def cast(source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
    """Cast the tensors of a layer to the target's dtypes.

    Between floating dtypes, and between complex ones, that is done anyway and needs no handler.

    Args:
        source: A layer with tensors of the target's shapes.
        target: The layer to fill.

    Returns:
        The source's tensors in the target's dtypes; ``None`` where a shape differs.
    """
    shared = [short for short in target.tensors if short in source.tensors]
    if any(source.tensors[short].shape != target.tensors[short].shape for short in shared):
        return None
    return {short: source.tensors[short].to(target.tensors[short].dtype) for short in shared}


cast.moves_states = True  # type: ignore[attr-defined]


# A narrower layer out of a wider one.


@register_handler("slices")
def slices(source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
    """Take the leading part of every tensor, as large as the target's.

    Layers that feed each other stay consistent, since each takes the leading channels. What comes out is a start
    for training: it computes nothing that the wide network did.

    Args:
        source: A layer none of whose tensors is smaller than the target's.
        target: The layer to fill.

    Returns:
        Views of the source's tensors; ``None`` where a tensor is smaller, or none is larger.
    """
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
            HandlerError: A target class has no source class and is not declared new; all of them are named.
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
        numbers = {name: row for row, name in enumerate(self.source)}
        rows: dict[str, list[int]] = {}
        problems = []
        for name in self.target:
            wanted = [] if name in self.new else self.merge.get(name, [name])
            absent = [other for other in wanted if other not in numbers]
            if absent:
                problems.append(
                    f"{name}: the source has no class {absent[0]!r}{did_you_mean(absent[0], numbers)}"
                )
            rows[name] = [numbers[other] for other in wanted if other in numbers]
        if problems:
            raise HandlerError(
                "classes without a row; name their sources in merge={...} or list them in new=[...]:\n  "
                + "\n  ".join(problems)
            )
        return rows


def _row(numbers: Sequence[int], source: Tensor, own: Tensor) -> Tensor:
    if not numbers:
        return own.to(source)
    if len(numbers) == 1:
        return source[numbers[0]]
    return source[list(numbers)].mean(dim=0)
