"""How the loop runs on a device: what makes it faster, and how much of the device's memory it takes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from transferkit.errors import require
from transferkit.precision import half_dtype, mixed_precision


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
        profile: Folder for a profile of the first steps; see :func:`~transferkit.finetune.profiling.profiled`.
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
        """Return normalised pixels (B, 3, S, S) in the layout of the network's weights."""
        return (
            pixels.contiguous(memory_format=self.memory_format(pixels.device)) if pixels.ndim == 4 else pixels
        )
