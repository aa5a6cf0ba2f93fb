"""A first convolution that is given other channels computes what the old one did."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transferkit.errors import HandlerError, TransferError
from transferkit.transfer import WeightTransfer
from transferkit.transfer.handlers import InputChannels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def moved(source: nn.Conv2d, channels: int, handler, **options) -> nn.Conv2d:
    target = nn.Conv2d(channels, source.out_channels, source.kernel_size, **options)
    WeightTransfer(source, handlers={"": handler}).apply(target)
    return target


def column(values) -> torch.Tensor:
    return torch.tensor(values)[:, None, None]


@pytest.fixture
def rgb() -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(3, 8, 3)


def test_gray_is_seen_as_rgb(rgb):
    gray = torch.rand(2, 1, 9, 9)
    assert torch.allclose(moved(rgb, 1, "input_channels")(gray), rgb(gray.expand(-1, 3, -1, -1)), atol=1e-6)


def test_one_channel_to_three_sees_their_mean():
    source = nn.Conv2d(1, 8, 3)
    image = torch.rand(2, 3, 9, 9)
    target = moved(source, 3, "input_channels")
    assert torch.allclose(target(image), source(image.mean(dim=1, keepdim=True)), atol=1e-6)


def test_further_channels_start_unseen(rgb):
    image = torch.rand(2, 5, 9, 9)
    assert torch.equal(moved(rgb, 5, "input_channels").weight[:, :3], rgb.weight)
    assert torch.allclose(moved(rgb, 5, "input_channels")(image), rgb(image[:, :3]), atol=1e-6)


def test_fewer_channels_keep_the_response_to_gray(rgb):
    gray = torch.full((1, 2, 9, 9), 0.7)
    weight = moved(rgb, 2, "input_channels").weight
    assert torch.allclose(weight, rgb.weight[:, :2] * 1.5)
    assert weight.shape == (8, 2, 3, 3) and torch.isfinite(moved(rgb, 2, "input_channels")(gray)).all()


def test_bgr_is_the_reversed_kernel_bit_for_bit(rgb):
    target = moved(rgb, 3, InputChannels(order=(2, 1, 0)))
    assert torch.equal(target.weight, rgb.weight.flip(1))
    assert torch.equal(target.bias, rgb.bias)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.booleans(), st.sampled_from([1, 3, 4]))
def test_raw_pixels_go_in_where_normalized_ones_did(seed, bias, channels):
    generator = torch.Generator().manual_seed(seed)
    source = nn.Conv2d(3, 4, 3, bias=bias)
    raw = torch.rand(1, channels, 7, 7, generator=generator) * 255
    handler = InputChannels(source_mean=[255 * m for m in MEAN], source_std=[255 * s for s in STD])
    target = moved(source, channels, handler)
    seen = raw[:, :3] if channels > 1 else raw.expand(-1, 3, -1, -1)
    expected = source((seen / 255 - column(MEAN)) / column(STD))
    assert torch.allclose(target(raw), expected, atol=1e-4)


def test_from_one_normalization_to_another(rgb):
    raw = torch.rand(1, 3, 7, 7)
    handler = InputChannels(
        source_mean=MEAN, source_std=STD, target_mean=(0.5, 0.4, 0.3), target_std=(0.5, 0.6, 0.7)
    )
    given_now = (raw - column((0.5, 0.4, 0.3))) / column((0.5, 0.6, 0.7))
    expected = rgb((raw - column(MEAN)) / column(STD))
    assert torch.allclose(moved(rgb, 3, handler)(given_now), expected, atol=1e-5)


def test_any_mixing(rgb):
    mixing = [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    image = torch.rand(1, 2, 9, 9)
    mixed = torch.einsum("ci,bihw->bchw", torch.tensor(mixing), image)
    assert torch.allclose(moved(rgb, 2, InputChannels(mixing=mixing))(image), rgb(mixed), atol=1e-6)


def test_a_shift_without_a_bias_is_refused(rgb):
    with pytest.raises(HandlerError, match="needs a bias"):
        moved(rgb, 3, InputChannels(source_mean=MEAN), bias=False)


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (InputChannels(order=(0, 1)), "order must be 3 channels of 0 to 2"),
        (InputChannels(mixing=[[1.0]]), "mixing must be 3 rows of 3"),
        (InputChannels(source_mean=(0.5,)), "mean and std must be of 3 channels"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_the_layer(rgb, handler, says):
    with pytest.raises(HandlerError, match=says):
        moved(rgb, 3, handler)


def test_other_layers_are_left_alone(rgb):
    with pytest.raises(TransferError, match="mismatched"):
        WeightTransfer(rgb, on_mismatch="error").apply(nn.Conv2d(1, 8, 3))
    with pytest.raises(TransferError, match="had nothing to convert"):
        WeightTransfer(nn.Linear(3, 8), handlers="input_channels").apply(nn.Linear(3, 8))
    with pytest.raises(TransferError, match="mismatched"):
        WeightTransfer(nn.ConvTranspose2d(3, 8, 3), handlers="input_channels").apply(
            nn.ConvTranspose2d(3, 4, 3)
        )


def grouped(groups: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    torch.manual_seed(groups)
    return nn.Conv2d(8, 8, 3, groups=groups), nn.Conv2d(8, 8, 3)


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_a_live_convolution_in_groups_computes_the_same_without_them(groups):
    source, target = grouped(groups)
    image = torch.rand(2, 8, 5, 5)
    WeightTransfer(source, handlers=["input_channels"]).apply(target)
    assert torch.allclose(target(image), source(image), atol=1e-5)


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_a_file_does_not_tell_groups_and_either_answer_is_right(groups):
    source, target = grouped(groups)
    image = torch.rand(2, 8, 5, 5)
    for how in ({"handlers": ["input_channels"]}, {"on_mismatch": "adapt"}, {}):
        with pytest.raises(TransferError, match=rf"InputChannels\(groups={groups}\)"):
            WeightTransfer(source.state_dict(), **how).apply(target)
    WeightTransfer(source.state_dict(), handlers=[InputChannels(groups=groups)]).apply(target)
    assert torch.allclose(target(image), source(image), atol=1e-5)
    WeightTransfer(source.state_dict(), handlers=[InputChannels(groups=1)]).apply(target)
    few = nn.Conv2d(8 // groups, 8, 3)
    few.load_state_dict(source.state_dict())
    seen = image[:, : few.in_channels] if groups < 8 else image.mean(dim=1, keepdim=True)
    assert torch.allclose(target(image), few(seen), atol=1e-5)


def test_what_is_said_of_the_channels_says_that_there_are_no_groups():
    rgb, six = nn.Conv2d(3, 4, 3), nn.Conv2d(6, 4, 3)
    image = torch.rand(1, 6, 5, 5)
    WeightTransfer(rgb.state_dict(), handlers=[InputChannels(order=(3, 4, 5))]).apply(six)
    assert torch.allclose(six(image), rgb(image[:, 3:]), atol=1e-6)


def test_other_kinds_of_convolutions_are_left_alone():
    pairs = [
        (nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=2)),
        (nn.ConvTranspose2d(8, 4, 3), nn.Conv2d(6, 8, 3)),
    ]
    for source, target in pairs:
        for offered in (source, source.state_dict()):
            with pytest.raises(TransferError, match="mismatched"):
                WeightTransfer(offered, handlers=["input_channels"]).apply(target)
