"""Tar files from elsewhere, unpacked so that nothing can be written outside one folder."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from transferkit.errors import DataError
from transferkit.progress import Progress, track

_GIB = 1 << 30


def extract_tar(archive: Path, folder: Path, *, max_bytes: int = 16 * _GIB, progress: Progress = False) -> Path:
    """Unpack a plain tar file into a new folder, which appears in one step when all is written.

    Everything the archive holds is looked at before anything is written: only folders and ordinary files, with
    paths that stay inside. Links and devices are refused altogether, and so are compressed archives, whose size
    cannot be told beforehand.

    Args:
        archive: A tar file, not compressed.
        folder: Where its content goes; must not exist.
        max_bytes: More content than this is refused.
        progress: Counts files.

    Returns:
        ``folder``.

    Raises:
        DataError: Not a tar file, damaged, or refused; names the archive and its first bad members.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    try:
        with tarfile.open(archive, "r:") as tar:
            # The standard library's own filter is a second line: older Python patch releases are without it.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            members = tar.getmembers()
            _check(members, archive, max_bytes)
            partial.mkdir(parents=True)
            for member in track(members, progress, description=f"extract {archive.name}", unit="file"):
                tar.extract(member, partial, set_attrs=False)
    except (tarfile.TarError, EOFError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(f"{archive} is not a whole, uncompressed tar file: {error}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return partial.replace(folder)


def _check(members: Iterable[tarfile.TarInfo], archive: Path, max_bytes: int) -> None:
    reasons = [f"{member.name!r} {reason}" for member in members if (reason := _objection(member))]
    if reasons:
        more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        raise DataError(f"{archive} is refused, nothing was extracted: {', '.join(reasons[:5])}{more}")
    size = sum(member.size for member in members)
    if size > max_bytes:
        raise DataError(f"{archive} is refused, nothing was extracted: {size} bytes inside, over {max_bytes}")


def _objection(member: tarfile.TarInfo) -> str:
    if member.issparse() or not (member.isreg() or member.isdir()):
        return "is neither a file nor a folder"
    posix, windows = PurePosixPath(member.name), PureWindowsPath(member.name)
    if posix.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        return "leads out of the folder"
    return ""
