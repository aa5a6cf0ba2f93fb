"""How a fitted network scores photos: in memory, and lot by lot."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.utils.data import Subset

from transferkit.distributed import gather_objects, in_process_group, is_first
from transferkit.errors import OutputError, UncachableError
from transferkit.features import FeatureCache, FeatureImages, PatchFeatures
from transferkit.finetune._fitted import Fitted, digest_of_fitted
from transferkit.finetune._fitting import Setup, feature_arguments, given_features
from transferkit.finetune.on_features import AS_THEY_ARE, features_of_frozen, head_features
from transferkit.finetune.photos import agreed_names, as_data_sets, as_photos, ids_of, truth_of
from transferkit.finetune.predictions import PredictionFile, Predictions, Record, write_predictions
from transferkit.finetune.scoring import AnyScorer, Scored, fill_scorer, scored
from transferkit.preprocessing import Preprocessing
from transferkit.sampler import MultiscaleSampler
from transferkit.scorer import ClassificationResult, ImageScorer, PatchLog, evaluate
from transferkit.scorer.calibration import Calibration


@dataclass(frozen=True, eq=False)
class Scoring:
    """A fitted network as it sees new photos: their pixels, or shared features that the rest of it works on."""

    fitted: Fitted
    setup: Setup
    model: nn.Module
    preprocessing: Preprocessing
    features: PatchFeatures | None = None

    @staticmethod
    def of(fitted: Fitted, setup: Setup) -> Scoring:
        """Split the network where the classifier's features are shared."""
        if setup.features.method_for(fitted.protocol) == "exact":
            return Scoring(fitted, setup, fitted.model, fitted.preprocessing)
        how = feature_arguments(setup)
        features, rest = head_features(fitted.model, fitted.preprocessing, fitted.protocol, **how)
        return Scoring(fitted, setup, rest, AS_THEY_ARE, features)

    @staticmethod
    def of_given(fitted: Fitted, setup: Setup, given: FeatureCache) -> Scoring:
        """Split the network for features that were computed before."""
        features, rest = features_of_frozen(
            fitted.model, fitted.preprocessing, fitted.protocol, **feature_arguments(setup)
        )
        given.require_features(features)
        return Scoring(fitted, setup, rest, AS_THEY_ARE)

    def source(self, photos: Any) -> Any:
        """Return what the network sees of photos, computed when it is asked for."""
        return photos if self.features is None else FeatureImages(photos, self.features)

    def scored(self, stream: MultiscaleSampler) -> Iterator[Scored]:
        """Yield the probabilities of a stream's patches."""
        return scored(self.model, stream, self.preprocessing, **self._how)

    def filled(self, stream: MultiscaleSampler, scorer: AnyScorer) -> AnyScorer:
        """Give a scorer the patches of a stream, on all ranks those of all."""
        return fill_scorer(self.model, stream, scorer, self.preprocessing, **self._how)

    @property
    def _how(self) -> dict[str, Any]:
        setup = self.setup
        return {"objective": self.fitted.protocol.objective, "loop": setup.loop, "progress": setup.progress}

    def scorer(self, photos: int, *, keep_patches: bool, keep_boxes: bool) -> ImageScorer | PatchLog:
        """Return an empty scorer of some photos."""
        protocol, size = self.fitted.protocol, (photos, len(self.fitted.class_names))
        if keep_patches:
            return PatchLog(*size, protocol.exponent, protocol.reduction)
        return protocol.scorer(*size, device=self.setup.device, validate=False, keep_boxes=keep_boxes)


def score(
    fitted: Fitted, setup: Setup, photos: Any, keep_patches: bool, keep_boxes: bool = True
) -> ImageScorer | PatchLog:
    """Return a scorer filled with all patches of the photos, from given features, shared features or pixels."""
    given = given_features(photos)
    if given is not None:
        scoring, data = Scoring.of_given(fitted, setup, given), photos
    else:
        scoring = Scoring.of(fitted, setup)
        cached = None if scoring.features is None else _cached(setup, scoring.features, photos)
        data = cached or scoring.source(photos)
    scorer = scoring.scorer(len(photos), keep_patches=keep_patches, keep_boxes=keep_boxes)
    return scoring.filled(setup.stream(data, "test"), scorer)


def _cached(setup: Setup, features: PatchFeatures, photos: Any) -> FeatureCache | None:
    """Return features cached in the user's folder; ``None`` if unwanted, not of frozen layers, or too large."""
    if setup.features.folder is None or setup.features.cache is False or not features.frozen:
        return None
    try:
        return setup.filled(setup.cache_of(features, photos, setup.features.folder))
    except (UncachableError, OutputError) as error:
        setup.log(f"features are not cached: {error}")
        return None


def evaluation(
    fitted: Fitted, photos: Any, scorer: ImageScorer | PatchLog, bootstrap: int
) -> ClassificationResult:
    """Compare the scores of photos with their annotations."""
    names = agreed_names(fitted.class_names, photos)
    truth = truth_of(photos, len(names))
    return evaluate(
        scorer.compute().cpu(),
        truth.present,
        truth.difficult_only,
        class_names=names,
        image_ids=ids_of(photos),
        rule=fitted.protocol.ap_rule,
        bootstrap=bootstrap,
        calibration=fitted.calibration,
    )


@dataclass(frozen=True)
class Wanted:
    """What is asked of predictions: see :meth:`SceneClassifier.predict`."""

    maps: bool = False
    boxes: bool = True
    on_bad_photo: Literal["skip", "error"] = "skip"
    calibration: Calibration | None = None


def predict(scoring: Scoring, photos: Any, wanted: Wanted) -> Predictions:
    """Predict photos in memory; on all ranks those of all."""
    stream = _stream(scoring, photos, wanted)
    scorer = scoring.scorer(len(photos), keep_patches=wanted.maps, keep_boxes=wanted.boxes)
    scorer = scoring.filled(stream, scorer)
    bad: dict[int, str] = {}
    for one in gather_objects(dict(stream.bad_images)):
        bad |= one
    return _predictions(scoring, scorer, ids_of(photos), bad, wanted, photos)


def predict_to(
    path: str | os.PathLike[str],
    scoring: Scoring,
    photos: Any,
    wanted: Wanted,
    resume: bool,
    on_lot: Callable[[Predictions], object] | None,
) -> PredictionFile:
    """Predict photos into a file; of several ranks the first writes, what all found together."""
    on_lot = on_lot or (lambda lot: None)
    names, labeled = scoring.fitted.class_names, wanted.calibration is not None
    if in_process_group():
        whole = predict(scoring, as_photos(list(photos) if isinstance(photos, Iterator) else photos), wanted)
        on_lot(whole)
        if is_first():
            whole.write(path)
        return PredictionFile(Path(path), len(whole), whole.bad_photos)

    def lots(data: Any, start: int) -> Iterator[list[Record]]:
        ids = ids_of(data)
        for lot in predict_lots(scoring, data, start, wanted):
            on_lot(lot)
            said = {record["file"]: record for record in lot.records()}
            end = start + len(said)
            yield [said[name] for name in ids[start:end]]
            start = end

    made_by = {
        "classifier": digest_of_fitted(scoring.fitted),
        "features": str(scoring.setup.features),
        "thresholds": None if wanted.calibration is None else wanted.calibration.to_dict(),
        "boxes": wanted.boxes,
    }
    data_sets = ((data, ids_of(data)) for data in as_data_sets(photos))
    how: dict[str, Any] = {"class_names": names, "labeled": labeled, "made_by": made_by, "resume": resume}
    return write_predictions(path, data_sets, lots, **how)


def predict_lots(scoring: Scoring, photos: Any, start: int, wanted: Wanted) -> Iterator[Predictions]:
    """Predict photos from the ``start``-th on, some at a time."""
    ids, stream = ids_of(photos), _stream(scoring, photos, wanted)
    stream.start_at(start)
    for first, end, parts in windows(scoring.scored(stream), start, len(ids)):
        scorer = scoring.scorer(end - first, keep_patches=wanted.maps, keep_boxes=wanted.boxes)
        for probs, image_index, boxes in parts:
            scorer.add_batch(probs, image_index - first, boxes)
        bad = {place - first: why for place, why in stream.bad_images.items() if first <= place < end}
        some = Subset(photos, range(first, end))
        yield _predictions(scoring, scorer, ids[first:end], bad, wanted, some)


def _stream(scoring: Scoring, photos: Any, wanted: Wanted) -> MultiscaleSampler:
    return scoring.setup.stream(scoring.source(photos), "test", on_bad_image=wanted.on_bad_photo)


SECONDS = 2.0  # after which a lot of photos is written


def windows(
    patches: Iterable[Scored], first: int, end: int, *, most: int = 1024, seconds: float | None = None
) -> Iterator[tuple[int, int, list[Scored]]]:
    """Cut a stream of patches, whose images come in order, into lots of whole images.

    Args:
        patches: Of the images ``first`` to ``end``.
        first: The first image.
        end: The one after the last.
        most: Images in a lot, about.
        seconds: After which a lot ends; ``SECONDS`` by default.

    Yields:
        The first image of a lot, the one after its last, and their patches.
    """
    waiting: list[Scored] = []
    began, seconds = time.monotonic(), SECONDS if seconds is None else seconds
    for part in patches:
        waiting.append(part)
        last = int(part[1][-1])  # whose patches may not all have come
        if last - first >= most or (last > first and time.monotonic() - began > seconds):
            yield first, last, _rows(waiting, last, before=True)
            waiting = _rows(waiting, last, before=False)
            first, began = last, time.monotonic()
    yield first, end, waiting


def _rows(parts: Iterable[Scored], image: int, *, before: bool) -> list[Scored]:
    """Return the patches of the images before ``image``, or of the others."""
    chosen = ((part, (part[1] < image) == before) for part in parts)
    return [(probs[rows], index[rows], boxes[rows]) for (probs, index, boxes), rows in chosen if rows.any()]


def _predictions(
    scoring: Scoring,
    scorer: ImageScorer | PatchLog,
    ids: Sequence[str],
    bad: Mapping[int, str],
    wanted: Wanted,
    photos: Any,
) -> Predictions:
    """Return what a filled scorer says of the photos that could be used."""
    good = [place for place in range(len(ids)) if place not in bad]
    log = scorer if isinstance(scorer, PatchLog) else None
    best = scorer.scorer() if isinstance(scorer, PatchLog) else scorer
    scores = scorer.compute().cpu()[good]
    keep_boxes, calibration = wanted.boxes or log is not None, wanted.calibration
    return Predictions(
        tuple(ids[place] for place in good),
        scoring.fitted.class_names,
        scores,
        best.best_probs.cpu()[good],
        best.best_boxes.cpu()[good] if keep_boxes else None,
        None if calibration is None else calibration.probs(scores),
        None if calibration is None else calibration.labels(scores),
        {ids[place]: why for place, why in sorted(bad.items())},
        good,
        log,
        None if log is None else photos,
    )
