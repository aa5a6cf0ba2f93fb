"""Rules select what they say, combine like sets, and never match nothing in silence."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transferkit.errors import ArgumentError, SelectionError
from transferkit.layers import Layer, layers_of
from transferkit.transfer import after, before, by_index, by_kind, by_name, every
from transferkit.transfer.select import as_rule, select_layers


def net() -> nn.Module:
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    return nn.ModuleDict({"features": features, "classifier": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))})


LAYERS = layers_of(net())
NAMES = [layer.name for layer in LAYERS]


def chosen(predicate) -> list[str]:
    return [NAMES[index] for index in select_layers(predicate, LAYERS).indices]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (every(), NAMES),
        (by_index(0, -1), [NAMES[0], NAMES[4]]),
        (by_index(range(1, 3)), NAMES[1:3]),
        (by_index(slice(-2, None)), NAMES[-2:]),
        (by_name("features.*"), NAMES[:3]),
        (by_name("*.0", re.compile(r".*\.1")), [NAMES[0], NAMES[3], NAMES[4]]),
        (by_kind("conv"), [NAMES[0], NAMES[2]]),
        (by_kind(nn.BatchNorm2d, "linear"), [NAMES[1], *NAMES[3:]]),
        (before("classifier"), NAMES[:3]),
        (before("features.3"), NAMES[:2]),
        (before(-1), NAMES[:4]),
        (after("features"), NAMES[3:]),
        (after(0), NAMES[1:]),
        pytest.param(lambda index, layer: index % 2 == 0, NAMES[::2], id="a function"),
        (by_kind("conv") & before("features.3"), NAMES[:1]),
        (~by_name("features.*"), NAMES[3:]),
        (by_kind("norm") | (lambda index, layer: layer.name.startswith("classifier")), [NAMES[1], *NAMES[3:]]),
        ((lambda index, layer: index > 1) & by_kind("conv"), NAMES[2:3]),
    ],
    ids=str,
)
def test_selects(rule, expected):
    assert chosen(rule) == expected


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (
            by_name("clasifier.1"),
            "by_name('clasifier.1'): no layer named 'clasifier.1' among 5; did you mean 'classifier.1'",
        ),
        (by_name("features"), "'features' is no layer but holds 3; write 'features.*'"),
        (by_name(re.compile("classifier")), "it matches inside names"),
        (by_name("zzzz"), "the layers are 'features.0', 'features.2'"),
        (by_index(9), "no layer 9; there are layers 0 to 4"),
        (by_index(range(3, 7)), "no layer 5"),
        (by_index(slice(7, 9)), "by_index(slice(7, 9, None)) matches none of 5 layers"),
        (by_kind("recurrent"), "their kinds are conv, linear, norm"),
        (before("features.0"), "before('features.0') matches none"),
        (after("clasifier.1"), "did you mean 'classifier.1'"),
        pytest.param(lambda index, layer: False, "<lambda> matches none of 5 layers", id="a function"),
        (by_kind("conv") & by_kind("linear"), "by_kind('conv') matches 2, by_kind('linear') matches 2"),
        (~every(), "selects none"),
    ],
    ids=str,
)
def test_nothing_matched_is_an_error_that_repeats_the_rule(rule, says):
    with pytest.raises(SelectionError, match=re.escape(says)):
        select_layers(rule, LAYERS)


def test_all_idle_rules_are_named_at_once():
    with pytest.raises(SelectionError, match=r"(?s)nope.*before\('gone'\)"):
        select_layers(by_name("nope") | before("gone"), LAYERS)


@pytest.mark.parametrize("wrong", ["features.*", 3, None])
def test_what_is_no_rule(wrong):
    with pytest.raises(
        ArgumentError, match=r"a selection is asked \(index, layer\).* write lambda index, layer"
    ):
        select_layers(lambda layer: True, LAYERS)
    with pytest.raises(ArgumentError, match="a selection must be a rule"):
        as_rule(wrong)
    with pytest.raises(ArgumentError, match="did you mean 'conv'"):
        by_kind("convv")


def test_counts_are_of_the_rule_as_written_and_of_its_parts():
    counts = select_layers(by_kind("conv") & ~by_index(0), LAYERS).counts
    assert counts == (("by_kind('conv') & ~by_index(0)", 1), ("by_kind('conv')", 2), ("by_index(0)", 1))
    assert select_layers(by_kind("conv"), LAYERS).counts == (("by_kind('conv')", 2),)


rules = st.recursive(
    st.sampled_from(
        [every(), by_index(0), by_index(2, -1), by_kind("conv"), by_name("classifier.*"), after(1)]
    ),
    lambda inner: st.one_of(
        st.tuples(st.just("&"), inner, inner),
        st.tuples(st.just("|"), inner, inner),
        st.tuples(st.just("~"), inner),
    ),
    max_leaves=6,
)


def build(tree):
    """Return the rule of a tree, and the set it stands for by Python's own set operations."""
    if not isinstance(tree, tuple):
        return tree, set(tree.find(LAYERS))
    parts = [build(part) for part in tree[1:]]
    (rule, places), rest = parts[0], parts[1:]
    if tree[0] == "~":
        return ~rule, set(range(len(LAYERS))) - places
    other, more = rest[0]
    return (rule & other, places & more) if tree[0] == "&" else (rule | other, places | more)


@settings(deadline=None, max_examples=100)
@given(rules)
def test_rules_combine_like_sets(tree):
    rule, places = build(tree)
    if places:
        assert set(select_layers(rule, LAYERS).indices) == places
    else:
        with pytest.raises(SelectionError):
            select_layers(rule, LAYERS)


def test_layers_without_a_module_are_selected_too():
    assert select_layers(by_name("a"), [Layer(0, "a", "conv", {})]).indices == (0,)
