"""Hostile files of every format: all refused, nothing runs, nothing is taken."""

from __future__ import annotations

import errno
import os
import resource
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from tests.checkpoints.hostile_files import (
    called,
    dangerous_calls,
    harmless_calls,
    hostile_groups,
    in_archives,
    in_every_format,
    integer,
    mapping,
    program,
    repeated,
    text,
)
from tests.checkpoints.hostile_files import name as global_name
from transferkit.checkpoints import read_checkpoint, register_reader, unregister_reader
from transferkit.checkpoints._describe import describe, describe_in_words
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


def test_no_file_takes_more_than_its_bounds(tmp_path: Path) -> None:
    """Three times the file and 1 GB of memory, and some seconds for each megabyte; most take next to nothing."""
    for label, suffix, content in repeated():
        path, size = tmp_path / f"file{suffix}", 1e-6 * len(content)
        path.write_bytes(content)
        del content
        reset_peak()
        before, begun = peak_memory(), time.process_time()
        with suppress(CheckpointError):
            describe_in_words(describe(read_checkpoint(path)))
        seconds, grown = time.process_time() - begun, peak_memory() - before
        assert seconds < SECONDS + size, f"{label} took {seconds:.1f} s"
        assert grown < MEMORY + 3 * size + (700 if suffix == ".gz" else 0), f"{label} took {grown:.0f} MB"
        path.unlink()


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "model.safetensors.index.json", "x"])
def test_pipes_are_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="pipe"):
        read_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="without weights"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("unable to mmap 40000000000 bytes from file <m.pt>: Cannot allocate memory (12)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_lack_of_memory_is_no_damage(error: Exception, wrapped: bool, tmp_path: Path) -> None:
    @register_reader("hungry", suffixes=(".hungry",))
    def read(path: Path, options: object) -> NoReturn:
        try:
            raise error
        except Exception as found:
            raise (CheckpointError("damaged file") if wrapped else found) from found

    try:
        (tmp_path / "m.hungry").write_bytes(b"?")
        with pytest.raises(CheckpointError, match=r"m\.hungry: there is not enough memory") as caught:
            read_checkpoint(tmp_path / "m.hungry")
        assert "damaged" not in str(caught.value)
    finally:
        unregister_reader("hungry")


def test_a_message_has_one_line_of_bounded_length_whatever_the_file_names(tmp_path: Path) -> None:
    forged = "x\nnote: verified\x1b]0;title\x07"
    for number, value in enumerate(
        [called(global_name("os", "f"), text(forged)), text(forged) + text("f") + b"\x93"]
    ):
        (tmp_path / f"{number}.pkl").write_bytes(program(value, 4))
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(tmp_path / f"{number}.pkl")
        assert str(caught.value).isprintable()
    (tmp_path / "long.pkl").write_bytes(program(mapping(**{"a" * 10**6: called(global_name("os", "f"))})))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "long.pkl")
    assert len(str(caught.value)) < 5000


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


@pytest.mark.parametrize("label", harmless_calls())
def test_what_is_no_program_is_no_reason_to_refuse(label: str, tmp_path: Path) -> None:
    value = harmless_calls()[label]
    for kind, suffix, content in (*in_every_format(label, value), *in_archives(label, value)):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        if not kind.startswith(("pickle", "in bytes", "zip in zip")):
            assert len(read_checkpoint(path)) == 1, kind
