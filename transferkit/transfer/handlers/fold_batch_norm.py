"""Batch norm folded into the layer before it, for a network without norm layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from transferkit.errors import HandlerError
from transferkit.layers import Layer
from transferkit.transfer.handlers.registry import register_handler

_PREFIX = "norm."


@register_handler("fold_batch_norm")
@dataclass(frozen=True)
class FoldBatchNorm:
    """Folds what a batch norm does in evaluation mode into the convolution or linear layer before it.

    A norm is folded where the source has it next to a layer of as many channels in the same container, and the
    target has no layer of its name. Where the target has norms under other names nothing is folded: they may be
    the same ones.

    Args:
        eps: What the norm adds to the variance. No file holds it: torch's default is 1e-5, EfficientNet has 1e-3. Of
            a live source the norm's own is taken.

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference", CVPR 2018, section 3.2.
    """

    eps: float | None = None

    def join(self, sources: Sequence[Layer], targets: Sequence[Layer]) -> list[Layer]:
        """Return the source's layers with each norm that is to be folded joined to the layer before it."""
        known = {layer.name for layer in sources}
        if any(_is_batch_norm(layer) and layer.name not in known for layer in targets):
            return list(sources)
        kept = {layer.name for layer in targets}
        layers: list[Layer] = []
        for layer in sources:
            if layers and layer.name not in kept and _may_fold(layers[-1], layer):
                layers[-1] = _joined(layers[-1], layer)
            else:
                layers.append(layer)
        return layers

    def __call__(self, source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
        """Return weight and bias with the norm in them; ``None`` where no norm was joined to the source layer.

        Raises:
            HandlerError: The target has no bias to take the shift, or ``eps`` is not known.
        """
        if f"{_PREFIX}running_mean" not in source.tensors:
            return None
        if "bias" not in target.tensors:
            raise HandlerError(
                f"the norm's shift needs a bias, and {target.name!r} has none; give it bias=True"
            )
        eps = getattr(source.module, "eps", self.eps)
        if eps is None:
            raise HandlerError(
                "a file does not hold the norm's eps; FoldBatchNorm(eps=1e-5) is torch's default"
            )
        mean, variance = source.tensors[f"{_PREFIX}running_mean"], source.tensors[f"{_PREFIX}running_var"]
        gain = source.tensors.get(f"{_PREFIX}weight", torch.ones_like(variance))
        shift = source.tensors.get(f"{_PREFIX}bias", torch.zeros_like(mean))
        weight, bias = source.tensors["weight"], source.tensors.get("bias", torch.zeros_like(mean))
        factor = gain.double() / torch.sqrt(variance.double() + eps)  # (C,)
        channels = 1 if isinstance(target.module, nn.modules.conv._ConvTransposeNd) else 0
        shape = [-1 if axis == channels else 1 for axis in range(weight.ndim)]
        return {
            "weight": (weight * factor.reshape(shape)).to(weight.dtype),
            "bias": ((bias.double() - mean.double()) * factor + shift.double()).to(weight.dtype),
        }


def _is_batch_norm(layer: Layer) -> bool:
    return layer.kind == "norm" and "running_mean" in layer.tensors


def _may_fold(layer: Layer, norm: Layer) -> bool:
    if (
        layer.kind not in ("conv", "linear")
        or not _is_batch_norm(norm)
        or f"{_PREFIX}running_mean" in layer.tensors
    ):
        return False
    channels = norm.tensors["running_mean"].shape[0]
    return _container(layer) == _container(norm) and channels in layer.tensors["weight"].shape[:2]


def _joined(layer: Layer, norm: Layer) -> Layer:
    """Return one layer with the tensors of both, which keep their keys; its module is the norm, for its eps."""
    own = {f"{_PREFIX}{short}": tensor for short, tensor in norm.tensors.items()}
    keys = {f"{_PREFIX}{short}": norm.key(short) for short in norm.tensors}
    return replace(layer, tensors={**layer.tensors, **own}, keys={**layer.keys, **keys}, module=norm.module)


def _container(layer: Layer) -> str:
    return layer.name.rpartition(".")[0]
