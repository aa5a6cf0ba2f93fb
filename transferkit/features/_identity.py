"""What cached features depend on beside the photos: what a network computes, and the settings it is run with."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.errors import UncachableError
from transferkit.features._photos import digest_of, digest_of_tensor
from transferkit.features.patch_features import PatchFeatures
from transferkit.sampler._source import described

_PLAIN = (bool, int, float, str, tuple, type(None))
_SUMS = 64  # numbers that a probe is kept as


def digest_of_module(module: nn.Module) -> str:
    """Return a digest of a module's weights, buffers and structure.

    That is each module's type, plain attributes and, where the type is not torch's own, its source; and the
    name, shape, type and bytes of each parameter and buffer, saved with the model or not.

    Example:
        >>> net = nn.Conv2d(3, 8, 3)
        >>> before = digest_of_module(net)
        >>> with torch.no_grad():
        ...     _ = net.weight.add_(1)
        >>> digest_of_module(net) == before
        False
    """
    parts = [repr((name, *_structure(part))) for name, part in module.named_modules(remove_duplicate=False)]
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return digest_of(*parts, *(f"{name} {digest_of_tensor(tensor)}" for name, tensor in tensors))


def _structure(module: nn.Module) -> tuple[object, ...]:
    kind = type(module)
    own = sorted(
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and isinstance(value, _PLAIN)
    )
    return kind.__module__, kind.__qualname__, own, _source(kind)


def _source(kind: type) -> list[str]:
    """Return the source of a class's functions and of those it inherits, as far as they are not torch's."""
    found = []
    for owner in kind.__mro__:
        if owner.__module__.split(".")[0] in ("torch", "builtins"):
            continue
        for function in vars(owner).values():
            with suppress(OSError, TypeError):  # no function; or typed at a prompt, and known by its name
                found.append(inspect.getsource(function))
    return found


def describe(features: PatchFeatures, precision: torch.dtype) -> dict[str, Any]:
    """Return what the numbers in a cache depend on, the photos and :func:`probe` apart, as plain values by name."""
    forward, cutting = features.forward, features.resizing
    shared = {"pyramid_scales": described(features.pyramid_scales), "most_pixels": features.most_pixels}
    try:
        digests = {"backbone": digest_of_module(forward.backbone), "pool": digest_of_module(forward.pool)}
    except (RuntimeError, TypeError, ValueError) as error:
        raise UncachableError(f"the network's weights cannot be digested, so {_NOT_CACHED}: {error}") from error
    return {
        **digests,
        "preprocessing": described(forward.preprocessing),
        "half": half_of(features),
        "method": features.method,
        **(shared if features.method == "shared" else {}),
        "patch_size": cutting.patch_size,
        "antialias": cutting.antialias,
        "whole_pixels": cutting.whole_pixels,
        "pixel_dtype": described(cutting.dtype),
        "precision": described(precision),
        "shape": list(features.shape),
    }


_NOT_CACHED = "its features are not cached; train without a cache"


def half_of(features: PatchFeatures) -> bool:
    """Tell whether the backbone is run in half precision."""
    amp = features.forward.amp
    return features.forward.device.type == "cuda" if amp is None else amp


def key_of(description: dict[str, Any]) -> str:
    """Return the digest of a description."""
    return digest_of(json.dumps(description, sort_keys=True))


# What a network computes also depends on hooks, functions, replaced methods, attributes of any kind: so it is tried.


def probe(features: PatchFeatures) -> list[float]:
    """Return sums of the features of fixed pixels, and how large they are: other numbers for another network.

    Raises:
        UncachableError: Features that are not finite, or others each time.
    """
    one, other = _sums(_of_fixed_pixels(features)), _sums(_of_fixed_pixels(features))
    if not all(map(math.isfinite, one)):
        raise UncachableError(f"the network's features of fixed pixels are not finite, so {_NOT_CACHED}")
    if not agree(one, other, half_of(features)):
        raise UncachableError(
            f"the network computes other features of the same pixels each time, so {_NOT_CACHED}"
        )
    return one


def agree(one: Sequence[float], other: Sequence[float], half: bool) -> bool:
    """Tell whether two probes differ by no more than one network's do on other machines or numbers of threads."""
    near = 5e-3 if half else 1e-4  # of a hundred layers, measured: 1e-3 and 1e-6
    sums = zip(one[:_SUMS], other[:_SUMS], one[_SUMS:], strict=False)
    return len(one) == len(other) and all(abs(a - b) <= near * scale for a, b, scale in sums)


def _of_fixed_pixels(features: PatchFeatures) -> Tensor:
    """Return the features, in one row, of four patches of a picture that is half noise, half a slope."""
    side = features.resizing.patch_size
    height, width = side + side // 2, 2 * side
    place = torch.arange(3 * height * width).reshape(3, height, width)
    noise, slope = place * 2654435761 % 4294967296 // 16777216, place * 256 // place.numel()
    near, far = side / 4, float(side)
    boxes = [
        [0, 0, far, far],
        [near, 0, near + far, far],
        [near, near, 3 * near, 3 * near],
        [far, 0, 2 * far, far],
    ]
    image = ((noise + slope) // 2).to(torch.uint8)
    return features(image, torch.tensor(boxes, dtype=torch.float64)).double().cpu().reshape(-1)


def _sums(values: Tensor) -> list[float]:
    """Return weighted sums of parts of ``values``, then those of their magnitudes."""
    weights = 0.5 + torch.arange(len(values), dtype=torch.float64) * 0.6180339887498949 % 1
    parts = [part.sum().item() for v in (values, values.abs()) for part in (v * weights).tensor_split(_SUMS)]
    return parts
