"""Names that wrappers put into a path: ``module.`` of DDP, ``_orig_mod.`` of torch.compile, and their like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from transferkit.layers import split_key

WRAPPERS = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"}
)


def bare_name(name: str) -> str:
    """Return a dotted layer name without the parts that a wrapper added.

    Example:
        >>> bare_name("module._orig_mod.encoder.module.conv")
        'encoder.conv'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def bare_names(names: Iterable[str]) -> dict[str, str]:
    """Return each layer name with its bare name, or with itself where two layers would share a bare name.

    Example:
        >>> bare_names(["module.conv", "module.fc", "fc"])
        {'module.conv': 'conv', 'module.fc': 'module.fc', 'fc': 'fc'}
    """
    bare = {name: bare_name(name) for name in names}
    shared = {name for name, count in Counter(bare.values()).items() if count > 1}
    return {name: name if short in shared else short for name, short in bare.items()}


def bare_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return each state-dict key with its key under the layer's bare name.

    Example:
        >>> bare_keys(["module.fc.weight", "module.fc.bias"])
        {'module.fc.weight': 'fc.weight', 'module.fc.bias': 'fc.bias'}
    """
    parts = {key: split_key(key) for key in keys}
    names = bare_names(dict.fromkeys(name for name, _ in parts.values()))
    return {key: f"{names[name]}.{short}" if names[name] else short for key, (name, short) in parts.items()}
