"""What this library fetches from the web: Pascal VOC, and AlexNet's ImageNet weights."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transferkit.errors import (
    ArgumentError,
    DataError,
    DownloadError,
    OutputError,
    TransferKitError,
    listed,
    require,
)
from transferkit.files import home_folder, leaves_its_folder, locked
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
        OutputError: A file cannot be written, or has a name that no file here can have.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    try:
        with tarfile.open(archive, "r:") as tar:
            # The standard library's own filter is a second line: older Python patch releases are without it.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            members = list(_members(tar))
            _check(members, archive, max_bytes)
            partial.mkdir(parents=True)
            for member in track(members, progress, description=f"extract {archive.name}", unit="file"):
                tar.extract(member, partial, set_attrs=False)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, TransferKitError) or not isinstance(error, Exception):
            raise
        if isinstance(error, OSError) and not isinstance(error, tarfile.TarError):
            raise OutputError(f"cannot extract {archive} to {partial}: {error.strerror or error}") from error
        reason = error or type(error).__name__  # a damaged header makes tarfile raise whatever goes wrong in it
        raise DataError(f"{archive} is not a whole, uncompressed tar file: {reason}") from error
    return partial.replace(folder)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield an archive's members; older Pythons go round for ever in one whose member has a negative size."""
    offset = -1
    while member := tar.next():
        if tar.offset <= offset or member.size < 0:
            raise tarfile.ReadError("a member has a negative size")
        offset = tar.offset
        yield member


def _check(members: Sequence[tarfile.TarInfo], archive: Path, max_bytes: int) -> None:
    reasons = [f"{member.name!r} {reason}" for member in members if (reason := _objection(member))]
    if reasons:
        raise DataError(f"{archive} is refused, nothing was extracted: {listed(reasons, 5)}")
    size = sum(member.size for member in members)
    if size > max_bytes:
        raise DataError(f"{archive} is refused, nothing was extracted: {size} bytes inside, over {max_bytes}")


def _objection(member: tarfile.TarInfo) -> str:
    if member.issparse() or not (member.isreg() or member.isdir()):
        return "is neither a file nor a folder"
    return "leads out of the folder" if leaves_its_folder(member.name) else ""


# One file from the web: resumed where it broke off, checked, and in its place only when whole.

_MIB = 1 << 20

_TIMEOUT = 30.0  # seconds without a byte

_TRIES = 200  # at most; a try that brings nothing is the last one anyway

_BREAKS = (OSError, http.client.HTTPException)  # what a connection that fails or breaks raises


def download(
    url: str, path: Path, *, size: int | None = None, sha256: str | None = None, progress: Progress = False
) -> Path:
    """Fetch ``url`` into ``path`` unless it is there.

    What has arrived is kept in ``<path>.part``; a later call, or another try of this one, asks for the rest.
    The rest is only accepted from an unchanged file (its ETag or date), and ``path`` appears in one step after
    the checksum agreed. Of several processes one fetches, the others wait and find it.

    Args:
        url: An http or https address.
        path: Where the file goes; its folder is made.
        size: The bytes that it has; more are not fetched.
        sha256: The expected checksum, 64 hexadecimal digits.
        progress: Counts MiB.

    Returns:
        ``path``.

    Raises:
        ArgumentError: ``url`` is not http or https.
        DownloadError: Not reachable, refused, or broken off without a single byte more or too often (what came is
            kept), or another size or checksum (nothing is kept).
    """
    require(url.startswith(("http://", "https://")), "url", "an http or https address", url)
    if path.exists():
        return path
    part = path.with_name(path.name + ".part")
    with locked(path.with_name(path.name + ".lock")):
        if path.exists():
            return path
        resumed = part.exists()
        _fetch(url, part, size, progress)
        if sha256 and resumed and _sha256(part) != sha256:
            _forget(part)  # what was there may have been the fault
            _fetch(url, part, size, progress)
        found = _sha256(part) if sha256 else None
        if found != sha256:
            _forget(part)
            raise DownloadError(
                f"{url} is not the file expected: SHA-256 {found}, not {sha256}; nothing was kept"
            )
        part.replace(path)
        _forget(part)
    return path


def _fetch(url: str, part: Path, size: int | None, progress: Progress) -> None:
    """Go on asking for the rest for as long as each try brings something."""
    for number in range(1, _TRIES + 1):
        before, problem = _size(part), "the connection broke off"
        try:
            if _fetch_rest(url, part, size, progress):
                return
        except urllib.error.HTTPError as error:
            answer = f"{error.code} {error.reason}"
            raise DownloadError(f"{url} cannot be fetched: the server answers {answer}") from error
        except DownloadError:
            raise
        except _BREAKS as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        if number == _TRIES:
            problem += f", {number} times"
        if _size(part) <= before or number == _TRIES:
            kept = f"; {before} bytes are kept in {part} and the next try goes on from there" if before else ""
            raise DownloadError(f"{url} cannot be fetched: {problem}{kept}")


def _fetch_rest(url: str, part: Path, size: int | None, progress: Progress) -> bool:
    """Append what is missing to ``part``; say whether it is whole now."""
    start = _size(part)
    try:
        response = urllib.request.urlopen(_request(url, part, start), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        with error:  # nothing follows what is here: it is whole, or longer than it should be
            whole = _total(error.headers.get("Content-Range")) == start
        if not whole:
            _forget(part)
        return whole or _fetch_rest(url, part, size, progress)
    with response:
        headers = response.headers
        if response.status == http.client.PARTIAL_CONTENT:
            total = _total(headers.get("Content-Range"))
        else:  # the server ignores ranges, or its file has changed
            start, total = 0, _length(headers.get("Content-Length"))
            part.write_bytes(b"")
            _tag_file(part).write_text(headers.get("ETag") or headers.get("Last-Modified") or "")
        _require_size(url, part, size, total)
        chunks = iter(lambda: response.read(_MIB), b"")
        count = None if total is None else -(-(total - start) // _MIB)
        with part.open("ab") as file:
            for chunk in track(chunks, progress, total=count, description=part.stem, unit="MiB"):
                file.write(chunk)
                _require_size(url, part, size, file.tell())
    return total is None or _size(part) == total


def _require_size(url: str, part: Path, size: int | None, found: int | None) -> None:
    if size is not None and found is not None and found > size:
        _forget(part)
        raise DownloadError(
            f"{url} is not the file expected: {found:,} bytes or more, not {size:,}; nothing was kept"
        )


def _request(url: str, part: Path, start: int) -> urllib.request.Request:
    headers = {"User-Agent": "transferkit"}
    if start:
        headers["Range"] = f"bytes={start}-"
        tag = _tag_file(part).read_text() if _tag_file(part).exists() else ""
        if tag and not tag.startswith("W/"):  # a weak ETag promises too little for If-Range (RFC 9110, 13.1.5)
            headers["If-Range"] = tag
    return urllib.request.Request(url, headers=headers)


def _total(content_range: str | None) -> int | None:
    """Return the 1000 of ``bytes 200-999/1000`` or ``bytes */1000``."""
    match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/([0-9]{1,18})", content_range or "")
    return int(match[1]) if match else None


def _length(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text) else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_MIB):
            digest.update(chunk)
    return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".tag")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_file(part).unlink(missing_ok=True)


VOC_URL = "https://thor.robots.ox.ac.uk/pascal/VOC/"  # where http://host.robots.ox.ac.uk/pascal/VOC/ leads


@dataclass(frozen=True)
class Archive:
    """A file on the web, known to the last bit.

    Attributes:
        path: Its place below the base address.
        size: Its bytes.
        sha256: Its checksum.
    """

    path: str
    size: int
    sha256: str


ALEXNET = Archive(
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    244_408_911,
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
)


@dataclass(frozen=True)
class VOCArchive(Archive):
    """One of VOC's tar files.

    Attributes:
        year: The year whose folder it holds.
        image_sets: Those of its image sets whose photos and annotations it holds too.
    """

    year: str
    image_sets: tuple[str, ...]


_TRAINING = ("trainval", "train", "val")

VOC_ARCHIVES = (
    VOCArchive(
        "voc2007/VOCtrainval_06-Nov-2007.tar",
        460_032_000,
        "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
        "2007",
        _TRAINING,
    ),
    VOCArchive(
        "voc2007/VOCtest_06-Nov-2007.tar",
        451_020_800,
        "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
        "2007",
        ("test",),
    ),
    VOCArchive(
        "voc2012/VOCtrainval_11-May-2012.tar",
        1_999_639_040,
        "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
        "2012",
        _TRAINING,
    ),
)
"""VOC's public tar files. The annotations of VOC2012's test set are not published."""


def fetch_voc(
    year: str = "2007",
    image_sets: str | Sequence[str] = ("trainval", "test"),
    *,
    home: Path | str | None = None,
    url: str | None = None,
    archives: Sequence[VOCArchive] = VOC_ARCHIVES,
    progress: Progress = False,
) -> Path:
    """Return a folder with the VOCdevkit that holds these image sets; download what is not there yet.

    The tar files with the missing sets are fetched, their checksums compared, and their content added to one
    VOCdevkit, an image set's own list last of all: where the list is, everything on it is.

    Args:
        year: ``"2007"`` or ``"2012"``.
        image_sets: One or more of ``"train"``, ``"val"``, ``"trainval"`` and ``"test"``.
        home: See :func:`home_folder`; the VOCdevkit is kept in its ``voc``.
        url: The base address; None takes ``TRANSFERKIT_VOC_URL`` from the environment, else VOC's own host.
        archives: The tar files to choose from.
        progress: Shown while downloading and unpacking.

    Returns:
        A root for :class:`VOCDataset`.

    Raises:
        ArgumentError: There is nothing on the web for this year and image set.
        DownloadError: It cannot be fetched; names the folder looked in, the address, and what else to do.
        DataError: The tar file was refused.
    """
    folder = home_folder(home) / "voc"
    target = folder / "VOCdevkit" / f"VOC{year}"
    wanted = (image_sets,) if isinstance(image_sets, str) else image_sets
    missing = [name for name in wanted if not _holds(target, name)]
    base = url or os.environ.get("TRANSFERKIT_VOC_URL") or VOC_URL
    for archive in dict.fromkeys(_choose(archives, year, image_set) for image_set in missing):
        address = f"{base.rstrip('/')}/{archive.path}"
        try:
            with locked(folder / f"VOC{year}.lock"):
                if not all(_holds(target, name) for name in archive.image_sets):
                    _install(archive, address, folder, target, progress)
        except OSError as error:  # DownloadError is one
            raise DownloadError(
                f"no VOC{year} {' and '.join(missing)}: looked in {folder}, then tried {address}: {error}\n"
                "Name a VOCdevkit with --data_dir, or a mirror in TRANSFERKIT_VOC_URL, or run "
                "examples/pascal_voc.py --demo, which needs no data and no network."
            ) from error
    return folder


def fetch_alexnet_weights(*, home: Path | str | None = None, progress: Progress = False) -> Path:
    """Return the file of torchvision's ImageNet-trained AlexNet; download it (233 MB) if it is not there.

    Args:
        home: See :func:`home_folder`; the file is kept in its ``weights``.
        progress: Counts MiB.

    Raises:
        DownloadError: It cannot be fetched, or is another file than the one that is known.
    """
    url, path = ALEXNET.path, _alexnet_file(home)
    try:
        return download(url, path, size=ALEXNET.size, sha256=ALEXNET.sha256, progress=progress)
    except OSError as error:  # DownloadError is one
        raise DownloadError(
            f"no AlexNet weights: looked for {path}, then tried {url}: {error}\n"
            "Put the file there, or name one with --weights."
        ) from error


def alexnet_weights_kept() -> bool:
    """Tell whether :func:`fetch_alexnet_weights` has nothing to download."""
    path = _alexnet_file(None)
    return path.is_file() and _size(path) == ALEXNET.size


def _alexnet_file(home: Path | str | None) -> Path:
    return home_folder(home) / "weights" / ALEXNET.path.rpartition("/")[2]


def _holds(target: Path, image_set: str) -> bool:
    return (target / "ImageSets" / "Main" / f"{image_set}.txt").is_file()


def _choose(archives: Sequence[VOCArchive], year: str, image_set: str) -> VOCArchive:
    for archive in archives:
        if archive.year == year and image_set in archive.image_sets:
            return archive
    known = "; ".join(f"{archive.year} {', '.join(archive.image_sets)}" for archive in archives)
    raise ArgumentError(f"image set {image_set!r} of VOC{year} is not on the web; these are: {known}")


def _install(archive: VOCArchive, address: str, folder: Path, target: Path, progress: Progress) -> None:
    place = folder / Path(archive.path).name
    tar = download(address, place, size=archive.size, sha256=archive.sha256, progress=progress)
    staging = folder / tar.stem
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
    extract_tar(tar, staging, progress=progress)
    _merge(staging / "VOCdevkit" / target.name, target)
    shutil.rmtree(staging)
    tar.unlink()


def _merge(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        return
    files = [path for path in source.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda path: ("ImageSets" in path.parts, "_" not in path.stem)):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
