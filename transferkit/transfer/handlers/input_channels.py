"""A first convolution for images with other channels, or with another normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transferkit.errors import HandlerError, require
from transferkit.layers import Layer
from transferkit.transfer.handlers.registry import register_handler


@register_handler("input_channels")
@dataclass(frozen=True)
class InputChannels:
    """Adapts a convolution to other input channels, so that it computes the same from what it is now given.

    Everything here is one linear change of input. The source's raw channels are ``mixing`` times the target's; with
    normalisation they are ``(raw - mean) / std`` on both sides. The weight takes the factors, and the bias takes
    what the shift adds up to over the kernel: exact wherever the kernel lies inside the image. In a zero-padded
    border the padding stands for another colour than before.

    Without ``mixing`` or ``order`` the channels' number decides: to one channel, the sum of the kernels (a grey image
    as RGB); from one channel, its kernel spread evenly; to more, the kernels as they are and zeros for the new
    channels; to fewer, the kernels repeated and scaled by the ratio, which keeps the size of the response.

    Args:
        order: The target's channel of each source channel: ``(2, 1, 0)`` takes RGB weights to BGR images.
        mixing: Rows of weights, one per source channel, over the target's channels.
        source_mean: Mean that the source's network wants subtracted, per source channel.
        source_std: Standard deviation that it wants divided by.
        target_mean: Mean that the target's input has subtracted, per target channel, in the same unit.
        target_std: Standard deviation that it is divided by.

    Example:
        >>> from transferkit.layers import layers_of
        >>> (rgb,), (grey,) = layers_of(nn.Conv2d(3, 8, 3)), layers_of(nn.Conv2d(1, 8, 3))
        >>> weight = InputChannels()(rgb, grey)["weight"]
        >>> torch.equal(weight[:, 0], rgb.tensors["weight"].sum(dim=1))
        True
    """

    order: Sequence[int] | None = None
    mixing: Sequence[Sequence[float]] | None = None
    source_mean: Sequence[float] | None = None
    source_std: Sequence[float] | None = None
    target_mean: Sequence[float] | None = None
    target_std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        require(self.order is None or self.mixing is None, "mixing", "None where order is given", self.mixing)

    def __call__(self, source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
        """Return the target's weight and bias; ``None`` where the layers are not one convolution of two inputs."""
        old, new = source.tensors.get("weight"), target.tensors.get("weight")
        if old is None or new is None or old.ndim != new.ndim or old.ndim < 3:
            return None
        if isinstance(target.module, nn.modules.conv._ConvTransposeNd) or _without_input(old) != _without_input(
            new
        ):
            return None
        wide = torch.promote_types(old.dtype, torch.float32)
        weight = old.to(wide)
        mixing = self._mixing(old.shape[1], new.shape[1]).to(weight)  # (source channels, target channels)
        source_mean, source_std = self._normalisation(self.source_mean, self.source_std, old.shape[1], weight)
        target_mean, target_std = self._normalisation(self.target_mean, self.target_std, new.shape[1], weight)
        factors = mixing * target_std / source_std[:, None]
        tensors = dict(source.tensors)
        tensors["weight"] = torch.einsum("oc...,ci->oi...", weight, factors).to(old.dtype)
        if self._shifts:
            shift = (mixing @ target_mean - source_mean) / source_std  # (source channels,)
            tensors["bias"] = self._bias(source, target, torch.einsum("oc...,c->o", weight, shift))
        return tensors

    @property
    def moves_states(self) -> bool:
        """Whether momentum goes the same way: only where every target channel stands for one source channel."""
        return self.order is not None and not self._normalises

    @property
    def _normalises(self) -> bool:
        return any((self.source_mean, self.source_std, self.target_mean, self.target_std))

    @property
    def _shifts(self) -> bool:
        return self.source_mean is not None or self.target_mean is not None

    def _mixing(self, old: int, new: int) -> Tensor:
        """Return the matrix that makes the source's raw channels of the target's."""
        if self.mixing is not None:
            mixing = torch.tensor(self.mixing, dtype=torch.float64)
            require(tuple(mixing.shape) == (old, new), "mixing", f"{old} rows of {new}", self.mixing)
            return mixing
        if self.order is not None:
            valid = len(self.order) == old and all(0 <= channel < new for channel in self.order)
            require(valid, "order", f"{old} channels of 0 to {new - 1}", self.order)
            return torch.eye(new, dtype=torch.float64)[list(self.order)]
        if new == 1:
            return torch.ones(old, 1, dtype=torch.float64)
        if old == 1:
            return torch.full((1, new), 1 / new, dtype=torch.float64)
        if new >= old:
            return torch.eye(old, new, dtype=torch.float64)
        require(not self._normalises, "mixing", f"given to normalise {old} channels as {new}", None)
        return torch.eye(old, new, dtype=torch.float64) * (old / new)

    @staticmethod
    def _normalisation(
        mean: Sequence[float] | None, std: Sequence[float] | None, channels: int, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        values = (mean or [0.0] * channels, std or [1.0] * channels)
        for value in values:
            require(len(value) == channels, "mean and std", f"of {channels} channels", list(value))
        return like.new_tensor(values[0]), like.new_tensor(values[1])

    @staticmethod
    def _bias(source: Layer, target: Layer, shift: Tensor) -> Tensor:
        if "bias" not in target.tensors:
            raise HandlerError(
                f"another mean needs a bias, and {target.name!r} has none; give the convolution bias=True, or "
                "normalise the images as the source's network wants them"
            )
        bias = source.tensors.get("bias")
        return shift if bias is None else (bias.to(shift.dtype) + shift).to(bias.dtype)


def _without_input(weight: Tensor) -> tuple[int, ...]:
    return (weight.shape[0], *weight.shape[2:])
