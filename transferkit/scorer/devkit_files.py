"""Image scores in the VOC development kit's own result files, out and in.

One text file per class, ``comp1_cls_test_aeroplane.txt``, with a line ``000004 0.702732`` for every scored
image. The kit's MATLAB code, and whatever else reads its format, can score them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from transferkit.errors import ArgumentError, DataError, MissingFileError, did_you_mean, require
from transferkit.scorer.checks import BACKGROUND


def result_file(
    folder: Path | str, class_name: str, image_set: str = "test", competition: str = "comp1"
) -> Path:
    """Return the path that the devkit expects: ``comp1_cls_test_aeroplane.txt`` in ``folder``.

    Args:
        folder: Any; the devkit's own is ``VOCdevkit/results/VOC2007/Main``.
        class_name: As the devkit spells it.
        image_set: The image set that was scored.
        competition: ``"comp1"`` for training on VOC alone, ``"comp2"`` for any other data too.
    """
    return Path(folder) / f"{competition}_cls_{image_set}_{class_name}.txt"


def write_devkit_results(
    folder: Path | str,
    scores: Tensor,
    *,
    image_ids: Sequence[str],
    class_names: Sequence[str],
    image_set: str = "test",
    competition: str = "comp1",
) -> list[Path]:
    """Write one result file per class, background apart.

    Scores are written with all their digits, and each file whole or not at all. An image that is unscored for a
    class (``-inf``) has no line in its file, which ranks it last in the devkit as it does here.

    Args:
        folder: Made if absent.
        scores: (N, K).
        image_ids: N names as in the image set file, without blanks.
        class_names: K names that a file can have.
        image_set: See :func:`result_file`.
        competition: See :func:`result_file`.

    Returns:
        The files, in the order of the classes.

    Raises:
        ArgumentError: Numbers of images or classes that do not fit, a blank in an image's name, a slash in a
            class's, a NaN or infinite score.
    """
    shape = (len(image_ids), len(class_names))
    require(
        scores.shape == shape, "scores", f"of shape {shape}, as image_ids and class_names say", scores.shape
    )
    blank = [name for name in image_ids if name.split() != [name]]
    require(not blank, "image_ids", "without blanks", blank)
    no_file = [name for name in class_names if not name or {"/", "\\", "\0"} & set(name)]
    require(not no_file, "class_names", "names that a file can have", no_file)
    wrong = scores.isnan() | (scores == math.inf)
    require(not wrong.any(), "scores", "numbers, or -inf where unscored", f"{int(wrong.sum())} others")
    Path(folder).mkdir(parents=True, exist_ok=True)
    files = []
    for column, class_name in enumerate(class_names):
        if class_name == BACKGROUND:
            continue
        pairs = zip(image_ids, scores[:, column].tolist(), strict=True)
        lines = [f"{image} {score!r}\n" for image, score in pairs if score != -math.inf]
        files.append(result_file(folder, class_name, image_set, competition))
        part = files[-1].with_suffix(".part")
        part.write_text("".join(lines), encoding="utf-8")
        part.replace(files[-1])
    return files


def read_devkit_results(
    folder: Path | str,
    *,
    image_ids: Sequence[str],
    class_names: Sequence[str],
    image_set: str = "test",
    competition: str = "comp1",
) -> Tensor:
    """Read the result files of all classes, background apart.

    Args:
        folder: Where they lie.
        image_ids: N names of the image set, in the order in which equal scores are to rank.
        class_names: K names.
        image_set: See :func:`result_file`.
        competition: See :func:`result_file`.

    Returns:
        (N, K) float64; ``-inf`` for an image without a line, and for background.

    Raises:
        MissingFileError: The file of a class is not there.
        DataError: A line that is not "image score", an image unknown to the set, or one scored twice; with file
            and line.
    """
    row_of = {image: row for row, image in enumerate(image_ids)}
    if len(row_of) < len(image_ids):
        raise ArgumentError(f"image_ids must be distinct, got {len(row_of)} distinct of {len(image_ids)}")
    scores = torch.full((len(image_ids), len(class_names)), -math.inf, dtype=torch.float64)
    for column, class_name in enumerate(class_names):
        if class_name == BACKGROUND:
            continue
        file = result_file(folder, class_name, image_set, competition)
        if not file.is_file():
            present = [path.name for path in Path(folder).glob("*_cls_*.txt")]
            raise MissingFileError(f"no result file {file}{did_you_mean(file.name, present)}")
        for row, score in _read_lines(file, row_of):
            scores[row, column] = score
    return scores


def _read_lines(file: Path, row_of: dict[str, int]) -> list[tuple[int, float]]:
    found: dict[int, float] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        place = f"{file}, line {number}"
        try:
            image, text = line.split()
            score = float(text)
        except ValueError:
            raise DataError(f"{place}: expected 'image score', got {line!r}") from None
        if image not in row_of:
            raise DataError(f"{place}: image {image!r} is not in the image set{did_you_mean(image, row_of)}")
        if row_of[image] in found:
            raise DataError(f"{place}: image {image!r} is scored a second time")
        if math.isnan(score):
            raise DataError(f"{place}: the score of image {image!r} is not a number")
        found[row_of[image]] = score
    return list(found.items())
