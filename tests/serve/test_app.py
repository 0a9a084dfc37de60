"""The server: the shape of answers and refusals, the bounds, the key, the drain."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from gptailor.errors import GptailorError, InputError
from gptailor.serve import requests, run, service
from gptailor.serve.app import build_app
from gptailor.serve.run import Connection, listen, server_config
from gptailor.types import AnswerForm, FloatArray

Result = TypeVar("Result")


@dataclass(frozen=True)
class FakeEncoded:
    text: str
    num_tokens: int
    truncated: bool
    shape: tuple[int, int]
    rows: int = 1


class FakePredictor:
    """Probabilities are a function of the text; every run waits while `gate` is closed."""

    def __init__(self, name: str = "news", *, threshold: float | None = 0.5) -> None:
        self.form = AnswerForm()
        self.name, self.version, self.threshold, self.max_characters = name, f"hash-{name}", threshold, 200
        self.label_names = ("World", "Sports", "Business")
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.ran: list[str] = []

    def encode(self, text: str) -> FakeEncoded:
        if text == "<b></b>":
            raise InputError("The text is empty after cleaning.")
        if text == "encode breaks":
            raise KeyError("secret detail")
        words = len(text.split())
        return FakeEncoded(text, words, words > 20, (4, 8 if words <= 8 else 32))

    def run(self, batch: Sequence[Any]) -> FloatArray:
        self.entered.set()
        assert self.gate.wait(10)
        for item in batch:
            if item.text == "run breaks":
                raise KeyError("secret detail")
        self.ran += [item.text for item in batch]
        return np.stack([expected(item.text) for item in batch])


def expected(text: str) -> FloatArray:
    seed = sum(text.encode("utf-8", "replace"))
    scores = np.random.default_rng(seed).normal(size=3) * (0.01 if "unsure" in text else 4)
    odds = np.exp(scores)
    return np.asarray(odds / odds.sum())


@contextmanager
def client_of(app: FastAPI, **headers: str) -> Iterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
    yield httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)


def talk(
    main: Callable[[httpx.AsyncClient], Awaitable[Result]],
    predictor: FakePredictor | None = None,
    **options: Any,
) -> Result:
    """Runs `main` with a client of a fresh app, and stops the app's worker."""

    async def bounded() -> Result:
        app = build_app([predictor or FakePredictor()], **options)
        try:
            with client_of(app) as client:
                client.app = app  # type: ignore[attr-defined]
                return await asyncio.wait_for(main(client), 20)
        finally:
            await app.state.service.stop()

    return asyncio.run(bounded())


def ask(body: Any, **options: Any) -> httpx.Response:
    async def main(client: httpx.AsyncClient) -> httpx.Response:
        if isinstance(body, bytes):
            return await client.post("/classify", content=body, headers={"content-type": "application/json"})
        return await client.post("/classify", json=body)

    return talk(main, **options)


def error_of(response: httpx.Response) -> dict[str, str]:
    """The refusal, after checking that it has the documented shape and nothing else."""
    content = response.json()
    assert list(content) == ["error"]
    assert set(content["error"]) == {"message", "type", "code"}
    assert all(isinstance(value, str) and value for value in content["error"].values())
    return dict(content["error"])


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


# Answers.


def test_an_answer_has_vllms_shape_and_every_bit_of_the_probabilities() -> None:
    response = ask({"model": "news", "input": ["a good match", "unsure of this", "word " * 30]})
    assert response.status_code == 200
    content = response.json()
    assert set(content) == {"id", "object", "created", "model", "version", "data", "usage"}
    assert (content["object"], content["model"], content["version"]) == ("list", "news", "hash-news")
    assert content["usage"] == {"prompt_tokens": 36, "total_tokens": 36}
    assert [item["index"] for item in content["data"]] == [0, 1, 2]
    for item, text in zip(content["data"], ["a good match", "unsure of this", "word " * 30], strict=True):
        row = expected(text)
        assert item["probs"] == row.tolist()
        assert item["label_probs"] == dict(zip(("World", "Sports", "Business"), row.tolist(), strict=True))
        assert item["label"] == ("World", "Sports", "Business")[int(row.argmax())]
        assert item["num_classes"] == 3
        assert item["abstained"] == bool(row.max() < 0.5)
    assert [item["truncated"] for item in content["data"]] == [False, False, True]
    assert content["data"][1]["abstained"]


def test_one_text_needs_neither_list_nor_model() -> None:
    content = ask({"input": "a good match", "model": None}).json()
    assert [item["probs"] for item in content["data"]] == [expected("a good match").tolist()]


def test_without_a_threshold_no_answer_abstains() -> None:
    content = ask({"input": "unsure of this"}, predictor=FakePredictor(threshold=None)).json()
    assert content["data"][0]["abstained"] is False


def test_each_model_answers_under_its_name() -> None:
    async def main() -> None:
        app = build_app([FakePredictor("news"), FakePredictor("mails", threshold=None)])
        with client_of(app) as client:
            listed = (await client.get("/v1/models")).json()
            assert listed["object"] == "list"
            assert [model["id"] for model in listed["data"]] == ["news", "mails"]
            assert {model["object"] for model in listed["data"]} == {"model"}
            assert listed["data"][1]["label_names"] == ["World", "Sports", "Business"]
            for name in ("news", "mails"):
                content = (await client.post("/classify", json={"model": name, "input": "x"})).json()
                assert (content["model"], content["version"]) == (name, f"hash-{name}")
            missing = await client.post("/classify", json={"model": "nwes", "input": "x"})
            assert missing.status_code == 404
            assert "'news', 'mails'" in error_of(missing)["message"]
        await app.state.service.stop()

    asyncio.run(main())


def test_a_server_needs_models_of_different_names_and_a_key_that_is_one() -> None:
    with pytest.raises(GptailorError, match="different names"):
        build_app([FakePredictor(), FakePredictor()])
    with pytest.raises(GptailorError, match="different names"):
        build_app([])
    with pytest.raises(GptailorError, match="empty"):
        build_app([FakePredictor()], api_key=" ")


def test_the_server_itself_loads_no_model_library() -> None:
    code = "import sys, gptailor.serve.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Refusals of a body.


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"{", "not_json", "not JSON"),
        (b"\xff{}", "not_json", "UTF-8"),
        (b"[" * 200_000, "not_json", "nested"),
        (b'{"input": ' + b"[" * 200_000, "not_json", "nested"),
        (b'{"input": ' + b"9" * 5000 + b"}", "not_json", "not JSON"),
        (b"", "not_json", "not JSON"),
        ([], "wrong_type", "object"),
        ("text", "wrong_type", "object"),
        ({}, "missing_input", "'input' is missing"),
        ({"input": 3}, "wrong_type", "list of texts"),
        ({"input": None}, "wrong_type", "list of texts"),
        ({"input": ["a", 3]}, "wrong_type", r"input\[1\]"),
        ({"input": [["a"]]}, "wrong_type", r"input\[0\]"),
        ({"input": "a", "model": 1}, "wrong_type", "'model'"),
        ({"inputs": "a"}, "unknown_key", "Did you mean 'input'"),
        ({"input": "a", "temperature": 1}, "unknown_key", "temperature"),
        ({"input": []}, "empty_input", "empty list"),
        ({"input": ""}, "empty_input", "input is empty"),
        ({"input": ["a", " \n"]}, "empty_input", r"input\[1\] is empty"),
        ({"input": "<b></b>"}, "unanswerable", "input: The text is empty after cleaning"),
        ({"input": ["a"] * 257}, "too_many_inputs", "256"),
        ({"input": ["a", "b" * 201]}, "input_too_long", r"input\[1\] has 201 characters"),
        (b'{"input": "cut \\ud83d"}', "not_text", "character 4"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_reason(body: Any, code: str, words: str) -> None:
    response = ask(body)
    assert response.status_code == 422
    error = error_of(response)
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert re.search(words, error["message"])


def test_half_a_character_in_the_models_name_is_only_an_unknown_name() -> None:
    response = ask(b'{"model": "\\ud800", "input": "a"}')
    assert response.status_code == 404
    error_of(response)


@settings(max_examples=25, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["input", "model", "x"]), inner, max_size=3)
        ),
        max_leaves=6,
    )
)
def test_no_json_breaks_the_server(body: Any) -> None:
    response = ask(json.dumps(body).encode())
    assert response.status_code in (200, 404, 422)
    if response.status_code != 200:
        error_of(response)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_break_the_server(body: bytes) -> None:
    assert ask(body).status_code in (200, 404, 422)


def test_routes_and_methods_that_are_not_there() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        missing = await client.get("/nothing")
        assert missing.status_code == 404
        assert error_of(missing)["code"] == "unknown_route"
        wrong = await client.get("/classify")
        assert wrong.status_code == 405
        assert wrong.headers["allow"] == "POST"
        assert error_of(wrong)["code"] == "wrong_method"
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            foreign = await client.post("/classify", content=b'{"input":"a"}', headers={"content-type": kind})
            assert foreign.status_code == 415
            error_of(foreign)

    talk(main)


def test_bodies_are_bounded_by_header_and_by_count() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        pieces = 0

        async def chunks() -> Any:
            nonlocal pieces
            for pieces in range(1, 1001):  # noqa: B007
                yield b" " * 100

        declared = await client.post("/classify", json={"input": "a" * 2000})
        counted = await client.post(
            "/classify", content=chunks(), headers={"content-type": "application/json"}
        )
        for response in (declared, counted):
            assert response.status_code == 413
            assert error_of(response)["code"] == "body_too_large"
        assert pieces < 15  # the rest was not even read
        odd = await client.post("/classify", content=b"{}", headers={"content-length": "9" * 40})
        assert odd.status_code == 413
        assert client.app.state.service.body_bytes == 0  # type: ignore[attr-defined]

    talk(main, max_body_bytes=1000)


# Faults of our own.


@pytest.mark.parametrize("text", ["encode breaks", "run breaks"])
def test_a_fault_is_logged_once_and_tells_the_client_nothing_but_its_number(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    response = ask({"input": text})
    assert response.status_code == 500
    error = error_of(response)
    assert "secret" not in response.text
    assert error["code"] == "failed"
    assert response.headers["x-request-id"] in error["message"]
    ours = [record for record in caplog.records if record.name == "gptailor.serve"]
    assert len(ours) == 1
    assert response.headers["x-request-id"] in ours[0].getMessage()


def test_a_text_that_breaks_the_model_costs_no_neighbor_its_answer() -> None:
    predictor = FakePredictor()

    async def main(client: httpx.AsyncClient) -> list[int]:
        predictor.gate.clear()
        texts = ["first", "good", "run breaks", "other"]
        tasks = [asyncio.create_task(client.post("/classify", json={"input": text})) for text in texts]
        await until(predictor.entered.is_set)
        await asyncio.sleep(0.05)
        predictor.gate.set()
        return [response.status_code for response in await asyncio.gather(*tasks)]

    assert talk(main, predictor) == [200, 200, 500, 200]


# Load.


def test_64_clients_at_once_each_get_their_own_answer() -> None:
    texts = [f"text number {number} " + "word " * (number % 3 * 6) for number in range(64)]

    async def main(client: httpx.AsyncClient) -> None:
        async def one(text: str) -> None:
            for _ in range(3):
                response = await client.post("/classify", json={"input": [text, text[::-1]]})
                rows = [item["probs"] for item in response.json()["data"]]
                assert rows == [expected(text).tolist(), expected(text[::-1]).tolist()]

        await asyncio.gather(*(one(text) for text in texts))

    talk(main)


def test_overload_answers_429_with_a_time_and_loses_nothing() -> None:
    predictor = FakePredictor()

    async def main(client: httpx.AsyncClient) -> None:
        predictor.gate.clear()
        first = asyncio.create_task(client.post("/classify", json={"input": "first"}))
        await until(predictor.entered.is_set)
        texts = [f"text {number}" for number in range(30)]
        tasks = [asyncio.create_task(client.post("/classify", json={"input": text})) for text in texts]
        await until(lambda: sum(task.done() for task in tasks) >= 25)
        predictor.gate.set()
        assert (await first).status_code == 200
        answered = 0
        for text, response in zip(texts, await asyncio.gather(*tasks), strict=True):
            if response.status_code == 200:
                answered += 1
                assert response.json()["data"][0]["probs"] == expected(text).tolist()
            else:
                assert response.status_code == 429
                assert int(response.headers["retry-after"]) >= 1
                assert error_of(response)["type"] == "rate_limit_error"
        assert answered == 5
        assert (await client.post("/classify", json={"input": "again"})).status_code == 200
        text = (await client.get("/metrics")).text
        assert 'gptailor_rejected_total{reason="overloaded"} 25.0' in text

    talk(main, predictor, queue_items=5)


def test_a_list_that_could_never_fit_the_queue_is_no_overload() -> None:
    response = ask({"input": ["a"] * 6}, queue_items=5)
    assert response.status_code == 422


def test_what_waits_past_the_deadline_gets_503() -> None:
    predictor = FakePredictor()

    async def main(client: httpx.AsyncClient) -> None:
        predictor.gate.clear()
        first = asyncio.create_task(client.post("/classify", json={"input": "first"}))
        await until(predictor.entered.is_set)
        late = await client.post("/classify", json={"input": "late"})
        assert late.status_code == 503
        assert error_of(late)["code"] == "deadline_exceeded"
        assert int(late.headers["retry-after"]) >= 1
        predictor.gate.set()
        assert (await first).status_code == 200

    talk(main, predictor, deadline_seconds=0.2)
    assert predictor.ran == ["first"]


# What others may see and do.


def test_the_key_guards_all_but_the_page_and_the_probes() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        for path in ("/", "/health", "/ready"):
            assert (await client.get(path)).status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing", "/docs"):
            refused = await client.get(path)
            assert refused.status_code == 401
            assert error_of(refused)["code"] == "wrong_key"
            assert refused.headers["www-authenticate"] == "Bearer"
        for value in (
            "",
            "Bearer",
            "Bearer ",
            "Bearer schlüsse",
            "Bearer SCHLÜSSEL",
            "Bearer Schlüssel",
            "Basic schlüssel",
            "schlüssel",
        ):
            headers = {"authorization": value.encode()}
            refused = await client.post("/classify", json={"input": "a"}, headers=headers)  # type: ignore[arg-type]
            assert refused.status_code == 401
        twice = [("authorization", b"Bearer wrong"), ("authorization", "Bearer schlüssel".encode())]
        assert (await client.get("/v1/models", headers=twice)).status_code == 401  # type: ignore[arg-type]
        right = {"authorization": "bearer schlüssel".encode()}
        assert (await client.post("/classify", json={"input": "a"}, headers=right)).status_code == 200  # type: ignore[arg-type]

    talk(main, api_key="schlüssel")


def test_white_space_around_the_key_is_no_part_of_it() -> None:
    """A key that comes from a file ends with a line end, which no header can hold."""

    async def main(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get("/v1/models", headers={"authorization": "Bearer open sesame"})

    assert talk(main, api_key=" open sesame\r\n").status_code == 200


def test_the_key_is_checked_before_the_body_is_read() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        async def never() -> Any:
            raise AssertionError("the body was read")
            yield b""

        refused = await client.post(
            "/classify", content=never(), headers={"content-type": "application/json"}
        )
        assert refused.status_code == 401

    talk(main, api_key="key")


def test_a_foreign_host_name_is_refused_where_names_are_limited() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        for host in ("127.0.0.1:8000", "localhost", "[::1]:80", "LOCALHOST:1"):
            assert (await client.get("/v1/models", headers={"host": host})).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:80", ""):
            refused = await client.get("/v1/models", headers={"host": host})
            assert refused.status_code == 421
            error_of(refused)

    talk(main, allowed_hosts=["localhost", "127.0.0.1", "::1"])


def test_headers_are_safe_and_the_page_may_load_nothing() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        for path in ("/", "/health", "/v1/models", "/nothing"):
            headers = (await client.get(path, headers={"origin": "http://evil.example"})).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert "access-control-allow-origin" not in headers
        page = await client.get("/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert policy.count("'sha256-") == 3  # one style, two scripts
        assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page.text)
        assert (await client.get("/docs")).status_code == 404
        assert (await client.get("/redoc")).status_code == 404

    talk(main)


def test_the_schema_describes_the_route() -> None:
    async def main(client: httpx.AsyncClient) -> Any:
        return (await client.get("/openapi.json")).json()

    schema = talk(main)
    operation = schema["paths"]["/classify"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["input"]
    assert body["additionalProperties"] is False
    assert {"200", "422", "429", "503"} <= set(operation["responses"])


def test_metrics_count_what_happened() -> None:
    async def main(client: httpx.AsyncClient) -> str:
        for _ in range(3):
            await client.post("/classify", json={"input": ["a b", "c"]})
        await client.post("/classify", json={"input": ""})
        await client.get("/some/random/path")
        return (await client.get("/metrics")).text

    text = talk(main)
    for line in (
        'gptailor_requests_total{route="/classify",status="200"} 3.0',
        'gptailor_requests_total{route="/classify",status="422"} 1.0',
        'gptailor_requests_total{route="other",status="404"} 1.0',
        'gptailor_request_seconds_count{route="/classify"} 4.0',
        'gptailor_batch_size_sum{model="news"} 6.0',
        'gptailor_tokens_total{model="news"} 9.0',
        'gptailor_queue_items{model="news"} 0.0',
        'gptailor_queue_tokens{model="news"} 0.0',
    ):
        assert line in text.splitlines()


def test_two_apps_count_apart() -> None:
    first, second = build_app([FakePredictor()]), build_app([FakePredictor()])
    assert first.state.service.metrics.registry is not second.state.service.metrics.registry


# Shutdown.


def test_drain_turns_readiness_off_answers_what_was_accepted_and_refuses_the_rest() -> None:
    predictor = FakePredictor()

    async def main(client: httpx.AsyncClient) -> None:
        service = client.app.state.service  # type: ignore[attr-defined]
        predictor.gate.clear()
        texts = [f"text {number}" for number in range(10)]
        tasks = [asyncio.create_task(client.post("/classify", json={"input": text})) for text in texts]
        await until(lambda: service.accepted == 10)
        drain = asyncio.create_task(service.drain(10))
        await asyncio.sleep(0)
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200
        refused = await client.post("/classify", json={"input": "new"})
        assert refused.status_code == 503
        assert error_of(refused)["code"] == "draining"
        assert refused.headers["connection"] == "close"
        assert not drain.done()
        predictor.gate.set()
        await drain
        for text, response in zip(texts, await asyncio.gather(*tasks), strict=True):
            assert response.json()["data"][0]["probs"] == expected(text).tolist()

    talk(main, predictor)
    assert len(predictor.ran) == 10


# Over a real socket.


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The app under uvicorn in a thread, on a free loopback port."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_a_client_that_leaves_takes_its_texts_out_of_the_queue() -> None:
    predictor = FakePredictor()
    app = build_app([predictor])
    service = app.state.service
    with served(app) as url, httpx.Client(base_url=url) as client, ThreadPoolExecutor() as pool:
        predictor.gate.clear()
        first = pool.submit(client.post, "/classify", json={"input": "first"})
        wait_for(predictor.entered.is_set)
        where, body = urlsplit(url), json.dumps({"input": ["gone"] * 9})
        connections = [http.client.HTTPConnection(where.hostname or "", where.port) for _ in range(20)]
        for connection in connections:
            connection.request("POST", "/classify", body, {"content-type": "application/json"})
        batcher = service.batchers["news"]
        wait_for(lambda: batcher.items == 180)
        for connection in connections:
            connection.close()
        wait_for(lambda: batcher.items == 0)
        predictor.gate.set()
        assert first.result().status_code == 200
        wait_for(lambda: service.accepted == 0)
        text = client.get("/metrics").text
    assert predictor.ran == ["first"]
    assert 'gptailor_requests_total{route="/classify",status="499"} 20.0' in text


def test_a_refused_large_body_leaves_the_answer_readable() -> None:
    with (
        served(build_app([FakePredictor()], max_body_bytes=10_000)) as url,
        httpx.Client(base_url=url) as client,
    ):
        for _ in range(5):
            response = client.post(
                "/classify", content=b" " * 3_000_000, headers={"content-type": "application/json"}
            )
            assert response.status_code == 413
        chunked = client.post(
            "/classify", content=iter([b" " * 6000] * 50), headers={"content-type": "application/json"}
        )
        assert chunked.status_code == 413
        assert client.post("/classify", json={"input": "a"}).status_code == 200


def test_answers_leave_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TCP_NODELAY an answer's second packet waits 40 ms for the acknowledgment of the first."""
    options, original = [], Connection.connection_made

    def noting(self: Connection, transport: asyncio.Transport) -> None:
        original(self, transport)
        accepted = transport.get_extra_info("socket")
        options.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(Connection, "connection_made", noting)
    with served(build_app([FakePredictor()])) as url:
        assert httpx.get(f"{url}/health").status_code == 200
    assert options == [1]


def test_a_connection_that_brings_no_whole_head_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HEAD_SECONDS", 0.3)
    with served(build_app([FakePredictor()])) as url:
        where = urlsplit(url)
        address = (where.hostname, where.port)
        with socket.create_connection(address) as silent, socket.create_connection(address) as dribbling:
            with contextlib.suppress(ConnectionError):
                for byte in b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"x" * 1000:
                    dribbling.sendall(bytes([byte]))
                    time.sleep(0.01)
                pytest.fail("headers may be sent a byte at a time")
            silent.settimeout(5)
            assert silent.recv(1) == b""
        assert httpx.get(f"{url}/health").status_code == 200


def test_the_heads_clock_does_not_run_while_an_answer_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HEAD_SECONDS", 1.0)
    predictor = FakePredictor()
    with served(build_app([predictor])) as url, httpx.Client(base_url=url) as client:
        predictor.gate.clear()
        threading.Timer(1.5, predictor.gate.set).start()
        for _ in range(2):  # over one connection
            assert client.post("/classify", json={"input": "slow"}).status_code == 200


SERVER = """
import sys, time
import numpy as np
from types import SimpleNamespace
from gptailor.serve.run import serve
from gptailor.types import AnswerForm

class Slow:
    form = AnswerForm()
    name, version, label_names, threshold, max_characters = "slow", "1", ("a", "b"), None, 100
    def encode(self, text):
        return SimpleNamespace(text=text, num_tokens=1, truncated=False, shape=(4, 8), rows=1)
    def run(self, batch):
        time.sleep(float(sys.argv[1]))
        return np.array([[int(item.text) / 1000, 1 - int(item.text) / 1000] for item in batch])

key = sys.argv[3] if len(sys.argv) > 3 else None
say = lambda line: print(line, flush=True)
serve([Slow()], port=0, announce=say, drain_seconds=float(sys.argv[2]), api_key=key)
"""


@contextmanager
def server_process(
    seconds_per_run: float, *, drain_seconds: float = 10, api_key: str | None = None
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(seconds_per_run), str(drain_seconds), *filter(None, [api_key])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.fullmatch(r"Serving slow at http://127\.0\.0\.1:(\d+) .*\n", line)
        assert found, line + (process.stderr.read() if process.stderr and not line else "")
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


def post(port: int, number: int) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(
        "POST", "/classify", json.dumps({"input": str(number)}), {"content-type": "application/json"}
    )
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    return response.status, content


def waiting(port: int) -> float:
    """Texts in the queue of the server's one model."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return float(re.findall(r"^gptailor_queue_items.* (\S+)$", text, re.MULTILINE)[0])


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_answers_every_accepted_request(sign: signal.Signals) -> None:
    with server_process(0.1) as (process, port), ThreadPoolExecutor(50) as pool:
        accepted = {number: pool.submit(post, port, number) for number in range(48)}
        wait_for(lambda: waiting(port) >= 30)
        time.sleep(0.1)
        process.send_signal(sign)
        time.sleep(0.1)
        assert httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 503
        assert post(port, 999)[0] == 503
        for number, future in accepted.items():
            status, content = future.result()
            assert status == 200
            assert content["data"][0]["probs"][0] == number / 1000
        assert process.wait(10) == 0
        assert process.stderr
        assert process.stderr.read() == ""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_second_signal_leaves_at_once() -> None:
    with server_process(5.0) as (process, port), ThreadPoolExecutor() as pool:
        future = pool.submit(post, port, 1)
        time.sleep(0.3)
        process.terminate()
        time.sleep(0.2)
        began = time.monotonic()
        process.terminate()
        process.wait(10)
        assert time.monotonic() - began < 4
        assert future.result()[0] == 503


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_drain_has_an_end_and_tells_those_it_leaves() -> None:
    with server_process(19.0, drain_seconds=0.2) as (process, port), ThreadPoolExecutor() as pool:
        futures = [pool.submit(post, port, number) for number in range(6)]
        wait_for(lambda: waiting(port) >= 2)
        time.sleep(0.2)
        process.terminate()
        assert {future.result()[0] for future in futures} == {503}
        assert process.wait(12) == 0, "it waited for the run"
        assert process.stderr
        assert "Traceback" not in process.stderr.read()


def test_a_port_in_use_is_said_plainly() -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(GptailorError, match=f"port {port}: Address already in use") as caught:
            listen("127.0.0.1", port)
        assert "--port 0" in str(caught.value)


def test_an_address_that_is_not_ours_is_said_plainly() -> None:
    with pytest.raises(GptailorError, match="listen on"):
        listen("192.0.2.1", 0)
    with pytest.raises(GptailorError, match="listen on"):
        listen("127.0.0.1", 99_999)
    with pytest.raises(GptailorError, match="listen on"):
        listen("no such host", 0)


def test_a_server_as_it_is_started_is_guarded_by_its_key_and_against_other_hosts_names() -> None:
    """A page of another host whose name was turned to this machine must not ask it."""
    body = {"input": "7"}
    with server_process(0.0, api_key="s3cret") as (_, port):
        url = f"http://127.0.0.1:{port}/classify"
        assert httpx.post(url, json=body).status_code == 401
        assert httpx.post(url, json=body, headers={"authorization": "Bearer s3cret"}).status_code == 200
    with server_process(0.0) as (_, port):
        url = f"http://127.0.0.1:{port}/classify"
        assert httpx.post(url, json=body).status_code == 200
        assert httpx.post(url, json=body, headers={"host": "evil.example"}).status_code == 421


@pytest.mark.parametrize(
    ("host", "key", "warned"), [("0.0.0.0", None, True), ("0.0.0.0", "k", False), ("127.0.0.1", None, False)]
)
def test_an_open_address_without_a_key_is_warned_of(
    host: str, key: str | None, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.DrainingServer, "run", lambda server, **_: server.announce_start())
    said: list[str] = []
    run.serve([FakePredictor()], host=host, port=0, api_key=key, announce=said.append)
    assert any("Whoever reaches this address" in line for line in said) == warned


def test_a_body_that_comes_too_slowly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.1)

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"input": '
        await asyncio.sleep(5)
        yield b'"late"}'

    async def main(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/classify", content=slow(), headers={"content-type": "application/json"})

    found = talk(main)
    assert (found.status_code, found.json()["error"]["code"]) == (408, "too_slow")


def test_a_full_server_refuses_before_it_reads_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(b"")
        yield b'{"input": "unread"}'

    async def main(client: httpx.AsyncClient) -> httpx.Response:
        client.app.state.service.most_accepted = 0  # type: ignore[attr-defined]
        return await client.post("/classify", content=body(), headers={"content-type": "application/json"})

    found = talk(main)
    assert found.status_code == 429
    assert int(found.headers["retry-after"]) >= 1
    assert read == []


def test_bodies_in_memory_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "BODIES_HELD", 1)
    headers = {"content-type": "application/json"}

    async def main(client: httpx.AsyncClient) -> tuple[int, int, int]:
        go_on = asyncio.Event()

        async def half() -> AsyncIterator[bytes]:
            yield b'{"input": "' + b"x" * 600
            await go_on.wait()
            yield b'"}'

        held: Any = client.app.state.service  # type: ignore[attr-defined]
        first = asyncio.create_task(client.post("/classify", content=half(), headers=headers))
        await until(lambda: held.body_bytes > 600)
        second = await client.post("/classify", content=b'{"input": "' + b"y" * 600 + b'"}', headers=headers)
        go_on.set()
        one = await first
        third = await client.post("/classify", json={"input": "small"})
        return one.status_code, second.status_code, third.status_code

    assert talk(main, max_body_bytes=1000) == (422, 429, 200)  # the first is longer than the model takes
