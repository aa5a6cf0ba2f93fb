"""Whatever fails, wherever: the model and its optimizer are as they were, or wholly changed, never in between."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import transferkit.transfer
from transferkit.errors import HandlerError, TransferError
from transferkit.transfer import WeightTransfer
from transferkit.transfer._write import Transaction, Write

FAULTS = [MemoryError, KeyboardInterrupt]
PACKAGE = transferkit.transfer.__path__[0]


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 6), nn.Linear(6, 2))


def trained(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if optimizer is not None:
        for number, held in optimizer.state_dict()["state"].items():
            state |= {f"{number} {name}": value.clone() for name, value in held.items()}
    return state


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class FaultAtWrite(TorchDispatchMode):
    """Raises at the n-th operation that writes to a model, before or after it is carried out."""

    def __init__(
        self, tensors: list[Tensor], number: int, fault: type[BaseException], after: bool = False
    ) -> None:
        super().__init__()
        self.memory = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self.left, self.fault, self.after = number, fault, after
        self.writes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        due = self._writes_to_the_model(function, args) and self.left == 0
        if due and not self.after:
            raise self.fault("injected")
        result = function(*args, **(kwargs or {}))
        if self._writes_to_the_model(function, args):
            self.writes += 1
            self.left -= 1
        if due:
            raise self.fault("injected")
        return result

    def _writes_to_the_model(self, function, args) -> bool:
        if not function._schema.is_mutable or not args:
            return False
        tensors = args[0] if isinstance(args[0], list | tuple) else [args[0]]
        return any(isinstance(t, Tensor) and t.untyped_storage().data_ptr() in self.memory for t in tensors)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_every_write(fault, after):
    source = net(1)
    model = net(2)
    with FaultAtWrite(list(model.state_dict().values()), -1, fault) as counting:
        WeightTransfer(source).apply(model)
    assert counting.writes == 1  # one call for all tensors: nothing can happen between two of them
    for number in range(counting.writes):
        model = net(2)
        old = snapshot(model)
        with (
            pytest.raises(fault, match="injected"),
            FaultAtWrite(list(model.state_dict().values()), number, fault, after),
        ):
            WeightTransfer(source).apply(model)
        assert same(snapshot(model), snapshot(source) if after else old)


class FaultAtOperation(TorchDispatchMode):
    """Raises before the n-th operation of any kind."""

    def __init__(self, number: int, fault: type[BaseException]) -> None:
        super().__init__()
        self.number, self.count, self.fault = number, 0, fault

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.count == self.number:
            raise self.fault("injected")
        self.count += 1
        return function(*args, **(kwargs or {}))


def double(source, target):
    """A handler with several steps, any of which may fail."""
    return {short: tensor * 2 for short, tensor in source.tensors.items() if tensor.is_floating_point()}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_every_operation_of_handlers_states_and_writes(fault):
    source = net(1)
    donor = WeightTransfer(source, handlers={"0": double, "4": double})

    def run(number: int) -> tuple[int, bool]:
        model = net(2)
        optimizer = trained(model)
        old = snapshot(model, optimizer)
        try:
            with FaultAtOperation(number, fault) as mode:
                donor.apply(model, optimizer)
        except (fault, HandlerError):
            assert same(snapshot(model, optimizer), old)
            return mode.count, False
        return mode.count, True

    total, done = run(-1)
    assert done and total > 20
    for number in range(total):
        assert run(number) == (number, False)


def with_states(model: nn.Module):
    """A source whose layers carry Adam's state."""
    from transferkit.checkpoints import Checkpoint

    return Checkpoint.from_model(model, trained(model))


def lines_of(
    run: Callable[[], object], files: tuple[str, ...], stop_at: int, fault: type[BaseException]
) -> int:
    """Run with a fault before the n-th line of the given files; return how many lines there were."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if not frame.f_code.co_filename.endswith(files):
            return None
        if event == "line":
            if count == stop_at:
                sys.settrace(None)
                raise fault("injected")
            count += 1
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    return count


@pytest.mark.parametrize("meta", [False, True])
def test_an_interrupt_before_every_line_that_changes_something(meta):
    files = tuple(f"{PACKAGE}/{name}.py" for name in ("_write",))
    source = with_states(net(1))
    transfer = WeightTransfer(source, device="cpu" if meta else None, load_states=not meta)

    def start() -> tuple[nn.Module, torch.optim.Optimizer | None]:
        if not meta:
            model = net(2)
            return model, trained(model)
        with torch.device("meta"):
            return net(2), None

    def describe(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
        if any(tensor.is_meta for tensor in model.state_dict().values()):
            return {"meta": torch.tensor([tensor.is_meta for tensor in model.state_dict().values()])}
        return snapshot(model, optimizer)

    model, optimizer = start()
    old = describe(model, optimizer)
    total = lines_of(lambda: transfer.apply(model, optimizer), files, -1, KeyboardInterrupt)
    new = describe(model, optimizer)
    outcomes = []
    for number in range(total):
        model, optimizer = start()
        with pytest.raises(KeyboardInterrupt):
            lines_of(lambda m=model, o=optimizer: transfer.apply(m, o), files, number, KeyboardInterrupt)
        found = describe(model, optimizer)
        outcomes.append(same(found, new))
        assert outcomes[-1] or same(found, old), f"line {number} of {total}"
    assert (
        outcomes == sorted(outcomes) and not outcomes[0]
    )  # unchanged up to the one write, changed from then on


def test_real_interrupts_at_any_time():
    source, model = nn.Linear(2000, 2000), nn.Linear(2000, 2000)
    new = snapshot(source)
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are handled in the main thread")
    transfer = WeightTransfer(source)
    for attempt in range(40):
        with torch.no_grad():
            model.weight.zero_()
            model.bias.zero_()
        old = snapshot(model)
        timer = threading.Timer(attempt * 0.0004, signal.raise_signal, [signal.SIGINT])
        try:
            timer.start()
            transfer.apply(model)
            timer.join()
            time.sleep(0.001)
        except KeyboardInterrupt:
            pass
        assert same(snapshot(model), old) or same(snapshot(model), new)


@pytest.mark.parametrize("fault", [ValueError, MemoryError])
def test_a_handler_that_fails_half_way_is_named(fault):
    calls = 0

    def fails_on_values(source, target):
        nonlocal calls
        calls += not source.tensors["weight"].is_meta
        if calls == 2:
            raise fault("no more")
        return dict(source.tensors)

    source, model = net(1), net(2)
    old = snapshot(model)
    with pytest.raises(HandlerError, match=r"fails_on_values from '3' to '3' raised \w+: no more"):
        WeightTransfer(
            source, handlers={"0": fails_on_values, "3": fails_on_values, "4": fails_on_values}
        ).apply(model)
    assert same(snapshot(model), old)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ({"weight": torch.zeros(9)}, r"returned weight \[9\] where the target has \[2, 6\]"),
        ({"scale": torch.zeros(2)}, r"returned scale \[2\] where the target has none"),
        ({"weight": None}, "returned None for weight"),
        ([1], "returned a list"),
    ],
)
def test_a_handler_that_returns_nonsense_is_named(result, says):
    model = net(2)
    old = snapshot(model)
    with pytest.raises(HandlerError, match=says):
        WeightTransfer(net(1), handlers={"4": lambda source, target: result}).apply(model)
    assert same(snapshot(model), old)


def test_nan_infinity_and_overflow_are_refused():
    for value, dtype, says in [
        (float("nan"), torch.float32, "1 of 12 values are NaN or infinite"),
        (float("-inf"), torch.float16, "1 of 12 values are NaN or infinite"),
        (1e30, torch.float16, "1 of 12 values overflow float16"),
    ]:
        source, model = net(1), net(2).to(dtype)
        with torch.no_grad():
            source[4].weight[1, 2] = value
        old = snapshot(model)
        with pytest.raises(TransferError, match=f"4.weight: {says}"):
            WeightTransfer(source).apply(model)
        assert same(snapshot(model), old)


def test_large_finite_values_are_no_infinity():
    source, model = nn.Linear(40, 40), nn.Linear(40, 40)
    nn.init.constant_(source.weight, 3e38)  # their sum overflows
    WeightTransfer(source).apply(model)
    assert (model.weight == 3e38).all()


def test_what_was_not_searched_is_said(monkeypatch):
    monkeypatch.setattr("transferkit.transfer._write.CHECKED_ELEMENTS", 20)
    report = WeightTransfer(net(1)).apply(net(2))
    assert any("were not searched for NaN" in note for note in report.notes)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 6), st.integers(0, 6), st.booleans())
def test_a_transaction_undoes_in_reverse_order(steps, failing, also_write):
    done: list[int] = []
    weight = torch.zeros(2)

    def step(number: int) -> None:
        if number == failing:
            raise ValueError("stop")
        done.append(number)

    def run() -> None:
        with Transaction() as transaction:
            for number in range(steps):
                transaction.step(lambda n=number: step(n), undo=lambda n=number: n in done and done.remove(n))
            if also_write:
                transaction.write([Write("weight", weight, torch.ones(2))])

    if failing < steps:
        with pytest.raises(ValueError, match="stop"):
            run()
        assert done == [] and (weight == 0).all()
    else:
        run()
        assert done == list(range(steps)) and (weight == float(also_write)).all()
