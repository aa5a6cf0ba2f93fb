"""Train a transferred network and test it: the loop, run checkpoints that survive a kill, and results on disk."""

from transferkit.finetune.atomic import require_writable, write_atomically
from transferkit.finetune.averaging import AveragedWeights
from transferkit.finetune.build import build_run
from transferkit.finetune.choosing import Chosen, choose_on_held_out
from transferkit.finetune.demo import DEMO, train_on_digits
from transferkit.finetune.device import choose_device
from transferkit.finetune.distributed import first_on_machine, is_first, process_group
from transferkit.finetune.early_stopping import StopEarly
from transferkit.finetune.huge_pages import use_huge_pages
from transferkit.finetune.loop_settings import LoopSettings
from transferkit.finetune.networks import NETWORKS, Network, build_network, small_alexnet
from transferkit.finetune.on_features import AS_THEY_ARE, fit_on_features, frozen_features, head_features
from transferkit.finetune.optimization import (
    build_optimizer,
    build_schedule,
    trains_transferred,
    transferred_parameters,
)
from transferkit.finetune.report import RunReport, build_report
from transferkit.finetune.results import write_convergence, write_results
from transferkit.finetune.run import EpochRecord, Run, read_run
from transferkit.finetune.scoring import fill_scorer, score_images
from transferkit.finetune.stopwatch import Stopwatch
from transferkit.finetune.training import fit, train_epoch
from transferkit.finetune.training_patches import TrainingPatches, look_at_patches

__all__ = [
    "AS_THEY_ARE",
    "DEMO",
    "NETWORKS",
    "AveragedWeights",
    "Chosen",
    "EpochRecord",
    "LoopSettings",
    "Network",
    "Run",
    "RunReport",
    "StopEarly",
    "Stopwatch",
    "TrainingPatches",
    "build_network",
    "build_optimizer",
    "build_report",
    "build_run",
    "build_schedule",
    "choose_device",
    "choose_on_held_out",
    "fill_scorer",
    "first_on_machine",
    "fit",
    "fit_on_features",
    "frozen_features",
    "head_features",
    "is_first",
    "look_at_patches",
    "process_group",
    "read_run",
    "require_writable",
    "score_images",
    "small_alexnet",
    "train_epoch",
    "train_on_digits",
    "trains_transferred",
    "transferred_parameters",
    "use_huge_pages",
    "write_atomically",
    "write_convergence",
    "write_results",
]
