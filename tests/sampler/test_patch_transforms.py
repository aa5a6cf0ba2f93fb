"""Changes to patches: what they do, and that they are drawn patch by patch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from transferkit.errors import ArgumentError
from transferkit.sampler import ColorJitter, PatchTransform, RandomFlip


def patches(dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, 5, 7), generator=torch.Generator().manual_seed(0)).to(dtype)


def test_flip() -> None:
    pixels, draws = patches(), torch.tensor([[1.0], [0.0], [1.0], [0.0], [0.0], [1.0]])
    flipped = RandomFlip().apply(pixels, draws)
    for row, drawn in enumerate(draws[:, 0]):
        assert torch.equal(flipped[row], pixels[row].flip(2) if drawn else pixels[row])
    many = RandomFlip(0.25).draw(4000, torch.Generator().manual_seed(0))
    assert 0.22 < many.mean() < 0.28


@pytest.mark.parametrize(
    ("column", "enhancer"), [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)]
)
def test_colors_as_pil_changes_them(
    column: int, enhancer: Callable[[Image.Image], ImageEnhance._Enhance]
) -> None:
    pixels = patches()
    draws = torch.ones(6, 3)
    draws[:, column] = torch.tensor([0.0, 0.5, 0.9, 1.0, 1.3, 2.0])
    changed = ColorJitter().apply(pixels, draws)
    for row in range(6):
        photo = Image.fromarray(pixels[row].permute(1, 2, 0).numpy())
        expected = enhancer(photo).enhance(float(draws[row, column]))
        difference = changed[row].permute(1, 2, 0).int() - torch.from_numpy(np.array(expected)).int()
        assert difference.abs().max() <= 2  # PIL rounds its grays


@pytest.mark.parametrize("transform", [RandomFlip(), ColorJitter()])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_a_batch_equals_singles_and_keeps_its_type(
    transform: PatchTransform, dtype: torch.dtype, device: torch.device
) -> None:
    pixels = patches(dtype).to(device)
    draws = transform.draw(6, torch.Generator().manual_seed(1))
    together = transform.apply(pixels, draws.to(device))
    assert together.dtype == dtype
    assert together.shape == pixels.shape
    alone = [transform.apply(pixels[i : i + 1], draws[i : i + 1].to(device)) for i in range(6)]
    torch.testing.assert_close(torch.cat(alone), together)


def test_draws_stay_in_their_range() -> None:
    draws = ColorJitter(0.1, 0.2, 0.3).draw(1000, torch.Generator().manual_seed(0))
    for column, width in enumerate((0.1, 0.2, 0.3)):
        assert 1 - width <= draws[:, column].min() < 1 - 0.9 * width
        assert 1 + 0.9 * width < draws[:, column].max() <= 1 + width


@pytest.mark.parametrize("make", [lambda: RandomFlip(2), lambda: ColorJitter(brightness=-1)])
def test_settings_are_checked(make: Callable[[], object]) -> None:
    with pytest.raises(ArgumentError, match="from 0 to 1"):
        make()
