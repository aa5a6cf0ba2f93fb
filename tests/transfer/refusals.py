"""Calls that the library refuses, each of another kind, with the truth about what right would be.

A maker takes random numbers and returns one scenario for :mod:`tests.transfer.advice`; names and widths are drawn, so
that a hundred are a hundred different messages.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import transferkit as tk
from tests.transfer.identity_cases import WORDS
from transferkit.transfer import TransferReport, WeightTransfer

Expected = Mapping[str, Sequence[Tensor]]


@dataclass
class Transfer:
    """A transfer onto a model that is built anew for every attempt.

    Attributes:
        source: What is given.
        target: Builds the model.
        expected: What each of the target's tensors may hold by right, by key; beside what it held before.
        arguments: As the user writes them.
        known: The source layer of a target layer, where a message asks.
        batch: What a lazy model is run on.
        optimizer: Builds an optimizer, where one is given from the start.
        choices: What a person chooses where a message offers one thing or another.
    """

    name: str
    source: Any
    target: Callable[[], nn.Module]
    expected: Expected
    arguments: Mapping[str, str] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    namespace: Mapping[str, Any] = field(default_factory=dict)
    batch: Tensor | None = None
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None
    choices: tuple[str, ...] = ()
    meta: bool = False
    all_missing: bool = False
    keywords = frozenset(
        {"select", "mapping", "handlers", "on_mismatch", "allow_missing", "keep", "load_states", "device"}
    )

    def run(self, values: Mapping[str, Any], done: tuple[str, ...]) -> str:
        torch.manual_seed(7)
        with torch.device("meta") if self.meta and "real" not in done else nullcontext():
            model = self.target()
        if "batch" in done:
            model(self.batch)
        optimizer = self.optimizer(model) if self.optimizer else None
        if "optimizer" in done and optimizer is None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        old = {key: t.clone() for key, t in model.state_dict().items() if not is_lazy(t)}
        source = (
            self.source(done)
            if callable(self.source) and not isinstance(self.source, nn.Module)
            else self.source
        )
        try:
            report = WeightTransfer(source, **values).apply(model, optimizer)
        except tk.TransferKitError:
            if not self.meta and any(not _same(old[key], model.state_dict()[key]) for key in old):
                return "refused, and changed the model"
            self.all_missing |= _nothing_found(source, values, model)
            raise
        return next(self._wrongs(model, old, report, values), "")

    def _wrongs(
        self, model: nn.Module, old: Mapping[str, Tensor], report: TransferReport, values: Mapping[str, Any]
    ) -> Iterator[str]:
        for key, tensor in model.state_dict().items():
            if any(close(tensor, right) for right in self.expected.get(key, ())):
                continue
            if tensor.is_meta:
                yield f"{key} has no value"
            elif key in report.moved:
                yield f"{key} holds what is not its own"
            elif not _same(tensor, old[key]):
                yield f"{key} changed and is not said to have moved"
        excused = values.get("allow_missing")
        globs = [excused] if isinstance(excused, str) else excused if isinstance(excused, list) else []
        if not self.all_missing and any(all(fnmatchcase(key, glob) for key in old) for glob in globs):
            yield f"{globs} excuses everything"


def _nothing_found(source: Any, values: Mapping[str, Any], model: nn.Module) -> bool:
    """Tell whether no layer of the model has a counterpart, so that to excuse all is what was advised."""
    try:
        return set(WeightTransfer(source, **values).plan(model).missing) == set(model.state_dict())
    except tk.TransferKitError:
        return False


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(
        torch.nan_to_num(one.double()), torch.nan_to_num(other.double())
    )


def close(tensor: Tensor, right: Tensor) -> bool:
    if tensor.shape != right.shape or tensor.is_meta:
        return False
    narrow = min(torch.finfo(t.dtype).bits if t.is_floating_point() else 64 for t in (tensor, right)) < 32
    return torch.allclose(
        tensor.double(), right.double(), rtol=1e-2 if narrow else 1e-4, atol=1e-3 if narrow else 1e-5
    )


@dataclass
class Call:
    """Any other call: it is made, and what it returns is looked at."""

    name: str
    call: Callable[..., Any]
    arguments: Mapping[str, str]
    wrong: Callable[[Any], str]
    keywords: frozenset[str]
    known: Mapping[str, str] = field(default_factory=dict)
    namespace: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()

    def run(self, values: Mapping[str, Any], done: tuple[str, ...]) -> str:
        return self.wrong(self.call(done, **values))


Scenario = Transfer | Call
Maker = Callable[[random.Random], Scenario]
MAKERS: list[Maker] = []


def maker(function: Maker) -> Maker:
    """Add a maker to the list."""
    MAKERS.append(function)
    return function


def scenarios(count: int) -> list[Scenario]:
    """Return so many scenarios, of each maker in turn, each with numbers of its own."""
    for name in ("refused_fits", "refused_sources", "refused_calls"):  # which add their makers
        import_module(f"tests.transfer.{name}")
    return [MAKERS[n % len(MAKERS)](random.Random(n // len(MAKERS))) for n in range(count)]


# Networks.


def net(*layers: tuple[str, nn.Module]) -> nn.Module:
    """Return a module with named children, which brackets may be in and dots make containers of."""
    root = nn.Module()
    for name, layer in layers:
        owner = root
        *containers, leaf = name.split(".")
        for container in containers:
            if container not in owner._modules:
                owner.add_module(container, nn.Module())
            owner = owner._modules[container]  # type: ignore[assignment]
        owner.add_module(leaf, layer)
    return root


def donor(model: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    """Return a state dict of values that no other has."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor + seed
        for key, tensor in model.state_dict().items()
    }


def itself(state: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    return {key: [tensor] for key, tensor in state.items()}


def chain(rng: random.Random, count: int = 4, names: Sequence[str] | None = None) -> Callable[[], nn.Module]:
    """Return the builder of a chain of linear layers of different widths under drawn names."""
    names = names or rng.sample(WORDS, count)
    pairs: list[tuple[int, int]] = []
    for _ in names:
        before = pairs[-1][1] if pairs else rng.randint(2, 9)
        after = [width for width in range(2, 12) if width != before and (before, width) not in pairs]
        pairs.append((before, rng.choice(after)))  # no two alike, and none that can be turned
    return lambda: net(*((name, nn.Linear(a, b)) for name, (a, b) in zip(names, pairs, strict=True)))


def without(state: Mapping[str, Tensor], *starts: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.startswith(starts)}


def names_of(build: Callable[[], nn.Module]) -> list[str]:
    return [layer.name for layer in tk.layers_of(build())]


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    return {
        f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": tensor for key, tensor in state.items()
    }
