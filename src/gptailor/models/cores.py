"""Every core computes a piece of its own.

Two threads inside one matrix product lose up to a quarter to waiting for each other; two products side by
side don't. And a product on one core has the same bits however many cores there are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_making = threading.Lock()
_pools: dict[tuple[int, int, int], ThreadPoolExecutor] = {}  # by process too: a fork inherits no thread


def cores() -> int:
    """How many pieces are computed at a time: as many as PyTorch has threads."""
    return torch.get_num_threads()


def on_cores(function: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """The function's result for every piece, in order; each piece is computed on one core."""
    return list(pool_of(cores()).map(function, pieces))


def pool_of(workers: int, *, threads: int = 1) -> ThreadPoolExecutor:
    """The process's threads for so many pieces at a time, each with so many of PyTorch's own threads."""
    key = (os.getpid(), workers, threads)
    with _making:
        if key not in _pools:
            pool = ThreadPoolExecutor(workers, "core")
            together = threading.Barrier(workers)  # so that no thread takes the setting up of two
            common = torch.get_num_threads()

            def begin(_: int) -> None:
                torch.get_num_threads()  # a thread that was never asked takes the common number later
                torch.set_num_threads(threads)
                together.wait()

            list(pool.map(begin, range(workers)))
            torch.set_num_threads(common)  # of this thread, and of those that begin later
            _pools[key] = pool
        return _pools[key]
