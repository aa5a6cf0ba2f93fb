"""Layers that are several joined, or parts of one: told in a mapping, or found where names spell the order."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

from transferkit.checkpoints import Checkpoint
from transferkit.errors import TransferError, TransferKitError
from transferkit.transfer import ByStructure, Part, WeightTransfer

NAMES = ("query", "key", "value")


def _net(**modules: nn.Module) -> nn.Module:
    net = nn.Module()
    for name, module in modules.items():
        net.add_module(name, module)
    return net


def _apart(*names: str, bias: bool = True) -> nn.Module:
    return _net(**{name: nn.Linear(8, 8, bias=bias) for name in names or NAMES}, proj=nn.Linear(8, 8))


def _whole(name: str = "qkv") -> nn.Module:
    return _net(**{name: nn.Linear(8, 24)}, proj=nn.Linear(8, 8))


def _rows(net: nn.Module, short: str = "weight", names: tuple[str, ...] = NAMES) -> torch.Tensor:
    return torch.cat([getattr(getattr(net, name), short) for name in names])


def _once_each(report) -> bool:
    """Return whether every source tensor has a place in the account, and none stands there as unused beside it."""
    used = [side.key for entry in report.entries if entry.target for side in entry.sources]
    alone = [entry.key for entry in report.entries if entry.target is None]
    return len(alone) == len(set(alone)) and not {*alone} & {*used}


def test_several_layers_are_joined_in_the_order_that_is_given():
    source, target = _apart(), _whole()
    report = WeightTransfer(source, mapping={"qkv": ("key", "value", "query")}).apply(target)
    assert torch.equal(target.qkv.weight, _rows(source, names=("key", "value", "query")))
    assert torch.equal(target.qkv.bias, _rows(source, "bias", ("key", "value", "query")))
    assert [side.key for side in report.entries[0].sources] == ["key.weight", "value.weight", "query.weight"]
    assert report.adapted == ("qkv.weight", "qkv.bias")
    assert _once_each(report)


def test_parts_of_a_layer_serve_several_and_are_accounted_for_once():
    source, target = _whole(), _apart()
    parts = {name: Part("qkv", place, of=3) for place, name in enumerate(NAMES)}
    report = WeightTransfer(source, mapping=parts).apply(target)
    assert torch.equal(_rows(target), source.qkv.weight)
    assert report.unexpected == ()
    assert _once_each(report)


def test_a_part_may_be_asked_for_alone_and_by_a_glob():
    source, target = (
        nn.ModuleList([_whole(), _whole()]),
        nn.ModuleList([_net(q=nn.Linear(8, 8)) for _ in range(2)]),
    )
    WeightTransfer(source, mapping={"*.q": Part("*.qkv", 2, of=3)}).apply(target)
    assert torch.equal(target[1].q.weight, source[1].qkv.weight[16:])


def test_what_is_given_holds_in_a_mapping_by_structure_and_by_a_function():
    source, target = _apart("left", "right", "far"), _whole("all")
    order = ("left", "right", "far")
    for mapping in (ByStructure({"all": order}), lambda name: order if name == "all" else name):
        nn.init.zeros_(target.all.weight)
        WeightTransfer(source, mapping=mapping).apply(target)
        assert torch.equal(target.all.weight, _rows(source, names=order))


@pytest.mark.parametrize("by", [dict, ByStructure, lambda rules: lambda name: rules.get(name, name)])
def test_the_order_that_is_given_counts_also_where_names_spell_another(by):
    source, target, order = _apart(), _whole(), ("value", "query", "key")
    WeightTransfer(source, mapping=by({"qkv": order}), on_mismatch="adapt").apply(target)
    assert torch.equal(target.qkv.weight, _rows(source, names=order))
    back = _apart()
    parts = {name: Part("qkv", place, of=3) for place, name in enumerate(order)}
    WeightTransfer(target, mapping=by(parts), on_mismatch="adapt").apply(back)
    assert torch.equal(back.key.weight, source.key.weight)


def test_attention_across_two_widths_is_left_apart():
    uneven = _net(query=nn.Linear(8, 8), key=nn.Linear(4, 8), value=nn.Linear(4, 8))
    source, target = _net(cross=uneven, self=_apart()), _net(self=_whole(), cross=copy.deepcopy(uneven))
    WeightTransfer(source, on_mismatch="adapt").apply(target)
    assert torch.equal(target.cross.key.weight, uneven.key.weight)


@pytest.mark.parametrize("mapping", ["name", "structure"])
@pytest.mark.parametrize(
    "names", [NAMES, ("k_proj", "v_proj", "q_proj"), ("wq", "wk", "wv"), ("to_v", "to_q", "to_k")]
)
def test_names_that_spell_the_order_are_enough_both_ways(mapping, names):
    source, target, back = _apart(*names), _whole(), _apart(*names)
    ordered = tuple(sorted(names, key=lambda name: "qkv".index(re.search("[qkv]", name)[0])))
    WeightTransfer(source, mapping=mapping, on_mismatch="adapt").apply(target)
    assert torch.equal(target.qkv.weight, _rows(source, names=ordered))
    WeightTransfer(target, mapping=mapping, on_mismatch="adapt").apply(back)
    assert all(torch.equal(one, two) for one, two in zip(source.parameters(), back.parameters(), strict=True))


def test_nothing_is_joined_unasked_and_what_would_is_named():
    with pytest.raises(TransferError, match=r"handlers=\['fused'\]"):
        WeightTransfer(_apart()).apply(_whole())


@pytest.mark.parametrize("mapping", ["name", "structure"])
def test_no_order_is_guessed_and_the_parts_are_named(mapping):
    target = _whole("all")
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(TransferError, match="'left', 'right', 'far'"):
        WeightTransfer(_apart("left", "right", "far"), mapping=mapping, on_mismatch="adapt").apply(target)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_parts_that_cannot_be_joined_or_cut_are_refused():
    uneven = _net(query=nn.Linear(8, 8), key=nn.Linear(4, 8), value=nn.Linear(8, 8))
    with pytest.raises(TransferError, match=r"key.weight \[8, 4\]"):
        WeightTransfer(uneven, mapping={"qkv": NAMES}).apply(_net(qkv=nn.Linear(8, 24)))
    with pytest.raises(TransferError, match="no 5 equal parts"):
        WeightTransfer(_whole(), mapping={"query": Part("qkv", 0, of=5)}).apply(_apart())
    with pytest.raises(TransferKitError, match="place"):
        Part("qkv", 3, of=3)


def test_a_bias_that_one_part_has_not_is_zero():
    source, target = _apart(), _whole()
    source.key.bias = None
    WeightTransfer(source, on_mismatch="adapt").apply(target)
    assert torch.equal(target.qkv.bias, torch.cat([source.query.bias, torch.zeros(8), source.value.bias]))


def test_multihead_attention_takes_and_gives_its_projections():
    source, target = _net(attn=_apart("q_proj", "k_proj", "v_proj")), _net(attn=nn.MultiheadAttention(8, 2))
    WeightTransfer(source, mapping="structure", on_mismatch="adapt").apply(target)
    assert torch.equal(target.attn.in_proj_weight, _rows(source.attn, names=("q_proj", "k_proj", "v_proj")))
    assert torch.equal(target.attn.out_proj.weight, source.attn.proj.weight)
    timm = _net(attn=_whole())
    WeightTransfer(target, mapping="structure", on_mismatch="adapt").apply(timm)
    assert torch.equal(timm.attn.qkv.bias, target.attn.in_proj_bias)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_optimizer_states_follow_where_the_parts_agree(kind):
    options = {"lr": 0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {})}
    source, target = _apart(), _whole()
    optimizer, other = kind(source.parameters(), **options), kind(target.parameters(), **options)
    sum((p**2).sum() for p in source.parameters()).backward()
    optimizer.step()
    moved = Checkpoint.from_model(source, optimizer)
    WeightTransfer(moved, on_mismatch="adapt", load_states=True).apply(target, other)
    name = "momentum_buffer" if kind is torch.optim.SGD else "exp_avg_sq"
    wanted = torch.cat([optimizer.state[getattr(source, each).weight][name] for each in NAMES])
    assert torch.equal(other.state[target.qkv.weight][name], wanted)
    if kind is torch.optim.AdamW:
        optimizer.state[source.key.weight]["step"] += 1
        report = WeightTransfer(
            Checkpoint.from_model(source, optimizer), on_mismatch="adapt", load_states=True
        ).apply(target, other)
        assert [line.key for line in report.states if line.outcome == "reset"] == ["qkv.weight"]


class Conv1D(nn.Module):  # as transformers has it
    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))


def _gpt2() -> nn.Module:
    return _net(c_attn=Conv1D(24, 8), c_proj=Conv1D(8, 8))


@pytest.mark.parametrize("from_file", [False, True])
def test_a_square_weight_of_gpt2_is_never_copied_untransposed(from_file):
    source, target = _gpt2(), _net(c_attn=nn.Linear(8, 24), c_proj=nn.Linear(8, 8))
    given = source.state_dict() if from_file else source
    with pytest.raises(TransferError, match=r"(?s)c_proj.*\(in, out\).*handlers=\['fused'\]"):
        WeightTransfer(given).apply(target)
    WeightTransfer(given, on_mismatch="adapt").apply(target)
    assert torch.equal(target.c_proj.weight, source.c_proj.weight.T)
    back = _gpt2()
    WeightTransfer(target, on_mismatch="adapt").apply(back)
    assert torch.equal(back.c_attn.weight, source.c_attn.weight)


def test_gpt2_comes_apart_and_its_own_file_is_its_own():
    source, target = _gpt2(), _apart()
    parts = {name: Part("c_attn", place, of=3) for place, name in enumerate(NAMES)}
    WeightTransfer(source, mapping={**parts, "proj": "c_proj"}, on_mismatch="adapt").apply(target)
    assert torch.equal(target.key.weight, source.c_attn.weight[:, 8:16].T)
    assert torch.equal(target.proj.weight, source.c_proj.weight.T)
    again = _gpt2()
    assert not WeightTransfer(source.state_dict()).apply(again).adapted
    linear = _net(c_attn=nn.Linear(8, 24), c_proj=nn.Linear(8, 8))  # nanoGPT's names, on torch's layers
    assert (
        not WeightTransfer(linear.state_dict())
        .apply(_net(c_attn=nn.Linear(8, 24), c_proj=nn.Linear(8, 8)))
        .adapted
    )


class _Root(nn.Module):
    def __init__(self, *, positions: int = 5) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.randn(1, positions, 8))
        self.norm = nn.LayerNorm(8)


class _Child(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.class_embedding = nn.Parameter(torch.randn(8))
        self.embeddings.position_embedding = nn.Embedding(5, 8)
        self.norm = nn.LayerNorm(8)


@pytest.mark.parametrize("mapping", ["name", "structure", {"norm": "norm"}])
def test_tokens_move_between_root_and_child(mapping):
    source, target, back = _Root(), _Child(), _Root()
    report = WeightTransfer(source, mapping=mapping, on_mismatch="adapt").apply(target)
    assert torch.equal(target.embeddings.class_embedding, source.cls_token[0, 0])
    assert torch.equal(target.embeddings.position_embedding.weight, source.pos_embed[0])
    assert not report.unexpected
    assert not WeightTransfer(target, mapping=mapping, on_mismatch="adapt").apply(back).unexpected
    assert torch.equal(back.pos_embed, source.pos_embed)
    with pytest.raises(TransferError):
        WeightTransfer(source, mapping=mapping).apply(target)


def test_ones_in_a_shape_are_neither_here_nor_there():
    scale, other = nn.Module(), nn.Module()
    scale.gamma, other.layer_scale = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8, 1, 1))
    source, target = _net(fc=nn.Linear(3, 4), s=scale), _net(fc=nn.Conv2d(3, 4, 1), s=other)
    WeightTransfer(source, on_mismatch="adapt").apply(target)
    assert torch.equal(target.fc.weight[:, :, 0, 0], source.fc.weight)
    assert torch.equal(target.s.layer_scale.flatten(), source.s.gamma)
    turned = WeightTransfer(nn.Linear(1, 4), on_mismatch="adapt")
    with pytest.raises(TransferError):
        turned.apply(nn.Linear(4, 1))


def test_positions_that_count_the_class_token_on_one_side_alone_are_refused():
    for source, target in ((_Root(), _Root(positions=4)), (_Root(positions=4), _Child())):
        with pytest.raises(TransferKitError, match="counts its tokens among the positions"):
            WeightTransfer(source, on_mismatch="adapt").apply(target)
