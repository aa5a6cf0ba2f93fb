"""Plain pickles, joblib's and numpy's .npy: containers, arrays and objects, nothing of which is imported or called."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from transferkit.checkpoints._pickles import read_pickle
from transferkit.checkpoints._state_dicts import contents_of
from transferkit.checkpoints._torch_files import absent, mapped, notes_of, stored_in
from transferkit.checkpoints._torch_values import TorchReader
from transferkit.checkpoints.neon._reader import is_neon, neon_contents
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError

# The first bytes of a pickle of a dict, a list, a tuple or an object: a protocol number and an instruction that makes
# one of them; in protocols 0 and 1 the instruction alone.
_BEGINNING = re.compile(
    rb"\x80[\x02-\x05][\x95}\](cX)]|\((dp?|lp?|ip?)\d*\n|}q|\]q|\(c|c[a-zA-Z_.0-9]+\n[a-zA-Z_.0-9]+\n", re.DOTALL
)
_NPY = b"\x93NUMPY"


@register_reader(
    "pickle",
    matches=lambda path, head: _BEGINNING.match(head) is not None,
    suffixes=(".p", ".prm", ".pkl", ".pickle", ".joblib"),
)
def read_pickle_file(path: Path, options: ReadOptions) -> Contents:
    """Read a pickle of containers, arrays and objects; nothing in it is imported or called."""
    if path.stat().st_size == 0:
        raise CheckpointError("the file is empty")
    saved, notes = unpickled(mapped(path))
    if is_neon(saved):
        return neon_contents(saved, options)
    return contents_of(saved, key=options.key, notes=notes)


def unpickled(buffer: memoryview, start: int = 0) -> tuple[Any, list[str]]:
    """Return what the pickle at a place stands for, and what there is to say of it."""
    reader = TorchReader(len(buffer), absent, stored_in)
    return reader.read(read_pickle(buffer, start)), notes_of(reader)


@register_reader("npy", matches=lambda path, head: head.startswith(_NPY), suffixes=(".npy",))
def read_npy(path: Path, options: ReadOptions) -> Contents:
    """Read one array; where it holds objects, what numpy pickled."""
    saved, notes = array_in(mapped(path))
    return contents_of(saved, key=options.key, notes=notes)


def array_in(buffer: memoryview) -> tuple[Any, list[str]]:
    """Return the array of an .npy file, or the objects in it, and what there is to say of them.

    Raises:
        CheckpointError: It is damaged, declares more than it holds, or holds what is no number, text or object.
    """
    stream = io.BytesIO(buffer[: 1 << 16])
    try:
        version = npy.read_magic(stream)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(stream)
    except Exception as error:
        raise CheckpointError(f"damaged: {error}") from error
    if dtype.hasobject and dtype.kind == "O":
        return unpickled(buffer, stream.tell())
    count = int(np.prod(shape, dtype=object))
    if dtype.kind not in "biufc" or dtype.itemsize > 16:
        raise CheckpointError(f"refused: an array of {dtype}; only plain numbers and pickled objects are read")
    if any(side < 0 for side in shape) or count * dtype.itemsize > len(buffer) - stream.tell():
        raise CheckpointError(f"damaged: it declares a shape of {shape} and has {len(buffer):,} bytes")
    flat = np.frombuffer(buffer, dtype, count, stream.tell())
    return flat.astype(dtype.newbyteorder("=")).reshape(shape, order="F" if fortran else "C"), []
