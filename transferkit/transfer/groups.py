"""Parameter groups for an optimizer: transferred and new layers at their own learning rates."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from transferkit.errors import ArgumentError
from transferkit.layers import Layer
from transferkit.transfer._target import Target


def parameter_groups(
    model: nn.Module,
    moved: Collection[nn.Parameter],
    *,
    transferred: Mapping[str, Any],
    new: Mapping[str, Any],
    decay_biases_and_norms: bool = True,
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into groups; each stands in exactly one, frozen ones in none.

    Args:
        model: The model that was transferred to.
        moved: The parameters that were transferred.
        transferred: Options of the groups of transferred parameters, ``{"lr": 1e-5}``.
        new: Options of the groups of all others.
        decay_biases_and_norms: ``False`` puts what the field does not decay into groups of their own with
            ``weight_decay`` 0: parameters of one dimension or none (biases under any name, the weights of norms,
            scales), all of norm layers, and what is called a bias.

    Returns:
        Up to four groups with ``params``, ``name`` and the options; empty ones are left out.

    Raises:
        ArgumentError: Nothing in the model is trainable.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
        >>> groups = parameter_groups(net, [*net[0].parameters()], transferred={"lr": 1e-5}, new={"lr": 1e-3})
        >>> [(group["name"], group["lr"], len(group["params"])) for group in groups]
        [('transferred', 1e-05, 2), ('new', 0.001, 2)]
    """
    options, old = {"transferred": dict(transferred), "new": dict(new)}, {id(parameter) for parameter in moved}
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    seen: set[int] = set()
    for layer in Target.of(model).layers:
        for short, tensor in layer.tensors.items():
            if not isinstance(tensor, nn.Parameter) or not tensor.requires_grad or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            name = "transferred" if id(tensor) in old else "new"
            decayed = decay_biases_and_norms or not _is_bias_or_norm(layer, short, tensor)
            groups.setdefault((name, decayed), {"params": []})["params"].append(tensor)
    if not groups:
        raise ArgumentError(
            "no parameter of the model is trainable; unfreeze(model, every()), or those layers that are to be trained"
        )
    return [
        {**group, **options[name], "name": name}
        if decayed
        else {**group, **options[name], "name": f"{name}, no decay", "weight_decay": 0.0}
        for (name, decayed), group in sorted(
            groups.items(), key=lambda item: (item[0][0] == "new", not item[0][1])
        )
    ]


def _is_bias_or_norm(layer: Layer, short: str, tensor: Tensor) -> bool:
    return tensor.ndim <= 1 or layer.kind == "norm" or short.rpartition(".")[2].startswith("bias")
