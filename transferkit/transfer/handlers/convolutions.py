"""Handlers for convolutions: batch norms folded in, other input channels, other kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.nn import functional

from transferkit.errors import HandlerError, listed, require
from transferkit.layers import Layer
from transferkit.transfer._mapping import Pattern, renaming
from transferkit.transfer.handlers.registry import register_handler

_PREFIX = "norm."
_TELL = "say it: handlers=[FoldBatchNorm(pairs={'layer': 'norm', ...})], globs welcome"


@register_handler("fold_batch_norm")
@dataclass(frozen=True)
class FoldBatchNorm:
    """Folds what a batch norm does in evaluation mode into the convolution or linear layer whose output it is given.

    A norm is folded where the target has no layer of its name. Where the target has norms under other names nothing
    is folded: they may be the same ones. Which layer a norm follows is read from the forward method of a live source.
    A file has none: there a norm follows the layer defined right before it in the same container, and what can be
    read in two ways is refused.

    Args:
        eps: What the norm adds to the variance: torch's default is 1e-5, EfficientNet has 1e-3. Of a live source, and
            of a file that tells it, the norm's own is taken.
        pairs: From layer to norm, names or globs as in a mapping, ``{"*.conv1": "*.bn1"}``, where neither the forward
            method nor the order of definition tells.

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference", CVPR 2018, section 3.2.
    """

    eps: float | None = None
    pairs: Mapping[Pattern, str] | None = None

    def join(self, sources: Sequence[Layer], targets: Sequence[Layer]) -> list[Layer]:
        """Return the source's layers with each norm that is to be folded joined to the layer before it.

        Raises:
            HandlerError: Nothing tells which layer a norm follows.
        """
        known, kept = {layer.name for layer in sources}, {layer.name for layer in targets}
        norms = {layer.name: layer for layer in sources if _is_batch_norm(layer) and layer.name not in kept}
        if not norms or any(_is_batch_norm(layer) and layer.name not in known for layer in targets):
            return list(sources)
        follows = {layer: norm for layer, norm in self._followers(sources).items() if norm in norms}
        return [
            _joined(layer, norms[follows[layer.name]]) if layer.name in follows else layer
            for layer in sources
            if layer.name not in follows.values()
        ]

    def _followers(self, sources: Sequence[Layer]) -> Mapping[str, str]:
        """Return the norm that follows each layer, by name."""
        if self.pairs is not None:
            names = [layer.name for layer in sources]
            rename = renaming(self.pairs, names)
            return {name: str(rename(name)) for name in names if rename(name) != name}
        model = getattr(sources, "model", None)
        return _by_definition(sources) if model is None else _by_data_flow(model, sources)

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
        eps = getattr(source.module, "eps", source.attributes.get(f"{_PREFIX}eps", self.eps))
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


def _by_data_flow(model: nn.Module, sources: Sequence[Layer]) -> dict[str, str]:
    """Return the batch norm that alone is given a layer's output, by the layer's name."""
    try:
        nodes = symbolic_trace(model).graph.nodes
    except Exception as error:
        raise HandlerError(
            f"the forward method of {type(model).__name__} does not tell which norm follows which layer: torch.fx "
            f"cannot trace it ({error}); {_TELL}"
        ) from error
    names = {layer.path or layer.name: layer for layer in sources}
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    once = {node: names[node.target] for node in nodes if calls[node.target] == 1 and node.target in names}
    return {
        layer.name: once[user].name
        for node, layer in once.items()
        for user in node.users
        if _takes_norm(layer) and user in once and len(node.users) == 1 and _is_batch_norm(once[user])
    }


def _by_definition(sources: Sequence[Layer]) -> dict[str, str]:
    """Return the batch norm defined right after each layer in its container, by the layer's name."""
    containers: dict[str, list[Layer]] = {}
    for layer in sources:
        if _takes_norm(layer) or _is_batch_norm(layer):
            containers.setdefault(layer.name.rpartition(".")[0], []).append(layer)
    follows: dict[str, str] = {}
    unclear = []
    for members in containers.values():
        found = _alternating(members)
        if found is None:
            unclear += [layer.name for layer in members]
        else:
            follows |= found
    if unclear:
        raise HandlerError(f"the file does not tell which norm follows which of {listed(unclear)}; {_TELL}")
    return follows


def _alternating(members: Sequence[Layer]) -> dict[str, str] | None:
    """Return the norm after each layer of one container, or ``None`` where it could be another's."""
    if not all(layer.ordered for layer in members):
        if len(members) > 2:
            return None
        members = sorted(members, key=_is_batch_norm)
    follows: dict[str, str] = {}
    waiting: list[Layer] = []  # layers since the last norm
    for layer in members:
        if not _is_batch_norm(layer):
            waiting.append(layer)
            continue
        fitting = [other for other in waiting if _has_channels(other, layer)]
        if len(fitting) > 1 or (fitting and fitting[0] is not waiting[-1]):
            return None
        follows |= {other.name: layer.name for other in fitting}
        waiting = []
    return follows


def _takes_norm(layer: Layer) -> bool:
    return layer.kind in ("conv", "linear") and "weight" in layer.tensors


def _has_channels(layer: Layer, norm: Layer) -> bool:
    return norm.tensors["running_mean"].shape[0] in layer.tensors["weight"].shape[:2]


def _joined(layer: Layer, norm: Layer) -> Layer:
    """Return one layer with the tensors of both, which keep their keys; its module is the norm, for its eps."""
    own = {f"{_PREFIX}{short}": tensor for short, tensor in norm.tensors.items()}
    keys = {f"{_PREFIX}{short}": norm.key(short) for short in norm.tensors}
    told = {**layer.attributes, **{f"{_PREFIX}{name}": value for name, value in norm.attributes.items()}}
    tensors = {**layer.tensors, **own}
    return replace(layer, tensors=tensors, keys={**layer.keys, **keys}, module=norm.module, attributes=told)


# A first convolution for images with other channels, or with another normalization.


@register_handler("input_channels")
@dataclass(frozen=True)
class InputChannels:
    """Adapts a convolution to other input channels, so that it computes the same from what it is now given.

    Everything here is one linear change of input. The source's raw channels are ``mixing`` times the target's; with
    normalization they are ``(raw - mean) / std`` on both sides. The weight takes the factors, and the bias takes
    what the shift adds up to over the kernel: exact wherever the kernel lies inside the image. In a zero-padded
    border the padding stands for another color than before.

    Without ``mixing`` or ``order`` the channels' number decides: to one channel, the sum of the kernels (a gray image
    as RGB); from one channel, its kernel spread evenly; to more, the kernels as they are and zeros for the new
    channels; to fewer, the kernels repeated and scaled by the ratio, which keeps the size of the response.

    A convolution in groups becomes the one without that computes the same. A file does not tell groups: where its
    weight may be that of a convolution in groups of as many channels as the target has, this is refused until
    ``groups`` (or ``order``, ``mixing`` or a normalization) says what the source's channels are.

    Args:
        order: The target's channel of each source channel: ``(2, 1, 0)`` takes RGB weights to BGR images.
        mixing: Rows of weights, one per source channel, over the target's channels.
        source_mean: Mean that the source's network wants subtracted, per source channel.
        source_std: Standard deviation that it wants divided by.
        target_mean: Mean that the target's input has subtracted, per target channel, in the same unit.
        target_std: Standard deviation that it is divided by.
        groups: Groups of the source's convolution; of a live one its own are taken.

    Example:
        >>> from transferkit.layers import layers_of
        >>> (rgb,), (gray,) = layers_of(nn.Conv2d(3, 8, 3)), layers_of(nn.Conv2d(1, 8, 3))
        >>> weight = InputChannels()(rgb, gray)["weight"]
        >>> torch.allclose(weight[:, 0], rgb.tensors["weight"].sum(dim=1))
        True
    """

    order: Sequence[int] | None = None
    mixing: Sequence[Sequence[float]] | None = None
    source_mean: Sequence[float] | None = None
    source_std: Sequence[float] | None = None
    target_mean: Sequence[float] | None = None
    target_std: Sequence[float] | None = None
    groups: int | None = None

    def __post_init__(self) -> None:
        require(self.order is None or self.mixing is None, "mixing", "None where order is given", self.mixing)

    def __call__(self, source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
        """Return the target's weight and bias; ``None`` where the layers are not one convolution of two inputs.

        Raises:
            HandlerError: The shift needs a bias that the target has not, or a file may hold a convolution in groups.
            ArgumentError: An argument does not fit the layers.
        """
        kernels = _kernels(source, target)
        if kernels is None or getattr(target.module, "groups", 1) > 1:
            return None
        old, new = kernels
        if old.ndim != new.ndim or _without_input(old) != _without_input(new):
            return None
        weight = self._without_groups(source, _wide(old), new.shape[1])
        channels = weight.shape[1]
        mixing = self._mixing(channels, new.shape[1]).to(weight)  # (source channels, target channels)
        source_mean, source_std = self._normalization(self.source_mean, self.source_std, channels, weight)
        target_mean, target_std = self._normalization(self.target_mean, self.target_std, new.shape[1], weight)
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
        return self.order is not None and not self._normalizes

    @property
    def _normalizes(self) -> bool:
        return any((self.source_mean, self.source_std, self.target_mean, self.target_std))

    @property
    def _shifts(self) -> bool:
        return self.source_mean is not None or self.target_mean is not None

    def _without_groups(self, source: Layer, weight: Tensor, channels: int) -> Tensor:
        """Return the weight of the same convolution over all channels at once, zero where a group does not look."""
        groups = self.groups or getattr(source.module, "groups", None)
        if groups is None:
            self._require_no_groups(weight.shape, channels)
            groups = 1
        outputs, rest = divmod(len(weight), groups)
        require(rest == 0, "groups", f"a divisor of {len(weight)}", groups)
        dense = weight.new_zeros(groups, outputs, groups, *weight.shape[1:])
        for group, rows in enumerate(weight.reshape(groups, outputs, *weight.shape[1:])):
            dense[group, :, group] = rows
        return dense.flatten(0, 1).flatten(1, 2)

    def _require_no_groups(self, shape: torch.Size, channels: int) -> None:
        """Refuse a file's weight that may be one in groups, unless something says what its channels are."""
        groups, rest = divmod(channels, shape[1])
        if groups < 2 or rest or shape[0] % groups or self.order or self.mixing or self._normalizes:
            return
        raise HandlerError(
            f"a weight {list(shape)} may be that of {shape[1]} channels, or of {channels} in {groups} groups, and "
            "the source does not tell; give handlers=[InputChannels(groups=1)] or "
            f"handlers=[InputChannels(groups={groups})]"
        )

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
        require(not self._normalizes, "mixing", f"given to normalize {old} channels as {new}", None)
        return torch.eye(old, new, dtype=torch.float64) * (old / new)

    @staticmethod
    def _normalization(
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
                "normalize the images as the source's network wants them"
            )
        bias = source.tensors.get("bias")
        return shift if bias is None else (bias.to(shift.dtype) + shift).to(bias.dtype)


def _kernels(source: Layer, target: Layer) -> tuple[Tensor, Tensor] | None:
    """Return the kernels of two convolutions of real or complex numbers, neither of them transposed."""
    old, new = source.tensors.get("weight"), target.tensors.get("weight")
    transposed = any(isinstance(one.module, nn.modules.conv._ConvTransposeNd) for one in (source, target))
    if old is None or new is None or transposed or target.kind != "conv" or min(old.ndim, new.ndim) < 3:
        return None
    return (old, new) if old.is_floating_point() or old.is_complex() else None


def _wide(weight: Tensor) -> Tensor:
    """Return a weight in a dtype that no device computes with in fewer digits, as some do with float32."""
    if weight.is_complex():
        return weight.to(torch.complex128)
    return weight.to(torch.float32 if weight.device.type == "mps" else torch.float64)


def _without_input(weight: Tensor) -> tuple[int, ...]:
    return (weight.shape[0], *weight.shape[2:])


# Convolution kernels of another size, and two-dimensional ones for three-dimensional data.


@register_handler("resize_kernel")
@dataclass(frozen=True)
class ResizeKernel:
    """Gives a convolution's kernel another spatial size.

    Args:
        method: ``"respond"``: the kernel that responds to a resized patch as the old one does to the patch, exactly
            when it grows and as nearly as possible when it shrinks. ``"pad"``: zeros around the kernel, which
            computes the same when the padding grows too. ``None``: the first where the target cuts an image into
            patches, its stride being its kernel's size; anything else is refused.

    References:
        Beyer et al., "FlexiViT: One Model for All Patch Sizes", CVPR 2023, section 3.4.
    """

    method: Literal["respond", "pad"] | None = None

    def __call__(self, source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
        """Return the layer with its kernel resized; ``None`` where more than the kernel's size differs.

        Raises:
            HandlerError: No method is given, and the target does not cut patches.
        """
        kernels = _kernels(source, target)
        if kernels is None:
            return None
        old, new = kernels
        size = tuple(new.shape[2:])
        if old.ndim != new.ndim or old.shape[:2] != new.shape[:2] or tuple(old.shape[2:]) == size:
            return None
        cuts_patches = getattr(target.module, "stride", None) == size and max(size) > 1
        margins = [(wide - narrow) for wide, narrow in zip(size, old.shape[2:], strict=True)]
        can_pad = all(margin >= 0 and margin % 2 == 0 for margin in margins)
        if self.method is None and not cuts_patches:
            either = (
                " or handlers=[ResizeKernel(method='pad')], padded with zeros, to compute the same" * can_pad
            )
            raise HandlerError(
                f"the target's stride does not tell what a kernel of {list(old.shape[2:])} is to become at "
                f"{list(size)}; give handlers=[ResizeKernel(method='respond')], for patches of that size{either}"
            )
        if self.method == "pad":
            if not can_pad:
                return None
            weight = functional.pad(old, [margin // 2 for margin in reversed(margins) for _ in range(2)])
        else:
            weight = _wide(old)
            for axis, length in enumerate(size, start=2):
                weight = _respond(weight, axis, length)
            weight = weight.to(old.dtype)
        return {**source.tensors, "weight": weight}


@register_handler("inflate_kernel")
@dataclass(frozen=True)
class InflateKernel:
    """Makes a three-dimensional kernel of a two-dimensional one.

    Args:
        center: ``False``: every slice is the kernel divided by the depth, so that a still video responds as its image
            did. ``True``: the kernel in the middle slice and zeros around it.

    References:
        Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017, section 2.4.
    """

    center: bool = False

    def __call__(self, source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
        """Return the layer with its kernel inflated; ``None`` where it is not 2-D for 3-D of the same size."""
        kernels = _kernels(source, target)
        if kernels is None:
            return None
        old, new = kernels
        if new.ndim != 5 or old.shape != (*new.shape[:2], *new.shape[3:]):
            return None
        depth = new.shape[2]
        slices = [old / depth] * depth
        if self.center:
            slices = [old if place == depth // 2 else torch.zeros_like(old) for place in range(depth)]
        return {**source.tensors, "weight": torch.stack(slices, dim=2)}


def _respond(weight: Tensor, axis: int, length: int) -> Tensor:
    """Resize along one axis by the pseudoinverse of linear interpolation, transposed.

    Interpolation along several axes is the product of those along each, and so is its pseudoinverse.
    """
    old = weight.shape[axis]
    if old == length:
        return weight
    unit = torch.eye(old, dtype=torch.float64)[:, None]  # (old, 1, old): each row is one unit signal
    resize = functional.interpolate(unit, size=length, mode="linear", align_corners=False)[
        :, 0
    ]  # (old, length)
    matrix = torch.linalg.pinv(resize).to(weight)  # (length, old)
    return torch.movedim(torch.movedim(weight, axis, -1) @ matrix.mT, -1, axis)
