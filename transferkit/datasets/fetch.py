"""What this library fetches from the web: Pascal VOC, and AlexNet's ImageNet weights."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from transferkit.datasets.archive import extract_tar
from transferkit.datasets.download import download
from transferkit.datasets.home import home_folder, locked
from transferkit.errors import ArgumentError, DownloadError
from transferkit.progress import Progress

VOC_URL = "http://host.robots.ox.ac.uk/pascal/VOC/"
ALEXNET_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"


@dataclass(frozen=True)
class VOCArchive:
    """One of VOC's tar files.

    Attributes:
        path: Its place below the base address.
        md5: Its checksum.
        year: The year whose folder it holds.
        image_sets: Those of its image sets whose photos and annotations it holds too.
    """

    path: str
    md5: str
    year: str
    image_sets: tuple[str, ...]


_TRAINING = ("trainval", "train", "val")
VOC_ARCHIVES = (
    VOCArchive("voc2007/VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64", "2007", _TRAINING),
    VOCArchive("voc2007/VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", "2007", ("test",)),
    VOCArchive("voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd", "2012", _TRAINING),
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


def fetch_alexnet_weights(*, home: Path | str | None = None, progress: bool = False) -> Path:
    """Return the file of torchvision's ImageNet-trained AlexNet; download it (233 MB) if it is not there.

    Args:
        home: See :func:`home_folder`; the file is kept in its ``weights``.
        progress: A bar on standard error, if that is a terminal.

    Raises:
        DownloadError: It cannot be fetched, or its SHA-256 is not the one in its name.
    """
    path = home_folder(home) / "weights" / ALEXNET_URL.rpartition("/")[2]
    digest = path.stem.rpartition("-")[2]
    if path.exists():
        return path
    try:
        with locked(path.with_suffix(".lock")):  # processes of one run ask at once; the first downloads
            if not path.exists():
                torch.hub.download_url_to_file(ALEXNET_URL, str(path), digest, progress and sys.stderr.isatty())
    except (OSError, RuntimeError) as error:  # RuntimeError: the hash differs
        raise DownloadError(
            f"no AlexNet weights: looked for {path}, then tried {ALEXNET_URL}: {error}\n"
            "Put the file there, or name one with --weights."
        ) from error
    return path


def _holds(target: Path, image_set: str) -> bool:
    return (target / "ImageSets" / "Main" / f"{image_set}.txt").is_file()


def _choose(archives: Sequence[VOCArchive], year: str, image_set: str) -> VOCArchive:
    for archive in archives:
        if archive.year == year and image_set in archive.image_sets:
            return archive
    known = "; ".join(f"{archive.year} {', '.join(archive.image_sets)}" for archive in archives)
    raise ArgumentError(f"image set {image_set!r} of VOC{year} is not on the web; these are: {known}")


def _install(archive: VOCArchive, address: str, folder: Path, target: Path, progress: Progress) -> None:
    tar = download(address, folder / Path(archive.path).name, md5=archive.md5, progress=progress)
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
