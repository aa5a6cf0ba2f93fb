"""Workers: results arrive as they were sent, through little shared memory too; what ends an epoch says which image."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.sampler.test_multiscale import Scenes, digest, patches, sampler
from transferkit.annotated import AnnotatedImage
from transferkit.errors import ArgumentError, DataError
from transferkit.sampler import MultiscaleSampler, _workers
from transferkit.sampler._workers import Parcel, RemoteTraceback

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores


def sent(value: object) -> Any:
    """Return what arrives where a worker sends ``value``."""
    return pickle.loads(ForkingPickler.dumps(Parcel(value)))


@pytest.fixture(params=["memory file", "pipe"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    def refused(*_: object) -> int:
        raise OSError("not in this sandbox")

    monkeypatch.setattr(_workers, "_SMALL", 0)
    if request.param == "pipe":
        monkeypatch.setattr(os, "memfd_create", refused, raising=False)
    return str(request.param)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float64, torch.bfloat16, torch.complex64])
def test_tensors_arrive_as_they_were(way: str, dtype: torch.dtype) -> None:
    whole = (torch.arange(3 * 5 * 7) % 3).reshape(3, 5, 7).to(dtype)
    for tensor in (whole, whole.permute(2, 0, 1), whole[1:, ::2], whole[0, 0, 0], whole[:0], whole[1].clone()):
        arrived, others = sent({"in": (tensor, [tensor + tensor])})["in"]
        assert arrived.dtype == dtype and arrived.shape == tensor.shape and torch.equal(arrived, tensor)
        arrived.zero_()  # it is the receiver's own
        assert torch.equal(others[0], tensor + tensor)
    assert whole.any()


def test_what_is_not_a_plain_tensor_arrives_too(way: str) -> None:
    item = replace(Scenes()[0], id="猫")
    found = sent(item)
    assert isinstance(found, AnnotatedImage) and found.id == "猫" and torch.equal(found.image, item.image)
    assert sent(torch.ones(2, requires_grad=True)).requires_grad
    assert sent(None) is None and sent(17) == 17


class Odd(OSError):
    """Cannot be made from what pickle keeps of it."""

    def __init__(self, path: str, *, why: str) -> None:
        super().__init__(f"{path}: {why}")


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.skipif(sys.platform != "linux", reason="no files in memory")
def test_small_results_that_are_kept_hold_no_map() -> None:
    def maps() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:transferkit")

    before = maps()
    small, large = [sent(torch.ones(10)) for _ in range(5)], sent(torch.ones(10**6))
    assert maps() == before + 1 and all(one.sum() == 10 for one in small) and large.sum() == 10**6


def test_errors_arrive_with_their_type_and_traceback(way: str) -> None:
    class Local(KeyError):
        pass

    for error, kind in (
        (ValueError("a"), ValueError),
        (Odd("x.tif", why="b"), OSError),
        (Local("c"), KeyError),
    ):
        found = sent([raised(error)])[0]
        assert type(found) is kind and str(error).strip("'") in str(found)
        assert isinstance(found.__cause__, RemoteTraceback) and "raise error" in str(found.__cause__)


# What a data set raises.


class End(NamedTuple):
    """How an epoch ended; the error itself would keep the sampler and its workers alive."""

    words: str
    cause: type
    text: str


def end_of(batches: Iterable[object]) -> End:
    try:
        for _ in batches:
            pass
    except DataError as error:
        return End(str(error), type(error.__cause__), "".join(traceback.format_exception(error)))
    raise AssertionError("the epoch ended well")


def failing(error: Exception, at: int = 3) -> Scenes:
    class Failing(Scenes):
        def __getitem__(self, index: int) -> AnnotatedImage:
            if index == at:
                raise error
            return super().__getitem__(index)

    return Failing()


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("on_bad_image", "kind"),
    [("error", KeyError), ("error", RuntimeError), ("error", MemoryError), ("skip", MemoryError)],
)
def test_an_error_of_one_s_own_keeps_its_type_and_traceback(
    num_workers: int, on_bad_image: Any, kind: type[Exception]
) -> None:
    end = end_of(sampler(failing(kind("mine")), num_workers=num_workers, on_bad_image=on_bad_image))
    assert end.words.startswith(f"image 3 of the data set cannot be used: {kind.__name__}: ")
    assert end.cause is kind and "in __getitem__" in end.text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_one_that_cannot_be_sent_neither_hangs_nor_changes_what_is_skipped(num_workers: int) -> None:
    class Private(Exception):
        def __init__(self, first: str, second: str) -> None:
            super().__init__(first + second)

    end = end_of(sampler(failing(Private("a", "b")), num_workers=num_workers))
    assert end.words == "image 3 of the data set cannot be used: Private: ab" and "in __getitem__" in end.text
    stream = sampler(failing(Odd("x.tif", why="no")), num_workers=num_workers, on_bad_image="skip")
    with pytest.warns(UserWarning, match="skipped an image"):
        list(stream)
    assert dict(stream.bad_images) == {3: "Odd: x.tif: no"}


def test_a_balance_s_error_is_its_own() -> None:
    def balance(labels: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
        raise ArgumentError("no such balance")

    balance.size = lambda available, count: count  # type: ignore[attr-defined]
    for num_workers in (0, 1):
        with pytest.raises(ArgumentError, match="^no such balance$"):
            list(sampler(balance=balance, num_workers=num_workers))


# Workers that die.


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Deadly(Scenes):
    """At one image a worker dies, unless it has before."""

    def __init__(self, folder: Path, death: Callable[[], object] | None, at: int = 3) -> None:
        super().__init__(8)
        self.ids = [f"photo{index}" for index in range(8)]
        self.mark, self.death, self.at = folder / "died", death, at

    def __getitem__(self, index: int) -> AnnotatedImage:
        if self.death and index == self.at and multiprocessing.parent_process() and not self.mark.exists():
            self.mark.touch()
            self.death()
        return super().__getitem__(index)


DEATHS: dict[str, Callable[[], object]] = {
    "killed": killed,
    "left": lambda: os._exit(3),
    "exited": lambda: sys.exit(3),
    "crashed": lambda: signal.raise_signal(signal.SIGSEGV),
}


# Where torch's handler of signals raises within a finalizer, Python can only say so; the error comes all the same.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("balance", [None, lambda labels, count, generator: torch.arange(24)])
@pytest.mark.parametrize("death", DEATHS)
def test_a_dead_worker_is_an_error_that_names_its_image(tmp_path: Path, death: str, balance: Any) -> None:
    settings: dict[str, Any] = {"shuffle": False, "balance": balance}  # a function's patches are counted first
    stream = sampler(Deadly(tmp_path, DEATHS[death]), num_workers=2, **settings)
    assert "died while it worked on image 3 of the data set ('photo3')" in end_of(stream).words
    state = stream.state_dict()
    stream.load_state_dict(state)  # the same sampler goes on
    whole = [digest(batch) for batch in sampler(Scenes(8), **settings)]
    assert [digest(batch) for batch in stream] == whole[state["batch"] :]
    assert len(list(stream)) == len(stream)


@pytest.mark.parametrize("busy", [False, True])
def test_also_while_the_loop_is_busy(tmp_path: Path, busy: bool) -> None:
    """torch interrupts whatever runs then; the loop may also wait for what the worker was to send."""
    data = Deadly(tmp_path, lambda: (time.sleep(0.5), killed()))
    stream = sampler(data, num_workers=2, shuffle=False, patches_per_image=24, prefetch=4)
    end = end_of(time.sleep(10 if busy else 0) for _ in stream)
    assert "image 3 of the data set ('photo3')" in end.words
    assert len(list(stream)) == len(stream)


def test_workers_that_died_between_epochs_are_replaced() -> None:
    stream = sampler(num_workers=2)
    first = patches(stream)
    (worker, *_) = multiprocessing.active_children()
    assert "died while it waited for an image" in end_of(time.sleep(10) for _ in [worker.kill()]).words
    stream.set_epoch(0)
    assert patches(stream) == first


def test_an_abandoned_iteration_leaves_its_workers_to_the_next() -> None:
    before = set(multiprocessing.active_children())
    stream = sampler(num_workers=1)
    for _ in range(3):
        next(iter(stream))
    assert len(set(multiprocessing.active_children()) - before) == 1
    del stream
    assert not set(multiprocessing.active_children()) - before


# A container's shared memory.

_PHOTOS = """
import sys, warnings
import torch
from types import SimpleNamespace
from transferkit.sampler import MultiscaleSampler
warnings.simplefilter("ignore")

class Photos:
    def __len__(self): return 6
    def __getitem__(self, index):
        image = torch.full((3, 800, 800), index, dtype=torch.uint8)
        return SimpleNamespace(image=image, boxes=torch.zeros(0, 4), classes=torch.zeros(0, dtype=torch.int64))

settings = dict(patches_per_image=16, batch_size=16, patch_size=8, num_workers=2, shuffle=False)
print([int(batch.pixels[0, 0, 0, 0]) for batch in MultiscaleSampler(Photos(), **settings)])
"""


@pytest.mark.skipif(
    shutil.which("unshare") is None, reason="no unshare, which gives a process its own /dev/shm"
)
@pytest.mark.parametrize(
    ("size", "printed"), [("1m", "[0, 1, 2, 3, 4, 5]"), ("4k", "workers cannot be started")]
)
def test_a_small_dev_shm_is_no_limit_or_said(root: Path, size: str, printed: str) -> None:
    """Smaller than one photo; and too small for the locks of any workers."""
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a /dev/shm")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, _PHOTOS],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert printed in done.stdout + done.stderr.replace("worker processes", "workers")


def test_a_sampler_that_has_run_can_be_sent(tmp_path: Path) -> None:
    stream = sampler(num_workers=1)
    list(stream)
    again: MultiscaleSampler = pickle.loads(pickle.dumps(stream))
    assert patches(again) == patches(stream)
