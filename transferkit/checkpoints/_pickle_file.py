"""Bare pickles that are not torch's: neon's model files, and the dicts of numpy arrays of some model zoos."""

from __future__ import annotations

import mmap
import re
import zlib
from pathlib import Path
from typing import IO

from transferkit.checkpoints._archives import LARGEST_SURPRISE
from transferkit.checkpoints._pickles import read_pickle
from transferkit.checkpoints._state_dicts import contents_of
from transferkit.checkpoints._values import PlainReader
from transferkit.checkpoints.neon._reader import is_neon, neon_contents
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError

GZIP = b"\x1f\x8b"
_GZIP_FORMAT = 31  # of zlib
_CHUNK = 1 << 20

# The first bytes of a pickle of a dict or list: a protocol number and an instruction that makes one of them; in
# protocols 0 and 1 the instruction alone.
_BEGINNING = re.compile(rb"\x80[\x02-\x05][\x95}\](c]|\((dp?|lp?)\d*\n|}q|\]q|c[a-zA-Z_.]+\n", re.DOTALL)


def looks_like_pickle(head: bytes) -> bool:
    """Whether a file that begins like this is a pickle."""
    return _BEGINNING.match(head) is not None


def _matches(path: Path, head: bytes) -> bool:
    return head.startswith(GZIP) or looks_like_pickle(head)


@register_reader("pickle", matches=_matches, suffixes=(".p", ".prm", ".pkl", ".pickle"))
def read_pickle_file(path: Path, options: ReadOptions) -> Contents:
    """Read a pickle of containers and numpy arrays, also gzipped; nothing in it is imported or called."""
    buffer = _buffer(path)
    saved = PlainReader(len(buffer)).read(read_pickle(buffer))
    if is_neon(saved):
        return neon_contents(saved, options)
    return contents_of(saved, key=options.key)


def _buffer(path: Path) -> memoryview:
    """Return the bytes of a file: mapped, or unpacked within reason."""
    with path.open("rb") as file:
        if file.read(2) == GZIP:
            return _unpacked(path)
        if path.stat().st_size == 0:
            raise CheckpointError("the file is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _unpacked(path: Path) -> memoryview:
    """Unpack a gzip file step by step; Python's own reader takes a minute for each gigabyte of padding behind it."""
    size = path.stat().st_size
    limit = size + LARGEST_SURPRISE
    unpacker, unpacked = zlib.decompressobj(_GZIP_FORMAT), bytearray()
    try:
        with path.open("rb") as file:
            while not unpacker.eof and len(unpacked) <= limit and (chunk := file.read(_CHUNK)):
                unpacked += unpacker.decompress(chunk, limit + 1 - len(unpacked))
            padding = not unpacker.unused_data.strip(b"\0") and _only_zeros(file)
    except zlib.error as error:
        raise CheckpointError(f"damaged gzip file: {error}") from error
    if len(unpacked) > limit:
        raise CheckpointError(
            f"refused: {size:,} bytes that would unpack to more than {limit:,}; unpack it (gunzip) and read what is "
            "inside"
        )
    if not unpacker.eof:
        raise CheckpointError("damaged gzip file: it ends too early")
    if not padding or not looks_like_pickle(bytes(unpacked[:64])):
        raise CheckpointError(
            "a gzip file that holds no pickle alone; unpack it (gunzip) and read what is inside"
        )
    return memoryview(unpacked)


def _only_zeros(file: IO[bytes]) -> bool:
    return all(chunk == bytes(len(chunk)) for chunk in iter(lambda: file.read(_CHUNK), b""))
