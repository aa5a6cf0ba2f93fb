"""Kernels, position embeddings and slices of another size; casts; all of it on shapes alone as on values."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from transferkit.errors import HandlerError, TransferError
from transferkit.layers import Layer
from transferkit.transfer import WeightTransfer
from transferkit.transfer.handlers import InflateKernel, PositionEmbeddings, ResizeKernel


class Tokens(nn.Module):
    def __init__(self, tokens: int, width: int = 6, flat: bool = False) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(*([] if flat else [1]), tokens, width))


def apply(source: nn.Module, target: nn.Module, *handlers):
    return WeightTransfer(source, handlers=list(handlers)).apply(target)


def test_a_grown_kernel_responds_to_the_grown_patch_as_before():
    source, target = nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(3, 4, 7, stride=7)
    apply(source, target, "resize_kernel")
    patch = torch.rand(2, 3, 4, 4)
    grown = functional.interpolate(patch, size=7, mode="bilinear", align_corners=False)
    assert torch.allclose(target(grown), source(patch), atol=1e-5)


def test_a_shrunk_kernel_responds_to_smooth_patches_as_before():
    source, target = nn.Conv2d(1, 4, 7), nn.Conv2d(1, 4, 5)
    nn.init.constant_(source.weight, 0.1)
    apply(source, target, "resize_kernel")
    assert torch.allclose(target(torch.ones(1, 1, 5, 5)), source(torch.ones(1, 1, 7, 7)), rtol=1e-2)


def test_a_padded_kernel_computes_the_same():
    source, target = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, (5, 7), padding=(2, 3))
    apply(source, target, ResizeKernel(method="pad"))
    image = torch.rand(1, 3, 9, 9)
    assert torch.allclose(target(image), source(image), atol=1e-5)


@pytest.mark.parametrize("center", [False, True])
def test_an_inflated_kernel_sees_a_still_video_as_its_image(center):
    source, target = nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, (5, 3, 3))
    apply(source, target, InflateKernel(center=center))
    image = torch.rand(1, 3, 9, 9)
    video = image[:, :, None].expand(-1, -1, 5, -1, -1)
    assert torch.allclose(target(video)[:, :, 0], source(image), atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("flat", [False, True])
def test_position_embeddings_are_resized_like_an_image(prefix, flat):
    source, target = Tokens(4 * 4 + prefix, flat=flat), Tokens(7 * 7 + prefix, flat=flat)
    apply(source, target, "position_embeddings")
    old, new = (m.pos_embed.reshape(-1, 6) for m in (source, target))
    assert torch.equal(new[:prefix], old[:prefix])
    image = old[prefix:].T.reshape(1, 6, 4, 4)
    expected = functional.interpolate(image, size=7, mode="bicubic", antialias=True, align_corners=False)
    assert torch.allclose(new[prefix:], expected.reshape(6, 49).T, atol=1e-6)


def test_constant_position_embeddings_stay_constant():
    source, target = Tokens(17), Tokens(50)
    nn.init.constant_(source.pos_embed, 0.3)
    apply(source, target, "position_embeddings")
    assert torch.allclose(target.pos_embed, torch.tensor(0.3))


def test_grids_that_are_not_square_and_sequences():
    source, target = Tokens(1 + 12), Tokens(1 + 24)
    apply(source, target, PositionEmbeddings(source_grid=(3, 4), target_grid=(4, 6)))
    assert torch.equal(source.pos_embed[:, 0], target.pos_embed[:, 0])
    with pytest.raises(HandlerError, match="12 positions are no 5 x 5 grid"):
        apply(Tokens(13), Tokens(26), PositionEmbeddings(source_grid=(5, 5), prefix=1))
    ramp, longer = Tokens(7), Tokens(14)
    ramp.pos_embed.data[0] = torch.arange(7.0)[:, None]
    apply(ramp, longer, "position_embeddings")
    assert (longer.pos_embed[0, 1:, 0] >= longer.pos_embed[0, :-1, 0]).all()


def test_what_is_no_position_embedding_is_left_alone():
    class Table(nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(rows, 6))

    with pytest.raises(TransferError, match="had nothing to convert"):
        apply(Table(16), Table(16), "position_embeddings")
    with pytest.raises(TransferError, match="mismatched"):
        WeightTransfer(Table(16), on_mismatch="error").apply(Table(49))


def test_slices_of_a_chain_stay_consistent():
    wide = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6))
    narrow = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 6))
    report = apply(wide, narrow, "slices")
    assert torch.equal(narrow[0].weight, wide[0].weight[:3])
    assert torch.equal(narrow[1].weight, wide[1].weight[:, :3])
    assert report.copied == ("1.bias",)
    with pytest.raises(TransferError, match="mismatched"):
        apply(narrow, wide, "slices")


def test_integers_are_cast_when_asked():
    target = nn.Linear(2, 3)
    counts = {"weight": torch.arange(6).reshape(3, 2), "bias": torch.zeros(3)}
    report = WeightTransfer(counts, handlers=["cast"]).apply(target)
    assert report.cast == ("weight",) and report.copied == ("bias",)
    assert target.weight.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shapes_are_those_of_the_values(device):
    conv = Layer(0, "", "conv", {"weight": torch.rand(4, 3, 5, 5, device=device)})
    wanted = Layer(0, "", "conv", {"weight": torch.rand(4, 3, 8, 6, device=device)})
    made = ResizeKernel()(conv, wanted)
    assert made is not None and made["weight"].shape == (4, 3, 8, 6)
    assert made["weight"].device.type == device
