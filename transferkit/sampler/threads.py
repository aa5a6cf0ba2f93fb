"""Share work on the cpu among threads that each run torch's operations by themselves.

Torch's own threads share each single operation, and all wait for the slowest at its end. With operations as short as
those of cutting, that waiting costs more than it gains as soon as anything else runs on the machine, such as the
workers of a DataLoader. Threads that take whole pieces of work wait once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Piece = TypeVar("Piece")


def for_each(work: Callable[[Piece], None], pieces: Sequence[Piece]) -> None:
    """Do ``work`` on every piece, on as many threads as torch would use; pieces must not depend on each other."""
    threads = torch.get_num_threads()
    if threads == 1 or len(pieces) == 1:
        for piece in pieces:
            work(piece)
        return
    inference = torch.is_inference_mode_enabled()

    def alone(piece: Piece) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # both belong to a thread
            work(piece)

    for _ in _pool(threads, os.getpid()).map(alone, pieces):
        pass


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return threads on which torch uses one core; of ``process``, since a fork leaves threads behind."""
    pool = ThreadPoolExecutor(threads, "transferkit", initializer=torch.set_num_threads, initargs=(1,))
    everyone = threading.Barrier(threads)
    for waiting in [pool.submit(everyone.wait) for _ in range(threads)]:
        waiting.result()
    torch.set_num_threads(threads)  # setting it on one thread also sets it for those that start later
    return pool
