"""From patch probabilities to image scores, and from image scores to figures one can trust.

:class:`ImageScorer` gathers the probabilities of the patches of each image into a score per class;
:func:`average_precision` and :func:`evaluate` measure how well the scores rank the images, under every rule in
use, and :func:`calibrate` turns them into probabilities and into yes or no.

To read the code: ``image_scorer`` over ``_tally`` (sums that do not underflow, joined across ranks), ``ap_rules``
(average precision to the letter), ``evaluation`` and ``result`` (all rules at once, with intervals),
``calibration`` (probabilities and thresholds), ``localization`` and ``stitcher`` (maps), and ``pictures``.
"""

from __future__ import annotations

from transferkit.scorer.ap_rules import ALL_RULES, NEON, VOC2007, VOC2010, APRule, average_precision
from transferkit.scorer.calibration import Calibration, calibrate
from transferkit.scorer.evaluation import Extremes, evaluate, find_extremes
from transferkit.scorer.image_scorer import ImageScorer, PatchLog, Scorer
from transferkit.scorer.localization import LocalizationMeter, LocalizationResult, map_box, map_peak, score_map
from transferkit.scorer.result import ClassificationResult, Interval, read_devkit_results, write_devkit_results
from transferkit.scorer.stitcher import Stitcher

__all__ = [
    "ALL_RULES",
    "NEON",
    "VOC2007",
    "VOC2010",
    "APRule",
    "Calibration",
    "ClassificationResult",
    "Extremes",
    "ImageScorer",
    "Interval",
    "LocalizationMeter",
    "LocalizationResult",
    "PatchLog",
    "Scorer",
    "Stitcher",
    "average_precision",
    "calibrate",
    "evaluate",
    "find_extremes",
    "map_box",
    "map_peak",
    "read_devkit_results",
    "score_map",
    "write_devkit_results",
]
