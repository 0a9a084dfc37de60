"""Micro-batches side by side: one thread a core, each with a part of the step.

Two cores that share every operation wait for each other; two that compute a half each don't (docs/log.md).
Which worker computes what, and in which order results are added, depends on nothing but their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TypeVar

import torch

from gptailor.models.cores import pool_of

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 4  # a step has few rows; more cores share the operations of a worker


@dataclass(frozen=True, slots=True)
class Workers:
    """How many compute at a time; they share PyTorch's threads evenly."""

    count: int

    def run(
        self,
        function: Callable[[Sequence[Item]], Result],
        items: Sequence[Item],
        *,
        one_by_one: bool = False,
    ) -> list[Result]:
        """The function over each worker's share of the items: every count-th. Results by worker.

        Nobody works any more when it returns, or raises what a worker raised.

        Args:
            function: Called with a share; never called with none.
            items: What is to be done.
            one_by_one: A worker begins when the one before it has ended.
        """
        shares = [share for worker in range(self.count) if (share := items[worker :: self.count])]
        if self.count == 1:
            return [function(share) for share in shares]
        pool = pool_of(self.count, threads=max(1, torch.get_num_threads() // self.count))
        if one_by_one:
            return [pool.submit(function, share).result() for share in shares]
        futures = [pool.submit(function, share) for share in shares]
        wait(futures)
        return [future.result() for future in futures]


def choose_workers(threads: int, device: str) -> int:
    """How many micro-batches are computed at a time."""
    return min(threads, MOST) if device == "cpu" else 1
