"""neon's optimizer states under torch's names and in torch's units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transferkit.checkpoints.neon.records import Array

# torch's names for what neon stores, in neon's order. Adadelta's third array, the last step, nothing reads.
_NAMES = {
    "GradientDescentMomentum": ("momentum_buffer",),
    "RMSProp": ("square_avg",),
    "Adagrad": ("sum",),
    "Adadelta": ("square_avg", "acc_delta"),
    "Adam": ("exp_avg", "exp_avg_sq"),
}
_OF_SQUARES = frozenset(["square_avg", "sum", "exp_avg_sq"])


def optimizer_of(entry: Any, name: str, type_: str) -> tuple[str, Mapping[str, Any]]:
    """Return the class and settings of the optimizer that trained a layer.

    neon's ``MultiOptimizer`` chooses by the layer's name, then by its class, then ``"default"``.

    Args:
        entry: The file's ``"optimizer"``.
        name: The layer's own name.
        type_: The layer's class.
    """
    if not isinstance(entry, Mapping):
        return "", {}
    config = entry.get("config", {})
    config = config if isinstance(config, Mapping) else {}
    mapping = config.get("optimizer_mapping")
    if isinstance(mapping, Mapping):
        chosen = mapping.get(name, mapping.get(type_, mapping.get("default")))
        return optimizer_of(chosen, name, type_) if chosen is not entry else ("", {})
    return str(entry.get("type", "")).rpartition(".")[2], config


def torch_states(
    states: tuple[Array, ...], optimizer: str, config: Mapping[str, Any], scale: float
) -> dict[str, Array]:
    """Return a parameter's states by torch's names; ``state_0`` and so on for an optimizer torch does not have.

    neon's velocity is ``-learning_rate`` times torch's momentum buffer. Where a weight was multiplied by
    ``scale``, its gradients are divided by it, and so is what is made of them.

    Args:
        states: What neon stored, in its order.
        optimizer: neon's class.
        config: The optimizer's settings.
        scale: What the parameter itself was multiplied by.
    """
    names = _NAMES.get(optimizer, tuple(f"state_{place}" for place in range(len(states))))
    result = dict(zip(names, states, strict=False))
    if "momentum_buffer" in result:
        rate = config.get("learning_rate")
        if not isinstance(rate, int | float) or rate == 0:
            return {}
        result["momentum_buffer"] = result["momentum_buffer"] / -rate
    if scale != 1 and optimizer in _NAMES:
        for name in result:
            result[name] = result[name] * (scale**2 if name == "acc_delta" else 1 / scale ** _power(name))
    return result


def _power(name: str) -> int:
    return 2 if name in _OF_SQUARES else 1
