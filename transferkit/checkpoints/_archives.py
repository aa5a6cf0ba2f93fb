"""Zip archives, opened with suspicion."""

from __future__ import annotations

import zipfile
from pathlib import Path

from transferkit.errors import CheckpointError

_ENCRYPTED = 0x1


def zip_names(path: Path) -> list[str]:
    """Return the names in an archive, none if it is no readable archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # a damaged directory breaks zipfile in many ways
        return []


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open an archive after checking that its members are distinct, in the clear, and no larger than the file.

    Raises:
        CheckpointError: They are not, or the archive is damaged.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        raise CheckpointError(f"damaged zip archive: {error}") from error
    members = archive.infolist()
    if len({member.filename for member in members}) != len(members):
        raise CheckpointError("refused: two members of the archive have the same name")
    if any(member.flag_bits & _ENCRYPTED for member in members):
        raise CheckpointError("refused: the archive is encrypted")
    if sum(member.compress_size for member in members) > path.stat().st_size:
        raise CheckpointError("refused: the members of the archive overlap or are larger than the file")
    return archive
