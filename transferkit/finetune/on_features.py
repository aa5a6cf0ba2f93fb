"""Train and test what comes after features: minibatches hold what frozen layers gave, and only the rest
runs.
"""

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
from transferkit.finetune.training import fit
from transferkit.preprocessing import Preprocessing
from transferkit.progress import Progress
from transferkit.sampler import MultiscaleSampler


class _AsTheyAre(Preprocessing):
    """Leaves features as they are: their pixels were made ready before the backbone saw them."""

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels


AS_THEY_ARE = _AsTheyAre(mean=(0, 0, 0), std=(1, 1, 1), scale=1)
"""What features want done to them before the rest of a model sees them: nothing."""


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
    """Return the features that the frozen layers of a run give, and the rest of its model, which is trained on
    them.

    Args:
        run: Some of its layers frozen. Its model is left as it was; both returned parts share its parameters.
        protocol: Says how patches are cut.
        method: ``"exact"``, ``"shared"`` or ``"auto"``.
        pyramid_scales: See :class:`~transferkit.features.PatchFeatures`.
        amp: Likewise.
        fold: Compute them with the batch norms of the frozen layers folded into their convolutions, as both are now
            (:func:`~transferkit.backbones.fold_batch_norms`): faster, and equal up to rounding. Load weights first;
            what is loaded later is not seen. A network that cannot be folded is run as it is, with a warning.

    Raises:
        UnsplittableError: Nothing is frozen before what is trained, or the model cannot be taken apart there.
        UnsharableError: ``method="shared"`` for a backbone that cannot be.
    """
    parts = _parts(split_frozen, run.model, protocol, fold)
    return _features_of(parts, run.preprocessing, protocol, method, pyramid_scales, amp), parts.rest


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
    """Return the same for a model that is in no run; see :func:`frozen_features`."""
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
    """Return the features behind the last map of a model, and the head that comes after, to test it on shared
    maps.

    Args:
        model: Left as it was; both parts share its parameters, so they stay its own while it is trained.
        preprocessing: What it wants done to pixels.
        protocol: Says how patches are cut.
        method: As for :func:`frozen_features`.
        pyramid_scales: Likewise.
        amp: Likewise.
        fold: Likewise: for a model that is trained no more, or not before its last map.

    Raises:
        UnsplittableError: It has no map, or cannot be taken apart behind it.
        UnsharableError: ``method="shared"`` for a backbone that cannot be.
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
    after_epoch: Callable[[Run], object] | None = None,
    stop: Callable[[Run], bool] | None = None,
    progress: Progress = False,
) -> list[EpochRecord]:
    """Train a run as :func:`fit` does, from minibatches of features.

    Args:
        run: Changed in place, as if it had been trained on pixels: it can be saved, and go on either way.
        rest: Of its model; from :func:`frozen_features`.
        sampler: Over a :class:`~transferkit.features.FeatureCache` or
            :class:`~transferkit.features.FeatureImages`.
        epochs: Total number of epochs, those already done included.
        loop: As for :func:`fit`.
        after_epoch: Likewise; called with ``run``.
        stop: Likewise.
        progress: Likewise.

    Returns:
        ``run.history``.
    """
    part = replace(run, model=rest, preprocessing=AS_THEY_ARE)

    def brought_back(call: Callable[[Run], Any] | None) -> Callable[[Run], Any]:
        def with_the_run(part: Run) -> Any:
            run.epoch, run.sampler_state = part.epoch, part.sampler_state
            return None if call is None else call(run)

        return with_the_run

    fit(
        part,
        sampler,
        epochs,
        loop=loop,
        after_epoch=brought_back(after_epoch),
        stop=None if stop is None else brought_back(stop),
        progress=progress,
    )
    return run.history


def _parts(
    split: Callable[[nn.Module, Tensor], SplitModel], model: nn.Module, protocol: Protocol, fold: bool
) -> SplitModel:
    """Split a model, and fold the backbone's batch norms; warn where a layer's output goes elsewhere too."""
    example = _example(model, protocol)
    parts = split(model, example)
    if not fold:
        return parts
    try:
        return replace(parts, backbone=fold_batch_norms(parts.backbone, example))
    except ArgumentError as error:
        message = f"the frozen layers are run as they are, which is slower: {error}"
        warnings.warn(
            message, stacklevel=4
        )  # below the public function, and what lets it take its old arguments
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
