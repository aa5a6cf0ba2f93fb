"""Any readable checkpoint to safetensors: shard by shard, compared after writing, and all of it or nothing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from transferkit.checkpoints._describe import ValueDifference, value_difference
from transferkit.checkpoints._safetensors import LAYOUT, mapped_tensors, safetensors_library
from transferkit.checkpoints.checkpoint import Checkpoint, read_checkpoint
from transferkit.errors import (
    ArgumentError,
    CheckpointError,
    OutputError,
    SelectionError,
    did_you_mean,
    listed,
    require,
)
from transferkit.files import require_writable, write_atomically, write_text
from transferkit.layers import Layer
from transferkit.memory import DeferredTensor, shared_groups
from transferkit.progress import Progress, track

_SUFFIX = ".safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD_SIZE = "5GB"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@runtime_checkable
class Rule(Protocol):
    """A rule of :mod:`transferkit.transfer.select`, such as ``tk.by_name("features.*")``."""

    @property
    def find(self) -> Callable[[Sequence[Layer]], frozenset[int]]:
        """What returns the places of the layers that the rule chooses."""
        ...


Select = Rule | Callable[[int, Layer], bool]
Rename = Mapping[str, str] | Callable[[str], str]


@dataclass(frozen=True)
class Converted:
    """What :func:`convert_checkpoint` wrote.

    Attributes:
        files: What was written: one file, or shards and their index.
        tensors: Number of tensors, each of which was read back and is bit for bit what it should be.
        bytes: Bytes of all tensors.
        cast: How the tensors that have another dtype now differ from the source's, by key.
        shared: Groups of keys that are one tensor: written under the first, the others named in the header.
        notes: What a user should know: decisions of the reader, and what was left out.
    """

    files: tuple[Path, ...]
    tensors: int
    bytes: int
    cast: Mapping[str, ValueDifference] = field(default_factory=dict)
    shared: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{path}" for path in self.files]
        equal = self.tensors - len(self.cast)
        lines.append(
            f"{self.tensors:,} tensors, {self.bytes:,} bytes; read back: {equal:,} equal the source bit for bit"
        )
        if self.cast:
            most = max(self.cast.values(), key=lambda difference: difference.largest)
            lines[-1] += f", {len(self.cast):,} cast, by at most {most.largest:.3g} ({most.key})"
        lines += [f"shared, and written under the first name: {' = '.join(group)}" for group in self.shared]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def convert_checkpoint(
    source: str | PathLike[str] | Checkpoint,
    destination: str | PathLike[str],
    *,
    rename: Rename | None = None,
    select: Select | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str | None = None,
    key: str | None = None,
    progress: Progress = False,
) -> Converted:
    """Write any readable checkpoint as safetensors.

    One shard at a time is in memory. Every tensor is read back and compared; after an error nothing of what was
    written is left, and what a kill leaves cannot be read as a whole.

    Args:
        source: What :func:`read_checkpoint` reads.
        destination: A file that ends in ``.safetensors``; or a folder, for shards and their index as Hugging Face
            names them (``model.safetensors`` where one is enough). What is there already is not written over.
        rename: ``{new: old}`` names of layers, with one ``*`` a side, ``{"*": "backbone.*"}``; or a function from a
            layer's name to its new one.
        select: Rule or predicate of the layers to write, as a transfer's; ``None`` writes all.
        dtype: What floating-point tensors become; others stay. ``None`` changes nothing.
        max_shard_size: Bytes of a shard, or ``"500MB"``; ``None``: ``"5GB"`` in a folder, no limit for a file.
        key: The state dict to take, where a file holds several.
        progress: How to show progress over the shards.

    Raises:
        ArgumentError: A rule of ``rename`` matches nothing, or makes two names one; the shards need a folder.
        SelectionError: ``select`` chooses nothing.
        CheckpointError: The source cannot be read, or has values that the dtype or safetensors cannot hold.
        OutputError: The destination is there already or cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> layers = Checkpoint.from_state_dict({"net.fc.weight": torch.ones(2, 3), "net.fc.bias": torch.ones(2)})
        >>> with TemporaryDirectory() as folder:
        ...     made = convert_checkpoint(layers, Path(folder) / "fc.safetensors", rename={"*": "net.*"})
        ...     read_checkpoint(made.files[0]).names, made.tensors
        (('fc',), 2)
    """
    library = safetensors_library("writing")
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source, key=key)
    tensors = _named(checkpoint, select, rename)
    shared = shared_groups(tensors.items())
    ties = {other: first for first, *others in shared for other in others}
    shards = _shards(
        {name: t for name, t in tensors.items() if name not in ties}, dtype, max_shard_size, destination
    )
    _require_storable(library, tensors, dtype)
    paths, index = _paths(Path(destination), len(shards))
    header = _header(checkpoint)
    cast: dict[str, ValueDifference] = {}
    with _all_or_nothing([*filter(None, [index]), *paths]):
        if index is not None:  # first, so that shards without the others are refused
            write_text(index, _index_text(shards, paths, header, dtype))
        for shard, path in track(
            [*zip(shards, paths, strict=True)], progress, description="writing", unit="shard"
        ):
            own = header | {other: first for other, first in ties.items() if first in shard}
            _write(library, path, shard, own, dtype, cast)
    written = [tensor for shard in shards for tensor in shard.values()]
    return Converted(
        files=(*filter(None, [index]), *paths),
        tensors=len(written),
        bytes=sum(_size(tensor, dtype) for tensor in written),
        cast=cast,
        shared=shared,
        notes=(*checkpoint.notes, *_left_out(checkpoint, tensors)),
    )


# Which tensors, under which names.


def _named(checkpoint: Checkpoint, select: Select | None, rename: Rename | None) -> dict[str, Tensor]:
    """Return the selected layers' tensors under their new keys."""
    layers = list(checkpoint)
    if isinstance(select, Rule):
        layers = [layers[place] for place in sorted(select.find(layers))]
    elif select is not None:
        layers = [layer for place, layer in enumerate(layers) if select(place, layer)]
    if not layers:
        raise SelectionError(
            f"select chooses none of the {len(checkpoint)} layers of {checkpoint.source or 'it'}"
        )
    names = _new_names([layer.name for layer in layers], rename)
    pairs = [
        (f"{name}.{short}" if name else short, tensor)
        for name, layer in zip(names, layers, strict=True)
        for short, tensor in layer.tensors.items()
    ]
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ArgumentError(f"rename gives one name to several tensors: {listed(twice)}")
    return dict(pairs)


def _new_names(names: list[str], rename: Rename | None) -> list[str]:
    if rename is None:
        return names
    if callable(rename):
        return [rename(name) for name in names]
    rules = [(new, old, _pattern(new, old)) for new, old in rename.items()]
    used: set[str] = set()
    found = []
    for name in names:
        rule = next(((new, old, hit) for new, old, pattern in rules if (hit := pattern.fullmatch(name))), None)
        if rule is not None:
            new, old, hit = rule
            used.add(old)
            name = new.replace("*", "".join(hit.groups())).strip(".")
        found.append(name)
    for old in rename.values():
        if old not in used:
            raise ArgumentError(f"rename finds no layer {old!r}{did_you_mean(old, names)}")
    return found


def _pattern(new: str, old: str) -> re.Pattern[str]:
    require(
        new.count("*") == old.count("*") <= 1,
        "rename",
        "{new: old} with one * on both sides or none",
        {new: old},
    )
    return re.compile("(.*)".join(map(re.escape, old.split("*"))), re.DOTALL)


def _left_out(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    count = sum(len(layer.tensors) for layer in checkpoint)
    if count > len(tensors):
        yield f"{count - len(tensors)} of {count} tensors are not selected"
    if any(layer.states for layer in checkpoint):
        yield "the optimizer's state is left out"


# Shards and files.


def _shards(
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    most: int | str | None,
    destination: str | PathLike[str],
) -> list[dict[str, Tensor]]:
    """Fill one shard after another in order; a tensor larger than a shard has one of its own."""
    to_file = Path(destination).suffix == _SUFFIX
    limit = _bytes(most) if most is not None else float("inf") if to_file else _bytes(_SHARD_SIZE)
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = _size(tensor, dtype)
        if shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    if to_file and len(shards) > 1:
        folder = Path(destination).with_suffix("")
        raise ArgumentError(f"{len(shards)} shards of at most {most} need a folder: write to {folder} instead")
    return shards


def _bytes(size: int | str) -> int:
    found = re.fullmatch(r"(\d+)\s*([A-Z]*)", str(size).strip().upper())
    unit = _UNITS.get(found[2]) if found else None
    require(
        bool(unit and found and int(found[1])), "max_shard_size", "a number of bytes or such as '5GB'", size
    )
    return int(found[1]) * unit  # type: ignore[index,operator]


def _size(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype.itemsize if dtype and tensor.is_floating_point() else tensor.itemsize)


def _paths(destination: Path, count: int) -> tuple[list[Path], Path | None]:
    """Return the files to write and their index, after checking that none is there."""
    to_file = destination.suffix == _SUFFIX
    if to_file:
        there = [destination] if destination.exists() else []
        paths, index = [destination], None
    else:
        there = sorted(destination.glob(f"*{_SUFFIX}*")) if destination.is_dir() else []
        names = [f"model-{i + 1:05}-of-{count:05}{_SUFFIX}" for i in range(count)]
        paths = [destination / name for name in (names if count > 1 else [f"model{_SUFFIX}"])]
        index = destination / _INDEX if count > 1 else None
    if there:
        raise OutputError(
            f"{destination if to_file else there[0]} is there already: remove it, or name another destination"
        )
    for path in paths[:1]:
        require_writable(path)
    return paths, index


@contextmanager
def _all_or_nothing(paths: Iterable[Path]) -> Iterator[None]:
    """Remove all files where a block that writes them raises."""
    try:
        yield
    except BaseException:
        for path in paths:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise


def _header(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what is said beside the tensors as text, which is all that a header holds."""
    kept = {
        str(name): value if isinstance(value, str) else json.dumps(value)
        for name, value in checkpoint.metadata.items()
        if isinstance(value, str | int | float | bool)
    }
    layout = checkpoint[0].layout
    return kept | {"format": "pt"} | ({} if layout == "torch" else {LAYOUT: layout})


def _index_text(
    shards: list[dict[str, Tensor]], paths: list[Path], header: Mapping[str, str], dtype: torch.dtype | None
) -> str:
    weight_map = {name: path.name for shard, path in zip(shards, paths, strict=True) for name in shard}
    total = sum(_size(tensor, dtype) for shard in shards for tensor in shard.values())
    metadata: dict[str, Any] = {**header, "total_size": total}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"


# Values.


def _require_storable(library: Any, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    require(dtype is None or dtype.is_floating_point, "dtype", "a floating-point dtype", dtype)
    kinds = {dtype if dtype and tensor.is_floating_point() else tensor.dtype for tensor in tensors.values()}
    for kind in kinds:
        try:
            library.save({"": torch.empty(0, dtype=kind)})
        except Exception as error:
            names = [name for name, tensor in tensors.items() if kind in (tensor.dtype, dtype)]
            raise CheckpointError(
                f"safetensors holds no {kind}, as of {listed(names, 4)}; leave these out with select"
            ) from error


def _value(name: str, tensor: Tensor, dtype: torch.dtype | None, cast: dict[str, ValueDifference]) -> Tensor:
    """Return a tensor as it is to be written, in memory of its own; note how a cast changed it."""
    plain = tensor.make() if isinstance(tensor, DeferredTensor) else tensor.detach()
    plain = plain.cpu().contiguous()
    if dtype is None or not plain.is_floating_point() or plain.dtype == dtype:
        return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()
    changed = plain.to(dtype)
    if int(changed.isinf().sum()) > int(plain.isinf().sum()):
        raise CheckpointError(
            f"{name} has values that {dtype} cannot hold; take a wider dtype, such as torch.bfloat16"
        )
    cast[name] = value_difference(name, plain, changed)
    return changed


def _finite(tensor: Tensor) -> int:
    """Return how many values are finite; torch does not tell it of 8-bit floats."""
    return int((tensor.float() if tensor.itemsize == 1 else tensor).isfinite().sum())


def _write(
    library: Any,
    path: Path,
    shard: Mapping[str, Tensor],
    header: Mapping[str, str],
    dtype: torch.dtype | None,
    cast: dict[str, ValueDifference],
) -> None:
    """Write one shard and compare it; its values are in memory no longer than that."""
    values = {name: _value(name, tensor, dtype, cast) for name, tensor in shard.items()}
    write_atomically(path, lambda file: library.save_file(values, file.name, metadata=header))
    _compare(path, values)


def _compare(path: Path, values: Mapping[str, Tensor]) -> None:
    """Read a file back, and compare it with what was to be written, bit for bit."""
    found = mapped_tensors(path)[0]
    wrong = [name for name, value in values.items() if name not in found or not _same(found[name], value)]
    if wrong or len(found) != len(values):
        raise OutputError(f"{path} does not hold what was written: {listed(wrong)}; is the disk sound?")


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
