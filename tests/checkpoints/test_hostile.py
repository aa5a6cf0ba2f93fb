"""Hostile files of every format: all refused, nothing runs, nothing is taken."""

from __future__ import annotations

import resource
import time
import warnings
from pathlib import Path

import pytest

from tests.checkpoints.hostile_files import called, dangerous_calls, hostile_groups, in_every_format, integer
from tests.checkpoints.hostile_files import name as global_name
from transferkit.checkpoints import read_checkpoint
from transferkit.errors import CheckpointError

MEMORY = 300  # MB that reading any one of them may add
SECONDS = 5  # of the processor, so that a busy machine does not fail the test


def peak_memory() -> float:
    """Largest resident memory so far, in MB; since the last reset where the system can reset it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return next(
        int(line.split()[1]) / 1000 for line in status.read_text().splitlines() if line.startswith("VmHWM")
    )


def reset_peak() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        try:
            clear.write_text("5")
        except OSError:
            return


@pytest.mark.parametrize("group", hostile_groups(""))
def test_every_hostile_file_is_refused(group: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    readable: list[str] = []
    wrong: list[str] = []
    for number, (label, suffix, content) in enumerate(hostile_groups(str(canary))[group]()):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content)
        del content
        reset_peak()
        before, begun = peak_memory(), time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                read_checkpoint(path)
            readable.append(label)
        except CheckpointError:
            pass
        except Exception as error:
            wrong.append(f"{label}: {error!r}")
        seconds, grown = time.process_time() - begun, peak_memory() - before
        assert not canary.exists(), f"{label} ran"
        assert seconds < SECONDS, f"{label} took {seconds:.1f} s"
        assert grown < MEMORY, f"{label} took {grown:.0f} MB"
        path.unlink()
    assert not readable, f"read without an error: {readable}"
    assert not wrong, f"raised something else: {wrong}"


def test_there_are_enough_of_them() -> None:
    groups = hostile_groups("canary")
    light = ("calls", "mechanisms", "arrays", "torch", "headers", "look-alikes")
    assert sum(sum(1 for _ in groups[group]()) for group in light) >= 200


@pytest.mark.parametrize("name", ["os.system", "torch.hub.load", "numpy.load"])
def test_the_refusal_names_what_was_blocked(name: str, tmp_path: Path) -> None:
    module, attribute, arguments = dangerous_calls(str(tmp_path / "canary"))[name]
    value = called(global_name(module, attribute), *arguments)
    for _, suffix, content in in_every_format(name, value):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(path)


def test_the_same_files_without_their_sting_are_read(tmp_path: Path) -> None:
    for label, suffix, content in in_every_format("a number", integer(3)):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        if not label.startswith("pickle"):
            assert len(read_checkpoint(path)) == 1
