"""Training that takes hours, saved after each epoch, so that a run that was stopped goes on."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.rounds import say
from transferkit.finetune import Run, fit, read_run
from transferkit.sampler import MultiscaleSampler


def fit_resumed(run: Run, patches: MultiscaleSampler, epochs: int, saved: Path) -> float:
    """Train until ``run.epoch`` is ``epochs``, from where ``saved`` is if that is there.

    Returns:
        The seconds of the epochs that were there already.
    """
    if saved.is_file():
        run.restore(read_run(saved))
        patches.load_state_dict(run.sampler_state or {})
        say(f"goes on after epoch {run.epoch}")
    earlier = sum(record.seconds for record in run.history)

    def keep(run: Run) -> None:
        run.save(saved)
        say(str(run.history[-1]))

    fit(run, patches, epochs, after_epoch=keep)
    return earlier
