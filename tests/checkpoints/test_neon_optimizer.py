"""An optimizer's state moved from neon goes on in torch where neon stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.checkpoints.test_neon_layers import layer, model, numbers, read


def optimizer(kind: str, **config: Any) -> dict[str, Any]:
    return {"type": f"neon.optimizers.optimizer.{kind}", "config": config}


def step(kind: str, weight: np.ndarray, grad: np.ndarray, state: list[np.ndarray], count: int) -> np.ndarray:
    """One update by neon's formulas; changes ``state`` in place."""
    if kind == "GradientDescentMomentum":
        state[0][:] = 0.9 * state[0] - 0.1 * grad
        return weight + state[0]
    if kind == "Adadelta":
        state[0][:] = 0.95 * state[0] + 0.05 * grad * grad
        state[2][:] = np.sqrt((state[1] + 1e-6) / (state[0] + 1e-6)) * grad
        state[1][:] = 0.95 * state[1] + 0.05 * state[2] * state[2]
        return weight - state[2]
    if kind == "RMSProp":
        state[0][:] = 0.95 * state[0] + 0.05 * grad * grad
        return weight - 0.1 * grad / (np.sqrt(state[0] + 1e-6) + 1e-6)
    state[0][:] = state[0] + grad * grad
    return weight - 0.1 * grad / np.sqrt(state[0] + 1e-6)


TORCH = {
    "GradientDescentMomentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0, rho=0.95, eps=1e-6),
    "RMSProp": lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.95, eps=1e-6),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-6),
}
SIZE = {"Adadelta": 3}


@pytest.mark.parametrize("kind", TORCH)
def test_the_next_step_is_neons(kind: str, tmp_path: Path) -> None:
    weight, gradients = numbers(2, 3), [numbers(2, 3) for _ in range(6)]
    state = [np.zeros((2, 3), "f4") for _ in range(SIZE.get(kind, 1))]
    for count, grad in enumerate(gradients[:-1]):
        weight = step(kind, weight, grad, state, count)
    saved = model(
        layer("Linear", "fc", states=[array.copy() for array in state], W=weight.astype("f4")),
        optimizer=optimizer(kind, learning_rate=0.1),
    )
    found = read(saved, tmp_path)["fc"]
    wanted = step(kind, weight, gradients[-1], state, len(gradients))
    parameter = nn.Parameter(found.tensors["weight"].clone())
    torch_optimizer = TORCH[kind]([parameter])
    torch_optimizer.state[parameter].update({"step": torch.tensor(5.0), **found.states["weight"]})
    parameter.grad = torch.from_numpy(gradients[-1])
    torch_optimizer.step()
    assert np.allclose(parameter.detach(), wanted, atol=1e-4)


def test_states_are_laid_out_like_their_weights(tmp_path: Path) -> None:
    weight = numbers(18, 4)
    saved = model(
        layer(
            "Convolution_bias",
            "c",
            states=[[weight * -0.1], [numbers(4, 1)]],
            fshape=(3, 3, 4),
            W=weight,
            weight_bias=numbers(4, 1),
        ),
        optimizer=optimizer("GradientDescentMomentum", learning_rate=0.1),
    )
    found = read(saved, tmp_path)["c"]
    assert torch.allclose(found.states["weight"]["momentum_buffer"], found.tensors["weight"])
    assert found.states["bias"]["momentum_buffer"].shape == (4,)


def test_several_optimizers_are_told_apart_as_neon_does(tmp_path: Path) -> None:
    saved = model(
        layer("Linear", "fc", states=[np.ones((2, 2), "f4")], W=numbers(2, 2)),
        layer("Bias", "fc_bias", states=[np.ones((2, 1), "f4")], W=numbers(2, 1)),
        optimizer=optimizer(
            "MultiOptimizer",
            optimizer_mapping={
                "default": optimizer("GradientDescentMomentum", learning_rate=0.1),
                "Bias": optimizer("GradientDescentMomentum", learning_rate=0.2),
            },
        ),
    )
    states = read(saved, tmp_path)["fc"].states
    assert states["weight"]["momentum_buffer"].eq(-10).all() and states["bias"]["momentum_buffer"].eq(-5).all()


def test_an_unknown_optimizers_state_keeps_its_order(tmp_path: Path) -> None:
    arrays = [numbers(2, 2), numbers(2, 2), numbers(2, 2)]
    saved = model(layer("Linear", "fc", states=arrays, W=numbers(2, 2)), optimizer=optimizer("ShiftAdaMax"))
    assert list(read(saved, tmp_path)["fc"].states["weight"]) == ["state_0", "state_1", "state_2"]
