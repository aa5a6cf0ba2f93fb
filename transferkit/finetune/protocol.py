"""A training recipe as a frozen value: its numbers, and the head, sampler, scorer and optimizer they define."""

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
    """Settings of the optimizer and its schedule.

    Attributes:
        learning_rate: Initial learning rate; with ``schedule`` its highest value.
        momentum: Momentum of SGD, or Adam's first beta.
        weight_decay: L2 penalty on every trained parameter; decoupled from the gradient in AdamW.
        steps: Epochs (0-based) at which the learning rate changes.
        factors: Learning rate from each of ``steps`` on, as a multiple of ``learning_rate``.
        schedule: A learning rate that changes after every optimizer step, instead of ``steps``.
        method: ``"sgd"`` (stochastic gradient descent) or ``"adamw"``.
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
        """Return the learning rate after ``epoch`` epochs, a real number, as a multiple of ``learning_rate``."""
        if self.schedule is not None:
            return self.schedule.factor(epoch)
        reached = [factor for step, factor in zip(self.steps, self.factors, strict=True) if step <= epoch]
        return reached[-1] if reached else 1.0

    def adjusted(self, learning_rate: float | None = None, epochs: int | None = None) -> Optimization:
        """Return a copy with another learning rate, or with its schedule scaled to another number of epochs."""
        changes: dict[str, Any] = {} if learning_rate is None else {"learning_rate": learning_rate}
        if epochs and self.schedule is not None:
            changes["schedule"] = self.schedule.over(epochs)
        return replace(self, **changes)

    def __str__(self) -> str:
        changes = ", ".join(
            f"x{factor:g} after {step} epochs" for step, factor in zip(self.steps, self.factors, strict=True)
        ) or str(self.schedule or "")
        method = {"sgd": "SGD", "adamw": "AdamW"}[self.method]
        slower = f", transferred layers at x{self.transferred:g}" if self.transferred != 1 else ""
        return (
            f"{method}, learning rate {self.learning_rate:g}{f' ({changes})' if changes else ''}{slower}, "
            f"momentum {self.momentum:g}, weight decay {self.weight_decay:g}"
        )


@renamed_fields(train_trunk="train_backbone", levels="pyramid_scales", until="0.2")
@dataclass(frozen=True)
class Protocol:
    """A recipe, from patches to average precision.

    Attributes:
        name: Name of the recipe on a command line.
        grid: Patches of an image.
        subtract_one: Which numbers of an XML box have one subtracted: ``"starts"``, or ``"all"`` as neon did.
        rule: Labels of the patches.
        train_balance: Sampling quota of the patches that are trained on.
        test_balance: Sampling quota of the patches that are scored.
        patches_per_image: Number of patches per image that a balance is asked for.
        batch_size: B, patches per minibatch; of several ranks, which share it in training, together.
        mix_images: Number of images that the patches of a training minibatch come from.
        patch_size: S, the side in pixels that patches are resized to.
        whole_pixels: Truncate the box of a patch to whole pixels before cropping.
        antialias: Low-pass filter patches before they are downsampled.
        hidden: Widths of the adaptation layers.
        hidden_std: Standard deviation of their initial Gaussian weights.
        hidden_bias: Initial value of their biases.
        drop_rate: Dropout after each adaptation layer.
        head_std: Standard deviation of the last layer's initial weights; its biases start at 0.
        train_backbone: Train the transferred layers too.
        pretrained: Optimization used when transferred layers are trained.
        scratch: Optimization used when every trained layer is newly initialized.
        epochs: Number of epochs; with ``choice.stopping`` the maximum.
        exponent: p in the score, the sum or mean over patches of probability^p.
        reduction: ``"sum"`` or ``"mean"`` over patches.
        ap_rule: Average precision that the recipe reports.
        objective: Loss of the patches, and the probabilities that belong to it.
        image_loss: Additional loss on the scores of whole images.
        average: EMA or plain average of the weights, which is tested instead of the last weights.
        features: ``"exact"``: each patch goes through the frozen layers alone. ``"shared"``: patches are read from
            feature maps of the whole image. See :class:`~transferkit.features.PatchFeatures`.
        pyramid_scales: Image pyramid scales used when ``features="shared"``: the scales, or how many.
        choice: Choice of ``exponent``, and with ``choice.stopping`` of ``epochs``, on held-out training images; made
            where layers are frozen.
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
                f"minibatches hold patches of one image each, got {self.patches_per_image}; the nearest: {near}"
            )

    def adjusted(
        self,
        patches_per_image: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        epochs: int | None = None,
    ) -> Protocol:
        """Return a copy with the given numbers; the learning rate applies to ``pretrained`` and ``scratch``.

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
        """Return a copy with the epochs and exponent chosen on held-out images, and no ``choice``."""
        return replace(self.adjusted(epochs=epochs), exponent=exponent, choice=None)

    def head(self, in_features: int, num_classes: int) -> nn.Sequential:
        """Build the head: (B, in_features) -> (B, num_classes) logits."""
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
            dataset: A data set of :class:`~transferkit.sampler.AnnotatedImage` or similar items.
            mode: ``"train"`` or ``"test"``.
            settings: Further arguments of :class:`~transferkit.sampler.MultiscaleSampler`, such as ``seed``,
                ``num_workers`` and ``device``; they override the recipe.
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
        keep_boxes: bool = True,
    ) -> ImageScorer:
        """Return the recipe's scorer for N images and K classes."""
        how = (self.exponent, self.reduction, device, validate, keep_boxes)
        return ImageScorer(num_images, num_classes, *how)

    def optimization(self, *, from_scratch: bool) -> Optimization:
        """Return ``scratch`` or ``pretrained``."""
        return self.scratch if from_scratch else self.pretrained

    def __str__(self) -> str:
        """Return the numbers of the recipe as a table."""
        dropout = f", dropout {self.drop_rate:g}" if self.drop_rate else ""
        rows = [
            (
                "trained",
                "all layers" if self.train_backbone else "the adaptation layers; the backbone is frozen",
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
