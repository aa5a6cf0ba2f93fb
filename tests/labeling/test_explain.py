"""Explanations say what the label says, and why."""

from __future__ import annotations

import pytest
import torch

from transferkit.errors import ArgumentError
from transferkit.labeling import CenterRule, IoURule, MatchRule, Objects, OverlapRule, PatchLabels, explain

DOG, CAT = (2, 2, 18, 18), (10, 0, 30, 20)
NAMES = ("background", "dog", "cat")


def told(rule: MatchRule | None, box: tuple[int, ...] = (0, 0, 20, 20), **flags: torch.Tensor) -> str:
    objects = torch.tensor([DOG, CAT], dtype=torch.float64)
    return explain(torch.tensor(box), objects, torch.tensor([1, 2]), rule=rule, class_names=NAMES, **flags)


@pytest.mark.parametrize(
    ("rule", "start"),
    [
        (OverlapRule(), "dog: one object matches"),
        (
            OverlapRule(object_fraction=0.5),
            'background: several objects are in the patch, and several="background"',
        ),
        (OverlapRule(object_fraction=0.5, several="ignore"), "ignored: several objects are in the patch"),
        (OverlapRule(object_fraction=0.5, several="largest"), "dog: several objects match, and several"),
        (
            OverlapRule(object_fraction=0.5, several="same_class"),
            "background: several objects are in the patch",
        ),
        (OverlapRule(max_other_fraction=0), "background: several objects are in the patch"),
        (OverlapRule(0.9, 0.9), "background: no object matches"),
        (OverlapRule(0.9, 0.9, near=(0.5, 0.5)), "ignored: no object matches, but one nearly does"),
        (IoURule(), "dog: one object matches"),
        (CenterRule(), "dog: one object matches"),
    ],
)
def test_the_reason(rule: MatchRule, start: str) -> None:
    lines = told(rule).splitlines()
    assert lines[0].startswith(start)
    assert len(lines) == 3
    assert lines[1].startswith("  dog at [2, 2, 18, 18]: ")


def test_what_was_measured() -> None:
    assert told(OverlapRule()).splitlines()[1:] == [
        "  dog at [2, 2, 18, 18]: patch_fraction 0.640 (0.2), object_fraction 1.000 (0.6): matches",
        "  cat at [10, 0, 30, 20]: patch_fraction 0.500 (0.2), object_fraction 0.500 (0.6): no match",
    ]


def test_difficult_objects() -> None:
    text = told(OverlapRule(difficult="ignore"), difficult=torch.tensor([True, False]))
    assert text.startswith("ignored: the object that matches is difficult (ignore)")
    assert "dog at [2, 2, 18, 18] (difficult, ignore): " in text


def test_numbers_without_names_and_rules_without_reasons() -> None:
    class Always:
        def label(self, boxes: torch.Tensor, objects: Objects) -> PatchLabels:
            return PatchLabels(torch.full((len(boxes),), 2), torch.full((len(boxes),), -1))

        def __repr__(self) -> str:
            return "Always()"

    text = explain(torch.tensor([0, 0, 2, 2]), torch.zeros(0), torch.zeros(0), rule=Always())
    assert text == "class 2: by Always(), which gives no reasons"
    assert (
        explain(torch.tensor([0, 0, 2, 2]), torch.zeros(0), torch.zeros(0)) == "background: no object matches"
    )


def test_one_box_at_a_time() -> None:
    with pytest.raises(ArgumentError, match="box must be one xyxy box"):
        told(None, (0, 0, 1, 1, 2, 2, 3, 3))
