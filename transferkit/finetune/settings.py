"""Settings outside the recipe: how features are computed and cached, how the training loop runs, and a run's own."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transferkit.devices import half_dtype, mixed_precision
from transferkit.errors import ArgumentError, CheckpointError, require
from transferkit.features.shards import PRECISIONS
from transferkit.features.shared import PyramidScales, check_pyramid_scales
from transferkit.finetune.networks import NETWORKS
from transferkit.finetune.protocol import Protocol
from transferkit.launching import launcher


@dataclass(frozen=True)
class FeatureSettings:
    """How the frozen backbone computes the features of patches, and where they are cached.

    Attributes:
        method: ``"exact"``: each patch goes through the whole backbone. ``"shared"``: patches are read from feature
            maps of the whole photo, in training and test. ``None``: as the protocol says.
        pyramid_scales: Image pyramid scales used when features are shared; ``None``: as the protocol says.
        amp: Run the frozen backbone in mixed precision (bfloat16); ``None``: on with cuda, off elsewhere.
        cache: ``True``: compute the features of the frozen layers once and train on them; an error if that is
            impossible. ``False``: run the whole network in every epoch. ``None``: cache if layers are frozen and
            the features fit on the disk.
        folder: Folder of the cache, which later calls use again, for training and test photos. ``None``: a temporary
            folder that is deleted after the fit.
        limit: Maximum size of the features of a data set, bytes; ``None``: the free space on the disk.
        precision: Data type of features on disk: ``torch.float16``, ``torch.bfloat16`` or ``torch.float32``.

    Example:
        >>> FeatureSettings(method="shared", pyramid_scales=(1, 1.4, 2), folder=Path("features")).cache is None
        True
    """

    method: Literal["exact", "shared"] | None = None
    pyramid_scales: PyramidScales = None
    amp: bool | None = None
    cache: bool | None = None
    folder: Path | None = None
    limit: int | None = None
    precision: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        require(self.method in ("exact", "shared", None), "method", "'exact', 'shared' or None", self.method)
        require(
            self.precision in PRECISIONS,
            "precision",
            f"one of {', '.join(map(str, PRECISIONS))}",
            self.precision,
        )
        check_pyramid_scales(self.pyramid_scales)

    def method_for(self, protocol: Protocol) -> Literal["exact", "shared"]:
        """Return the method, by default that of the recipe."""
        return self.method or protocol.features

    def scales_for(self, protocol: Protocol) -> PyramidScales:
        """Return the image pyramid scales, by default those of the recipe."""
        return protocol.pyramid_scales if self.pyramid_scales is None else self.pyramid_scales


@dataclass(frozen=True)
class LoopSettings:
    """How training and scoring run. Apart from rounding, only ``accumulate`` changes what is computed.

    Attributes:
        amp: Mixed precision: the network computes in bfloat16 (float16 on a GPU without it); its weights, the loss
            and the scores stay float32. ``None``: on with cuda, off elsewhere.
        channels_last: Use the channels-last memory format, which is faster for convolutions on a GPU. ``None``: on
            with cuda, off elsewhere.
        compile: Compile the network with ``torch.compile``, which takes a minute and on the CPU needs a C++ compiler.
        accumulate: Number of minibatches per optimizer step. The gradient is the mean over all their patches that
            count, as for one large minibatch; batch norm still sees each minibatch alone.
        profile: Folder for a profile of steps 3 to 12: ``profile.txt``, a table of where the time went, and
            ``trace.json.gz``, a trace for https://ui.perfetto.dev.
    """

    amp: bool | None = None
    channels_last: bool | None = None
    compile: bool = False
    accumulate: int = 1
    profile: Path | None = None

    def __post_init__(self) -> None:
        require(self.accumulate >= 1, "accumulate", "at least 1", self.accumulate)

    def mixed_precision(self, device: torch.device) -> AbstractContextManager[None]:
        """Return the autocast context for the network."""
        return mixed_precision(device, self.amp)

    def gradient_scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Return the gradient scaler, which is enabled for float16 only."""
        float16 = device.type == "cuda" and self.amp is not False and half_dtype(device) == torch.float16
        return torch.amp.GradScaler(device.type, enabled=float16)

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """Return the memory format of pixels and weights."""
        wanted = device.type == "cuda" if self.channels_last is None else self.channels_last
        return torch.channels_last if wanted else torch.contiguous_format

    def lay_out_weights(self, model: nn.Module) -> None:
        """Convert the weights of ``model`` to the memory format of its device."""
        memory_format = self.memory_format(next(model.parameters()).device)
        model.to(memory_format=memory_format)  # type: ignore[call-overload]

    def compiled(self, network: nn.Module) -> nn.Module:
        """Return ``network``, compiled if ``compile`` is set."""
        return torch.compile(network) if self.compile else network  # type: ignore[return-value]

    def lay_out(self, pixels: Tensor) -> Tensor:
        """Return normalized pixels (B, 3, S, S) in the memory format of the weights; features as they are."""
        return (
            pixels.contiguous(memory_format=self.memory_format(pixels.device)) if pixels.ndim == 4 else pixels
        )


# The settings in a run's file: data, which may be anybody's.


def choice_in(settings: Mapping[str, Any]) -> tuple[int, float] | None:
    """Return the epochs and exponent that a run chose on held-out photos; ``None`` if it chose none.

    Args:
        settings: Those of the run, from :func:`read_run`.

    Raises:
        CheckpointError: They hold something else under that name.

    Example:
        >>> choice_in({"chosen": [12, 5]})
        (12, 5.0)
    """
    chosen = settings.get("chosen")
    if chosen is None:
        return None
    try:
        epochs, exponent = chosen
        require(type(epochs) is int and epochs > 0, "epochs", "a whole number above 0", epochs)
        require(type(exponent) in (int, float) and exponent > 0, "exponent", "above 0", exponent)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the run's choice on held-out photos is no choice: {error}") from error
    return epochs, float(exponent)


def parse_with_run(
    parser: argparse.ArgumentParser, argv: Sequence[str], settings: Mapping[str, Any], taken: Collection[str]
) -> argparse.Namespace:
    """Read a command line; what it does not say comes from an earlier run, and is checked as if it were typed.

    A setting named ``model`` is taken if it is a name in :data:`NETWORKS`: nothing that a file names is imported.

    Args:
        parser: Reads the command line.
        argv: Its words.
        settings: The earlier run's, from :func:`read_run`.
        taken: Names of the settings that may be taken.

    Raises:
        ArgumentError: A setting is not what may be typed, or must be; the message has the words to type.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> for name in ("--epochs", "--results"):
        ...     _ = parser.add_argument(name)
        >>> parse_with_run(parser, [], {"epochs": 3, "results": "/etc"}, {"epochs"})
        Namespace(epochs='3', results=None)
    """
    unsaid = object()
    actions = {action.dest: action for action in reversed(parser._actions) if action.dest in taken}
    args = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(actions, unsaid)))
    for name, action in actions.items():
        if getattr(args, name) is unsaid:
            value = settings.get(name)
            typed = action.default if value is None else _as_typed(parser, action, value, argv)
            setattr(args, name, typed)
    return args


def how_to_go_on(argv: Sequence[str], run_file: Path | None, *, since: float) -> str:
    """Say in one line how to go on with a command that was interrupted.

    Args:
        argv: Its words, without the program's name.
        run_file: Where it saves its run; ``None`` if it cannot be resumed.
        since: When it began, in seconds as of :func:`time.time`; what was saved before is another job's.

    Example:
        >>> how_to_go_on(["-e", "3"], None, since=0.0).partition(": ")[0]
        'no epoch is saved; begin anew with'
    """
    own = ["--model_file", str(run_file)]
    resumed = any(word.partition("=")[0] == "--model_file" for word in argv)
    if run_file is not None and run_file.is_file() and (resumed or run_file.stat().st_mtime >= since):
        return f"go on with: {_command(argv if list(argv[-2:]) == own else [*argv, *own])}"
    return f"no epoch is saved; begin anew with: {_command(argv)}"


def _command(argv: Sequence[str]) -> str:
    python, by = shlex.quote(Path(sys.executable).name), launcher()
    program = "torchrun ..." if by == "torchrun" else f"{by} ... {python}" if by else python
    return f"{program} {shlex.join([sys.argv[0], *argv])}"


def _as_typed(parser: argparse.ArgumentParser, action: argparse.Action, value: Any, argv: Sequence[str]) -> Any:
    """Return what a setting would be if it had been typed."""
    flag = next(word for word in action.option_strings if word.startswith("--"))
    command = _command([*argv, flag])
    if action.dest == "model" and value not in list(NETWORKS):
        name = shlex.quote(value) if isinstance(value, str) and value.isprintable() else "MODULE:FACTORY"
        raise ArgumentError(
            f"the run's network is {value!r}; what a file names is not imported, so if you trust it, type it: "
            f"{command} {name}"
        )
    try:
        return _typed(parser, action, flag, value)
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"the run's {action.dest} cannot be taken from its file ({error}); type it: {command} ..."
        ) from error


def _typed(parser: argparse.ArgumentParser, action: argparse.Action, flag: str, value: Any) -> Any:
    if action.nargs == 0:  # a flag without a value
        require(isinstance(value, bool), action.dest, "True or False", value)
        return value
    several = isinstance(value, (list, tuple))
    parts = [str(part) for part in value] if several else [str(value)]
    if action.nargs is None:
        words = [f"{flag}={','.join(parts)}"]
    else:
        require(not any(part.startswith("-") for part in parts), action.dest, "without '-' in front", value)
        words = [flag, *parts]
    reading, parser.exit_on_error = parser.exit_on_error, False
    try:
        return getattr(parser.parse_args(words), action.dest)
    finally:
        parser.exit_on_error = reading
