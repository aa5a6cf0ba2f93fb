"""Ranks that begin with something different are told what, and which; those that stop do so together; a slow one is named."""

from __future__ import annotations

import json
import math
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch

from tests.finetune import starts
from tests.finetune.launch import torchrun
from transferkit import launching, stopping
from transferkit.distributed import warn_of_no_group
from transferkit.errors import ArgumentError, StateError
from transferkit.finetune import Stopped, fit, read_run
from transferkit.finetune._fitting import train

needs_ranks = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict]]:
    """What all ranks said, and what each found."""
    folder = tmp_path_factory.mktemp("starts")
    with torchrun(Path(starts.__file__), folder, ranks=request.param) as process:
        said = process.communicate(timeout=240)[0]
    found = [folder / f"{rank}.json" for rank in range(request.param)]
    assert all(path.exists() for path in found), said[-3000:]
    return said, [json.loads(path.read_text()) for path in found]


@needs_ranks
def test_what_differs_is_refused_on_all_ranks_by_name_and_number(ranks) -> None:
    told = [found["refused"] for found in ranks[1]]
    last = len(told) - 1
    for name in told[0]:
        words = {each[name] for each in told}
        assert len(words) == 1, words
        (word,) = words
        if name in ("alike", "unshared folder"):
            assert word == "begun"
        elif name in ("leave out its rank", "no room"):
            assert name in word and "rank " in word
        else:
            line = next(line for line in word.splitlines() if line.startswith(f"  {name}: "))
            assert f"on rank {last}" in line and "on rank" in line.partition(";")[0], word


@needs_ranks
def test_a_sampler_made_before_the_group_shares_the_patches(ranks) -> None:
    assert sum(found["patches"] for found in ranks[1]) == starts.PHOTOS * starts.PATCHES


@needs_ranks
def test_sigterm_to_one_rank_stops_all_after_one_step_and_the_run_goes_on_as_if_it_had_not(ranks) -> None:
    stops = [found["stopped"] for found in ranks[1]]
    assert stops == [stops[0]] * len(stops)
    code, steps, equal, near, patches, loss = stops[0]
    assert code == 128 + signal.SIGTERM
    assert steps == 15
    assert equal or len(stops) > 2, "weights; of more ranks sums are taken in another order after a start"
    assert near, "running statistics are averaged once more"
    assert patches == starts.PHOTOS * starts.PATCHES
    assert loss == pytest.approx(0, abs=1e-9)


@needs_ranks
def test_a_wait_outlasts_the_timeout_and_an_exchange_names_who_is_slow(ranks) -> None:
    said, found = ranks
    assert [each["awaited"] for each in found] == [len(found)] * len(found)
    assert "waited 2 s for rank 1, which is slow" in " ".join(said.split()), said[-3000:]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No launcher's variables."""
    for names in (*launching._LAUNCHERS.values(), ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")):
        for name in names:
            monkeypatch.delenv(name, raising=False)
    return monkeypatch


SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}


@pytest.mark.parametrize("variables", [SLURM, OPEN_MPI])
def test_srun_and_mpirun_tell_a_process_its_place(alone: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        alone.setenv(name, value)
    assert launching.launched() == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert launching.local_rank() == 1
    with pytest.warns(UserWarning, match="rank 5 of 8, and there is no process group"):
        warn_of_no_group()


@pytest.mark.parametrize("variables", [{"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
                                       {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, {}])  # fmt: skip
def test_the_script_of_sbatch_is_no_rank(alone: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        alone.setenv(name, value)
    assert launching.launched() is None
    assert launching.local_rank() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_no_group()


@pytest.mark.parametrize(("nodes", "first"), [("vm", "vm"), ("a1,b2", "a1"), ("node[007-009,12],head", "node007"),
                                              ("rack[1-2]n[3,5]", "rack1n3")])  # fmt: skip
def test_ranks_of_srun_meet_on_their_first_machine(alone: pytest.MonkeyPatch, nodes: str, first: str) -> None:
    for name, value in {**SLURM, "SLURM_STEP_NODELIST": nodes}.items():
        alone.setenv(name, value)
    assert launching.meeting_point({"RANK": "5", "WORLD_SIZE": "8"}) == {
        "MASTER_ADDR": first,
        "MASTER_PORT": "20007",
    }


def test_ranks_of_mpirun_on_several_machines_ask_where_to_meet(alone: pytest.MonkeyPatch) -> None:
    place = {"RANK": "5", "WORLD_SIZE": "8"}
    alone.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "8")
    assert launching.meeting_point(place)["MASTER_ADDR"] == "127.0.0.1"
    alone.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "4")
    with pytest.raises(ArgumentError, match="mpirun -x MASTER_ADDR=HOST"):
        launching.meeting_point(place)


def test_a_restart_knows_when_its_job_began(alone: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "attempt_0").mkdir()
    alone.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_1" / "0" / "error.json"))
    assert launching.first_start() == math.inf
    alone.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert launching.first_start() == (tmp_path / "attempt_0").stat().st_mtime


@pytest.fixture
def heeded(monkeypatch: pytest.MonkeyPatch):
    """SIGTERM ends training between steps, for this test alone."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    monkeypatch.setattr(stopping, "_state", stopping._State())
    stopping.stop_on_sigterm()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no such signals")
def test_a_stopped_epoch_goes_on_where_it_was_and_the_last_whole_one_stays(heeded, tmp_path: Path) -> None:
    stops = starts.stopped_and_resumed(tmp_path, 0, 1)
    assert stops[:3] == [143, 15, True]
    assert read_run(tmp_path / "run.pt")["epoch"] == 0


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no such signals")
def test_the_last_whole_epoch_stays_beside_a_stopped_one(heeded, tmp_path: Path) -> None:
    run, path = starts.run_of(), tmp_path / "run.pt"
    run.optimizer.register_step_post_hook(
        lambda *_: (
            os.kill(os.getpid(), signal.SIGTERM) if run.epoch == 1 and not stopping._state.asked else None
        )
    )
    with pytest.raises(Stopped):
        fit(run, starts.sampler(), 3, after_epoch=lambda run: run.save(path))
    run.save(path)
    assert [read_run(tmp_path / name).get("unfinished") is None for name in ("run.pt", "run_1.pt")] == [
        False,
        True,
    ]
    run.unfinished.random.append(run.unfinished.random[0])  # as if on two ranks
    with pytest.raises(StateError, match=r"within epoch 2 on 2 ranks.*not 1.*_1"):
        train(None, run, starts.sampler(), None, None, lambda run: None)
