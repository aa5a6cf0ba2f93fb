"""Settings of a fit that are not part of the recipe: how the loop runs, and how features are computed and kept."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from transferkit.devices import half_dtype, mixed_precision
from transferkit.errors import require
from transferkit.features.shards import PRECISIONS
from transferkit.features.shared import PyramidScales, check_pyramid_scales
from transferkit.finetune.protocol import Protocol


@dataclass(frozen=True)
class FeatureSettings:
    """How patches become features of the frozen backbone, and where features are kept.

    Attributes:
        method: ``"exact"``: each patch goes through the whole backbone. ``"shared"``: patches are read from feature
            maps of the whole photo, in training and test. ``None``: the protocol's own.
        pyramid_scales: Image pyramid scales used when features are shared; ``None``: the protocol's own.
        amp: Run the frozen backbone in mixed precision (bfloat16); ``None``: on with cuda, off elsewhere.
        cache: ``True``: compute the features of the frozen layers once and train on them; an error where that is
            impossible. ``False``: run the whole network in every epoch. ``None``: cache where layers are frozen and
            the features fit the disk.
        folder: Where features are kept and found again, those of test photos included. ``None``: in a temporary
            folder that goes with the fit.
        limit: The most bytes that the features of a data set may take; ``None``: what the disk has left.
        precision: Of features on disk: ``torch.float16``, ``torch.bfloat16`` or ``torch.float32``.

    Example:
        >>> FeatureSettings(method="shared", pyramid_scales=(1, 1.4, 2), folder=Path("features")).cache is None
        True
    """

    method: Literal["exact", "shared"] | None = None
    pyramid_scales: PyramidScales = None
    amp: bool | None = None
    cache: bool | None = None
    folder: Path | None = None
    limit: int | None = None
    precision: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        require(self.method in ("exact", "shared", None), "method", "'exact', 'shared' or None", self.method)
        require(
            self.precision in PRECISIONS,
            "precision",
            f"one of {', '.join(map(str, PRECISIONS))}",
            self.precision,
        )
        check_pyramid_scales(self.pyramid_scales)

    def method_for(self, protocol: Protocol) -> Literal["exact", "shared"]:
        """Return how a recipe's patches become features."""
        return self.method or protocol.features

    def scales_for(self, protocol: Protocol) -> PyramidScales:
        """Return the image pyramid scales of a recipe's shared features."""
        return protocol.pyramid_scales if self.pyramid_scales is None else self.pyramid_scales


@dataclass(frozen=True)
class LoopSettings:
    """How training and scoring run. Apart from rounding, only ``accumulate`` changes what is computed.

    Attributes:
        amp: Mixed precision: the network computes in bfloat16 (float16 on a GPU without it), its weights, the loss
            and the scores stay float32. ``None``: on with cuda, off elsewhere.
        channels_last: Keep pixels and maps with their channels side by side, as convolutions on a GPU want them.
            ``None``: on with cuda, off elsewhere.
        compile: Compile the network with ``torch.compile``, which takes a minute and needs a C++ compiler on a cpu.
        accumulate: How many minibatches make one step. The gradient is the mean over all their patches that count,
            as if they were one minibatch; batch norm still sees each minibatch alone.
        profile: Folder for a profile of the first steps; see :func:`~transferkit.finetune._profiling.profiled`.
    """

    amp: bool | None = None
    channels_last: bool | None = None
    compile: bool = False
    accumulate: int = 1
    profile: Path | None = None

    def __post_init__(self) -> None:
        require(self.accumulate >= 1, "accumulate", "at least 1", self.accumulate)

    def mixed_precision(self, device: torch.device) -> AbstractContextManager[None]:
        """Return the context that the network computes in."""
        return mixed_precision(device, self.amp)

    def gradient_scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Return the scaler that float16 needs; for bfloat16 and float32 it passes gradients through."""
        float16 = device.type == "cuda" and self.amp is not False and half_dtype(device) == torch.float16
        return torch.amp.GradScaler(device.type, enabled=float16)

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """Return how pixels and weights lie in memory."""
        wanted = device.type == "cuda" if self.channels_last is None else self.channels_last
        return torch.channels_last if wanted else torch.contiguous_format

    def lay_out_weights(self, model: nn.Module) -> None:
        """Lay out the weights of ``model`` as its device wants them."""
        memory_format = self.memory_format(next(model.parameters()).device)
        model.to(memory_format=memory_format)  # type: ignore[call-overload]

    def compiled(self, network: nn.Module) -> nn.Module:
        """Return ``network`` compiled, if that is wanted."""
        return torch.compile(network) if self.compile else network  # type: ignore[return-value]

    def lay_out(self, pixels: Tensor) -> Tensor:
        """Return normalized pixels (B, 3, S, S) in the layout of the network's weights."""
        return (
            pixels.contiguous(memory_format=self.memory_format(pixels.device)) if pixels.ndim == 4 else pixels
        )
