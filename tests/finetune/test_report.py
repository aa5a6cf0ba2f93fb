"""The report of a run on made-up scenes: every section there, every figure right, and shown whole by a browser."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

pytest.importorskip("matplotlib", reason="reports need matplotlib (extra: plots)")

from tests.finetune.tiny import tiny_run
from transferkit.finetune import EpochRecord, RunReport, TrainingPatches, build_report
from transferkit.finetune.report import locate
from transferkit.scorer import PatchLog, calibrate, evaluate

from .chromium import look
from .test_page import Outline

NAMES = ("background", "square", "disc", "never seen")
SECTIONS = [
    "summary",
    "average-precision",
    "exponent-of-the-score",
    "localization",
    "where-classes-are-seen",
    "hits-misses-and-false-alarms",
    "training",
    "transfer",
    "time",
    "settings",
]


@dataclass
class Item:
    image: Tensor
    boxes: Tensor
    classes: Tensor
    difficult: Tensor
    id: str


@dataclass
class Truth:
    present: Tensor
    difficult_only: Tensor


class Scenes:
    """Twelve gray pictures, each with one bright square of a class, the last one difficult."""

    class_names = NAMES

    def __len__(self) -> int:
        return 12

    def __getitem__(self, n: int) -> Item:
        x, y = 8.0 * (n % 4), 6.0 * (n % 3)
        image = torch.full((3, 48, 64), 60, dtype=torch.uint8)
        image[:, int(y) : int(y) + 24, int(x) : int(x) + 24] = 200
        box = torch.tensor([[x, y, x + 24, y + 24]], dtype=torch.float64)
        return Item(image, box, torch.tensor([1 + n % 2]), torch.tensor([n == 11]), f"scene{n:02}")

    def presence(self) -> Truth:
        present = torch.zeros(12, 4, dtype=torch.bool)
        present[torch.arange(12), 1 + torch.arange(12) % 2] = True
        difficult = torch.zeros_like(present)
        difficult[11] = present[11]
        return Truth(present, difficult)


def patches() -> Tensor:
    y, x = torch.meshgrid(torch.arange(0, 32, 8.0), torch.arange(0, 48, 8.0), indexing="ij")
    return torch.stack([x, y, x + 16, y + 16], dim=-1).reshape(-1, 4)


@pytest.fixture
def log():
    """A network that sees squares and discs where they are, a little unsure."""
    scenes, log = Scenes(), PatchLog(12, 4)
    noise = torch.rand(12, len(patches()), 4, generator=torch.Generator().manual_seed(0)) * 0.3
    for n in range(12):
        item, boxes = scenes[n], patches().double()
        inside = ((boxes[:, :2] >= item.boxes[:, :2]) & (boxes[:, 2:] <= item.boxes[:, 2:])).all(dim=1)
        probs = noise[n]
        probs[inside, int(item.classes)] = 0.95
        log.add_batch(probs, torch.full((len(boxes),), n), boxes)
    return log


@pytest.fixture
def report(log):
    truth, item = Scenes().presence(), Scenes()[0]
    result = evaluate(log.compute(), truth.present, truth.difficult_only, class_names=NAMES, bootstrap=20)
    history = [{"epoch": 1, "loss": 1.5, "mean_ap": None}, {"epoch": 2, "loss": 0.5, "mean_ap": 0.9}]
    boxes = patches().double()
    return RunReport(
        title="Scenes <1>",
        result=result,
        log=log,
        dataset=Scenes(),
        settings={"protocol": "neon2016", "a path": "/long" * 60},
        transfer="features.0.weight  copied",
        histories={"pretrained": history, "never begun": []},
        seconds={"train": 61.0, "test": 20.0},
        versions={"torch": "2.13.0"},
        patches=TrainingPatches(
            item.image,
            boxes,
            (boxes[:, 0] < 9).long(),
            torch.zeros(len(boxes), 3, 8, 8, dtype=torch.uint8),
            item.boxes,
        ),
        photos=3,
    )


def test_every_section_is_there_with_its_figures(report):
    outline = Outline(build_report(report).to_html())
    assert [heading["id"] for heading in outline.all("h2")] == SECTIONS
    assert len(outline.all("img")) == 3 + 3 + 2 + 2  # AP, P-R, exponents; maps; contact sheets; training
    words = outline.words
    for part in (
        "Scenes <1>", "100.0 %", "no positives, left out of the mean: never seen", "1 min 21 s", "features.0.weight",
        "neon2016", "2.13.0", "square, AP",
    ):  # fmt: skip
        assert part in words
    alternative = " ".join(image["alt"] for image in outline.all("img"))
    assert "best hits of square: scene" in alternative
    assert "Mean AP by exponent: 1 100.0 %" in alternative
    assert "scene11" not in alternative  # its only object is difficult


def test_is_made_from_a_run_and_those_it_is_compared_with(report):
    run, other = tiny_run(), tiny_run()
    run.settings = {"protocol": "neon2016"}
    for one, losses in ((run, (1.5, 0.5)), (other, (2.5,))):
        one.history = [EpochRecord(n, loss, 0.5, 80, 0.1, 1.0) for n, loss in enumerate(losses, start=1)]
    made = RunReport.of(
        run,
        report.result,
        report.log,
        Scenes(),
        title="A run",
        seconds={"train": 61.0},
        compared_with={"another": other},
    )
    outline = Outline(build_report(made).to_html())
    assert [heading["id"] for heading in outline.all("h2")] == [s for s in SECTIONS if s != "transfer"]
    alternative = " ".join(image["alt"] for image in outline.all("img"))
    assert "another 2.5 nats after 1 epochs, from scratch 0.5 nats after 2 epochs" in alternative


def test_another_run_of_the_same_name_hides_none(report):
    run, other = tiny_run(), tiny_run()
    run.history = [EpochRecord(1, 0.5, 0.5, 80, 0.1, 1.0)]
    other.history = [EpochRecord(1, 2.5, 0.5, 80, 0.1, 1.0)]
    named = {"from scratch": other}
    made = RunReport.of(run, report.result, report.log, Scenes(), title="A run", compared_with=named)
    losses = {name: records[0]["loss"] for name, records in made.histories.items()}
    assert losses == {"from scratch": 2.5, "this run": 0.5}


def test_decisions_have_a_section_and_a_perfect_ranking_no_misses(report):
    truth, scores = Scenes().presence(), report.log.compute()
    calibration = calibrate(scores, truth.present, class_names=NAMES, ignore=truth.difficult_only)
    result = evaluate(scores, truth.present, truth.difficult_only, class_names=NAMES, calibration=calibration)
    outline = Outline(build_report(dataclasses.replace(report, result=result)).to_html())
    assert [heading["id"] for heading in outline.all("h2")] == [*SECTIONS[:2], "yes-or-no", *SECTIONS[2:]]
    assert "square *" in outline.words  # six photos show one
    alternative = " ".join(image["alt"] for image in outline.all("img"))
    assert "How often probabilities of presence come true" in alternative
    assert "best hits of square" in alternative
    assert "worst misses" not in alternative


def test_what_is_left_empty_has_no_section(report):
    bare = dataclasses.replace(
        report, settings={}, transfer="", histories={}, seconds={}, versions={}, patches=None
    )
    outline = Outline(build_report(bare).to_html())
    assert [heading["id"] for heading in outline.all("h2")] == SECTIONS[:6]


def test_a_test_set_without_positives_still_has_a_report(report):
    class Empty(Scenes):
        def presence(self):
            return Truth(*(torch.zeros(12, 4, dtype=torch.bool) for _ in range(2)))

        def __getitem__(self, n):
            empty = {
                "boxes": torch.zeros(0, 4),
                "classes": torch.zeros(0).long(),
                "difficult": torch.zeros(0).bool(),
            }
            return dataclasses.replace(super().__getitem__(n), **empty)

    truth = Empty().presence()
    result = evaluate(report.log.compute(), truth.present, class_names=NAMES)
    outline = Outline(build_report(dataclasses.replace(report, result=result, dataset=Empty())).to_html())
    assert "left out of the mean: square, disc, never seen" in outline.words


def test_localization_is_measured_over_the_photos_of_a_class(log):
    located = locate(log, Scenes())
    assert located.images == (6, 5, 0)
    assert located.mean().pointing == 1
    assert 0.1 < located.mean().chance < 0.3


def test_the_same_run_gives_the_same_report(report):
    assert build_report(report).to_html() == build_report(report).to_html()


@pytest.mark.parametrize("width", [320, 1100])
def test_a_browser_shows_all_of_it(report, tmp_path, width):
    seen = look(build_report(report).write(tmp_path / "report.html"), width)
    assert seen.page_width == seen.width, "the page scrolls sideways"
    assert (seen.outside, seen.requests) == ((), ())
    assert (seen.images, seen.broken, seen.without_text) == (10, 0, 0)
