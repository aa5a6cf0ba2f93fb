"""The description of a checkpoint, and of what differs between two, as text and as plain values."""

from __future__ import annotations

import fnmatch
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transferkit.checkpoints.checkpoint import Checkpoint
from transferkit.display import text_table
from transferkit.errors import harmless
from transferkit.layers import Layer
from transferkit.progress import Progress, track

# What differs between two checkpoints, by tensor name.

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
            gaps = (_wide(left[unequal]) - _wide(right[unequal])).abs()
            gaps = gaps.nan_to_num(nan=math.inf, posinf=math.inf)
            differing += count
            total += float(gaps.sum())
            largest = max(largest, float(gaps.max()))
    return ValueDifference(key, differing, a.numel(), largest, total / max(a.numel(), 1))


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the elements in order, flat, a bounded number at a time."""
    if tensor.numel() <= _CHUNK or tensor.ndim == 0:
        # torch does not compare tensors of 8-bit floats
        flat = tensor.reshape(-1)
        yield flat.float() if flat.is_floating_point() and flat.itemsize == 1 else flat
        return
    for part in torch.split(tensor, max(1, _CHUNK * tensor.shape[0] // tensor.numel())):
        yield from _chunks(part[0] if len(part) == 1 else part)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


# The description of one checkpoint: a table for people, plain values for programs.

_LARGEST_UNASKED = 1 << 28  # bytes of a file whose digest is computed without being asked for


def describe(checkpoint: Checkpoint, *, match: str = "*", digest: bool | None = None) -> dict[str, Any]:
    """Return what a checkpoint holds as plain values, for JSON; no tensor is read.

    Args:
        checkpoint: What to describe.
        match: Glob of the layer names to list.
        digest: Whether to compute the file's SHA-256, which reads the whole file; ``None`` does so up to 256 MiB.
    """
    size = _size(checkpoint.files)
    digest = size is not None and size <= _LARGEST_UNASKED if digest is None else digest
    layers = [layer for layer in checkpoint if fnmatch.fnmatchcase(layer.name, match)]
    return {
        "source": None if checkpoint.source is None else str(checkpoint.source),
        "format": checkpoint.format,
        "bytes": size,
        "sha256": checkpoint.sha256 if digest else None,
        "layers": [_layer(layer) for layer in layers],
        "totals": {
            "layers": len(layers),
            "tensors": sum(len(layer.tensors) for layer in layers),
            "elements": sum(layer.elements for layer in layers),
        },
        "shared": [list(group) for group in checkpoint.shared],
        "metadata": dict(checkpoint.metadata),
        "notes": list(checkpoint.notes),
    }


def describe_in_words(description: dict[str, Any], width: int | None = None) -> str:
    """Return a description as text: a headline, a table of layers, what else there is to know.

    Args:
        description: As returned by :func:`describe`.
        width: Columns to fit into; ``None`` for as many as it takes.
    """
    totals = description["totals"]
    size = "" if description["bytes"] is None else f", {_bytes(description['bytes'])}"
    lines = [
        f"{description['source'] or 'in memory'}: {description['format']}{size}",
        f"{totals['layers']:,} layers, {totals['tensors']:,} tensors, {totals['elements']:,} elements",
        f"sha256 {description['sha256'] or 'not computed; --digest reads the whole file for it'}",
        "",
        *_layer_table(description["layers"], width),
    ]
    after = _states(description["layers"])
    after += [f"shared: {' = '.join(group)}" for group in description["shared"]]
    if description["metadata"]:
        after.append(
            "beside the tensors: " + ", ".join(f"{k} {v!r:.60}" for k, v in description["metadata"].items())
        )
    after += [f"note: {note}" for note in description["notes"]]
    return "\n".join(
        [*map(harmless, lines), *(each for line in after for each in _wrap(harmless(line), width))]
    )


def compare_in_words(comparison: Comparison, first: str, second: str, width: int | None = None) -> str:
    """Return a comparison as text, one section for each way to differ."""
    lines: list[str] = []
    for name, only in ((first, comparison.only_first), (second, comparison.only_second)):
        rows = [(f"  {key}", shape_text(shape)) for key, shape in only.items()]
        lines += _section(f"only in {name}", rows, width)
    shapes = [(f"  {key}", shape_text(a), shape_text(b)) for key, (a, b) in comparison.shapes.items()]
    lines += _section("of another shape", shapes, width)
    dtypes = [(f"  {key}", dtype_text(a), dtype_text(b)) for key, (a, b) in comparison.dtypes.items()]
    lines += _section("of another dtype", dtypes, width)
    values = [
        (
            f"  {found.key}",
            f"{found.differing:,} of {found.elements:,}",
            f"{found.largest:.4g}",
            f"{found.mean:.4g}",
        )
        for found in comparison.values or ()
    ]
    lines += _section("of other values (elements that differ, largest and mean difference)", values, width)
    what = "shape, dtype and values" if comparison.values is not None else "shape and dtype"
    return "\n".join([*map(harmless, lines), f"the same in {what}: {comparison.same:,} tensors"])


def shape_text(shape: tuple[int, ...] | list[int]) -> str:
    """Return a shape as people write it: ``64x3x11x11``."""
    return "x".join(map(str, shape)) or "scalar"


def dtype_text(dtype: Any) -> str:
    """Return a dtype without its module: ``float32``."""
    return str(dtype).removeprefix("torch.")


def _layer(layer: Layer) -> dict[str, Any]:
    return {
        "index": layer.index,
        "raw_index": layer.raw_index,
        "name": layer.name,
        "kind": layer.kind,
        "tensors": {short: _tensor(tensor) for short, tensor in layer.tensors.items()},
        "states": {short: sorted(map(str, states)) for short, states in layer.states.items()},
        "elements": layer.elements,
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": dtype_text(tensor.dtype)}


def _layer_table(layers: list[dict[str, Any]], width: int | None) -> list[str]:
    has_raw = any(layer["raw_index"] is not None for layer in layers)
    header = ["#", *(["in file"] if has_raw else []), "name", "kind", "tensors", "dtype", "elements"]
    rows = [header]
    for layer in layers:
        shapes = ", ".join(f"{short} {shape_text(t['shape'])}" for short, t in layer["tensors"].items())
        dtypes = "/".join(dict.fromkeys(t["dtype"] for t in layer["tensors"].values()))
        raw = [str(layer["raw_index"])] if has_raw else []
        row = [str(layer["index"]), *raw, layer["name"] or "(root)", layer["kind"], shapes, dtypes]
        rows.append([*row, f"{layer['elements']:,}"])
    numbers = [header.index(name) for name in ("#", "in file", "elements") if name in header]
    return text_table(rows, width, shrink=(header.index("tensors"), header.index("name")), right=numbers)


def _states(layers: list[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for layer in layers for names in layer["states"].values() for name in names)
    having = sum(bool(layer["states"]) for layer in layers)
    return [f"optimizer state: {', '.join(names)} for {having} of {len(layers)} layers"] if names else []


def _section(title: str, rows: Sequence[tuple[str, ...]], width: int | None) -> list[str]:
    return [f"{title} ({len(rows)}):", *text_table(rows, width, shrink=(0,)), ""] if rows else []


def _wrap(line: str, width: int | None) -> list[str]:
    return [line] if width is None else textwrap.wrap(line, width, subsequent_indent="  ")


def _size(files: Sequence[Path]) -> int | None:
    return sum(path.stat().st_size for path in files) if files else None


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
