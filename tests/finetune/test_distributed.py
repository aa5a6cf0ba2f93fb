"""Several processes train and test as one would: the same steps, the same scores, one voice, and no silent loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.finetune import ranked
from tests.finetune.launch import torchrun
from transferkit import distributed
from transferkit.errors import ArgumentError
from transferkit.finetune import fill_scorer

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What each of two ranks, and one process of its own, came to."""
    folder = tmp_path_factory.mktemp("ranks")
    with torchrun(Path(ranked.__file__), folder) as process:
        said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said[-3000:]
    (folder / "alone").mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun gives each rank: on some processors another number rounds otherwise
    try:
        ranked.main(folder / "alone")
    finally:
        torch.set_num_threads(threads)
    paths = {"0": folder / "0_of_2.pt", "1": folder / "1_of_2.pt", "alone": folder / "alone" / "0_of_1.pt"}
    return {"said": said, **{name: torch.load(path, weights_only=True) for name, path in paths.items()}}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)


@pytest.mark.parametrize("step", ["each", "accumulated"])
def test_two_ranks_step_as_one_process_does_on_the_patches_of_both(found, step: str) -> None:
    """Some patches are ignored, unequally, and at the end one rank has none of its own."""
    assert_same(found["0"][step], found["1"][step], rtol=0, atol=0)
    assert_same(found["0"][step], found["alone"][step], rtol=0, atol=1e-6)
    ours, theirs = (found[name][f"{step}, history"][0] for name in ("0", "alone"))
    assert ours["patches"] == theirs["patches"] == int((ranked.patches()[1] >= 0).sum())
    assert ours["accuracy"] == theirs["accuracy"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_the_comparison_would_notice_a_mean_of_means(found) -> None:
    """With each rank's mean over its own patches the steps would differ by far more than rounding."""
    started = ranked.plain_run().model.state_dict()
    moved = max((found["0"]["each"][name] - started[name]).abs().max() for name in started)
    assert moved > 1e-3


def test_ranks_end_alike_with_batch_norm_and_dropout(found) -> None:
    assert_same(found["0"]["at once"], found["1"]["at once"], rtol=0, atol=0)


def test_a_run_resumed_in_two_ranks_ends_as_one_that_was_not_stopped(found) -> None:
    for name in ("0", "1", "alone"):
        assert_same(found[name]["resumed"], found[name]["at once"], rtol=0, atol=0)


def test_scores_of_two_ranks_are_those_of_one_and_no_patch_counts_twice(found) -> None:
    for name in ("0", "1"):
        assert torch.equal(found[name]["scores"], found["alone"]["scores"])
        assert torch.equal(found[name]["counts"], found["alone"]["counts"])


def test_only_the_first_rank_prints(found) -> None:
    assert "rank 0 of 2 is through" in found["said"]
    assert "rank 1 of 2" not in found["said"]


def test_no_thread_outlives_the_process_group(found) -> None:
    """With one that does, the interpreter may abort when it ends."""
    assert found["said"].count("threads of the group that outlive it: []") == 2


def test_a_scorer_that_cannot_be_gathered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lonely:
        def add_batch(self, probs, image_index, boxes=None): ...
        def compute(self): ...

    monkeypatch.setattr("transferkit.finetune.scoring.in_process_group", lambda: True)
    with pytest.raises(ArgumentError, match="across_ranks.*got Lonely"):
        fill_scorer(ranked.tiny_model(), ranked.Photos(0, 1), Lonely(), ranked.IDENTITY)


def test_one_process_is_its_own_group() -> None:
    assert distributed.is_first()
    assert distributed.world_size() == 1
    with distributed.first_on_machine() as first:
        assert first
