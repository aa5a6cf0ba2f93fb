"""Files of transformers' models, whose names are others than the live models': renamed by transformers' own table."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from transferkit.errors import TransferError, listed
from transferkit.layers import Layer, kind_of_tensors, split_key

_KNOWN = "5.24"


def in_live_names(model: nn.Module, layers: Sequence[Layer]) -> tuple[Sequence[Layer], tuple[str, ...]]:
    """Return a source's layers under the names of a transformers model, and what was done as a note.

    Other models' sources are returned as they are, and so are those whose names are all the model's own already.

    Raises:
        TransferError: transformers has no table of the known form, or would fuse or split tensors.
    """
    model = _transformers_model(model)
    keys = [layer.key(short) for layer in layers for short in layer.tensors]
    if model is None or set(keys) <= set(model.state_dict(keep_vars=True)):
        return layers, ()
    names = _live_names(model, keys)
    renamed = [key for key in keys if names[key] != key]
    if not renamed:
        return layers, ()
    note = f"{len(renamed)} of {len(keys)} tensors go by other names in the file: transformers' table of {_version()}"
    return _renamed(layers, names), (note,)


def _transformers_model(model: nn.Module) -> Any:
    """Return the model of transformers that this is or wraps, if it is one; then transformers is imported."""
    library = sys.modules.get("transformers.modeling_utils")
    while isinstance(inner := getattr(model, "_orig_mod", getattr(model, "module", None)), nn.Module):
        model = inner
    return model if library is not None and isinstance(model, library.PreTrainedModel) else None


def _live_names(model: Any, keys: Sequence[str]) -> dict[str, str]:
    """Return the live model's key for each key of a file, as ``from_pretrained`` finds it."""
    prefix, wanted = model.base_model_prefix, model.state_dict(keep_vars=True)
    try:
        mapping = importlib.import_module("transformers.conversion_mapping")
        loading = importlib.import_module("transformers.core_model_loading")

        table = mapping.get_model_conversion_mapping(model)
        renamings = [each for each in table if isinstance(each, loading.WeightRenaming)]
        converters = [each for each in table if isinstance(each, loading.WeightConverter)]
        if len(renamings) + len(converters) != len(table):
            raise TypeError("rules of unknown kinds")
        names, fused = {}, []
        for key in keys:
            names[key], rule = loading.rename_source_key(key, renamings, converters, prefix, wanted)
            if names[key] not in wanted and key in wanted:
                names[key], rule = loading.rename_source_key(key, [], [], prefix, wanted)
            fused += [key] if rule is not None else []
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise _refused(model, f"its table of names has another form than {_KNOWN}'s ({error})") from error
    if fused:
        raise _refused(
            model, f"it fuses or splits {len(fused)} tensors as it loads, such as {listed(fused, 2)}"
        )
    return names


def _refused(model: Any, why: str) -> TransferError:
    kind = type(model).__name__
    return TransferError(
        f"the source's names are not those of {kind}, and they cannot be found by transformers {_version()}: {why}. "
        f"Next step: let transformers load the folder, WeightTransfer({kind}.from_pretrained(folder), ...)"
    )


def _version() -> str:
    return str(sys.modules["transformers"].__version__)


def _renamed(layers: Sequence[Layer], names: dict[str, str]) -> tuple[Layer, ...]:
    """Return the layers that tensors belong to by their live names, with the names in the file for the report."""
    found: dict[str, Layer] = {}
    for layer in layers:
        for short, tensor in layer.tensors.items():
            key = layer.key(short)
            name, own = split_key(names[key])
            empty = replace(layer, name=name, index=len(found), path="", tensors={}, states={}, keys={})
            made = found.get(name, empty)
            states = {own: layer.states[short]} if short in layer.states else {}
            found[name] = replace(
                made,
                tensors={**made.tensors, own: tensor},
                states={**made.states, **states},
                keys={**made.keys, own: key},
            )
    return tuple(replace(layer, kind=kind_of_tensors(layer.tensors)) for layer in found.values())
