"""What outlives a request: the queues, the counters, the room that is left, whether we are leaving."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import anyio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gptailor.errors import GptailorError
from gptailor.serve.batcher import Batcher, Draining, Overloaded, ServablePredictor
from gptailor.serve.turn import Turn
from gptailor.serve.writing import ServableAnswerer, TextWorker

BODIES_HELD = 64  # this many bodies of the largest size may be in memory
PARSING_THREADS = 4  # tokenizing more at once would only take the processor from the model


class Metrics:
    """Counters of one app, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered", "route", "status")
        self.rejected = self._counter("rejected", "Requests refused to protect the server", "reason")
        self.tokens = self._counter("tokens", "Tokens the model read", "model")
        self.written = self._counter("written_tokens", "Tokens the model wrote", "model")
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

    def watch_worker(self, worker: TextWorker) -> Callable[[int, int], None]:
        """Reads the queue of `worker`; gives what it shall call after each step."""
        name = worker.answerer.name
        self.queue_items.labels(name).set_function(lambda: worker.waiting)
        sizes = self.batch_size.labels(name)
        tokens, written = self.tokens.labels(name), self.written.labels(name)

        def count(tokens_written: int, tokens_read: int) -> None:
            sizes.observe(tokens_written)  # one for each answer in the run
            tokens.inc(tokens_read)
            written.inc(tokens_written)

        return count


class Limits(NamedTuple):
    """Bounds of one request."""

    deadline_seconds: float
    body_bytes: int
    inputs: int
    begin_seconds: float  # a text that is written has begun by then


class Service:
    """What outlives a request: batchers and text workers by model name, counters, whether we are leaving."""

    def __init__(
        self,
        predictors: Sequence[ServablePredictor],
        answerers: Sequence[ServableAnswerer] = (),
        *,
        queue_items: int,
        limits: Limits,
    ) -> None:
        names = [*(predictor.name for predictor in predictors), *(answerer.name for answerer in answerers)]
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
        turn = Turn()
        self.batchers = {p.name: Batcher(p, queue_items=queue_items, turn=turn) for p in predictors}
        for batcher in self.batchers.values():
            batcher.on_batch = self.metrics.watch(batcher)
        self.workers = {a.name: TextWorker(a, queue_items=queue_items, turn=turn) for a in answerers}
        for worker in self.workers.values():
            worker.on_step = self.metrics.watch_worker(worker)

    @property
    def _lines(self) -> tuple[Batcher | TextWorker, ...]:
        return (*self.batchers.values(), *self.workers.values())

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Counts a request as accepted, from before its body is read until its answer is known."""
        if self.draining:
            raise Draining("The server is shutting down.", fix="Send the request again in a moment.")
        if self.accepted >= self.most_accepted or all(line.full for line in self._lines):
            raise Overloaded(min(line.retry_after_seconds() for line in self._lines))
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
        for line in self._lines:
            await line.drain(timeout_seconds=max(0.0, end - time.monotonic()))

    async def stop(self) -> None:
        """Ends the workers."""
        self.draining = True
        for line in self._lines:
            await asyncio.to_thread(line.stop, timeout_seconds=1.0)
