"""What outlives a request: the batchers, the counters, the room that is left, whether we are leaving."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import anyio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gptailor.errors import GptailorError
from gptailor.serve.batcher import Batcher, Draining, Overloaded, ServablePredictor

BODIES_HELD = 64  # this many bodies of the largest size may be in memory
PARSING_THREADS = 4  # tokenizing more at once would only take the processor from the model


class Metrics:
    """Counters of one app, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered", "route", "status")
        self.rejected = self._counter("rejected", "Requests refused to protect the server", "reason")
        self.tokens = self._counter("tokens", "Tokens the model read", "model")
        self.seconds = Histogram(
            "gptailor_request_seconds", "Time to answer", ["route"], registry=self.registry
        )
        self.batch_size = Histogram(
            "gptailor_batch_size",
            "Texts in one run of the model",
            ["model"],
            buckets=[2**k for k in range(9)],
            registry=self.registry,
        )
        self.queue_items = Gauge("gptailor_queue_items", "Texts waiting", ["model"], registry=self.registry)
        self.queue_tokens = Gauge(
            "gptailor_queue_tokens", "Tokens waiting", ["model"], registry=self.registry
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"gptailor_{name}", text, labels, registry=self.registry)

    def watch(self, batcher: Batcher) -> Callable[[int, int], None]:
        """Reads the queue of `batcher`; gives what it shall call after each run."""
        name = batcher.predictor.name
        self.queue_items.labels(name).set_function(lambda: batcher.items)
        self.queue_tokens.labels(name).set_function(lambda: batcher.tokens)
        sizes, tokens = self.batch_size.labels(name), self.tokens.labels(name)

        def count(texts_run: int, tokens_run: int) -> None:
            sizes.observe(texts_run)
            tokens.inc(tokens_run)

        return count


class Limits(NamedTuple):
    """Bounds of one request."""

    deadline_seconds: float
    body_bytes: int
    inputs: int


class Service:
    """What outlives a request: the batchers by model name, the counters, whether we are leaving."""

    def __init__(self, predictors: Sequence[ServablePredictor], *, queue_items: int, limits: Limits) -> None:
        names = [predictor.name for predictor in predictors]
        if not names or len(set(names)) < len(names):
            raise GptailorError(
                f"A server needs models with different names, and got {names}.",
                fix="Rename one of the run folders, or serve it from another process.",
            )
        self.limits, self.metrics = limits, Metrics()
        self.started = int(time.time())
        self.draining = False
        self.accepted = 0  # requests being answered
        self.most_accepted = len(names) * queue_items + BODIES_HELD
        self.body_bytes = 0  # held in memory by them
        self.parsing = anyio.CapacityLimiter(PARSING_THREADS)
        # Two models that compute at once would fight for the same cores and both be slower.
        turn = threading.Lock()
        self.batchers = {p.name: Batcher(p, queue_items=queue_items, turn=turn) for p in predictors}
        for batcher in self.batchers.values():
            batcher.on_batch = self.metrics.watch(batcher)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Counts a request as accepted, from before its body is read until its answer is known."""
        if self.draining:
            raise Draining("The server is shutting down.", fix="Send the request again in a moment.")
        if self.accepted >= self.most_accepted or all(b.full for b in self.batchers.values()):
            raise Overloaded(min(b.retry_after_seconds() for b in self.batchers.values()))
        self.accepted += 1
        try:
            yield
        finally:
            self.accepted -= 1

    def hold(self, count: int) -> None:
        """Reserves memory for a piece of a body."""
        self.body_bytes += count
        if self.body_bytes > BODIES_HELD * self.limits.body_bytes:
            raise Overloaded(1.0)

    async def drain(self, seconds: float) -> None:
        """Readiness off, nothing new; returns when what was accepted is answered, or after `seconds`."""
        self.draining = True
        end = time.monotonic() + seconds
        while self.accepted and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for batcher in self.batchers.values():
            await batcher.drain(timeout_seconds=max(0.0, end - time.monotonic()))

    async def stop(self) -> None:
        """Ends the workers."""
        self.draining = True
        for batcher in self.batchers.values():
            await asyncio.to_thread(batcher.stop, timeout_seconds=1.0)
