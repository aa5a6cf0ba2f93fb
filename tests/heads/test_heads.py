"""Heads are what their recipe says, and replacing one touches nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transferkit.alexnet import AlexNet
from transferkit.errors import ArgumentError, LayerNotFoundError
from transferkit.heads import adaptation_head, find_head, linear_head, replace_head


def small_alexnet() -> AlexNet:
    return AlexNet(10, channels=(4, 4, 4, 4, 4), hidden=12)


def test_the_adaptation_layers_start_as_the_neon_recipe_says() -> None:
    torch.manual_seed(0)
    hidden, _, dropout, last = adaptation_head(4096, 21)
    assert hidden.weight.std().item() == pytest.approx(0.005, rel=0.01)
    assert torch.all(hidden.bias == 0.1)
    assert last.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert torch.all(last.bias == 0)
    assert dropout.p == 0.5


def test_no_dropout_layer_at_drop_rate_zero_and_any_number_of_hidden_layers() -> None:
    head = adaptation_head(8, 3, hidden=(16, 32), drop_rate=0)
    assert [type(module).__name__ for module in head] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert head(torch.zeros(5, 8)).shape == (5, 3)
    assert len(adaptation_head(8, 3, hidden=())) == 1


def test_the_head_lands_on_the_device_asked_for(device: torch.device) -> None:
    assert {p.device.type for p in adaptation_head(4, 2, device=device).parameters()} == {device.type}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0, "num_classes": 2}, "in_features must be at least 1, got 0"),
        ({"in_features": 2, "num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"in_features": 2, "num_classes": 2, "drop_rate": 1.0}, r"drop_rate must be in \[0, 1\), got 1.0"),
        ({"in_features": 2, "num_classes": 2, "weight_std": -1.0}, "weight_std must be zero or positive"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        adaptation_head(**arguments)


def test_replacing_the_head_leaves_every_other_tensor_the_same_object() -> None:
    model = small_alexnet()
    before = dict(model.named_parameters())
    head = replace_head(model, lambda width: adaptation_head(width, 21, hidden=(7,)))
    assert (head.name, head.in_features) == ("classifier.6", 12)
    after = dict(model.named_parameters())
    kept = [name for name in before if not name.startswith("classifier.6")]
    assert all(after[name] is before[name] for name in kept)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 21)


def test_the_new_head_takes_dtype_and_device_of_the_old(device: torch.device) -> None:
    model = small_alexnet().half().to(device)
    new = replace_head(model, lambda width: linear_head(width, 3)).module
    assert new.weight.dtype == torch.float16
    assert new.weight.device.type == device.type


def test_a_whole_container_can_be_replaced() -> None:
    model = small_alexnet()
    replace_head(model, lambda width: linear_head(width, 3), name="classifier")
    assert isinstance(model.classifier, nn.Linear)
    assert find_head(model).name == "classifier"


def test_a_head_of_another_width_is_refused_with_both_sides() -> None:
    with pytest.raises(ArgumentError, match=r"takes 99 features and 'classifier.6' of AlexNet is given 12"):
        replace_head(small_alexnet(), linear_head(99, 3))


def test_a_wrong_name_offers_the_nearest() -> None:
    with pytest.raises(LayerNotFoundError, match=r"no module named 'clasifier.6'.*'classifier.6'"):
        find_head(small_alexnet(), "clasifier.6")


def test_a_model_without_linear_layers_says_so() -> None:
    with pytest.raises(LayerNotFoundError, match="no linear layer to call its head"):
        find_head(nn.Sequential(nn.Conv2d(3, 4, 1)))


def test_alexnet_has_the_names_and_shapes_of_the_published_weights() -> None:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in AlexNet().state_dict().items()}
    assert shapes["features.0.weight"] == (64, 3, 11, 11)
    assert shapes["classifier.1.weight"] == (4096, 9216)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 61_100_840
