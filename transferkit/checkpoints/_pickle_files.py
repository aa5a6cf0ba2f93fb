"""Plain pickles, joblib's and numpy's .npy: containers, arrays and objects; nothing is imported or called."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from transferkit.checkpoints._archives import PLAIN_KINDS, npy_header
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
    rb"\x80[\x02-\x05][\x95}\](cX)]|\((dp?|lp?|ip?)\d*\n|}q|\]q|\(c|c[a-zA-Z_.0-9]+\n[a-zA-Z_.0-9]+\n",
    re.DOTALL,
)


@register_reader(
    "pickle",
    matches=lambda path, head: _BEGINNING.match(head) is not None and path.name != ".metadata",
    suffixes=(".p", ".prm", ".pkl", ".pickle", ".joblib"),
)
def read_pickle_file(path: Path, options: ReadOptions) -> Contents:
    """Read a pickle of containers, arrays and objects; nothing in it is imported or called."""
    if path.stat().st_size == 0:
        raise CheckpointError("the file is empty")
    saved, notes = unpickled(mapped(path))
    if is_neon(saved):
        found = neon_contents(saved, options)
        return replace(found, notes=(*found.notes, *notes))
    return contents_of(saved, key=options.key, notes=notes)


def unpickled(buffer: memoryview, start: int = 0) -> tuple[Any, list[str]]:
    """Return what the pickle at a place stands for, and what there is to say of it."""
    reader = TorchReader(len(buffer), absent, stored_in)
    return reader.read(read_pickle(buffer, start)), notes_of(reader)


_NPY = b"\x93NUMPY"
_LONGEST_HEADER = 1 << 16


@register_reader("npy", matches=lambda path, head: head.startswith(_NPY), suffixes=(".npy",))
def read_npy(path: Path, options: ReadOptions) -> Contents:
    """Read one array; where it holds objects, what numpy pickled."""
    buffer = mapped(path)
    stream = io.BytesIO(buffer[:_LONGEST_HEADER])
    shape, fortran, dtype = npy_header(stream, path.name)
    start, size = stream.tell(), math.prod(shape) * dtype.itemsize
    if dtype.kind == "O":
        saved, notes = unpickled(buffer, start)
        return contents_of(saved, key=options.key, notes=notes)
    if dtype.kind not in PLAIN_KINDS or dtype.itemsize > 16:
        raise CheckpointError(f"refused: an array of {dtype}; only plain numbers and pickled objects are read")
    if any(side < 0 for side in shape) or size > len(buffer) - start:
        raise CheckpointError(f"damaged: it declares a shape of {shape} and has {len(buffer):,} bytes")
    flat = np.frombuffer(buffer, dtype, math.prod(shape), start).astype(dtype.newbyteorder("="))
    return contents_of(flat.reshape(shape, order="F" if fortran else "C"), key=options.key)
