"""Train a transferred network and test it: the loop, run checkpoints that survive a kill, and results on disk."""

from transferkit.finetune.atomic import require_writable, write_atomically
from transferkit.finetune.optimization import build_optimizer, build_schedule
from transferkit.finetune.results import write_convergence, write_results
from transferkit.finetune.run import EpochRecord, Run, read_run
from transferkit.finetune.scoring import score_images
from transferkit.finetune.training import fit, train_epoch

__all__ = [
    "EpochRecord",
    "Run",
    "build_optimizer",
    "build_schedule",
    "fit",
    "read_run",
    "require_writable",
    "score_images",
    "train_epoch",
    "write_atomically",
    "write_convergence",
    "write_results",
]
