"""Heads for a new task, with the initialization that their recipe names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.errors import did_you_mean, require


class CosineLinear(nn.Module):
    """The cosine of features and class weights, times a learned scale.

    Args:
        in_features: Width of the features that come in.
        out_features: Number of classes.
        scale: What cosines are multiplied by at the start. The largest cosine is 1, so this bounds how sure a
            softmax over them can be.
        device: Where the parameters live.

    Shape:
        Input (..., in_features), output (..., out_features).

    References:
        Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018, section 3.2.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scale: float = 16.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        require(in_features >= 1, "in_features", "at least 1", in_features)
        require(out_features >= 1, "out_features", "at least 1", out_features)
        require(scale > 0, "scale", "positive", scale)
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device))
        # Its logarithm is what is learned: steps are relative, and it stays positive.
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), device=device))
        # The output does not depend on the weights' length, but how far a step turns them does: on 1280 features
        # AdamW reached a mean AP of 78 or 79 from unit Gaussians, at any rate, where it reaches 84 from these.
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (..., in_features) to logits (..., out_features)."""
        cosines = functional.linear(
            functional.normalize(features, dim=-1), functional.normalize(self.weight, dim=-1)
        )
        return self.log_scale.exp() * cosines

    def extra_repr(self) -> str:
        """Return the widths and the scale."""
        scale = self.log_scale.detach().exp().item()
        return f"in_features={self.in_features}, out_features={self.out_features}, scale={scale:.4g}"


def cosine_head(
    in_features: int, num_classes: int, *, scale: float = 16.0, device: torch.device | str | None = None
) -> CosineLinear:
    """Build one layer of cosines.

    Args:
        in_features: Width of the features that come in.
        num_classes: K, background included where the recipe has one.
        scale: What cosines are multiplied by at the start; learned from there.
        device: Where the parameters live.

    Returns:
        A module (B, in_features) -> (B, num_classes) logits.

    Raises:
        ArgumentError: A width below 1, or a scale that is not positive.

    Example:
        >>> head = cosine_head(8, 3)
        >>> features = torch.randn(2, 8)
        >>> torch.allclose(head(features), head(5 * features), atol=1e-5)
        True
    """
    return CosineLinear(in_features, num_classes, scale, device)


# A head over vectors, applied at every position of a map.


class PerPosition(nn.Module):
    """Apply a head of linear layers along the channels of a map, as convolutions of one cell would.

    Args:
        head: Maps (..., C) to (..., K).

    Shape:
        Input (B, C, H, W), output (B, K, H, W).

    Example:
        >>> import torch
        >>> PerPosition(nn.Linear(8, 3))(torch.zeros(2, 8, 5, 4)).shape
        torch.Size([2, 3, 5, 4])
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, K, H, W)."""
        logits: Tensor = self.head(maps.permute(0, 2, 3, 1))  # (B, H, W, K)
        return logits.permute(0, 3, 1, 2)


def linear_head(
    in_features: int,
    num_classes: int,
    *,
    weight_std: float = 0.01,
    bias: float = 0.0,
    device: torch.device | str | None = None,
) -> nn.Linear:
    """Build one linear layer.

    Args:
        in_features: Width of the features that come in.
        num_classes: K, background included where the recipe has one.
        weight_std: Standard deviation of the Gaussian that weights are drawn from.
        bias: Every bias starts here.
        device: Where the parameters live.

    Returns:
        A module (B, in_features) -> (B, num_classes) logits.

    Raises:
        ArgumentError: A width below 1 or a negative ``weight_std``.

    Example:
        >>> linear_head(1280, 21)
        Linear(in_features=1280, out_features=21, bias=True)
    """
    require(in_features >= 1, "in_features", "at least 1", in_features)
    require(num_classes >= 1, "num_classes", "at least 1", num_classes)
    require(weight_std >= 0, "weight_std", "zero or positive", weight_std)
    layer = nn.Linear(in_features, num_classes, device=device)
    nn.init.normal_(layer.weight, std=weight_std)
    nn.init.constant_(layer.bias, bias)
    return layer


def adaptation_head(
    in_features: int,
    num_classes: int,
    hidden: Sequence[int] = (4096,),
    drop_rate: float = 0.5,
    *,
    hidden_std: float = 0.005,
    hidden_bias: float = 0.1,
    weight_std: float = 0.01,
    bias: float = 0.0,
    device: torch.device | str | None = None,
) -> nn.Sequential:
    """Build the adaptation layers: for each hidden width Linear, ReLU, Dropout; then one Linear to the classes.

    The defaults are those of the neon recipe, biases of 0.1 included: they keep the new rectifiers alive at the
    start. A ``drop_rate`` of 0 leaves the dropout layers out.

    Args:
        in_features: Width of the features that come in, 4096 for AlexNet's fc7.
        num_classes: K, background included.
        hidden: Width of each hidden layer.
        drop_rate: Probability that dropout zeroes a hidden unit, in [0, 1).
        hidden_std: Standard deviation of the hidden layers' Gaussian weights.
        hidden_bias: Start of the hidden layers' biases.
        weight_std: Standard deviation of the last layer's Gaussian weights.
        bias: Start of the last layer's biases.
        device: Where the parameters live.

    Returns:
        A module (B, in_features) -> (B, num_classes) logits.

    Raises:
        ArgumentError: A width below 1, a negative standard deviation, or a ``drop_rate`` outside [0, 1).

    Example:
        >>> adaptation_head(4096, 21)
        Sequential(
          (0): Linear(in_features=4096, out_features=4096, bias=True)
          (1): ReLU(inplace=True)
          (2): Dropout(p=0.5, inplace=False)
          (3): Linear(in_features=4096, out_features=21, bias=True)
        )

    References:
        Oquab et al., "Learning and Transferring Mid-Level Image Representations using Convolutional Neural
        Networks", CVPR 2014, section 3.1.
    """
    require(0 <= drop_rate < 1, "drop_rate", "in [0, 1)", drop_rate)
    modules: list[nn.Module] = []
    for width in hidden:
        modules += [
            linear_head(in_features, width, weight_std=hidden_std, bias=hidden_bias, device=device),
            nn.ReLU(inplace=True),
        ]
        if drop_rate:
            modules.append(nn.Dropout(drop_rate))
        in_features = width
    modules.append(linear_head(in_features, num_classes, weight_std=weight_std, bias=bias, device=device))
    return nn.Sequential(*modules)


# Poolings: a map of a backbone to one vector.


class GeM(nn.Module):
    """The generalized mean over a map, ``mean(x^p)^(1/p)``: the average at p = 1, near the maximum for large p.

    Args:
        p: At the start.
        learn: Whether p is trained.
        eps: What smaller values count as: the mean is of positive numbers.

    Shape:
        Input (B, C, H, W), output (B, C).

    Example:
        >>> maps = torch.tensor([1.0, 2.0, 3.0, 6.0]).view(1, 1, 2, 2)
        >>> [round(GeM(p)(maps).item(), 2) for p in (1, 3, 100)]
        [3.0, 3.98, 5.92]

    References:
        Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", PAMI 2018, section 3.2.
    """

    def __init__(self, p: float = 3.0, *, learn: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        require(p > 0, "p", "positive", p)
        self.p = nn.Parameter(torch.tensor(float(p)), requires_grad=learn)
        self.eps = eps

    def forward(self, maps: Tensor) -> Tensor:
        """Pool (B, C, H, W) to (B, C)."""
        # In float32 and relative to the maximum: x^p of half precision, or of large x, leaves its range.
        x = maps.float().clamp(min=self.eps)
        largest = x.amax(dim=(2, 3), keepdim=True)
        means = (x / largest).pow(self.p).mean(dim=(2, 3)).pow(1 / self.p)
        return (means * largest[:, :, 0, 0]).to(maps.dtype)

    def extra_repr(self) -> str:
        """Return p."""
        return f"p={self.p.item():g}"


class PyramidPool(nn.Module):
    """The maximum or average over the cells of several grids, side by side in one vector: where things are counts.

    Args:
        sides: Cells per axis of each grid; ``(1,)`` is plain pooling, ``(1, 2)`` adds the four quarters.
        kind: ``"average"`` or ``"max"``.

    Shape:
        Input (B, C, H, W), output (B, C x sum of squared sides).

    Example:
        >>> pool = PyramidPool((1, 2))
        >>> pool(torch.zeros(2, 8, 6, 6)).shape, pool.width(8)
        (torch.Size([2, 40]), 40)

    References:
        He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition", ECCV 2014.
    """

    def __init__(self, sides: tuple[int, ...] = (1, 2, 3), kind: Literal["average", "max"] = "max") -> None:
        super().__init__()
        require(bool(sides) and min(sides) >= 1, "sides", "one or more numbers of at least 1", sides)
        require(kind in ("average", "max"), "kind", "'average' or 'max'", kind)
        self.sides, self.kind = tuple(sides), kind

    def width(self, channels: int) -> int:
        """Return the width of the vector for a number of channels."""
        return channels * sum(side * side for side in self.sides)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool (B, C, H, W) to (B, width)."""
        average = self.kind == "average"
        pool = functional.adaptive_avg_pool2d if average else functional.adaptive_max_pool2d
        return torch.cat([pool(maps, side).flatten(1) for side in self.sides], dim=1)

    def extra_repr(self) -> str:
        """Return the grids and what is taken in their cells."""
        return f"sides={self.sides}, kind={self.kind!r}"


POOLINGS: Mapping[str, Callable[[], nn.Module]] = {
    "average": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1)),
    "max": lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(1)),
    "gem": GeM,
    "pyramid": PyramidPool,
    "none": lambda: nn.Flatten(1),
}


def spatial_pooling(name: str) -> nn.Module:
    """Build a pooling by name.

    Args:
        name: ``"average"``, ``"max"``, ``"gem"``, ``"pyramid"``, or ``"none"``, which keeps every position and so
            needs maps of one size.

    Returns:
        A module (B, C, H, W) -> (B, width).

    Raises:
        ArgumentError: There is none of that name.

    Example:
        >>> {name: spatial_pooling(name)(torch.zeros(2, 8, 6, 6)).shape[1] for name in POOLINGS}
        {'average': 8, 'max': 8, 'gem': 8, 'pyramid': 112, 'none': 288}
    """
    require(name in POOLINGS, "pooling", f"one of {', '.join(POOLINGS)}{did_you_mean(name, POOLINGS)}", name)
    return POOLINGS[name]()
