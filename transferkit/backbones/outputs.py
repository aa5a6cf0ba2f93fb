"""The tensor in what a model returns: not every model returns just one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from transferkit.errors import ArgumentError


def logits_of(output: Any) -> Tensor:
    """Return the logits in a model's output.

    Args:
        output: A tensor; an object, dict or named tuple with ``logits``, as Hugging Face's models return, and
            torchvision's Inception and GoogLeNet in training; or something with one tensor in it.

    Raises:
        ArgumentError: There are several tensors and none is called logits, as with a distilled DeiT in training.

    Example:
        >>> import torch
        >>> logits_of({"logits": torch.zeros(2, 21), "hidden_states": None}).shape
        torch.Size([2, 21])
    """
    return _tensor_in(output, ("logits",))


def features_of(output: Any) -> Tensor:
    """Return the features in the output of a model without a head, or of a layer: pooled ones before maps.

    Args:
        output: A tensor, or an object or dict with ``pooler_output`` or ``last_hidden_state``, as Hugging Face's
            models return.

    Raises:
        ArgumentError: There are several tensors, and none has one of these names.

    Example:
        >>> import torch
        >>> features_of({"last_hidden_state": torch.zeros(2, 512, 7, 7), "pooler_output": None}).shape
        torch.Size([2, 512, 7, 7])
    """
    return _tensor_in(output, ("pooler_output", "last_hidden_state"))


def _tensor_in(output: Any, names: tuple[str, ...]) -> Tensor:
    if isinstance(output, Tensor):
        return output
    for name in names:
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    values = list(output.values() if isinstance(output, Mapping) else output) if _holds_many(output) else []
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "none"
    raise ArgumentError(
        f"the model must return one tensor or one called {' or '.join(names)}, got a {type(output).__name__} with "
        f"tensors of shapes: {shapes}; a model with several heads needs to be told which one to use"
    )


def _holds_many(output: Any) -> bool:
    return isinstance(output, Mapping | tuple | list)
