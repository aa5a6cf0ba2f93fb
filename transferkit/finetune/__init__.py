"""Train a pretrained network on photos of scenes, test it, and predict with it.

The door is :class:`SceneClassifier`: fit, test, predict, save and load in one object. :class:`FeatureSettings` and
:class:`LoopSettings` are its settings, :class:`Predictions` and :class:`PredictionFile` what it returns, and
:class:`Card` goes with its file. Each of its steps can also be used alone, in a training loop of your own:

- Recipes: :data:`RECOMMENDED`, :data:`NEON2016`, :data:`OQUAB2014` and :data:`DEMO` are values of :class:`Protocol`,
  with an :class:`Optimization` for the optimizer.
- Networks: :data:`NETWORKS`, :func:`build_network`.
- Training loop: :func:`build_optimizer`, :func:`build_schedule`, :class:`AveragedWeights`, :func:`fit`,
  :func:`train_epoch`; :class:`StopEarly` and :func:`choose_on_held_out` decide on held-out photos.
- Frozen layers: :func:`frozen_features`, :func:`head_features` and :func:`fit_on_features` train on their features.
- Runs: :class:`Run` holds all that resuming needs; :func:`build_run`, :func:`read_run`. Their files
  are data: :func:`choice_in`, :func:`parse_with_run`. :func:`how_to_go_on`; :func:`lock_folder` keeps other jobs out.
- Scores: :func:`score_images`, :func:`fill_scorer`.
- Results: :func:`write_results`, :func:`write_convergence`, and a report on one HTML page from :class:`RunReport` and
  :func:`build_report`.
- Independent jobs: :class:`Shard` is a share of photos, and :func:`join_predictions` joins what they wrote.
- Devices and ranks: :func:`choose_device`, :func:`process_group`, :func:`is_first`, :func:`first_on_machine`,
  :func:`stop_on_sigterm`.
- Demonstration: :func:`prepare_demo` writes scenes with digits and pretrained weights for :data:`DEMO`.
"""

from transferkit.devices import choose_device, use_huge_pages
from transferkit.distributed import first_on_machine, is_first, process_group
from transferkit.files import require_writable, write_atomically
from transferkit.finetune.card import Card
from transferkit.finetune.choosing import Chosen, StopEarly, choose_on_held_out
from transferkit.finetune.demo import DEMO, prepare_demo, train_on_digits
from transferkit.finetune.networks import NETWORKS, Network, build_network, small_alexnet
from transferkit.finetune.on_features import AS_THEY_ARE, fit_on_features, frozen_features, head_features
from transferkit.finetune.optimizer import (
    AveragedWeights,
    build_optimizer,
    build_schedule,
    trains_transferred,
    transferred_parameters,
)
from transferkit.finetune.photos import as_photos, with_background
from transferkit.finetune.predictions import PredictionFile, Predictions
from transferkit.finetune.protocol import Optimization, Protocol
from transferkit.finetune.recipes import NEON2016, OQUAB2014, PROTOCOLS, RECOMMENDED
from transferkit.finetune.report import RunReport, TrainingPatches, build_report, look_at_patches
from transferkit.finetune.results import Stopwatch, write_convergence, write_results
from transferkit.finetune.run import EpochRecord, Run, build_run, read_run
from transferkit.finetune.scene_classifier import SceneClassifier
from transferkit.finetune.scoring import fill_scorer, score_images
from transferkit.finetune.settings import FeatureSettings, LoopSettings, choice_in, how_to_go_on, parse_with_run
from transferkit.finetune.sharding import Shard, join_predictions
from transferkit.finetune.training import fit, train_epoch
from transferkit.locks import lock_folder
from transferkit.stopping import Stopped, stop_on_sigterm

__all__ = [
    "AS_THEY_ARE",
    "DEMO",
    "NEON2016",
    "NETWORKS",
    "OQUAB2014",
    "PROTOCOLS",
    "RECOMMENDED",
    "AveragedWeights",
    "Card",
    "Chosen",
    "EpochRecord",
    "FeatureSettings",
    "LoopSettings",
    "Network",
    "Optimization",
    "PredictionFile",
    "Predictions",
    "Protocol",
    "Run",
    "RunReport",
    "SceneClassifier",
    "Shard",
    "StopEarly",
    "Stopped",
    "Stopwatch",
    "TrainingPatches",
    "as_photos",
    "build_network",
    "build_optimizer",
    "build_report",
    "build_run",
    "build_schedule",
    "choice_in",
    "choose_device",
    "choose_on_held_out",
    "fill_scorer",
    "first_on_machine",
    "fit",
    "fit_on_features",
    "frozen_features",
    "head_features",
    "how_to_go_on",
    "is_first",
    "join_predictions",
    "lock_folder",
    "look_at_patches",
    "parse_with_run",
    "prepare_demo",
    "process_group",
    "read_run",
    "require_writable",
    "score_images",
    "small_alexnet",
    "stop_on_sigterm",
    "train_epoch",
    "train_on_digits",
    "trains_transferred",
    "transferred_parameters",
    "use_huge_pages",
    "with_background",
    "write_atomically",
    "write_convergence",
    "write_results",
]
