"""Label patches by the objects in them, and say why a patch got its label."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from transferkit.boxes import as_boxes
from transferkit.errors import require
from transferkit.labeling.decision import BACKGROUND, IGNORE, Evidence, Objects, PatchLabels, Reason, Rule
from transferkit.labeling.rules import MatchRule, OverlapRule


def label_patches(
    boxes: Tensor,
    objects: Tensor,
    classes: Tensor,
    *,
    rule: Rule | None = None,
    difficult: Tensor | None = None,
    truncated: Tensor | None = None,
) -> PatchLabels:
    """Label each patch with the class of the object in it, or as background.

    Arrays of NumPy are taken too. However many patches there are, the rules of this package look at some at a time.

    Args:
        boxes: (P, 4) patches, xyxy, pixels.
        objects: (N, 4) annotated boxes, xyxy, pixels, same frame.
        classes: (N,) whole numbers from 1; 0 is the background.
        rule: When an object counts as being in a patch; ``None`` for :class:`OverlapRule`'s defaults.
        difficult: (N,) bool, for rules that treat such objects apart.
        truncated: (N,) bool: truncated objects.

    Returns:
        ``labels`` (P,) int64 and ``matched`` (P,) int64, on the device of ``boxes``.

    Raises:
        ArgumentError: Malformed boxes, columns that do not fit them, or a class below 1.

    Warns:
        UserWarning: Objects without area, and a rule that never matches such points.

    Example:
        >>> import torch
        >>> patches = torch.tensor([[0.0, 0.0, 20.0, 20.0], [30.0, 30.0, 50.0, 50.0]])
        >>> labels, matched = label_patches(patches, torch.tensor([[2.0, 2.0, 18.0, 18.0]]), torch.tensor([7]))
        >>> labels.tolist(), matched.tolist()
        ([7, 0], [0, -1])
    """
    boxes = as_boxes(boxes)
    objects = as_boxes(objects, "objects").to(boxes)
    return (rule or OverlapRule()).label(boxes, Objects.of(objects, classes, difficult, truncated))


# Say why a patch got its label.


def explain(
    box: Tensor,
    objects: Tensor,
    classes: Tensor,
    *,
    rule: Rule | None = None,
    difficult: Tensor | None = None,
    truncated: Tensor | None = None,
    class_names: Sequence[str] | None = None,
) -> str:
    """Return the label of one patch, what the rule measured for each object, and what followed from it.

    Args:
        box: (4,) the patch, xyxy, pixels.
        objects: (N, 4) annotated boxes, xyxy, pixels, same frame.
        classes: (N,) whole numbers from 1.
        rule: As in :func:`label_patches`.
        difficult: (N,) bool.
        truncated: (N,) bool.
        class_names: (K,) names, ``"background"`` first; ``None`` for numbers.

    Raises:
        ArgumentError: More or less than one box, or objects that are malformed.

    Example:
        >>> import torch
        >>> box, things = torch.tensor([0.0, 0.0, 20.0, 20.0]), torch.tensor([[2.0, 2.0, 18.0, 30.0]])
        >>> print(explain(box, things, torch.tensor([1]), class_names=["background", "dog"]))
        dog: one object matches
          dog at [2, 2, 18, 30]: patch_fraction 0.720 (0.2), object_fraction 0.643 (0.6): matches
    """
    require(box.numel() == 4, "box", "one xyxy box", tuple(box.shape))
    rule = rule or OverlapRule()
    boxes = as_boxes(box.reshape(1, 4), "box")
    things = Objects.of(as_boxes(objects, "objects").to(boxes), classes, difficult, truncated)
    if not isinstance(rule, MatchRule):
        label = int(rule.label(boxes, things).labels[0])
        return f"{label_name(label, class_names)}: by {rule!r}, which gives no reasons"
    decision = rule.decide(boxes, things)
    label, reason = int(decision.labels[0]), Reason(int(decision.reasons[0]))
    lines = [f"{label_name(label, class_names)}: {_sentence(reason, rule)}"]
    evidence = rule.evidence(boxes, things)
    lines += [f"  {_measured(row, evidence, things, rule, class_names)}" for row in range(len(things))]
    return "\n".join(lines)


def label_name(label: int, class_names: Sequence[str] | None) -> str:
    """Return what people call a label."""
    if label == IGNORE:
        return "ignored"
    if class_names is not None:
        return class_names[label]
    return "background" if label == BACKGROUND else f"class {label}"


def _sentence(reason: Reason, rule: MatchRule) -> str:
    return {
        Reason.NO_MATCH: "no object matches",
        Reason.NEARLY: "no object matches, but one nearly does",
        Reason.ONE: "one object matches",
        Reason.LARGEST: 'several objects match, and several="largest" takes the one with the most of the patch',
        Reason.SAME_CLASS: 'several objects of one class match, and several="same_class"',
        Reason.CROWDED: f'several objects are in the patch, and several="{rule.several}"',
        Reason.CROWDED_IGNORED: 'several objects are in the patch, and several="ignore"',
        Reason.SPECIAL: f"the object that matches is difficult ({rule.difficult}) or truncated ({rule.truncated})",
    }[reason]


def _measured(
    row: int, evidence: Evidence, objects: Objects, rule: MatchRule, class_names: Sequence[str] | None
) -> str:
    flags = [
        f"{flag}, {treatment}"
        for flag, marked, treatment in (
            ("difficult", objects.difficult, rule.difficult),
            ("truncated", objects.truncated, rule.truncated),
        )
        if marked[row]
    ]
    where = ", ".join(f"{value:g}" for value in objects.boxes[row].tolist())
    thing = f"{label_name(int(objects.classes[row]), class_names)} at [{where}]" + "".join(
        f" ({flag})" for flag in flags
    )
    values = ", ".join(
        f"{name} {float(v[0, row]):.3f} ({limit:g})" for name, (v, limit) in evidence.measures.items()
    )
    verdicts = {
        "matches": evidence.matched,
        "nearly matches": evidence.near,
        "shows too much": evidence.others,
    }
    said = [verdict for verdict, truth in verdicts.items() if truth is not None and bool(truth[0, row])]
    return f"{thing}: {values}: {' and '.join(said) or 'no match'}"
