"""Run a model over the patches of photos and collect the photos' scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from transferkit.backbones import logits_of
from transferkit.distributed import any_rank, gather_objects, in_process_group, unwrapped
from transferkit.errors import ArgumentError, DivergedError
from transferkit.finetune._restoring import described
from transferkit.finetune._starts import require_same_start
from transferkit.finetune.settings import LoopSettings
from transferkit.heads import SINGLE_LABEL, Objective
from transferkit.preprocessing import Preprocessing
from transferkit.progress import Progress, track
from transferkit.sampler import MultiscaleSampler, PatchBatch
from transferkit.scorer import Scorer

AnyScorer = TypeVar("AnyScorer", bound=Scorer)
Scored = tuple[Tensor, Tensor, Tensor]  # of a minibatch: probabilities (B, K), image index (B,), boxes (B, 4)


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
    """Return the score of every image of ``sampler``.

    Arguments and errors are those of :func:`fill_scorer`.

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
        model: Maps normalized patches (B, 3, S, S) to logits (B, K). It runs in evaluation mode and is put back
            into its own mode afterwards.
        sampler: Sampler in test mode.
        scorer: Collects the probabilities and boxes of the patches; its N is the number of images. Make it with
            ``validate=False``: the values are checked here, once for all minibatches.
        preprocessing: Preprocessing that the model expects.
        objective: Turns logits into probabilities; the one that the model was trained with.
        loop: Precision and memory layout.
        progress: See :func:`transferkit.progress.track`.

    Returns:
        ``scorer``. If several ranks share the images, each rank gets a scorer with the patches of all ranks.

    Raises:
        DivergedError: The model gives infinite or NaN logits.
        ArgumentError: Several ranks share the images, and ``scorer`` has no ``across_ranks``; or they begin with
            different data, settings or weights.
    """
    if in_process_group() and not hasattr(scorer, "across_ranks"):
        raise ArgumentError(
            f"scorer must have across_ranks() where several ranks share the images, got {type(scorer).__name__}; "
            "ImageScorer and PatchLog have it"
        )
    facts = {"objective": described(objective), **getattr(scorer, "settings", dict)()}
    require_same_start("a test", model, sampler, loop, facts)
    how: dict[str, Any] = {"objective": objective, "loop": loop, "progress": progress}
    for probs, image_index, boxes in scored(model, sampler, preprocessing, **how):
        scorer.add_batch(probs, image_index, boxes)
    if hasattr(sampler, "gather_bad_images"):
        sampler.gather_bad_images()
    whole: AnyScorer = scorer.across_ranks() if hasattr(scorer, "across_ranks") else scorer
    return whole


def scored(
    model: nn.Module,
    sampler: MultiscaleSampler,
    preprocessing: Preprocessing,
    *,
    objective: Objective = SINGLE_LABEL,
    loop: LoopSettings = LoopSettings(),  # noqa: B008 - a frozen value
    progress: Progress = False,
) -> Iterator[Scored]:
    """Yield the probabilities of the patches of ``sampler``, some minibatches at a time.

    Arguments and errors are those of :func:`fill_scorer`.
    """
    model = unwrapped(model)
    device = next(model.parameters()).device
    was_training = model.training
    loop.lay_out_weights(model)
    network = loop.compiled(model.eval())
    finite = torch.ones((), dtype=torch.bool, device=device)
    # A layer that communicates, as under fully_shard, waits for all ranks: they run it equally often.
    keep_step = in_process_group() and hasattr(sampler, "__len__")
    turns = max(gather_objects(len(sampler))) if keep_step else 0
    last: PatchBatch | None = None

    def of(batch: PatchBatch) -> Scored:
        nonlocal finite, last, turns
        last, turns = batch, turns - 1
        with torch.inference_mode():
            pixels = preprocessing(batch.pixels.to(device, non_blocking=True))
            with loop.mixed_precision(device):
                logits = logits_of(network(loop.lay_out(pixels))).float()
            finite = finite & logits.isfinite().all()
            probs = objective.probs(logits)
            # A scorer refuses NaN, on this rank alone; all ranks are told below.
            return probs.nan_to_num(0.0) if in_process_group() else probs, batch.image_index, batch.boxes

    try:
        yield from joined(map(of, track(sampler, progress, description="test", unit="batch")))
        while turns > 0:
            of(last or sampler._stream.any_batch(sampler.epoch))
    finally:
        model.train(was_training)
    if any_rank(not finite):
        raise DivergedError("the network gives infinite or NaN logits; restore an earlier epoch")


JOINED = 64  # minibatches


def joined(minibatches: Iterable[Scored], count: int | None = None) -> Iterator[Scored]:
    """Concatenate each ``count`` minibatches, since a scorer reads back from the device on every call."""
    waiting: list[Scored] = []
    for minibatch in minibatches:
        waiting.append(minibatch)
        if len(waiting) == (count or JOINED):
            yield _join(waiting)
            waiting = []
    if waiting:
        yield _join(waiting)


def _join(minibatches: list[Scored]) -> Scored:
    probs, image_index, boxes = (torch.cat(parts) for parts in zip(*minibatches, strict=True))
    return probs, image_index, boxes
