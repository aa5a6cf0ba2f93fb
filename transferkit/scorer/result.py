"""What an evaluation found, as numbers, a table, JSON, Markdown and the devkit's own files.

One text file per class, ``comp1_cls_test_aeroplane.txt``, with a line ``000004 0.702732`` for every scored
image. The kit's MATLAB code, and whatever else reads its format, can score them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import chain, compress
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from transferkit.display import as_csv, as_json, markdown_table, summary_table
from transferkit.errors import ArgumentError, DataError, MissingFileError, did_you_mean, require
from transferkit.files import as_file_name, faults_named, fits_a_file, write_text
from transferkit.scorer.ap_rules import INTERPOLATIONS, APRule
from transferkit.scorer.image_scorer import BACKGROUND

if TYPE_CHECKING:
    from transferkit.scorer.decisions import Decisions


def percent(value: float) -> str:
    """Return a share of 1 in percent with two digits; a dash for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def number_or_none(value: float) -> float | None:
    """Return ``None`` for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


# Image scores in the VOC development kit's own result files, out and in.


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
    rename: bool = False,
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
        rename: Write a blank in an image's name, and what no file's name can have in a class's, as ``%20`` and the
            like, instead of an error. Other programs find neither.

    Returns:
        The files, in the order of the classes.

    Raises:
        ArgumentError: Numbers of images or classes that do not fit, a blank in an image's name, a slash in a
            class's or the image set's, a NaN or infinite score.
    """
    if rename:
        image_ids, class_names, image_set = _renamed(image_ids, class_names, image_set)
    shape = (len(image_ids), len(class_names))
    require(
        scores.shape == shape, "scores", f"of shape {shape}, as image_ids and class_names say", scores.shape
    )
    blank = [name for name in image_ids if name.split() != [name]]
    require(not blank, "image_ids", "without blanks", blank)
    no_file = [name for name in class_names if not fits_a_file(name)]
    require(not no_file, "class_names", "names that a file can have", no_file)
    for argument, value in (("image_set", image_set), ("competition", competition)):
        require(fits_a_file(value), argument, "a name that a file can have", value)
    for argument, names in (("image_ids", image_ids), ("class_names", class_names)):
        require(len(set(names)) == len(names), argument, "distinct", names)
    wrong = scores.isnan() | (scores == math.inf)
    require(not wrong.any(), "scores", "numbers, or -inf where unscored", f"{int(wrong.sum())} others")
    with faults_named(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    files = []
    for column, class_name in enumerate(class_names):
        if class_name == BACKGROUND:
            continue
        pairs = zip(image_ids, scores[:, column].tolist(), strict=True)
        lines = [f"{image} {score!r}\n" for image, score in pairs if score != -math.inf]
        files.append(result_file(folder, class_name, image_set, competition))
        write_text(files[-1], "".join(lines))
    return files


def _renamed(
    image_ids: Sequence[str], class_names: Sequence[str], image_set: str
) -> tuple[list[str], list[str], str]:
    images = [name if name.split() == [name] else as_file_name(name) for name in image_ids]
    files = [name if fits_a_file(name) else as_file_name(name) for name in (*class_names, image_set)]
    return images, files[:-1], files[-1]


def read_devkit_results(
    folder: Path | str,
    *,
    image_ids: Sequence[str],
    class_names: Sequence[str],
    image_set: str = "test",
    competition: str = "comp1",
    rename: bool = False,
) -> Tensor:
    """Read the result files of all classes, background apart.

    Args:
        folder: Where they lie.
        image_ids: N names of the image set, in the order in which equal scores are to rank.
        class_names: K names.
        image_set: See :func:`result_file`.
        competition: See :func:`result_file`.
        rename: As they were written with.

    Returns:
        (N, K) float64; ``-inf`` for an image without a line, and for background.

    Raises:
        MissingFileError: The file of a class is not there.
        DataError: A line that is not "image score", an image unknown to the set, or one scored twice; with file
            and line.
    """
    if rename:
        image_ids, class_names, image_set = _renamed(image_ids, class_names, image_set)
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


FEW = 10  # positives below which a class has no interval


def marked(name: str, positives: int) -> str:
    """Return the name of a class in a table, with a mark where its figures rest on few photos."""
    return f"{name} *" if positives < FEW else name


def few_positives(positives: Sequence[int]) -> list[str]:
    """Return the line below a table that explains :func:`marked`; none where no class is marked."""
    few = any(count < FEW for count in positives)
    return [f"* fewer than {FEW} photos show the class: its figures may be luck"] if few else []


@dataclass(frozen=True)
class Interval:
    """An interval that should hold the true value, NaN where there are too few photos for one."""

    low: float
    high: float

    def __str__(self) -> str:
        return "-" if math.isnan(self.low) else f"{percent(self.low)} to {percent(self.high)}"


NO_INTERVAL = Interval(math.nan, math.nan)


def wilson(right: int, count: int, level: float = 0.95) -> Interval:
    r"""Return Wilson's interval of a share, ``right`` of ``count``; NaN below ten.

    .. math:: \frac{r + z^2/2 \pm z\sqrt{r(n - r)/n + z^2/4}}{n + z^2}

    References:
        Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    if count < FEW:
        return NO_INTERVAL
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, spread = right + z * z / 2, z * math.sqrt(right * (count - right) / count + z * z / 4)
    low, high = ((middle + side) / (count + z * z) for side in (-spread, spread))
    return Interval(max(0.0, low), min(1.0, high))


@dataclass(frozen=True)
class ClassificationResult:
    """Average precision per class under every rule.

    Attributes:
        class_names: The C classes that were scored; background is not among them.
        num_images: N.
        positives: Per class, images with an object of it that is not difficult.
        difficult: Per class, images whose objects of it are all difficult.
        ap: Per rule, the AP of each class in 0..1; NaN for a class without positives.
        rule: The rule that is meant where none is named.
        intervals: Per class, the bootstrap interval of its AP under ``rule``; empty where none was asked for.
        mean_interval: The same for the mean.
        level: Of the intervals.
        scores: (N, C) float64, what was evaluated.
        image_ids: N names of the images, if they were given.
        targets: (N, C) bool, the classes that each image shows under ``rule``.
        decisions: Yes or no and probabilities against what the images show, if a calibration was given.
    """

    class_names: tuple[str, ...]
    num_images: int
    positives: tuple[int, ...]
    difficult: tuple[int, ...]
    ap: Mapping[APRule, tuple[float, ...]]
    rule: APRule
    intervals: tuple[Interval, ...] = ()
    mean_interval: Interval | None = None
    level: float = 0.95
    scores: Tensor | None = field(default=None, repr=False, compare=False)
    image_ids: tuple[str, ...] = field(default=(), repr=False)
    targets: Tensor | None = field(default=None, repr=False, compare=False)
    decisions: Decisions | None = field(default=None, repr=False)

    def mean_ap(self, rule: APRule | None = None) -> float:
        """Return the mean AP over the classes that have one; NaN if none has.

        Raises:
            ArgumentError: A rule that was not evaluated.
        """
        rule = rule or self.rule
        known = "one of those evaluated: " + "; ".join(map(str, self.ap))
        require(rule in self.ap, "rule", known, str(rule))
        known_ap = [value for value in self.ap[rule] if not math.isnan(value)]
        return sum(known_ap) / len(known_ap) if known_ap else math.nan

    @property
    def without_positives(self) -> tuple[str, ...]:
        """Classes that have no AP under ``rule`` and are left out of its mean."""
        pairs = zip(self.class_names, self.ap[self.rule], strict=True)
        return tuple(name for name, value in pairs if math.isnan(value))

    def table(self) -> list[list[str]]:
        """Return header and rows of the per-class table as text, AP in percent."""
        rules = self._shown_rules()
        interval = [f"{self.level:.0%} interval"] if self.intervals else []
        rows = [["class", "images", "difficult", *map(_column, rules), *interval]]
        for c, name in enumerate(self.class_names):
            values = [percent(self.ap[rule][c]) for rule in rules]
            spread = [str(self.intervals[c])] if self.intervals else []
            counts = str(self.positives[c]), str(self.difficult[c])
            rows.append([marked(name, self.positives[c]), *counts, *values, *spread])
        means = [percent(self.mean_ap(rule)) for rule in rules]
        spread = [str(self.mean_interval)] if self.mean_interval else []
        rows.append(["mean", "", "", *means, *spread])
        return rows

    def notes(self) -> list[str]:
        """Return what the table does not say: the rule, what was left out, the mean under the other rules."""
        lines = [f"AP in % over {self.num_images} images; difficult objects are {self.rule.difficult}"]
        if self.without_positives:
            lines.append(f"no positives, left out of the mean: {', '.join(self.without_positives)}")
        lines += few_positives(self.positives)
        others: dict[str, list[str]] = {}
        for rule in self.ap:
            if rule not in self._shown_rules():
                family = str(rule).removeprefix(f"{rule.interpolation}, ") + self._over(rule)
                others.setdefault(family, []).append(f"{rule.interpolation} {percent(self.mean_ap(rule))}")
        return lines + [f"mean with {family}: {', '.join(means)}" for family, means in others.items()]

    def _over(self, rule: APRule) -> str:
        """Over how many classes a rule's mean goes, where they are not those of the leading rule."""
        known, own = ([not math.isnan(value) for value in self.ap[each]] for each in (self.rule, rule))
        return "" if known == own else f", over {sum(own)} classes"

    def _repr_html_(self) -> str:
        """Return the table as a notebook shows it."""
        return f"<pre>{escape(str(self))}</pre>"

    def __str__(self) -> str:
        return "\n".join([summary_table(self.table()), *self.notes()])

    def to_markdown(self) -> str:
        """Return the table and its notes as Markdown."""
        notes = "\n".join(f"- {note}" for note in self.notes())
        return f"{markdown_table(self.table())}\n\n{notes}\n"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON; NaN becomes ``None``."""
        classes = []
        for c, name in enumerate(self.class_names):
            entry: dict[str, Any] = {
                "name": name,
                "positives": self.positives[c],
                "difficult": self.difficult[c],
            }
            entry["ap"] = {str(rule): number_or_none(values[c]) for rule, values in self.ap.items()}
            if self.intervals:
                entry["interval"] = _bounds(self.intervals[c])
            classes.append(entry)
        return {
            "num_images": self.num_images,
            "rule": str(self.rule),
            "mean_ap": number_or_none(self.mean_ap()),
            "mean_interval": _bounds(self.mean_interval) if self.mean_interval else None,
            "level": self.level,
            "mean_ap_by_rule": {str(rule): number_or_none(self.mean_ap(rule)) for rule in self.ap},
            "without_positives": list(self.without_positives),
            "classes": classes,
            **({"decisions": self.decisions.to_dict()} if self.decisions is not None else {}),
        }

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return as_json(self.to_dict()) + "\n"

    def scores_csv(self) -> str:
        """Return a line of CSV for each image: its scores, the classes it shows, and what was decided, if anything.

        Raises:
            ArgumentError: The result does not know the names of the images.
        """
        if self.scores is None or self.targets is None or not self.image_ids:
            raise ArgumentError("the table names the images: give evaluate(image_ids=...)")
        names, found = self.class_names, self.decisions
        header, columns = ["image", *names, "shown"], [self.scores.tolist(), self._named(self.targets)]
        if found is not None:
            header += ["said", *(f"{name} probability" for name in names)]
            columns += [self._named(found.labels), found.probs.tolist()]
        rows = zip(self.image_ids, *columns, strict=True)
        return as_csv([header, *([image, *chain.from_iterable(cells)] for image, *cells in rows)])

    def _named(self, flags: Tensor) -> list[list[str]]:
        """Return the classes of each image in one cell."""
        return [[";".join(compress(self.class_names, row))] for row in flags.tolist()]

    def write_devkit(
        self,
        folder: Path | str,
        *,
        image_set: str = "test",
        competition: str = "comp1",
        rename: bool = False,
    ) -> list[Path]:
        """Write the devkit's own result files, for others to score; see :func:`write_devkit_results`.

        Raises:
            ArgumentError: The result does not know the names of the images.
        """
        if self.scores is None or not self.image_ids:
            raise ArgumentError("the devkit's files name the images: give evaluate(image_ids=...)")
        return write_devkit_results(
            folder,
            self.scores,
            image_ids=self.image_ids,
            class_names=self.class_names,
            image_set=image_set,
            competition=competition,
            rename=rename,
        )

    def _shown_rules(self) -> list[APRule]:
        """The leading rule, then all interpolations that treat difficult objects as it does."""
        variants = [APRule(interpolation, self.rule.difficult) for interpolation in INTERPOLATIONS]
        return list(dict.fromkeys([self.rule, *(rule for rule in variants if rule in self.ap)]))


def _column(rule: APRule) -> str:
    ending = f" from {rule.minimum_score:g}" if rule.minimum_score > -math.inf else ""
    return rule.interpolation + ending


def _bounds(interval: Interval) -> list[float | None]:
    return [number_or_none(interval.low), number_or_none(interval.high)]
