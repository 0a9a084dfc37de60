"""Batches what waits: one worker thread, one queue per shape, a bound, deadlines, a drain.

The worker takes the shape whose oldest text waits longest and as many texts of it as fit, and never
waits for more to come: a batch is what gathered while the last one ran. Texts of one shape run together,
so an answer doesn't depend on its neighbors.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gptailor.errors import GptailorError
from gptailor.types import AnswerForm, FloatArray

Shape = tuple[int, int]
logger = logging.getLogger("gptailor.serve")


class Encoded(Protocol):
    """A text as token ids. `shape` is the (batch, length) it runs in."""

    @property
    def num_tokens(self) -> int:
        """Real tokens, padding not counted."""

    @property
    def truncated(self) -> bool:
        """Whether the text's end did not fit."""

    @property
    def shape(self) -> Shape:
        """Texts of equal shape may share a batch of at most `shape[0]` rows."""

    @property
    def rows(self) -> int:
        """How many rows of a batch this text takes; one that takes more than there are is alone."""


class ServablePredictor(Protocol):
    """What the batcher and the server need of a model."""

    @property
    def name(self) -> str:
        """The name the API shows."""

    @property
    def version(self) -> str:
        """A hash of the content."""

    @property
    def label_names(self) -> Sequence[str]:
        """One name per class, in the order of the probabilities."""

    @property
    def threshold(self) -> float | None:
        """Below this top probability the model abstains; None: never."""

    @property
    def max_characters(self) -> int:
        """Longer texts are refused unread."""

    def encode(self, text: str) -> Encoded:
        """Cleans and tokenizes; raises InputError for a text that can't be answered. Thread-safe."""

    @property
    def form(self) -> AnswerForm:
        """What a text is answered with: a label, several, or a number."""

    def run(self, batch: Sequence[Any]) -> FloatArray:
        """Calibrated probabilities (N, C), or numbers (N, 1), of N texts as this model's `encode` gave them.

        The texts have one shape. Called from one thread only.
        """


class Overloaded(GptailorError):
    """The queue is full, or so long that the answer would come too late."""

    def __init__(self, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__("The server is busy.", fix="Send the request again after the time in Retry-After.")


class DeadlineExceeded(GptailorError):
    """The answer would have come after the deadline, so it wasn't computed."""


class Draining(GptailorError):
    """The server is leaving and takes nothing new."""


class RunFailed(GptailorError):
    """The model failed on this text; the reason stands in the log under the request's id."""

    exit_code = 3


@dataclass(slots=True, eq=False)
class _Request:
    """An admitted list of texts, until it is answered or given up."""

    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[FloatArray]
    deadline: float  # on time.monotonic's clock
    request_id: str
    rows: list[FloatArray | None]
    missing: int
    over: bool = False

    def settle(self, outcome: FloatArray | Exception) -> None:
        """Hands the outcome to the waiting coroutine, from any thread; only the first counts."""
        self.over = True
        with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(_resolve, self.answer, outcome)


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    request: _Request
    index: int
    encoded: Encoded
    arrived: float


def _resolve(answer: asyncio.Future[FloatArray], outcome: FloatArray | Exception) -> None:
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


class Batcher:
    """The queue in front of one model, and the thread that owns the model.

    Args:
        predictor: The model. Only the worker thread calls its `run`.
        queue_items: Texts that may wait.
        queue_tokens: Tokens that may wait; a request that finds the queue empty may exceed it.
        turn: A lock that several batchers share, so that one model computes at a time.
    """

    def __init__(
        self,
        predictor: ServablePredictor,
        *,
        queue_items: int = 512,
        queue_tokens: int = 262_144,
        turn: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.predictor = predictor
        self.max_items, self.max_tokens = queue_items, queue_tokens
        self._turn = turn or threading.Lock()
        self.on_batch: Callable[[int, int], None] = lambda *_: None  # told texts and tokens of a run
        self._changed = threading.Condition()
        self._buckets: dict[Shape, deque[_Item]] = {}
        self._running: list[_Item] = []
        self._seconds_per_run: dict[Shape, float] = {}
        self._worker: threading.Thread | None = None
        self._draining = self._stopped = False
        self.items = self.tokens = 0  # waiting, not running

    @property
    def full(self) -> bool:
        """Whether not even one text more would be taken."""
        return self.items >= self.max_items

    @property
    def busy(self) -> bool:
        """Whether a text waits or runs."""
        return bool(self.items or self._running)

    def retry_after_seconds(self) -> float:
        """When the queue of now will be worked off, by the measured speed; at least one second."""
        with self._changed:
            return self._retry_after_seconds()

    async def submit(
        self, items: Sequence[Encoded], *, deadline_seconds: float, request_id: str = ""
    ) -> FloatArray:
        """Probabilities (N, C) of N texts; all of them are taken, or none.

        Cancelling the call takes the texts that don't run yet out of the queue.

        Raises:
            Overloaded: The queue has no room.
            DeadlineExceeded: A text would have started too late.
            Draining: `drain` or `stop` was called.
            RunFailed: The model raised on one of these texts.
        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        if not items:
            return np.empty((0, len(self.predictor.label_names)))
        request = _Request(
            loop, loop.create_future(), now + deadline_seconds, request_id, [None] * len(items), len(items)
        )
        with self._changed:
            self._check_room(items, deadline_seconds=deadline_seconds)
            for index, encoded in enumerate(items):
                item = _Item(request, index, encoded, now)
                self._buckets.setdefault(encoded.shape, deque()).append(item)
            self.items += len(items)
            self.tokens += sum(encoded.num_tokens for encoded in items)
            if self._worker is None:
                self._worker = threading.Thread(
                    target=self._work, name=f"model {self.predictor.name}", daemon=True
                )
                self._worker.start()
            self._changed.notify_all()
        timer = loop.call_later(deadline_seconds, self._expire, request)
        try:
            return await request.answer
        finally:
            timer.cancel()
            with self._changed:
                request.over = True
                self._remove(request)

    async def drain(self, *, timeout_seconds: float) -> None:
        """Takes nothing new and waits until what was taken is answered; the rest is then given up."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
        end = time.monotonic() + timeout_seconds
        while self.busy and time.monotonic() < end:
            await asyncio.sleep(0.01)
        with self._changed:
            self._abandon()

    def stop(self, *, timeout_seconds: float = 5.0) -> None:
        """Gives up what waits and ends the worker after the run it is in."""
        with self._changed:
            self._draining = self._stopped = True
            self._abandon()
            self._changed.notify_all()
            worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join(timeout_seconds)

    # What follows down to the worker expects the lock to be held.

    def _check_room(self, items: Sequence[Encoded], *, deadline_seconds: float) -> None:
        if self._draining:
            raise Draining("The server is shutting down.", fix="Send the request again in a moment.")
        if deadline_seconds <= 0:
            raise _too_late()
        tokens = self.tokens + sum(encoded.num_tokens for encoded in items)
        no_room = self.items + len(items) > self.max_items or (self.items and tokens > self.max_tokens)
        # Work that will be late is refused now: computing it would only make others late as well.
        if no_room or (self.items and self._backlog_seconds() > deadline_seconds):
            raise Overloaded(self._retry_after_seconds())

    def _backlog_seconds(self) -> float:
        known = self._seconds_per_run
        usual = sum(known.values()) / len(known) if known else 0.0
        return sum(
            -(-sum(item.encoded.rows for item in waiting) // shape[0]) * known.get(shape, usual)
            for shape, waiting in self._buckets.items()
        )

    def _retry_after_seconds(self) -> float:
        return max(1.0, self._backlog_seconds())

    def _remove(self, request: _Request) -> bool:
        """Takes the texts of one request out of the queue; False if none was there."""
        before = self.items
        for shape, waiting in list(self._buckets.items()):
            gone = [item for item in waiting if item.request is request]
            if gone:
                self._forget(gone)
                self._buckets[shape] = deque(item for item in waiting if item.request is not request)
        return self.items < before

    def _forget(self, items: Sequence[_Item]) -> None:
        self.items -= len(items)
        self.tokens -= sum(item.encoded.num_tokens for item in items)

    def _abandon(self) -> None:
        waiting = {item.request: None for bucket in self._buckets.values() for item in bucket}
        for request in waiting:
            self._remove(request)
            request.settle(Draining("The server stopped before this was answered."))

    def _expire(self, request: _Request) -> None:
        """Called at the deadline. A request whose last texts already run is left to finish."""
        with self._changed:
            if not request.over and self._remove(request):
                request.settle(_too_late())

    def _oldest(self) -> Shape | None:
        heads = [(waiting[0].arrived, shape) for shape, waiting in self._buckets.items() if waiting]
        return min(heads)[1] if heads else None

    # The worker.

    def _work(self) -> None:
        while self._wait_for_work():
            with self._turn:
                batch = self._take()
                if batch:
                    self._run(batch)
                with self._changed:
                    self._running = []

    def _wait_for_work(self) -> bool:
        """Blocks until there is something to run; False when it is time to end."""
        with self._changed:
            while not self._stopped and not self.items:
                self._changed.wait()
            return not self._stopped

    def _take(self) -> list[_Item]:
        """Up to a batch of the shape whose head is oldest; those past their deadline are answered so."""
        with self._changed:
            shape = self._oldest()
            if shape is None:
                return []
            now, batch, room = time.monotonic(), self._running, shape[0]
            while waiting := self._buckets[shape]:
                request = waiting[0].request
                if now > request.deadline:
                    self._remove(request)
                    request.settle(_too_late())
                    continue
                room -= waiting[0].encoded.rows
                if batch and room < 0:
                    break
                batch.append(waiting.popleft())
                self._forget(batch[-1:])
            if not self._buckets[shape]:
                del self._buckets[shape]
            return list(batch)

    def _run(self, batch: Sequence[_Item]) -> None:
        """Runs a batch and hands out its rows. Where it fails, each text is tried alone."""
        started = time.monotonic()
        try:
            rows = self._checked_rows(batch)
        except BaseException as error:  # whatever a model raises, the worker must go on
            if len(batch) == 1:
                self._fail(batch[0], error)
                return
            for item in batch:
                if not item.request.over:
                    self._run([item])
            return
        seconds, shape = time.monotonic() - started, batch[0].encoded.shape
        # Before anybody has an answer: who asks for the counters then finds it in them.
        self.on_batch(len(batch), sum(item.encoded.num_tokens for item in batch))
        self._deliver(batch, rows)
        with self._changed:
            known = self._seconds_per_run.get(shape, seconds)
            self._seconds_per_run[shape] = 0.8 * known + 0.2 * seconds

    def _checked_rows(self, batch: Sequence[_Item]) -> FloatArray:
        rows = np.asarray(self.predictor.run([item.encoded for item in batch]), dtype=np.float64)
        expected = (len(batch), len(self.predictor.label_names))
        if rows.shape != expected or not np.isfinite(rows).all():
            raise ValueError(f"the model gave {rows.shape} where {expected} finite numbers belong")
        return rows

    def _deliver(self, batch: Sequence[_Item], rows: FloatArray) -> None:
        with self._changed:
            for item, row in zip(batch, rows, strict=True):
                request = item.request
                request.rows[item.index] = row
                request.missing -= 1
                if not request.missing and not request.over:
                    request.settle(np.stack([row for row in request.rows if row is not None]))

    def _fail(self, item: _Item, error: BaseException) -> None:
        request = item.request
        with self._changed:
            first = not request.over
            self._remove(request)
            if first:
                request.settle(RunFailed("The model failed on this input."))
        if first:
            name = request.request_id or "without an id"
            logger.error("request %s: the model failed", name, exc_info=error)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The answer would have come too late.", fix="Send fewer texts at once, or try again in a moment."
    )
