"""Mapping by structure: differently spelled networks come out computing the same, or the mapping stays open.

What must never happen is a mapping that is complete and wrong. The oracle is the function that the network computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.transfer.author_spellings import SPELLINGS
from tests.transfer.spellings import Chain, MobileNet, ResNet, Spelling, Transformer
from transferkit.errors import LayerNotFoundError, TransferError
from transferkit.layers import layers_of
from transferkit.transfer import ByStructure, WeightTransfer, by_name
from transferkit.transfer.structure import align

VGG = (8, 16, 32, 32, 64, 64, 64, 64)
BUILDERS: dict[str, Callable[[Spelling], nn.Module]] = {
    "alexnet": lambda names: Chain(names, (8, 24, 48, 32, 32), (0, 1, 4)),
    "vgg": lambda names: Chain(names, VGG, (0, 1, 3, 5, 7)),
    "vgg_bn": lambda names: Chain(names, VGG, (0, 1, 3, 5, 7)),
    "resnet18": lambda names: ResNet(names, bottleneck=False),
    "resnet50": lambda names: ResNet(names, bottleneck=True),
    "mobilenet": MobileNet,
    "efficientnet": lambda names: MobileNet(names, se=True),
    "vit": lambda names: Transformer(names, image=True),
    "bert": lambda names: Transformer(names, image=False),
    "gated": lambda names: Transformer(names, image=False),
}
PAIRS = [
    (source, target)
    for source in SPELLINGS
    for target in SPELLINGS
    if source != target and source.partition(",")[0] == target.partition(",")[0]
]
# Every pair of these must come out whole. What is left open elsewhere, names and order do not tell.
CLEAR = {
    ("alexnet", "torchvision", "caffe", "words"),
    ("vgg", "torchvision", "caffe"),
    ("vgg_bn", "torchvision", "stages"),
    ("resnet18", "torchvision", "functions"),
    ("resnet50", "torchvision", "letters"),
    ("mobilenet", "torchvision", "words"),
    ("efficientnet", "lukemelas", "timm"),
    ("vit", "timm", "layers"),
    ("bert", "huggingface", "short"),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a pair: moved whole, or left open; and whether the target computes what the source does."""

    whole: bool
    same: bool
    message: str = ""


def network(spelling: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = BUILDERS[spelling.partition(",")[0]](SPELLINGS[spelling])
    with torch.no_grad():
        for name, tensor in model.named_buffers():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "running" in name else tensor)
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.1)
    return model.eval()


def data(spelling: str) -> Tensor:
    if spelling.startswith(("bert", "gated")):
        return torch.arange(10).reshape(2, 5) % 30
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def outcome(source_name: str, target_name: str, mapping: object = "structure") -> Outcome:
    source, target = network(source_name, 1), network(target_name, 2)
    before = target(data(target_name))
    try:
        WeightTransfer(source.state_dict(), mapping=mapping).apply(target)
    except TransferError as error:
        assert torch.equal(target(data(target_name)), before)
        return Outcome(False, False, str(error))
    return Outcome(True, torch.allclose(target(data(target_name)), source(data(source_name)), atol=1e-5))


@pytest.mark.parametrize(
    ("source", "target"), PAIRS, ids=lambda name: name.replace(", ", "-").replace(" ", "_")
)
def test_right_or_open_but_never_wrong(source, target):
    found = outcome(source, target)
    assert found.same or not found.whole
    assert found.whole or "ambiguous" in found.message or "no layer of the source, in order" in found.message
    family, author = source.split(", ")
    if any({family, author, target.split(", ")[1]} <= set(clear) for clear in CLEAR):
        assert found.whole, found.message


@pytest.mark.parametrize(
    ("source", "target", "known"),
    [
        (
            "resnet50, torchvision",
            "resnet50, words",
            {
                "*.wide": "*.conv3",
                "*.other": "*.downsample.0",
                "*.wide_bn": "*.bn3",
                "*.narrow_bn": "*.bn1",
                "*.middle_bn": "*.bn2",
            },
        ),
        (
            "resnet50, torchvision",
            "resnet50, shortcut first",
            {"*.proj": "*.downsample.0", "*.proj_bn": "*.downsample.1"},
        ),
        ("bert, huggingface", "bert, key first", {"h.*.attn.key": "encoder.layer.*.attention.self.key"}),
        ("gated, llama", "gated, up first", {"*.mlp.up": "*.mlp.up_proj", "*.norm_attn": "*.input_layernorm"}),
    ],
)  # fmt: skip
def test_what_is_open_is_settled_by_what_is_known(source, target, known):
    assert not outcome(source, target).whole
    found = outcome(source, target, ByStructure(known))
    assert found.same, found.message


def test_ambiguity_is_shown_with_its_candidates_and_the_way_out():
    message = outcome("bert, huggingface", "bert, branches").message
    assert "h.{0-2}.left" in message
    assert (
        "ambiguous: 'encoder.layer.{0-2}.attention.self.query' or 'encoder.layer.{0-2}.attention.self.key'"
        in message
    )
    assert "ByStructure({'h.0.left': '...'})" in message


def test_three_of_five_alike_are_open_and_neighbors_place_them():
    source = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)), nn.Linear(4, 2))
    with pytest.raises(TransferError, match="ambiguous: '{0-2}' or '{1-3}' or '{2-4}'"):
        WeightTransfer(source, mapping="structure").apply(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))))
    report = WeightTransfer(source, mapping="structure", select=by_name("3", "4")).apply(
        nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)), nn.Linear(4, 9))
    )
    assert report.copied == ("3.weight", "3.bias", "4.weight", "4.bias")


def test_tensors_by_other_names():
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma, self.beta = nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(6))

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.class_token, self.places = nn.Parameter(torch.rand(1, 1, 6)), nn.Parameter(torch.rand(1, 5, 6))

    source = nn.ModuleDict({"a": Norm(), "b": Tokens()})
    target = nn.ModuleDict({"norm": nn.LayerNorm(6), "tokens": Tokens()})
    renamed = {
        key.replace("class_token", "cls").replace("places", "pos"): t for key, t in source.state_dict().items()
    }
    report = WeightTransfer(renamed, mapping="structure").apply(target)
    assert torch.equal(target["norm"].weight, source["a"].gamma)
    assert torch.equal(target["norm"].bias, source["a"].beta)
    assert torch.equal(target["tokens"].places, source["b"].places)
    assert {side.key for entry in report.entries for side in entry.sources} == set(renamed)
    assert report.unexpected == ()


def test_known_pairs_must_exist():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(LayerNotFoundError, match="no source layer 'fc' for '0'"):
        WeightTransfer(model.state_dict(), mapping=ByStructure({"0": "fc"})).apply(model)
    with pytest.raises(TransferError, match="match no layer of the target"):
        WeightTransfer(model.state_dict(), mapping=ByStructure({"fc": "0"})).apply(model)


def brute_force(targets: list[int], sources: list[int]) -> list[set[int | None]]:
    """All longest common subsequences, by trying every set of pairs in order."""
    best: dict[int, list[dict[int, int]]] = {}

    def extend(i: int, j: int, pairs: dict[int, int]) -> None:
        if i == len(targets):
            best.setdefault(len(pairs), []).append(pairs)
            return
        extend(i + 1, j, pairs)
        for k in range(j, len(sources)):
            if targets[i] == sources[k]:
                extend(i + 1, k + 1, pairs | {i: k})

    extend(0, 0, {})
    return [{pairs.get(i) for pairs in best[max(best)]} for i in range(len(targets))]


widths = st.lists(st.integers(1, 3), max_size=6)


@settings(deadline=None, max_examples=150)
@given(widths, widths)
def test_alignment_finds_every_longest_common_subsequence(targets, sources):
    layers = [layers_of(nn.Sequential(*(nn.Linear(n, n) for n in side))) for side in (targets, sources)]
    assert [set(found) for found in align(*layers).options] == brute_force(targets, sources)


WORDS = ["alpha", "beta", "gamma", "delta", "query", "key", "value", "conv", "norm"]


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_siblings_in_any_order_are_never_paired_wrongly(data):
    # One module with children that two authors define in their own order, under their own words.
    count = data.draw(st.integers(2, 4))
    words = data.draw(st.lists(st.sampled_from(WORDS), min_size=count, max_size=count, unique=True))
    order = data.draw(st.permutations(range(count)))
    source = nn.ModuleDict({words[place]: nn.Linear(3, 3) for place in range(count)})
    rename = data.draw(st.sampled_from([str.upper, lambda word: f"{word}_proj", lambda word: word[:4]]))
    target = nn.ModuleDict({rename(words[place]): nn.Linear(3, 3) for place in order})
    try:
        WeightTransfer(source.state_dict(), mapping="structure").apply(target)
    except TransferError:
        return
    for word in words:
        assert torch.equal(target[rename(word)].weight, source[word].weight)
