"""What cached features depend on: two caches have one key if and only if they would hold the same numbers."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.features.patch_features import PatchFeatures
from transferkit.sampler._source import PixelSource, describe_data, described, tellers_of

_PLAIN = (bool, int, float, str, tuple, type(None))


def digest_of_module(module: nn.Module) -> str:
    """Return a digest of all that decides what a module computes in evaluation mode.

    That is each module's type, plain attributes and, where the type is not torch's own, its source; and the
    name, shape, type and bytes of each tensor.

    Example:
        >>> net = nn.Conv2d(3, 8, 3)
        >>> before = digest_of_module(net)
        >>> with torch.no_grad():
        ...     _ = net.weight.add_(1)
        >>> digest_of_module(net) == before
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, part in module.named_modules(remove_duplicate=False):
        digest.update(repr((name, *_structure(part))).encode())
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            values = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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


def describe_cache(
    features: PatchFeatures, dataset: Any, pixels: PixelSource, precision: torch.dtype
) -> dict[str, Any]:
    """Return everything that the numbers in a cache depend on, as plain values by name.

    Which patches a balance chooses, and how a rule labels them, is not among it: a cache holds all patches of
    an image.
    """
    forward = features.forward
    shared = {"levels": described(features.pyramid_scales), "most_pixels": features.most_pixels}
    return {
        "trunk": digest_of_module(forward.backbone),
        "pool": digest_of_module(forward.pool),
        "preprocessing": described(forward.preprocessing),
        "half": half_of(features),
        "method": features.method,
        **(shared if features.method == "shared" else {}),
        "patch_size": pixels.patch_size,
        "antialias": pixels.antialias,
        "whole_pixels": pixels.whole_pixels,
        "pixel_dtype": described(pixels.dtype),
        "grid": described(pixels.grid),
        "proposals": described(pixels.proposals),
        "precision": described(precision),
        **describe_data(dataset),
        "content": _content_of(dataset),
    }


def half_of(features: PatchFeatures) -> bool:
    """Tell whether the backbone is run in half precision."""
    amp = features.forward.amp
    return features.forward.device.type == "cuda" if amp is None else amp


def key_of(description: Mapping[str, Any]) -> str:
    """Return the digest of a description."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _content_of(dataset: Any) -> str | None:
    """Return the digest of all images and annotations, where the data set gives one of each by
    ``fingerprint(i)``.
    """
    tellers = tellers_of(dataset, "fingerprint")
    if tellers is None:
        return None
    prints = "\0".join(data.fingerprint(place) for data, place in tellers)
    return hashlib.blake2b(prints.encode(), digest_size=16).hexdigest()
