"""Long measurements in parts, each kept as soon as it is there, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

import transferkit
from tests.benchmarks.rounds import say

Value = TypeVar("Value")

# What decides a patch's features and how fast they come; a change to it makes what was kept worthless.
SOURCES = ("features", "sampler", "labeling", "alexnet.py", "boxes.py", "preprocessing.py")


class Parts:
    """The parts of one measurement, by name.

    Args:
        folder: Where they are kept.
        settings: What they depend on besides the code; parts of other settings are left alone and not used.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        words = json.dumps([source_digest(), settings], sort_keys=True, default=str)
        self.folder = folder / f"parts_{digest(words.encode())}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def figures(self, name: str, measure: Callable[[], Value]) -> Value:
        """Return what ``measure`` does, plain values; of an earlier run if that came so far."""
        return self._part(
            self.folder / f"{name}.json",
            lambda path: json.loads(path.read_text(encoding="utf-8")),
            lambda value, path: path.write_text(json.dumps(value), encoding="utf-8"),
            measure,
        )

    def tensors(self, name: str, compute: Callable[[], Value]) -> Value:
        """The same for tensors in plain containers."""
        load = lambda path: torch.load(path, weights_only=True)  # noqa: E731
        return self._part(self.folder / f"{name}.pt", load, torch.save, compute)

    def in_progress(self, name: str) -> Path:
        """Return where ``measure`` may keep what it has so far of ``figures(name, measure)``; deleted once that is there."""
        return self.folder / f"{name}.in_progress"

    def _part(
        self,
        path: Path,
        load: Callable[[Path], Value],
        save: Callable[[Value, Path], object],
        make: Callable[[], Value],
    ) -> Value:
        if path.is_file():
            say(f"{path.stem}: is there already")
            return load(path)
        say(f"{path.stem}: begins")
        value = make()
        partial = path.with_name(path.name + ".partial")
        save(value, partial)
        partial.replace(path)
        self.in_progress(path.stem).unlink(missing_ok=True)
        return value


def source_digest() -> str:
    """Return a digest of the code that features come from."""
    package = Path(transferkit.__file__).parent
    files = [file for name in SOURCES for file in sorted([package / name, *(package / name).rglob("*.py")])]
    return digest(b"".join(file.read_bytes() for file in files if file.is_file()))


def digest(data: bytes) -> str:
    """Return a short digest."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()
