"""report.html: the results of a run on one page, from its figures to the photos it got wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from transferkit.finetune import _report_sections as sections
from transferkit.finetune._report_sections import Page
from transferkit.finetune.photos import class_names_of, truth_of, with_background
from transferkit.finetune.results import versions
from transferkit.finetune.run import Run
from transferkit.progress import Progress, track
from transferkit.sampler import MultiscaleSampler
from transferkit.scorer import ClassificationResult, LocalizationMeter, LocalizationResult, PatchLog


@dataclass(frozen=True)
class RunReport:
    """The contents of a report; an empty value leaves out its section.

    Attributes:
        title: Title of the page.
        result: Return value of :func:`transferkit.scorer.evaluate`.
        log: Probabilities of all patches of the test set.
        dataset: The test set, with items like :class:`~transferkit.sampler.AnnotatedImage`; a part of one serves too.
        settings: Settings of the run.
        transfer: Report of the weight transfer, as text.
        histories: One mapping per epoch with ``epoch``, ``loss`` and ``mean_ap``, by name of the run; several runs
            are drawn together.
        seconds: Wall time by phase.
        versions: Versions of software and hardware that the figures depend on.
        patches: The patches of a training photo.
        photos: Number of photos with maps; also, per class, of hits, misses and false alarms.
        seed: Seed that draws the photos with maps.
    """

    title: str
    result: ClassificationResult
    log: PatchLog
    dataset: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    transfer: str = ""
    histories: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    patches: TrainingPatches | None = None
    photos: int = 5
    seed: int = 0

    @classmethod
    def of(
        cls,
        run: Run,
        result: ClassificationResult,
        log: PatchLog,
        dataset: Any,
        *,
        title: str,
        seconds: Mapping[str, float] | None = None,
        compared_with: Mapping[str, Run] | None = None,
        patches: TrainingPatches | None = None,
    ) -> RunReport:
        """Return the report of a run.

        Args:
            run: The run after its last epoch.
            result: As for :class:`RunReport`.
            log: As for :class:`RunReport`.
            dataset: As for :class:`RunReport`.
            title: As for :class:`RunReport`.
            seconds: As for :class:`RunReport`.
            compared_with: Other runs by name, whose training curves are drawn too, before the run's own.
            patches: As for :class:`RunReport`.
        """
        others = compared_with or {}
        own = "pretrained" if run.transfer else "from scratch"
        runs = {**others, "this run" if own in others else own: run}
        return cls(
            title,
            result,
            log,
            dataset,
            settings=run.settings,
            transfer=str(run.transfer or ""),
            histories={name: [asdict(record) for record in one.history] for name, one in runs.items()},
            seconds=seconds or {},
            versions=versions(run),
            patches=patches,
        )


def build_report(report: RunReport, *, progress: Progress = False) -> Page:
    """Draw all figures of a report and put them on one page.

    Args:
        report: Contents of the page.
        progress: See :func:`transferkit.progress.track`.

    Returns:
        The page; its ``write("report.html")`` writes it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    result, dataset = report.result, report.dataset
    names = class_names_of(dataset) or with_background(result.class_names)
    scores, truth = report.log.compute(), truth_of(dataset, len(names))
    located = locate(report.log, dataset, progress=progress)
    boxed = truth.boxed is None or bool(truth.boxed.any())
    page = Page(report.title, f"{result.num_images} test photos, {len(result.class_names)} classes")
    steps: list[Callable[[], None]] = [
        lambda: sections.summary(page, result, located, report.seconds),
        lambda: sections.average_precision(page, result, scores, truth, names),
        lambda: sections.decisions(page, result.decisions),
        lambda: sections.exponents(page, result.rule, report.log, truth),
        lambda: sections.localization(page, located) if boxed else None,
        lambda: sections.maps(page, report.log, dataset, truth, names, report.photos, report.seed),
        lambda: sections.contact_sheets(page, result.rule, scores, truth, names, dataset, report.photos),
        lambda: sections.training(page, report.histories, report.patches, names),
        lambda: sections.transfer(page, report.transfer),
        lambda: sections.settings(page, report.settings, report.seconds, report.versions),
    ]
    for step in track(steps, progress, description="report", unit="section"):
        step()
    return page


def locate(log: PatchLog, dataset: Any, *, progress: Progress = False) -> LocalizationResult:
    """Measure localization over all photos of a data set."""
    names = class_names_of(dataset)
    meter = LocalizationMeter(names or [f"class {k}" for k in range(log.compute().shape[1])])
    for n in track(range(len(dataset)), progress, description="maps", unit="photo"):
        item = dataset[n]
        probs, boxes = log.patches(n)
        meter.add_image(probs, boxes, item.image.shape[-2:], item.boxes, item.classes, item.difficult)
    return meter.compute()


@dataclass(frozen=True)
class TrainingPatches:
    """The patches of one training photo, before preprocessing.

    Attributes:
        image: (3, H, W) uint8, the photo.
        boxes: (P, 4) xyxy, pixels, the patches.
        labels: (P,) int64, class of each patch; 0 is the background.
        crops: (P, 3, S, S) uint8, the patches resized.
        objects: (N, 4) xyxy, pixels, the annotated objects.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    crops: Tensor
    objects: Tensor


def look_at_patches(sampler: MultiscaleSampler, dataset: Any, minibatches: int = 20) -> TrainingPatches:
    """Return the patches of the photo with the most object patches in the next minibatches.

    Args:
        sampler: Sampler in training mode over ``dataset``; its position does not change.
        dataset: Data set of items like :class:`~transferkit.sampler.AnnotatedImage`.
        minibatches: Number of minibatches to look through.
    """
    state = sampler.state_dict()
    seen = list(islice(sampler, minibatches))
    sampler.load_state_dict(state)
    image_index = torch.cat([batch.image_index for batch in seen])
    labels = torch.cat([batch.labels.cpu() for batch in seen])
    image = int((image_index[labels > 0] if (labels > 0).any() else image_index).mode().values)
    rows = image_index == image
    item = dataset[image]
    return TrainingPatches(
        image=item.image,
        boxes=torch.cat([batch.boxes for batch in seen])[rows],
        labels=labels[rows],
        crops=torch.cat([batch.pixels.cpu() for batch in seen])[rows].byte(),
        objects=item.boxes,
    )
