"""Who may come in and with how much, and the one shape of every refusal."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptailor.serve.batcher import DeadlineExceeded, Draining, Overloaded, RunFailed
from gptailor.serve.service import Service

logger = logging.getLogger("gptailor.serve")

WITHOUT_KEY = {"/", "/health", "/ready"}  # a page that asks for the key, and two yes-or-no answers
TEXT_PATHS = {"/v1/completions", "/v1/chat/completions"}
KNOWN_PATHS = WITHOUT_KEY | TEXT_PATHS | {"/classify", "/v1/models", "/metrics", "/openapi.json"}
CLIENT_LEFT = 499  # nginx's number for it; only in the metrics, nobody is there to read it
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


class Refusal(Exception):
    """An answer other than success, with its status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, dict(headers or {})
        self.key = key  # of the body, which OpenAI calls param

    @property
    def content(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = ERROR_TYPES.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "code": self.code}
        return {"error": error if self.key is None else {**error, "param": self.key}}

    def response(self) -> Response:
        """The refusal in the one shape all of them have."""
        return json_response(self.content, status=self.status, headers=self.headers)


class ClientLeft(Exception):
    """The client closed the connection, so there is nobody to answer."""


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
            status = CLIENT_LEFT  # whatever its stream began with
        except (Exception, asyncio.CancelledError) as error:
            if status != CLIENT_LEFT:
                raise  # half an answer is out; only closing the connection can tell
            refusal = refusal_for(error, request_id=request_id)
            if self.service.draining:
                with suppress(asyncio.CancelledError):  # the end of the drain may come in the middle of it
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


def refusal_for(error: Exception | asyncio.CancelledError, *, request_id: str) -> Refusal:
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


def json_response(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON whose floats read back to the same bits: json writes them by repr."""
    return Response(json_bytes(content), status, dict(headers or {}), media_type="application/json")


def json_bytes(content: Any) -> bytes:
    """JSON in ASCII, without blanks and line ends."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
