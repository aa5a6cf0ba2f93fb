"""Weights that a file holds in parts, as torch's parametrizations and weight norm store them."""

from __future__ import annotations

from collections.abc import Iterable

from transferkit.layers import split_key


def parametrized_layers(keys: Iterable[str]) -> dict[str, str]:
    """Return the layers whose weights are stored in parts, with the name of the scheme.

    Example:
        >>> parametrized_layers(["conv.weight_g", "conv.weight_v", "conv.bias"])
        {'conv': 'weight norm'}
        >>> parametrized_layers(["fc.parametrizations.weight.original0"])
        {'fc': 'parametrization'}
    """
    keys = set(keys)
    found = {}
    for key in sorted(keys):
        layer, short = split_key(key)
        if short.startswith("parametrizations."):
            found[layer] = "parametrization"
        elif key.endswith("_g") and f"{key[:-2]}_v" in keys:
            found[layer] = "weight norm"
        elif key.endswith("_orig") and (f"{key[:-5]}_u" in keys or f"{key[:-5]}_mask" in keys):
            found[layer] = "spectral norm" if f"{key[:-5]}_u" in keys else "pruning"
    return found
