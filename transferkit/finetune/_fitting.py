"""The steps of SceneClassifier.fit: prepare a network, make its run, compute features, choose, and train."""

from __future__ import annotations

import copy
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import nn

from transferkit.annotated import Presence
from transferkit.backbones import find_preprocessing
from transferkit.checkpoints import Checkpoint
from transferkit.distributed import (
    first_tries,
    in_process_group,
    is_first,
    on_all_ranks,
    world_size,
)
from transferkit.errors import ArgumentError, OutputError, StateError, UncachableError
from transferkit.features import FeatureCache, PatchFeatures, UnsplittableError
from transferkit.files import require_writable
from transferkit.finetune.choosing import choose_on_held_out
from transferkit.finetune.networks import NETWORKS, Network, build_network
from transferkit.finetune.on_features import fit_on_features, frozen_features
from transferkit.finetune.optimizer import trains_transferred, transferred_parameters
from transferkit.finetune.photos import truth_of
from transferkit.finetune.protocol import Optimization, Protocol
from transferkit.finetune.run import Run, build_run, report_of
from transferkit.finetune.settings import FeatureSettings, LoopSettings, choice_in
from transferkit.finetune.training import fit
from transferkit.heads import replace_head
from transferkit.launching import first_start
from transferkit.locks import lock_file
from transferkit.progress import Progress
from transferkit.sampler import MultiscaleSampler
from transferkit.sampler._source import tellers_of
from transferkit.scorer.calibration import Calibration, calibrate
from transferkit.transfer import TransferReport, WeightTransfer, after, by_name, freeze

Log = Callable[[str], object]


@dataclass(frozen=True)
class Start:
    """The initial weights of a network, and which of its layers are frozen; see ``SceneClassifier``."""

    weights: Any = None
    allow_missing: tuple[str, ...] = ()
    from_scratch: bool = False
    freeze: str | None = None


@dataclass(frozen=True)
class Setup:
    """Recipe, settings and device, which every step takes."""

    network: str | nn.Module
    start: Start
    recipe: Protocol  # as the user gave it
    protocol: Protocol  # the recipe, with what was chosen on held-out photos once it is
    features: FeatureSettings
    loop: LoopSettings
    seed: int
    num_workers: int
    device: torch.device
    log: Log = lambda line: None
    progress: Progress = False

    @property
    def network_name(self) -> str:
        """Return the name of the network, or the class name of a module."""
        return self.network if isinstance(self.network, str) else type(self.network).__qualname__

    @property
    def is_named(self) -> bool:
        """Return whether the name alone says what the network and its pretrained weights are."""
        return isinstance(self.network, str) and self.network in NETWORKS

    def build(self) -> Network:
        """Return the network, or a copy of the user's module."""
        if isinstance(self.network, str):
            return build_network(self.network)
        return Network(self.network_name, copy.deepcopy(self.network), find_preprocessing(self.network))

    def stream(self, data: Any, mode: Literal["train", "test"], **settings: Any) -> MultiscaleSampler:
        """Return the recipe's sampler over photos or their features, with further settings."""
        own = {"seed": self.seed, "num_workers": self.num_workers, "device": self.device}
        return self.protocol.sampler(data, mode=mode, **own, **settings)

    def cache_of(self, features: PatchFeatures, photos: Any, folder: Path) -> FeatureCache:
        """Return the cache in ``folder`` for the features of all patches of the photos."""
        return FeatureCache(
            folder,
            features,
            photos,
            grid=self.protocol.grid,
            precision=self.features.precision,
            limit=self.features.limit,
        )

    def filled(self, cache: FeatureCache) -> FeatureCache:
        """Compute the features that a cache lacks; return it."""
        self.log(f"features of the frozen layers: {cache.size()}")
        cache.fill(num_workers=self.num_workers, progress=self.progress)
        return cache


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network with its new head and pretrained weights, its layers frozen as the recipe says."""

    network: Network
    moved: TransferReport | None  # None from scratch
    frozen: tuple[str, ...]  # names of layers

    @property
    def model(self) -> nn.Module:
        """The network's module."""
        return self.network.model

    def optimization(self, protocol: Protocol) -> Optimization:
        """Return the recipe's optimization, with low learning rates only if transferred layers are trained."""
        return protocol.optimization(from_scratch=not trains_transferred(self.model, self.moved))


# Stochastic depth by its names in torchvision, timm and Hugging Face: it would make what frozen blocks give random in
# training, so that no feature could be kept.
_DROPS_PATHS = re.compile("StochasticDepth|DropPath")


def prepare(setup: Setup, num_classes: int, saved: Mapping[str, Any] | None) -> Prepared:
    """Build the network, transfer weights unless a ``saved`` run brings them, and freeze layers."""
    torch.manual_seed(setup.seed)
    network = setup.build()
    setup.log(str(network))
    head = put_head_on(network, setup, num_classes)
    start, model = setup.start, network.model
    before_head = ~by_name(f"{head}.*")
    moved = report_of(saved) if saved else None
    if not saved and not start.from_scratch:
        source: Checkpoint = network.checkpoint(start.weights)
        transfer = WeightTransfer(source, select=before_head, allow_missing=start.allow_missing)
        moved = transfer.apply(model)
        setup.log(str(moved))
    frozen: tuple[str, ...] = ()
    dropout = not any(_DROPS_PATHS.search(type(module).__name__) for module in model.modules())
    if start.freeze and not start.from_scratch:
        frozen = freeze(model, ~after(start.freeze), dropout=dropout)
    elif not start.from_scratch and not setup.protocol.train_backbone:
        frozen = freeze(model, before_head, dropout=dropout)
    return Prepared(network, moved, frozen)


def put_head_on(network: Network, setup: Setup, num_classes: int) -> str:
    """Replace the network's head by the recipe's and move the network to the device; return the head's name."""
    head = replace_head(network.model, lambda width: setup.protocol.head(width, num_classes))
    network.model.to(setup.device)
    return head.name


def new_run(
    setup: Setup,
    prepared: Prepared,
    minibatches: int,
    class_names: tuple[str, ...],
    settings: Mapping[str, Any] | None,
    calibration: Calibration | None = None,
) -> Run:
    """Return a run of the prepared network, with a new optimizer and schedule."""
    own: dict[str, Any] = {"network": setup.network_name, "protocol": setup.recipe.name, "seed": setup.seed}
    own["calibration"] = None if calibration is None else calibration.to_dict()
    stored = {"chosen": None, **(settings or {}), **own, "class_names": list(class_names)}
    if setup.protocol.choice is None and setup.recipe.choice is not None:
        stored["chosen"] = [setup.protocol.epochs, setup.protocol.exponent]
    return build_run(
        prepared.model,
        setup.protocol,
        prepared.optimization(setup.protocol),
        preprocessing=prepared.network.preprocessing.preprocessing,
        steps_per_epoch=max(1, math.ceil(minibatches / setup.loop.accumulate)),
        transferred=transferred_parameters(prepared.model, prepared.moved),
        settings=stored,
        frozen=prepared.frozen,
        transfer=prepared.moved,
    )


def truth_to_fit(photos: Any, class_names: tuple[str, ...], protocol: Protocol) -> Presence:
    """Return the classes that each photo shows; refuse photos without any, or that the recipe cannot learn from."""
    truth = truth_of(photos, len(class_names))
    if not truth.present.any():
        raise ArgumentError(
            f"none of the {len(photos)} photos shows an object of {', '.join(class_names[1:])}; check that the data "
            "set reads the annotations, and that the class names are spelled as in them"
        )
    if truth.boxed is not None and not truth.boxed.all() and protocol.image_loss is None:
        raise ArgumentError(
            f"{int((~truth.boxed).sum())} of {len(photos)} photos have labels and no boxes, and {protocol.name} "
            "learns from boxes alone; use RECOMMENDED, or give the recipe an image_loss"
        )
    return truth


def resumed_from(
    run_file: str | os.PathLike[str] | None, resume: bool | str | os.PathLike[str]
) -> str | os.PathLike[str] | None:
    """Return the file of the run to resume, or ``None``; where torchrun has restarted a job that job's own."""
    if not isinstance(resume, bool):
        return resume
    if run_file is not None and Path(run_file).exists() and Path(run_file).stat().st_mtime >= first_start():
        return run_file
    if resume and run_file is None:
        raise ArgumentError("resume=True needs the run's file: fit(..., run_file=..., resume=True)")
    return run_file if resume and run_file is not None and Path(run_file).exists() else None


@contextmanager
def only_writer(run_file: str | os.PathLike[str] | None) -> Iterator[None]:
    """Let no other job write a run's file meanwhile, and prove that it can be written before any long work."""
    if run_file is None:
        yield
        return
    path = Path(run_file)
    first_tries(lambda: require_writable(path))
    with lock_file(path, path.with_name(f".{path.name}.lock")):
        yield


def decided_in(settings: Mapping[str, Any], protocol: Protocol) -> Protocol:
    """Return the protocol with the choice that a saved run made on held-out photos, if it made one."""
    chosen = choice_in(settings)
    if chosen is None or protocol.choice is None:
        return protocol
    epochs, exponent = chosen
    return protocol.decided(epochs if protocol.choice.stopping else protocol.epochs, exponent)


def calibration_in(settings: Mapping[str, Any]) -> Calibration | None:
    """Return the calibration that a saved run made on held-out photos, if it made one."""
    found = settings.get("calibration")
    return None if found is None else Calibration.from_dict(found)


@dataclass(frozen=True, eq=False)
class OnFeatures:
    """The features of the training photos, and the layers that are trained on them."""

    features: Any
    rest: nn.Module


@contextmanager
def features_for(setup: Setup, run: Run, photos: Any) -> Iterator[OnFeatures | None]:
    """Compute the features of all patches once, or take the photos' own; ``None`` if impossible or too large."""
    how, given = setup.features, given_features(photos)
    wanted = how.cache if how.cache is not None else bool(run.frozen) or how.method == "shared"
    if given is None and not wanted:
        yield None
        return
    with ExitStack() as stack:
        try:
            features, rest = frozen_features(run, setup.protocol, **feature_arguments(setup))
            if given is not None:
                given.require_features(features)
                data = photos
            else:
                folder = how.folder or Path(stack.enter_context(_temporary_folder()))
                data = setup.filled(on_all_ranks(partial(setup.cache_of, features, photos, folder)))
        except (UnsplittableError, UncachableError, OutputError) as error:
            if how.cache or given is not None:
                raise
            problem = f"every patch goes through the whole network in every epoch: {error}"
            setup.log(problem)
            if in_process_group() and is_first():  # on a rank that others wait for it is no detail
                warnings.warn(problem, stacklevel=2)
            yield None
            return
        yield OnFeatures(data, rest)


def feature_arguments(setup: Setup) -> dict[str, Any]:
    """Return the arguments for :func:`frozen_features` and the like."""
    return {
        "method": setup.features.method_for(setup.protocol),
        "pyramid_scales": setup.features.scales_for(setup.protocol),
        "amp": setup.features.amp,
        "fold": True,
    }


def given_features(photos: Any) -> FeatureCache | None:
    """Return the feature cache that ``photos`` is a view of, or ``None`` for a data set of photos."""
    tellers = tellers_of(photos, "patch_source")
    if tellers is None:
        return None
    owners = list({id(owner): owner for owner, _ in tellers}.values())
    if len(owners) == 1 and isinstance(owners[0], FeatureCache):
        return owners[0]
    raise ArgumentError(
        "photos with features must come from one FeatureCache; make it with SceneClassifier.cache"
    )


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """Yield one temporary folder for all ranks, which rank 0 creates; each machine removes its own."""
    with ExitStack() as stack:
        made = TemporaryDirectory(prefix="transferkit-features-", ignore_cleanup_errors=True)
        name = [stack.enter_context(made) if is_first() else ""]
        if in_process_group():
            torch.distributed.broadcast_object_list(name, src=0)
        yield name[0]
        if in_process_group():
            torch.distributed.barrier()  # all ranks have finished reading
            shutil.rmtree(name[0], ignore_errors=True)


def choose(
    setup: Setup, prepared: Prepared, on: OnFeatures, presence: Presence, class_names: Sequence[str]
) -> tuple[Protocol, Calibration | None]:
    """Choose the number of epochs and the exponent on held-out training photos, and calibrate the scores on them."""
    chosen = choose_on_held_out(
        on.rest,
        on.features,
        setup.protocol,
        prepared.optimization(setup.protocol),
        transferred=transferred_parameters(prepared.model, prepared.moved),
        presence=presence,
        seed=setup.seed,
        num_workers=setup.num_workers,
        loop=setup.loop,
        progress=setup.progress,
    )
    setup.log(str(chosen))
    held = presence.present[chosen.places], presence.difficult_only[chosen.places]
    calibration = None
    if bool((held[0] & ~held[1]).any()):
        calibration = calibrate(chosen.scores, held[0], class_names=class_names, ignore=held[1])
        setup.log(str(calibration))
    return setup.protocol.decided(chosen.epochs, chosen.exponent), calibration


def train(
    setup: Setup,
    run: Run,
    patches: MultiscaleSampler,
    on: OnFeatures | None,
    presence: Presence,
    after_epoch: Callable[[Run], object],
) -> None:
    """Train a run from its epoch on, on pixels or on features."""
    if run.unfinished and len(run.unfinished.random) != world_size():
        raise StateError(
            f"the run was stopped within epoch {run.epoch + 1} on {len(run.unfinished.random)} ranks, and goes on "
            f"there on as many, not {world_size()}; its last whole epoch, in the file beside it whose name ends in "
            f"_{run.epoch}, goes on with any number"
        )
    targets = presence.image_targets()
    how: dict[str, Any] = {"loop": setup.loop, "after_epoch": after_epoch, "progress": setup.progress}
    how["image_targets"] = targets
    if run.sampler_state:
        patches.load_state_dict(run.sampler_state)
    if on is None:
        fit(run, patches, setup.protocol.epochs, **how)
    else:
        of_features = setup.stream(on.features, "train")
        of_features.load_state_dict(patches.state_dict())
        fit_on_features(run, on.rest, of_features, setup.protocol.epochs, **how)
    if setup.loop.profile and is_first():
        setup.log((setup.loop.profile / "profile.txt").read_text(encoding="utf-8"))
