"""Every next step that a refusal prints, taken as it stands, ends right or in another refusal.

``TRANSFERKIT_EXAMPLES=1000 pytest tests/transfer/test_advice.py`` tries more of them.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transferkit import transfer as names
from transferkit.errors import TransferKitError
from transferkit.layers import split_key
from transferkit.transfer import WeightTransfer, handlers
from transferkit.transfer._refusal import globs_for
from transferkit.transfer.select import names_meant

EXAMPLES = int(os.environ.get("TRANSFERKIT_EXAMPLES", "60"))
ARGUMENT = re.compile(r"\b(select|mapping|handlers|keep|allow_missing)=")
SCOPE = {**vars(names), **vars(handlers), "re": re}


def advised(message: str) -> Iterator[dict[str, object]]:
    """Yield the arguments that each next step gives, as Python reads them."""
    for step in message.partition("Next step")[2].splitlines():
        starts = [*ARGUMENT.finditer(step)]
        ends = [*(found.start() for found in starts[1:]), len(step)]
        for found, end in zip(starts, ends, strict=False):
            yield {found.group(1): eval(expression(step[found.end() : end]), dict(SCOPE))}


def expression(text: str) -> str:
    """Return the longest beginning of a text that is one Python expression."""
    for end in range(len(text), 0, -1):
        try:
            if not isinstance(ast.parse(text[:end].strip(), mode="eval").body, ast.Tuple):
                return text[:end].strip()
        except SyntaxError:
            continue
    raise AssertionError(f"no argument can be read from {text!r}")


KINDS = {
    "linear": lambda width: nn.Linear(width, 4),
    "bare": lambda width: nn.Linear(width, 4, bias=False),
    "conv": lambda width: nn.Conv2d(2 * width, 8, 3),
    "grouped": lambda width: nn.Conv2d(2 * width, 8, 3, groups=2),
    "patches": lambda width: nn.Conv2d(3, 4, width, stride=width),
    "normed": lambda width: nn.utils.parametrizations.weight_norm(nn.Linear(width, 4)),
    "counts": lambda width: whole(nn.Linear(4, 4)),
    "wpe": lambda width: nn.Embedding(4**width, 2),
    "pos_embed": lambda width: nn.Embedding(4**width, 2),
    "tower": lambda width: nn.ModuleDict({"a[0]": nn.Linear(width, 2), "b": nn.LayerNorm(2)}),
}


def whole(module: nn.Module) -> nn.Module:
    for name, parameter in list(module.named_parameters()):
        setattr(module, name, nn.Parameter(parameter.detach().round().char(), requires_grad=False))
    return module


OTHER = {"conv": "grouped", "linear": "normed", "normed": "linear", "bare": "linear"}
LAYERS = st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 3)), min_size=1, max_size=4)


def network(layers: dict[str, tuple[str, int]], *, root: bool) -> nn.Module:
    model = nn.Module()
    for name, (kind, width) in layers.items():
        model.add_module(name, KINDS[kind](width))
    if root:
        model.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
    return model


@st.composite
def cases(draw):
    """Draw the layers of a target by name, and those of a source that has others, others' sizes, or none."""
    target = {f"{place}_{kind}": (kind, width) for place, (kind, width) in enumerate(draw(LAYERS))}
    source = {
        name: (draw(st.sampled_from([kind, OTHER.get(kind, kind)])), draw(st.sampled_from([width, width, 2])))
        for name, (kind, width) in target.items()
        if draw(st.integers(0, 4))
    }
    return target, source


@settings(deadline=None, max_examples=EXAMPLES)
@given(cases(), st.booleans(), st.booleans(), st.booleans())
def test_advice_ends_right_or_in_another_refusal(case, root, from_file, adapt):
    layers, other = case
    source = network(other, root=False)
    offered = source.state_dict() if from_file else source
    options = {"on_mismatch": "adapt"} if adapt else {}
    message = refusal(offered, network(layers, root=root), options)
    for arguments in advised(message or ""):
        model = network(layers, root=root)
        problems = {entry.key for entry in WeightTransfer(offered, **options).plan(model).problems}
        before = {key: value.clone() for key, value in model.state_dict().items()}
        try:
            report = WeightTransfer(offered, **{**options, **arguments}).apply(model)
        except TransferKitError:
            continue
        after = model.state_dict()
        left = {
            entry.key for entry in report.entries if entry.target and entry.bucket in ("missing", "skipped")
        }
        if "select" in arguments:  # a layer is left out as a whole, and no other
            assert {split_key(key)[0] for key in left} <= {split_key(key)[0] for key in problems}
        else:
            assert left <= problems
        assert all(torch.equal(after[key], before[key]) for key in left)
        for entry in report.entries:
            if entry.bucket == "copied":
                assert torch.equal(after[entry.key], source.state_dict()[entry.sources[0].key])
        for name in {entry.key.rpartition(".")[0] for entry in report.entries if entry.bucket == "adapted"}:
            untold = from_file and other.get(name, ("",))[0] == "grouped"  # a file tells no groups
            if name.endswith("_conv") and not untold and "InputChannels(groups=1)" not in message:
                assert_same_function(source.get_submodule(name), model.get_submodule(name))


def assert_same_function(old: nn.Conv2d, new: nn.Conv2d) -> None:
    """Assert that a convolution computes what the source's did of the channels that both know."""
    images = torch.rand(2, old.in_channels, 5, 5)
    if new.in_channels >= old.in_channels:
        more = torch.rand(2, new.in_channels - old.in_channels, 5, 5)
        assert torch.allclose(new(torch.cat([images, more], dim=1)), old(images), atol=1e-5)


def refusal(offered, model: nn.Module, options) -> str | None:
    try:
        WeightTransfer(offered, **options).apply(model)
    except TransferKitError as error:
        return str(error)
    return None


@given(
    st.lists(st.text("ab.[*?", min_size=1, max_size=6), min_size=1, max_size=6, unique=True),
    st.lists(st.text("ab.[*?", min_size=1, max_size=6), max_size=6),
)
def test_globs_name_what_they_are_to_name_and_nothing_else(wanted, others):
    others = [name for name in others if name not in wanted]
    globs = globs_for(wanted, others)
    assert {name for glob in globs for name in names_meant(glob, [*wanted, *others])} == set(wanted)
