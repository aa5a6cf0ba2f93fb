"""Transfers that are refused since layers are missing, go by other names, or are of another shape."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.transfer.identity_cases import OTHER_WORDS as OTHERS
from tests.transfer.identity_cases import WORDS
from tests.transfer.refusals import (
    Scenario,
    Transfer,
    chain,
    donor,
    itself,
    maker,
    names_of,
    net,
    renamed,
    without,
)

# Missing, unexpected, under other names.


@maker
def a_layer_is_missing(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    lost = rng.sample(names_of(build), 2)
    return Transfer("layers missing", without(state, *(f"{name}." for name in lost)), build, itself(state))


@maker
def a_bias_is_missing(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    return Transfer(
        "biases missing", {k: t for k, t in state.items() if not k.endswith("bias")}, build, itself(state)
    )


@maker
def a_root_tensor_is_missing(rng: random.Random) -> Scenario:
    build = chain(rng, 6)

    def rooted() -> nn.Module:
        model = build()
        model.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        return model

    state = donor(rooted())
    lost = ["cls_token", *(f"{name}." for name in names_of(build)[: rng.choice([0, 5])])]
    return Transfer("a root tensor missing", without(state, *lost), rooted, itself(state))


@maker
def a_container_is_missing(rng: random.Random) -> Scenario:
    one, two, *rest = rng.sample(WORDS, 6)
    build = chain(rng, names=[f"{one}.{rest[0]}", f"{one}.{rest[1]}", f"{two}.{rest[2]}", f"{two}.{rest[3]}"])
    state = donor(build())
    return Transfer("a container missing", without(state, f"{two}."), build, itself(state))


@maker
def some_are_missing_of_a_model_in_one_container(rng: random.Random) -> Scenario:
    one, *rest = rng.sample(WORDS, 5)
    build = chain(rng, names=[f"{one}.{name}" for name in rest])
    state = donor(build())
    lost = [f"{one}.{name}." for name in rest[:2]]
    return Transfer("one container for all", without(state, *lost), build, itself(state))


@maker
def a_layer_with_brackets_is_missing(rng: random.Random) -> Scenario:
    word, other = rng.sample(WORDS, 2)
    build = chain(rng, names=[f"{word}[0]", f"{word}[1]", other])
    state = donor(build())
    return Transfer("brackets, missing", without(state, f"{word}[0]."), build, itself(state))


@maker
def a_layer_with_brackets_does_not_fit(rng: random.Random) -> Scenario:
    word, other = rng.sample(WORDS, 2)
    build = chain(rng, names=[f"{word}[0]", f"{word}[1]", other])
    state = donor(build())
    source = state | {f"{word}[1].weight": torch.randn(17, 3), f"{word}[1].bias": torch.randn(17)}
    return Transfer("brackets, mismatched", source, build, itself(without(state, f"{word}[1]")))


@maker
def the_source_has_a_prefix(rng: random.Random) -> Scenario:
    build, prefix = chain(rng), f"{rng.choice(OTHERS)}.{rng.choice(OTHERS)}."
    state = donor(build())
    return Transfer("source prefix", {prefix + k: t for k, t in state.items()}, build, itself(state))


@maker
def the_target_has_a_prefix(rng: random.Random) -> Scenario:
    build, prefix = chain(rng), rng.choice(OTHERS)
    state = donor(build())
    expected = {f"{prefix}.{key}": [tensor] for key, tensor in state.items()}
    return Transfer("target prefix", state, lambda: net((prefix, build())), expected)


@maker
def both_have_a_prefix(rng: random.Random) -> Scenario:
    build, (one, two) = chain(rng), rng.sample(OTHERS, 2)
    state = donor(build())
    expected = {f"{one}.{key}": [tensor] for key, tensor in state.items()}
    known = {f"{one}.{name}": f"{two}.{name}" for name in names_of(build)}
    source = {f"{two}.{key}": tensor for key, tensor in state.items()}
    return Transfer("both prefixed", source, lambda: net((one, build())), expected, known=known)


@maker
def every_name_is_another(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    names = dict(zip(names_of(build), rng.sample(OTHERS, 4), strict=True))
    return Transfer("other names", renamed(state, names), build, itself(state), known=names)


@maker
def one_name_is_another(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    names = {name: name for name in names_of(build)} | {names_of(build)[1]: rng.choice(OTHERS)}
    return Transfer("one other name", renamed(state, names), build, itself(state), known=names)


@maker
def nothing_is_there_and_all_is_allowed(rng: random.Random) -> Scenario:
    build, prefix = chain(rng), rng.choice(OTHERS)
    state = donor(build())
    expected = {f"{prefix}.{key}": [tensor] for key, tensor in state.items()}
    known = {f"{prefix}.{name}": name for name in names_of(build)}
    allowed = {"allow_missing": repr(f"{prefix}.*")}
    return Transfer("nothing moves", state, lambda: net((prefix, build())), expected, allowed, known)


# Shapes.


@maker
def a_head_for_other_classes(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    head = names_of(build)[-1]
    wide = {
        f"{head}.weight": torch.randn(40, state[f"{head}.weight"].shape[1]),
        f"{head}.bias": torch.randn(40),
    }
    return Transfer("another head", state | wide, build, itself(without(state, head)))


@maker
def every_layer_is_wider(rng: random.Random) -> Scenario:
    build = chain(rng, 5)
    state = donor(build())
    wide = {key: torch.randn([side + 1 for side in tensor.shape]) for key, tensor in state.items()}
    return Transfer("all wider", wide, build, {})


@maker
def other_input_channels(rng: random.Random) -> Scenario:
    old, new = rng.choice([(3, 1), (1, 3)])
    name = rng.choice(WORDS)
    build = lambda: net((name, nn.Conv2d(new, 4, 3)), ("head", nn.Linear(4, 2)))  # noqa: E731
    state = donor(net((name, nn.Conv2d(old, 4, 3)), ("head", nn.Linear(4, 2))))
    weight = state[f"{name}.weight"]
    right = weight.sum(1, keepdim=True) if new == 1 else weight.expand(4, new, 3, 3) / new
    return Transfer("input channels", state, build, itself(state) | {f"{name}.weight": [right]})


@maker
def a_grouped_convolution_onto_a_dense_one(rng: random.Random) -> Scenario:
    groups, each, name = rng.choice([2, 3]), rng.choice([2, 4]), rng.choice(WORDS)
    wide = groups * each
    grouped, dense = nn.Conv2d(wide, wide, 3, groups=groups), lambda: net((name, nn.Conv2d(wide, wide, 3)))
    state = donor(net((name, grouped)))
    right = torch.zeros(wide, wide, 3, 3)
    for n in range(groups):
        part = slice(n * each, (n + 1) * each)
        right[part, part] = state[f"{name}.weight"][part]
    source: Any = state
    if rng.random() < 0.5:
        source = net((name, grouped))
        source.load_state_dict(state)
    return Transfer("grouped onto dense", source, dense, itself(state) | {f"{name}.weight": [right]})


@maker
def another_kernel(rng: random.Random) -> Scenario:
    name, (old, new) = rng.choice(WORDS), rng.choice([(7, 3), (3, 5)])
    build = lambda: net((name, nn.Conv2d(3, 4, new)), ("head", nn.Linear(4, 2)))  # noqa: E731
    state = donor(net((name, nn.Conv2d(3, 4, old)), ("head", nn.Linear(4, 2))))
    weight = state[f"{name}.weight"]
    right = [_for_larger_patches(weight, new)]
    right += [nn.functional.pad(weight, [(new - old) // 2] * 4)] if new > old else []
    return Transfer("another kernel", state, build, itself(state) | {f"{name}.weight": right})


def _for_larger_patches(weight: Tensor, size: int) -> Tensor:
    """Return the square kernel that responds to a resized patch as this one does to the patch."""
    units = torch.eye(weight.shape[-1], dtype=torch.float64)[:, None]
    resize = nn.functional.interpolate(units, size=size, mode="linear", align_corners=False)[:, 0]
    turn = torch.linalg.pinv(resize).to(weight)  # (new, old)
    return turn @ weight @ turn.mT


@maker
def an_image_kernel_onto_video(rng: random.Random) -> Scenario:
    name, depth = rng.choice(WORDS), rng.choice([2, 3])
    build = lambda: net((name, nn.Conv3d(3, 4, (depth, 3, 3))))  # noqa: E731
    state = donor(net((name, nn.Conv2d(3, 4, 3))))
    weight = state[f"{name}.weight"]
    right = torch.stack([weight / depth] * depth, 2)
    return Transfer("image onto video", state, build, itself(state) | {f"{name}.weight": [right]})


@maker
def a_transposed_weight(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    turned = {key: tensor.mT.contiguous() if tensor.ndim == 2 else tensor for key, tensor in state.items()}
    return Transfer("transposed weights", turned, build, itself(state))


def _positions(count: int, width: int = 4) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = net(("head", nn.Linear(width, 2)))
        model.pos_embed = nn.Parameter(torch.randn(1, count, width))
        return model

    return build


@maker
def positions_of_another_grid(rng: random.Random) -> Scenario:
    prefix, (old, new) = rng.choice([0, 1, 2]), rng.choice([(14, 7), (7, 14)])
    state = donor(_positions(prefix + old * old)())
    grid = state["pos_embed"][:, prefix:].mT.reshape(1, -1, old, old)
    size = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    right = torch.cat([state["pos_embed"][:, :prefix], size.flatten(2).mT], 1)
    target = _positions(prefix + new * new)
    right_of = itself(state) | {"pos_embed": [right]}
    return Transfer("positions of a grid", state, target, right_of, choices=("grid",))


@maker
def positions_with_other_prefixes(rng: random.Random) -> Scenario:
    old, new = rng.choice([(197, 196), (197, 198), (196, 197)])
    state = donor(_positions(old)())
    torch.manual_seed(7)
    own = _positions(new)().pos_embed  # what the target has of its own
    both = min(old, new) - 196
    parts = [state["pos_embed"][:, :both], own[:, both : new - 196].detach(), state["pos_embed"][:, -196:]]
    expected = itself(state) | {"pos_embed": [torch.cat(parts, 1)]}
    return Transfer("positions, other prefixes", state, _positions(new), expected)


@maker
def positions_of_text(rng: random.Random) -> Scenario:
    old, new = rng.choice([(1024, 256), (64, 100)])

    def build(count: int) -> Callable[[], nn.Module]:
        return lambda: net(("wpe", nn.Embedding(count, 4)), ("head", nn.Linear(4, 2)))

    state = donor(build(old)())
    table = state["wpe.weight"]
    line = nn.functional.interpolate(table.mT[None], size=new, mode="linear", align_corners=False)[0].mT
    right = [line, *([table[:new]] if new < old else [])]
    return Transfer(
        "positions of text", state, build(new), itself(state) | {"wpe.weight": right}, choices=("sequence",)
    )


@maker
def a_fused_projection(rng: random.Random) -> Scenario:
    name = rng.choice(WORDS)
    state = donor(net((f"{name}.qkv", nn.Linear(4, 12)), (f"{name}.proj", nn.Linear(4, 4))))
    build = lambda: net(*((f"{name}.{part}", nn.Linear(4, 4)) for part in ("q", "k", "v", "proj")))  # noqa: E731
    thirds = {
        f"{name}.{part}.{short}": [state[f"{name}.qkv.{short}"].chunk(3)[n]]
        for n, part in enumerate("qkv")
        for short in ("weight", "bias")
    }
    return Transfer("fused projection", state, build, itself(state) | thirds)
