"""Transfers that are refused for what the source or the model is, or for how layers are found."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

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

# Numbers.


@maker
def integer_codes_with_a_scale(rng: random.Random) -> Scenario:
    name = rng.choice(WORDS)
    codes = torch.randint(-127, 127, (3, 4), dtype=torch.int8)
    scale = torch.rand(3, 1) / 50
    source = {f"{name}.weight": codes, f"{name}.weight_scale": scale, f"{name}.bias": torch.randn(3)}
    build = lambda: net((name, nn.Linear(4, 3)))  # noqa: E731
    right = {f"{name}.weight": [codes * scale], f"{name}.bias": [source[f"{name}.bias"]]}
    return Transfer("int8 with a scale", source, build, right)


@maker
def integer_codes_alone(rng: random.Random) -> Scenario:
    name, dtype = rng.choice(WORDS), rng.choice([torch.int8, torch.uint8, torch.int64])
    source = {f"{name}.weight": torch.randint(0, 100, (3, 4)).to(dtype), f"{name}.bias": torch.randn(3)}
    return Transfer("integers onto floats", source, lambda: net((name, nn.Linear(4, 3))), itself(source))


@maker
def complex_onto_real(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    first = f"{names_of(build)[0]}.weight"
    source = state | {first: torch.complex(state[first], torch.ones_like(state[first]))}
    return Transfer("complex onto real", source, build, itself(without(state, first)))


@maker
def values_that_are_not_finite(rng: random.Random) -> Scenario:
    build, bad = chain(rng), rng.choice([float("nan"), float("inf")])
    state = donor(build())
    name = rng.choice(names_of(build))
    state[f"{name}.weight"][0, 0] = bad
    return Transfer("not finite", state, build, itself(without(state, f"{name}.weight")))


@maker
def values_that_overflow(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    name = rng.choice(names_of(build))
    state[f"{name}.weight"][0, 0] = 1e6
    return Transfer("overflow", state, lambda: build().half(), itself(without(state, f"{name}.weight")))


# Models and sources of another kind.


@maker
def a_source_without_values(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    empty = {key: tensor.to("meta") for key, tensor in state.items()}
    return Transfer("meta source", lambda done: state if "load" in done else empty, build, itself(state))


@maker
def a_model_without_values(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    return Transfer("meta target", state, build, itself(state), meta=True)


@maker
def a_model_without_values_of_which_a_part_is_selected(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    some = {"select": f"before({names_of(build)[-1]!r})", "device": "'cpu'"}
    return Transfer("meta target, a part", state, build, itself(state), some, meta=True)


@maker
def a_lazy_model(rng: random.Random) -> Scenario:
    width = rng.randint(4, 9)
    state = donor(nn.Sequential(nn.Linear(width, 3), nn.Linear(3, 2)))
    build = lambda: nn.Sequential(nn.LazyLinear(3), nn.LazyLinear(2))  # noqa: E731
    return Transfer("lazy layers", state, build, itself(state), batch=torch.zeros(2, width))


@maker
def ties_with_two_values(rng: random.Random) -> Scenario:
    one, two, other = rng.sample(WORDS, 3)

    def build() -> nn.Module:
        model = net((one, nn.Embedding(7, 4)), (other, nn.Linear(4, 4)), (two, nn.Linear(4, 7, bias=False)))
        getattr(model, two).weight = getattr(model, one).weight
        return model

    state = donor(net((one, nn.Embedding(7, 4)), (other, nn.Linear(4, 4)), (two, nn.Linear(4, 7, bias=False))))
    both = [state[f"{one}.weight"], state[f"{two}.weight"]]
    return Transfer("tied, two values", state, build, itself(state) | {f"{n}.weight": both for n in (one, two)})


@maker
def a_weight_in_parts(rng: random.Random) -> Scenario:
    name = rng.choice(WORDS)
    plain = donor(net((name, nn.Linear(4, 3))))

    def build() -> nn.Module:
        return net((name, nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))))

    weight = plain[f"{name}.weight"]
    parts = {f"{name}.parametrizations.weight.original0": [weight.norm(dim=1, keepdim=True)],
             f"{name}.parametrizations.weight.original1": [weight]}  # fmt: skip
    return Transfer("weight norm in the target", plain, build, itself(plain) | parts)


@maker
def a_source_in_parts(rng: random.Random) -> Scenario:
    name = rng.choice(WORDS)
    parts = donor(net((name, nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))))
    gain, direction = (parts[f"{name}.parametrizations.weight.original{n}"] for n in range(2))
    right = {f"{name}.weight": [direction * gain / direction.norm(dim=1, keepdim=True)]}
    return Transfer(
        "weight norm in the source", parts, lambda: net((name, nn.Linear(4, 3))), itself(parts) | right
    )


@maker
def a_model_made_for_inference(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())

    def inference() -> nn.Module:
        with torch.inference_mode():
            return build()

    return Transfer("inference mode", state, inference, itself(state))


# Mappings.


def _siblings(rng: random.Random, count: int, words: Sequence[str]) -> Callable[[], nn.Module]:
    names = rng.sample(list(words), count)
    return lambda: net(*((f"block.{name}", nn.Linear(4, 4)) for name in names), ("head", nn.Linear(4, 2)))


@maker
def siblings_that_look_alike(rng: random.Random) -> Scenario:
    build, other = _siblings(rng, 3, WORDS), _siblings(rng, 3, OTHERS)
    state = donor(other())
    turn = rng.sample(range(3), 3)
    known = {name: names_of(other)[turn[n]] for n, name in enumerate(names_of(build)[:3])} | {"head": "head"}
    right = {
        f"{name}.{short}": [state[f"{known[name]}.{short}"]] for name in known for short in ("weight", "bias")
    }
    return Transfer("alike siblings", state, build, right, {"mapping": "'structure'"}, known)


@maker
def three_of_five(rng: random.Random) -> Scenario:
    long = lambda: net(*((f"{WORDS[n]}", nn.Linear(4, 4)) for n in range(5)), ("last", nn.Linear(4, 2)))  # noqa: E731
    short = lambda: net(*((f"{OTHERS[n]}", nn.Linear(4, 4)) for n in range(3)))  # noqa: E731
    state, first = donor(long()), rng.choice([0, 1, 2])
    known = {OTHERS[n]: WORDS[first + n] for n in range(3)}
    right = {f"{o}.{s}": [state[f"{w}.{s}"]] for o, w in known.items() for s in ("weight", "bias")}
    return Transfer("three of five", state, short, right, {"mapping": "'structure'"}, known)


@maker
def a_layer_that_structure_does_not_find(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    names = dict(zip(names_of(build), rng.sample(OTHERS, 4), strict=True))
    source = renamed(state, names)
    last = names[names_of(build)[-1]]
    source |= {f"{last}.weight": torch.randn(30, 3), f"{last}.bias": torch.randn(30)}
    right = itself(without(state, names_of(build)[-1]))
    return Transfer("structure finds no head", source, build, right, {"mapping": "'structure'"}, names)


@maker
def a_file_in_alphabetical_order(rng: random.Random) -> Scenario:
    count = rng.randint(11, 14)
    build = lambda: nn.Sequential(*(nn.Linear(2, 2) for _ in range(count)))  # noqa: E731
    state = donor(build())
    by = {"mapping": repr(rng.choice(["order", "structure"]))}
    return Transfer("alphabetical", dict(sorted(state.items())), build, itself(state), by)


@maker
def a_file_that_lost_its_order(rng: random.Random) -> Scenario:
    build = chain(rng, 4)
    state = donor(build())
    path = Path(tempfile.mkdtemp()) / "weights.safetensors"
    save_file(state, path)
    by = {"mapping": repr(rng.choice(["order", "order", "structure"]))}
    return Transfer("safetensors", path, build, itself(state), by)


@maker
def equal_layers_of_a_file_that_lost_its_order(rng: random.Random) -> Scenario:
    build = _siblings(rng, 4, WORDS)
    state = donor(build())
    names = dict(zip(names_of(build), [*(f"block.{w}" for w in rng.sample(OTHERS, 4)), "head"], strict=True))
    path = Path(tempfile.mkdtemp()) / "weights.safetensors"
    save_file(renamed(state, names), path)
    by = {"mapping": repr(rng.choice(["order", "structure"]))}
    return Transfer("safetensors, alike", path, build, itself(state), by, names)


@maker
def the_same_names_in_another_order(rng: random.Random) -> Scenario:
    build = _siblings(rng, 3, WORDS)
    state = donor(build())
    turned = dict(sorted(state.items(), reverse=True))
    return Transfer("names in another order", turned, build, itself(state), {"mapping": "'order'"})


@maker
def too_few_layers_by_order(rng: random.Random) -> Scenario:
    build = chain(rng, 5)
    state = donor(build())
    names = dict(zip(names_of(build), rng.sample(OTHERS, 5), strict=True))
    source = renamed(without(state, *(f"{name}." for name in names_of(build)[3:])), names)
    return Transfer("too few by order", source, build, itself(state), {"mapping": "'order'"}, names)


@maker
def a_mapping_from_a_name_that_is_not_there(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    names = {name: name for name in names_of(build)} | {names_of(build)[2]: rng.choice(OTHERS)}
    wrong = {"mapping": repr({f"{names_of(build)[2]}s": names[names_of(build)[2]]})}
    return Transfer("typo in a mapping's target", renamed(state, names), build, itself(state), wrong, names)


@maker
def a_mapping_to_a_name_that_is_not_there(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    names = {name: name for name in names_of(build)} | {names_of(build)[2]: rng.choice(OTHERS)}
    wrong = {"mapping": repr({names_of(build)[2]: f"{names[names_of(build)[2]]}s"})}
    if rng.random() < 0.5:
        wrong = {"mapping": f"ByStructure({wrong['mapping']})"}
    return Transfer("typo in a mapping's source", renamed(state, names), build, itself(state), wrong, names)


@maker
def an_unknown_mapping(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    return Transfer(
        "unknown mapping", state, build, itself(state), {"mapping": repr(rng.choice(["names", "index"]))}
    )
