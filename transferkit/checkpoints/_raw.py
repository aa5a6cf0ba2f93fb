"""Raw bytes as tensors, of a file or of another one that it names in its own folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.checkpoints._protobuf import file_bytes
from transferkit.errors import CheckpointError, harmless
from transferkit.files import leaves_its_folder

_LARGE = 1 << 20  # bytes


def tensor_of(raw: memoryview, dtype: torch.dtype, shape: Sequence[int], what: str) -> Tensor:
    """Return little-endian bytes as a tensor: a view where they are aligned, else a copy.

    Raises:
        CheckpointError: The shape does not have as many bytes.
    """
    size = math.prod(shape) * dtype.itemsize
    if any(side < 0 for side in shape) or size != len(raw):
        raise CheckpointError(
            f"damaged: {harmless(what)} declares a shape of {tuple(shape)} and {dtype}, which takes {size:,} bytes, "
            f"and has {len(raw):,}"
        )
    if not size:
        return torch.empty(tuple(shape), dtype=dtype)
    flat = np.frombuffer(raw, np.uint8)
    if flat.ctypes.data % dtype.itemsize or not flat.flags.writeable:
        flat = _read_anew(raw, flat)
    tensor = torch.from_numpy(flat)
    return (tensor != 0 if dtype == torch.bool else tensor.view(dtype)).reshape(tuple(shape))


def _read_anew(raw: memoryview, flat: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a copy; a large part of a mapped file is read anew, faster than by its pages and in half the memory."""
    if isinstance(raw.obj, np.memmap) and len(raw) >= _LARGE:
        offset = flat.ctypes.data - raw.obj.ctypes.data
        return np.fromfile(str(raw.obj.filename), np.uint8, len(raw), offset=offset)
    return flat.copy()


class Neighbors:
    """The files that one names in its own folder, mapped when they are asked for.

    Args:
        folder: The folder, in which they must be; links are refused, since they lead out of it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: dict[Path, memoryview] = {}
        self._tensors: dict[tuple[object, ...], Tensor] = {}
        self._left: dict[Path, int] = {}

    def tensor(
        self, name: str, offset: int, size: int | None, dtype: torch.dtype, shape: Sequence[int], what: str
    ) -> Tensor:
        """Return a tensor that lies at a place of a file; the same one for the same place.

        Raises:
            CheckpointError: The file is not there, is outside the folder, or does not hold so much.
        """
        path = self._path(name, what)
        whole = self.opened.setdefault(path, file_bytes(path))
        end = len(whole) if size is None else offset + size
        if not 0 <= offset <= end <= len(whole):
            raise CheckpointError(
                f"damaged: {harmless(what)} lies at {offset:,} to {end:,} of the {len(whole):,} bytes of {path.name}"
            )
        key = (path, offset, dtype, *shape)
        if key not in self._tensors:
            left = self._left[path] = self._left.get(path, len(whole)) - (end - offset)
            if left < 0:
                raise CheckpointError(f"refused: tensors overlap in {path.name}")
            self._tensors[key] = tensor_of(whole[offset:end], dtype, shape, what)
        return self._tensors[key]

    def _path(self, name: str, what: str) -> Path:
        path = self.folder / name
        if not name or leaves_its_folder(name) or "\0" in name:
            raise CheckpointError(f"refused: {harmless(what)} is said to be outside the folder, in {name!r}")
        inside = [path, *path.parents][: len(path.relative_to(self.folder).parts)]
        if any(part.is_symlink() for part in inside):
            raise CheckpointError(
                f"refused: {name!r}, which holds {harmless(what)}, is a link; copy the files into one folder"
            )
        if not path.is_file():
            raise CheckpointError(f"{name!r}, which holds {harmless(what)}, is not beside it; put it there")
        return path
