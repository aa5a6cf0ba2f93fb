"""Files around files: gzip and zlib, tar and zip, stable-baselines3's; what is inside is read as itself."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from transferkit.checkpoints._archives import LARGEST_SURPRISE, open_zip, zip_names
from transferkit.checkpoints._optimizers import ParameterState
from transferkit.checkpoints._state_dicts import contents_of
from transferkit.checkpoints._torch_files import load_inert
from transferkit.checkpoints.registry import Contents, ReadOptions, find_format, register_reader, why_not_read
from transferkit.errors import CheckpointError, MissingExtraError, listed
from transferkit.memory import copied

_GZIP = b"\x1f\x8b"
_ZLIB = (b"x\x01", b"x^", b"x\x9c", b"x\xda")
_GZIP_FORMAT, _ZLIB_FORMAT = 31, 15  # of zlib
_CHUNK = 1 << 20
_MOST_MEMBERS = 500
_DEEPEST = 3  # containers in containers

Member = tuple[str, Callable[[], IO[bytes]]]


def _inside(path: Path, options: ReadOptions) -> Contents:
    """Return what a file that is about to be deleted holds, in memory."""
    if options.depth >= _DEEPEST:
        raise CheckpointError(
            f"refused: more than {_DEEPEST} archives in each other; unpack it and read what is inside"
        )
    form = find_format(path)
    found = form.read(path, replace(options, depth=options.depth + 1))
    states = {key: ParameterState.of(state).copied() for key, state in found.states.items()}
    return replace(
        found, tensors=copied(found.tensors), states=states, format=found.format or form.name, files=()
    )


# One compressed file.


def _is_compressed(path: Path, head: bytes) -> bool:
    if head.startswith(_ZLIB):
        try:
            return bool(zlib.decompressobj(_ZLIB_FORMAT).decompress(head, 64))
        except zlib.error:
            return False
    return head.startswith(_GZIP)


@register_reader("compressed", matches=_is_compressed)
def read_compressed(path: Path, options: ReadOptions) -> Contents:
    """Read the one file that gzip or zlib packed."""
    with TemporaryDirectory() as folder:
        inner = Path(folder, f"inside{path.with_suffix('').suffix}")
        _unpack(path, inner)
        try:
            return _inside(inner, options)
        except CheckpointError as error:
            raise CheckpointError(f"a compressed file, and what is in it: {why_not_read(error)}") from error


def _unpack(path: Path, inner: Path) -> None:
    """Unpack a file step by step; Python's own reader takes a minute for each gigabyte of padding behind it."""
    size, unpacked = path.stat().st_size, 0
    limit = size + LARGEST_SURPRISE
    with path.open("rb") as file, inner.open("wb") as target:
        unpacker = zlib.decompressobj(_GZIP_FORMAT if file.read(2) == _GZIP else _ZLIB_FORMAT)
        file.seek(0)
        try:
            while not unpacker.eof and (chunk := unpacker.unconsumed_tail or file.read(_CHUNK)):
                unpacked += target.write(unpacker.decompress(chunk, _CHUNK))
                if unpacked > limit:
                    raise CheckpointError(
                        f"refused: {size:,} bytes that would unpack to more than {limit:,}; unpack it (gunzip) and "
                        "read what is inside"
                    )
        except zlib.error as error:
            raise CheckpointError(f"damaged compressed file: {error}") from error
        if not unpacker.eof:
            raise CheckpointError("damaged compressed file: it ends too early")
        if unpacker.unused_data.strip(b"\0") or not _only_zeros(file):
            raise CheckpointError(
                "a compressed file with more behind it; unpack it (gunzip) and read what is inside"
            )


def _only_zeros(file: IO[bytes]) -> bool:
    return all(chunk == bytes(len(chunk)) for chunk in iter(lambda: file.read(_CHUNK), b""))


# Archives of several files.


@register_reader("tar", matches=lambda path, head: head[257:262] == b"ustar")
def read_tar(path: Path, options: ReadOptions) -> Contents:
    """Read the files in a tar archive that can be read; its links and folders are nothing."""
    with tarfile.open(path, "r:") as archive:
        members = [member for member in _tar_members(archive) if member.isreg() and not member.issparse()]
        if sum(member.size for member in members) > path.stat().st_size:
            raise CheckpointError("refused: the members of the archive are larger than the file")
        return _read_members([(member.name, partial(_opened, archive, member)) for member in members], options)


def _opened(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    found = archive.extractfile(member)
    if found is None:
        raise CheckpointError(f"damaged tar archive: {member.name} is no file")
    return found


def _tar_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    try:
        for count, member in enumerate(archive):
            if count == _MOST_MEMBERS:
                raise CheckpointError(f"an archive of more than {_MOST_MEMBERS} files; unpack it and read one")
            yield member
    except tarfile.TarError as error:
        raise CheckpointError(f"damaged tar archive: {error}") from error


@register_reader("zip", matches=lambda path, head: head.startswith(b"PK") and bool(zip_names(path)))
def read_zip(path: Path, options: ReadOptions) -> Contents:
    """Read the files in a zip archive that can be read; of stable-baselines3, the policy with its optimizer."""
    with open_zip(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) > _MOST_MEMBERS:
            raise CheckpointError(f"an archive of {len(members):,} files; unpack it and read one")
        if sum(member.file_size for member in members) > path.stat().st_size + LARGEST_SURPRISE:
            raise CheckpointError(
                "refused: it would unpack to far more than it is; unpack it and read what is inside"
            )
        opened: list[Member] = [(member.filename, partial(archive.open, member)) for member in members]
        if "policy.pth" in archive.namelist():
            return _policy(dict(opened), options)
        return _read_members(opened, options)


def _read_members(members: list[Member], options: ReadOptions) -> Contents:
    """Return what the files of an archive hold: one alone as it is, several under their names."""
    asked = {name: _key_within(name, options.key) for name, _ in members}
    chosen = [name for name, key in asked.items() if key is not None]
    found, refused = dict[str, Contents](), dict[str, str]()
    for name, opened in members:
        if chosen and name not in chosen:
            continue
        key = (asked[name] or None) if chosen else options.key
        try:
            with TemporaryDirectory() as folder:
                found[name] = _inside(
                    _copy(opened, Path(folder, name).suffix, folder), replace(options, key=key)
                )
        except (CheckpointError, MissingExtraError) as error:
            refused[name] = why_not_read(error)
    if not found:
        reasons = [f"{name} ({reason:.200})" for name, reason in refused.items()]
        raise CheckpointError(
            f"an archive of {len(refused)} files, none of which is read: {listed(reasons, 4)}"
        )
    notes = [f"left out of the archive: {listed(list(refused), 4)}"] if refused else []
    if len(found) == 1:
        ((name, contents),) = found.items()
        return replace(contents, notes=(f"read {name} in the archive", *contents.notes, *notes))
    return _together({_stem(name): contents for name, contents in found.items()}, notes)


def _together(found: dict[str, Contents], notes: list[str]) -> Contents:
    """Return several contents as one, each under a name of its own."""
    if len({contents.layout for contents in found.values()}) > 1:
        raise CheckpointError(
            f"an archive of several formats; say which is meant with key=, one of {listed(list(found))}"
        )

    def under(what: str) -> dict[str, Any]:
        return {
            f"{name}.{key}" if key else name: value
            for name, one in found.items()
            for key, value in getattr(one, what).items()
        }

    return Contents(
        under("tensors"),
        under("states"),
        (*(f"{name}: {note}" for name, one in found.items() for note in one.notes), *notes),
        under("metadata"),
        kinds=under("kinds"),
        attributes=under("attributes"),
        ordered=all(one.ordered for one in found.values()),
        layout=next(iter(found.values())).layout,
    )


def _stem(name: str) -> str:
    """Return a member's name as the first part of a tensor's: without folder and suffix."""
    return name.rpartition("/")[2].rpartition(".")[0] or name.rpartition("/")[2]


def _key_within(name: str, key: str | None) -> str | None:
    """Return what a key names within a member, or ``None`` if it names something else."""
    stem = _stem(name)
    return key[len(stem) + 1 :] if key is not None and (key == stem or key.startswith(f"{stem}.")) else None


def _copy(opened: Callable[[], IO[bytes]], suffix: str, folder: str) -> Path:
    path = Path(folder, f"member{suffix if suffix.isascii() and len(suffix) < 20 else ''}")
    try:
        with opened() as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, NotImplementedError, EOFError) as error:
        raise CheckpointError(f"damaged: {error}") from error
    return path


_LARGEST_JSON = 1 << 24


def _policy(members: dict[str, Callable[[], IO[bytes]]], options: ReadOptions) -> Contents:
    """Return the policy of a stable-baselines3 archive, its optimizer's state and what it says of itself."""
    saved: dict[str, Any] = {}
    notes: list[str] = []
    with TemporaryDirectory() as folder:
        for name in (
            "policy.pth",
            *(name for name in members if name.endswith(".pth") and name != "policy.pth"),
        ):
            path = _copy(members[name], f".{len(saved)}.pth", folder)
            key = {"policy.pth": "model", "policy.optimizer.pth": "optimizer"}.get(name, _stem(name))
            try:
                saved[key], told = load_inert(path, mapped=False)
            except CheckpointError as error:
                raise CheckpointError(
                    f"a stable-baselines3 archive, of which {name} is not read: {error}"
                ) from error
            path.unlink()
            notes += told
        for name in ("data", "_stable_baselines3_version"):
            if name in members:
                text = _copy(members[name], "", folder).read_bytes()[:_LARGEST_JSON]
                saved |= _said(json.loads(text)) if name == "data" else {name[1:]: str(text, "utf-8").strip()}
    return replace(contents_of(saved, key=options.key, notes=notes), format="stable-baselines3")


def _said(data: Any) -> dict[str, Any]:
    """Return the settings that an archive keeps as plain values; others are programs in base64."""
    return {f"data.{key}": value for key, value in data.items() if not isinstance(value, dict)}
