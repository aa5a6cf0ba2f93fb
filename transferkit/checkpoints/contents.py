"""What every reader is given and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

States = Mapping[str, Mapping[str, Tensor]]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class ReadOptions:
    """The choices of one call of ``read_checkpoint`` that concern a reader.

    Attributes:
        key: Dotted path of the state dict to take, ``"model_ema"`` or ``"state.model"``; ``None`` finds it.
        trusted: Whether the caller accepts that code from the file runs.
        fold_dropout: Whether neon's weights are scaled so that a torch model computes the same function.
    """

    key: str | None = None
    trusted: bool = False
    fold_dropout: bool = True


@dataclass(frozen=True, eq=False)
class Contents:
    """What a reader found in a file, before it is grouped into layers.

    Attributes:
        tensors: Tensors by full key (``"features.0.weight"``), in definition order.
        states: Optimizer state by the same full key, then by state name.
        notes: What the reader decided that its user may want to know, one sentence each.
        metadata: The plain values found beside the tensors (``"epoch"``, ``"neon_version"``).
        raw_index: Each layer's number in the file's own count, where the file has one.
        format: What the content turned out to be, where the reader serves more than one format.
        files: The files that were read, where that is not just the file asked for.
    """

    tensors: Mapping[str, Tensor]
    states: States = field(default_factory=lambda: _NOTHING)
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    raw_index: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    format: str = ""
    files: tuple[Path, ...] = ()
