"""Nothing that is frozen moves, whatever runs; nothing else is held; and what was before comes back."""

from __future__ import annotations

import copy
import pickle
import random
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from transferkit.backbones.surgery import replace_submodules
from transferkit.errors import ArgumentError, FrozenError
from transferkit.heads import replace_head
from transferkit.transfer import (
    assert_frozen,
    before,
    by_index,
    by_name,
    every,
    freeze,
    frozen_layers,
    unfreeze,
)


class Counting(nn.Module):
    """A module with statistics of its own, around others."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(3))
        self.register_buffer("moving_mean", torch.zeros(3))
        self.inner = nn.BatchNorm1d(3)
        self.drop = nn.Dropout()

    def forward(self, values: Tensor) -> Tensor:
        if self.training:
            self.moving_mean.lerp_(values.mean(0).detach(), 0.1)
        return self.drop(self.inner(values - self.moving_mean)) * self.gamma


def convolutional() -> nn.Sequential:
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    return nn.Sequential(block, nn.Flatten(), nn.Linear(144, 2))


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moved(old: dict[str, Tensor], model: nn.Module) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, old[name])}


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 3
ROWS = torch.randn(6, 3, generator=torch.Generator().manual_seed(2)) + 4


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.NAdam])
def test_a_stale_gradient_moves_nothing(kind: type[torch.optim.Optimizer], to_none: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.1)
    old = values(model)
    for step in range(4):
        model(ROWS).square().sum().backward()
        if step == 2:
            freeze(model, by_index(0))
            old = values(model)
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
    assert moved(old, model) == {"1.bias", "2.weight", "2.bias"}  # 1.weight is 0.weight


@pytest.mark.parametrize("spectral", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_spectral_norm_stops_iterating(spectral: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(spectral(nn.Linear(3, 3)), nn.Linear(3, 2))
    freeze(model, by_name("0"))
    old = values(model.train())
    model(ROWS)
    assert not moved(old, model)
    unfreeze(model)
    assert all(module.training for module in model.modules())


def test_a_module_with_statistics_is_held_and_what_is_in_it_is_not() -> None:
    model = nn.Sequential(Counting(), nn.Linear(3, 2))
    assert freeze(model, by_name("0")) == ("0",)
    for mode in (True, False, True):
        model.train(mode)
        assert [model[0].training, model[0].inner.training, model[0].drop.training] == [False, mode, mode]
    old = values(model)
    model(ROWS)
    assert moved(old, model) == {
        f"0.inner.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    freeze(model, by_name("0.inner"))
    unfreeze(model, by_name("0"))
    assert [model[0].training, model[0].inner.training, model[0].drop.training] == [True, False, True]
    unfreeze(model)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("prepare", [lambda model: model, copy.deepcopy, pickled, lambda model: model.double()])
def test_a_module_made_in_the_place_of_a_frozen_one_is_frozen(
    prepare: Callable[[nn.Module], nn.Module],
) -> None:
    model = convolutional()
    freeze(model, before("2"))
    model = nn.SyncBatchNorm.convert_sync_batchnorm(prepare(model)).train()
    assert isinstance(model[0][1], nn.SyncBatchNorm)
    assert not model[0][1].training
    assert frozen_layers(model) == ("0.0", "0.1")
    unfreeze(model)
    assert model[0][1].training
    assert frozen_layers(model) == ()


def test_a_layer_that_shares_a_frozen_parameter_is_not_taken_for_it() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    freeze(model, by_name("0"))
    model.append(nn.BatchNorm1d(3))
    model[2].weight = model[0].weight
    model.train()
    assert model[2].training
    assert assert_frozen(model) == ("0",)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripting_is_refused_and_both_of_its_next_steps_work() -> None:
    model = convolutional()
    freeze(model, before("2"))
    with pytest.raises(ArgumentError, match=r"copied = copy\.deepcopy\(model\); unfreeze\(copied\)"):
        torch.jit.script(model)
    copied = copy.deepcopy(model)
    unfreeze(copied)
    assert torch.equal(torch.jit.script(copied.eval())(IMAGES), model.eval()(IMAGES))
    scripted = torch.jit.script(convolutional())
    freeze(scripted, before("2"))
    old = values(scripted.train())
    scripted(IMAGES)
    assert not moved(old, scripted)
    assert assert_frozen(scripted) == ("0.0", "0.1")


def test_a_copy_that_shares_modules_is_put_into_its_own_mode() -> None:
    model = convolutional()
    freeze(model, before("2"))
    changed = replace_submodules(model, {"0.2": nn.Dropout(0.1)}).eval()
    assert not changed[0].training
    assert not changed[0][2].training
    assert model[0].training


def test_dropout_stays_active_unless_it_is_turned_off() -> None:
    def built() -> nn.Sequential:
        head = nn.Sequential(nn.Dropout(), nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2))
        return nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Dropout()), head)

    model = built()
    freeze(model, before("1.3"))
    assert model.train()[0][1].training
    model = built()
    freeze(model, before("1.3"), dropout=False)
    model.train()
    assert [name for name, module in model.named_modules() if module.training] == ["", "1", "1.2", "1.3"]
    unfreeze(model, by_name("0.0"))
    assert model[0].training
    assert model[0][1].training
    unfreeze(model)
    assert all(module.training for module in model.modules())


def test_unfreezing_restores_whatever_was() -> None:
    """Any parameters fixed before, frozen in any parts, any number of times, in copies."""
    chance = random.Random(5)
    for _ in range(60):
        model: nn.Module = nn.Sequential(
            nn.Linear(3, 3), Counting(), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Linear(3, 2)
        )
        model[4].codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
        model[3].weight = model[0].weight
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point() and chance.random() < 0.6)
        was = [parameter.requires_grad for parameter in model.parameters()]
        clean = [set(vars(module)) for module in model.modules()]
        for _ in range(chance.randint(1, 4)):
            names = [name for name in ("0", "1", "1.inner", "2", "3", "4") if chance.random() < 0.5] or ["2"]
            freeze(model, by_name(*names), dropout=chance.random() < 0.5)
            model = chance.choice([copy.deepcopy, lambda one: one.train(), lambda one: one])(model)
        unfreeze(model)
        assert [parameter.requires_grad for parameter in model.parameters()] == was
        assert [set(vars(module)) for module in model.modules()] == clean
        assert all(module.training for module in model.modules())


def test_what_was_fixed_by_hand_trains_when_a_rule_names_it() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).requires_grad_(False)
    with pytest.raises(ArgumentError, match=r"unfreeze\(model, every\(\)\)"):
        unfreeze(model)
    assert unfreeze(model, by_name("1")) == ("1",)
    assert unfreeze(model, every()) == ("0", "1")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert unfreeze(model) == ()


def test_unfreezing_is_all_or_nothing() -> None:
    with torch.inference_mode():
        fixed = nn.Parameter(torch.zeros(3), requires_grad=False)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).requires_grad_(False)
    model[1].bias = fixed
    with pytest.raises(ArgumentError, match="nothing was unfrozen"):
        unfreeze(model, every())
    assert not any(parameter.requires_grad for parameter in model.parameters())


# The check.


@pytest.mark.parametrize("prepare", [lambda model: model, copy.deepcopy, pickled])
def test_the_check_names_what_changed_and_by_how_much(prepare: Callable[[nn.Module], nn.Module]) -> None:
    model = convolutional()
    freeze(model, before("2"))
    model = prepare(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(IMAGES).sum().backward()
    optimizer.step()
    assert assert_frozen(model) == ("0.0", "0.1")
    model[0][1].running_var.add_(0.25)
    with torch.no_grad():
        model[0][0].weight.view(-1)[57] += 1  # one value of 108
    with pytest.raises(FrozenError, match=r"0\.1\.running_var: float32 \[4\] changed by up to 0\.25") as caught:
        assert_frozen(model)
    assert "0.0.weight" in str(caught.value)
    assert "bias" not in str(caught.value)
    names = re.findall(r"'([^']+)'", str(caught.value).splitlines()[-1])
    unfreeze(model, by_name(*names))
    freeze(model, by_name(*names))
    assert assert_frozen(model) == ("0.0", "0.1")


def test_freezing_again_does_not_hide_what_moved_in_between() -> None:
    model = convolutional()
    freeze(model, by_name("0.1"))
    model[0][1].running_mean.add_(1)
    freeze(model)
    with pytest.raises(FrozenError, match="of 3 frozen layers 1 changed"):
        assert_frozen(model)


def test_the_check_does_not_pass_where_nothing_can_be_compared() -> None:
    with pytest.raises(ArgumentError, match="no layer of this Sequential was frozen"):
        assert_frozen(convolutional())
    model: nn.Module = convolutional()
    freeze(model.to("meta"))
    with pytest.raises(FrozenError, match="cannot be compared"):
        assert_frozen(model)
    model = nn.Linear(3, 2)
    freeze(model)
    with pytest.raises(FrozenError, match=r"was float32 \[2, 3\] and is bfloat16"):
        assert_frozen(model.bfloat16())


def test_the_check_goes_on_when_the_head_is_replaced() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.Linear(4, 9))
    freeze(model)
    replace_head(model, 2)
    assert assert_frozen(model) == ("1",)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.int8])
def test_every_kind_of_tensor_can_be_compared(dtype: torch.dtype) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("table", torch.ones(5).to(dtype))
    model.register_buffer("graph", torch.eye(3).to_sparse())
    freeze(model)
    assert assert_frozen(model) == ("",)
    model.table = (torch.ones(5) * 2).to(dtype)
    model.graph = 2 * model.graph
    with pytest.raises(FrozenError, match=r"(?s)table.*graph"):
        assert_frozen(model)
