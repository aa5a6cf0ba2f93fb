"""Run a model over the patches of a test set and collect the images' scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from transferkit.backbones import logits_of
from transferkit.distributed import in_process_group
from transferkit.errors import ArgumentError, DivergedError
from transferkit.finetune.settings import LoopSettings
from transferkit.heads import SINGLE_LABEL, Objective
from transferkit.preprocessing import Preprocessing
from transferkit.progress import Progress, track
from transferkit.sampler import MultiscaleSampler, PatchBatch
from transferkit.scorer import Scorer

AnyScorer = TypeVar("AnyScorer", bound=Scorer)
Scored = tuple[Tensor, Tensor, Tensor]
"""Probabilities (B, K), the images (B,) and the boxes (B, 4) of a minibatch."""


def score_images(
    model: nn.Module,
    sampler: MultiscaleSampler,
    scorer: Scorer,
    preprocessing: Preprocessing,
    *,
    objective: Objective = SINGLE_LABEL,
    loop: LoopSettings = LoopSettings(),  # noqa: B008 - a frozen value
    progress: Progress = False,
) -> Tensor:
    """Score every image of ``sampler``; see :func:`fill_scorer`.

    Returns:
        (N, K) float64 scores, background included.
    """
    filled = fill_scorer(
        model, sampler, scorer, preprocessing, objective=objective, loop=loop, progress=progress
    )
    return filled.compute()


def fill_scorer(
    model: nn.Module,
    sampler: MultiscaleSampler,
    scorer: AnyScorer,
    preprocessing: Preprocessing,
    *,
    objective: Objective = SINGLE_LABEL,
    loop: LoopSettings = LoopSettings(),  # noqa: B008 - a frozen value
    progress: Progress = False,
) -> AnyScorer:
    """Give the probabilities of all patches of ``sampler`` to ``scorer``.

    Args:
        model: Maps normalized patches (B, 3, S, S) to logits (B, K). Put into evaluation mode and back.
        sampler: In test mode.
        scorer: Collects probabilities, and where the patches lie; its N is the number of images. The values of a
            minibatch need no check of its own (``validate=False``): they are checked here, once for all.
        preprocessing: What the model wants done to pixels.
        objective: What the model was trained for: gives the probabilities.
        loop: Precision and layout.
        progress: See :func:`transferkit.progress.track`.

    Returns:
        ``scorer``; where several processes share the images, one with the patches of them all, on each of them.

    Raises:
        DivergedError: The model gives infinite or NaN logits.
        ArgumentError: Several processes share the images, and ``scorer`` has no ``across_ranks``.
    """
    if in_process_group() and not hasattr(scorer, "across_ranks"):
        raise ArgumentError(
            f"scorer must have across_ranks() where several processes share the images, got {type(scorer).__name__}"
        )
    device = next(model.parameters()).device
    was_training = model.training
    loop.lay_out_weights(model)
    network = loop.compiled(model.eval())
    finite = torch.ones((), dtype=torch.bool, device=device)

    def scored(batch: PatchBatch) -> Scored:
        nonlocal finite
        pixels = preprocessing(batch.pixels.to(device, non_blocking=True))
        with loop.mixed_precision(device):
            logits = logits_of(network(loop.lay_out(pixels))).float()
        finite = finite & logits.isfinite().all()
        return objective.probs(logits), batch.image_index, batch.boxes

    try:
        batches = track(sampler, progress, description="test", unit="batch")
        with torch.inference_mode():
            for probs, image_index, boxes in joined(map(scored, batches)):
                scorer.add_batch(probs, image_index, boxes)
    finally:
        model.train(was_training)
    if not finite:
        raise DivergedError("the network gives infinite or NaN logits; go back to an earlier epoch")
    whole: AnyScorer = scorer.across_ranks() if hasattr(scorer, "across_ranks") else scorer
    return whole


def joined(minibatches: Iterable[Scored], count: int = 64) -> Iterator[Scored]:
    """Join each ``count`` minibatches to one, since a scorer reads back from the device each time it is called."""
    waiting: list[Scored] = []
    for minibatch in minibatches:
        waiting.append(minibatch)
        if len(waiting) == count:
            yield _join(waiting)
            waiting = []
    if waiting:
        yield _join(waiting)


def _join(minibatches: list[Scored]) -> Scored:
    probs, image_index, boxes = (torch.cat(parts) for parts in zip(*minibatches, strict=True))
    return probs, image_index, boxes
