"""A model by the name of the function that builds it, ``module:factory``, for the command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from operator import attrgetter

import torch
from torch import nn

from transferkit.errors import ArgumentError, did_you_mean


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
