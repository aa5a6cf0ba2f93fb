"""A training run, and its checkpoint on disk, from which a later process resumes exactly."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any
from uuid import uuid4

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from transferkit.checkpoints._optimizers import name_of
from transferkit.checkpoints._torch_files import load_torch_zip
from transferkit.checkpoints.registry import why_not_read
from transferkit.distributed import unwrapped
from transferkit.errors import CheckpointError, MissingFileError, OutputError, listed, require
from transferkit.files import write_atomically
from transferkit.finetune import _restoring as restoring
from transferkit.finetune.optimizer import AveragedWeights, build_optimizer, build_schedule
from transferkit.finetune.protocol import Optimization, Protocol
from transferkit.heads import SINGLE_LABEL, ImageLoss, Objective
from transferkit.preprocessing import Preprocessing
from transferkit.transfer import TransferReport

FORMAT = "transferkit-run"
VERSION = 1
# What every run keeps, and as what; what is in it is checked where it is restored.
_PARTS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("settings", "preprocessing", "optimizer", "model", "schedule", "random"), dict),
    **dict.fromkeys(("history", "frozen"), list),
    **dict.fromkeys(("transfer", "sampler"), (dict, NoneType)),
    "epoch": int,
}
_RENAMED = {"levels": "pyramid_scales", "train_trunk": "train_backbone"}  # earlier names of settings


@dataclass(frozen=True)
class EpochRecord:
    """Figures of one epoch of training.

    Attributes:
        epoch: Number of the epoch, 1-based.
        loss: Mean loss over the epoch's patches, nats.
        accuracy: Fraction of patches classified as labeled, in training mode.
        patches: Number of patches that counted.
        learning_rate: Learning rate of the first parameter group when the epoch began.
        seconds: Wall time.
        mean_ap: Mean AP on validation photos after the epoch, in 0..1; ``None`` if not measured.
        image_loss: Mean loss of the images' scores, nats; ``None`` if the recipe has none.
    """

    epoch: int
    loss: float
    accuracy: float
    patches: int
    learning_rate: float
    seconds: float
    mean_ap: float | None = None
    image_loss: float | None = None

    def __str__(self) -> str:
        tested = "" if self.mean_ap is None else f"  mAP {self.mean_ap:.1%}"
        images = "" if self.image_loss is None else f"image loss {self.image_loss:.4f}  "
        patches = f"loss {self.loss:.4f}  patches right {self.accuracy:.1%}  " if self.patches else ""
        return (
            f"epoch {self.epoch}  {patches}{images}"
            f"learning rate {self.learning_rate:g}  {self.seconds:.1f} s{tested}"
        )


@dataclass(frozen=True)
class StopMemory:
    """What early stopping remembers between epochs; it is saved with the run.

    Attributes:
        measures: One value per measured epoch.
        epoch: The last measured epoch, 1-based; 0 before the first one.
        best_epoch: The best epoch, 1-based; 0 before the first one.
        best: The best epoch's weights; ``None`` before the first one.
        restored: Whether it comes from a saved run.
    """

    measures: list[float] = field(default_factory=list)
    epoch: int = 0
    best_epoch: int = 0
    best: dict[str, torch.Tensor] | None = None
    restored: bool = False


@dataclass(frozen=True)
class Unfinished:
    """What an epoch that was stopped between two steps has come to; the run's ``sampler_state`` says where.

    Attributes:
        totals: The sums over its steps and ranks of :meth:`Stepper.step`.
        random: The random number generators of each rank.
    """

    totals: list[float]
    random: list[dict[str, Any]]


@dataclass
class Run:
    """A model in training, with its optimizer, schedule, history and everything else needed to resume.

    Attributes:
        model: The network; frozen layers have ``requires_grad`` off.
        optimizer: Optimizer of the trainable parameters.
        schedule: Stepped once per epoch, or after every optimizer step if :func:`build_schedule` made it so.
        preprocessing: Preprocessing that the model expects.
        settings: Plain values that describe the run (protocol, data, flags), stored as they are.
        frozen: Names of the frozen layers.
        transfer: Report of the weight transfer; ``None`` for a run from scratch.
        epoch: Number of finished epochs.
        history: One record per finished epoch.
        sampler_state: ``MultiscaleSampler.state_dict()`` after the last finished epoch.
        objective: Loss of the patches, and the probabilities that belong to it.
        image_loss: Additional loss on the scores of whole images.
        average: EMA or plain average of the model's weights, updated during training.
        stopping: What :class:`~transferkit.finetune.StopEarly` remembers; ``None`` without it.
        unfinished: What the epoch in which the run was stopped had come to; ``None`` between epochs.
        identity: What tells this run from all others; a resumed run keeps it.
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
    stopping: StopMemory | None = None
    unfinished: Unfinished | None = None

    identity: str = field(default_factory=lambda: uuid4().hex, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.transfer, Mapping):  # as earlier versions kept it
            self.transfer = TransferReport.from_dict(dict(self.transfer))

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    @property
    def network(self) -> nn.Module:
        """The model, or the one inside DistributedDataParallel."""
        return unwrapped(self.model)

    @property
    def tested_model(self) -> nn.Module:
        """The network to test and keep: the one with averaged weights after the average's first update."""
        return self.average.model if self.average is not None and self.average.count else self.network

    def state_dict(self) -> dict[str, Any]:
        """Return the run as plain containers and tensors, which load with ``weights_only=True``."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "torch": str(torch.__version__),
            "identity": self.identity,
            "epoch": self.epoch,
            "history": [asdict(record) for record in self.history],
            "settings": self.settings,
            "preprocessing": self.preprocessing.to_dict(),
            "frozen": list(self.frozen),
            "transfer": self.transfer.to_dict() if self.transfer else None,
            "sampler": self.sampler_state,
            "random": restoring.random_state(self.device),
            "schedule": self.schedule.state_dict(),
            "schedule_class": name_of(type(self.schedule)),
            "objective": restoring.described(self.objective),
            "image_loss": restoring.described(self.image_loss),
            "optimizer": restoring.optimizer_state(self.optimizer, self.network),
            "model": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "stopping": None if self.stopping is None else vars(self.stopping),
            "unfinished": None if self.unfinished is None else vars(self.unfinished),
        }

    def save(self, path: str | os.PathLike[str], *, keep: int = 1) -> Path:
        """Write the run to ``path``, atomically.

        Args:
            path: File of the newest checkpoint.
            keep: Number of epochs to keep. Above 1, each checkpoint is also saved as ``{stem}_{epoch}{suffix}``, and
                those of this run that are older than the last ``keep`` are deleted.

        Returns:
            ``path``.

        Raises:
            OutputError: It cannot be written, or its numbered copy would replace a file that this run did not write.
        """
        path = Path(path)
        state = self.state_dict()
        self._keep_whole_epoch(path)
        newest = path if keep == 1 or self.unfinished else _numbered(path, self.epoch)
        if newest != path:
            self.require_numbers(path, self.epoch, self.epoch)
        write_atomically(newest, lambda file: torch.save(state, file))
        if newest != path:
            # It comes second: whoever is killed between the two trains that epoch again, and both files are whole.
            write_atomically(path, lambda file: file.write(newest.read_bytes()))
            own = [number for number in _numbers(path, self.epoch) if self._wrote(_numbered(path, number))]
            for number in own[:-keep]:
                _numbered(path, number).unlink()
        return path

    def _keep_whole_epoch(self, path: Path) -> None:
        """Keep the last whole epoch, which goes on with any number of ranks, beside one that was stopped."""
        if self.unfinished is None or not path.is_file() or not self._wrote(path):
            return
        before = read_run(path)
        copy = _numbered(path, before["epoch"])
        if not before.get("unfinished") and not copy.exists():
            write_atomically(copy, lambda file: file.write(path.read_bytes()))

    def require_numbers(self, path: str | os.PathLike[str], first: int, last: int) -> None:
        """Raise unless the numbered copies of these epochs would replace nothing but this run's own.

        Raises:
            OutputError: They would; the message names the files.
        """
        path = Path(path)
        found = [_numbered(path, number) for number in _numbers(path, last) if number >= first]
        if others := [file.name for file in found if not self._wrote(file)]:
            raise OutputError(
                f"{path.parent} holds {listed(others, 3)}, which another run wrote, and which keeping more than one "
                "epoch would replace; move what you need, delete the rest, or save the run elsewhere"
            )

    def _wrote(self, path: Path) -> bool:
        about = path.stat()
        return _identity_in(path, about.st_mtime_ns, about.st_size) == self.identity

    def restore(self, state: dict[str, Any]) -> None:
        """Load a saved state: model, optimizer, schedule, random number generators and history.

        Everything is checked first. Whatever fails, the run is as it was.

        Args:
            state: Return value of :func:`read_run`.

        Raises:
            TransferError: The model has another architecture or dtype; the message compares both layer by layer.
            StateError: The run was saved with other frozen layers, another optimizer, schedule, loss, average or
                preprocessing, or lacks something. The message lists all that differs.
        """
        problems = restoring.Problems()
        attributes = _attributes_in(state, problems)
        restoring.check(self, state, problems)
        problems.check()
        restoring.write(self, state, attributes)


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
        model: The network, its frozen layers already frozen.
        protocol: Recipe that gives the losses and the average of weights.
        optimization: Settings of the optimizer, from :meth:`Protocol.optimization`.
        preprocessing: Preprocessing that the model expects.
        steps_per_epoch: Number of optimizer steps per epoch.
        transferred: Transferred parameters, from :func:`~transferkit.finetune.transferred_parameters`, which may get
            a separate learning rate.
        known: Further attributes of :class:`Run`: ``settings``, ``frozen``, ``transfer``.

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


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a run checkpoint to the CPU, running no code from it.

    Args:
        path: File written by :meth:`Run.save`.

    Returns:
        The state for :meth:`Run.restore`.

    Raises:
        MissingFileError: There is no such file.
        CheckpointError: The file is not a run checkpoint, is damaged, or was written by a newer version.
    """
    path = Path(path)
    state = read_saved(
        path,
        "run checkpoint",
        FORMAT,
        missing="give the run_file (--save_path) of an earlier run",
        other="pretrained weights go to weights (--weights), only runs are resumed (--model_file)",
    )
    version = state.get("version")
    if type(version) is not int or version > VERSION:
        raise CheckpointError(
            f"{path} is a run checkpoint of version {version!r}, this transferkit reads up to {VERSION}; "
            "update transferkit"
        )
    given = {"settings": None, **state}
    if wrong := [
        name for name, kinds in _PARTS.items() if name in given and not isinstance(given[name], kinds)
    ]:
        raise CheckpointError(
            f"{path} is a damaged run checkpoint: {listed(wrong)} is not what a run keeps; resume "
            "from an older one"
        )
    return {**state, "settings": _renamed(state["settings"], path)}


def read_saved(path: Path, kind: str, form: str, *, missing: str, other: str) -> dict[str, Any]:
    """Read a file of this library to the CPU, running no code from it.

    Args:
        path: The file.
        kind: The word for it in messages.
        form: Its ``format``.
        missing: What to do where there is no file.
        other: What to do with a file of another format.
    """
    if not path.is_file():
        raise MissingFileError(f"no {kind} at {path}; {missing}")
    try:
        state = load_torch_zip(path, mapped=False)  # mapped, it could not be replaced on every system
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a {kind}: {why_not_read(error)}") from error
    if not isinstance(state, dict) or state.get("format") != form:
        raise CheckpointError(f"{path} is not a {kind} (no format {form!r} in it); {other}")
    return state


def _renamed(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return settings under their current names."""
    old = {name: new for name, new in _RENAMED.items() if name in settings}
    if old:
        changes = ", ".join(f"{name} is {new}" for name, new in old.items())
        warnings.warn(f"settings of {path} were renamed: {changes}", DeprecationWarning, stacklevel=3)
    return {old.get(name, name): value for name, value in settings.items()}


def report_of(state: Mapping[str, Any]) -> TransferReport | None:
    """Return the transfer report of a saved run."""
    return TransferReport.from_dict(state["transfer"]) if state["transfer"] else None


@lru_cache(maxsize=256)
def _identity_in(path: Path, time: int, size: int) -> str | None:
    """Return what tells the run of a file from all others; its time and size tell whether it was asked before."""
    try:
        return str(read_run(path).get("identity"))
    except CheckpointError:
        return None


def _numbered(path: Path, epoch: int) -> Path:
    return path.with_name(f"{path.stem}_{epoch}{path.suffix}")


def _numbers(path: Path, last: int) -> list[int]:
    """Return the epochs up to ``last`` that have a numbered copy beside ``path``, in order."""
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    ends = [name.removeprefix(f"{path.stem}_").removesuffix(path.suffix) for name in names]
    numbers = sorted(int(end) for end in ends if end.isdecimal() and int(end) <= last)
    return [number for number in numbers if _numbered(path, number).name in names]


def _attributes_in(state: Mapping[str, Any], problems: restoring.Problems) -> dict[str, Any]:
    """Return the plain attributes of a saved run, as far as they can be read."""
    found: dict[str, Any] = {}
    with problems.looking_at("epoch"):
        require(
            type(state["epoch"]) is int and state["epoch"] >= 0, "epoch", "zero or positive", state["epoch"]
        )
        found["epoch"] = state["epoch"]
    with problems.looking_at("history"):
        found["history"] = [EpochRecord(**record) for record in state["history"]]
    with problems.looking_at("identity"):
        identity = state.get("identity")  # earlier versions did not write it
        require(isinstance(identity, str | None), "identity", "a text", identity)
        found |= {} if identity is None else {"identity": identity}
    with problems.looking_at("transfer"):
        found["transfer"] = report_of(state)
    with problems.looking_at("sampler"):
        sampler = state["sampler"]
        require(sampler is None or isinstance(sampler, Mapping), "sampler", "a state dict or None", sampler)
        found["sampler_state"] = sampler
    with problems.looking_at("unfinished"):
        part = state.get("unfinished")
        found["unfinished"] = None if part is None else Unfinished(**part)
        for random in [] if part is None else part["random"]:
            torch.Generator().set_state(random["cpu"])
    with problems.looking_at("stopping"):
        memory = state.get("stopping")
        found["stopping"] = None if memory is None else StopMemory(**{**memory, "restored": True})
    return found
