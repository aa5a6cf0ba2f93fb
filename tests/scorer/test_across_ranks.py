"""Scorers in processes that torchrun starts and that talk over gloo: any number of ranks equals one pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from transferkit.errors import ArgumentError
from transferkit.scorer import ImageScorer, PatchLog

EXPONENTS = [1.0, 2.0, 5.0, 10.0, float("inf")]
IMAGES, CLASSES, PATCHES = 40, 6, 2000


def patches() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    probs = 10.0 ** (-12 * torch.rand(PATCHES, CLASSES, generator=generator, dtype=torch.float64))
    boxes = torch.rand(PATCHES, 4, generator=generator).double().cumsum(dim=1)
    return probs, torch.randint(IMAGES, (PATCHES,), generator=generator), boxes


def work(folder: str) -> None:
    """One rank: its share of the patches in its own batch sizes; the images are not split between ranks."""
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    probs, image_index, boxes = patches()
    share = torch.arange(PATCHES) % world == rank
    found = {}
    for exponent in EXPONENTS:
        for reduction in ("sum", "mean"):
            scorer = ImageScorer(IMAGES, CLASSES, exponent, reduction)
            rows = share.nonzero()[:, 0]
            for batch in rows.split(17 + 9 * rank):
                scorer.add_batch(probs[batch], image_index[batch], boxes[batch])
            whole = scorer.across_ranks()
            assert scorer.counts.sum() == share.sum()  # goes on counting for itself
            if exponent == 5:
                log = PatchLog(IMAGES, CLASSES, exponent, reduction)
                log.add_batch(probs[rows], image_index[rows], boxes[rows])
                in_float32 = log.across_ranks().compute()
                torch.testing.assert_close(in_float32, whole.compute(), rtol=1e-5, atol=0)
            found[exponent, reduction] = (whole.compute(), whole.best_boxes, whole.counts)
    some = ImageScorer(2, 1)  # on one rank alone are there boxes
    box = torch.tensor([[0.0, 0, 1, 1]]) if rank == 1 else None
    some.add_batch(torch.tensor([[0.5]]), torch.tensor([rank // 2]), box)
    found["some"] = some.across_ranks().best_boxes
    try:
        ImageScorer(IMAGES, CLASSES, exponent=1.0 + rank).across_ranks()
        found["settings"] = "none raised"
    except ArgumentError as error:
        found["settings"] = str(error)
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")
def test_ranks_equal_one_pass(tmp_path, root, world=3):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    done = subprocess.run(
        [*torchrun, __file__, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    probs, image_index, boxes = patches()
    worst = 0.0
    for exponent in EXPONENTS:
        for reduction in ("sum", "mean"):
            single = ImageScorer(IMAGES, CLASSES, exponent, reduction)
            single.add_batch(probs, image_index, boxes)
            for rank in range(world):
                scores, best, counts = found[rank][exponent, reduction]
                worst = max(worst, float((scores / single.compute() - 1).abs().max()))
                assert torch.equal(best, single.best_boxes)
                assert torch.equal(counts, single.counts)
                assert torch.equal(scores, found[0][exponent, reduction][0])
    print(f"{world} ranks: largest relative difference {worst:.1e}")
    assert worst < 1e-12
    assert all(each["some"][0].tolist() == [[0, 0, 1, 1]] and each["some"][1].isnan().all() for each in found)
    expected = "rank 1: {'num_images': 40, 'num_classes': 6, 'exponent': 2.0"
    assert all(expected in each["settings"] for each in found)


def test_without_a_process_group_it_is_a_copy():
    scorer = ImageScorer(2, 2)
    scorer.add_batch(torch.rand(3, 2), torch.tensor([0, 1, 1]))
    copy = scorer.across_ranks()
    assert torch.equal(copy.compute(), scorer.compute())
    copy.add_batch(torch.rand(3, 2), torch.tensor([0, 1, 1]))
    assert scorer.counts.tolist() == [1, 2]
    assert copy.counts.tolist() == [2, 4]


if __name__ == "__main__":
    work(sys.argv[1])
