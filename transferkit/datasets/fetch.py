"""What this library fetches from the web: Pascal VOC, and AlexNet's ImageNet weights."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from transferkit.datasets.archive import extract_tar
from transferkit.datasets.devkit import find_voc_folder
from transferkit.datasets.download import download
from transferkit.datasets.home import home_folder, locked
from transferkit.errors import ArgumentError, DownloadError, MissingFileError
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
    image_set: str = "trainval",
    *,
    data_dir: Path | str | None = None,
    url: str | None = None,
    archives: tuple[VOCArchive, ...] = VOC_ARCHIVES,
    progress: Progress = False,
) -> Path:
    """Return a folder that :class:`VOCDataset` accepts as its root; download it if it is not there yet.

    A ``data_dir`` that holds a VOC folder of this year is returned as it is. Otherwise the tar file with this
    image set is fetched, its checksum compared, and its content put into a folder of its own below
    ``data_dir``, which is found the next time.

    Args:
        year: ``"2007"`` or ``"2012"``.
        image_set: ``"train"``, ``"val"``, ``"trainval"`` or ``"test"``.
        data_dir: Where to look first and to download to; None is ``voc`` in :func:`home_folder`.
        url: The base address; None takes ``TRANSFERKIT_VOC_URL`` from the environment, else VOC's own host.
        archives: The tar files to choose from.
        progress: Shown while downloading and unpacking.

    Raises:
        ArgumentError: There is nothing on the web for this year and image set.
        DownloadError: It cannot be fetched; names the folder looked in, the address, and what else to do.
        DataError: ``data_dir`` holds half a VOC folder, or the tar file was refused.
    """
    folder = home_folder() / "voc" if data_dir is None else Path(data_dir).expanduser()
    if _has_voc(folder, year):
        return folder
    archive = _choose(archives, year, image_set, folder)
    target = folder / Path(archive.path).stem
    address = f"{(url or os.environ.get('TRANSFERKIT_VOC_URL') or VOC_URL).rstrip('/')}/{archive.path}"
    try:
        with locked(folder / f"{target.name}.lock"):
            if not target.exists():
                tar = download(address, folder / Path(archive.path).name, md5=archive.md5, progress=progress)
                extract_tar(tar, target, progress=progress)
                tar.unlink()
    except OSError as error:  # DownloadError is one
        raise DownloadError(
            f"no VOC{year} data: looked in {folder}, then tried {address}: {error}\n"
            f"Put a VOCdevkit with VOC{year} into {folder}, name a mirror in TRANSFERKIT_VOC_URL, or give "
            "examples/pascal_voc.py --demo, which needs no data and no network."
        ) from error
    return target


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
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(ALEXNET_URL, str(path), digest, progress and sys.stderr.isatty())
    except (OSError, RuntimeError) as error:  # RuntimeError: the hash differs
        raise DownloadError(
            f"no AlexNet weights: looked for {path}, then tried {ALEXNET_URL}: {error}\n"
            "Put the file there, or name one with --weights."
        ) from error
    return path


def _has_voc(folder: Path, year: str) -> bool:
    try:
        find_voc_folder(folder, year)
    except MissingFileError:
        return False
    return True


def _choose(archives: tuple[VOCArchive, ...], year: str, image_set: str, folder: Path) -> VOCArchive:
    for archive in archives:
        if archive.year == year and image_set in archive.image_sets:
            return archive
    known = "; ".join(f"{archive.year}: {', '.join(archive.image_sets)}" for archive in archives)
    raise ArgumentError(
        f"no VOC{year} folder in {folder}, and none is on the web for image set {image_set!r}; known: {known}"
    )
