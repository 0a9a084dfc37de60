"""Models that write, with many clients at once: the same answers, places that come free, a bound, an end."""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import texts
from texts import Served, alone, serving, until

from gptailor.models.answerer import Answerer, load_answerer
from gptailor.models.decode import Event
from gptailor.serve.run import Connection

PROMPT = "the race 5"


@pytest.fixture(scope="module")
def served(runs: dict[str, Path]) -> Iterator[Served]:
    with serving([load_answerer(run) for run in runs.values()]) as found:
        yield found


def test_many_clients_at_once_get_what_each_would_get_alone(
    served: Served, answerers: dict[str, Answerer]
) -> None:
    plain, chat = answerers["plain"], answerers["chat"]
    asked: list[dict[str, Any]] = []
    expected: list[str] = []
    for place in range(64):
        text, length = f"the race {place % 11} " * (1 + place % 4), 5 + place % 30
        sampling: dict[str, Any] = {"temperature": 1.0, "seed": place, "max_new_tokens": length}
        common: dict[str, Any] = {"seed": place, "max_tokens": length}
        if place % 3 == 2:
            turns = [{"role": "user", "content": f"the race {place}"}]
            asked.append({"model": "run-chat", "messages": turns, **common})
            expected.append(alone(chat, chat.feed_messages(turns), **sampling).text)
        else:
            asked.append({"model": "run-plain", "prompt": text, "stream": place % 3 == 1, **common})
            expected.append(alone(plain, plain.feed_text(text), **sampling).text)

    def ask(body: dict[str, Any]) -> str:
        with served.client() as own:
            if "messages" in body:
                return str(own.chat.completions.create(**body).choices[0].message.content)
            found = own.completions.create(**body)
            chunks = found if body["stream"] else [found]
            return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(ask, asked))
    assert len(set(expected)) > 50
    assert found == expected


class Endless:
    """A decoder that writes more than a socket holds, and never comes to an end."""

    busy, waiting, free, drawn = True, frozenset[int](), 1, 0

    def __init__(self) -> None:
        self.handles: list[int] = []
        self.left = 60

    def add(self, _: Any) -> int:
        self.handles.append(len(self.handles))
        return self.handles[-1]

    def cancel(self, handle: int) -> None:
        self.handles.remove(handle)

    def step(self) -> list[Event]:
        time.sleep(0.002)
        self.left -= 1
        return [Event(handle, "x" * 200_000, ()) for handle in self.handles if self.left >= 0]


def test_a_client_that_reads_nothing_is_cut_off_and_frees_its_place(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptailor.serve.run.STALL_SECONDS", 0.2)
    answerer = load_answerer(runs["plain"])
    monkeypatch.setattr(answerer, "decoder", Endless)
    body = json.dumps({"prompt": PROMPT, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with serving([answerer]) as served:
        port = int(served.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as deaf:
            deaf.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: served.service.accepted == 1)
            until(lambda: served.service.accepted == 0)
            until(lambda: served.service.workers["run-plain"].items == 0)


class Halting(Endless):
    """A decoder that falls silent after its first piece, and later ends."""

    def step(self) -> list[Event]:
        self.left -= 1
        time.sleep(0.5 if self.left == 58 else 0.002)
        return [Event(handle, "x", ()) for handle in self.handles if self.left == 59]


def test_a_silent_stream_says_that_it_goes_on(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands between closes connections over which nothing comes."""
    monkeypatch.setattr("gptailor.serve.texts.SILENT_SECONDS", 0.05)
    answerer = load_answerer(runs["plain"])
    monkeypatch.setattr(answerer, "decoder", Halting)
    with serving([answerer]) as served:
        body = {"prompt": PROMPT, "stream": True}
        with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=10) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: {")
            assert [line for line in itertools.islice(lines, 6) if line] == [": the answer goes on"] * 3


class Pipe:
    """A transport of which somebody reads some between two looks, and the clock that calls for the looks."""

    def __init__(self, unread: list[int]) -> None:
        self.unread, self.aborted = unread, False
        self.waiting: list[Callable[[], None]] = []

    def get_write_buffer_size(self) -> int:
        return self.unread[0]

    def abort(self) -> None:
        self.aborted = True

    def call_later(self, _: float, call: Callable[[], None]) -> None:
        self.waiting.append(call)


def test_a_client_that_reads_slowly_is_not_cut_off() -> None:
    """What lies there shrinks from look to look; once it doesn't, nobody reads."""
    pipe = Pipe([900, 700, 20, 20, 20])
    connection: Any = Connection.__new__(Connection)
    connection.loop = connection.transport = pipe
    connection._wait_for_reading()
    for expected in (False, False, True):
        pipe.unread.pop(0)
        pipe.waiting.pop()()
        assert pipe.aborted is expected
    assert pipe.waiting == [], "nothing is looked at after the end"


def test_a_client_that_leaves_mid_stream_frees_its_place(runs: dict[str, Path]) -> None:
    with serving([texts.slowly(runs["plain"])]) as slow, slow.client() as client:
        worker = slow.service.workers["run-plain"]
        stream = client.completions.create(model="run-plain", prompt=PROMPT, n=3, stream=True, logprobs=0)
        next(iter(stream))
        assert worker.items > 0, "of three, some may have ended"
        stream.close()
        until(lambda: worker.items == 0)
        assert not worker._decoder.busy
        assert slow.service.accepted == 0
        assert client.completions.create(model="run-plain", prompt=PROMPT, max_tokens=2).choices


def test_more_than_fits_is_refused_with_a_time(runs: dict[str, Path]) -> None:
    with serving([texts.slowly(runs["plain"])], queue_items=2) as slow, slow.client() as client:
        # Seeds of answers that don't end at once, which some draws do.
        asked: dict[str, Any] = {"model": "run-plain", "prompt": PROMPT, "seed": 1}
        stream = client.completions.create(**asked, n=2, stream=True, logprobs=0)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="run-plain", prompt=PROMPT)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        stream.close()
        until(lambda: slow.service.workers["run-plain"].items == 0)
        with pytest.raises(openai.BadRequestError, match="3 answers; 2 are allowed"):
            client.completions.create(model="run-plain", prompt=PROMPT, n=3)


def test_a_stop_lets_streams_finish_and_takes_nothing_new(runs: dict[str, Path]) -> None:
    with serving([texts.slowly(runs["plain"])]) as slow, slow.client() as client:
        asked: dict[str, Any] = {"model": "run-plain", "prompt": PROMPT, "seed": 1, "max_tokens": 25}
        whole = client.completions.create(**asked).choices[0].text
        stream = iter(client.completions.create(**asked, stream=True))
        pieces = [next(stream)]
        slow.server.handle_exit(15, None)
        with slow.client() as late, pytest.raises((openai.InternalServerError, openai.APIConnectionError)):
            late.completions.create(**asked)
        pieces += list(stream)
        assert "".join(piece.choices[0].text for piece in pieces) == whole
        assert pieces[-1].choices[0].finish_reason == "length"
        slow.thread.join(10)
        assert not slow.thread.is_alive()
