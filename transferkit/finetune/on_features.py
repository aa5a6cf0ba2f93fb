"""Train and test the layers after a frozen backbone, on minibatches of its features."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones import fold_batch_norms
from transferkit.deprecation import renamed_argument
from transferkit.errors import ArgumentError
from transferkit.features import PatchFeatures, SplitModel, split_at_head, split_frozen
from transferkit.features.patch_features import Method
from transferkit.features.shared import PyramidScales
from transferkit.finetune.protocol import Protocol
from transferkit.finetune.run import EpochRecord, Run
from transferkit.finetune.settings import LoopSettings
from transferkit.finetune.training import fit, has_stopped
from transferkit.preprocessing import Preprocessing
from transferkit.progress import Progress
from transferkit.sampler import MultiscaleSampler


class _AsTheyAre(Preprocessing):
    """Identity preprocessing."""

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels


AS_THEY_ARE = _AsTheyAre(mean=(0, 0, 0), std=(1, 1, 1), scale=1)
"""Identity preprocessing for inputs that are already features."""


@renamed_argument("levels", "pyramid_scales", until="0.2")
def frozen_features(
    run: Run,
    protocol: Protocol,
    *,
    method: Method = "exact",
    pyramid_scales: PyramidScales = None,
    amp: bool | None = None,
    fold: bool = False,
) -> tuple[PatchFeatures, nn.Module]:
    """Split a run's model into its frozen backbone and the layers that are trained on its features.

    Args:
        run: A run with frozen layers. Its model is not changed; both returned parts share its parameters.
        protocol: Recipe that says how patches are cropped.
        method: ``"exact"``, ``"shared"`` or ``"auto"``.
        pyramid_scales: Image pyramid scales of shared features; see :class:`~transferkit.features.PatchFeatures`.
        amp: Mixed precision; see :class:`~transferkit.features.PatchFeatures`.
        fold: Fold the batch norms of the frozen layers into their convolutions
            (:func:`~transferkit.backbones.fold_batch_norms`): faster, and equal up to rounding. Load weights first;
            folded layers do not see weights that are loaded later. A network that cannot be folded is run as it is,
            with a warning.

    Returns:
        The features of patches, and the module that follows them.

    Raises:
        UnsplittableError: No layer before the trained ones is frozen, or the model cannot be split there.
        UnsharableError: ``method="shared"``, and features of this backbone cannot be shared.
    """
    return features_of_frozen(
        run.model,
        run.preprocessing,
        protocol,
        method=method,
        pyramid_scales=pyramid_scales,
        amp=amp,
        fold=fold,
    )


def features_of_frozen(
    model: nn.Module,
    preprocessing: Preprocessing,
    protocol: Protocol,
    *,
    method: Method = "exact",
    pyramid_scales: PyramidScales = None,
    amp: bool | None = None,
    fold: bool = False,
) -> tuple[PatchFeatures, nn.Module]:
    """Do as :func:`frozen_features` for a model without a run."""
    parts = _parts(split_frozen, model, protocol, fold)
    return _features_of(parts, preprocessing, protocol, method, pyramid_scales, amp), parts.rest


@renamed_argument("levels", "pyramid_scales", until="0.2")
def head_features(
    model: nn.Module,
    preprocessing: Preprocessing,
    protocol: Protocol,
    *,
    method: Method = "shared",
    pyramid_scales: PyramidScales = None,
    amp: bool | None = None,
    fold: bool = False,
) -> tuple[PatchFeatures, nn.Module]:
    """Split a model after its last feature map, to test it on shared maps.

    Args:
        model: Not changed. Both returned parts share its parameters, and so follow its training.
        preprocessing: Preprocessing that the model expects.
        protocol: As for :func:`frozen_features`.
        method: As for :func:`frozen_features`.
        pyramid_scales: As for :func:`frozen_features`.
        amp: As for :func:`frozen_features`.
        fold: As for :func:`frozen_features`; only if layers up to the last map are no longer trained.

    Returns:
        The features of patches, and the head that follows them.

    Raises:
        UnsplittableError: The model has no feature map, or cannot be split after the last one.
        UnsharableError: ``method="shared"``, and features of this backbone cannot be shared.
    """
    parts = _parts(split_at_head, model, protocol, fold)
    return _features_of(parts, preprocessing, protocol, method, pyramid_scales, amp), parts.rest


def fit_on_features(
    run: Run,
    rest: nn.Module,
    sampler: MultiscaleSampler,
    epochs: int,
    *,
    loop: LoopSettings = LoopSettings(),  # noqa: B008 - a frozen value
    image_targets: Tensor | None = None,
    after_epoch: Callable[[Run], object] | None = None,
    stop: Callable[[Run], bool] | None = None,
    progress: Progress = False,
) -> list[EpochRecord]:
    """Train a run as :func:`fit` does, on minibatches of features.

    Args:
        run: Changed in place, as if it had been trained on pixels: it can be saved, and resumed on either.
        rest: The trained part of its model, from :func:`frozen_features`.
        sampler: Sampler over a :class:`~transferkit.features.FeatureCache` or
            :class:`~transferkit.features.FeatureImages`.
        epochs: As for :func:`fit`.
        loop: As for :func:`fit`.
        image_targets: As for :func:`fit`.
        after_epoch: As for :func:`fit`; called with ``run``.
        stop: As for :func:`fit`; called with ``run``.
        progress: As for :func:`fit`.

    Returns:
        ``run.history``.
    """
    if has_stopped(run, stop):
        return run.history
    part = replace(run, model=rest, preprocessing=AS_THEY_ARE)

    def brought_back(call: Callable[[Run], Any] | None) -> Callable[[Run], Any]:
        def with_the_run(part: Run) -> Any:
            run.epoch, run.sampler_state = part.epoch, part.sampler_state
            return None if call is None else call(run)

        return with_the_run

    try:
        fit(
            part,
            sampler,
            epochs,
            loop=loop,
            image_targets=image_targets,
            after_epoch=brought_back(after_epoch),
            stop=None if stop is None else brought_back(stop),
            progress=progress,
        )
    finally:
        run.sampler_state, run.unfinished = part.sampler_state, part.unfinished
    return run.history


def _parts(
    split: Callable[[nn.Module, Tensor], SplitModel], model: nn.Module, protocol: Protocol, fold: bool
) -> SplitModel:
    """Split a model and fold the backbone's batch norms; warn if they cannot be folded."""
    example = _example(model, protocol)
    parts = split(model, example)
    if not fold:
        return parts
    try:
        return replace(parts, backbone=fold_batch_norms(parts.backbone, example))
    except ArgumentError as error:
        # Four levels up: past this function, the public one and the wrapper that takes its old arguments.
        warnings.warn(f"the frozen layers are run as they are, which is slower: {error}", stacklevel=4)
        return parts


def _features_of(
    parts: SplitModel,
    preprocessing: Preprocessing,
    protocol: Protocol,
    method: Method,
    pyramid_scales: PyramidScales,
    amp: bool | None,
) -> PatchFeatures:
    return PatchFeatures(
        parts.backbone,
        pool=parts.pool,
        method=method,
        pyramid_scales=pyramid_scales,
        preprocessing=preprocessing,
        patch_size=protocol.patch_size,
        antialias=protocol.antialias,
        whole_pixels=protocol.whole_pixels,
        batch_size=protocol.batch_size,
        amp=amp,
    )


def _example(model: nn.Module, protocol: Protocol) -> Tensor:
    """Return two random patches, normalized."""
    side = protocol.patch_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return pixels.to(next(model.parameters()).device)
