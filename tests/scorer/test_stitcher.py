"""Means of overlapping maps against sums, kept in memory or in another's array, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from transferkit.errors import ArgumentError, StateError
from transferkit.scorer import Stitcher


def overlapping(seed=0):
    source = torch.Generator().manual_seed(seed)
    corners = torch.tensor([[0, 0], [3, 1], [-2, 4], [6, 5], [5, -1]])
    return torch.randn(5, 2, 4, 6, generator=source), torch.cat(
        [corners, corners + torch.tensor([6, 4])], dim=1
    )


def windows(kind, count):
    place = (np.arange(count) + 0.5) / count
    return {
        "flat": place * 0 + 1,
        "hann": np.sin(np.pi * place) ** 2,
        "gaussian": np.exp(-32 * (place - 0.5) ** 2),
    }[kind]


@pytest.mark.parametrize("kind", ["flat", "hann", "gaussian"])
def test_a_pixel_is_the_weighted_mean_over_its_patches(kind, tmp_path):
    maps, boxes = overlapping()
    total, weight = np.zeros((2, 9, 12)), np.zeros((9, 12))
    window = np.outer(windows(kind, 4), windows(kind, 6))
    assert window.min() > 0
    for values, (x0, y0, _, _) in zip(maps.double().numpy(), boxes.tolist(), strict=True):
        for y in range(4):
            for x in range(6):
                if 0 <= y + y0 < 9 and 0 <= x + x0 < 12:
                    total[:, y + y0, x + x0] += window[y, x] * values[:, y, x]
                    weight[y + y0, x + x0] += window[y, x]
    expected = np.where(weight > 0, total / np.where(weight > 0, weight, 1), -1)
    stitcher = Stitcher(2, (9, 12), kind)
    np.testing.assert_allclose(stitcher.add(maps, boxes).compute(-1), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(StateError, match=rf"{int((weight == 0).sum())} pixels lie in no patch: .*fill="):
        stitcher.compute()
    state = np.lib.format.open_memmap(tmp_path / "state.npy", "w+", np.float64, (3, 9, 12))
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.int16, (2, 9, 12))
    found = (
        Stitcher(2, (9, 12), kind, state=state)
        .add((maps * 1000).numpy(), boxes.numpy())
        .compute(-1000, out=out)
    )
    assert found is out
    np.testing.assert_allclose(out, expected * 1000, atol=0.501)


def test_infinity_is_kept_where_a_patch_has_it_and_nan_too():
    maps, boxes = (
        torch.tensor([1.0, -torch.inf, 2.0, torch.nan]).reshape(4, 1, 1, 1),
        torch.tensor([[0, 0, 1, 1]] * 4),
    )
    assert Stitcher(1, (1, 1)).add(maps[:3], boxes[:3]).compute().item() == -torch.inf
    assert Stitcher(1, (1, 1)).add(maps, boxes).compute().isnan().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, b: Stitcher(0, (9, 12)), "channels must be"),
        (lambda m, b: Stitcher(2, (9, 12), "tukey"), "window must be one of"),
        (lambda m, b: Stitcher(2, (9, 12), state=np.zeros((2, 9, 12))), r"state must be \(3, 9, 12\) float64"),
        (lambda m, b: Stitcher(3, (9, 12)).add(m, b), r"maps must be \(5, 3, h, w\)"),
        (lambda m, b: Stitcher(2, (9, 12)).add(m.bool(), b), "maps must be floats .* a channel for each class"),
        (
            lambda m, b: Stitcher(2, (9, 12)).add(m, b).add(m.double(), b),
            "maps must be torch.float32, got torch.float64",
        ),
        (lambda m, b: Stitcher(2, (9, 12)).add(m, b + 0.5), "whole pixels, 6 wide and 4 high .* at row 0"),
        (
            lambda m, b: Stitcher(2, (9, 12)).add(m, b * 2),
            "divide boxes and image_size by the network's stride",
        ),
        (
            lambda m, b: Stitcher(2, (9, 12)).add(m, b).compute(0, out=np.zeros((2, 9, 9))),
            "out must be of shape",
        ),
    ],
)
def test_what_cannot_be_stitched_is_named(call, message):
    with pytest.raises(ArgumentError, match=message):
        call(*overlapping())
