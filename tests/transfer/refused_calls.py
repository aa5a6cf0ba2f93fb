"""Calls that are refused for an argument of theirs: handlers, selections, files, parameter groups and heads."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import transferkit as tk
from tests.transfer.identity_cases import OTHER_WORDS as OTHERS
from tests.transfer.identity_cases import WORDS
from tests.transfer.refusals import (
    Call,
    Scenario,
    Transfer,
    chain,
    close,
    donor,
    itself,
    maker,
    names_of,
    net,
    without,
)
from tests.transfer.refused_fits import other_input_channels
from transferkit.transfer import TransferReport, WeightTransfer

# Handlers and other arguments.


@maker
def an_unknown_handler(rng: random.Random) -> Scenario:
    scenario = other_input_channels(rng)
    assert isinstance(scenario, Transfer)
    scenario.name, scenario.arguments = "unknown handler", {"handlers": "['input_chanels']"}
    return scenario


@maker
def an_idle_handler(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    return Transfer(
        "idle handler", state, build, itself(state), {"handlers": f"[{rng.choice(['cast', 'slices'])!r}]"}
    )


@maker
def classes_without_a_row(rng: random.Random) -> Scenario:
    head = rng.choice(WORDS)
    state = donor(net((head, nn.Linear(4, 3))))
    aimed = {"handlers": f"{{{head!r}: ClassRows(['cat', 'dog', 'crane'], ['dog', 'crain'])}}"}
    right = {key: [tensor[[1, 2]]] for key, tensor in state.items()}
    return Transfer("unknown class", state, lambda: net((head, nn.Linear(4, 2))), right, aimed)


@maker
def classes_of_one_name(rng: random.Random) -> Scenario:
    head = rng.choice(WORDS)
    state = donor(net((head, nn.Linear(4, 3))))
    aimed = {"handlers": f"{{{head!r}: ClassRows(['crane', 'cat', 'crane'], ['crane', 'cat'])}}"}
    return Transfer("classes of one name", state, lambda: net((head, nn.Linear(4, 2))), {}, aimed)


@maker
def a_handler_aimed_at_what_it_is_not_for(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    aimed = {"handlers": repr({names_of(build)[0]: rng.choice(["input_channels", "inflate_kernel"])})}
    return Transfer("handler does not apply", state, build, itself(state), aimed)


@maker
def an_unknown_on_mismatch(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    return Transfer("unknown on_mismatch", state, build, itself(state), {"on_mismatch": "'adopt'"})


@maker
def a_glob_that_allows_nothing(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    lost = names_of(build)[-1]
    return Transfer(
        "idle allow_missing",
        without(state, lost),
        build,
        itself(state),
        {"allow_missing": repr(f"{lost[:-1]}.*")},
    )


@maker
def states_without_an_optimizer(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    return Transfer("states, no optimizer", state, build, itself(state), {"load_states": "True"})


@maker
def states_that_are_not_there(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    sgd = lambda model: torch.optim.SGD(model.parameters(), lr=0.1)  # noqa: E731
    return Transfer("no states", state, build, itself(state), {"load_states": "True"}, optimizer=sgd)


# Selections, of a transfer and of freezing.


def _mistaken(rng: random.Random, names: Sequence[str]) -> str:
    name = rng.choice(names[1:-1])
    return rng.choice(
        [
            f"before({name + 'x'!r})", f"after({name[1:]!r})", f"by_name({name[:-1]!r})", f"by_index({len(names) + 3})",
            "by_kind('convolution')", "by_kind('conv')", f"{name!r}", f"by_name({name!r}) & by_kind('norm')",
            f"by_name({name[:3] + '?'!r}) | by_index(-{len(names) + 1})", "lambda layer: True",
        ]
    )  # fmt: skip


@maker
def a_selection_of_nothing(rng: random.Random) -> Scenario:
    build = chain(rng, 5)
    state = donor(build())
    return Transfer("selection", state, build, itself(state), {"select": _mistaken(rng, names_of(build))})


@maker
def a_container_for_its_layers(rng: random.Random) -> Scenario:
    one, two, *rest = rng.sample(WORDS, 5)
    build = chain(rng, names=[f"{one}.{rest[0]}", f"{one}.{rest[1]}", two])
    state = donor(build())
    return Transfer("container selected", state, build, itself(state), {"select": f"by_name({one!r})"})


def _freezing(rng: random.Random, *, undo: bool) -> Scenario:
    build = chain(rng, 5)

    def call(done: tuple[str, ...], select: Any = None) -> Any:
        model = build()
        if undo:
            tk.freeze(model)
        return model, (tk.unfreeze if undo else tk.freeze)(model, select)

    def wrong(result: Any) -> str:
        model, names = result
        layers = {layer.name: layer for layer in tk.layers_of(model)}
        found = {
            n for n, layer in layers.items() if all(t.requires_grad == undo for t in layer.tensors.values())
        }
        return "" if set(names) == found else f"said {names}, did {found}"

    what = "unfreeze" if undo else "freeze"
    return Call(what, call, {"select": _mistaken(rng, names_of(build))}, wrong, frozenset({"select"}))


@maker
def freezing_nothing(rng: random.Random) -> Scenario:
    return _freezing(rng, undo=False)


@maker
def unfreezing_nothing(rng: random.Random) -> Scenario:
    return _freezing(rng, undo=True)


# Files.


def _read(
    name: str, saved: Any, right: Mapping[str, Tensor], arguments: Mapping[str, str], known: Any = None
) -> Call:
    def call(done: tuple[str, ...], **values: Any) -> Any:
        made = saved(done) if callable(saved) else saved
        if isinstance(made, str | Path | dict):
            return tk.read_checkpoint(made, **values)
        path = Path(tempfile.mkdtemp()) / "saved.pt"
        torch.save(made[0], path)
        return tk.read_checkpoint(path, **values)

    def wrong(found: Any) -> str:
        state = found.state_dict()
        same = state.keys() == right.keys() and all(close(state[key], right[key]) for key in right)
        return "" if same or known else "another state dict than was meant"

    return Call(name, call, arguments, wrong, frozenset({"key", "format", "trusted", "device"}))


@maker
def several_state_dicts(rng: random.Random) -> Scenario:
    build, (one, two) = chain(rng), rng.sample(OTHERS, 2)
    saved = {one: donor(build()), two: donor(build(), 2)}
    return _read("several state dicts", saved, donor(build()), {}, known=True)


@maker
def a_key_that_is_not_there(rng: random.Random) -> Scenario:
    build, (one, two) = chain(rng), rng.sample(OTHERS, 2)
    saved = {one: donor(build()), two: donor(build(), 2)}
    return _read("unknown key", saved, donor(build()), {"key": repr(one[:-1])}, known=True)


@maker
def an_unknown_format(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())
    return _read(
        "unknown format", lambda done: [state], state, {"format": repr(rng.choice(["pth", "pytorch"]))}
    )


@maker
def a_whole_module(rng: random.Random) -> Scenario:
    torch.manual_seed(rng.randrange(1000))
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    return _read("a whole module", lambda done: [model], model.state_dict(), {})


@maker
def no_tensors(rng: random.Random) -> Scenario:
    return _read("no tensors", {"epoch": rng.randint(1, 9), rng.choice(WORDS): "text"}, {}, {})


@maker
def sparse_tensors(rng: random.Random) -> Scenario:
    name = rng.choice(WORDS)
    dense = {f"{name}.weight": torch.eye(rng.randint(3, 6))}
    sparse = {key: tensor.to_sparse() for key, tensor in dense.items()}
    return _read("sparse tensors", lambda done: dense if "plain" in done else sparse, dense, {})


@maker
def no_such_file(rng: random.Random) -> Scenario:
    path = rng.choice(["https://example.org/resnet18.pth", f"{rng.choice(WORDS)}.pth"])
    return _read("no such file", path, {}, {})


@maker
def not_a_file_of_weights(rng: random.Random) -> Scenario:
    path = Path(tempfile.mkdtemp()) / rng.choice(["page.pth", "model.pt"])
    path.write_bytes(
        rng.choice([b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\n", b""])
    )
    return _read("no weights", path, {}, {})


@maker
def a_layer_that_is_not_there(rng: random.Random) -> Scenario:
    build = chain(rng)
    checkpoint = tk.Checkpoint.from_state_dict(donor(build()))
    which = rng.choice([repr(names_of(build)[1][:-1]), "9"])
    return Call(
        "unknown layer",
        lambda done, which: checkpoint[which],
        {"which": which},
        lambda layer: "",
        frozenset({"which"}),
    )


# What comes after: groups and heads.


@maker
def groups_of_a_frozen_model(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())

    def call(done: tuple[str, ...]) -> Any:
        model = build()
        report = WeightTransfer(state).apply(model)
        tk.freeze(model)
        if "unfreeze" in done:
            tk.unfreeze(model)
        return report.parameter_groups(model, transferred={"lr": 1}, new={"lr": 2})

    groups = lambda found: "" if {g["name"] for g in found} == {"transferred"} else "new parameters"  # noqa: E731
    return Call("groups, all frozen", call, {}, groups, frozenset())


@maker
def groups_of_a_copy(rng: random.Random) -> Scenario:
    build = chain(rng)
    state = donor(build())

    def call(done: tuple[str, ...]) -> Any:
        model = build()
        report = WeightTransfer(state).apply(model)
        other = build()
        other.load_state_dict(model.state_dict())
        if "from_dict" in done:
            report = TransferReport.from_dict(report.to_dict())
        return report.parameters_in(other)

    every = 2 * len(names_of(build))
    return Call("groups of a copy", call, {}, lambda f: "" if len(f) == every else "not all", frozenset())


@maker
def a_head_that_is_not_there(rng: random.Random) -> Scenario:
    build = chain(rng)
    last = names_of(build)[-1]

    def call(done: tuple[str, ...], name: str) -> Any:
        return tk.replace_head(build(), 3, name=name)

    return Call(
        "unknown head", call, {"name": repr(last[:-1])}, lambda h: "" if h.name == last else "another layer",
        frozenset({"name"}),
    )  # fmt: skip


@maker
def a_head_of_another_width(rng: random.Random) -> Scenario:
    build = chain(rng)
    width = tk.layers_of(build())[-1].tensors["weight"].shape[1]

    def call(done: tuple[str, ...], in_features: int) -> Any:
        return tk.replace_head(build(), nn.Linear(in_features, 3))

    given = {"in_features": str(width + rng.randint(1, 5))}
    return Call("head of another width", call, given, lambda head: "", frozenset({"in_features"}))


@maker
def several_heads(rng: random.Random) -> Scenario:
    word = rng.choice(WORDS)
    build = lambda: net((word, nn.Linear(4, 8)), ("aux_head", nn.Linear(8, 5)), ("head", nn.Linear(8, 5)))  # noqa: E731

    def call(done: tuple[str, ...], name: str | None = None) -> Any:
        return tk.replace_head(build(), 3, name=name)

    return Call(
        "several heads", call, {}, lambda h: "" if "head" in h.name else "another layer", frozenset({"name"})
    )
