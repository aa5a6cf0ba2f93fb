"""Resume a saved run: all of it is looked at before anything is written, and what fails is taken back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from transferkit.checkpoints import Checkpoint
from transferkit.checkpoints._optimizers import (
    ParameterState,
    class_that_steps,
    is_torchs,
    name_of,
    obstacle,
    other_class,
    own_options,
    unlike,
    unwrapped,
)
from transferkit.checkpoints._state_dicts import bare_keys
from transferkit.errors import StateError, TransferError, TransferKitError, listed
from transferkit.preprocessing import Preprocessing
from transferkit.transfer import WeightTransfer
from transferkit.transfer._states import state_problems
from transferkit.transfer._write import Transaction

if TYPE_CHECKING:
    from transferkit.finetune.run import Run


def described(value: object) -> str | None:
    """Return what tells a loss or an average from another one, as text."""
    if value is None:
        return None
    return repr(value) if is_dataclass(value) else name_of(type(value))


# The optimizer, with the names of its parameters and of its class, which torch does not save.


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return an optimizer's state dict, with the class and the names of the parameters in it."""
    state = optimizer.state_dict()
    state["optimizer_class"] = name_of(class_that_steps(type(unwrapped(optimizer))))
    names = _names(optimizer, model)
    if names is not None:
        pairs = zip(state["param_groups"], names, strict=True)
        state["param_groups"] = [{**group, "param_names": own} for group, own in pairs]
    return state


def _load_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Load a copy of the optimizer's state, but keep ``fused`` and ``foreach``, which depend on this device."""
    kept = ("fused", "foreach", "param_names")
    ways = [{name: group[name] for name in kept if name in group} for group in optimizer.param_groups]
    state = copy.deepcopy({name: value for name, value in saved.items() if name != "optimizer_class"})
    for group in state["param_groups"]:
        group.pop("param_names", None)
    optimizer.load_state_dict(state)
    for group, way in zip(optimizer.param_groups, ways, strict=True):
        group.update(way)


def _as_it_was(optimizer: Optimizer) -> Callable[[], None]:
    """Return a function that undoes :func:`_load_optimizer`, which replaces what it does not own."""
    kept = [(each, dict(vars(each))) for each in {id(o): o for o in (optimizer, unwrapped(optimizer))}.values()]

    def undo() -> None:
        for each, before in kept:
            vars(each).clear()
            vars(each).update(before)

    return undo


def _optimizer_problems(run: Run, state: Mapping[str, Any]) -> Iterator[str]:
    """Say what keeps an optimizer from going on with a saved state."""
    saved, inner = state["optimizer"], unwrapped(run.optimizer)
    groups, sizes = saved["param_groups"], [len(group["params"]) for group in inner.param_groups]
    if [len(group["params"]) for group in groups] != sizes:
        yield (
            f"its optimizer does not fit: groups of {[len(group['params']) for group in groups]} parameters, and "
            f"here of {sizes}; train the same parameters, with the same separate learning rates for transferred ones"
        )
        return
    made_by = str(saved.get("optimizer_class", ""))
    for group, own in zip(groups, inner.param_groups, strict=True):
        why = other_class(ParameterState({}, made_by, own_options(group)), inner, own)
        if why:
            yield f"its optimizer is of another class: {why}; give the optimizer that it was trained with"
            return
    yield from _other_order(saved, _names(inner, run.network))
    if "state" in saved and is_torchs(inner) and not obstacle(run.optimizer):
        yield from _state_problems(inner, saved, made_by)


def _other_order(saved: Mapping[str, Any], names: list[list[str]] | None) -> Iterator[str]:
    before = [list(group.get("param_names", ())) for group in saved["param_groups"]]
    if names is None or not all(before):
        return
    there = [_bare(group) for group in before]
    differing = [
        f"{old} where this one has {new}"
        for old_group, new_group in zip(there, map(_bare, names), strict=True)
        for old, new in zip(old_group, new_group, strict=True)
        if old != new
    ]
    if differing:
        yield f"its optimizer holds other parameters: {listed(differing, 3)}; build it in the same order"


def _state_problems(optimizer: Optimizer, saved: Mapping[str, Any], made_by: str) -> Iterator[str]:
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        for number, parameter in zip(group["params"], own["params"], strict=True):
            state = ParameterState(saved["state"].get(number) or {}, made_by, own_options(group))
            why = unlike(state, optimizer, group, parameter.ndim) if state else ""
            for problem in [why] if why else state_problems(state, parameter, optimizer):
                yield f"its optimizer's state {number} does not fit: {problem}"


def _names(optimizer: Optimizer, model: nn.Module) -> list[list[str]] | None:
    """Return the model's names of the parameters in each group, or ``None`` where some are not the model's."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names.get(id(each), "") for each in group["params"]] for group in optimizer.param_groups]
    return groups if all(all(group) for group in groups) else None


def _bare(names: list[str]) -> list[str]:
    return list(bare_keys(names).values())


# The other parts.


def _weights(run: Run, state: Mapping[str, Any]) -> tuple[WeightTransfer, nn.Module]:
    """Return the transfer of the saved weights, and its target: the model, with its average beside it if any."""
    if run.average is None or state.get("average") is None:
        return WeightTransfer(Checkpoint.from_state_dict(state["model"])), run.network
    parts = {"model": state["model"], "average": state["average"]["average"]}
    both = {f"{part}.{key}": tensor for part, tensors in parts.items() for key, tensor in tensors.items()}
    target = nn.ModuleDict({"model": run.network, "average": run.average._average})
    return WeightTransfer(Checkpoint.from_state_dict(both)), target


def _model_problems(run: Run, state: Mapping[str, Any]) -> Iterator[str]:
    """Say where weights are not the model's own: missing, of another shape or dtype, or more than it has."""
    transfer, target = _weights(run, state)
    plan = transfer.plan(target)
    plan.check()
    if plan.cast:
        yield f"the model has another dtype at {listed(plan.cast, 3)}; build it in the dtype of the run"
    if plan.unexpected:
        yield f"the model has no {listed(plan.unexpected, 3)}; build the network that it was trained with"


def _frozen_problems(run: Run, state: Mapping[str, Any]) -> Iterator[str]:
    here, there = set(run.frozen), set(state["frozen"])
    if tuple(state["frozen"]) != run.frozen:
        yield (
            "it was saved with other frozen layers: "
            f"only now {sorted(here - there) or 'none'}, only then {sorted(there - here) or 'none'}; "
            "freeze the same layers to resume it"
        )


def _average_problems(run: Run, state: Mapping[str, Any]) -> Iterator[str]:
    saved = state.get("average")
    if (saved is None) != (run.average is None):
        was, now = ("with", "without") if run.average is None else ("without", "with")
        yield (
            f"it was saved {was} an average of its weights, and is restored {now} one; "
            "give the protocol that it was trained with"
        )
    elif saved is not None and run.average is not None:
        int(saved["steps"])
        own = repr(run.average.settings)
        yield from _difference("average of weights", saved.get("settings", own), own)


def _schedule_problems(run: Run, state: Mapping[str, Any]) -> Iterator[str]:
    own, saved, kind = run.schedule.state_dict(), state["schedule"], name_of(type(run.schedule))
    if state.get("schedule_class", kind) != kind or saved.keys() != own.keys():
        yield f"its schedule is no {type(run.schedule).__name__}; give the schedule that it was trained with"
    elif any(isinstance(own[name], list) and len(own[name]) != len(saved[name]) for name in own):
        yield "its schedule is for another number of parameter groups"


def _random_problems(run: Run, state: Mapping[str, Any]) -> Iterator[str]:
    saved = state["random"]
    torch.Generator().set_state(saved["cpu"])
    if saved["cuda"] and run.device.type == "cuda":
        torch.Generator(run.device).set_state(saved["cuda"][0])
    yield from ()


def _recipe_problems(run: Run, state: Mapping[str, Any]) -> Iterator[str]:
    """Compare what gives the numbers their meaning. A run of an earlier version does not name its losses."""
    for what in ("objective", "image_loss"):
        own = described(getattr(run, what))
        yield from _difference(what, state.get(what, own), own)
    if "preprocessing" in state:
        saved = Preprocessing.from_dict(state["preprocessing"])
        yield from _difference("preprocessing", saved, run.preprocessing)


def _memory_problems(run: Run, state: Mapping[str, Any]) -> Iterator[str]:
    best = (state.get("stopping") or {}).get("best")
    if best is not None:
        WeightTransfer(Checkpoint.from_state_dict(best)).plan(run.network).check()
    yield from ()


def _difference(what: str, saved: object, own: object) -> Iterator[str]:
    if saved != own:
        yield f"its {what} is {saved or 'none'}, this one's {own or 'none'}; give the {what} that it was trained with"


class Problems(list[str]):
    """What is wrong with a saved run, all of it."""

    of_model = False

    @contextmanager
    def looking_at(self, part: str) -> Iterator[None]:
        """Note what goes wrong with a part of a file, since a part may hold anything."""
        try:
            yield
        except KeyError as error:
            self.append(f"it lacks {error.args[0]!r}; the file is damaged, resume from an earlier one")
        except TransferError as error:
            self.of_model = True  # and its next steps are those of a transfer
            what = str(error).partition("\nNext step")[0]
            self.append(f"{what}\n  Next step: build the network that it was trained with")
        except Exception as error:
            self.append(f"its {part} cannot be read: {type(error).__name__}: {error}")

    def check(self) -> None:
        """Raise if there are any."""
        if self:
            kind = TransferError if self.of_model else StateError
            raise kind(
                "the saved run does not fit, and this one is as it was:\n"
                + "\n".join(f"  {problem}" for problem in self)
            )


def check(run: Run, state: Mapping[str, Any], problems: Problems) -> None:
    """Compare a saved run with the one that is to resume it; everything is looked at, nothing written."""
    parts: dict[str, Callable[[Run, Mapping[str, Any]], Iterator[str]]] = {
        "frozen layers": _frozen_problems,
        "model": _model_problems,
        "optimizer": _optimizer_problems,
        "schedule": _schedule_problems,
        "average": _average_problems,
        "random numbers": _random_problems,
        "recipe": _recipe_problems,
        "stopping": _memory_problems,
    }
    for part, look in parts.items():
        with problems.looking_at(part):
            problems += look(run, state)


def write(run: Run, state: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    """Write a saved run that fits, all of it or nothing: what can be taken back first, the weights last.

    Raises:
        StateError: The optimizer or the schedule refused its state.
    """
    transfer, target = _weights(run, state)
    try:
        with Transaction() as transaction:
            transaction.step(
                partial(_load_optimizer, run.optimizer, state["optimizer"]), undo=_as_it_was(run.optimizer)
            )
            schedule = copy.deepcopy(run.schedule.state_dict())
            transaction.step(
                partial(run.schedule.load_state_dict, copy.deepcopy(state["schedule"])),
                undo=partial(run.schedule.load_state_dict, schedule),
            )
            random = random_state(run.device)
            transaction.step(
                partial(set_random_state, state["random"], run.device),
                undo=partial(set_random_state, random, run.device),
            )
            _set(transaction, run, attributes)
            if run.average is not None:
                _set(transaction, run.average, {"steps": int(state["average"]["steps"])})
            transfer.apply(target)
    except TransferKitError:
        raise
    except Exception as error:
        raise StateError(
            f"the run cannot be resumed, and is as it was: {type(error).__name__}: {error}"
        ) from error


def _set(transaction: Transaction, owner: object, values: Mapping[str, Any]) -> None:
    old = {name: getattr(owner, name) for name in values}

    def assign(to: Mapping[str, Any]) -> None:
        for name, value in to.items():
            setattr(owner, name, value)

    transaction.step(partial(assign, values), undo=partial(assign, old))


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of the generators that dropout draws from: the CPU's and the device's own."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set the generators to a state from :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"][0], device)
