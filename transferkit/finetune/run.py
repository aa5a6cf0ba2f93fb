"""A run: everything that a later process needs to go on as if nothing had happened."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from transferkit.checkpoints import Checkpoint
from transferkit.errors import CheckpointError, MissingFileError, StateError
from transferkit.files import write_atomically
from transferkit.finetune.optimizer import AveragedWeights, build_optimizer, build_schedule
from transferkit.finetune.protocol import Optimization, Protocol
from transferkit.heads import SINGLE_LABEL, ImageLoss, Objective
from transferkit.preprocessing import Preprocessing
from transferkit.transfer import TransferReport, WeightTransfer

FORMAT = "transferkit-run"

VERSION = 1
_RENAMED = {"levels": "pyramid_scales", "train_trunk": "train_backbone"}  # settings of earlier versions


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of training came to.

    Attributes:
        epoch: 1-based.
        loss: Mean cross-entropy over the epoch's patches, nats.
        accuracy: Fraction of patches classified as labeled, in training mode.
        patches: How many patches were trained on.
        learning_rate: Of the first parameter group.
        seconds: Wall time.
        mean_ap: On the test set after the epoch, in 0..1, where it was measured.
    """

    epoch: int
    loss: float
    accuracy: float
    patches: int
    learning_rate: float
    seconds: float
    mean_ap: float | None = None

    def __str__(self) -> str:
        tested = "" if self.mean_ap is None else f"  mAP {self.mean_ap:.1%}"
        return (
            f"epoch {self.epoch}  loss {self.loss:.4f}  patches right {self.accuracy:.1%}  "
            f"learning rate {self.learning_rate:g}  {self.seconds:.1f} s{tested}"
        )


@dataclass
class Run:
    """A model in training with all that belongs to it.

    Attributes:
        model: The network; frozen layers have ``requires_grad`` off.
        optimizer: Over the trainable parameters.
        schedule: Stepped once per epoch; after every step of the optimizer, if it is a ``PerStep``.
        preprocessing: What the network wants done to pixels.
        settings: Plain values that describe the run (protocol, data, flags), stored as they are.
        frozen: Names of the frozen layers.
        transfer: Where the weights came from; ``None`` for a run from scratch.
        epoch: Epochs finished.
        history: One record per finished epoch.
        sampler_state: ``MultiscaleSampler.state_dict()`` after the last finished epoch.
        objective: The loss, and the probabilities that go with it.
        image_loss: A second loss, of whole images.
        average: An average of the model's weights, taken while it is trained.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    preprocessing: Preprocessing
    settings: dict[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    transfer: TransferReport | None = None
    epoch: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    sampler_state: dict[str, Any] | None = None
    objective: Objective = SINGLE_LABEL
    image_loss: ImageLoss | None = None
    average: AveragedWeights | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def tested_model(self) -> nn.Module:
        """The network to test and to keep: with averaged weights, once there are any."""
        return self.average.model if self.average is not None and self.average.count else self.model

    def state_dict(self) -> dict[str, Any]:
        """Return the run as plain containers and tensors, which load with ``weights_only=True``."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "torch": str(torch.__version__),
            "epoch": self.epoch,
            "history": [asdict(record) for record in self.history],
            "settings": self.settings,
            "preprocessing": self.preprocessing.to_dict(),
            "frozen": list(self.frozen),
            "transfer": self.transfer.to_dict() if self.transfer else None,
            "sampler": self.sampler_state,
            "random": _random_state(self.device),
            "schedule": self.schedule.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def save(self, path: str | os.PathLike[str], *, keep: int = 1) -> Path:
        """Write the run to ``path``, atomically.

        Args:
            path: The newest checkpoint always has this name.
            keep: How many epochs to keep. Above 1, each is also named ``{stem}_{epoch}{suffix}`` and those older
                than the last ``keep`` are deleted.

        Returns:
            ``path``.
        """
        path = Path(path)
        state = self.state_dict()
        write_atomically(path, lambda file: torch.save(state, file))
        if keep > 1:
            _keep_history(path, self.epoch, keep)
        return path

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state: model, optimizer, schedule, random numbers, history; all or nothing.

        Args:
            state: What :func:`read_run` returned.

        Raises:
            TransferError: The model is of another architecture; the message is the difference, layer by layer.
            StateError: The optimizer's parameters differ, as when other layers are frozen.
        """
        frozen = tuple(state["frozen"])
        if frozen != self.frozen:
            only_here, only_there = set(self.frozen) - set(frozen), set(frozen) - set(self.frozen)
            raise StateError(
                "the run was saved with other frozen layers: "
                f"only now {sorted(only_here) or 'none'}, only then {sorted(only_there) or 'none'}; "
                "freeze the same layers to go on"
            )
        average = state.get("average")
        if (average is None) != (self.average is None):
            was, now = ("with", "without") if self.average is None else ("without", "with")
            raise StateError(f"the run was saved {was} an average of its weights, and is restored {now} one")
        WeightTransfer(Checkpoint.from_state_dict(state["model"])).apply(self.model)
        _load_optimizer(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.epoch = state["epoch"]
        self.history = [EpochRecord(**record) for record in state["history"]]
        self.transfer = report_of(state)
        self.sampler_state = state["sampler"]
        _set_random_state(state["random"], self.device)


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a run checkpoint to the CPU, running no code from it.

    Raises:
        MissingFileError: There is no such file.
        CheckpointError: It is not a run checkpoint, or damaged, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no run checkpoint at {path}; give the --save_path of an earlier run")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a run checkpoint: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a run checkpoint (no format {FORMAT!r} in it); "
            "pretrained weights go to --weights, runs to --model_file"
        )
    if state["version"] > VERSION:
        raise CheckpointError(
            f"{path} is a run checkpoint of version {state['version']}, this transferkit reads up to {VERSION}; "
            "update transferkit"
        )
    return {**state, "settings": _renamed(state["settings"], path)}


def _renamed(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return settings under the names that they have now."""
    old = {name: new for name, new in _RENAMED.items() if name in settings}
    if old:
        changes = ", ".join(f"{name} is {new}" for name, new in old.items())
        warnings.warn(f"settings of {path} have other names now: {changes}", DeprecationWarning, stacklevel=3)
    return {old.get(name, name): value for name, value in settings.items()}


def report_of(state: Mapping[str, Any]) -> TransferReport | None:
    """Return the transfer's report that a saved run holds."""
    return TransferReport.from_dict(state["transfer"]) if state["transfer"] else None


def _keep_history(path: Path, epoch: int, keep: int) -> None:
    """Name the file just written after its epoch too, and drop the epochs that fell out of the last ``keep``."""

    def named(number: int) -> Path:
        return path.with_name(f"{path.stem}_{number}{path.suffix}")

    write_atomically(named(epoch), lambda file: file.write(path.read_bytes()))
    kept = sorted(
        (int(number), other)
        for other in path.parent.glob(f"{path.stem}_*{path.suffix}")
        if (number := other.stem[len(path.stem) + 1 :]).isdigit() and int(number) <= epoch
    )
    for _, old in kept[:-keep]:
        old.unlink()


def _load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load what the optimizer knows, but not how it computed on the device that it was saved on."""
    ways: list[dict[str, Any]] = [
        {name: group[name] for name in ("fused", "foreach") if name in group}
        for group in optimizer.param_groups
    ]
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise StateError(
            f"the run's optimizer does not fit: {error}; train the same parameters, with the same rates of their "
            "own for transferred ones, to go on"
        ) from error
    for group, way in zip(optimizer.param_groups, ways, strict=True):
        group.update(way)


def _random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of the generators that dropout draws from: the cpu's and the device's own."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"][0], device)


# Put a model together with all that trains it.


def build_run(
    model: nn.Module,
    protocol: Protocol,
    optimization: Optimization,
    *,
    preprocessing: Preprocessing,
    steps_per_epoch: int,
    transferred: Iterable[nn.Parameter] = (),
    **known: Any,
) -> Run:
    """Return a run of a recipe, ready to train.

    Args:
        model: With frozen layers frozen.
        protocol: Gives the losses, and the average of weights.
        optimization: Of the regime it is trained in, from :meth:`Protocol.optimization`.
        preprocessing: What the model wants done to pixels.
        steps_per_epoch: Of the optimizer.
        transferred: Those of the model's parameters that were transferred, from
            :func:`~transferkit.finetune.transferred_parameters`, for a rate of their own.
        known: What else the :class:`Run` should know: ``settings``, ``frozen``, ``transfer``.

    Raises:
        ArgumentError: Every parameter is frozen.

    Example:
        >>> from transferkit.preprocessing import IMAGENET
        >>> from transferkit.finetune import NEON2016
        >>> run = build_run(
        ...     nn.Linear(8, 21), NEON2016, NEON2016.scratch, preprocessing=IMAGENET, steps_per_epoch=10
        ... )
        >>> run.epoch, run.optimizer.param_groups[0]["lr"]
        (0, 0.01)
    """
    optimizer = build_optimizer(model.parameters(), optimization, transferred=transferred)
    schedule = build_schedule(optimizer, optimization, steps_per_epoch=steps_per_epoch)
    run = Run(model, optimizer, schedule, preprocessing, **known)
    run.objective, run.image_loss = protocol.objective, protocol.image_loss
    if protocol.average:
        run.average = AveragedWeights(model, optimizer, protocol.average, steps_per_epoch=steps_per_epoch)
    return run
