"""Work on several cores at once in pieces that never wait for each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch

Piece = TypeVar("Piece")


def in_threads(work: Callable[[Piece], None], pieces: Iterable[Piece]) -> None:
    """Call ``work`` on each piece, on as many threads as torch has been given, each of which uses one core.

    Torch's own threads meet after every operation, and where other work wants the cores too, each meeting waits until
    the last of them is given one again: cutting 448 patches takes some thousand small operations, and on two crowded
    cores did 80 patches a second so, against 1,000 in this way. Pieces meet once, at the end.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        for piece in pieces:
            work(piece)
        return
    inference = torch.is_inference_mode_enabled()

    def call(piece: Piece) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # both are modes of a thread
            work(piece)

    for _ in _pool(os.getpid(), threads).map(call, pieces):  # so that an error is raised here
        pass


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return threads of this process (a forked one inherits none) that torch does not divide further."""
    all_there = Barrier(threads)

    def alone() -> None:
        torch.get_num_threads()  # else torch sets this thread's number later, and to the process's
        torch.set_num_threads(1)
        all_there.wait()

    pool = ThreadPoolExecutor(threads, "transferkit-cut")
    for begun in [pool.submit(alone) for _ in range(threads)]:
        begun.result()
    torch.set_num_threads(threads)  # new threads of others take what was set last
    return pool
