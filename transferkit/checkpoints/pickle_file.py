"""Bare pickles that are not torch's: neon's model files, and the dicts of numpy arrays of some model zoos."""

from __future__ import annotations

import gzip
import mmap
import re
import zlib
from pathlib import Path

from transferkit.checkpoints.contents import Contents, ReadOptions
from transferkit.checkpoints.neon.reader import is_neon, neon_contents
from transferkit.checkpoints.nested import contents_of
from transferkit.checkpoints.pickle_numpy import read_plain_pickle
from transferkit.checkpoints.registry import register_reader
from transferkit.errors import CheckpointError

GZIP = b"\x1f\x8b"

_LARGEST_SURPRISE = 1 << 25  # bytes that a gzip file may hold however small it is
_LARGEST_RATIO = 20  # weights hardly shrink

# How a pickle of a dict or list begins: a protocol number and one of their instructions; or, in the two oldest
# protocols, those alone.
_BEGINNING = re.compile(rb"\x80[\x02-\x05][\x95}\](c]|\((dp?|lp?)\d*\n|}q|\]q|c[a-zA-Z_.]+\n", re.DOTALL)


def looks_like_pickle(head: bytes) -> bool:
    """Whether a file that begins like this is a pickle."""
    return _BEGINNING.match(head) is not None


def _matches(path: Path, head: bytes) -> bool:
    return head.startswith(GZIP) or looks_like_pickle(head)


@register_reader("pickle", matches=_matches, suffixes=(".p", ".prm", ".pkl", ".pickle"))
def read_pickle_file(path: Path, options: ReadOptions) -> Contents:
    """Read a pickle of containers and numpy arrays, also gzipped; nothing in it is imported or called."""
    saved = read_plain_pickle(_buffer(path))
    if is_neon(saved):
        return neon_contents(saved, options)
    return contents_of(saved, key=options.key)


def _buffer(path: Path) -> bytes | memoryview:
    """Return the bytes of a file: mapped, or unpacked within reason."""
    with path.open("rb") as file:
        if file.read(2) == GZIP:
            return _unpacked(path)
        if path.stat().st_size == 0:
            raise CheckpointError("the file is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _unpacked(path: Path) -> bytes:
    limit = max(_LARGEST_SURPRISE, _LARGEST_RATIO * path.stat().st_size)
    try:
        with gzip.open(path) as file:
            unpacked = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CheckpointError(f"damaged gzip file: {error}") from error
    if len(unpacked) > limit:
        raise CheckpointError(
            f"refused: unpacked it would be over {limit:,} bytes, {_LARGEST_RATIO} times its size"
        )
    if not looks_like_pickle(unpacked[:64]):
        raise CheckpointError("a gzip file that holds no pickle; unpack it (gunzip) and read what is inside")
    return unpacked
