"""Every rule against a slow loop written from its definition, and what must hold for all of them."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from transferkit.errors import ArgumentError
from transferkit.labeling import (
    IGNORE,
    CenterRule,
    Evidence,
    IoURule,
    MatchRule,
    Objects,
    OverlapRule,
    PatchLabels,
    Rule,
    label_patches,
)

Box = tuple[int, int, int, int]


def box_lists(least: int, most: int, empty: bool = False) -> st.SearchStrategy[list[Box]]:
    """Boxes with whole-numbered corners close together, so that thresholds are hit exactly."""
    side = st.integers(0 if empty else 1, 12)
    box = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), st.integers(0, 12), st.integers(0, 12), side, side)
    return st.lists(box, min_size=least, max_size=most)


policies = st.fixed_dictionaries(
    {
        "several": st.sampled_from(["background", "ignore", "largest", "same_class"]),
        "difficult": st.sampled_from(["count", "ignore", "drop"]),
        "truncated": st.sampled_from(["count", "ignore", "drop"]),
    }
)
parts = st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 1.0])


@st.composite
def rules(draw: st.DrawFn) -> MatchRule:
    policy: dict[str, Any] = draw(policies)
    kind = draw(st.sampled_from(["overlap", "alone", "iou", "center"]))
    if kind == "iou":
        positive = draw(parts)
        return IoURule(positive, draw(parts.filter(lambda value: value <= positive) | st.none()), **policy)
    if kind == "center":
        return CenterRule(draw(st.sampled_from([0.0, 0.1, 0.25, 0.5])), draw(st.just(0.0) | parts), **policy)
    limits = draw(st.tuples(parts, parts))
    near = draw(st.tuples(*(parts.filter(lambda v, limit=limit: v <= limit) for limit in limits)) | st.none())
    if kind == "alone" and policy["several"] in ("background", "ignore"):
        return OverlapRule(*limits, near, draw(st.sampled_from([0.0, 0.1, 0.5])), **policy)
    return OverlapRule(*limits, near, **policy)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Box], list[Box], list[int], list[bool], list[bool]]:
    patches, objects = draw(box_lists(1, 6)), draw(box_lists(0, 5, empty=True))
    count = len(objects)
    classes = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    flags = [draw(st.lists(st.booleans(), min_size=count, max_size=count)) for _ in range(2)]
    return patches, objects, classes, flags[0], flags[1]


def exact(number: float) -> Fraction:
    return Fraction(str(number))


def size(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def common(a: Box, b: Box) -> int:
    across, down = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    return max(across, 0) * max(down, 0)


def part(shared: int, whole: int) -> Fraction:
    return Fraction(shared, whole) if whole else Fraction(0)


def compare(rule: MatchRule, patch: Box, thing: Box) -> tuple[bool, bool, bool, Fraction]:
    """Whether the object matches, nearly matches, shows too much of itself as another; and how large it is."""
    shared = common(patch, thing)
    of_patch, of_object = part(shared, size(patch)), part(shared, size(thing))
    if isinstance(rule, IoURule):
        union = size(patch) + size(thing) - shared
        overlap = part(shared, union)
        near = rule.negative is not None and exact(rule.negative) <= overlap < exact(rule.positive)
        return overlap >= exact(rule.positive), near, False, overlap
    if isinstance(rule, CenterRule):
        apart = [
            Fraction(abs(patch[i] + patch[i + 2] - thing[i] - thing[i + 2]), 2 * (patch[i + 2] - patch[i]))
            for i in (0, 1)
        ]
        match = max(apart) <= exact(rule.offset) and of_patch >= exact(rule.patch_fraction)
        return match, False, False, Fraction(shared)
    assert isinstance(rule, OverlapRule)
    match = of_patch >= exact(rule.patch_fraction) and of_object >= exact(rule.object_fraction)
    near = rule.near is not None and of_patch >= exact(rule.near[0]) and of_object >= exact(rule.near[1])
    other = rule.max_other_fraction is not None and of_object > exact(rule.max_other_fraction)
    return match, near and not match, other and not match, Fraction(shared)


def slow_label(
    rule: MatchRule,
    patch: Box,
    objects: list[Box],
    classes: list[int],
    difficult: list[bool],
    truncated: list[bool],
) -> int:
    matched: list[int] = []
    near = others = False
    for row, thing in enumerate(objects):
        if (difficult[row] and rule.difficult == "drop") or (truncated[row] and rule.truncated == "drop"):
            continue
        match, nearly, other, _ = compare(rule, patch, thing)
        matched += [row] * match
        near, others = near or nearly, others or other
    if not matched:
        return IGNORE if near else 0
    best = max(matched, key=lambda row: (compare(rule, patch, objects[row])[3], -classes[row]))
    if len(matched) > 1 or others:
        if rule.several == "background":
            return 0
        if rule.several == "ignore":
            return IGNORE
        if rule.several == "same_class" and len({classes[row] for row in matched}) > 1:
            return 0
    ties = [
        row
        for row in matched
        if classes[row] == classes[best]
        and compare(rule, patch, objects[row])[3] == compare(rule, patch, objects[best])[3]
    ]
    first = ties[0]
    if (difficult[first] and rule.difficult == "ignore") or (truncated[first] and rule.truncated == "ignore"):
        return IGNORE
    return classes[first]


def tensors(objects: list[Box], classes: list[int], *flags: list[bool]) -> tuple[Tensor, ...]:
    boxes = torch.tensor(objects, dtype=torch.float64).reshape(-1, 4)
    return (
        boxes,
        torch.tensor(classes, dtype=torch.int64),
        *(torch.tensor(f, dtype=torch.bool) for f in flags),
    )


@pytest.mark.filterwarnings("ignore:.* objects have no area")
@settings(deadline=None, max_examples=250)
@given(rules(), scenes())
def test_a_slow_loop_from_the_definition_agrees(rule: MatchRule, scene: Any) -> None:
    patches, objects, classes, difficult, truncated = scene
    boxes, labels, hard, cut = tensors(objects, classes, difficult, truncated)
    found = label_patches(
        torch.tensor(patches, dtype=torch.float64), boxes, labels, rule=rule, difficult=hard, truncated=cut
    )
    assert found.labels.tolist() == [
        slow_label(rule, patch, objects, classes, difficult, truncated) for patch in patches
    ]
    for label, row in zip(found.labels.tolist(), found.matched.tolist(), strict=True):
        assert (classes[row] == label) if label > 0 else row == -1


@pytest.mark.filterwarnings("ignore:.* objects have no area")
@settings(deadline=None, max_examples=120)
@given(rules(), scenes(), st.randoms(use_true_random=False), st.integers(-50, 50), st.integers(-50, 50))
def test_neither_the_order_of_objects_nor_their_place_matters(
    rule: MatchRule, scene: Any, random: Any, right: int, down: int
) -> None:
    patches, objects, classes, _, _ = scene
    order = list(range(len(objects)))
    random.shuffle(order)
    shift = torch.tensor([right, down, right, down], dtype=torch.float64)
    boxes, labels = tensors(objects, classes)
    at = torch.tensor(patches, dtype=torch.float64)
    here = label_patches(at, boxes, labels, rule=rule)
    there = label_patches(at + shift, boxes[order] + shift, labels[order], rule=rule)
    assert torch.equal(here.labels, there.labels)


@pytest.mark.parametrize("rule", [OverlapRule(), IoURule(), CenterRule()])
def test_rules_are_plain_values(rule: MatchRule) -> None:
    assert eval(repr(rule)) == rule
    assert hash(dataclasses.replace(rule)) == hash(rule)
    assert isinstance(rule, Rule)
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.several = "ignore"  # type: ignore[misc]


def test_a_rule_of_ones_own_needs_only_the_method() -> None:
    class Corner:
        def label(self, boxes: Tensor, objects: Objects) -> PatchLabels:
            labels = (boxes[:, 0] == 0).long()
            return PatchLabels(labels, labels - 1)

    labels, _ = label_patches(
        torch.tensor([[0, 0, 2, 2], [1, 0, 3, 2]]), torch.zeros(0), torch.zeros(0), rule=Corner()
    )
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OverlapRule(patch_fraction=0), "patch_fraction must be above 0"),
        (lambda: OverlapRule(object_fraction=1.5), "object_fraction must be above 0 and at most 1, got 1.5"),
        (lambda: OverlapRule(near=(0.3, 0.3)), "near must be two fractions"),
        (lambda: OverlapRule(max_other_fraction=1), "max_other_fraction must be from 0"),
        (
            lambda: OverlapRule(max_other_fraction=0, several="largest"),
            "several must be 'background' or 'ignore'",
        ),
        (lambda: OverlapRule(several="any"), "several must be one of"),  # type: ignore[arg-type]
        (lambda: OverlapRule(difficult="skip"), "difficult must be one of"),  # type: ignore[arg-type]
        (lambda: IoURule(0.5, 0.6), "negative must be"),
        (lambda: CenterRule(0.6), "offset must be"),
    ],
)
def test_thresholds_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


def test_malformed_objects_are_told_all_at_once() -> None:
    boxes, objects = torch.tensor([[0, 0, 2, 2]]), torch.tensor([[0, 0, 1, 1], [0, 0, 2, 2]])
    with pytest.raises(ArgumentError, match=r"there are 2 objects, but classes \(1,\), difficult \(3,\)"):
        label_patches(boxes, objects, torch.tensor([1]), difficult=torch.zeros(3, dtype=torch.bool))
    for classes in ([1.0, 1.9], [1.0, math.nan], [1.0, math.inf], [True, True]):
        with pytest.raises(ArgumentError, match="classes must be whole numbers, got"):
            label_patches(boxes, objects, torch.tensor(classes))
    assert label_patches(boxes, boxes, torch.tensor([2.0])).labels.tolist() == [2]
    with pytest.raises(ArgumentError, match=r"classes must be 1 or more .* got 0 at row 1"):
        label_patches(boxes, objects, torch.tensor([1, 0]))


def test_labels_live_where_the_patches_do(device: torch.device) -> None:
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0]], device=device)
    labels, matched = label_patches(boxes, torch.tensor([[2, 2, 18, 18]]), torch.tensor([3]))
    assert labels.device == matched.device == boxes.device
    assert labels.tolist() == [3]


@pytest.mark.parametrize(
    ("classes", "difficult", "message"),
    [
        (torch.tensor([1.5]), None, "classes must be whole numbers, got 1.5"),
        (torch.tensor([float("nan")]), None, "classes must be whole numbers"),
        (torch.tensor([1]), torch.tensor([2]), "difficult must be true or false, or 0 and 1"),
    ],
)
def test_numbers_are_not_rounded_to_classes_and_flags(
    classes: Tensor, difficult: Tensor | None, message: str
) -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9]])
    with pytest.raises(ArgumentError, match=message):
        label_patches(boxes, boxes, classes, difficult=difficult)
    assert label_patches(boxes, boxes, torch.tensor([2.0])).labels.tolist() == [2]


def test_points_that_a_rule_never_matches_are_told() -> None:
    patches, points = np.array([[0, 0, 10, 10], [5, 5, 9, 9]]), np.array([[5, 5, 5, 5], [3, 3, 6, 6]])
    for rule in (OverlapRule(1e-6, 1e-6), IoURule(1e-6)):
        with pytest.warns(UserWarning, match=r"1 of 2 objects have no area, .*CenterRule\(\)"):
            assert label_patches(patches, points, [1, 2], rule=rule).matched.tolist() == [1, 1]
    assert label_patches(patches, points[:1], [1], rule=CenterRule()).labels.tolist() == [1, 0]


def test_many_patches_are_labeled_in_pieces_and_a_rule_of_ones_own_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = np.random.default_rng(0)
    corners = draw.uniform(0, 50, (2, 60, 2))
    patches, objects = (np.concatenate([c, c + draw.uniform(5, 20, (60, 2))], axis=1) for c in corners)
    classes, seen = draw.integers(1, 5, 60), []

    class BestOnly(IoURule):
        def evidence(self, boxes: Tensor, objects: Objects) -> Evidence:
            seen.append(len(boxes))
            found = super().evidence(boxes, objects)
            return dataclasses.replace(found, matched=found.strength == found.strength.amax(dim=0))

    rules = (OverlapRule(0.1, 0.1, several="largest"), IoURule(0.2, negative=0.1), CenterRule(0.3), BestOnly())
    whole = [label_patches(patches, objects, classes, rule=rule) for rule in rules]
    monkeypatch.setattr("transferkit.labeling.rules._PAIRS_AT_ONCE", 400)
    for rule, expected in zip(rules, whole, strict=True):
        for found, same in zip(label_patches(patches, objects, classes, rule=rule), expected, strict=True):
            assert torch.equal(found, same) and same.unique().numel() > 2
    assert seen == [60, 60]
