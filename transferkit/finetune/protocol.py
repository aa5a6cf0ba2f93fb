"""A recipe as a frozen value: every number of it, and what they make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from transferkit.deprecation import renamed_fields
from transferkit.errors import ArgumentError, require
from transferkit.heads import SINGLE_LABEL, ImageLoss, Objective, adaptation_head
from transferkit.labeling import Rule
from transferkit.optimization import HeldOutChoice, WarmupCosine, WeightAverage
from transferkit.sampler import Balance, MultiscaleSampler, PatchGrid
from transferkit.scorer import APRule, ImageScorer


@dataclass(frozen=True)
class Optimization:
    """How the optimizer is set up.

    Attributes:
        learning_rate: At the start.
        momentum: Of the gradient; Adam's first beta.
        weight_decay: L2 penalty on every trained parameter; decoupled from the gradient in AdamW.
        steps: Epochs (0-based) at which the learning rate changes.
        factors: What the learning rate is from each of ``steps`` on, as a multiple of the first.
        schedule: A rate that never rests, instead of ``steps``; ``learning_rate`` is its highest.
        method: ``"sgd"``, stochastic gradient descent, or ``"adamw"``.
        transferred: Learning rate of the transferred layers, as a multiple of that of the new ones.

    Example:
        >>> settings = Optimization(1e-4, 0.9, 5e-4, steps=(15, 20), factors=(0.5, 0.1))
        >>> [settings.factor(epoch) for epoch in (0, 14, 15, 19, 20)]
        [1.0, 1.0, 0.5, 0.5, 0.1]
    """

    learning_rate: float
    momentum: float
    weight_decay: float
    steps: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()
    schedule: WarmupCosine | None = None
    method: Literal["sgd", "adamw"] = "sgd"
    transferred: float = 1.0

    def __post_init__(self) -> None:
        require(self.method in ("sgd", "adamw"), "method", "'sgd' or 'adamw'", self.method)
        require(self.learning_rate > 0, "learning_rate", "positive", self.learning_rate)
        require(self.transferred > 0, "transferred", "positive", self.transferred)
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        require(self.weight_decay >= 0, "weight_decay", "zero or positive", self.weight_decay)
        require(list(self.steps) == sorted(self.steps), "steps", "in ascending order", self.steps)
        require(
            len(self.steps) == len(self.factors), "factors", f"one for each of steps {self.steps}", self.factors
        )
        require(not (self.steps and self.schedule), "steps", f"empty beside {self.schedule}", self.steps)

    def factor(self, epoch: float) -> float:
        """Return the learning rate, as a multiple of ``learning_rate``, after so many epochs and their fraction."""
        if self.schedule is not None:
            return self.schedule.factor(epoch)
        reached = [factor for step, factor in zip(self.steps, self.factors, strict=True) if step <= epoch]
        return reached[-1] if reached else 1.0

    def adjusted(self, learning_rate: float | None = None, epochs: int | None = None) -> Optimization:
        """Return the same with another learning rate, or a schedule that ends after other many epochs."""
        changes: dict[str, Any] = {} if learning_rate is None else {"learning_rate": learning_rate}
        if epochs and self.schedule is not None:
            changes["schedule"] = self.schedule.over(epochs)
        return replace(self, **changes)

    def __str__(self) -> str:
        changes = ", ".join(
            f"x{factor:g} after {step} epochs" for step, factor in zip(self.steps, self.factors, strict=True)
        ) or str(self.schedule or "")
        method = {"sgd": "SGD", "adamw": "AdamW"}[self.method]
        slower = f", of transferred layers {self.transferred:g} of it" if self.transferred != 1 else ""
        return (
            f"{method}, learning rate {self.learning_rate:g}{f' ({changes})' if changes else ''}{slower}, "
            f"momentum {self.momentum:g}, weight decay {self.weight_decay:g}"
        )


# A recipe as a frozen value: every number of it, and what they make.


@renamed_fields(train_trunk="train_backbone", levels="pyramid_scales", until="0.2")
@dataclass(frozen=True)
class Protocol:
    """A recipe, from patches to average precision.

    Attributes:
        name: What it is called on a command line.
        grid: The patches of an image.
        subtract_one: From which of an XML box's numbers one is subtracted: ``"starts"``, or ``"all"`` as neon did.
        rule: The labels of the patches.
        train_balance: Which patches are trained on.
        test_balance: Which patches are scored.
        patches_per_image: How many patches a balance is asked for.
        batch_size: B.
        mix_images: From how many images at a time a minibatch is drawn.
        patch_size: S, the side in pixels that patches are resized to.
        whole_pixels: Whether a patch's box is truncated to whole pixels before it is cut.
        antialias: Whether shrinking filters out what the result cannot show.
        hidden: Widths of the adaptation layers.
        hidden_std: Standard deviation of their first Gaussian weights.
        hidden_bias: Start of their biases.
        drop_rate: Dropout after each of them.
        head_std: Standard deviation of the last layer's first weights, whose biases start at 0.
        train_backbone: Whether the transferred layers are trained too.
        pretrained: Optimization where transferred layers are trained on.
        scratch: Optimization where all that is trained starts from nothing.
        epochs: How many.
        exponent: p in the score, the sum or mean over patches of probability^p.
        reduction: Which of the two.
        ap_rule: The average precision that the recipe reports.
        objective: The loss, and the probabilities that go with it.
        image_loss: A second loss, of whole images.
        average: The average of the weights that is tested instead of the last ones.
        features: Whether patches go through the frozen layers one by one (``"exact"``), or are read from maps of
            the whole image (``"shared"``); see :class:`~transferkit.features.PatchFeatures`.
        pyramid_scales: At which sizes an image is shown to them when shared.
        choice: What is chosen on held-out training images, where layers are frozen: instead of ``exponent``, and
            with ``epochs`` as the most.
    """

    name: str
    grid: PatchGrid
    subtract_one: Literal["starts", "all"]
    rule: Rule
    train_balance: Balance
    test_balance: Balance
    patches_per_image: int
    batch_size: int
    mix_images: int
    patch_size: int
    whole_pixels: bool
    antialias: bool
    hidden: tuple[int, ...]
    hidden_std: float
    hidden_bias: float
    drop_rate: float
    head_std: float
    train_backbone: bool
    pretrained: Optimization
    scratch: Optimization
    epochs: int
    exponent: float
    reduction: Literal["sum", "mean"]
    ap_rule: APRule
    objective: Objective = SINGLE_LABEL
    image_loss: ImageLoss | None = None
    average: WeightAverage | None = None
    features: Literal["exact", "shared"] = "exact"
    pyramid_scales: int | tuple[float, ...] = 6
    choice: HeldOutChoice | None = None

    def __post_init__(self) -> None:
        for name in ("patches_per_image", "batch_size", "mix_images", "patch_size"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.epochs >= 0, "epochs", "0 or more", self.epochs)
        whole = self.patches_per_image - self.patches_per_image % self.batch_size
        if self.mix_images == 1 and whole != self.patches_per_image:
            near = " or ".join(str(n) for n in (whole, whole + self.batch_size) if n)
            raise ArgumentError(
                f"patches_per_image must be a multiple of batch_size {self.batch_size} in {self.name}, whose "
                f"minibatches are each drawn from one image, got {self.patches_per_image}; the nearest: {near}"
            )

    def adjusted(
        self,
        patches_per_image: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        epochs: int | None = None,
    ) -> Protocol:
        """Return the recipe with those numbers changed that are given; the learning rate in both regimes.

        Example:
            >>> from transferkit.finetune import NEON2016
            >>> NEON2016.adjusted(patches_per_image=64, learning_rate=1e-3).pretrained.learning_rate
            0.001
        """
        given = {"patches_per_image": patches_per_image, "batch_size": batch_size, "epochs": epochs}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        for regime in ("pretrained", "scratch"):
            changes[regime] = getattr(self, regime).adjusted(learning_rate, epochs)
        return replace(self, **changes)

    def decided(self, epochs: int, exponent: float) -> Protocol:
        """Return the recipe with what was chosen on held-out images, and nothing left to choose."""
        return replace(self.adjusted(epochs=epochs), exponent=exponent, choice=None)

    def head(self, in_features: int, num_classes: int) -> nn.Sequential:
        """Build the adaptation layers, (B, in_features) -> (B, num_classes) logits."""
        return adaptation_head(
            in_features,
            num_classes,
            self.hidden,
            self.drop_rate,
            hidden_std=self.hidden_std,
            hidden_bias=self.hidden_bias,
            weight_std=self.head_std,
        )

    def sampler(self, dataset: Any, *, mode: Literal["train", "test"], **settings: Any) -> MultiscaleSampler:
        """Return the recipe's stream of minibatches over a data set.

        Args:
            dataset: Of :class:`~transferkit.sampler.AnnotatedImage` or anything like it.
            mode: ``"train"`` or ``"test"``.
            settings: What a recipe leaves open: ``seed``, ``num_workers``, ``device`` and whatever else
                :class:`~transferkit.sampler.MultiscaleSampler` takes.
        """
        recipe: dict[str, Any] = {
            "grid": self.grid,
            "rule": self.rule,
            "balance": self.train_balance if mode == "train" else self.test_balance,
            "patches_per_image": self.patches_per_image,
            "batch_size": self.batch_size,
            "mix_images": self.mix_images if mode == "train" else 1,
            "patch_size": self.patch_size,
            "whole_pixels": self.whole_pixels,
            "antialias": self.antialias,
        }
        return MultiscaleSampler(dataset, mode=mode, **{**recipe, **settings})

    def scorer(
        self,
        num_images: int,
        num_classes: int,
        device: torch.device | str | None = None,
        validate: bool = True,
    ) -> ImageScorer:
        """Return the recipe's scorer of N images and K classes."""
        return ImageScorer(num_images, num_classes, self.exponent, self.reduction, device, validate)

    def optimization(self, *, from_scratch: bool) -> Optimization:
        """Return how to train: on from transferred layers, or from scratch."""
        return self.scratch if from_scratch else self.pretrained

    def __str__(self) -> str:
        """Return every number of the recipe as a table for people."""
        dropout = f", dropout {self.drop_rate:g}" if self.drop_rate else ""
        rows = [
            (
                "trained",
                "all layers" if self.train_backbone else "the adaptation layers; the others are frozen",
            ),
            ("pretrained", self.pretrained),
            ("from scratch", self.scratch),
            ("epochs", self.epochs),
            (
                "head",
                f"Linear {', Linear '.join(map(str, self.hidden))} (Gaussian {self.hidden_std:g}, bias "
                f"{self.hidden_bias:g}){dropout}, Linear to the classes (Gaussian {self.head_std:g}, bias 0)",
            ),
            ("objective", f"{self.objective} {self.image_loss or ''}".rstrip()),
            *([("average", self.average)] if self.average else []),
            ("grid", self.grid),
            ("label", self.rule),
            ("train on", f"{self.train_balance}, {self.patches_per_image} patches per image"),
            ("test on", f"{self.test_balance}, {self.patches_per_image} patches per image"),
            ("minibatch", f"{self.batch_size} patches of {self.mix_images} image{'s' * (self.mix_images > 1)}"),
            ("pixels", f"patches resized to {self.patch_size} x {self.patch_size}"),
            ("score", f"{self.reduction} over patches of probability^{self.exponent:g}"),
            *([("chosen", self.choice)] if self.choice else []),
            ("AP", self.ap_rule),
        ]
        return "\n".join([f"protocol {self.name}", *(f"  {label:<12}  {value}" for label, value in rows)])
