"""Answers as they are written: one worker thread that owns a decoder, and a ticket for every request.

Requests join and leave the decoder between two steps. An answer has the same bits alone as among others,
so where a step fails, every answer that was being written is begun again alone: what was already handed out
is not handed out twice, and only the one that fails alone as well is lost.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gptailor.models.sampling import Sampling
from gptailor.serve.batcher import DeadlineExceeded, Draining, Overloaded, RunFailed
from gptailor.serve.ticket import Ticket

if TYPE_CHECKING:
    from gptailor.data.feeder import PromptIds
    from gptailor.models.decode import Event, Request

logger = logging.getLogger("gptailor.serve")


class ServableDecoder(Protocol):
    """See `gptailor.models.decode.Decoder`."""

    @property
    def busy(self) -> bool: ...
    @property
    def waiting(self) -> set[int]: ...
    @property
    def free(self) -> int: ...
    @property
    def drawn(self) -> int: ...
    def add(self, request: Request) -> int: ...
    def cancel(self, handle: int) -> None: ...
    def step(self) -> list[Event]: ...


class ServableAnswerer(Protocol):
    """What the server needs of a model that writes; see `gptailor.models.answerer.Answerer`."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def is_chat(self) -> bool: ...
    @property
    def context(self) -> int: ...
    @property
    def max_prompt_tokens(self) -> int: ...
    @property
    def max_characters(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def no_repeat(self) -> int: ...
    @property
    def columns(self) -> Sequence[str]: ...
    @property
    def template(self) -> str | None: ...
    def feed_text(self, text: str, *, whole: bool = False) -> PromptIds: ...
    def feed_raw(self, text: str) -> PromptIds: ...
    def feed_values(self, values: Mapping[str, str], *, whole: bool = False) -> PromptIds: ...
    def feed_messages(self, messages: Sequence[Mapping[str, Any]]) -> PromptIds: ...
    def request(self, prompt: Sequence[int], sampling: Sampling, *, top: int = 0) -> Request: ...
    def token_text(self, token_id: int) -> str: ...
    def decoder(self) -> ServableDecoder: ...


@dataclass(slots=True, eq=False)
class _Answer:
    """One of the answers that a ticket waits for."""

    ticket: Ticket
    place: int
    request: Request
    begun: bool = False
    alone: bool = False  # it was being written when a step failed
    events: int = 0  # handed out
    skip: int = 0  # of those of a new beginning, handed out before


class TextWorker:
    """The thread that owns one model's decoder, and what waits for it.

    Args:
        answerer: The model.
        queue_items: Answers that may wait or be written at once.
        turn: Shared by the workers of several models, so that one computes at a time.
    """

    def __init__(
        self, answerer: ServableAnswerer, *, queue_items: int, turn: AbstractContextManager[Any]
    ) -> None:
        self.answerer, self.max_items, self._turn = answerer, queue_items, turn
        self.on_step: Callable[[int, int], None] = lambda *_: None  # told tokens written, prompt tokens read
        self.waiting = 0  # answers of which nothing is computed yet
        self._free = 0  # seats for them, after the last step
        self._changed = threading.Condition()
        self._tickets: set[Ticket] = set()
        self._arrived: deque[_Answer] = deque()
        self._alone: deque[_Answer] = deque()  # what was being written when a step failed
        self._handles: dict[int, _Answer] = {}  # what the decoder has
        self._decoder: ServableDecoder | None = None
        self._thread: threading.Thread | None = None
        self._draining = self._stopped = False
        self._seconds_per_answer = 0.0
        self._finished = 0.0  # when the last answer was, or the work began

    @property
    def items(self) -> int:
        """Answers that wait or are being written."""
        return len(self._arrived) + len(self._alone) + len(self._handles)

    @property
    def full(self) -> bool:
        """Whether not even one answer more would be taken."""
        return self.items >= self.max_items

    def retry_after_seconds(self) -> float:
        """When what waits now will have begun, by the measured speed; at least one second."""
        return max(1.0, self._seconds_to_begin())

    def _seconds_to_begin(self) -> float:
        """Only what finds no free seat waits until another answer is finished."""
        return self._seconds_per_answer * max(0, self.waiting - self._free)

    @contextmanager
    def writing(
        self, requests: Sequence[Request], *, deadline_seconds: float, request_id: str = ""
    ) -> Iterator[Ticket]:
        """Takes all of the requests in or none; leaving the context lets those go that aren't finished.

        Raises:
            Overloaded: There is no room, or it would begin too late.
            Draining: `drain` or `stop` was called.
        """
        ticket = self._admit(requests, deadline_seconds, request_id)
        # The thread looks at deadlines between steps, and a step may be long.
        timer = asyncio.get_running_loop().call_later(deadline_seconds, _give_up, ticket)
        try:
            yield ticket
        finally:
            timer.cancel()
            with self._changed:
                ticket.over = True
                self._tickets.discard(ticket)

    async def drain(self, *, timeout_seconds: float) -> None:
        """Takes nothing new and waits until what was taken is answered; the rest is then given up."""
        with self._changed:
            self._draining = True
        end = time.monotonic() + timeout_seconds
        while self._tickets and time.monotonic() < end:
            await asyncio.sleep(0.01)
        self._abandon()

    def stop(self, *, timeout_seconds: float = 5.0) -> None:
        """Gives up what isn't answered and ends the thread after the step it is in."""
        with self._changed:
            self._draining = self._stopped = True
            self._changed.notify_all()
        self._abandon()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def _admit(self, requests: Sequence[Request], deadline_seconds: float, request_id: str) -> Ticket:
        with self._changed:
            if self._draining:
                raise Draining("The server is shutting down.", fix="Send the request again in a moment.")
            late = self._seconds_to_begin() > deadline_seconds
            if self.items + len(requests) > self.max_items or late or deadline_seconds <= 0:
                raise Overloaded(self.retry_after_seconds())
            ticket = Ticket(deadline=time.monotonic() + deadline_seconds, request_id=request_id)
            self._arrived.extend(_Answer(ticket, place, asked) for place, asked in enumerate(requests))
            self._tickets.add(ticket)
            self.waiting += len(requests)
            if self._thread is None:
                self._finished = time.monotonic()
                name = f"model {self.answerer.name}"
                self._thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return ticket

    def _abandon(self) -> None:
        with self._changed:
            for ticket in self._tickets:
                ticket.fail(Draining("The server stopped before this was answered."))

    # The worker's thread. `_handles`, `_alone` and the decoder are its own.

    def _work(self) -> None:
        while self._wait_for_work():
            with self._turn:
                self._let_go()
                self._let_in()
                if self._handles:
                    self._step()

    def _wait_for_work(self) -> bool:
        """Blocks until there is something to write; False when it is time to end."""
        with self._changed:
            if not self.items:
                self.waiting = 0
                self._free = 0 if self._decoder is None else self._decoder.free
            while not self._stopped and not self.items:
                self._changed.wait()
                self._finished = time.monotonic()
            return not self._stopped

    def _let_go(self) -> None:
        """Cancels what nobody waits for, and what should have begun by now."""
        now = time.monotonic()
        with self._changed:
            arrived = tuple(self._arrived)
        for answer in (*self._handles.values(), *arrived):
            ticket = answer.ticket
            if now > ticket.deadline:
                _give_up(ticket)
        for handle, answer in list(self._handles.items()):
            if answer.ticket.over:
                self._own_decoder().cancel(handle)
                del self._handles[handle]

    def _let_in(self) -> None:
        """Gives the decoder what has arrived; after a failed step first the suspects, one by one."""
        if any(answer.alone for answer in self._handles.values()):
            return
        if self._alone:
            welcome = [self._alone.popleft()]
        else:
            with self._changed:
                welcome, self._arrived = list(self._arrived), deque()
        for answer in welcome:
            if answer.ticket.over:
                continue
            try:
                self._handles[self._own_decoder().add(answer.request)] = answer
            except Exception as error:
                self._fail(answer, error)

    def _own_decoder(self) -> ServableDecoder:
        if self._decoder is None:
            self._decoder = self.answerer.decoder()
        return self._decoder

    def _step(self) -> None:
        decoder = self._own_decoder()
        drawn = decoder.drawn
        try:
            events = decoder.step()
        except BaseException as error:  # whatever a model raises, the worker must go on
            self._recover(decoder.waiting, error)
            return
        waiting, read = decoder.waiting, 0
        for handle, answer in self._handles.items():
            if handle not in waiting and not answer.begun:
                answer.begun = answer.ticket.begun = True
                read += len(answer.request.prompt)
        self.on_step(decoder.drawn - drawn, read)
        with self._changed:
            self.waiting = len(waiting) + len(self._arrived)
            self._free = decoder.free
        self._hand_out(events)

    def _hand_out(self, events: Sequence[Event]) -> None:
        found: dict[Ticket, list[tuple[int, Event]]] = {}
        for event in events:
            answer = self._handles[event.handle]
            if event.result is not None:
                del self._handles[event.handle]
                self._measure()
            if answer.skip:
                answer.skip -= 1
                continue
            answer.events += 1
            found.setdefault(answer.ticket, []).append((answer.place, event))
        for ticket, own in found.items():
            ticket.put(own)

    def _measure(self) -> None:
        now = time.monotonic()
        seconds, self._finished = now - self._finished, now
        writing = max(1, self.items - self.waiting)
        seconds *= writing / (writing + self._free)  # with all seats taken they would come so much faster
        known = self._seconds_per_answer or seconds
        self._seconds_per_answer = 0.9 * known + 0.1 * seconds

    def _recover(self, waiting: set[int], error: BaseException) -> None:
        """A new decoder. What waited waits on; what was being written begins again, alone."""
        self._decoder = None
        begun = [answer for handle, answer in self._handles.items() if handle not in waiting]
        held = [answer for handle, answer in self._handles.items() if handle in waiting]
        self._handles = {}
        if len(begun) > 1:
            for answer in begun:
                answer.skip, answer.alone = answer.events, True
            self._alone.extend(begun)
        else:
            for answer in begun or held:  # without a suspect they would wait for ever
                self._fail(answer, error)
        with self._changed:
            self._arrived.extendleft(reversed(held if begun else []))

    def _fail(self, answer: _Answer, error: BaseException) -> None:
        if not answer.ticket.over:
            answer.ticket.fail(RunFailed("The model failed on this input."))
            name = answer.ticket.request_id or "without an id"
            logger.error("request %s: the model failed", name, exc_info=error)


def _give_up(ticket: Ticket) -> None:
    """Ends a request of which nothing has begun by its deadline."""
    if not ticket.begun and not ticket.over:
        ticket.fail(DeadlineExceeded("The answer would have begun too late.", fix="Try again later."))
