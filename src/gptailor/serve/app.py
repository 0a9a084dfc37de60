"""HTTP in front of the batchers: bounded before it is parsed, closed by default, drained before it stops.

A request meets, in this order: `Gate` (host, API key, shutdown, size), the route, a helper thread that
parses and tokenizes, the batcher. Every refusal has one shape, `{"error": {"message", "type", "code"}}`,
and 429 and 503 say when to come back.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import importlib.resources
import ipaddress
import json
import logging
import math
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import uvicorn
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as render_metrics
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptailor.errors import GptailorError, InputError, did_you_mean
from gptailor.serve.batcher import (
    BatchDone,
    Batcher,
    DeadlineExceeded,
    Draining,
    Encoded,
    Overloaded,
    RunFailed,
    ServablePredictor,
)
from gptailor.types import FloatArray

logger = logging.getLogger("gptailor.serve")

WITHOUT_KEY = {"/", "/health", "/ready"}  # a page that asks for the key, and two yes-or-no answers
KNOWN_PATHS = WITHOUT_KEY | {"/classify", "/v1/models", "/metrics", "/openapi.json"}
BODY_SECONDS = 20.0  # a sender slower than this is cut off
BODIES_HELD = 64  # this many bodies of the largest size may be in memory
PARSING_THREADS = 4  # tokenizing more at once would only take the processor from the model
CLIENT_LEFT = 499  # nginx's number for it; only in the metrics, nobody is there to read it
HALF_A_PAIR = re.compile("[\ud800-\udfff]")
SAFE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"x-frame-options", b"DENY"),
]
SOON = {"retry-after": "1"}
ERROR_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}


class ErrorDetail(BaseModel):
    """What went wrong: a sentence, its kind, and a word for programs."""

    message: str
    type: str
    code: str


class ErrorAnswer(BaseModel):
    """The body of every answer that isn't a success."""

    error: ErrorDetail


class ClassifyRequest(BaseModel):
    """What `/classify` reads. Only for the schema: `_read_request` checks, and says what to mend."""

    model: str | None = Field(None, description="one of /v1/models; the first where absent")
    input: str | list[str] = Field(description="a text, or a list of texts")
    model_config = {"extra": "forbid"}


class ClassifyItem(BaseModel):
    """The answer to one text. `probs` are in the order of `label_probs`."""

    index: int
    label: str
    probs: list[float]
    num_classes: int
    label_probs: dict[str, float]
    abstained: bool = Field(description="the top probability is under the model's threshold")
    truncated: bool = Field(description="the end of the text did not fit the model")


class Usage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class ClassifyAnswer(BaseModel):
    """vLLM's shape, with `version`, the hash of the model that answered."""

    id: str
    object: str
    created: int
    model: str
    version: str
    data: list[ClassifyItem]
    usage: Usage


class Refusal(Exception):
    """An answer other than success, with its status."""

    def __init__(
        self, status: int, message: str, *, code: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, dict(headers or {})

    def response(self) -> Response:
        """The refusal in the one shape all of them have."""
        kind = ERROR_TYPES.get(self.status, "invalid_request_error")
        return _json(
            {"error": {"message": self.message, "type": kind, "code": self.code}},
            status=self.status,
            headers=self.headers,
        )


class ClientLeft(Exception):
    """The client closed the connection, so there is nobody to answer."""


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

    def watch(self, batcher: Batcher) -> Callable[[BatchDone], None]:
        """Reads the queue of `batcher`; gives what it shall call after each run."""
        name = batcher.predictor.name
        self.queue_items.labels(name).set_function(lambda: batcher.items)
        self.queue_tokens.labels(name).set_function(lambda: batcher.tokens)
        sizes, tokens = self.batch_size.labels(name), self.tokens.labels(name)

        def count(batch: BatchDone) -> None:
            sizes.observe(batch.rows)
            tokens.inc(batch.tokens)

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


class Gate:
    """The outermost layer: who may come in and with how much, one shape for refusals, one count each."""

    def __init__(
        self, app: ASGIApp, *, service: Service, api_key: str | None, allowed_hosts: Sequence[str] | None
    ) -> None:
        self.app, self.service = app, service
        self.key = None if api_key is None else api_key.encode()
        self.hosts = None if allowed_hosts is None else {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request. Every error ends here as a refusal."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, request_id = time.perf_counter(), CLIENT_LEFT, uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [*SAFE_HEADERS, (b"x-request-id", request_id.encode())]
                if self.service.draining:
                    extra.append((b"connection", b"close"))
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        try:
            await self._pass(scope, receive, answer)
        except (ClientLeft, ClientDisconnect):
            pass
        except (Exception, asyncio.CancelledError) as error:
            if status != CLIENT_LEFT:
                raise  # half an answer is out; only closing the connection can tell
            refusal = _refusal(error, request_id=request_id)
            if self.service.draining:
                await _read_away(receive, most=self.service.limits.body_bytes)
            await refusal.response()(scope, receive, answer)
            if refusal.status in (429, 503) and scope["path"] != "/ready":
                self.service.metrics.rejected.labels(refusal.code).inc()
        finally:
            route = scope["path"] if scope["path"] in KNOWN_PATHS else "other"
            self.service.metrics.requests.labels(route, str(status)).inc()
            self.service.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._check_host(headers)
        if scope["path"] not in WITHOUT_KEY:
            self._check_key(headers)
        most, held = self.service.limits.body_bytes, 0
        length = next((value for name, value in headers if name == b"content-length"), b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > most:
            raise _too_large(most)

        async def bounded() -> Message:
            nonlocal held
            message = await receive()
            count = len(message.get("body", b""))
            held += count
            self.service.hold(count)
            if held > most:
                raise _too_large(most)
            return message

        try:
            await self.app(scope, bounded, send)
        finally:
            self.service.body_bytes -= held

    def _check_host(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Stops a web page whose name was pointed at this address (DNS rebinding) from asking us."""
        if self.hosts is None:
            return
        host = next((value for name, value in headers if name == b"host"), b"").decode("latin-1")
        name = re.sub(r":\d*$", "", host).strip("[]").lower()
        if name not in self.hosts:
            raise Refusal(
                421,
                "This server answers to its loopback name only. Call it by 127.0.0.1, or start it with an "
                "API key to use it under another name.",
                code="wrong_host",
            )

    def _check_key(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        if self.key is None:
            return
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, key = (given[0] if len(given) == 1 else b"").partition(b" ")
        if not hmac.compare_digest(key.strip(), self.key) or scheme.lower() != b"bearer":
            raise Refusal(
                401,
                "The API key is missing or wrong. Send the header 'Authorization: Bearer <key>'.",
                code="wrong_key",
                headers={"www-authenticate": "Bearer"},
            )


async def _read_away(receive: Receive, *, most: int) -> None:
    """Reads a body nobody wants: closing a connection with unread bytes would destroy the answer."""
    with anyio.move_on_after(1.0):
        while most > 0:
            message = await receive()
            most -= len(message.get("body", b""))
            if not message.get("more_body"):
                return


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"The body is larger than {most:,} bytes.", code="body_too_large")


def _refusal(error: Exception | asyncio.CancelledError, *, request_id: str) -> Refusal:
    """What the client is told about an error; of our own faults only that there was one."""
    message = " ".join(str(error).split("\n"))
    match error:
        case Refusal():
            return error
        case Overloaded():
            wait = {"retry-after": str(math.ceil(error.retry_after_seconds))}
            return Refusal(429, message, code="overloaded", headers=wait)
        case DeadlineExceeded() | Draining():
            code = "draining" if isinstance(error, Draining) else "deadline_exceeded"
            return Refusal(503, message, code=code, headers=SOON)
        case asyncio.CancelledError():  # the server waits no longer
            return Refusal(503, "The server stopped before this was answered.", code="draining", headers=SOON)
        case HTTPException():
            codes = {404: "unknown_route", 405: "wrong_method"}
            code = codes.get(error.status_code, "refused")
            return Refusal(error.status_code, error.detail, code=code, headers=error.headers)
        case RunFailed():  # the batcher has logged it
            pass
        case _:
            logger.error("request %s failed", request_id, exc_info=error)
    return Refusal(500, f"Something broke on our side (request {request_id}).", code="failed")


def _json(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    # json writes floats by repr, the shortest text that reads back to the same bits.
    body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status, dict(headers or {}), media_type="application/json")


# Reading a request.


def _unreadable(message: str, code: str) -> Refusal:
    return Refusal(422, message, code=code)


def _short(value: str) -> str:
    return repr(value if len(value) <= 60 else value[:57] + "...")


def _parse(body: bytes) -> dict[str, Any]:
    """The body as an object with known keys and the right types."""
    try:
        content = json.loads(body.decode("utf-8-sig"))
    except RecursionError:
        raise _unreadable("The body is nested too deeply.", "not_json") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise _unreadable(f"The body is not JSON in UTF-8: {error}", "not_json") from None
    if not isinstance(content, dict):
        raise _unreadable('The body must be an object such as {"input": "some text"}.', "wrong_type")
    for key in content:
        if key not in ClassifyRequest.model_fields:
            hint = did_you_mean(key, ClassifyRequest.model_fields)
            raise _unreadable(f"Unknown key {_short(key)}.{hint}", "unknown_key")
    if not isinstance(content.get("model"), str | None):
        raise _unreadable("'model' must be a text.", "wrong_type")
    if "input" not in content:
        raise _unreadable("'input' is missing: a text or a list of texts.", "missing_input")
    return content


def _texts(given: Any, *, most: int) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list):
        raise _unreadable("'input' must be a text or a list of texts.", "wrong_type")
    if not texts:
        raise _unreadable("'input' is an empty list.", "empty_input")
    if len(texts) > most:
        raise _unreadable(f"'input' holds {len(texts):,} texts; {most:,} are allowed.", "too_many_inputs")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise _unreadable(f"input[{index}] must be a text, not {type(text).__name__}.", "wrong_type")
    return texts


def _encode(predictor: ServablePredictor, text: str, *, where: str) -> Encoded:
    if not text.strip():
        raise _unreadable(f"{where} is empty.", "empty_input")
    if len(text) > predictor.max_characters:
        raise _unreadable(
            f"{where} has {len(text):,} characters; {predictor.max_characters:,} are allowed.",
            "input_too_long",
        )
    if half := HALF_A_PAIR.search(text):
        raise _unreadable(
            f"{where} holds half of a surrogate pair at character {half.start()}: a character was cut apart.",
            "not_text",
        )
    try:
        return predictor.encode(text)
    except InputError as error:
        raise _unreadable(f"{where}: {' '.join(str(error).splitlines())}", "unanswerable") from None


def _read_request(body: bytes, service: Service) -> tuple[Batcher, list[Encoded]]:
    """Parses and tokenizes; runs in a helper thread."""
    content = _parse(body)
    name = content.get("model") or next(iter(service.batchers))
    if name not in service.batchers:
        there = ", ".join(repr(known) for known in service.batchers)
        raise Refusal(404, f"There is no model {_short(name)}. There is: {there}.", code="unknown_model")
    batcher = service.batchers[name]
    texts = _texts(content["input"], most=min(service.limits.inputs, batcher.max_items))
    alone = isinstance(content["input"], str)
    return batcher, [
        _encode(batcher.predictor, text, where="input" if alone else f"input[{index}]")
        for index, text in enumerate(texts)
    ]


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # also keeps foreign web pages from posting without asking first
        raise Refusal(415, "Send the header 'Content-Type: application/json'.", code="wrong_content_type")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.body()
    except TimeoutError:
        raise Refusal(408, "The body came too slowly.", code="too_slow") from None


async def _unless_left(request: Request, work: Awaitable[FloatArray]) -> FloatArray:
    """Awaits the work; cancels it when the client closes the connection."""

    async def closed() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(closed())
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ClientLeft
    finally:
        answer.cancel()
        gone.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


# The routes.


async def classify(request: Request) -> Response:
    """Labels with calibrated probabilities for one text or a list of texts."""
    service: Service = request.app.state.service
    with service.answering():
        body = await _body(request)
        end = time.monotonic() + service.limits.deadline_seconds
        batcher, encoded = await anyio.to_thread.run_sync(
            _read_request, body, service, limiter=service.parsing
        )
        work = batcher.submit(
            encoded, deadline_seconds=end - time.monotonic(), request_id=request.state.request_id
        )
        probabilities = await _unless_left(request, work)
    return _json(_answer(batcher.predictor, encoded, probabilities, request_id=request.state.request_id))


def _answer(
    predictor: ServablePredictor, encoded: Sequence[Encoded], probabilities: FloatArray, *, request_id: str
) -> dict[str, Any]:
    names, threshold = list(predictor.label_names), predictor.threshold
    data = [
        {
            "index": index,
            "label": names[int(row.argmax())],
            "probs": row.tolist(),
            "num_classes": len(names),
            "label_probs": dict(zip(names, row.tolist(), strict=True)),
            "abstained": threshold is not None and bool(row.max() < threshold),
            "truncated": item.truncated,
        }
        for index, (item, row) in enumerate(zip(encoded, probabilities, strict=True))
    ]
    tokens = sum(item.num_tokens for item in encoded)
    return {
        "id": f"classify-{request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": predictor.name,
        "version": predictor.version,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def models(request: Request) -> Response:
    """The models that answer, the first being the one used where none is named."""
    service: Service = request.app.state.service
    data = [
        {
            "id": batcher.predictor.name,
            "object": "model",
            "created": service.started,
            "owned_by": "gptailor",
            "version": batcher.predictor.version,
            "label_names": list(batcher.predictor.label_names),
            "threshold": batcher.predictor.threshold,
            "max_characters": batcher.predictor.max_characters,
        }
        for batcher in service.batchers.values()
    ]
    return _json({"object": "list", "data": data})


async def health() -> Response:
    """Whether the process lives."""
    return _json({"status": "alive"})


async def ready(request: Request) -> Response:
    """Whether new requests are welcome; 503 while the server drains."""
    if request.app.state.service.draining:
        raise Draining("The server is shutting down.")
    return _json({"status": "ready"})


async def metrics(request: Request) -> Response:
    """Counters in Prometheus' text format."""
    content = render_metrics(request.app.state.service.metrics.registry)
    return Response(content, headers={"content-type": CONTENT_TYPE_LATEST})


async def page(request: Request) -> Response:
    """The page to try a model in a browser."""
    html, policy = request.app.state.page
    return Response(html, headers={"content-security-policy": policy}, media_type="text/html")


def _load_page() -> tuple[str, str]:
    """The page, and a policy that lets exactly its own script and style run and nothing be loaded."""
    html = importlib.resources.files("gptailor.serve").joinpath("page.html").read_text("utf-8")

    def digest(tag: str) -> str:
        inline = re.findall(f"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inline
        )

    policy = (
        f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


async def _refuse_route(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such route, wrong method) in our shape."""
    refusal = _refusal(error, request_id=request.state.request_id)
    if refusal.status in (404, 405):
        there = f"There is no {request.method} {_short(request.url.path)}."
        refusal.message = (
            f"{there} The routes are POST /classify, GET /v1/models, /health, /ready, /metrics and /."
        )
    return refusal.response()


def build_app(
    predictors: Sequence[ServablePredictor],
    *,
    api_key: str | None = None,
    queue_items: int = 512,
    deadline_seconds: float = 10.0,
    max_body_bytes: int = 1_000_000,
    max_inputs: int = 256,
    allowed_hosts: Sequence[str] | None = None,
) -> FastAPI:
    """The server as an ASGI app; `app.state.service` can drain and stop it.

    Args:
        predictors: The models; the first answers where a request names none.
        api_key: Guards all but the page itself, `/health` and `/ready`.
        queue_items: Texts that may wait for each model; more are refused with 429.
        deadline_seconds: A text that hasn't started by then is answered with 503.
        max_body_bytes: Larger bodies are refused with 413, counted while they come in.
        max_inputs: Texts in one request.
        allowed_hosts: Names the Host header may hold; None: any.

    Raises:
        GptailorError: No model, two of the same name, or an empty API key.
    """
    if api_key is not None and not api_key.strip():
        raise GptailorError("The API key is empty.", fix="Give a key of some length, or none at all.")
    limits = Limits(deadline_seconds, max_body_bytes, max_inputs)
    service = Service(predictors, queue_items=queue_items, limits=limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.stop()

    app = FastAPI(
        title="Gptailor", docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan
    )  # the usual documentation pages load scripts from elsewhere
    app.state.service, app.state.page = service, _load_page()
    app.add_middleware(Gate, service=service, api_key=api_key, allowed_hosts=allowed_hosts)
    app.add_exception_handler(HTTPException, _refuse_route)
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    body = {
        "content": {"application/json": {"schema": ClassifyRequest.model_json_schema()}},
        "required": True,
    }
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer} for status in (401, 404, 408, 413, 415, 421, 422, 429, 500, 503)
    }
    answers: dict[int | str, dict[str, Any]] = {200: {"model": ClassifyAnswer}, **refusals}
    app.add_api_route(
        "/classify",
        classify,
        methods=["POST"],
        response_model=None,
        responses=answers,
        openapi_extra={"requestBody": body},
    )
    for path, route in (
        ("/v1/models", models),
        ("/health", health),
        ("/ready", ready),
        ("/metrics", metrics),
    ):
        app.add_api_route(path, route, methods=["GET"], response_model=None, responses=refusals)
    app.add_api_route("/", page, methods=["GET"], response_model=None, include_in_schema=False)


# The process.


class _Server(uvicorn.Server):
    """uvicorn, but the first signal drains before anything closes, and the end is an ordinary return."""

    def __init__(
        self, config: uvicorn.Config, *, service: Service, drain_seconds: float, started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.service, self.drain_seconds, self.announce_start = service, drain_seconds, started
        self.loop: asyncio.AbstractEventLoop | None = None
        self.drain_task: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen, then says so."""
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.announce_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """First signal: drain, then leave. Second: leave at once."""
        if self.service.draining or self.loop is None:
            self.should_exit = self.force_exit = True
            return
        self.service.draining = True  # from here on /ready says 503
        self.loop.call_soon_threadsafe(self._start_drain)

    def _start_drain(self) -> None:
        self.drain_task = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await self.service.drain(self.drain_seconds)
        self.should_exit = True


def serve(
    predictors: Sequence[ServablePredictor],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    drain_seconds: float = 10.0,
    announce: Callable[[str], None] = print,
) -> None:
    """Serves until SIGTERM or SIGINT, then answers what was accepted and returns.

    Args:
        predictors: The models; the first answers where a request names none.
        host: Address or name to listen on; only this machine reaches the default.
        port: 0 takes a free one.
        api_key: See `build_app`.
        drain_seconds: How long accepted requests may take after the signal.
        announce: Told where the server listens, and what is unsafe about that.

    Raises:
        GptailorError: The address can't be used.
    """
    private = _is_loopback(host)
    hosts = ["127.0.0.1", "localhost", "::1", host] if private and api_key is None else None
    app = build_app(predictors, api_key=api_key, allowed_hosts=hosts)
    listener = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"

    def started() -> None:
        announce(f"Serving {', '.join(app.state.service.batchers)} at {address} (Ctrl+C stops it)")
        if not private and api_key is None:
            announce("Whoever reaches this address can use it: set an API key to change that.")

    config = uvicorn.Config(
        app,
        http="h11",  # what the tests run with, whatever else is installed
        loop="asyncio",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config, service=app.state.service, drain_seconds=drain_seconds, started=started)
    with listener:
        server.run(sockets=[listener])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65_535:  # the C library would take it modulo 65,536
        raise GptailorError(f"Can't listen on port {port}.", fix="Ports go from 0 to 65535.")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except (OSError, OverflowError, UnicodeError) as error:
        raise GptailorError(
            f"Can't listen on {host!r}: {error}", fix="Use an address of this machine."
        ) from None
    try:
        if os.name == "posix":  # elsewhere this option lets two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise GptailorError(
            f"Can't listen on {host}, port {port}: {reason}.",
            fix="Use another port, or --port 0 for any that is free.",
        ) from None
    return listener
