"""Train a transferred network and test it: the loop, run checkpoints that survive a kill, and results on disk."""

from transferkit.finetune.atomic import require_writable, write_atomically
from transferkit.finetune.averaging import AveragedWeights
from transferkit.finetune.device import choose_device
from transferkit.finetune.optimization import build_optimizer, build_schedule, trains_transferred
from transferkit.finetune.report import RunReport, build_report
from transferkit.finetune.results import write_convergence, write_results
from transferkit.finetune.run import EpochRecord, Run, read_run
from transferkit.finetune.scoring import score_images
from transferkit.finetune.stopwatch import Stopwatch
from transferkit.finetune.training import fit, train_epoch
from transferkit.finetune.training_patches import TrainingPatches, look_at_patches

__all__ = [
    "AveragedWeights",
    "EpochRecord",
    "Run",
    "RunReport",
    "Stopwatch",
    "TrainingPatches",
    "build_optimizer",
    "build_report",
    "build_schedule",
    "choose_device",
    "fit",
    "look_at_patches",
    "read_run",
    "require_writable",
    "score_images",
    "train_epoch",
    "trains_transferred",
    "write_atomically",
    "write_convergence",
    "write_results",
]
