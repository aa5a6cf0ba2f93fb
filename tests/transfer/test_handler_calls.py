"""How handlers and mapping functions are called, and what is said when they go wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transferkit.errors import ArgumentError, HandlerError, TransferError
from transferkit.transfer import WeightTransfer, by_name
from transferkit.transfer.handlers import PositionEmbeddings


class Vision(nn.Module):
    def __init__(self, tokens: int, *, distilled: bool = False) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, 2))
        if distilled:
            self.dist = nn.Parameter(torch.zeros(1, 1, 2))


def transposed(source, target):
    weight = source.tensors["weight"].mT
    return {"weight": weight} if weight.shape == target.tensors["weight"].shape else None


# What fills a layer.


def test_a_handler_also_serves_a_layer_with_a_tensor_that_may_be_missing():
    source, target = Vision(16), Vision(64, distilled=True)
    handler = PositionEmbeddings(kind="grid")
    report = WeightTransfer(source, handlers=[handler], allow_missing="dist").apply(target)
    assert report.adapted == ("pos_embed",) and report.missing == ("dist",)
    with pytest.raises(TransferError, match="allow_missing='dist'"):
        WeightTransfer(source, handlers=[handler]).apply(Vision(64, distilled=True))


def test_what_fills_the_whole_layer_comes_before_what_leaves_a_tensor_out():
    source, target = nn.Linear(3, 2), nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    report = WeightTransfer(source, handlers=["parametrizations"], allow_missing="*").apply(target)
    assert not report.missing and torch.allclose(target.weight, source.weight)


# A handler's own mistakes.


def test_a_tensor_that_an_aimed_handler_left_out_is_said_to_be_left_out_by_it():
    for handler, what in ((transposed, "no bias"), (lambda source, target: {}, "no (weight|bias)")):
        with pytest.raises(TransferError, match=rf"handler .* returned {what} for 'fc'") as caught:
            WeightTransfer(
                {"fc.weight": torch.ones(3, 2), "fc.bias": torch.ones(2)}, handlers={"fc": handler}
            ).apply(nn.ModuleDict({"fc": nn.Linear(3, 2)}))
        assert "has no bias" not in str(caught.value)


def test_so_it_is_of_a_listed_handler_that_made_no_layer_fit():
    source = {"fc.weight": torch.ones(3, 2), "fc.bias": torch.ones(2)}
    with pytest.raises(TransferError, match="handler transposed returned no bias for 'fc'"):
        WeightTransfer(source, handlers=[transposed]).apply(nn.ModuleDict({"fc": nn.Linear(3, 2)}))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda weight: {"weight": weight.int()}, r"weight torch.int32 where the target has torch.float32"),
        (lambda weight: {"weight": weight[:1]}, r"weight \[1, 3\] where the target has \[2, 3\]"),
        (lambda weight: {"scale": weight * 1}, r"scale \[2, 3\] where the target has none"),
        (lambda weight: [weight], "a list; it must return tensors by name"),
        (lambda weight: {"weight": 3}, "3 for weight"),
        (
            lambda weight: {"weight": weight * 1} if weight.is_meta else {},
            "no weight, which it did of shapes alone",
        ),
        (lambda weight: {"weight": weight * 1} if weight.is_meta else None, "no weight, which it did"),
    ],
)
def test_what_a_handler_returns_is_checked(made, says):
    model = nn.Linear(3, 2, bias=False)
    old = model.weight.clone()
    handlers = {"": lambda source, target: made(source.tensors["weight"])}
    with pytest.raises(HandlerError, match=says):
        WeightTransfer(nn.Linear(3, 2, bias=False), handlers=handlers).apply(model)
    assert torch.equal(model.weight, old)


def test_a_mistake_in_a_handler_is_told_from_its_refusal():
    def broken(source, target):
        return {"weight": source.tensors["wieght"]}

    def refuses(source, target):
        raise HandlerError("give me more")

    with pytest.raises(HandlerError, match=r"handler broken from 'fc' to 'fc' raised KeyError: 'wieght'"):
        WeightTransfer({"fc.weight": torch.ones(3)}, handlers={"fc": broken}).plan(
            nn.ModuleDict({"fc": nn.Linear(1, 3)})
        )
    with pytest.raises(HandlerError, match=r"handler refuses from 'fc' to 'fc': give me more"):
        WeightTransfer({"fc.weight": torch.ones(3)}, handlers={"fc": refuses}).plan(
            nn.ModuleDict({"fc": nn.Linear(1, 3)})
        )


# In whatever mode the caller is.

CONVERSIONS = {
    "input_channels": (lambda: nn.Conv2d(3, 8, 3), lambda: nn.Conv2d(1, 8, 3)),
    "resize_kernel": (lambda: nn.Conv2d(3, 8, 16, 16), lambda: nn.Conv2d(3, 8, 14, 14)),
    "inflate_kernel": (lambda: nn.Conv2d(3, 8, 3), lambda: nn.Conv3d(3, 8, 3)),
    "position_embeddings": (lambda: Vision(50), lambda: Vision(197)),
    "parametrizations": (
        lambda: nn.Linear(5, 4),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)),
    ),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_handlers_compute_the_same_under_autocast_and_in_inference_mode(name):
    make_source, make_target = CONVERSIONS[name]
    source, plain, cast, frozen = make_source(), make_target(), make_target(), make_target()
    WeightTransfer(source, handlers=[name]).apply(plain)
    with torch.autocast("cpu", torch.bfloat16):
        WeightTransfer(source, handlers=[name]).apply(cast)
    with torch.inference_mode():
        WeightTransfer(source, handlers=[name]).apply(frozen)
    expected = plain.state_dict()
    for model in (cast, frozen):
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_what_a_handler_makes_in_inference_mode_is_an_ordinary_tensor():
    made = []

    def double(source, target):
        made.append(source.tensors["weight"] * 2)
        return {"weight": made[-1]}

    model = nn.Linear(3, 2, bias=False)
    with torch.inference_mode():
        source = {"weight": torch.ones(2, 3)}
        WeightTransfer(source, handlers={"": double}).apply(model)
    assert made and not any(tensor.is_inference() or tensor.requires_grad for tensor in made)


def test_a_handler_of_ones_own_may_multiply_under_autocast():
    def rotated(source, target):
        return {"weight": source.tensors["weight"] @ rotation.to(source.tensors["weight"].device)}

    rotation = torch.linalg.qr(torch.randn(64, 64)).Q
    source, model = nn.Linear(64, 8, bias=False), nn.Linear(64, 8, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        WeightTransfer(source, handlers={"": rotated}).apply(model)
    assert torch.equal(model.weight, source.weight.detach() @ rotation)


# A mapping function.


def test_a_mapping_function_is_asked_for_selected_layers_alone():
    asked = []

    def mapping(name: str) -> str:
        asked.append(name)
        return {"0": "stem"}[name]

    source = {f"stem.{key}": value for key, value in nn.Linear(2, 2).state_dict().items()}
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    report = WeightTransfer(source, select=by_name("0"), mapping=mapping).apply(model)
    assert asked == ["0"] and report.copied == ("0.weight", "0.bias")


def test_what_a_mapping_function_raises_is_said_with_the_layer():
    source = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match=r"mapping\('0'\) raised KeyError: '0'") as caught:
        WeightTransfer(source, mapping=lambda name: {}[name]).apply(nn.Sequential(nn.Linear(2, 2)))
    assert (
        isinstance(caught.value.__cause__, KeyError)
        and caught.value.__cause__.__traceback__.tb_next is not None
    )
