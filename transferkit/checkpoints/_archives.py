"""Zip archives, checked before use."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from transferkit.errors import CheckpointError

_ENCRYPTED = 0x1
_LOCAL_MARK = b"PK\x03\x04"
_LOCAL_HEADER = 30  # bytes of a member's local header before its name
LARGEST_SURPRISE = 300_000_000  # bytes that a compressed file may hold beyond its own; weights hardly compress
_LARGEST_DIRECTORY = 1 << 24  # bytes; its entries take twenty times as much in memory
_DIRECTORY_SIZE = 5  # place in what zipfile finds at the end of an archive


def zip_names(path: Path) -> list[str]:
    """Return the names in an archive, none if it cannot be read as one."""
    try:
        with _opened(path) as archive:
            return archive.namelist()
    except CheckpointError:
        return []


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        with path.open("rb") as file:
            end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        if not end or end[_DIRECTORY_SIZE] <= _LARGEST_DIRECTORY:
            return zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory breaks zipfile in many ways
        raise CheckpointError(f"damaged zip archive: {error}") from error
    raise CheckpointError(f"refused: the directory of the archive has {end[_DIRECTORY_SIZE]:,} bytes")


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open an archive after checking that its members are distinct, in the clear, and no larger than the file.

    Raises:
        CheckpointError: They are not, or the archive is damaged.
    """
    archive = _opened(path)
    members = archive.infolist()
    if len({member.filename for member in members}) != len(members):
        raise CheckpointError("refused: two members of the archive have the same name")
    if any(member.flag_bits & _ENCRYPTED for member in members):
        raise CheckpointError("refused: the archive is encrypted")
    if sum(member.compress_size for member in members) > path.stat().st_size:
        raise CheckpointError("refused: the members of the archive overlap or are larger than the file")
    return archive


def place_of(path: Path, member: zipfile.ZipInfo, size: int) -> int:
    """Return the offset of a stored member's bytes, by its local header, which may differ from the directory's.

    Raises:
        CheckpointError: They do not lie in the ``size`` bytes of the file.
    """
    with path.open("rb") as file:
        file.seek(member.header_offset)
        local = file.read(_LOCAL_HEADER)
    if len(local) == _LOCAL_HEADER:
        name, extra = struct.unpack_from("<HH", local, 26)
        place = int(member.header_offset + _LOCAL_HEADER + name + extra)
        if local[:4] == _LOCAL_MARK and place + member.compress_size <= size:
            return place
    raise CheckpointError(f"damaged: {member.filename!r} is not where the archive's directory says")
