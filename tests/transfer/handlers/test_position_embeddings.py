"""Positions keep their meaning: a grid stays a grid, a line a line, tokens before them tokens, or it is asked."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from transferkit.errors import ArgumentError, HandlerError, TransferError
from transferkit.transfer import TransferReport, WeightTransfer
from transferkit.transfer.handlers import PositionEmbeddings

WIDTH = 6


class Tokens(nn.Module):
    """Position embeddings, alone or beside what else their module holds."""

    def __init__(self, tokens: int, *, flat: bool = False, **others: nn.Module) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(*([] if flat else [1]), tokens, WIDTH))
        for name, module in others.items():
            self.add_module(name, module)

    @property
    def rows(self) -> torch.Tensor:
        return self.pos_embed.detach().reshape(-1, WIDTH)


def patches() -> nn.Module:
    return nn.Conv2d(3, WIDTH, 2, stride=2)


def apply(source: nn.Module, target: nn.Module, handler="position_embeddings") -> TransferReport:
    return WeightTransfer(source, handlers=[handler]).apply(target)


def as_image(rows: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    image = rows.T.reshape(1, WIDTH, *old)
    resized = functional.interpolate(image, size=new, mode="bicubic", antialias=True, align_corners=False)
    return resized.reshape(WIDTH, -1).T


@pytest.mark.parametrize(
    ("old", "new", "prefix"), [(16 + 1, 49 + 1, 1), (50, 197, 1), (197, 577, 1), (198, 578, 2), (577, 197, 1)]
)
@pytest.mark.parametrize("flat", [False, True])
def test_grids_are_resized_like_images_and_tokens_before_them_copied(old, new, prefix, flat):
    source, target = Tokens(old, flat=flat), Tokens(new, flat=flat)
    apply(source, target)
    sides = [round((count - prefix) ** 0.5) for count in (old, new)]
    expected = as_image(source.rows[prefix:], *((side, side) for side in sides))
    assert torch.equal(target.rows[:prefix], source.rows[:prefix])
    assert torch.allclose(target.rows[prefix:], expected, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(1, 0), (0, 1), (1, 2), (2, 1), (0, 2), (2, 0)])
def test_each_side_has_its_own_tokens_and_the_grid_stays_as_it_is(old, new):
    source, target = Tokens(196 + old), Tokens(196 + new)
    before = target.rows.clone()
    apply(source, target)
    shared = min(old, new)
    assert torch.equal(target.rows[new:], source.rows[old:])
    assert torch.equal(target.rows[:shared], source.rows[:shared])
    assert torch.equal(target.rows[shared:new], before[shared:new])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (1024, 4096),
        (196, 576),
        (1026, 4098),
        (257, 1025),
        (512, 1024),
        (77, 154),
        (7, 14),
        (50, 100),
        (100, 400),
    ],
)
def test_what_may_be_a_line_or_a_grid_is_asked_and_either_answer_works(old, new):
    with pytest.raises(HandlerError, match="nothing tells which") as caught:
        apply(Tokens(old), Tokens(new))
    calls = re.findall(r"handlers=\[(PositionEmbeddings\(.*?\))\]", str(caught.value))
    assert calls[0] == "PositionEmbeddings(kind='sequence')"
    for call in calls:
        handler = eval(call, {"PositionEmbeddings": PositionEmbeddings})
        assert apply(Tokens(old), Tokens(new), handler).adapted == ("pos_embed",)


def test_beside_two_dimensional_convolutions_it_is_a_grid():
    source, target = Tokens(256, patch=patches()), Tokens(1024, patch=patches())
    apply(source, target)
    assert torch.allclose(target.rows, as_image(source.rows, (16, 16), (32, 32)), atol=1e-6)
    dropped = Tokens(576, patch=patches())
    apply(Tokens(197, patch=patches()), dropped)


@pytest.mark.parametrize("other", [nn.Embedding(9, WIDTH), nn.Conv1d(1, WIDTH, 3), nn.Conv3d(1, WIDTH, 3)])
def test_a_module_that_also_looks_at_something_else_tells_nothing(other):
    with pytest.raises(HandlerError, match="nothing tells which"):
        apply(Tokens(64, patch=patches(), other=other), Tokens(256, patch=patches(), other=other))


@pytest.mark.parametrize(("old", "new"), [(1024, 4096), (1024, 2048), (1024, 512), (77, 100)])
def test_positions_in_a_text_are_a_line(old, new):
    source, target = (nn.ModuleDict({"wpe": nn.Embedding(count, WIDTH)}) for count in (old, new))
    source["wpe"].weight.data[:] = torch.arange(float(old))[:, None]
    apply(source, target)
    middle = (torch.arange(new) + 0.5) * old / new - 0.5  # where each lies among the old ones
    expected = middle.clamp(0, old - 1)[:, None].expand(-1, WIDTH)
    assert torch.allclose(target["wpe"].weight, expected, atol=1e-3)


def test_tokens_before_a_line():
    source, target = Tokens(514), Tokens(1026)
    apply(source, target, PositionEmbeddings(kind="sequence", prefix=2))
    assert torch.equal(target.rows[:2], source.rows[:2])
    line = functional.interpolate(source.rows[2:].T[None], size=1024, mode="linear", align_corners=False)[0].T
    assert torch.allclose(target.rows[2:], line, atol=1e-6)


def test_grids_that_are_not_square():
    source, target = Tokens(1 + 12), Tokens(1 + 24)
    apply(source, target, PositionEmbeddings(source_grid=(3, 4), target_grid=(4, 6)))
    assert torch.equal(source.rows[0], target.rows[0])
    assert torch.allclose(target.rows[1:], as_image(source.rows[1:], (3, 4), (4, 6)), atol=1e-6)
    dropped = Tokens(24)
    apply(source, dropped, PositionEmbeddings(source_grid=(3, 4), target_grid=(4, 6)))
    assert torch.equal(dropped.rows, target.rows[1:])


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (PositionEmbeddings(source_grid=(5, 5), prefix=1), "12 positions are no 5 x 5 grid"),
        (PositionEmbeddings(kind="grid"), "13 positions are no square grid"),
        (PositionEmbeddings(kind="sequence", prefix=13), "13 positions are no 13 tokens and a line"),
    ],
    ids=str,
)
def test_numbers_that_contradict_what_is_told(handler, says):
    with pytest.raises(HandlerError, match=says):
        apply(Tokens(13), Tokens(26), handler)


def test_arguments_that_contradict_each_other():
    with pytest.raises(ArgumentError, match="kind must be 'grid' where a grid is given"):
        PositionEmbeddings(kind="sequence", source_grid=(2, 2))
    with pytest.raises(ArgumentError, match="kind must be 'grid' or 'sequence', got 'image'"):
        PositionEmbeddings(kind="image")


def test_constant_position_embeddings_stay_constant():
    source, target = Tokens(17), Tokens(50)
    nn.init.constant_(source.pos_embed, 0.3)
    apply(source, target)
    assert torch.allclose(target.pos_embed, torch.tensor(0.3))


def test_new_tokens_have_no_values_on_the_meta_device():
    with torch.device("meta"):
        target = Tokens(197)
    with pytest.raises(HandlerError, match="build the model on a real device"):
        WeightTransfer(Tokens(196), handlers=["position_embeddings"], device="cpu").apply(target)


def test_a_question_is_no_guess_for_another_handler():
    """Slices would take the leading 512 positions, whatever they are."""
    with pytest.raises(TransferError, match=r"mismatched(?s:.*)kind='sequence'"):
        WeightTransfer(Tokens(1024), on_mismatch="adapt").apply(Tokens(512))


def test_what_is_no_position_embedding_is_left_alone():
    class Table(nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(rows, WIDTH))

    with pytest.raises(TransferError, match="had nothing to convert"):
        apply(Table(16), Table(16))
    with pytest.raises(TransferError, match="mismatched"):
        WeightTransfer(Table(16), on_mismatch="error").apply(Table(49))
