"""Results of a run on disk: metrics.json, tables, curves, and a stopwatch for their times."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy
import torch

from transferkit.display import as_csv, as_json
from transferkit.errors import MissingExtraError
from transferkit.files import faults_named, write_atomically, write_text
from transferkit.finetune.run import EpochRecord, Run
from transferkit.scorer import ClassificationResult
from transferkit.scorer.pictures import plot_convergence


def write_results(
    folder: Path | str,
    run: Run,
    result: ClassificationResult,
    *,
    seconds: Mapping[str, float],
    image_set: str = "test",
) -> dict[str, Any]:
    """Write metrics.json, history.csv, average_precision.csv and .md, and (with matplotlib) convergence.png.

    The table has every class under every rule of average precision. If ``result`` has decisions, the precision and
    recall of each class are in decisions.csv. If it has the ids of the images, their scores are in scores.csv, beside
    what was decided, and in the format of the VOC devkit: as ``comp2``, the competition that allows other training
    data, for a transferred network, and as ``comp1`` for one trained from scratch.

    Args:
        folder: Results folder, created if absent.
        run: The run after its last epoch.
        result: Return value of :func:`transferkit.scorer.evaluate`.
        seconds: Wall time by phase.
        image_set: Name of the scored image set, for the devkit's file names.

    Returns:
        The contents of metrics.json.
    """
    folder = Path(folder)
    with faults_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {
        "mean_ap": result.mean_ap(),
        "epochs": run.epoch,
        "settings": run.settings,
        "result": result.to_dict(),
        "history": [asdict(record) for record in run.history],
        "frozen": list(run.frozen),
        "preprocessing": run.preprocessing.to_dict(),
        "transfer": run.transfer.to_dict() if run.transfer else None,
        "seconds": dict(seconds),
        "versions": versions(run),
    }
    text = as_json(metrics)
    write_text(folder / "metrics.json", text + "\n")
    write_text(folder / "history.csv", history_csv(run.history))
    write_text(folder / "average_precision.csv", ap_csv(result))
    write_text(folder / "average_precision.md", result.to_markdown())
    if result.decisions is not None:
        write_text(folder / "decisions.csv", result.decisions.to_csv())
    if result.image_ids:
        write_text(folder / "scores.csv", result.scores_csv())
        competition = "comp2" if run.transfer else "comp1"
        result.write_devkit(folder / "devkit", image_set=image_set, competition=competition, rename=True)
    if run.history:
        write_convergence(folder / "convergence.png", {"training": run.history})
    contents: dict[str, Any] = json.loads(text)
    return contents


def write_convergence(path: Path, histories: Mapping[str, Sequence[EpochRecord]]) -> Path | None:
    """Draw the training loss of one or more runs, and their mean AP where it was measured.

    Args:
        path: Image file; its suffix determines the format.
        histories: ``run.history`` of each run, by the name in the legend.

    Returns:
        ``path``, or ``None`` if matplotlib (the extra ``plots``) is not installed.
    """
    loss = {name: [record.loss for record in history] for name, history in histories.items()}
    mean_ap = {
        name: {record.epoch: record.mean_ap for record in history if record.mean_ap is not None}
        for name, history in histories.items()
    }
    try:
        figure = plot_convergence(loss, mean_ap)
    except MissingExtraError:
        return None
    write_atomically(path, lambda file: figure.savefig(file, dpi=150, format=path.suffix[1:]))
    return path


class Stopwatch:
    """Measure the wall time of each phase of a run.

    Attributes:
        laps: Seconds by phase, in order.

    Example:
        >>> stopwatch = Stopwatch()
        >>> stopwatch.lap("read data")
        >>> str(stopwatch)
        'read data 0.0 s'
    """

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to ``phase``."""
        now = time.perf_counter()
        self.laps[phase] = self.laps.get(phase, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        return ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in self.laps.items())


def versions(run: Run) -> dict[str, str]:
    """Return the software and hardware that the figures depend on."""
    device = run.device
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


def history_csv(history: list[EpochRecord]) -> str:
    """Return the history as CSV, one line per epoch."""
    names = [field.name for field in fields(EpochRecord)]
    return as_csv([names, *([getattr(record, name) for name in names] for record in history)])


def ap_csv(result: ClassificationResult) -> str:
    """Return AP as CSV, one line per class and one for the mean, one column per rule; empty if there is none."""
    header = ["class", "positives", "difficult", *(str(rule) for rule in result.ap)]
    rows = [
        [name, result.positives[c], result.difficult[c], *(_cell(values[c]) for values in result.ap.values())]
        for c, name in enumerate(result.class_names)
    ]
    means = [_cell(result.mean_ap(rule)) for rule in result.ap]
    return as_csv([header, *rows, ["mean", sum(result.positives), sum(result.difficult), *means]])


def _cell(value: float) -> str:
    return "" if value != value else f"{value:.6f}"
