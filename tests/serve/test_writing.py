"""The worker behind the routes that write: what fails, what is late, what is left, whose turn it is."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gptailor.errors import NonFiniteError
from gptailor.models.decode import Event, Generated, Request
from gptailor.serve.batcher import DeadlineExceeded, Draining, Overloaded, RunFailed
from gptailor.serve.ticket import Ticket
from gptailor.serve.turn import Turn
from gptailor.serve.writing import TextWorker

SLOTS = 2


class FakeDecoder:
    """Writes its prompt's tokens back, one a step, as letters; a 13 is not a number."""

    def __init__(self, owner: FakeAnswerer) -> None:
        self.owner = owner
        self.seated: dict[int, list[int]] = {}
        self.queue: dict[int, list[int]] = {}
        self.handles = self.drawn = 0

    @property
    def busy(self) -> bool:
        return bool(self.seated or self.queue)

    @property
    def waiting(self) -> set[int]:
        return set(self.queue)

    @property
    def free(self) -> int:
        return max(0, SLOTS - len(self.seated) - len(self.queue))

    def add(self, request: Request) -> int:
        self.handles += 1
        self.queue[self.handles] = list(request.prompt)
        return self.handles

    def cancel(self, handle: int) -> None:
        self.queue.pop(handle, None)
        self.seated.pop(handle, None)

    def step(self) -> list[Event]:
        assert self.owner.gate.wait(10)
        while self.queue and len(self.seated) < SLOTS:
            handle = next(iter(self.queue))
            self.seated[handle] = self.queue.pop(handle)
        self.owner.steps.append(tuple(self.seated))
        events = []
        for handle, tokens in list(self.seated.items()):
            token = tokens.pop(0)
            if token == 13:
                raise NonFiniteError("the model's logits are not numbers.")
            self.drawn += 1
            result = None if tokens else Generated((), "", "stop", "end_token", (), (), 1)
            events.append(Event(handle, chr(token), (), result))
            if result:
                del self.seated[handle]
        return events


class FakeAnswerer:
    name = "fake"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.steps: list[tuple[int, ...]] = []
        self.decoders: list[FakeDecoder] = []

    def decoder(self) -> FakeDecoder:
        self.decoders.append(FakeDecoder(self))
        return self.decoders[-1]


def request(text: str) -> Request:
    return Request(tuple(map(ord, text)))


async def read(ticket: Ticket, count: int = 1) -> list[str]:
    """The texts of all answers of a ticket."""
    texts, missing = [""] * count, count
    while missing:
        for place, event in await ticket.take():
            texts[place] += event.text
            missing -= event.result is not None
    return texts


async def written(worker: TextWorker, *texts: str, deadline_seconds: float = 10.0) -> list[str]:
    with worker.writing(list(map(request, texts)), deadline_seconds=deadline_seconds) as ticket:
        return await read(ticket, len(texts))


def talk(main: Callable[[TextWorker, FakeAnswerer], Awaitable[None]], *, queue_items: int = 64) -> None:
    async def bounded() -> None:
        fake: Any = FakeAnswerer()
        worker = TextWorker(fake, queue_items=queue_items, turn=Turn())
        try:
            await asyncio.wait_for(main(worker, fake), 20)
        finally:
            fake.gate.set()
            worker.stop()

    asyncio.run(bounded())


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_what_waits_takes_the_place_of_what_is_done() -> None:
    async def main(worker: TextWorker, fake: FakeAnswerer) -> None:
        texts = ["ab", "cdefg", "hi", "jklm"]
        told: list[tuple[int, int]] = []
        worker.on_step = lambda tokens_written, tokens_read: told.append((tokens_written, tokens_read))
        assert await written(worker, *texts) == texts
        assert [sum(tokens) for tokens in zip(*told, strict=True)] == [13, 13]
        assert await asyncio.gather(*(written(worker, text) for text in texts)) == [[text] for text in texts]
        assert max(map(len, fake.steps)) == SLOTS
        assert worker.items == worker.waiting == 0

    talk(main)


def test_an_answer_that_breaks_the_model_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def main(worker: TextWorker, fake: FakeAnswerer) -> None:
        fake.gate.clear()
        texts = ["abcdef", "xy\rz", "later", "end"]
        tasks = [asyncio.create_task(written(worker, text)) for text in texts]
        await until(lambda: worker.items == 4)
        fake.gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [found[0], found[2], found[3]] == [["abcdef"], ["later"], ["end"]]  # nothing twice
        assert isinstance(found[1], RunFailed)
        assert len(fake.decoders) == 3  # a new one after each failure
        assert worker.items == 0

    talk(main)
    assert len(caplog.records) == 1


def test_one_of_several_answers_that_fails_takes_its_request_along() -> None:
    async def main(worker: TextWorker, fake: FakeAnswerer) -> None:
        with pytest.raises(RunFailed):
            await written(worker, "abcdefgh", "\r", "more")
        await until(lambda: worker.items == 0)
        assert await written(worker, "good") == ["good"]

    talk(main)


def test_what_has_not_begun_in_time_is_told_so() -> None:
    async def main(worker: TextWorker, fake: FakeAnswerer) -> None:
        fake.gate.clear()
        first = asyncio.create_task(written(worker, "abcdefghij", "klmnopqrst"))
        await until(lambda: worker.items == 2)
        late = asyncio.create_task(written(worker, "uv", deadline_seconds=0.02))
        await until(lambda: worker.items == 3)
        await asyncio.sleep(0.05)
        fake.gate.set()
        with pytest.raises(DeadlineExceeded):
            await late
        assert await first == ["abcdefghij", "klmnopqrst"]

    talk(main)


def test_a_long_step_does_not_hold_up_what_is_told_too_late() -> None:
    """The thread looks at deadlines between steps; the prompt of another may take a minute to read."""

    async def main(worker: TextWorker, fake: FakeAnswerer) -> None:
        fake.gate.clear()
        first = asyncio.create_task(written(worker, "ab", "cd"))
        await until(lambda: worker.items == 2)
        with pytest.raises(DeadlineExceeded):
            await written(worker, "uv", deadline_seconds=0.02)
        assert not fake.steps, "the step goes on"
        fake.gate.set()
        assert await first == ["ab", "cd"]

    talk(main)


def test_what_leaves_is_dropped_between_two_steps() -> None:
    async def main(worker: TextWorker, fake: FakeAnswerer) -> None:
        fake.gate.clear()
        with worker.writing([request("a" * 50), request("b" * 50)], deadline_seconds=10):
            await until(lambda: worker._decoder is not None)
        fake.gate.set()
        await until(lambda: worker.items == 0)
        assert len(fake.steps) <= 1
        assert not fake.decoders[0].busy

    talk(main)


def test_room_is_for_all_answers_of_a_request_or_none() -> None:
    async def main(worker: TextWorker, fake: FakeAnswerer) -> None:
        fake.gate.clear()
        held = asyncio.create_task(written(worker, "ab", "cd"))
        await until(lambda: worker.items == 2)
        with pytest.raises(Overloaded) as caught:
            await written(worker, "ef", "gh")
        assert caught.value.retry_after_seconds >= 1
        fake.gate.set()
        assert await held == ["ab", "cd"]
        assert await written(worker, "ef", "gh") == ["ef", "gh"]

    talk(main, queue_items=3)


def test_a_drain_waits_for_the_readers_then_gives_up() -> None:
    async def main(worker: TextWorker, fake: FakeAnswerer) -> None:
        fake.gate.clear()
        held = asyncio.create_task(written(worker, "ab"))
        await until(lambda: worker.items == 1)
        drain = asyncio.create_task(worker.drain(timeout_seconds=5))
        await asyncio.sleep(0.02)
        with pytest.raises(Draining):
            await written(worker, "cd")
        assert not drain.done()
        fake.gate.set()
        assert await held == ["ab"]
        await drain

    async def stuck(worker: TextWorker, fake: FakeAnswerer) -> None:
        fake.gate.clear()
        held = asyncio.create_task(written(worker, "ab"))
        await until(lambda: worker.items == 1)
        await worker.drain(timeout_seconds=0.05)
        with pytest.raises(Draining):
            await held

    talk(main)
    talk(stuck)


def test_the_first_answers_speed_is_measured_from_when_it_began() -> None:
    async def main(worker: TextWorker, fake: FakeAnswerer) -> None:
        await written(worker, "ab")
        before = worker._seconds_per_answer
        assert before < 5  # and not since the machine was started
        await asyncio.sleep(1.0)  # idle time is nobody's
        began = time.monotonic()
        await written(worker, "ab")
        assert worker._seconds_per_answer <= before + time.monotonic() - began

    talk(main)


def test_only_what_finds_no_free_seat_would_be_late() -> None:
    async def main(worker: TextWorker, fake: FakeAnswerer) -> None:
        await written(worker, "a")
        await until(lambda: worker.items == worker.waiting == 0)
        fake.gate.clear()
        worker._seconds_per_answer = 50.0
        tasks = [asyncio.create_task(written(worker, text, deadline_seconds=60)) for text in ("ab", "cd")]
        await until(lambda: worker.items == 2)
        assert worker.retry_after_seconds() == 1
        tasks += [asyncio.create_task(written(worker, text, deadline_seconds=60)) for text in ("ef", "gh")]
        await until(lambda: worker.items == 4)
        assert worker.retry_after_seconds() == 100
        with pytest.raises(Overloaded):
            await written(worker, "ij", deadline_seconds=60)
        fake.gate.set()
        assert await asyncio.gather(*tasks) == [["ab"], ["cd"], ["ef"], ["gh"]]

    talk(main)


def test_answers_that_came_one_at_a_time_promise_nothing_of_many() -> None:
    """With one of several seats taken an answer's time is not the time between answers."""

    async def main(worker: TextWorker, fake: FakeAnswerer) -> None:
        worker._free = 7
        worker._finished = time.monotonic() - 80
        worker._measure()
        assert worker._seconds_per_answer == pytest.approx(10, rel=0.01)

    talk(main)


def test_turns_go_round() -> None:
    order: list[str] = []
    turn, start = Turn(), threading.Barrier(2)

    def take(name: str, times: int) -> None:
        start.wait(10)
        for _ in range(times):
            with turn:
                order.append(name)
                time.sleep(0.002)

    threads = [threading.Thread(target=take, args=(name, 20)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    middle = "".join(order)[8:30]  # both are there by then
    assert "aa" not in middle
    assert "bb" not in middle
