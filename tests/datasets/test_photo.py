"""Photos of every mode and orientation, against Pillow's own pixels; damaged ones are named."""

from __future__ import annotations

import os
import struct
import subprocess
import warnings
import zlib
from contextlib import nullcontext, suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

from transferkit.datasets import _photo
from transferkit.datasets._photo import as_pixels, photo_size, read_photo, stored_size
from transferkit.errors import DataError


@pytest.fixture
def colors() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_colors_are_as_stored(tmp_path: Path, colors: Image.Image) -> None:
    colors.save(tmp_path / "photo.png")
    photo = read_photo(tmp_path / "photo.png")
    assert photo.dtype == torch.uint8 and photo.is_contiguous() and torch.equal(photo, _pixels(colors))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path: Path, colors: Image.Image, mode: str) -> None:
    path = tmp_path / "photo.tif"
    colors.convert(mode).save(path)
    assert torch.equal(read_photo(path), _pixels(Image.open(path).convert("RGB")))


def tiff_of_bands(path: Path, bands: int, *, alpha: int | None, photometric: int = 2) -> None:
    """A TIFF of 2 x 2 pixels and any number of bands, which Pillow cannot write."""
    pixels = bytes(range(4 * bands))
    entries = [
        (256, 2),
        (257, 2),
        (258, 8),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, bands),
        (278, 2),
        (279, len(pixels)),
    ]
    entries += [] if alpha is None else [(338, alpha)]
    start = 8 + len(pixels)
    head = struct.pack("<2sHI", b"II", 42, start) + pixels + struct.pack("<H", len(entries))
    after = start + 2 + 12 * len(entries) + 4
    rows = [
        struct.pack("<HHII", tag, 3, bands, after) if tag == 258 else struct.pack("<HHIHH", tag, 3, 1, value, 0)
        for tag, value in entries
    ]
    path.write_bytes(head + b"".join(rows) + bytes(4) + struct.pack(f"<{bands}H", *[8] * bands))


@pytest.mark.parametrize(("alpha", "kept"), [(1, True), (2, True), (0, False), (None, False)])
def test_a_fourth_band_is_alpha_only_where_the_file_says_so(
    tmp_path: Path, alpha: int | None, kept: bool
) -> None:
    tiff_of_bands(tmp_path / "scene.tif", 4, alpha=alpha)
    for read in (photo_size, read_photo):
        with nullcontext() if kept else pytest.raises(DataError, match=r"scene\.tif: it has 4 bands"):
            read(tmp_path / "scene.tif")


@pytest.mark.parametrize(("bands", "alpha", "photometric"), [(2, None, 1), (2, 0, 1), (5, 2, 2), (3, 2, 1)])
def test_bands_beyond_colors_and_alpha_are_not_dropped(
    tmp_path: Path, bands: int, alpha: int | None, photometric: int
) -> None:
    tiff_of_bands(tmp_path / "scene.tif", bands, alpha=alpha, photometric=photometric)
    for read in (photo_size, read_photo):
        with pytest.raises(DataError, match=f"it has {bands} bands|is not a readable image"):
            read(tmp_path / "scene.tif")


@pytest.mark.parametrize(
    ("levels", "found"),
    [
        (np.array([[0, 257, 4095]], np.uint16), r"more than 8 bits .*I;16"),
        (np.array([[-1000, 0, 1000]], np.int32), r"more than 8 bits .*mode I\b"),
    ],
)
def test_more_than_bytes_are_refused(tmp_path: Path, levels: Any, found: str) -> None:
    image = Image.fromarray(levels)
    image.save(tmp_path / "scan.tif")
    for read in (photo_size, read_photo):
        with pytest.raises(DataError, match=rf"scan\.tif: it has levels of {found}"):
            read(tmp_path / "scan.tif")
    with pytest.raises(DataError, match=found):
        as_pixels(image)


def test_sixteen_bits_in_each_channel_are_refused(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + bytes(range(12)) for _ in range(2))  # 2 x 2 pixels

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(DataError, match=r"deep\.png: it has 16 bits in each channel"):
        read_photo(tmp_path / "deep.png")


def test_what_pillow_would_scale_down_in_silence_is_refused(tmp_path: Path, colors: Image.Image) -> None:
    colors.save(tmp_path / "deep.j2k")
    codestream = bytearray((tmp_path / "deep.j2k").read_bytes())
    codestream[45] = 11  # of green; one less than its bits
    (tmp_path / "deep.j2k").write_bytes(codestream)
    (tmp_path / "raw.ppm").write_bytes(b"P6 2 1 4095\n" + bytes(12))
    (tmp_path / "text.ppm").write_bytes(b"P3 # words\n2 1 4095\n0 300 4095 1 2 3\n")
    for name in ("deep.j2k", "raw.ppm", "text.ppm"):
        for read in (photo_size, read_photo):
            with pytest.raises(DataError, match=rf"{name}: it has 12 bits in each channel"):
                read(tmp_path / name)
        with Image.open(tmp_path / name) as image, pytest.raises(DataError, match="12 bits"):
            as_pixels(image)


def test_what_has_bytes_in_an_uncommon_form_is_read(tmp_path: Path, colors: Image.Image) -> None:
    for name in ("bytes.jp2", "bytes.ppm", "bytes.bmp"):
        colors.save(tmp_path / name)
        assert read_photo(tmp_path / name).shape[1:] == (colors.height, colors.width)
    sixteen = struct.pack(
        "<IiiHHIIiiII3I", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0, 0xF800, 0x7E0, 0x1F
    )  # of all channels
    file = b"BM" + struct.pack("<IHHI", 18 + len(sixteen), 0, 0, 14 + len(sixteen)) + sixteen
    (tmp_path / "few.bmp").write_bytes(file + struct.pack("<HH", 0xF800, 0x1F))
    assert read_photo(tmp_path / "few.bmp").flatten().tolist() == [255, 0, 0, 0, 0, 255]


def test_colors_that_pillow_takes_for_others_are_refused(tmp_path: Path) -> None:
    Image.new("LAB", (2, 2), (100, 20, 30)).save(tmp_path / "lab.tif")
    with pytest.raises(DataError, match=r"lab\.tif: it has colors of CIELAB"):
        read_photo(tmp_path / "lab.tif")


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_frames_are_not_dropped(tmp_path: Path, colors: Image.Image, kind: str) -> None:
    other = colors.rotate(180)
    colors.save(tmp_path / f"moving.{kind}", save_all=True, append_images=[other])
    with pytest.raises(DataError, match=rf"moving\.{kind}: it has 2 frames"):
        read_photo(tmp_path / f"moving.{kind}")
    colors.save(tmp_path / f"still.{kind}")
    assert read_photo(tmp_path / f"still.{kind}").shape[1:] == (colors.height, colors.width)


def test_a_phones_photo_comes_with_others_and_is_the_first(tmp_path: Path, colors: Image.Image) -> None:
    colors.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[colors.rotate(180)])
    colors.save(tmp_path / "alone.jpg")
    assert torch.equal(read_photo(tmp_path / "phone.jpg"), read_photo(tmp_path / "alone.jpg"))


def test_pages_are_not_dropped(tmp_path: Path, colors: Image.Image) -> None:
    colors.save(tmp_path / "stack.tif", save_all=True, append_images=[colors] * 4)
    with pytest.raises(DataError, match=r"stack\.tif: it has 5 pages"):
        read_photo(tmp_path / "stack.tif")


def test_floats_need_their_range(tmp_path: Path) -> None:
    levels = np.array([[0, 0.5, 1]], dtype=np.float32)
    Image.fromarray(levels).save(tmp_path / "gray.tif")
    assert read_photo(tmp_path / "gray.tif", float_range=(0, 1))[0].tolist() == [[0, 128, 255]]
    with pytest.raises(
        DataError, match=r"gray\.tif: floating pixels need their range, got float32 from 0 to 1"
    ):
        read_photo(tmp_path / "gray.tif")
    Image.fromarray(levels * 300).save(tmp_path / "gray.tif")
    with pytest.raises(
        DataError, match=r"gray\.tif: .* must lie in float_range=\(0, 1\), got float32 from 0 to 300"
    ):
        read_photo(tmp_path / "gray.tif", float_range=(0, 1))


def test_whatever_happens_to_a_file_it_is_read_or_named(tmp_path: Path, colors: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path, random = tmp_path / "photo", Random(0)
    for kind in ("JPEG", "PNG", "WEBP"):
        colors.save(path, kind, exif=exif)
        whole = path.read_bytes()
        for _ in range(150):
            data = bytearray(whole)
            for _ in range(random.randrange(1, 4)):
                data[random.randrange(len(data))] = random.randrange(256)
            path.write_bytes(data)
            for call in (photo_size, read_photo):
                with suppress(DataError), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Pillow's of odd metadata
                    call(path, upright=True)


def test_transparency_shows_white(tmp_path: Path, colors: Image.Image) -> None:
    clear = colors.convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    clear.save(tmp_path / "clear.png")
    assert (read_photo(tmp_path / "clear.png") == 255).all()
    palette = colors.convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    palette.save(tmp_path / "palette.png")
    assert (read_photo(tmp_path / "palette.png")[:, 0, 0] == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_followed_when_asked(
    tmp_path: Path, colors: Image.Image, orientation: int, suffix: str
) -> None:
    """A TIFF too, which Pillow turns unasked."""
    path = tmp_path / f"photo.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    colors.save(path, exif=exif, lossless=True)
    assert torch.equal(read_photo(path), _pixels(colors)) and photo_size(path) == (5, 7)
    assert stored_size(path) == ((5, 7), orientation)
    with Image.open(path) as image:
        shown = _pixels(ImageOps.exif_transpose(image))
    assert torch.equal(read_photo(path, upright=True), shown)
    assert photo_size(path, upright=True) == tuple(shown.shape[1:])


@pytest.mark.parametrize("kept", [0, 2, 100, 0.5, -2])
def test_a_cut_photo_is_named_or_whole(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(DataError, match=r"photo\.jpg (is damaged|is not a readable image)"):
        read_photo(path)


def test_what_is_no_photo_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    for call in (read_photo, photo_size):
        for name in ("text", "empty"):
            with pytest.raises(DataError, match=rf"{name}\.jpg is not a readable image: it is none of JPEG"):
                call(tmp_path / f"{name}.jpg")
        for name in ("folder", "pipe"):
            with pytest.raises(DataError, match=rf"{name}\.jpg is not a file"):
                call(tmp_path / f"{name}.jpg")
        for name in ("a\0b", "x" * 9999):
            with pytest.raises(DataError, match="is missing"):
                call(tmp_path / name)
    for call in (read_photo, photo_size):
        with pytest.raises(DataError, match=r"none\.jpg is missing"):
            call(tmp_path / "none.jpg")


def test_no_program_is_run_for_a_photo(
    tmp_path: Path, colors: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.jpg"
    for kind in ("EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "XBM", "DDS"):
        colors.convert("1" if kind == "XBM" else "RGB").save(path, kind)
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("a program is run"))
            for call in (read_photo, photo_size):
                with pytest.raises(
                    DataError, match=r"photo\.jpg is not a readable image: it is none of JPEG, PNG"
                ):
                    call(path)


def test_a_bomb_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (1000, 300)).save(path)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it is decoded"))
    monkeypatch.setattr(_photo, "MAX_PIXELS", 100_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    for call in (read_photo, photo_size):
        with pytest.raises(DataError, match=r"bomb\.png.*pixels"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299_999)
    with pytest.raises(DataError, match="pixels"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        photo_size(path)
    for limit in (300_000, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert photo_size(path) == (300, 1000)


def test_what_goes_wrong_in_pillow_is_the_photo_s_own_error(
    tmp_path: Path, colors: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.png"
    colors.save(path)
    for error in (
        KeyError("x"),
        ZeroDivisionError(),
        AttributeError("x"),
        RuntimeError(),
        MemoryError(),
        OSError(5, "I/O error"),
    ):

        def fail(self: Image.Image, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "load", fail)
            with Image.open(path) as image, pytest.raises(DataError, match=r"photo\.png"):
                as_pixels(image)
            patch.setattr(ImageFile.ImageFile, "load", fail)
            with pytest.raises(DataError, match=r"photo\.png (is damaged|needs more memory)"):
                read_photo(path)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "CMYK", "F"])
def test_large_photos_are_converted_in_strips(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (50, 37, 4), dtype=np.uint8)
    if mode == "F":
        image = Image.fromarray((levels[:, :, 0] / 255).astype(np.float32))
    else:
        image = Image.fromarray(levels).convert("RGB" if mode == "P" else "RGBA").convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    whole = as_pixels(image, (0, 1))
    monkeypatch.setattr(_photo, "_STRIP", 37 * 7)
    assert torch.equal(as_pixels(image, (0, 1)), whole)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_a_size_is_read_without_decoding(
    tmp_path: Path, colors: Image.Image, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    colors.save(tmp_path / "photo", kind)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it is decoded"))
    assert photo_size(tmp_path / "photo", upright=True) == (5, 7)


def test_a_png_may_tell_its_orientation_after_its_pixels(tmp_path: Path, colors: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.png"
    colors.save(path, exif=exif)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert stored_size(path) == ((5, 7), 6)
    assert read_photo(path, upright=True).shape == (3, *photo_size(path, upright=True)) == (3, 7, 5)
