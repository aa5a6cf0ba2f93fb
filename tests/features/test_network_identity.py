"""What a network computes decides where its features lie, whatever makes it compute that."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.features.scenes import GRID, SIDE, Scenes, backbone, features
from transferkit.errors import ArgumentError, StateError, UncachableError
from transferkit.features import FeatureCache, PatchFeatures

GAIN = [1.0]


class Scaled(nn.Module):
    """A backbone with every kind of thing that may decide what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = backbone()
        self.register_buffer("unsaved", torch.ones(()), persistent=False)
        self._hidden, self.told = 1.0, {"gain": 1.0}
        self._tensor = torch.ones(4, 1, 1)
        self.function: Callable[[Tensor], Tensor] = lambda maps: maps

    def forward(self, pixels: Tensor) -> Tensor:
        gain = self.unsaved * self._hidden * self.told["gain"] * self._tensor * GAIN[0]
        return self.function(self.inner(pixels) * gain)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def replace_forward(network: Scaled) -> None:
    network.inner[2].forward = lambda maps: maps.clamp(min=0.05)


def by(gain: float) -> Callable[[Tensor], Tensor]:
    return lambda maps: maps * gain


CHANGES: dict[str, Callable[[Scaled], object]] = {
    "a buffer that is not saved": lambda net: net.unsaved.mul_(1.01),
    "an underscored attribute": lambda net: setattr(net, "_hidden", 1.02),
    "a value in a dict": lambda net: net.told.update(gain=1.03),
    "one value of a tensor": lambda net: net._tensor[2].mul_(1.1),
    "a function": lambda net: setattr(net, "function", by(1.05)),
    "the same function of another value": lambda net: setattr(net, "function", by(1.06)),
    "a partial": lambda net: setattr(net, "function", functools.partial(torch.mul, other=1.07)),
    "a global": lambda net: GAIN.__setitem__(0, 1.08),
    "a hook": lambda net: net.inner[0].register_forward_hook(lambda module, given, maps: maps * 1.09),
    "a hook before": lambda net: net.inner[3].register_forward_pre_hook(lambda module, given: given[0] + 0.01),
    "a replaced forward": replace_forward,
    "a parametrization": lambda net: parametrize.register_parametrization(net.inner[0], "weight", Doubled()),
}


def key_of(folder: Path, network: nn.Module, method: str) -> str:
    made = PatchFeatures(network, pool=nn.AvgPool2d(2), patch_size=SIDE, method=method)
    return FeatureCache(folder, made, Scenes(), grid=GRID).key


@pytest.mark.parametrize("method", ["exact", "shared"])
def test_whatever_changes_what_is_computed_is_told_apart(tmp_path: Path, method: str) -> None:
    keys = {"nothing": key_of(tmp_path, Scaled(), method)}
    for name, change in CHANGES.items():
        network = Scaled()
        with torch.no_grad():
            change(network)
        try:
            keys[name] = key_of(tmp_path, network, method)
        finally:
            GAIN[0] = 1.0
    assert len(set(keys.values())) == len(keys), keys
    for same in (Scaled(), Scaled().train(), copy.deepcopy(Scaled())):
        assert key_of(tmp_path, same, method) == keys["nothing"]


def test_another_network_is_refused_where_features_of_one_are_given(tmp_path: Path) -> None:
    network = Scaled()
    cache = FeatureCache(tmp_path, PatchFeatures(network, patch_size=SIDE), Scenes(), grid=GRID)
    cache.require_features(PatchFeatures(Scaled(), patch_size=SIDE))
    network._hidden = 1.1
    with pytest.raises(ArgumentError, match="its features of fixed pixels differ"):
        cache.require_features(PatchFeatures(network, patch_size=SIDE))


def test_a_network_that_is_trained_on_does_not_fill_the_cache_of_what_it_was(tmp_path: Path) -> None:
    made = features()
    cache = FeatureCache(tmp_path, made, Scenes(), grid=GRID)
    with torch.no_grad():
        made.forward.backbone[0].weight.mul_(1.1)
    with pytest.raises(
        StateError, match="the network changed .*: backbone differ; make a FeatureCache of the network"
    ):
        cache.fill()
    FeatureCache(tmp_path, made, Scenes(), grid=GRID).fill()
    assert len(cache.missing()) == len(cache)


def test_rounding_as_machines_differ_in_makes_no_other_network(tmp_path: Path) -> None:
    network = Scaled()
    key = key_of(tmp_path, network, "exact")
    network._hidden = 1 + 1e-6
    assert key_of(tmp_path, network, "exact") == key


class Random(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.dropout(pixels, 0.5, training=True)


class Undefined(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels / 0.0 * 0.0


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("eye", torch.eye(3).to_sparse())

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Random(), "other features of the same pixels each time"),
        (Undefined(), "are not finite"),
        (Sparse(), "weights cannot be digested"),
    ],
)
def test_what_cannot_be_told_is_not_cached(tmp_path: Path, network: nn.Module, reason: str) -> None:
    with pytest.raises(
        UncachableError, match=f"{reason}, so its features are not cached; train without a cache"
    ):
        FeatureCache(tmp_path, PatchFeatures(network, patch_size=SIDE), Scenes(), grid=GRID)
    assert not list(tmp_path.iterdir())


def test_features_of_boxes_outside_the_image_are_refused_by_both_methods() -> None:
    image = Scenes()[0].image
    for method in ("exact", "shared"):
        for box in ([-1.0, 0, 20, 20], [60, 20, 84, 44], [500, 500, 600, 600]):
            with pytest.raises(
                ArgumentError, match="must lie inside the image, 80 wide and 48 high, got .* at row 1"
            ):
                features(method=method)(image, torch.tensor([[0.0, 0, 20, 20], box]))
