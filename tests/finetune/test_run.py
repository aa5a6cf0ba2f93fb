"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import copy
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from tests.finetune.tiny import SETTINGS, Stream, tiny_run
from transferkit.checkpoints import read_checkpoint
from transferkit.errors import (
    ArgumentError,
    CheckpointError,
    DivergedError,
    MissingFileError,
    OutputError,
    StateError,
    TransferError,
)
from transferkit.finetune import AveragedWeights, Run, StopEarly, fit, read_run
from transferkit.finetune import run as run_module
from transferkit.finetune.optimizer import build_optimizer
from transferkit.heads import MultiLabel
from transferkit.optimization import EarlyStopping, WeightAverage
from transferkit.transfer import WeightTransfer


def test_training_lowers_the_loss_and_records_every_epoch() -> None:
    run = tiny_run()
    history = fit(run, Stream(), epochs=4)
    assert [record.epoch for record in history] == [1, 2, 3, 4]
    assert history[-1].loss < history[0].loss
    assert [record.learning_rate for record in history] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert {record.patches for record in history} == {80}


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_stopping_and_resuming_gives_bit_equal_weights(tmp_path: Path, stop: int) -> None:
    at_once = tiny_run()
    fit(at_once, Stream(), epochs=4)

    first = tiny_run()
    fit(first, Stream(), epochs=stop)
    first.save(tmp_path / "run.pt")
    torch.manual_seed(999)  # whatever happened in between
    second = tiny_run(seed=5)
    second.restore(read_run(tmp_path / "run.pt"))
    fit(second, Stream(), epochs=4)

    for (name, one), other in zip(
        at_once.model.state_dict().items(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    assert [r.loss for r in second.history] == [r.loss for r in at_once.history]


def test_a_run_checkpoint_holds_plain_values_only(tmp_path: Path) -> None:
    run = tiny_run()
    run.settings = {"protocol": "neon2016", "class_names": ("background", "cat")}
    fit(run, Stream(), epochs=1)
    state = torch.load(run.save(tmp_path / "run.pt"), weights_only=True)
    assert state["epoch"] == 1
    assert state["settings"]["class_names"] == ("background", "cat")
    assert state["preprocessing"]["scale"] == 255


def test_only_the_last_epochs_are_kept(tmp_path: Path) -> None:
    (tmp_path / "run_best.pt").touch()  # not ours
    run = tiny_run()
    fit(run, Stream(), epochs=4, after_epoch=lambda run: run.save(tmp_path / "run.pt", keep=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.pt", "run_3.pt", "run_4.pt", "run_best.pt"]
    assert read_run(tmp_path / "run_3.pt")["epoch"] == 3
    assert read_run(tmp_path / "run.pt")["epoch"] == 4


def test_another_architecture_is_refused_with_the_difference_and_changes_nothing(tmp_path: Path) -> None:
    tiny_run(hidden=16).save(tmp_path / "run.pt")
    other = tiny_run(hidden=20, seed=3)
    before = {key: value.clone() for key, value in other.model.state_dict().items()}
    with pytest.raises(TransferError, match=r"(?s)5.*\[20, 32\].*\[16, 32\]|5.*\[16, 32\].*\[20, 32\]"):
        other.restore(read_run(tmp_path / "run.pt"))
    assert all(torch.equal(before[key], value) for key, value in other.model.state_dict().items())


def test_other_frozen_layers_are_refused_by_name(tmp_path: Path) -> None:
    tiny_run(frozen=("0",)).save(tmp_path / "run.pt")
    with pytest.raises(StateError, match=r"only now none, only then \['0'\]"):
        tiny_run().restore(read_run(tmp_path / "run.pt"))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no run checkpoint at"):
        read_run(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read as a run checkpoint"):
        read_run(tmp_path / "text.pt")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="is not a run checkpoint.*--weights"):
        read_run(tmp_path / "weights.pt")
    torch.save({"format": "transferkit-run", "version": 99}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="version 99.*update transferkit"):
        read_run(tmp_path / "new.pt")
    for damaged in ({"version": "1"}, {}, {"version": 1}, {"version": 1, "settings": {}, "history": 3}):
        torch.save({"format": "transferkit-run", **damaged}, tmp_path / "damaged.pt")
        with pytest.raises(CheckpointError, match=r"damaged\.pt is a .*run checkpoint"):
            read_run(tmp_path / "damaged.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(CheckpointError, match="cannot be read as a run checkpoint: "):
        read_run(tmp_path / "empty.pt")


def test_a_run_is_read_into_memory_so_that_the_next_epoch_can_replace_its_file(tmp_path: Path) -> None:
    path = tiny_run().save(tmp_path / "run.pt")
    state = read_run(path)
    before = {name: tensor.clone() for name, tensor in state["model"].items()}
    path.write_bytes(b"\xff" * path.stat().st_size)  # in place, where a mapped tensor would see it
    assert all(torch.equal(before[name], tensor) for name, tensor in state["model"].items())


def test_a_diverging_loss_ends_the_epoch_with_a_next_step() -> None:
    run = tiny_run()
    with pytest.raises(DivergedError, match="epoch 1 at learning rate 0.1; lower the learning rate"):
        fit(run, Stream(scale=math.inf), epochs=1)
    assert run.epoch == 0


def test_a_minibatch_of_ignored_patches_changes_nothing_but_the_momentum() -> None:
    class Ignored(Stream):
        def __iter__(self):
            for batch in super().__iter__():
                batch.labels.fill_(-100)
                yield batch

    run = tiny_run()
    before = run.model[5].weight.detach().clone()
    record = fit(run, Ignored(), epochs=1)[0]
    assert (record.loss, record.patches) == (0, 0)
    decayed = before * math.prod(1 - 0.1 * 1e-3 for _ in range(5))
    torch.testing.assert_close(run.model[5].weight, decayed, rtol=1e-3, atol=1e-5)


def test_how_the_optimizer_computes_is_the_device_s_matter_and_not_the_run_s(tmp_path: Path) -> None:
    run = tiny_run()
    fit(run, Stream(), epochs=1)
    state = run.state_dict()
    state["optimizer"]["param_groups"][0]["fused"] = True
    other = tiny_run()
    other.restore(state)
    assert not other.optimizer.param_groups[0]["fused"]
    assert other.optimizer.param_groups[0]["lr"] == run.optimizer.param_groups[0]["lr"]


def test_large_networks_are_updated_in_one_pass_which_equals_the_plain_loop() -> None:
    torch.manual_seed(0)
    models = [torch.nn.Linear(n, 1000) for n in (1000, 10)]
    assert [build_optimizer(m.parameters(), SETTINGS).param_groups[0]["fused"] for m in models] == [True, False]
    plain = torch.nn.Linear(1000, 1000)
    plain.load_state_dict(models[0].state_dict())
    optimizers = [build_optimizer(m.parameters(), SETTINGS) for m in (models[0], plain)]
    optimizers[1].param_groups[0]["fused"] = False
    for seed in range(3):
        for model in (models[0], plain):
            gradient = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(seed))
            model.weight.grad, model.bias.grad = gradient, gradient[0].clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(models[0].weight, plain.weight, rtol=0, atol=1e-6)


def test_training_nothing_is_an_error() -> None:
    run = tiny_run()
    run.model.requires_grad_(False)
    with pytest.raises(ArgumentError, match="every parameter is frozen"):
        build_optimizer(run.model.parameters(), SETTINGS)


KILLED = """
import sys
from pathlib import Path
from tests.finetune.tiny import SETTINGS, Stream, tiny_run
from transferkit.finetune import fit, read_run
path = Path(sys.argv[1])
run = tiny_run(hidden=4000)
if path.exists():
    run.restore(read_run(path))
print("ready", flush=True)
fit(run, Stream(), epochs=10_000, after_epoch=lambda run: run.save(path, keep=2))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the platform has no SIGKILL")
def test_every_kill_leaves_a_run_that_goes_on(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "run.pt"
    rng = random.Random(0)
    epochs = []
    for _ in range(int(os.environ.get("TRANSFERKIT_KILLS", "2"))):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], cwd=root, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.6))
        process.kill()
        process.wait()
        process.stdout.close()
        if path.exists():
            run = tiny_run(hidden=4000)
            run.restore(read_run(path))
            epochs.append(run.epoch)
    assert epochs == sorted(epochs)
    assert epochs and epochs[-1] > 0


def test_a_resumed_run_goes_on_deleting_its_own_epochs_and_no_other_s(tmp_path: Path) -> None:
    path, run, other = tmp_path / "run.pt", tiny_run(), tiny_run()
    other.epoch = 1
    other.save(tmp_path / "other.pt")
    (tmp_path / "other.pt").rename(tmp_path / "run_1.pt")
    for epoch in (2, 3):
        run.epoch = epoch
        run.save(path, keep=2)
    resumed = tiny_run()
    resumed.restore(read_run(path))
    assert resumed.identity == run.identity != other.identity
    resumed.epoch = 4
    resumed.save(path, keep=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.pt", "run_1.pt", "run_3.pt", "run_4.pt"]
    other.epoch = 4
    with pytest.raises(OutputError, match=r"holds run_3\.pt, run_4\.pt, which another run wrote"):
        other.require_numbers(path, 2, 9)


def test_a_run_that_ends_between_the_two_files_of_an_epoch_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run, write = tmp_path / "run.pt", tiny_run(), run_module.write_atomically
    for epoch in (1, 2):
        run.epoch = epoch
        run.save(path, keep=2)

    def killed(file: Path, content: object) -> None:
        if file == path:
            raise KeyboardInterrupt
        write(file, content)

    run.epoch = 3
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module, "write_atomically", killed)
        run.save(path, keep=2)
    resumed = tiny_run()
    resumed.restore(read_run(path))
    assert resumed.epoch == 2
    for epoch in (3, 4):
        resumed.epoch = epoch
        resumed.save(path, keep=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.pt", "run_3.pt", "run_4.pt"]


# A run fits, or the one that was to resume it is bit for bit as it was.


def everything(run: Run) -> dict[str, object]:
    """A copy of all that a restoration writes to."""
    return copy.deepcopy(
        {
            "model": dict(run.model.state_dict()),
            "optimizer": run.optimizer.state_dict(),
            "schedule": run.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "plain": [run.epoch, run.history, run.transfer, run.sampler_state, run.stopping],
            "average": run.average and run.average.state_dict(),
        }
    )


def equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def averaged_run(seed: int = 0, decay: float = 0.9) -> Run:
    run = tiny_run(seed=seed)
    run.average = AveragedWeights(run.model, run.optimizer, WeightAverage(decay), steps_per_epoch=5)
    return run


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = averaged_run()
    fit(run, Stream(), epochs=2, stop=StopEarly(EarlyStopping(), lambda run: -run.history[-1].loss))
    return run.save(tmp_path_factory.mktemp("run") / "run.pt")


def nested(state: dict[str, object], *keys: object) -> dict[object, object]:
    for key in keys:
        state = state[key]
    return state


PARTS = (
    "epoch",
    "history",
    "frozen",
    "transfer",
    "sampler",
    "random",
    "schedule",
    "optimizer",
    "model",
    "average",
)
SPOILT: dict[str, Callable[[dict[str, object]], object]] = {
    **{f"no {part}": lambda state, part=part: state.pop(part) for part in PARTS},
    **{f"{part} a number": lambda state, part=part: state.update({part: 7.5}) for part in PARTS},
    "unknown field": lambda state: state["history"][0].update(nonsense=1),
    "short random state": lambda state: state["random"].update(cpu=torch.zeros(3, dtype=torch.uint8)),
    "momentum of another shape": lambda state: nested(state, "optimizer", "state", 0).update(
        momentum_buffer=torch.zeros(9)
    ),
    "NaN momentum": lambda state: nested(state, "optimizer", "state", 0)["momentum_buffer"].fill_(math.nan),
    "half a state": lambda state: (
        nested(state, "optimizer", "state", 0).clear()
        or nested(state, "optimizer", "state", 0).update(exp_avg=torch.zeros(8, 3, 3, 3))
    ),
    "NaN weight": lambda state: state["model"]["0.weight"].fill_(math.nan),
    "NaN average": lambda state: state["average"]["average"]["module.0.weight"].fill_(math.nan),
    "a weight less": lambda state: state["model"].pop("7.bias"),
    "a weight more": lambda state: state["model"].update({"8.weight": torch.zeros(2)}),
    "another dtype": lambda state: state["model"].update({"7.bias": state["model"]["7.bias"].half()}),
    "other parameters": lambda state: nested(state, "optimizer", "param_groups", 0)["param_names"].reverse(),
    "another optimizer": lambda state: state["optimizer"].update(optimizer_class="torch.optim.muon.Muon"),
    "another schedule": lambda state: state.update(schedule_class="torch.optim.lr_scheduler.StepLR"),
    "more groups": lambda state: state["schedule"]["base_lrs"].append(1),
    "another objective": lambda state: state.update(objective="MultiLabel(positive_weight=1.0)"),
    "an image loss": lambda state: state.update(image_loss="ImageLoss()"),
    "other pixels": lambda state: state["preprocessing"].update(scale=1),
    "another memory": lambda state: state["stopping"]["best"].pop("0.weight"),
    "another average": lambda state: state["average"].update(settings="WeightAverage(decay=0.5)"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_run_that_does_not_fit_changes_nothing(kind: str, saved_run: Path) -> None:
    state = read_run(saved_run)
    SPOILT[kind](state)
    run = averaged_run(seed=4)
    fit(run, Stream(), epochs=1)
    before = everything(run)
    with pytest.raises((StateError, TransferError)):
        run.restore(state)
    assert equal(before, everything(run))
    run.restore(read_run(saved_run))
    assert not equal(before, everything(run)) and run.epoch == 2


def test_a_failure_while_writing_is_taken_back(saved_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((SGD, "load_state_dict"), (LambdaLR, "load_state_dict"), (torch, "set_rng_state")):
        run = averaged_run(seed=4)
        fit(run, Stream(), epochs=1)
        before, real, left = everything(run), getattr(owner, name), [1]

        def fail(*args: object, real: object = real, left: list[int] = left) -> object:
            result = real(*args)
            if left:
                left.pop()
                raise RuntimeError("injected")
            return result

        with monkeypatch.context() as patch, pytest.raises(StateError, match="injected"):
            patch.setattr(owner, name, fail)
            run.restore(read_run(saved_run))
        assert equal(before, everything(run))


def test_all_that_differs_is_said_at_once(tmp_path: Path) -> None:
    run = tiny_run(frozen=("0",))
    run.objective = MultiLabel()
    fit(run, Stream(), epochs=1)
    other = averaged_run()
    with pytest.raises(StateError) as caught:
        other.restore(read_run(run.save(tmp_path / "run.pt")))
    for part in ("frozen layers", "groups of", "without an average", "objective is MultiLabel"):
        assert part in str(caught.value)


@pytest.mark.parametrize("written", ["now", "by an earlier version"])
def test_a_run_is_not_resumed_by_another_optimizer(tmp_path: Path, written: str) -> None:
    run = tiny_run()
    fit(run, Stream(), epochs=1)
    state = read_run(run.save(tmp_path / "run.pt"))
    if written != "now":
        state["optimizer"].pop("optimizer_class")
    other = tiny_run()
    other.optimizer = torch.optim.AdamW(other.model.parameters())
    before = everything(other)
    with pytest.raises(StateError, match="optimizer is of another class: .*AdamW"):
        other.restore(state)
    assert equal(before, everything(other))


def test_a_run_of_an_earlier_version_is_resumed(saved_run: Path) -> None:
    """It has neither names nor classes, losses or a memory."""
    state = read_run(saved_run)
    for key in ("schedule_class", "objective", "image_loss", "stopping"):
        del state[key]
    del state["optimizer"]["optimizer_class"], state["optimizer"]["param_groups"][0]["param_names"]
    del state["average"]["settings"]
    run = averaged_run(seed=4)
    run.restore(state)
    fit(run, Stream(), epochs=3)
    whole = averaged_run()
    fit(whole, Stream(), epochs=3)
    assert equal(dict(run.tested_model.state_dict()), dict(whole.tested_model.state_dict()))


def test_a_restored_run_shares_no_memory_with_the_one_that_it_came_from() -> None:
    first, second = tiny_run(), tiny_run(seed=1)
    fit(first, Stream(), epochs=1)
    second.restore(first.state_dict())
    before = everything(first)
    fit(second, Stream(), epochs=2)
    assert equal(before["optimizer"], first.optimizer.state_dict())
    assert "param_names" not in second.optimizer.param_groups[0]


def test_a_run_file_gives_each_layer_the_state_of_its_own_parameters(tmp_path: Path) -> None:
    run = tiny_run()
    run.model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    settings = replace(SETTINGS, transferred=0.1)
    run.optimizer = build_optimizer(run.model.parameters(), settings, transferred=run.model[0].parameters())
    run.model(torch.randn(3, 4)).square().sum().backward()
    run.optimizer.step()
    checkpoint = read_checkpoint(run.save(tmp_path / "run.pt"))
    for layer in checkpoint:
        for short, state in layer.states.items():
            own = run.optimizer.state[run.model.get_parameter(layer.key(short))]
            assert torch.equal(state["momentum_buffer"], own["momentum_buffer"])
            assert state.made_by == "torch.optim.sgd.SGD"
    assert all(len(layer.states) == 2 for layer in checkpoint)


def test_a_transfer_report_as_plain_values_is_taken_as_one(tmp_path: Path) -> None:
    run = tiny_run()
    report = WeightTransfer(tiny_run(seed=1).model).apply(run.model)
    plain = Run(run.model, run.optimizer, run.schedule, run.preprocessing, transfer=report.to_dict())
    plain.restore(read_run(plain.save(tmp_path / "run.pt")))
    assert plain.transfer.copied == report.copied
