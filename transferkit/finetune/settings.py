"""Settings outside the recipe: how features are computed and cached, and how the training loop runs."""

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
    """How the frozen backbone computes the features of patches, and where they are cached.

    Attributes:
        method: ``"exact"``: each patch goes through the whole backbone. ``"shared"``: patches are read from feature
            maps of the whole photo, in training and test. ``None``: as the protocol says.
        pyramid_scales: Image pyramid scales used when features are shared; ``None``: as the protocol says.
        amp: Run the frozen backbone in mixed precision (bfloat16); ``None``: on with cuda, off elsewhere.
        cache: ``True``: compute the features of the frozen layers once and train on them; an error if that is
            impossible. ``False``: run the whole network in every epoch. ``None``: cache if layers are frozen and
            the features fit on the disk.
        folder: Folder of the cache, which later calls use again, for training and test photos. ``None``: a temporary
            folder that is deleted after the fit.
        limit: Maximum size of the features of a data set, bytes; ``None``: the free space on the disk.
        precision: Data type of features on disk: ``torch.float16``, ``torch.bfloat16`` or ``torch.float32``.

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
        """Return the method, by default that of the recipe."""
        return self.method or protocol.features

    def scales_for(self, protocol: Protocol) -> PyramidScales:
        """Return the image pyramid scales, by default those of the recipe."""
        return protocol.pyramid_scales if self.pyramid_scales is None else self.pyramid_scales


@dataclass(frozen=True)
class LoopSettings:
    """How training and scoring run. Apart from rounding, only ``accumulate`` changes what is computed.

    Attributes:
        amp: Mixed precision: the network computes in bfloat16 (float16 on a GPU without it); its weights, the loss
            and the scores stay float32. ``None``: on with cuda, off elsewhere.
        channels_last: Use the channels-last memory format, which is faster for convolutions on a GPU. ``None``: on
            with cuda, off elsewhere.
        compile: Compile the network with ``torch.compile``, which takes a minute and on the CPU needs a C++ compiler.
        accumulate: Number of minibatches per optimizer step. The gradient is the mean over all their patches that
            count, as for one large minibatch; batch norm still sees each minibatch alone.
        profile: Folder for a profile of steps 3 to 12: ``profile.txt``, a table of where the time went, and
            ``trace.json.gz``, a trace for https://ui.perfetto.dev.
    """

    amp: bool | None = None
    channels_last: bool | None = None
    compile: bool = False
    accumulate: int = 1
    profile: Path | None = None

    def __post_init__(self) -> None:
        require(self.accumulate >= 1, "accumulate", "at least 1", self.accumulate)

    def mixed_precision(self, device: torch.device) -> AbstractContextManager[None]:
        """Return the autocast context for the network."""
        return mixed_precision(device, self.amp)

    def gradient_scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Return the gradient scaler, which is enabled for float16 only."""
        float16 = device.type == "cuda" and self.amp is not False and half_dtype(device) == torch.float16
        return torch.amp.GradScaler(device.type, enabled=float16)

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """Return the memory format of pixels and weights."""
        wanted = device.type == "cuda" if self.channels_last is None else self.channels_last
        return torch.channels_last if wanted else torch.contiguous_format

    def lay_out_weights(self, model: nn.Module) -> None:
        """Convert the weights of ``model`` to the memory format of its device."""
        memory_format = self.memory_format(next(model.parameters()).device)
        model.to(memory_format=memory_format)  # type: ignore[call-overload]

    def compiled(self, network: nn.Module) -> nn.Module:
        """Return ``network``, compiled if ``compile`` is set."""
        return torch.compile(network) if self.compile else network  # type: ignore[return-value]

    def lay_out(self, pixels: Tensor) -> Tensor:
        """Return normalized pixels (B, 3, S, S) in the memory format of the weights; features as they are."""
        return (
            pixels.contiguous(memory_format=self.memory_format(pixels.device)) if pixels.ndim == 4 else pixels
        )
