"""``read_checkpoint``: any file, folder, dict or module as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transferkit.checkpoints import (  # noqa: F401  importing a reader registers its format
    _archives,
    _pickle_file,
    _safetensors,
    _sharded,
    _torch_legacy,
    _torch_zip,
)
from transferkit.checkpoints.checkpoint import Checkpoint
from transferkit.checkpoints.registry import ReadOptions, find_format, format_named
from transferkit.errors import CheckpointError, TransferKitError, require


def read_checkpoint(
    source: str | PathLike[str] | Mapping[str, Any] | nn.Module | Checkpoint,
    device: torch.device | str | None = None,
    *,
    key: str | None = None,
    format: str | None = None,
    trusted: bool = False,
    fold_dropout: bool = True,
) -> Checkpoint:
    """Read a checkpoint. No code from the file runs.

    Args:
        source: A file, a folder with shards, a state dict (or a dict around one), or a live module.
        device: Where the tensors go. A file's are mapped into the cpu's memory and read when first used; any
            other device receives them all now. ``None`` leaves those of a dict or module where they are.
        key: Dotted path of the state dict where a file holds more than one, such as ``"model_ema"``.
        format: Name of the format, where content and suffix do not tell it.
        trusted: Let a torch file run whatever code it brings, as you. Only for a file you made yourself.
        fold_dropout: For neon files: scale the weights after a dropout layer by its ``keep``, so that a torch
            model computes the same function. neon scales activations when testing, torch when training.

    Raises:
        CheckpointError: The file is damaged, refused as unsafe, of no known format, or without tensors.

    Example:
        >>> checkpoint = read_checkpoint({"epoch": 3, "model": {"module.fc.weight": torch.zeros(2, 8)}})
        >>> checkpoint.names, checkpoint.metadata
        (('fc',), {'epoch': 3})
    """
    if isinstance(source, Checkpoint):
        return source.to(device)
    if isinstance(source, nn.Module):
        return Checkpoint.from_model(source).to(device)
    if isinstance(source, Mapping):
        return Checkpoint.from_state_dict(source, key=key).to(device)
    require(isinstance(source, str | PathLike), "source", "a path, a dict or a module", source)
    path = Path(source)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    try:
        form = format_named(format) if format else find_format(path)
        contents = form.read(path, ReadOptions(key=key, trusted=trusted, fold_dropout=fold_dropout))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__
    except (TransferKitError, KeyboardInterrupt, Warning):  # a warning, where its user made it an error
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file breaks a parser in ways that no one lists
        raise CheckpointError(f"{path}: damaged, or not what it seems: {error!r}") from error
    return Checkpoint.from_contents(contents, format=contents.format or form.name, source=path).to(device)
