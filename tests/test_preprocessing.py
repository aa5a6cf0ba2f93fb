"""Preprocessing equals its formula, in every dtype and on every device."""

from __future__ import annotations

import pytest
import torch

from transferkit.errors import ArgumentError
from transferkit.preprocessing import IMAGENET, NEON_IMAGENET, Preprocessing


def test_it_is_its_formula(device: torch.device) -> None:
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8, device=device)
    mean = torch.tensor(IMAGENET.mean, device=device).view(3, 1, 1)
    std = torch.tensor(IMAGENET.std, device=device).view(3, 1, 1)
    torch.testing.assert_close(IMAGENET(pixels), (pixels / 255 - mean) / std)
    torch.testing.assert_close(IMAGENET(pixels[0]), IMAGENET(pixels)[0])


def test_neon_weights_get_bgr_minus_the_mean() -> None:
    pixels = torch.tensor([10.0, 20.0, 30.0]).view(1, 3, 1, 1)  # R, G, B
    assert NEON_IMAGENET(pixels).flatten().tolist() == pytest.approx(
        [30 - 102.9801, 20 - 115.9465, 10 - 122.7717]
    )


def test_it_survives_being_stored() -> None:
    assert Preprocessing.from_dict(NEON_IMAGENET.to_dict()) == NEON_IMAGENET


def test_bad_settings_are_named() -> None:
    with pytest.raises(ArgumentError, match="channel_order must be 'RGB' or 'BGR', got 'RBG'"):
        Preprocessing((0, 0, 0), (1, 1, 1), channel_order="RBG")
    with pytest.raises(ArgumentError, match=r"pixels must be \(..., 3, H, W\), .* got '\(1, 1, 4, 4\)"):
        IMAGENET(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ArgumentError, match=r"uint8 or floating in 0..255, got .* torch.int16"):
        IMAGENET(torch.zeros(1, 3, 4, 4, dtype=torch.int16))
