"""The model that a transfer writes to: built by name, its layers under their bare names, its tied weights."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from operator import attrgetter

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from transferkit.checkpoints._state_dicts import bare_layers
from transferkit.errors import ArgumentError, did_you_mean
from transferkit.layers import Layer
from transferkit.memory import laid_out_alike, overlapping, shared_groups
from transferkit.transfer._entry import MOVED, Entry


@dataclass(frozen=True)
class Target:
    """A live model's layers.

    Attributes:
        model: The model itself.
        layers: Its layers, named without what wrappers (DDP, ``torch.compile``) put into the names.
        notes: What was left out of the names.
    """

    model: nn.Module
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Target:
        """Look at a model.

        Raises:
            ArgumentError: It is not a module, or has lazy parameters, whose shapes are not known yet.
        """
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        layers, set_aside = bare_layers(model)
        lazy = [layer.name for layer in layers if any(is_lazy(tensor) for tensor in layer.tensors.values())]
        if lazy:
            raise ArgumentError(
                f"the model's lazy layers have no shape yet: {', '.join(lazy)}; run one batch through it first"
            )
        if any("_flat_param" in layer.tensors for layer in layers):
            raise ArgumentError(
                "the model's parameters lie flattened in FullyShardedDataParallel; call apply(model) inside "
                "FullyShardedDataParallel.summon_full_params(model), or before wrapping it, or use fully_shard"
            )
        return cls(model, layers, tuple(f"set aside in the target's names: {part}" for part in set_aside))


# Weights that no parameter or buffer shows.


def packed_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the names of modules that save weights which are neither parameters nor buffers, as quantized ones do.

    Example:
        >>> packed_modules(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        ()
    """
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(f"{name}.".startswith(f"{outer}.") for outer in found if outer)
        if not inside and _saves_more(module):
            found.append(name)
    return tuple(found)


def _saves_more(module: nn.Module) -> bool:
    own = getattr(type(module), "_save_to_state_dict", None)
    if module._parameters or isinstance(module, torch.jit.ScriptModule) or own is nn.Module._save_to_state_dict:
        return False
    saved: dict[str, object] = {}
    module._save_to_state_dict(saved, "", True)
    return any(key not in module._buffers and key != "_extra_state" for key in saved)


# Tied weights: tensors of a model that are one piece of memory under several names.


def tie_groups(layers: Iterable[Layer]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of two or more keys that are the same memory, each in definition order.

    Example:
        >>> from torch import nn
        >>> from transferkit.layers import layers_of
        >>> net = nn.ModuleDict({"embed": nn.Embedding(10, 4), "out": nn.Linear(4, 10, bias=False)})
        >>> net["out"].weight = net["embed"].weight
        >>> tie_groups(layers_of(net))
        (('embed.weight', 'out.weight'),)
    """
    return shared_groups(
        (layer.key(short), tensor) for layer in layers for short, tensor in layer.tensors.items()
    )


def settle_ties(entries: Sequence[Entry], groups: Iterable[Sequence[str]]) -> list[Entry]:
    """Let the first moved tensor of each tied group be written, and mark the others as tied to it.

    A tied tensor that is missing in the source, or not selected, has its values from the one that is written.
    """
    by_key: Mapping[str, Entry] = {entry.target.key: entry for entry in entries if entry.target is not None}
    written_for: dict[str, str] = {}
    for keys in groups:
        moved = [key for key in keys if by_key[key].bucket in MOVED]
        written_for |= {key: moved[0] for key in keys if moved and key != moved[0]}
    return [
        replace(entry, bucket="tied", handler="", reason="", allowed="", tied_to=written_for[entry.key])
        if entry.target is not None and entry.key in written_for and entry.bucket != "mismatched"
        else entry
        for entry in entries
    ]


def settle_views(entries: Sequence[Entry], layers: Iterable[Layer]) -> list[Entry]:
    """Account for tensors that nothing writes and that share memory with written ones, as a transposed view does.

    One that is wholly overwritten is tied. One that is overwritten in part would be neither its own nor the source's.
    """
    tensors = {layer.key(short): tensor for layer in layers for short, tensor in layer.tensors.items()}
    buckets = {entry.key: entry.bucket for entry in entries if entry.target is not None}
    settled: dict[str, Entry] = {}
    keys = list(tensors)
    by_key = {entry.key: entry for entry in entries if entry.target is not None}
    for group in overlapping(list(tensors.values())):
        members = [keys[place] for place in group]
        written = [key for key in members if buckets[key] in MOVED]
        stand_ins = dict(zip(members, laid_out_alike([tensors[key] for key in members]), strict=True))
        for key in written:
            stand_ins[key].fill_(1)
        for key in set(members) - set(written):
            if buckets[key] != "mismatched" and bool(stand_ins[key].any()):
                whole = bool(stand_ins[key].all())
                settled[key] = _overwritten(by_key[key], written[0], whole=whole)
    return [entry if entry.target is None else settled.get(entry.key, entry) for entry in entries]


def _overwritten(entry: Entry, by: str, *, whole: bool) -> Entry:
    if whole:
        return replace(entry, bucket="tied", handler="", reason="", allowed="", tied_to=by)
    return replace(entry, bucket="mismatched", reason=f"shares part of its memory with {by}, which is written")


def build_model(name: str, *, meta: bool = True) -> nn.Module:
    """Import a factory and build its model, by default without memory, on the meta device.

    Args:
        name: ``"package.module:factory"``: a class or function that is called without arguments, or a module that
            stands there ready. Looked for in the working folder too.
        meta: Whether to build it on the meta device, which is enough for a plan.

    Raises:
        ArgumentError: There is no such module or factory, or it fails, or returns no module.

    Example:
        >>> build_model("transferkit.alexnet:AlexNet").features[0].weight.device
        device(type='meta')
    """
    factory = _find(name)
    if isinstance(factory, nn.Module):
        return factory
    try:
        with torch.device("meta") if meta else nullcontext():
            model = factory()
    except Exception as error:
        raise ArgumentError(f"{name} cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"{name} must build a torch.nn.Module, got {type(model).__name__}")
    return model


def _find(name: str) -> Callable[[], object]:
    path, colon, attribute = name.partition(":")
    if not (path and colon and attribute):
        raise ArgumentError(f"a model must be given as module:factory, got {name!r}")
    try:
        with _working_folder():
            module = importlib.import_module(path)
    except Exception as error:
        raise ArgumentError(f"module {path!r} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        found = attrgetter(attribute)(module)
    except AttributeError:
        hint = did_you_mean(attribute, [each for each in vars(module) if not each.startswith("_")])
        raise ArgumentError(f"module {path!r} has no {attribute!r}{hint}") from None
    if not callable(found):
        raise ArgumentError(f"{name} must be a factory, got {found!r}")
    factory: Callable[[], object] = found
    return factory


@contextmanager
def _working_folder() -> Iterator[None]:
    """Import from the working folder, as ``python -m`` does."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")
