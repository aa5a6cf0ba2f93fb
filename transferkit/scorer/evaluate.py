"""Score a whole classification run under every rule at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from transferkit.errors import ArgumentError
from transferkit.scorer.ap_rule import ALL_RULES, VOC2010, APRule
from transferkit.scorer.bootstrap import bootstrap_intervals
from transferkit.scorer.checks import BACKGROUND
from transferkit.scorer.result import ClassificationResult


def evaluate(
    scores: Tensor,
    targets: Tensor,
    difficult: Tensor | None = None,
    *,
    class_names: Sequence[str],
    image_ids: Sequence[str] | None = None,
    rule: APRule = VOC2010,
    bootstrap: int = 0,
    level: float = 0.95,
    seed: int = 0,
) -> ClassificationResult:
    """Evaluate image scores under all interpolations and all treatments of difficult objects.

    A class called "background" has no positives by definition and is left out.

    Args:
        scores: (N, K) scores, higher means more surely present, ``-inf`` unscored.
        targets: (N, K) bool: the image shows the class.
        difficult: (N, K) bool: it shows the class only in objects marked difficult; ``None``: nowhere.
        class_names: K names.
        image_ids: N distinct names of the images, to speak of in errors and for the devkit's result files.
        rule: The rule that the result means where none is named.
        bootstrap: Number of resampled image sets for the intervals under ``rule``; 0 for no intervals.
        level: The share of intervals that shall hold the true value.
        seed: Of the resampling.

    Raises:
        ArgumentError: Shapes, dtypes, names or ids that do not fit, or a NaN score.

    Example:
        >>> present = torch.tensor([[False, True, False], [False, False, True]])
        >>> result = evaluate(present.double(), present, class_names=["background", "cat", "dog"])
        >>> result.class_names, result.mean_ap()
        (('cat', 'dog'), 1.0)
    """
    difficult = torch.zeros_like(targets) if difficult is None else difficult
    _check(scores, targets, difficult, class_names, image_ids)
    kept = [k for k, name in enumerate(class_names) if name != BACKGROUND]
    scores, targets, difficult = (tensor.detach().cpu()[:, kept] for tensor in (scores, targets, difficult))
    rules = dict.fromkeys((*ALL_RULES, rule))
    ap = {r: tuple(r.average_precision(scores, targets, difficult).tolist()) for r in rules}
    intervals = bootstrap_intervals(
        rule.rank(scores, targets, difficult), rule.interpolation, samples=bootstrap, level=level, seed=seed
    )
    return ClassificationResult(
        class_names=tuple(class_names[k] for k in kept),
        num_images=len(scores),
        positives=tuple((targets & ~difficult).sum(dim=0).tolist()),
        difficult=tuple(difficult.sum(dim=0).tolist()),
        ap=ap,
        rule=rule,
        intervals=intervals.classes,
        mean_interval=intervals.mean,
        level=level,
        scores=scores.double(),
        image_ids=tuple(image_ids or ()),
    )


def _check(
    scores: Tensor,
    targets: Tensor,
    difficult: Tensor,
    class_names: Sequence[str],
    image_ids: Sequence[str] | None,
) -> None:
    problems = []
    if scores.ndim != 2 or len(scores) == 0:
        problems.append(f"scores must be (N, K) with N >= 1, got {tuple(scores.shape)}")
    for name, mask in (("targets", targets), ("difficult", difficult)):
        if mask.shape != scores.shape or mask.dtype != torch.bool:
            found = f"{mask.dtype} {tuple(mask.shape)}"
            problems.append(f"{name} must be bool of the scores' shape {tuple(scores.shape)}, got {found}")
    problems += _wrong_names("class_names", class_names, scores.shape[-1])
    if image_ids is not None:
        problems += _wrong_names("image_ids", image_ids, len(scores))
    if not problems and scores.isnan().any():
        image, column = (int(i) for i in scores.isnan().nonzero()[0])
        place = f"image {image_ids[image] if image_ids else image}, class {class_names[column]}"
        problems.append(f"scores must not be NaN, got {int(scores.isnan().sum())} NaN, the first at {place}")
    if problems:
        raise ArgumentError("; ".join(problems))


def _wrong_names(argument: str, names: Sequence[str], count: int) -> list[str]:
    distinct = len(set(names))
    if len(names) == distinct == count:
        return []
    return [f"{argument} must be {count} distinct names, got {distinct} distinct of {len(names)}"]
