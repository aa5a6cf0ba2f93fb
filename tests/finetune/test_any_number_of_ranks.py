"""Two and three ranks end as one process does: weights, choices, thresholds, scores, and words where they cannot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.finetune import alike
from tests.finetune.launch import torchrun

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder, threads, here = tmp_path_factory.mktemp("alone"), torch.get_num_threads(), Path.cwd()
    torch.set_num_threads(1)  # as torchrun gives each rank
    try:
        alike.main(folder)
    finally:
        torch.set_num_threads(threads)
        os.chdir(here)
    return torch.load(folder / "0_of_1.pt", weights_only=False)


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each rank found."""
    folder, world = tmp_path_factory.mktemp("ranks"), request.param
    with torchrun(Path(alike.__file__), folder, ranks=world) as process:
        said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said[-3000:]
    assert "find_unused_parameters" not in said
    return [torch.load(folder / f"{rank}_of_{world}.pt", weights_only=False) for rank in range(world)]


def compare(one: Any, other: Any, **tolerance: float) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            compare(one[key], other[key], **tolerance)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for ours, theirs in zip(one, other, strict=True):
            compare(ours, theirs, **tolerance)
    elif isinstance(one, (torch.Tensor, float)):
        torch.testing.assert_close(one, other, equal_nan=True, **tolerance)
    else:
        assert one == other


@pytest.mark.parametrize("check", ["own_loop", *(check.__name__ for check in alike.CHECKS)])
def test_all_ranks_find_the_same(ranks: list[Found], check: str) -> None:
    for found in ranks[1:]:
        compare(found[check], ranks[0][check], rtol=0, atol=0)


@pytest.mark.parametrize("check", ["own_loop", "classifier", "steps", "statistics", "decisions"])
def test_they_find_what_one_process_does(ranks: list[Found], alone: Found, check: str) -> None:
    compare(ranks[0][check]["alone"], alone[check]["alone"], rtol=1e-5, atol=1e-5)


def test_the_steps_of_a_run_move_its_weights_by_far_more(alone: Found) -> None:
    started = alike.Moody().state_dict()
    for mix in (1, 2, 3):
        moved = alone["steps"]["alone"][f"mix {mix}"]
        assert max((moved[name] - value).abs().max() for name, value in started.items()) > 1e-2
        assert torch.equal(moved["never.weight"], started["never.weight"])  # no weight decay either


def test_some_ranks_had_fillers_where_layers_wait_for_all(ranks: list[Found]) -> None:
    fillers = ranks[0]["talks"]["fillers"]
    assert min(fillers) == 0 < max(fillers)


def test_a_model_that_is_wrapped_already_is_saved_under_its_own_names(ranks: list[Found], alone: Found) -> None:
    assert ranks[0]["given"]["names"] == alone["given"]["names"]


def test_one_rank_alone_decides_nothing(ranks: list[Found]) -> None:
    found = ranks[0]["decisions"]
    assert found["epochs"] == 2
    assert "measure must give the same on all ranks, got 0.5 on rank 0, 1.5 on rank 1" in found["measure"]
    assert f"{len(ranks)} share minibatches of 1 photos; start 1 processes at most" in found["image loss"]
    assert "infinite or NaN logits" in found["sick"]


def test_a_sharded_model_is_refused_by_fit_and_scored(ranks: list[Found]) -> None:
    found = ranks[0]["sharded"]
    assert "sharded among the ranks" in found["fit"] and "many-devices.md" in found["fit"]
    assert "network must be the module itself" in found["classifier"]
    torch.testing.assert_close(*found["scores"])
