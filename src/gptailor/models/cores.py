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
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}  # by process and threads: a fork inherits no thread


def cores() -> int:
    """How many pieces are computed at a time: as many as PyTorch has threads."""
    return torch.get_num_threads()


def on_cores(function: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """The function's result for every piece, in order; each piece is computed on one core."""
    return list(_pool(cores()).map(function, pieces))


def _pool(threads: int) -> ThreadPoolExecutor:
    key = (os.getpid(), threads)
    with _making:
        if key not in _pools:
            pool = ThreadPoolExecutor(threads, "core")
            together = threading.Barrier(threads)  # so that no thread takes the setting up of two

            def begin(_: int) -> None:
                torch.get_num_threads()  # a thread that was never asked takes the common number later
                torch.set_num_threads(1)
                together.wait()

            list(pool.map(begin, range(threads)))
            torch.set_num_threads(threads)  # of this thread, and of those that begin later
            _pools[key] = pool
        return _pools[key]
