"""PyTorch's sharded checkpoints: the folders of torch.distributed.checkpoint, FSDP's and DTensors' among them.

Every rank writes a file of its own, in which each tensor, or the rank's part of it, lies as ``torch.save`` writes it.
What belongs where stands in ``.metadata``, a pickle that torch loads in the ordinary way, so that a crafted one runs
as its user; here it is read as data. A tensor is put together of its parts when it is first used.
"""

from __future__ import annotations

import math
import mmap
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.checkpoints._archives import check_directory
from transferkit.checkpoints._inert import Call, Global, Pickle
from transferkit.checkpoints._pickles import read_pickle
from transferkit.checkpoints._state_dicts import check_names, contents_of
from transferkit.checkpoints._torch_files import PICKLE, pickle_in
from transferkit.checkpoints._torch_values import TorchReader
from transferkit.checkpoints._values import PlainReader
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader, why_not_read
from transferkit.errors import CheckpointError, listed
from transferkit.layers import natural_order
from transferkit.memory import DeferredTensor

METADATA = ".metadata"
PART = ".distcp"
_LARGEST_METADATA = 1 << 28  # bytes
_MOST_PARTS = 8192  # of one tensor
_LARGEST_SIDE = 1 << 40
_DEEPEST = 16  # keys from the saved object to a value
_LOCAL_HEADER = 30  # bytes of a zip member's local header before its name


def is_dcp(path: Path) -> bool:
    """Whether a folder is a sharded checkpoint, or a file one of its parts."""
    return path.is_file() if path.name == METADATA or path.suffix == PART else (path / METADATA).is_file()


_ORDER_NOTE = "the ranks' files do not tell the order of layers; they are in the natural order of their names"


@register_reader("dcp", matches=lambda path, head: is_dcp(path))
def read_dcp(path: Path, options: ReadOptions) -> Contents:
    """Read a folder that torch.distributed.checkpoint wrote; the parts of a tensor are read when it is used."""
    folder = path if path.is_dir() else path.parent
    described, where, paths = _metadata(folder / METADATA)
    check_names(described)
    places = _places(folder, where)
    values: dict[str, Any] = {}
    unread: list[str] = []
    ordered = _keeps_order(described, places, paths)
    for name in paths if ordered else sorted(described, key=natural_order):
        part = partial(_place, places, name)
        if name in described and "size" in described[name]:
            values[name] = _tensor(name, described[name], part)
        elif name in described:
            try:
                values[name] = _saved_at(part(None))
            except CheckpointError as error:
                unread.append(f"{name} ({error})")
    found = contents_of(_nested(values, paths), key=options.key)
    notes = [f"left out, since they are no plain values: {listed(unread, 4)}"] if unread else []
    notes += [] if ordered else [_ORDER_NOTE]
    return replace(
        found,
        notes=(*found.notes, *notes),
        files=(folder / METADATA, *dict.fromkeys(place.file for place in places.values())),
        ordered=found.ordered and ordered,
    )


def _keeps_order(
    described: Mapping[str, Mapping[str, Any]], places: Mapping[str, _Place], paths: Mapping[str, Any]
) -> bool:
    """Whether the planner's names stand in the order of the model: there was one rank, or all had all layers."""
    ranks = {place.file.name.rpartition("_")[0] for place in places.values()}
    holding: dict[str, set[str]] = {}
    for index, place in places.items():
        holding.setdefault(index.partition(":")[2], set()).add(place.file.name.rpartition("_")[0])
    together = len(ranks) == 1 or any(held == ranks for held in holding.values())
    return together and described.keys() <= paths.keys()


# What .metadata says: for each name the shape and the parts of a tensor, and where in which file each part lies.


_MODULES = (
    *("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"),
    *("torch.distributed._shard.checkpoint.metadata", "torch.distributed._shard.checkpoint.filesystem"),
    "torch.distributed._shard.sharded_tensor.metadata",
)
_CLASSES = (
    *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "MetadataIndex"),
    *("TensorProperties", "StorageMeta", "_StorageInfo", "_MEM_FORMAT_ENCODING", "MEM_FORMAT_ENCODING"),
)
_OTHERS = ("torch.Size", "torch.serialization._get_layout")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")


class _MetadataReader(PlainReader):
    """Turns the known classes' records into dicts of their attributes."""

    def knows(self, name: Global) -> bool:
        return (
            (name.module in _MODULES and name.name in _CLASSES)
            or (name.module in ("pathlib", "pathlib._local") and name.name in _PATHS)
            or str(name) in _OTHERS
            or _dtype(name) is not None
            or super().knows(name)
        )

    def note_names(self, pickle: Pickle) -> None:
        blocked = sorted(str(name) for name in pickle.globals if not self.knows(name))
        if blocked:
            raise CheckpointError(
                f"refused, since reading its {METADATA} would import {listed(blocked)}, which torch does and which "
                "may run anything. Where you trust it, gather it on its own machine: python -m "
                "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pt"
            )

    def key(self, key: Any) -> Any:
        """Return the index of a stored item as text: strings have hashes that no file can foresee."""
        if not isinstance(key, Call):
            return super().key(key)
        index = self.plain(key)
        return _index(index["fqn"], index.get("offset"))

    def _made(self, value: Any) -> Any:
        return _dtype(value) if isinstance(value, Global) else super()._made(value)

    def called(self, function: Global, call: Call) -> Any:
        if function.module in _MODULES:
            return self.plain(call.state or {})
        if str(function) == "torch.Size":
            return self.plain(call.arguments[0])
        return None if self.knows(function) and not super().knows(function) else super().called(function, call)


def _dtype(name: Global) -> torch.dtype | None:
    found = vars(torch).get(name.name) if name.module == "torch" else None
    return found if isinstance(found, torch.dtype) else None


def _index(name: str, offsets: Sequence[int] | None) -> str:
    return f"{offsets and tuple(offsets)}:{name}"


def _metadata(
    path: Path,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], dict[str, Sequence[Any]]]:
    """Return what is stored by name, where by index, and the keys that led to each name in what was saved."""
    if not path.is_file():
        raise CheckpointError(f"one rank's part of a sharded checkpoint, whose {METADATA} is not beside it")
    size = path.stat().st_size
    if size > _LARGEST_METADATA:
        raise CheckpointError(f"refused: its {METADATA} alone has {size:,} bytes")
    found = _MetadataReader(size).read(read_pickle(path.read_bytes(), scale=_SCALE))
    paths = found.get("planner_data")
    return found["state_dict_metadata"], found["storage_data"], paths if isinstance(paths, dict) else {}


_SCALE = 6  # a part takes 95 instructions and 15 objects, so that 190,000 may be


@dataclass(frozen=True)
class _Place:
    """Where one item lies: as ``torch.save`` wrote it, in so many bytes of a file."""

    file: Path
    start: int
    length: int


def _places(folder: Path, where: Mapping[str, Mapping[str, Any]]) -> dict[str, _Place]:
    """Return the place of every item, after checking that all lie in files of the folder, and none over another."""
    places, encoded = {}, set[str]()
    for index, info in where.items():
        name, start, length = info["relative_path"], int(info["offset"]), int(info["length"])
        if name != Path(name).name or name in ("", ".", ".."):
            raise CheckpointError(f"refused: its {METADATA} points outside its folder, to {name!r}")
        encoded |= set(info.get("transform_descriptors") or ())
        places[index] = _Place(folder / name, start, length)
    if encoded:
        raise CheckpointError(
            f"its files are encoded with {listed(sorted(encoded))}; load it with torch.distributed.checkpoint and "
            "save it without extensions"
        )
    _check_places(places.values())
    return places


def _check_places(places: Any) -> None:
    files = {place.file: place.file.stat().st_size if place.file.is_file() else -1 for place in places}
    missing = [file.name for file, size in files.items() if size < 0]
    if missing:
        raise CheckpointError(f"{len(missing)} of {len(files)} files are missing: {listed(missing, 4)}")
    last, end = None, 0
    for place in sorted(places, key=lambda place: (place.file, place.start, place.length)):
        end = end if place.file == last else 0
        if place.start < end or place.length < 0 or place.start + place.length > files[place.file]:
            raise CheckpointError(
                f"refused: bytes {place.start:,} to {place.start + place.length:,} of {place.file.name}, as its "
                f"{METADATA} says, belong to another item or lie outside the file; is the folder copied whole?"
            )
        last, end = place.file, place.start + place.length


def _place(places: Mapping[str, _Place], name: str, offsets: Sequence[int] | None) -> _Place:
    found = places.get(_index(name, offsets))
    if found is None:
        at = "" if offsets is None else f", its part at {tuple(offsets)}"
        raise CheckpointError(f"damaged: its {METADATA} does not say where {name!r} lies{at}")
    return found


# Tensors of their parts.


_Part = tuple[tuple[int, ...], tuple[int, ...], _Place]  # offsets and sizes in the tensor, and where it lies


def _tensor(name: str, about: Mapping[str, Any], place: Callable[[tuple[int, ...]], _Place]) -> DeferredTensor:
    """Return a tensor that is put together when it is used, after checking that its parts are there, each once."""
    shape, dtype = tuple(about["size"]), about["properties"][0]
    boxes = [(tuple(chunk["offsets"]), tuple(chunk["sizes"])) for chunk in about["chunks"]]
    boxes = [(offsets, sizes) for offsets, sizes in boxes if 0 not in sizes]
    if not isinstance(dtype, torch.dtype) or not _cover(shape, boxes):
        raise CheckpointError(
            f"refused: the {len(boxes):,} parts of {name!r} do not cover its shape of {shape} once each; some are "
            "missing, repeated or outside"
        )
    parts = [(offsets, sizes, place(offsets)) for offsets, sizes in boxes]
    for _, sizes, at in parts:
        if math.prod(sizes) * dtype.itemsize > at.length:
            raise CheckpointError(
                f"refused: a part of {name!r} of shape {sizes} and {dtype} in {at.length:,} bytes"
            )
    return DeferredTensor(shape, dtype, partial(_assembled, name, shape, dtype, parts))


def _cover(shape: tuple[int, ...], boxes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether boxes cover a shape: all inside, none over another, and of its volume."""
    numbers = [*shape, *(number for box in boxes for numbers in box for number in numbers)]
    if not all(type(number) is int and 0 <= number < _LARGEST_SIDE for number in numbers):
        return False
    if len(boxes) > _MOST_PARTS or any({len(offsets), len(sizes)} != {len(shape)} for offsets, sizes in boxes):
        return False
    if sum(math.prod(sizes) for _, sizes in boxes) != math.prod(shape):
        return False
    if not boxes:
        return True
    begins, sizes = (np.array(side, np.int64).reshape(len(boxes), -1) for side in zip(*boxes, strict=True))
    ends = begins + sizes
    overlap = any(((begins[i] < ends[:i]) & (begins[:i] < ends[i])).all(1).any() for i in range(1, len(boxes)))
    return bool((ends <= np.array(shape, np.int64)).all()) and not overlap


def _assembled(name: str, shape: tuple[int, ...], dtype: torch.dtype, parts: Sequence[_Part]) -> Tensor:
    """Read a tensor: one part as it lies in its file, several copied side by side."""
    whole = None if len(parts) == 1 else torch.empty(shape, dtype=dtype)
    for offsets, sizes, place in parts:
        part = _saved_at(place)
        if not isinstance(part, Tensor) or part.dtype != dtype or tuple(part.shape) != sizes:
            found = f"{list(part.shape)} {part.dtype}" if isinstance(part, Tensor) else type(part).__name__
            raise CheckpointError(
                f"{place.file}: damaged: {found} at byte {place.start:,}, where {METADATA} says that {list(sizes)} "
                f"{dtype} of {name!r} lies"
            )
        if whole is None:
            return part.detach().contiguous()
        at = tuple(slice(begin, begin + size) for begin, size in zip(offsets, sizes, strict=True))
        whole[at].copy_(part)
    return torch.empty(shape, dtype=dtype) if whole is None else whole


class _Map(mmap.mmap):
    """Mapped bytes in the form of a file, as zipfile wants one."""

    def seekable(self) -> bool:
        return True


def _saved_at(place: _Place) -> Any:
    """Return what ``torch.save`` wrote at a place; its tensors are mapped from there."""
    if place.length == 0:
        raise CheckpointError(f"{place.file}: damaged: an item of no bytes")
    begin = place.start - place.start % mmap.ALLOCATIONGRANULARITY
    try:
        with place.file.open("rb") as file:
            size = place.start + place.length - begin
            mapped = _Map(file.fileno(), size, access=mmap.ACCESS_COPY, offset=begin)
        check_directory(mapped)
        with zipfile.ZipFile(mapped) as archive:  # type: ignore[call-overload]
            members = {member.filename: member for member in archive.infolist()}
            pickle = pickle_in(members)
            root = pickle.removesuffix(PICKLE)
            if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != sys.byteorder.encode():
                raise CheckpointError("written with the other byte order; read it on such a machine")
            program = archive.read(pickle)
        load = partial(_storage, mapped, place.start - begin, members, root)
        reader = TorchReader(len(program), load)
        saved = reader.read(read_pickle(program))
        if reader.unknown:
            raise CheckpointError(f"it would import {listed(sorted(reader.unknown))}")
        return saved
    except Exception as error:
        raise CheckpointError(f"{place.file}: at byte {place.start:,}: {why_not_read(error)}") from error


def _storage(
    mapped: _Map,
    first: int,
    members: Mapping[str, zipfile.ZipInfo],
    root: str,
    key: str,
    dtype: torch.dtype,
    count: int,
) -> Tensor:
    """Return a storage of an archive as a flat tensor over the map."""
    member, size = members.get(f"{root}data/{key}"), count * dtype.itemsize
    if member is None or not first <= member.header_offset <= len(mapped) - _LOCAL_HEADER:
        raise CheckpointError(f"damaged: storage {key!r} is not there")
    name, extra = struct.unpack_from("<HH", mapped, member.header_offset + 26)
    start = member.header_offset + _LOCAL_HEADER + name + extra
    if size > member.file_size or start + size > len(mapped):
        raise CheckpointError(f"refused: storage {key!r} of {count:,} elements in {member.file_size:,} bytes")
    flat = (
        torch.frombuffer(mapped, dtype=dtype, count=count, offset=start)
        if count
        else torch.empty(0, dtype=dtype)
    )
    return flat.clone() if start % dtype.itemsize else flat


# What was saved, made of its names: torch's planner makes one name of the keys that lead to a value.


def _nested(values: Mapping[str, Any], paths: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return values under the keys that led to them."""
    root: dict[Any, Any] = {}
    for name, value in values.items():
        here, path = root, paths.get(name) or (name,)
        if len(path) > _DEEPEST:
            raise CheckpointError(f"refused: {name!r} lies under {len(path)} keys")
        for part in path[:-1]:
            here = here.setdefault(part, {})
        if path[-1] in here:
            raise CheckpointError(f"refused: two values are called {name!r}")
        here[path[-1]] = value
    return _restored(root)  # type: ignore[no-any-return]


def _restored(value: Any) -> Any:
    """Return lists for the dicts that the planner made of them, and optimizer states as optimizers have them."""
    if not isinstance(value, dict) or not value:
        return value
    if all(str(key).startswith(("state.", "param_groups.")) for key in value):
        value = _optimizer(value)
    inside = {key: _restored(item) for key, item in value.items()}
    if all(type(key) is int for key in inside):
        return [inside[key] for key in sorted(inside)]
    groups, state = inside.get("param_groups"), inside.get("state")
    if isinstance(groups, list) and isinstance(state, dict):
        numbered = any(type(number) is int for group in groups for number in group.get("params", ()))
        inside["state"] = {int(key): item for key, item in state.items()} if numbered else state
    return inside


def _optimizer(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of an optimizer that was saved flat: ``state.conv.weight.exp_avg``."""
    found: dict[str, dict[str, dict[str, Any]]] = {"state": {}, "param_groups": {}}
    for key, value in flat.items():
        path, _, last = key.rpartition(".")
        kind, _, parameter = path.partition(".")
        found[kind].setdefault(parameter, {})[last] = value
    groups = [{"params": [name], **options} for name, options in found["param_groups"].items()]
    return {"state": found["state"], "param_groups": groups}
