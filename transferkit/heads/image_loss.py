"""A loss on whole images: what their patches say together, against the classes that they show."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transferkit.errors import require
from transferkit.labeling import BACKGROUND, IGNORE


@dataclass(frozen=True)
class ImageLoss:
    """Binary cross-entropy of each image's score, read as a probability, against the classes that its patches show.

    The score is the generalized mean of the patches' probabilities (:func:`log_generalized_mean`): the sum of
    probability^exponent that images are ranked by, brought back to 0..1. The loss of patches asks that each be right
    by itself, and most of them show parts of things or nothing; this one asks that an image with a horse have some
    patch that says so, and one without have none.

    An image's patches must be in one minibatch, and enough of them: ``mix_images`` of a sampler times
    ``patches_per_image`` makes ``batch_size``.

    Attributes:
        weight: Of the mean over images, beside the mean over patches.
        exponent: Of the score; the larger, the more the best patch alone decides.

    References:
        Pinheiro and Collobert, "From Image-level to Pixel-level Labeling with Convolutional Networks", CVPR 2015,
        section 3.2 (a smooth maximum over places); Oquab et al., "Is object localization for free?", CVPR 2015
        (training on the maximum over places).
    """

    weight: float = 1.0
    exponent: float = 5.0

    def __post_init__(self) -> None:
        require(self.weight > 0, "weight", "positive", self.weight)
        require(self.exponent > 0, "exponent", "positive", self.exponent)

    def losses(self, log_probs: Tensor, targets: Tensor, images: Tensor, count: int) -> Tensor:
        """Return each image's loss in nats, summed over classes, the background left out; 0 without counted patches.

        Args:
            log_probs: (B, K), of patches, 0 or less.
            targets: (B,) int64 classes, or (B, K) shares, of which a half or more is taken as there.
            images: (B,) int64, 0..I-1: the image of each patch, within the minibatch.
            count: I.

        Returns:
            (I,) in the dtype of ``log_probs``.

        Example:
            >>> log_probs = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.9, 0.1]]).log()
            >>> ImageLoss(exponent=1).losses(log_probs, torch.tensor([1, 0, 0]), torch.tensor([0, 0, 1]), 2)
            tensor([1.2040, 0.1054])
        """
        shown = _shown(targets, log_probs.shape[1])  # (B, K)
        counted = targets != IGNORE if targets.ndim == 1 else ~targets.isnan().all(dim=1)  # (B,)
        zeros = torch.zeros(count, log_probs.shape[1], dtype=log_probs.dtype, device=log_probs.device)
        present = zeros.index_add(0, images, shown.to(zeros.dtype)) > 0
        weights = counted.to(zeros.dtype)
        log_score = log_generalized_mean(log_probs, weights, images, count, self.exponent)
        # A score that is 1 up to rounding would have an infinite loss where the class is absent.
        log_absent = torch.log1p(-log_score.exp().clamp(max=1 - 1e-6))
        losses = -torch.where(present, log_score, log_absent)[:, BACKGROUND + 1 :].sum(dim=1)
        return torch.where(zeros[:, 0].index_add(0, images, weights) > 0, losses, 0.0)

    def __str__(self) -> str:
        return f"and {self.weight:g} x binary cross-entropy of images' scores with exponent {self.exponent:g}"


def log_generalized_mean(
    log_probs: Tensor, weights: Tensor, groups: Tensor, count: int, exponent: float
) -> Tensor:
    """Return ``log M``, (G, K), with ``M = (sum w p^exponent / sum w)^(1/exponent)`` over the rows of each group.

    In logarithms relative to the largest term, so that nothing underflows: an image without a trace of a class still
    has a gradient.

    Args:
        log_probs: (B, K), 0 or less.
        weights: (B,), 0 or more.
        groups: (B,) int64, 0..G-1.
        count: G.
        exponent: Positive.

    Example:
        >>> log_probs = torch.tensor([[0.3], [0.4]]).log()
        >>> log_generalized_mean(log_probs, torch.ones(2), torch.tensor([0, 0]), 1, exponent=2).exp()
        tensor([[0.3536]])
    """
    powers = exponent * log_probs
    rows = groups[:, None].expand_as(powers)
    highest = torch.full((count, powers.shape[1]), -torch.inf, dtype=powers.dtype, device=powers.device)
    highest = highest.scatter_reduce(0, rows, powers.detach(), "amax").clamp(min=torch.finfo(powers.dtype).min)
    terms = weights[:, None] * (powers - highest[groups]).exp()
    sums = torch.zeros_like(highest).index_add(0, groups, terms)
    total = highest.new_zeros(count).index_add(0, groups, weights).clamp(min=1)
    tiny = torch.finfo(powers.dtype).tiny
    return (highest + sums.clamp(min=tiny).log() - total.log()[:, None]) / exponent


def _shown(targets: Tensor, num_classes: int) -> Tensor:
    """Return which classes each patch shows, (B, K) bool."""
    if targets.ndim == 2:
        return targets >= 0.5
    return targets[:, None] == torch.arange(num_classes, device=targets.device)
