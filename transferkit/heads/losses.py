"""What a head is trained to say: the loss of patches with its probabilities, and the loss of whole images.

Training takes the loss, scoring the probabilities; a head trained for one and read as the other would be wrong
without a sign. So a recipe holds one value that gives both. The words are those of the field: with *single-label*
classification the classes exclude each other (softmax), with *multi-label* each is there or not (sigmoids).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from transferkit.errors import ArgumentError, require
from transferkit.labeling import BACKGROUND, IGNORE


class Objective(ABC):
    """The loss of logits against targets, and the probabilities that the same logits stand for.

    Targets are classes (B,) int64, with :data:`~transferkit.labeling.IGNORE` for what is not counted; or (B, K)
    floating in 0..1, how much of each class is there, with NaN for what is not counted.
    """

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return each row's loss in nats, 0 where it is not counted.

        Args:
            logits: (B, K) floating.
            targets: (B,) int64 or (B, K) floating.

        Returns:
            (B,) in the logits' dtype; their sum over that of :meth:`counted` is what training minimizes.

        Raises:
            ArgumentError: The targets fit neither form.
        """

    @abstractmethod
    def probs(self, logits: Tensor) -> Tensor:
        """Return probabilities in 0..1, (..., K) like the logits."""

    @abstractmethod
    def log_probs(self, logits: Tensor) -> Tensor:
        """Return the logarithms of :meth:`probs`, exact where those round to 0."""

    @abstractmethod
    def right(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Tell which rows are counted and classified as their targets say, (B,) bool."""

    def counted(self, targets: Tensor) -> Tensor:
        """Tell which rows count, (B,) bool."""
        if targets.ndim == 1:
            return targets != IGNORE
        return ~targets.isnan().all(dim=1)


@dataclass(frozen=True)
class SingleLabel(Objective):
    """Softmax and cross-entropy: the classes, with background as one of them, share the probability.

    Attributes:
        label_smoothing: How much of each target is spread evenly over all classes.
        class_weights: One per class, what its rows count in the loss; all 1 unless given. Of a soft target, each
            class counts by its own weight.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0, 0.0]])
        >>> SINGLE_LABEL.probs(logits)
        tensor([[0.1065, 0.7870, 0.1065]])
        >>> SINGLE_LABEL.losses(logits, torch.tensor([1]))
        tensor([0.2395])
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)", self.label_smoothing)
        weights = self.class_weights or ()
        require(all(weight >= 0 for weight in weights), "class_weights", "zero or positive", weights)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each row."""
        check(logits, targets)
        counted = self.counted(targets)
        if targets.ndim == 2:
            targets = torch.where(counted[:, None], targets, 0.0).to(logits.dtype)
        weight = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        losses = functional.cross_entropy(
            logits,
            targets,
            weight,
            ignore_index=IGNORE,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return torch.where(counted, losses, 0.0)

    def probs(self, logits: Tensor) -> Tensor:
        """Return the softmax over classes."""
        return logits.softmax(dim=-1)

    def log_probs(self, logits: Tensor) -> Tensor:
        """Return its logarithm."""
        return logits.log_softmax(dim=-1)

    def __str__(self) -> str:
        return "softmax and cross-entropy"

    def right(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Tell whose largest logit is that of the target, or of its largest part."""
        best = targets if targets.ndim == 1 else targets.nan_to_num(0.0).argmax(dim=1)
        return (logits.argmax(dim=1) == best) & self.counted(targets)


@dataclass(frozen=True)
class MultiLabel(Objective):
    """Sigmoids and binary cross-entropy: each class by itself, so several may be there, or none.

    A class as a target means that class and no other. The loss of a row is the sum over classes, so that each
    class trains as it would alone, however many there are. NaN in a row of targets leaves that one class out.

    Attributes:
        positive_weight: What a positive counts in the loss, against 1 for a negative: above 1 where most are
            negative. One for all classes, or one per class.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0, 0.0]])
        >>> MULTI_LABEL.probs(logits)
        tensor([[0.5000, 0.8808, 0.5000]])
        >>> MULTI_LABEL.losses(logits, torch.tensor([[0.0, 1.0, torch.nan]]))
        tensor([0.8201])
    """

    positive_weight: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        weights = self.positive_weight if isinstance(self.positive_weight, tuple) else (self.positive_weight,)
        require(all(weight > 0 for weight in weights), "positive_weight", "positive", self.positive_weight)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return each row's binary cross-entropy, summed over its classes."""
        wanted = self._per_class(logits, targets)
        losses = functional.binary_cross_entropy_with_logits(
            logits,
            wanted.nan_to_num(0.0),
            reduction="none",
            pos_weight=logits.new_tensor(self.positive_weight),
        )
        return torch.where(wanted.isnan(), 0.0, losses).sum(dim=1)

    def probs(self, logits: Tensor) -> Tensor:
        """Return the sigmoid of each class."""
        return logits.sigmoid()

    def log_probs(self, logits: Tensor) -> Tensor:
        """Return its logarithm."""
        return functional.logsigmoid(logits)

    def __str__(self) -> str:
        return "a sigmoid and binary cross-entropy per class"

    def right(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Tell which rows have every counted class on the right side of one half."""
        wanted = self._per_class(logits, targets)
        agree = (logits > 0) == (wanted > 0.5)
        return (agree | wanted.isnan()).all(dim=1) & self.counted(targets)

    def _per_class(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return targets as (B, K), NaN where not counted."""
        check(logits, targets)
        if targets.ndim == 2:
            return targets.to(logits.dtype)
        counted = self.counted(targets)
        hot = torch.zeros_like(logits).scatter(1, targets.where(counted, 0)[:, None], 1.0)
        return hot.masked_fill(~counted[:, None], torch.nan)


SINGLE_LABEL = SingleLabel()
"""Softmax over the classes, background among them: the published recipes."""

MULTI_LABEL = MultiLabel()
"""A sigmoid per class."""


def check(logits: Tensor, targets: Tensor) -> None:
    """Refuse targets that do not belong to the logits."""
    classes = targets.ndim == 1 and not targets.is_floating_point() and len(targets) == len(logits)
    shares = targets.is_floating_point() and targets.shape == logits.shape
    if not (classes or shares):
        raise ArgumentError(
            f"targets must be (B,) int64 or (B, K) floating for logits {tuple(logits.shape)}, got "
            f"{tuple(targets.shape)} {targets.dtype}"
        )


# A loss on whole images: what their patches say together, against the classes that they show.


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

    def losses(
        self,
        log_probs: Tensor,
        targets: Tensor,
        images: Tensor,
        count: int,
        image_targets: Tensor | None = None,
    ) -> Tensor:
        """Return each image's loss in nats, summed over classes, the background left out; 0 without counted patches.

        Args:
            log_probs: (B, K), of patches, 0 or less.
            targets: (B,) int64 classes, or (B, K) shares, of which a half or more is taken as there.
            images: (B,) int64, 0..I-1: the image of each patch, within the minibatch.
            count: I.
            image_targets: (I, K), 1 for a class that the image shows, of which it is not known where, and 0 for the
                others; all patches count. A row of NaN for an image of which ``targets`` say it.

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
        if image_targets is not None:
            known = ~image_targets.isnan().any(dim=1)  # (I,)
            present = torch.where(known[:, None], image_targets > 0.5, present)
            counted = counted | known[images]
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
