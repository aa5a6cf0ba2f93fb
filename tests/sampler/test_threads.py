"""Pieces on threads: all of them done, the same patches, errors raised, and torch's own number of threads kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader

from transferkit.sampler import PatchGrid, crop_and_resize
from transferkit.sampler.crop import in_threads


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 60, 90), generator=source, dtype=torch.uint8), PatchGrid()((60, 90))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_patches_are_the_same_bit_for_bit(threads: int, dtype: torch.dtype) -> None:
    image, boxes = scene()
    found = crop_and_resize(image, boxes, 24, dtype=dtype)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert torch.equal(found, crop_and_resize(image, boxes, 24, dtype=dtype))


def test_every_piece_once_and_each_on_one_core(threads: int) -> None:
    done: list[tuple[int, int]] = []
    in_threads(lambda piece: done.append((piece, torch.get_num_threads())), range(200))
    assert sorted(done) == [(piece, 1) for piece in range(200)]


def test_an_error_is_raised_here(threads: int) -> None:
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda piece: print(1 // piece), [0])


def test_under_inference_mode(threads: int) -> None:
    image, boxes = scene()
    with torch.inference_mode():
        inside = crop_and_resize(image.clone(), boxes, 8, dtype=torch.bfloat16)
    assert torch.equal(inside, crop_and_resize(image, boxes, 8, dtype=torch.bfloat16))


class Cut:
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        torch.set_num_threads(2)
        return crop_and_resize(*scene(), 8)


def test_in_forked_workers_too(threads: int) -> None:
    here = crop_and_resize(*scene(), 8)
    loader = DataLoader(Cut(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60)
    assert all(torch.equal(there, here) for there in loader)
