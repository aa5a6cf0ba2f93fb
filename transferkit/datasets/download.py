"""One file from the web: resumed where it broke off, checked, and in its place only when whole."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from pathlib import Path

from transferkit.datasets.home import locked
from transferkit.errors import DownloadError, require
from transferkit.progress import Progress, track

_MIB = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte
_BREAKS = (OSError, http.client.HTTPException)  # what a connection that fails or breaks raises


def download(url: str, path: Path, *, md5: str | None = None, progress: Progress = False) -> Path:
    """Fetch ``url`` into ``path`` unless it is there.

    What has arrived is kept in ``<path>.part``; a later call, or another try of this one, asks for the rest.
    The rest is only accepted from an unchanged file (its ETag or date), and ``path`` appears in one step after
    the checksum agreed. Of several processes one fetches, the others wait and find it.

    Args:
        url: An http or https address.
        path: Where the file goes; its folder is made.
        md5: The expected checksum, 32 hexadecimal digits.
        progress: Counts MiB.

    Returns:
        ``path``.

    Raises:
        ArgumentError: ``url`` is not http or https.
        DownloadError: Not reachable, refused, or broken off without a single byte more (what came is kept), or
            another checksum (nothing is kept).
    """
    require(url.startswith(("http://", "https://")), "url", "an http or https address", url)
    if path.exists():
        return path
    part = path.with_name(path.name + ".part")
    with locked(path.with_name(path.name + ".lock")):
        if path.exists():
            return path
        resumed = part.exists()
        _fetch(url, part, progress)
        if md5 and resumed and _md5(part) != md5:
            _forget(part)  # what was there may have been the fault
            _fetch(url, part, progress)
        found = _md5(part) if md5 else None
        if found != md5:
            _forget(part)
            raise DownloadError(f"{url} is not the file expected: MD5 {found}, not {md5}; nothing was kept")
        part.replace(path)
        _forget(part)
    return path


def _fetch(url: str, part: Path, progress: Progress) -> None:
    """Go on asking for the rest for as long as each try brings something."""
    while True:
        before, problem = _size(part), "the connection broke off"
        try:
            if _fetch_rest(url, part, progress):
                return
        except urllib.error.HTTPError as error:
            answer = f"{error.code} {error.reason}"
            raise DownloadError(f"{url} cannot be fetched: the server answers {answer}") from error
        except _BREAKS as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        if _size(part) <= before:
            kept = f"; {before} bytes are kept in {part} and the next try goes on from there" if before else ""
            raise DownloadError(f"{url} cannot be fetched: {problem}{kept}")


def _fetch_rest(url: str, part: Path, progress: Progress) -> bool:
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
        return whole or _fetch_rest(url, part, progress)
    with response:
        headers = response.headers
        if response.status == http.client.PARTIAL_CONTENT:
            total = _total(headers.get("Content-Range"))
        else:  # the server ignores ranges, or its file has changed
            start, total = 0, int(headers["Content-Length"]) if "Content-Length" in headers else None
            part.write_bytes(b"")
            _tag_file(part).write_text(headers.get("ETag") or headers.get("Last-Modified") or "")
        chunks = iter(lambda: response.read(_MIB), b"")
        count = None if total is None else -(-(total - start) // _MIB)
        with part.open("ab") as file:
            for chunk in track(chunks, progress, total=count, description=part.stem, unit="MiB"):
                file.write(chunk)
    return total is None or _size(part) == total


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
    match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", content_range or "")
    return int(match[1]) if match else None


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
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
