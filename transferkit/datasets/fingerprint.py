"""Whether an image is still the one that it was."""

from __future__ import annotations

import hashlib
from pathlib import Path


def fingerprint(photo: Path, *annotation: object) -> str:
    """Return a digest of a file's bytes and of its annotation; a file that cannot be read has that as its
    digest.

    Args:
        photo: The file.
        annotation: Plain values.
    """
    digest = hashlib.blake2b(repr(annotation).encode(), digest_size=16)
    try:
        digest.update(photo.read_bytes())
    except OSError as error:
        digest.update(f"cannot be read: {type(error).__name__}".encode())
    return digest.hexdigest()
