"""The sections of a run's report; each function adds one to a page."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from transferkit.errors import require
from transferkit.files import faults_named, write_text
from transferkit.scorer import (
    APRule,
    ClassificationResult,
    LocalizationResult,
    PatchLog,
    find_extremes,
    score_map,
)
from transferkit.scorer.pictures import (
    plot_class_ap,
    plot_contact_sheet,
    plot_convergence,
    plot_exponents,
    plot_maps,
    plot_patches,
    plot_precision_recall,
    plot_reliability,
)

if TYPE_CHECKING:
    from transferkit.datasets import Presence
    from transferkit.finetune.report import TrainingPatches
    from transferkit.scorer.decisions import Decisions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Page:
    """A page of headings, text, tables and figures, written as one HTML file; all text is escaped."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._sections: list[tuple[str, str]] = []  # id, heading
        self._parts: list[str] = []

    def section(self, heading: str) -> None:
        """Begin a section, which is also listed in the table of contents."""
        anchor = re.sub(r"\W+", "-", heading.lower()).strip("-")
        anchor += f"-{len(self._sections)}" if anchor in dict(self._sections) else ""
        self._sections.append((anchor, heading))
        self._parts.append(f'<h2 id="{anchor}">{html.escape(heading)}</h2>')

    def heading(self, heading: str) -> None:
        """Begin a subsection."""
        self._parts.append(f"<h3>{html.escape(heading)}</h3>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def items(self, lines: Sequence[str]) -> None:
        """Add a list."""
        self._parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>")

    def numbers(self, numbers: Mapping[str, str]) -> None:
        """Add a row of large numbers with their names."""
        cells = (f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in numbers.items())
        self._parts.append(f'<dl class="numbers">{"".join(cells)}</dl>')

    def table(self, rows: Sequence[Sequence[str]], *, caption: str = "", total: bool = False) -> None:
        """Add a table whose first row is its header; with ``total`` the last row sums up the others."""
        header, *body = rows
        head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
        lines = [
            f"<tr{_class('total', total and row is body[-1])}>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in body
        ]
        title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        table = f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        self._parts.append(_scrolling(table, caption or "table"))

    def settings(self, values: Mapping[str, object]) -> None:
        """Add names and their values as a table."""
        lines = (
            f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>'
            for name, value in values.items()
        )
        self._parts.append(f'<table class="settings"><tbody>{"".join(lines)}</tbody></table>')

    def preformatted(self, text: str, *, label: str) -> None:
        """Add preformatted text in a monospaced font; ``label`` names it for screen readers."""
        self._parts.append(_scrolling(f"<pre>{html.escape(text)}</pre>", label))

    def figure(self, figure: Figure, *, alt: str, caption: str = "", photo: bool = False) -> None:
        """Add a figure with its alternative text, as PNG or, for a ``photo``, as JPEG."""
        require(bool(alt.strip()), "alt", "what the picture shows", alt)
        file = io.BytesIO()
        if photo:
            figure.savefig(file, format="jpeg", dpi=130, facecolor="white", pil_kwargs={"quality": 85})
        else:
            figure.savefig(file, format="png", dpi=160, facecolor="white")
        data = base64.b64encode(file.getvalue()).decode("ascii")
        width, height = (round(96 * inches) for inches in figure.get_size_inches())
        # In a narrow window the figure shrinks to 0.6 of its own size; below that it scrolls.
        image = (
            f'<img src="data:image/{"jpeg" if photo else "png"};base64,{data}" width="{width}" height="{height}" '
            f'alt="{html.escape(alt)}" style="min-width: {round(0.6 * width)}px">'
        )
        below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        self._parts.append(f"<figure>{_scrolling(image, caption or alt)}{below}</figure>")

    def to_html(self) -> str:
        """Return the page as HTML."""
        style = resources.files("transferkit.finetune").joinpath("page.css").read_text(encoding="utf-8")
        links = "".join(f'<li><a href="#{a}">{html.escape(h)}</a></li>' for a, h in self._sections)
        title = html.escape(self.title)
        subtitle = f'<p class="subtitle">{html.escape(self.subtitle)}</p>' if self.subtitle else ""
        return "\n".join(
            [
                '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f'<title>{title}</title>\n<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body>',
                f"<header><h1>{title}</h1>{subtitle}</header>",
                f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>',
                *self._parts,
                "</main>\n</body>\n</html>\n",
            ]
        )

    def write(self, path: Path | str) -> Path:
        """Write the page to ``path``, atomically, and create its folder; return the path."""
        path = Path(path)
        with faults_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.to_html())
        return path


def _scrolling(content: str, label: str) -> str:
    """Return ``content`` in a box that scrolls sideways in a narrow window, also by keyboard."""
    return f'<div class="scroll" role="group" tabindex="0" aria-label="{html.escape(label)}">{content}</div>'


def _class(name: str, given: bool) -> str:
    return f' class="{name}"' if given else ""


# The sections of a run's report.


_EXPONENTS = (1, 2, 3, 5, 8, 12, math.inf)  # drawn beside the run's own


def summary(
    page: Page, result: ClassificationResult, located: LocalizationResult, seconds: Mapping[str, float]
) -> None:
    """Add the main figures of the run."""
    page.section("Summary")
    mean = located.mean()
    numbers = {f"mean AP, {result.rule}": _percent(result.mean_ap())}
    if result.mean_interval and not math.isnan(result.mean_interval.low):
        low, high = result.mean_interval.low, result.mean_interval.high
        numbers[f"{result.level:.0%} interval of the mean"] = f"{100 * low:.1f} to {100 * high:.1f} %"
    numbers["pointing accuracy"] = _percent(mean.pointing)
    numbers["pointing by chance"] = _percent(mean.chance)
    numbers["pointing at the middle"] = _percent(mean.center)
    numbers["correct localization (CorLoc)"] = _percent(mean.corloc)
    if seconds:
        numbers["time"] = _duration(sum(seconds.values()))
    page.numbers(numbers)


def average_precision(
    page: Page, result: ClassificationResult, scores: Tensor, truth: Presence, class_names: Sequence[str]
) -> None:
    """Add the table and charts of AP per class."""
    page.section("Average precision")
    page.table(
        result.table(), caption=f"AP (%) per class, difficult objects {result.rule.difficult}", total=True
    )
    page.items(result.notes())
    if math.isnan(result.mean_ap()):
        return
    page.figure(
        plot_class_ap(result),
        alt=f"AP of each class, {_best_and_worst(result)}; mean {_percent(result.mean_ap())}.",
        caption="AP by class, best first; in brackets the number of photos that show the class.",
    )
    page.figure(
        plot_precision_recall(
            scores, truth.present, truth.difficult_only, class_names=class_names, rule=result.rule
        ),
        alt="Precision against recall, one small panel per class, with the AP of the table above.",
        caption="Precision against recall, AP (%) on the right. Dashed: the curve that the AP is computed from.",
    )


def decisions(page: Page, found: Decisions | None) -> None:
    """Add yes or no by class, what is confused, and how far the probabilities can be believed."""
    if found is None:
        return
    page.section("Yes or no")
    page.table(found.table(), caption="Precision and recall (%) at each class's threshold", total=True)
    page.items(found.notes())
    if pairs := found.most_confused():
        rows = [[shown, said, str(count), f"{100 * count / of:.1f}"] for shown, said, count, of in pairs]
        header = ["photos that show", "said though absent", "photos", "%"]
        page.table([header, *rows], caption="Classes that are confused most often")
    curve = found.reliability
    page.figure(
        plot_reliability(curve),
        alt=f"How often probabilities of presence come true; they are off by {_percent(curve.error)} on average.",
        caption="How often a class is there by the probability stated, over all photos and classes; above each point "
        "their number. On the dashed line the probabilities come true.",
    )


def exponents(page: Page, rule: APRule, log: PatchLog, truth: Presence) -> None:
    """Add the mean AP by exponent of the score."""
    # The rule's minimum score is meant for one exponent. At a higher one it would rule out every photo.
    rule = replace(rule, minimum_score=-math.inf)
    mean_ap = {}
    for exponent in sorted({*_EXPONENTS, log.exponent}):
        scores = log.compute(exponent, log=True)  # 1e-26 to the power 12 underflows float64
        ap = rule.average_precision(scores, truth.present, truth.difficult_only)
        mean_ap[exponent] = float(ap.nanmean())
    if any(map(math.isnan, mean_ap.values())):
        return
    page.section("Exponent of the score")
    page.text(
        f"A photo's score for a class is the {log.reduction} over its patches of probability to the power of an "
        f"exponent. This run uses {log.exponent:g}. The figure shows the same patches scored with other exponents; "
        f"AP by {rule}."
    )
    best = max(mean_ap, key=lambda e: mean_ap[e])
    page.figure(
        plot_exponents({log.reduction: mean_ap}),
        alt="Mean AP by exponent: "
        + ", ".join(f"{_power(e)} {_percent(ap)}" for e, ap in mean_ap.items())
        + ".",
        caption=f"Best at {_power(best)}: {_percent(mean_ap[best])}. At infinity only the best patch counts.",
    )


def localization(page: Page, located: LocalizationResult) -> None:
    """Add the table of localization rates by class."""
    page.section("Localization")
    page.text(
        "The probabilities of all patches, each weighted toward the patch's center, add up to a map for each class. "
        "Pointing is the share of photos whose map has its maximum in an object of the class. For comparison, chance "
        "is the share of the photo that these objects cover, and center is the rate of always pointing at the "
        "photo's middle. CorLoc is the share of photos where the box around the map's peak, at a quarter of its "
        "height, overlaps an object with an IoU of 0.5 or more; whole image is the rate of a box around the photo."
    )
    page.table(located.table(), caption="Rates in percent of the photos that show the class", total=True)


def maps(
    page: Page, log: PatchLog, dataset: Any, truth: Presence, class_names: Sequence[str], photos: int, seed: int
) -> None:
    """Add photos with objects, drawn at random, and the maps of their classes."""
    page.section("Where classes are seen")
    page.text(
        f"Photos are drawn at random (seed {seed}). White boxes are objects; the cross is the map's maximum. The "
        "colors of each map run from 0 to its own maximum, which is printed below it."
    )
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    certain = truth.present & ~truth.difficult_only
    for n in [n for n in order if certain[n].any()][:photos]:
        item = dataset[n]
        classes = certain[n].nonzero()[:, 0].tolist()[:3]
        names = {k: class_names[k] for k in classes}
        probs, boxes = log.patches(n)
        values = score_map(probs[:, classes], boxes, item.image.shape[-2:])
        page.figure(
            plot_maps(
                item.image,
                {names[k]: values[i] for i, k in enumerate(classes)},
                objects={names[k]: item.boxes[item.classes == k] for k in classes},
                caption=str(item.id),
            ),
            alt=f"Photo {item.id}, and beside it where {' and '.join(names.values())} scored highest.",
            photo=True,
        )


def contact_sheets(
    page: Page,
    rule: APRule,
    scores: Tensor,
    truth: Presence,
    class_names: Sequence[str],
    dataset: Any,
    photos: int,
) -> None:
    """Add the best hits, worst misses and false alarms of each class."""
    page.section("Hits, misses and false alarms")
    page.text(
        "For each class: of the photos that show it, those with the highest scores, and as misses those with the "
        "lowest that a photo without it outranks; of the photos that do not, those with the highest scores. Photos "
        "with only difficult objects of the class are left out. "
        "Below each photo are its name and score."
    )
    positives = truth.present & ~truth.difficult_only
    ap = rule.average_precision(scores, truth.present, truth.difficult_only)
    for k, name in enumerate(class_names):
        if not positives[:, k].any():
            continue
        found = find_extremes(scores[:, k].cpu(), positives[:, k], truth.difficult_only[:, k], photos)
        every = {"best hits": found.hits, "worst misses": found.misses, "false alarms": found.alarms}
        rows = {row: images for row, images in every.items() if images}
        page.heading(f"{name}, AP {_percent(float(ap[k]))}")
        page.figure(
            plot_contact_sheet(
                {row: [_photo(dataset[n], k, scores[n, k]) for n in images] for row, images in rows.items()},
                columns=photos,
            ),
            alt=". ".join(
                f"{row} of {name}: {', '.join(str(dataset[n].id) for n in images)}"
                for row, images in rows.items()
            ),
            photo=True,
        )


def training(
    page: Page,
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    patches: TrainingPatches | None,
    class_names: Sequence[str],
) -> None:
    """Add the training curves and the patches of a training photo."""
    histories = {run: records for run, records in histories.items() if records}
    if not histories and not patches:
        return
    page.section("Training")
    if histories:
        loss = {run: [record["loss"] for record in records] for run, records in histories.items()}
        measured = {
            run: {record["epoch"]: record["mean_ap"] for record in records if record.get("mean_ap") is not None}
            for run, records in histories.items()
        }
        ends = ", ".join(
            f"{run} {values[-1]:.3g} nats after {len(values)} epochs" for run, values in loss.items()
        )
        page.figure(
            plot_convergence(loss, measured),
            alt=f"Training loss by epoch: {ends}.",
            caption="Mean loss of the epoch's patches, and the mean AP where it was measured.",
        )
    if patches:
        positives = int((patches.labels > 0).sum())
        page.figure(
            plot_patches(
                patches.image,
                patches.boxes,
                patches.labels,
                class_names=class_names,
                crops=patches.crops,
                objects=patches.objects,
            ),
            alt=f"A training photo with {len(patches.labels)} patches, {positives} of them labeled as an object.",
            caption="Some patches of one training photo, with their number in brackets (white: objects of the photo; "
            "gray: background), and the same patches resized as the network sees them.",
            photo=True,
        )


def transfer(page: Page, text: str) -> None:
    """Add the report of the weight transfer."""
    if text:
        page.section("Transfer")
        page.preformatted(text, label="Transfer report")


def settings(
    page: Page, settings: Mapping[str, Any], seconds: Mapping[str, float], versions: Mapping[str, str]
) -> None:
    """Add times, settings and versions."""
    if seconds:
        page.section("Time")
        total = sum(seconds.values())
        rows = [[name, f"{value:.1f}", f"{100 * value / total:.1f}"] for name, value in seconds.items()]
        page.table([["phase", "seconds", "%"], *rows, ["sum", f"{total:.1f}", "100.0"]], total=True)
    if settings or versions:
        page.section("Settings")
        page.settings({**settings, **versions})


def _photo(item: Any, k: int, score: Tensor) -> tuple[Tensor, str, Tensor]:
    return item.image, f"{item.id}, {f'{float(score):#.2g}'.rstrip('.')}", item.boxes[item.classes == k]


def _best_and_worst(result: ClassificationResult) -> str:
    ap = {n: v for n, v in zip(result.class_names, result.ap[result.rule], strict=True) if not math.isnan(v)}
    best, worst = max(ap, key=lambda n: ap[n]), min(ap, key=lambda n: ap[n])
    return f"from {best} with {_percent(ap[best])} to {worst} with {_percent(ap[worst])}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def _power(exponent: float) -> str:
    return "infinity" if math.isinf(exponent) else f"{exponent:g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
