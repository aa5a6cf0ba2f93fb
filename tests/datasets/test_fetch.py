"""Fetching: a server on 127.0.0.1 that cuts connections, ignores ranges, changes files and lies."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest

from transferkit.datasets import VOCDataset, fetch_alexnet_weights, fetch_voc, home_folder
from transferkit.datasets import download as fetch_module
from transferkit.datasets.download import (
    ALEXNET,
    VOC_ARCHIVES,
    VOC_URL,
    Archive,
    VOCArchive,
    download,
    extract_tar,
)
from transferkit.errors import ArgumentError, DataError, DownloadError


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path, and ``content`` for every other; each attribute is one bad habit."""

    content = b""
    files: Mapping[str, bytes] = MappingProxyType({})
    tag = '"one"'
    ranges = True
    cut_after: int | None = None  # bytes of a body, then the connection closes
    status: int | None = None
    says_length = True
    requests: list[str | None]  # the Range header of each request

    def handle_error(self, *args: object) -> None:
        """A client has gone."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append(wanted)
        if server.status:
            return self.send_error(server.status)
        start = 0
        if wanted and server.ranges and self.headers.get("If-Range", server.tag) == server.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        content = server.files.get(self.path, server.content)
        total = len(content)
        if start >= total > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("ETag", server.tag)
        if server.says_length:
            self.send_header("Content-Length", str(total - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        self.wfile.write(content[start:][: server.cut_after])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def voc_tars(tmp_path: Path, write_voc: Callable[..., Path]) -> dict[str, bytes]:
    """Two tar files with the same folder in them, as VOC2007 has."""
    write_voc(tmp_path / "one", {"a": [("dog", (1, 1, 9, 9))], "b": []})
    write_voc(tmp_path / "two", {"c": []}, image_set="test")
    return {name: _tar(tmp_path / name) for name in ("one", "two")}


def _tar(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(folder / "VOCdevkit", "VOCdevkit")
    return buffer.getvalue()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _archives(tars: dict[str, bytes]) -> tuple[VOCArchive, ...]:
    return (
        VOCArchive("voc2007/one.tar", len(tars["one"]), _sha256(tars["one"]), "2007", ("trainval",)),
        VOCArchive("voc2007/two.tar", len(tars["two"]), _sha256(tars["two"]), "2007", ("test",)),
    )


def test_voc_is_fetched_once_into_one_devkit(
    server: Server, voc_tars: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files = {f"/voc2007/{name}.tar": content for name, content in voc_tars.items()}
    monkeypatch.setenv("TRANSFERKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRANSFERKIT_VOC_URL", server.url)
    for _ in range(2):
        root = fetch_voc("2007", "trainval", archives=_archives(voc_tars))
        assert root == tmp_path / "home" / "voc"
    assert len(server.requests) == 1
    for _ in range(2):
        assert fetch_voc(archives=_archives(voc_tars)) == root
    assert len(server.requests) == 2
    assert VOCDataset(root).ids == ("a", "b") and VOCDataset(root, image_set="test").ids == ("c",)
    assert {path.name for path in root.iterdir() if path.suffix != ".lock"} == {"VOCdevkit"}


def test_a_kill_while_files_are_moved_is_made_good(
    server: Server, voc_tars: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files = {f"/voc2007/{name}.tar": content for name, content in voc_tars.items()}
    settings = {"home": tmp_path, "url": server.url, "archives": _archives(voc_tars)}
    fetch_voc("2007", "trainval", **settings)
    moves = iter([None])
    replace = Path.replace

    def replace_one_file(self: Path, target: Path) -> Path:
        if self.suffix in (".xml", ".jpg", ".txt"):
            next(moves)
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_one_file)
        with pytest.raises(StopIteration):
            fetch_voc("2007", "test", **settings)
    assert len(VOCDataset(tmp_path / "voc")) == 2
    assert len(VOCDataset(fetch_voc("2007", "test", **settings), image_set="test")) == 1
    assert len(server.requests) == 2


def test_processes_at_once_do_not_trample_each_other(
    server: Server, voc_tars: dict[str, bytes], tmp_path: Path
) -> None:
    server.files = {f"/voc2007/{name}.tar": content for name, content in voc_tars.items()}
    with ThreadPoolExecutor(8) as pool:
        calls = [
            pool.submit(fetch_voc, home=tmp_path / "home", url=server.url, archives=_archives(voc_tars))
            for _ in range(8)
        ]
        roots = {call.result() for call in calls}
    assert len(roots) == 1 and len(server.requests) == 2
    assert len(VOCDataset(roots.pop())) == 2


def test_without_a_network_one_error_says_where_what_and_what_else(tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch_voc(home=tmp_path, url="http://127.0.0.1:9")
    for text in (
        f"no VOC2007 trainval and test: looked in {tmp_path / 'voc'}",
        "http://127.0.0.1:9/voc2007/VOCtrainval_06-Nov-2007.tar",
        "--demo",
    ):
        assert text in str(caught.value)


def test_what_is_not_published_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"'test' of VOC2012 is not on the web; these are: 2007 trainval"):
        fetch_voc("2012", "test", home=tmp_path)


def test_a_cut_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.content = os.urandom(10_000)
    server.cut_after = 3_000
    path = download(f"{server.url}/file", tmp_path / "file", sha256=_sha256(server.content))
    assert path.read_bytes() == server.content
    assert server.requests == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "file.lock"]


def test_what_came_is_kept_for_the_next_call(server: Server, tmp_path: Path) -> None:
    server.content, server.cut_after = bytes(range(200)), 150
    (tmp_path / "file.part").write_bytes(server.content[:120])
    (tmp_path / "file.part.tag").write_text(server.tag)
    server.cut_after = 0
    with pytest.raises(DownloadError, match=r"120 bytes are kept in .*file\.part"):
        download(f"{server.url}/file", tmp_path / "file")
    server.cut_after = None
    assert download(f"{server.url}/file", tmp_path / "file").read_bytes() == server.content
    assert server.requests == ["bytes=120-", "bytes=120-"]


def test_a_changed_file_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.content, server.tag = os.urandom(5_000), '"two"'
    (tmp_path / "file.part").write_bytes(b"old" * 100)
    (tmp_path / "file.part.tag").write_text('"one"')
    assert download(f"{server.url}/file", tmp_path / "file").read_bytes() == server.content


def test_a_server_that_ignores_ranges_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.content, server.ranges = os.urandom(5_000), False
    (tmp_path / "file.part").write_bytes(b"old" * 100)
    assert download(f"{server.url}/file", tmp_path / "file").read_bytes() == server.content
    assert server.requests == ["bytes=300-"]


@pytest.mark.parametrize("excess", [0, 7])
def test_a_part_that_is_whole_or_longer(server: Server, tmp_path: Path, excess: int) -> None:
    server.content = os.urandom(500)
    (tmp_path / "file.part").write_bytes(server.content + b"x" * excess)
    path = download(f"{server.url}/file", tmp_path / "file", sha256=_sha256(server.content))
    assert path.read_bytes() == server.content


def test_a_bad_part_is_dropped_and_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.content = os.urandom(500)
    (tmp_path / "file.part").write_bytes(b"x" * 100)
    path = download(f"{server.url}/file", tmp_path / "file", sha256=_sha256(server.content))
    assert path.read_bytes() == server.content
    assert server.requests == ["bytes=100-", None]


def test_another_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.content = b"evil"
    with pytest.raises(DownloadError, match=f"SHA-256 {_sha256(b'evil')}, not {_sha256(b'good')}; nothing"):
        download(f"{server.url}/file", tmp_path / "file", sha256=_sha256(b"good"))
    assert [item.name for item in tmp_path.iterdir()] == ["file.lock"]


def test_a_refusal_names_the_address_and_the_answer(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(
        DownloadError, match=rf"{server.url}/file cannot be fetched: the server answers 404 Not Found"
    ):
        download(f"{server.url}/file", tmp_path / "file")
    with pytest.raises(ArgumentError, match="url must be an http or https address"):
        download("file:///etc/hostname", tmp_path / "file")


def test_progress_counts_mebibytes(server: Server, tmp_path: Path) -> None:
    server.content = bytes(3 * 2**20 + 1)
    seen: dict[str, object] = {}

    def bar(items: Iterator[bytes], **labels: object) -> Iterator[bytes]:
        seen.update(labels)
        return items

    download(f"{server.url}/some/file", tmp_path / "file", progress=bar)
    assert seen == {"total": 4, "desc": "file", "unit": "MiB"}


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


@pytest.mark.parametrize(
    "member",
    [
        _member("../outside"),
        _member("a/../../outside"),
        _member("/tmp/outside"),
        _member("C:\\outside"),
        _member("..\\outside"),
        _member("link", tarfile.SYMTYPE, "/etc"),
        _member("link", tarfile.LNKTYPE, "../outside"),
        _member("pipe", tarfile.FIFOTYPE),
        _member("device", tarfile.CHRTYPE),
    ],
    ids=lambda member: f"{member.name}-{member.type.decode()}",
)
def test_nothing_leaves_the_folder(tmp_path: Path, member: tarfile.TarInfo) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.addfile(_member("good"))
        tar.addfile(member)
    with pytest.raises(DataError, match=r"evil\.tar is refused, nothing was extracted: "):
        extract_tar(tmp_path / "evil.tar", tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["evil.tar"]


def test_too_much_content_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "big.tar", "w") as tar:
        tar.addfile(_member("big", size=1001), io.BytesIO(bytes(1001)))
    with pytest.raises(DataError, match="1001 bytes inside, over 1000"):
        extract_tar(tmp_path / "big.tar", tmp_path / "out", max_bytes=1000)


def test_a_cut_or_compressed_archive_leaves_nothing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        tar.addfile(_member("file", size=5000), io.BytesIO(bytes(5000)))
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:3000])
    with tarfile.open(tmp_path / "zip.tar", "w:gz") as tar:
        tar.addfile(_member("file"))
    for name in ("cut.tar", "zip.tar"):
        with pytest.raises(DataError, match=f"{name} is not a whole, uncompressed tar file"):
            extract_tar(tmp_path / name, tmp_path / "out")
    assert {item.name for item in tmp_path.iterdir()} == {"whole.tar", "cut.tar", "zip.tar"}
    (tmp_path / ".out.partial").mkdir()
    assert (extract_tar(tmp_path / "whole.tar", tmp_path / "out") / "file").stat().st_size == 5000


def test_alexnet_weights_are_checked_and_cached(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = os.urandom(1000)
    archive = Archive(f"{server.url}/alexnet.pth", 1000, _sha256(server.content))
    monkeypatch.setattr(fetch_module, "ALEXNET", archive)
    for _ in range(2):
        path = fetch_alexnet_weights(home=tmp_path)
        assert path == tmp_path / "weights" / "alexnet.pth"
        assert path.read_bytes() == server.content
    assert len(server.requests) == 1
    monkeypatch.setattr(
        fetch_module, "ALEXNET", replace(archive, path=f"{server.url}/other.pth", sha256="0" * 64)
    )
    with pytest.raises(DownloadError, match=r"other\.pth.*(.|\n)*--weights"):
        fetch_alexnet_weights(home=tmp_path)
    assert [item.name for item in path.parent.iterdir() if item.suffix != ".lock"] == [path.name]


@pytest.mark.parametrize("says", [True, False])
def test_more_than_the_known_size_is_not_fetched(server: Server, tmp_path: Path, says: bool) -> None:
    server.content, server.says_length = bytes(5 << 20), says
    with pytest.raises(DownloadError, match=r"bytes or more, not 1,000; nothing was kept"):
        download(f"{server.url}/file", tmp_path / "file", size=1000)
    assert [item.name for item in tmp_path.iterdir()] == ["file.lock"]


def test_a_server_that_drips_is_left_after_many_tries(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "_TRIES", 5)
    server.content, server.cut_after = bytes(1000), 1
    with pytest.raises(DownloadError, match=r"5 times; .* bytes are kept"):
        download(f"{server.url}/file", tmp_path / "file", size=1000)
    assert len(server.requests) == 5


def test_what_is_published_is_known_to_the_last_bit() -> None:
    assert VOC_URL.startswith("https://") and ALEXNET.path.startswith("https://")
    for archive in (*VOC_ARCHIVES, ALEXNET):
        assert len(archive.sha256) == 64 and archive.size > 200 << 20
    assert ALEXNET.sha256[:8] in ALEXNET.path


def test_home_is_the_argument_the_variable_or_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFERKIT_HOME", "/variable")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert home_folder(tmp_path) == tmp_path
    assert home_folder() == Path("/variable")
    monkeypatch.delenv("TRANSFERKIT_HOME")
    assert home_folder() == Path("/cache/transferkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert home_folder() == Path.home() / ".cache" / "transferkit"
