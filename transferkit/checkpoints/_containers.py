"""Files around files: gzip and zlib, tar and zip, stable-baselines3's; what is inside is read as itself."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
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
_EXPORTED = "serialized_state_dict.pt"
_DEEPEST = 3  # containers in containers

Member = tuple[str, Callable[[], IO[bytes]]]


def _inside(path: Path, options: ReadOptions) -> Contents:
    """Return what a file that is about to be deleted holds, in memory."""
    if options.depth >= _DEEPEST:
        raise CheckpointError(f"refused: more than {_DEEPEST} archives in each other; unpack the outer ones")
    form = find_format(path)
    found = form.read(path, replace(options, depth=options.depth + 1))
    states = {key: ParameterState.of(state).copied() for key, state in found.states.items()}
    name = found.format or form.name
    return replace(found, tensors=copied(found.tensors), states=states, format=name, files=())


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
                    told = f"refused: {size:,} bytes that would unpack to more than {limit:,}"
                    raise CheckpointError(f"{told}; unpack it (gunzip) and read what is inside")
        except zlib.error as error:
            raise CheckpointError(f"damaged compressed file: {error}") from error
        if not unpacker.eof:
            raise CheckpointError("damaged compressed file: it ends too early")
        if unpacker.unused_data.strip(b"\0") or not _only_zeros(file):
            raise CheckpointError("a compressed file with more behind it; unpack it (gunzip) and read the rest")


def _only_zeros(file: IO[bytes]) -> bool:
    return all(chunk == bytes(len(chunk)) for chunk in iter(lambda: file.read(_CHUNK), b""))


# Archives of several files.


@register_reader("tar", matches=lambda path, head: head[257:262] == b"ustar")
def read_tar(path: Path, options: ReadOptions) -> Contents:
    """Read the files in a tar archive that can be read; its links and folders are nothing."""
    with tarfile.open(path, "r:") as archive:
        members = list(islice(archive, _MOST_MEMBERS + 1))
        if len(members) > _MOST_MEMBERS:
            raise CheckpointError(f"an archive of more than {_MOST_MEMBERS} files; unpack it and read one")
        members = [member for member in members if member.isreg() and not member.issparse()]
        if sum(member.size for member in members) > path.stat().st_size:
            raise CheckpointError("refused: the members of the archive are larger than the file")
        opened: list[Any] = [(member.name, partial(archive.extractfile, member)) for member in members]
        return _read_members(opened, options)


@register_reader("zip", matches=lambda path, head: head.startswith(b"PK") and bool(zip_names(path)))
def read_zip(path: Path, options: ReadOptions) -> Contents:
    """Read the files in a zip archive that can be read; of stable-baselines3, the policy with its optimizer."""
    with open_zip(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) > _MOST_MEMBERS:
            raise CheckpointError(f"an archive of {len(members):,} files; unpack it and read one")
        if sum(member.file_size for member in members) > path.stat().st_size + LARGEST_SURPRISE:
            raise CheckpointError(
                "refused: it would unpack to far more than it is; unpack it and read one file"
            )
        opened: list[Member] = [(member.filename, partial(archive.open, member)) for member in members]
        if "policy.pth" in archive.namelist():
            return _policy(dict(opened), options)
        if _EXPORTED in archive.namelist() and options.key is None:  # torch.export's, before torch 2.7
            options = replace(options, key=_EXPORTED.removesuffix(".pt"))
        return _read_members(opened, options)


def _read_members(members: list[Member], options: ReadOptions) -> Contents:
    """Return what the files of an archive hold: one alone as it is, several under their names."""
    names = _short_names([name for name, _ in members])
    asked = options.key or ""
    chosen = [name for name in names.values() if f"{asked}.".startswith(f"{name}.")]
    found, refused = dict[str, Contents](), dict[str, str]()
    for name, opened in members:
        short = names[name]
        if chosen and short not in chosen:
            continue
        key = (asked[len(short) + 1 :] or None) if chosen else options.key
        try:
            with TemporaryDirectory() as folder:
                path = _copy(opened, Path(folder, name).suffix, folder)
                found[short] = _inside(path, replace(options, key=key))
        except (CheckpointError, MissingExtraError) as error:
            refused[name] = why_not_read(error)
    if not found:
        reasons = listed([f"{name} ({reason:.100})" for name, reason in refused.items()], 4)
        raise CheckpointError(f"an archive of {len(refused)} files, none of which is read: {reasons}")
    notes = [f"left out of the archive: {listed(list(refused), 4)}"] if refused else []
    if len(found) == 1:
        ((short, contents),) = found.items()
        name = next(name for name, own in names.items() if own == short)
        return replace(contents, notes=(f"read {name} in the archive", *contents.notes, *notes))
    return _together(found, notes)


def _short_names(names: list[str]) -> dict[str, str]:
    """Return the members' names as the first parts of tensors': dotted, and without suffixes that tell nothing."""
    short = {name: ".".join(Path(name).with_suffix("").parts) if Path(name).suffix else name for name in names}
    if len(short) != len(names):
        raise CheckpointError("refused: two members of the archive have the same name")
    count = Counter(short.values())
    return {name: own if count[own] == 1 else ".".join(Path(name).parts) for name, own in short.items()}


def _together(found: dict[str, Contents], notes: list[str]) -> Contents:
    """Return several contents as one, each under a name of its own."""
    if len({contents.layout for contents in found.values()}) > 1:
        raise CheckpointError(f"of several formats; say which is meant with key=, one of {listed(list(found))}")

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


def _copy(opened: Callable[[], IO[bytes]], suffix: str, folder: str) -> Path:
    path = Path(folder, f"member{suffix if suffix.isascii() and len(suffix) < 20 else ''}")
    try:
        with opened() as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, NotImplementedError, EOFError) as error:
        raise CheckpointError(f"damaged: {error}") from error
    return path


_LARGEST_JSON = 1 << 24
_VERSION = "_stable_baselines3_version"


def _policy(members: dict[str, Callable[[], IO[bytes]]], options: ReadOptions) -> Contents:
    """Return the policy of a stable-baselines3 archive, its optimizer's state and what it says of itself."""
    saved: dict[str, Any] = {}
    notes: list[str] = []
    keys = {"policy.pth": "model", "policy.optimizer.pth": "optimizer"}
    with TemporaryDirectory() as folder:
        for name in sorted(
            (name for name in members if name.endswith(".pth")), key=lambda name: name not in keys
        ):
            path, key = _copy(members[name], f".{len(saved)}.pth", folder), keys.get(name, name[:-4])
            try:
                saved[key], told = load_inert(path, mapped=False)
            except CheckpointError as error:
                raise CheckpointError(f"of stable-baselines3, and {name} in it is not read: {error}") from error
            notes += told
        if "data" in members:  # beside plain values, programs in base64
            data = json.loads(_copy(members["data"], "", folder).read_bytes()[:_LARGEST_JSON])
            saved["data"] = {key: value for key, value in data.items() if not isinstance(value, dict)}
        if _VERSION in members:
            saved[_VERSION[1:]] = _copy(members[_VERSION], "", folder).read_text().strip()
    return replace(contents_of(saved, key=options.key, notes=notes), format="stable-baselines3")
