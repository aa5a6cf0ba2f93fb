"""Run a model over the patches of a test set and collect the images' scores."""

from __future__ import annotations

import torch
from torch import nn

from transferkit.precision import mixed_precision
from transferkit.preprocessing import Preprocessing
from transferkit.progress import Progress, track
from transferkit.sampler import MultiscaleSampler
from transferkit.scorer import Scorer


@torch.inference_mode()
def score_images(
    model: nn.Module,
    sampler: MultiscaleSampler,
    scorer: Scorer,
    preprocessing: Preprocessing,
    *,
    amp: bool | None = None,
    progress: Progress = False,
) -> torch.Tensor:
    """Score every image of ``sampler``.

    Args:
        model: Maps normalised patches (B, 3, S, S) to logits (B, K). Put into evaluation mode and back.
        sampler: In test mode.
        scorer: Collects probabilities, and where the patches lie; its N is the number of images.
        preprocessing: What the model wants done to pixels.
        amp: Mixed precision; ``None`` for on with cuda and off elsewhere.
        progress: See :func:`transferkit.progress.track`.

    Returns:
        (N, K) float64 scores, background included.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for batch in track(sampler, progress, description="test", unit="batch"):
            with mixed_precision(device, amp):
                logits = model(preprocessing(batch.pixels.to(device, non_blocking=True)))
            scorer.add_batch(logits.float().softmax(dim=1), batch.image_index, batch.boxes)
    finally:
        model.train(was_training)
    return scorer.compute()
