"""Micro-batches side by side: one thread a core, each with a part of the step.

Two cores that share every operation wait for each other; two that compute a half each don't (docs/log.md).
Which worker computes what, and in which order results are added, depends on nothing but their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 4  # a step has few rows; more cores share the operations of a worker


class Workers:
    """Threads that live as long as a training run. Use as a context manager."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.threads_in_all = torch.get_num_threads()
        threads = max(1, self.threads_in_all // count)
        self._pool = (
            ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads,))
            if count > 1
            else None
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(
        self,
        function: Callable[[Sequence[Item]], Result],
        items: Sequence[Item],
        *,
        one_by_one: bool = False,
    ) -> list[Result]:
        """The function over each worker's share of the items: every count-th. Results by worker.

        Args:
            function: Called with a share; never called with none.
            items: What is to be done.
            one_by_one: A worker begins when the one before it has ended.
        """
        shares = [share for worker in range(self.count) if (share := items[worker :: self.count])]
        if self._pool is None:
            return [function(share) for share in shares]
        if one_by_one:
            return [self._pool.submit(function, share).result() for share in shares]
        return [future.result() for future in [self._pool.submit(function, share) for share in shares]]


def choose_workers(threads: int, device: str) -> int:
    """How many micro-batches are computed at a time."""
    return min(threads, MOST) if device == "cpu" else 1
