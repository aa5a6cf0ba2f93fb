"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.finetune.tiny import SETTINGS, Stream, tiny_run
from transferkit.errors import (
    ArgumentError,
    CheckpointError,
    DivergedError,
    MissingFileError,
    StateError,
    TransferError,
)
from transferkit.finetune import fit, read_run
from transferkit.finetune.optimizer import build_optimizer


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
