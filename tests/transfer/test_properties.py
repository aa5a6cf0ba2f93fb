"""What holds for every transfer, over random models, checkpoints, selections and mappings.

``TRANSFERKIT_EXAMPLES=1000 pytest tests/transfer/test_properties.py`` tries more of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transferkit.errors import TransferError
from transferkit.transfer import TransferReport, WeightTransfer
from transferkit.transfer._entry import BUCKETS, MOVED

EXAMPLES = int(os.environ.get("TRANSFERKIT_EXAMPLES", "40"))
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@dataclass(frozen=True)
class Case:
    """A target, a source, and how to transfer from one to the other."""

    target: nn.Module
    source: dict[str, Tensor]
    transfer: WeightTransfer
    selected: frozenset[str]


def layer(kind: str, width: int) -> nn.Module:
    return {
        "linear": lambda: nn.Linear(width, width),
        "unbiased": lambda: nn.Linear(width, width + 1, bias=False),
        "conv": lambda: nn.Conv2d(width, 2, 3),
        "norm": lambda: nn.BatchNorm2d(width),
        "plain_norm": lambda: nn.LayerNorm(width),
        "table": lambda: nn.Embedding(width, 2),
        "tower": lambda: nn.Sequential(nn.Linear(width, 2), nn.ReLU(), nn.Linear(2, width)),
        "tied": lambda: tied(nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))),
    }[kind]()


def tied(pair: nn.Sequential) -> nn.Sequential:
    pair[1].weight = pair[0].weight
    return pair


KINDS = st.sampled_from(["linear", "unbiased", "conv", "norm", "plain_norm", "table", "tower", "tied"])
LAYERS = st.lists(
    st.tuples(st.sampled_from("abcdef"), KINDS, st.integers(1, 3)),
    min_size=1,
    max_size=4,
    unique_by=lambda t: t[0],
)


def network(specification, seed: int) -> nn.ModuleDict:
    torch.manual_seed(seed)
    model = nn.ModuleDict({name: layer(kind, width) for name, kind, width in specification})
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return model


@st.composite
def cases(draw) -> Case:
    specification = draw(LAYERS)
    target = network(specification, 1)
    # The source is another model of mostly the same layers, without some, with others, in its own dtypes and order.
    kept = [spec for spec in specification if draw(st.integers(0, 9)) < 8]
    wider = [(name, kind, width + draw(st.sampled_from([0, 0, 0, 1]))) for name, kind, width in kept]
    other = wider + [(f"{name}x", kind, width) for name, kind, width in draw(LAYERS)]
    source = dict(network(other, 2).to(draw(st.sampled_from(DTYPES))).state_dict())
    names = [name for name, module in target.named_modules() if list(module.parameters(recurse=False))]
    chosen = frozenset(draw(st.sets(st.sampled_from(names), min_size=1)))
    allowed = draw(st.sampled_from([None, "*"]))
    known = {
        draw(st.sampled_from(names)): draw(st.sampled_from(sorted({key.rpartition(".")[0] for key in source})))
    }
    mapping = draw(st.sampled_from(["name", "name", "order", "structure", known]))
    adapt = draw(st.booleans())
    transfer = WeightTransfer(
        source,
        select=lambda index, layer: layer.name in chosen,
        mapping=mapping,
        allow_missing=allowed,
        on_mismatch="adapt" if adapt else "error",
    )
    return Case(target, source, transfer, chosen)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def applied(case: Case) -> TransferReport | None:
    """Apply; a refusal must leave the model as it was."""
    old = snapshot(case.target)
    try:
        return case.transfer.apply(case.target)
    except TransferError:
        assert same(snapshot(case.target), old)
        return None


@settings(deadline=None, max_examples=EXAMPLES)
@given(cases())
def test_buckets_partition_both_sides(case):
    plan = _plan(case)
    if plan is None:
        return
    targets = [entry.target.key for entry in plan.entries if entry.target is not None]
    assert sorted(targets) == sorted(case.target.state_dict())
    sources = [side.key for entry in plan.entries for side in entry.sources]
    assert set(sources) == set(case.source)
    if not isinstance(case.transfer.mapping, dict):  # rules may give one source to several targets
        assert len(sources) == len(set(sources))
    assert sum(len(plan.bucket(bucket)) for bucket in BUCKETS) == len(plan.entries)


def _plan(case: Case):
    try:
        return case.transfer.plan(case.target)
    except TransferError:
        return None


@settings(deadline=None, max_examples=EXAMPLES)
@given(cases())
def test_moved_tensors_are_the_sources_and_all_others_are_as_they_were(case):
    old = snapshot(case.target)
    report = applied(case)
    if report is None:
        return
    new = snapshot(case.target)
    for entry in report.entries:
        if entry.target is None:
            continue
        key = entry.target.key
        assert key.rpartition(".")[0] in case.selected or entry.bucket in ("skipped", "tied")
        if entry.bucket in ("copied", "cast"):
            assert torch.equal(new[key], case.source[entry.sources[0].key].to(new[key].dtype))
        elif entry.bucket == "tied":
            assert torch.equal(new[key], new[entry.tied_to])
        elif entry.bucket != "adapted":
            assert torch.equal(new[key], old[key])
    assert any(entry.bucket in MOVED for entry in report.entries)
    assert not report.mismatched


@settings(deadline=None, max_examples=EXAMPLES)
@given(cases())
def test_twice_is_once_and_the_plan_is_the_report(case):
    plan = _plan(case)
    first = applied(case)
    if first is None:
        # A plan reads no values, so it cannot know that tied tensors would be given different ones.
        assert (
            plan is None
            or plan.problems
            or any(entry.tied_to for entry in plan.entries)
            or not any(entry.bucket in MOVED for entry in plan.entries)
        )
        return
    assert plan is not None and plan.entries == first.entries
    once = snapshot(case.target)
    second = applied(case)
    assert second == first
    assert same(snapshot(case.target), once)


@settings(deadline=None, max_examples=EXAMPLES)
@given(cases())
def test_ties_and_identities_stay(case):
    parameters = dict(case.target.named_parameters(remove_duplicate=False))
    memory = {key: tensor.data_ptr() for key, tensor in parameters.items()}
    applied(case)
    after = dict(case.target.named_parameters(remove_duplicate=False))
    assert all(after[key] is tensor for key, tensor in parameters.items())
    assert {key: tensor.data_ptr() for key, tensor in after.items()} == memory


@settings(deadline=None, max_examples=EXAMPLES)
@given(cases())
def test_the_source_is_never_written_to(case):
    old = {key: tensor.clone() for key, tensor in case.source.items()}
    applied(case)
    assert same(old, case.source)
