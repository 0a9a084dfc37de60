"""The batcher: who shares a batch, who is refused, and that nobody gets another's answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptailor.serve.batcher import Batcher, DeadlineExceeded, Draining, Overloaded, RunFailed
from gptailor.types import AnswerForm, FloatArray

Result = TypeVar("Result")
SHORT, LONG = (4, 8), (2, 64)


@dataclass(frozen=True)
class FakeEncoded:
    value: float
    num_tokens: int = 3
    truncated: bool = False
    shape: tuple[int, int] = SHORT
    rows: int = 1


class FakePredictor:
    """Answers a value v with (v, 1 - v). Holds every run while `gate` is closed."""

    form = AnswerForm()
    name, version, label_names, threshold, max_characters = "fake", "1", ("yes", "no"), None, 100

    def __init__(self, *, seconds: float = 0.0) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.seconds = seconds
        self.batches: list[list[FakeEncoded]] = []
        self.threads: set[int] = set()
        self.spoil: Callable[[float], Any] | None = None

    def encode(self, text: str) -> FakeEncoded:
        return FakeEncoded(float(text))

    def run(self, batch: Sequence[Any]) -> FloatArray:
        self.batches.append(list(batch))
        self.threads.add(threading.get_ident())
        self.entered.release()
        assert self.gate.wait(10)
        time.sleep(self.seconds)
        if self.spoil:
            for item in batch:
                self.spoil(item.value)
        return np.array([[item.value, 1 - item.value] for item in batch])

    @property
    def ran(self) -> list[float]:
        return [item.value for batch in self.batches for item in batch]


@contextmanager
def running(predictor: FakePredictor, **settings: Any) -> Iterator[Batcher]:
    batcher = Batcher(predictor, **settings)
    try:
        yield batcher
    finally:
        predictor.gate.set()
        batcher.stop()


def in_loop(main: Callable[[], Awaitable[Result]]) -> Result:
    async def bounded() -> Result:
        return await asyncio.wait_for(main(), 20)

    return asyncio.run(bounded())


async def started(predictor: FakePredictor) -> None:
    """Returns when the model has begun a run."""
    assert await asyncio.to_thread(predictor.entered.acquire, timeout=10)


def send(
    batcher: Batcher, *values: float, shape: tuple[int, int] = SHORT, deadline: float = 10
) -> asyncio.Task[FloatArray]:
    items = [FakeEncoded(value, shape=shape) for value in values]
    return asyncio.create_task(batcher.submit(items, deadline_seconds=deadline, request_id="r1"))  # type: ignore[arg-type]


async def occupy(
    batcher: Batcher, predictor: FakePredictor, *, shape: tuple[int, int] = SHORT
) -> asyncio.Task[FloatArray]:
    """Holds the model in a run of one text, so that what follows has to queue."""
    predictor.gate.clear()
    while predictor.entered.acquire(blocking=False):
        pass  # runs of before
    task = send(batcher, 0.5, shape=shape)
    await started(predictor)
    return task


def test_waiting_requests_share_batches_of_their_shape() -> None:
    predictor = FakePredictor()

    async def main() -> None:
        with running(predictor) as batcher:
            first = await occupy(batcher, predictor)
            others = [send(batcher, k / 10) for k in range(6)]
            await asyncio.sleep(0)
            predictor.gate.set()
            answers = await asyncio.gather(first, *others)
            assert [answer[0, 0] for answer in answers] == [0.5, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5]

    in_loop(main)
    assert [len(batch) for batch in predictor.batches] == [1, 4, 2]
    assert len(predictor.threads) == 1


def test_a_list_is_answered_in_its_order_across_batches() -> None:
    predictor = FakePredictor()

    async def main() -> FloatArray:
        with running(predictor) as batcher:
            return await send(batcher, *[k / 10 for k in range(10)])

    assert in_loop(main)[:, 0].tolist() == [k / 10 for k in range(10)]


def test_a_batch_is_full_when_its_rows_are_taken() -> None:
    predictor = FakePredictor()

    async def main() -> None:
        with running(predictor) as batcher:
            predictor.gate.clear()
            first = send(batcher, 0.5)
            await asyncio.to_thread(predictor.entered.acquire)
            sizes = {0.1: 2, 0.2: 2, 0.3: 9, 0.4: 3, 0.6: 2}
            items = [FakeEncoded(value, rows=rows) for value, rows in sizes.items()]
            waiting = asyncio.ensure_future(batcher.submit(items, deadline_seconds=10))
            await asyncio.sleep(0)
            predictor.gate.set()
            await asyncio.gather(first, waiting)

    in_loop(main)
    batches = [[item.value for item in batch] for batch in predictor.batches]
    assert batches == [[0.5], [0.1, 0.2], [0.3], [0.4], [0.6]]


def test_the_shape_that_waits_longest_runs_first() -> None:
    predictor = FakePredictor()

    async def main() -> None:
        with running(predictor) as batcher:
            tasks = [await occupy(batcher, predictor)]
            for value, shape in ((0.1, LONG), (0.2, SHORT), (0.3, SHORT), (0.4, LONG), (0.6, LONG)):
                tasks.append(send(batcher, value, shape=shape))
                await asyncio.sleep(0.002)
            predictor.gate.set()
            await asyncio.gather(*tasks)

    in_loop(main)
    assert [[item.value for item in batch] for batch in predictor.batches] == [
        [0.5],
        [0.1, 0.4],
        [0.2, 0.3],
        [0.6],
    ]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([SHORT, LONG, (1, 16)]), min_size=1, max_size=6), min_size=1, max_size=20
    )
)
def test_everyone_gets_their_own_answer(requests: list[list[tuple[int, int]]]) -> None:
    predictor = FakePredictor()
    total = sum(map(len, requests))

    async def main() -> None:
        with running(predictor) as batcher:
            number, pending = 0, []
            for shapes in requests:
                items = [FakeEncoded((number + k) / 1000, shape=shape) for k, shape in enumerate(shapes)]
                pending.append((items, asyncio.create_task(batcher.submit(items, deadline_seconds=10))))
                number += len(shapes)
            for items, task in pending:
                assert (await task)[:, 0].tolist() == [item.value for item in items]
            assert (batcher.items, batcher.tokens) == (0, 0)

    in_loop(main)
    assert sorted(predictor.ran) == [k / 1000 for k in range(total)]
    for batch in predictor.batches:
        assert len({item.shape for item in batch}) == 1
        assert len(batch) <= batch[0].shape[0]


def test_a_full_queue_refuses_all_of_a_list_or_none() -> None:
    predictor = FakePredictor()

    async def main() -> None:
        with running(predictor, queue_items=5) as batcher:
            tasks = [await occupy(batcher, predictor), send(batcher, 0.1, 0.2, 0.3)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as caught:
                await send(batcher, 0.4, 0.6, 0.7)
            assert caught.value.retry_after_seconds >= 1
            assert batcher.items == 3
            tasks.append(send(batcher, 0.8, 0.9))
            await asyncio.sleep(0)
            assert batcher.full
            predictor.gate.set()
            await asyncio.gather(*tasks)

    in_loop(main)
    assert sorted(predictor.ran) == [0.1, 0.2, 0.3, 0.5, 0.8, 0.9]


def test_the_queue_is_bounded_in_tokens_but_an_empty_one_takes_any_request() -> None:
    predictor = FakePredictor()

    async def main() -> None:
        with running(predictor, queue_tokens=5) as batcher:
            tasks = [await occupy(batcher, predictor), send(batcher, 0.1, 0.2)]
            await asyncio.sleep(0)
            assert batcher.tokens == 6
            with pytest.raises(Overloaded):
                await send(batcher, 0.3)
            predictor.gate.set()
            await asyncio.gather(*tasks)

    in_loop(main)


def test_retry_after_follows_the_measured_speed() -> None:
    predictor = FakePredictor(seconds=0.3)

    async def main() -> None:
        with running(predictor, queue_items=40) as batcher:
            await send(batcher, 0.1)
            tasks = [await occupy(batcher, predictor), send(batcher, *([0.2] * 40))]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as caught:
                await send(batcher, 0.3)
            assert 2.5 < caught.value.retry_after_seconds < 60  # ten runs of 0.3 s, or more
            predictor.seconds = 0
            predictor.gate.set()
            await asyncio.gather(*tasks)

    in_loop(main)


def test_work_that_would_be_late_is_refused_at_once() -> None:
    predictor = FakePredictor(seconds=0.2)

    async def main() -> None:
        with running(predictor) as batcher:
            await send(batcher, 0.1)
            tasks = [await occupy(batcher, predictor), send(batcher, *([0.2] * 12))]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await send(batcher, 0.3, deadline=0.3)
            tasks.append(send(batcher, 0.4))
            predictor.seconds = 0
            predictor.gate.set()
            await asyncio.gather(*tasks)

    in_loop(main)


def test_past_its_deadline_a_text_is_dropped_unrun() -> None:
    predictor = FakePredictor()

    async def main() -> None:
        with running(predictor) as batcher:
            first = await occupy(batcher, predictor)
            late = send(batcher, 0.1, 0.2, deadline=0.05)
            with pytest.raises(DeadlineExceeded):
                await late  # while the model is still held: the client isn't kept waiting
            assert batcher.items == 0
            predictor.gate.set()
            await first
            with pytest.raises(DeadlineExceeded):
                await send(batcher, 0.3, deadline=-1)

    in_loop(main)
    assert predictor.ran == [0.5]


def test_a_run_that_began_in_time_is_finished() -> None:
    predictor = FakePredictor()

    async def main() -> None:
        with running(predictor) as batcher:
            predictor.gate.clear()
            task = send(batcher, 0.7, deadline=0.05)
            await started(predictor)
            await asyncio.sleep(0.1)
            predictor.gate.set()
            assert (await task)[0, 0] == 0.7

    in_loop(main)


def test_a_cancelled_request_leaves_the_queue() -> None:
    predictor = FakePredictor()

    async def main() -> None:
        with running(predictor) as batcher:
            first = await occupy(batcher, predictor)
            gone, stays = send(batcher, 0.1, 0.2), send(batcher, 0.3)
            await asyncio.sleep(0)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            assert (batcher.items, batcher.tokens) == (1, 3)
            predictor.gate.set()
            await asyncio.gather(first, stays)

    in_loop(main)
    assert predictor.ran == [0.5, 0.3]


def test_only_the_text_that_breaks_the_model_fails(caplog: pytest.LogCaptureFixture) -> None:
    predictor = FakePredictor()

    def spoil(value: float) -> None:
        if value == 0.2:
            raise ZeroDivisionError("secret text")

    async def main() -> None:
        with running(predictor) as batcher:
            first = await occupy(batcher, predictor)
            predictor.spoil = spoil
            good, bad, other = send(batcher, 0.1), send(batcher, 0.2), send(batcher, 0.3)
            await asyncio.sleep(0)
            predictor.gate.set()
            await first
            assert (await good)[0, 0] == 0.1
            assert (await other)[0, 0] == 0.3
            with pytest.raises(RunFailed) as caught:
                await bad
            assert "secret" not in str(caught.value)
            assert (await send(batcher, 0.4))[0, 0] == 0.4

    in_loop(main)
    assert [record.getMessage() for record in caplog.records] == ["request r1: the model failed"]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_none_fail_instead_of_being_served(wrong: float) -> None:
    async def main() -> None:
        with running(FakePredictor()) as batcher:
            with pytest.raises(RunFailed):
                await send(batcher, wrong)
            assert (await send(batcher, 0.1))[0, 0] == 0.1

    in_loop(main)


def test_the_worker_outlives_a_model_that_exits() -> None:
    predictor = FakePredictor()

    def leave(value: float) -> None:
        raise SystemExit(3)

    async def main() -> None:
        with running(predictor) as batcher:
            predictor.spoil = leave
            with pytest.raises(RunFailed):
                await send(batcher, 0.1)
            predictor.spoil = None
            assert (await send(batcher, 0.2))[0, 0] == 0.2

    in_loop(main)


def test_drain_answers_what_was_accepted_and_refuses_the_rest() -> None:
    predictor = FakePredictor()

    async def main() -> None:
        with running(predictor) as batcher:
            tasks = [await occupy(batcher, predictor), *(send(batcher, k / 10) for k in range(9))]
            await asyncio.sleep(0)
            drain = asyncio.create_task(batcher.drain(timeout_seconds=10))
            await asyncio.sleep(0.03)
            assert not drain.done()
            with pytest.raises(Draining):
                await send(batcher, 0.9)
            predictor.gate.set()
            await drain
            assert all(task.done() for task in tasks) or await asyncio.gather(*tasks)
            assert not batcher.busy

    in_loop(main)
    assert len(predictor.ran) == 10


def test_a_drain_that_takes_too_long_gives_up_with_an_answer() -> None:
    predictor = FakePredictor()

    async def main() -> None:
        with running(predictor) as batcher:
            first, waiting = await occupy(batcher, predictor), send(batcher, 0.1)
            await asyncio.sleep(0)
            await batcher.drain(timeout_seconds=0.05)
            with pytest.raises(Draining):
                await waiting
            predictor.gate.set()
            await first

    in_loop(main)


def test_stop_ends_the_worker() -> None:
    predictor = FakePredictor()

    async def main() -> Batcher:
        batcher = Batcher(predictor)
        await send(batcher, 0.1)
        return batcher

    batcher = in_loop(main)
    name = f"model {predictor.name}"
    assert [thread.name for thread in threading.enumerate()].count(name) == 1
    batcher.stop()
    assert name not in [thread.name for thread in threading.enumerate()]


def test_models_that_share_a_turn_never_compute_at_once() -> None:
    turn, lock, at_once = threading.Lock(), threading.Lock(), []

    class Counting(FakePredictor):
        def run(self, batch: Sequence[Any]) -> FloatArray:
            assert lock.acquire(blocking=False), "two models computed at once"
            at_once.append(1)
            answer = super().run(batch)
            lock.release()
            return answer

    async def main() -> None:
        with (
            running(Counting(seconds=0.003), turn=turn) as one,
            running(Counting(seconds=0.003), turn=turn) as two,
        ):
            await asyncio.gather(*(send(batcher, 0.1, 0.2, shape=LONG) for batcher in (one, two) * 8))

    in_loop(main)
    assert len(at_once) >= 16


def test_an_empty_list_needs_no_run() -> None:
    predictor = FakePredictor()

    async def main() -> FloatArray:
        with running(predictor) as batcher:
            return await batcher.submit([], deadline_seconds=1)

    assert in_loop(main).shape == (0, 2)
    assert predictor.batches == []
