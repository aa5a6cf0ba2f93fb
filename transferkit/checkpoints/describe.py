"""A checkpoint in words: as a table for people, as plain values for programs."""

from __future__ import annotations

import fnmatch
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from transferkit.checkpoints.checkpoint import Checkpoint
from transferkit.checkpoints.compare import Comparison
from transferkit.checkpoints.text_table import text_table
from transferkit.layers import Layer

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
    return "\n".join([*lines, *(wrapped for line in after for wrapped in _wrap(line, width))])


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
    return "\n".join([*lines, f"the same in {what}: {comparison.same:,} tensors"])


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
        "states": {short: sorted(states) for short, states in layer.states.items()},
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
    return text_table(
        rows, width, shrink=(header.index("tensors"), header.index("name")), right=("#", "in file", "elements")
    )


def _states(layers: list[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for layer in layers for names in layer["states"].values() for name in names)
    having = sum(bool(layer["states"]) for layer in layers)
    return [f"optimizer state: {', '.join(names)} for {having} of {len(layers)} layers"] if names else []


def _section(title: str, rows: Sequence[tuple[str, ...]], width: int | None) -> list[str]:
    return [f"{title} ({len(rows)}):", *text_table(rows, width), ""] if rows else []


def _wrap(line: str, width: int | None) -> list[str]:
    return [line] if width is None else textwrap.wrap(line, width, subsequent_indent="  ")


def _size(files: Sequence[Path]) -> int | None:
    return sum(path.stat().st_size for path in files) if files else None


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
