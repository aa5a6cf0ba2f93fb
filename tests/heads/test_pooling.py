"""Poolings agree with their formulas and with each other where they meet."""

from __future__ import annotations

import pytest
import torch

from transferkit.errors import ArgumentError
from transferkit.heads import GeM, PyramidPool, spatial_pooling

MAPS = torch.rand(2, 8, 7, 5, generator=torch.Generator().manual_seed(0))


def test_gem_is_its_formula_between_average_and_maximum() -> None:
    for p in (1.0, 3.0, 7.5):
        by_hand = MAPS.double().pow(p).mean(dim=(2, 3)).pow(1 / p).float()
        torch.testing.assert_close(GeM(p)(MAPS).detach(), by_hand)
    torch.testing.assert_close(GeM(1)(MAPS).detach(), spatial_pooling("average")(MAPS))
    torch.testing.assert_close(GeM(1e4)(MAPS).detach(), spatial_pooling("max")(MAPS), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gem_does_not_leave_the_range_of_half_precision(dtype: torch.dtype) -> None:
    large = (300 * MAPS).to(dtype)
    pooled = GeM(3)(large).detach()
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.float(), GeM(3)(large.float()).detach(), rtol=1e-2, atol=0)


def test_gem_learns_p_unless_told_not_to() -> None:
    pool = GeM()
    pool(MAPS).sum().backward()
    assert pool.p.grad is not None and pool.p.grad.isfinite() and pool.p.grad != 0
    assert not GeM(learn=False).p.requires_grad
    black = torch.zeros(1, 3, 4, 4, requires_grad=True)
    GeM()(black).sum().backward()
    assert black.grad is not None and black.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["average", "max"])
def test_a_pyramid_begins_with_plain_pooling_and_its_cells_cover_the_map(kind: str) -> None:
    pool = PyramidPool((1, 7), kind)
    square = torch.rand(2, 8, 7, 7)
    pooled = pool(square)
    assert pooled.shape == (2, pool.width(8)) == (2, 8 * 50)
    torch.testing.assert_close(pooled[:, :8], spatial_pooling(kind)(square))
    torch.testing.assert_close(pooled[:, 8:], square.flatten(1))


def test_none_keeps_every_position() -> None:
    assert torch.equal(spatial_pooling("none")(MAPS), MAPS.flatten(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: spatial_pooling("averge"),
            "pooling must be one of average, max, .*did you mean 'average'.*got 'averge'",
        ),
        (lambda: GeM(0), "p must be positive, got 0"),
        (lambda: PyramidPool(()), r"sides must be one or more numbers of at least 1, got \(\)"),
        (lambda: PyramidPool((1,), "median"), "kind must be 'average' or 'max', got 'median'"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()
