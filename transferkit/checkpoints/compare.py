"""What differs between two checkpoints, by tensor name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from transferkit.checkpoints.checkpoint import Checkpoint
from transferkit.progress import Progress, track

_CHUNK = 1 << 20  # elements compared at a time, so that tensors larger than memory can be


@dataclass(frozen=True)
class ValueDifference:
    """How two tensors of one shape differ.

    Attributes:
        key: Their name.
        differing: Number of elements that are not equal; two NaNs are.
        elements: Number of elements.
        largest: Largest absolute difference; infinite where only one side is NaN or infinite.
        mean: Mean absolute difference over all elements.
    """

    key: str
    differing: int
    elements: int
    largest: float
    mean: float


@dataclass(frozen=True)
class Comparison:
    """What differs between two checkpoints.

    Attributes:
        only_first: Tensors of the first alone, with their shapes.
        only_second: Tensors of the second alone, with their shapes.
        shapes: Tensors of both, with both shapes where they differ.
        dtypes: Tensors of both, with both dtypes where they differ.
        values: Tensors of the same shape whose values differ; ``None`` if values were not compared.
        same: Number of tensors in which nothing that was compared differs.
    """

    only_first: dict[str, tuple[int, ...]]
    only_second: dict[str, tuple[int, ...]]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dtypes: dict[str, tuple[torch.dtype, torch.dtype]]
    values: tuple[ValueDifference, ...] | None
    same: int

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.only_first or self.only_second or self.shapes or self.dtypes or self.values)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values, for JSON."""
        return {
            "only_first": {key: list(shape) for key, shape in self.only_first.items()},
            "only_second": {key: list(shape) for key, shape in self.only_second.items()},
            "shapes": {key: [list(shape) for shape in both] for key, both in self.shapes.items()},
            "dtypes": {
                key: [str(dtype).removeprefix("torch.") for dtype in both] for key, both in self.dtypes.items()
            },
            "values": None if self.values is None else [vars(difference) for difference in self.values],
            "same": self.same,
        }


def compare(
    first: Checkpoint, second: Checkpoint, *, values: bool = False, progress: Progress = False
) -> Comparison:
    """Compare two checkpoints by tensor name.

    Args:
        first: One checkpoint.
        second: The other.
        values: Whether to read both and compare what is in them, a million elements at a time.
        progress: How to show progress over the tensors whose values are compared.

    Example:
        >>> first = Checkpoint.from_state_dict({"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)})
        >>> second = Checkpoint.from_state_dict({"fc.weight": torch.zeros(4, 3), "fc.bias": torch.ones(2)})
        >>> found = compare(first, second, values=True)
        >>> found.shapes, found.values[0].largest
        ({'fc.weight': ((2, 3), (4, 3))}, 1.0)
    """
    a, b = first.state_dict(), second.state_dict()
    both = [key for key in a if key in b]
    alike = [key for key in both if a[key].shape == b[key].shape]
    differences = [
        value_difference(key, a[key], b[key])
        for key in (track(alike, progress, description="comparing", unit="tensor") if values else ())
    ]
    found = [difference for difference in differences if difference.differing]
    dtypes = {key: (a[key].dtype, b[key].dtype) for key in both if a[key].dtype != b[key].dtype}
    changed = {difference.key for difference in found} | dtypes.keys()
    return Comparison(
        only_first={key: tuple(tensor.shape) for key, tensor in a.items() if key not in b},
        only_second={key: tuple(tensor.shape) for key, tensor in b.items() if key not in a},
        shapes={key: (tuple(a[key].shape), tuple(b[key].shape)) for key in both if key not in set(alike)},
        dtypes=dtypes,
        values=tuple(found) if values else None,
        same=len(alike) - len(changed & set(alike)),
    )


def value_difference(key: str, a: Tensor, b: Tensor) -> ValueDifference:
    """Return how two tensors of the same shape differ; each is read once."""
    differing, total, largest = 0, 0.0, 0.0
    for left, right in zip(_chunks(a), _chunks(b), strict=True):
        unequal = ~((left == right) | (left.isnan() & right.isnan()))
        count = int(unequal.sum())
        if count:
            gaps = (
                (_wide(left[unequal]) - _wide(right[unequal])).abs().nan_to_num(nan=math.inf, posinf=math.inf)
            )
            differing, total, largest = (
                differing + count,
                total + float(gaps.sum()),
                max(largest, float(gaps.max())),
            )
    return ValueDifference(key, differing, a.numel(), largest, total / max(a.numel(), 1))


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the elements in order, flat, a bounded number at a time."""
    if tensor.numel() <= _CHUNK or tensor.ndim == 0:
        # eight bits are too few for torch to compare
        flat = tensor.reshape(-1)
        yield flat.float() if flat.is_floating_point() and flat.itemsize == 1 else flat
        return
    for part in torch.split(tensor, max(1, _CHUNK * tensor.shape[0] // tensor.numel())):
        yield from _chunks(part[0] if len(part) == 1 else part)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
