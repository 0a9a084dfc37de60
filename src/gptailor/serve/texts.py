"""The routes whose answers are written: whole, or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gptailor.serve.limits import ClientLeft, json_bytes, json_response, refusal_for
from gptailor.serve.openai import Asked, read_chat, read_completion
from gptailor.serve.requests import read_body, until_left
from gptailor.serve.service import Service
from gptailor.serve.shapes import Json, Teller
from gptailor.serve.ticket import Ticket

if TYPE_CHECKING:
    from gptailor.models.decode import Event

Read = Callable[[bytes, Service], Asked]
SILENT_SECONDS = 15.0  # after which a stream says that it goes on: what stands between may close it
COMMENT = b": the answer goes on\n\n"
STREAM = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}


async def completions(request: Request) -> Response:
    """How the model goes on with a prompt, in OpenAI's shape."""
    return _Written(request, read_completion)


async def chat_completions(request: Request) -> Response:
    """The model's next turn in a conversation, in OpenAI's shape."""
    return _Written(request, read_chat)


class _Written(Response):
    """Reads the request and writes the answer itself, so that a stream counts as accepted until its end."""

    def __init__(self, request: Request, read: Read) -> None:
        super().__init__()
        self.request, self.read = request, read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service: Service = scope["app"].state.service
        with service.answering():
            body = await read_body(self.request)
            asked = await anyio.to_thread.run_sync(self.read, body, service, limiter=service.parsing)
            teller = Teller(asked, request_id=self.request.state.request_id)
            async with self._ticket(asked, service.limits.begin_seconds) as ticket:
                if asked.stream:
                    await self._stream(ticket, teller, send)
                    return
                while teller.missing:
                    for place, event in await ticket.take():
                        teller.add(place, event)
        response = await anyio.to_thread.run_sync(lambda: json_response(teller.whole()))
        await response(scope, receive, send)

    @asynccontextmanager
    async def _ticket(self, asked: Asked, seconds: float) -> AsyncIterator[Ticket]:
        """A ticket that fails where the client leaves."""
        request_id = self.request.state.request_id
        with asked.worker.writing(asked.requests, deadline_seconds=seconds, request_id=request_id) as ticket:
            leaving = asyncio.ensure_future(self._watch(ticket))
            try:
                yield ticket
            finally:
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)

    async def _watch(self, ticket: Ticket) -> None:
        await until_left(self.request)
        ticket.fail(ClientLeft())

    async def _stream(self, ticket: Ticket, teller: Teller, send: Send) -> None:
        events = await ticket.take()  # what fails before this is still answered with its own status
        headers = [(name.encode(), value.encode()) for name, value in STREAM.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            while True:
                pieces = [piece for place, event in events for piece in teller.pieces(place, event)]
                await send(_sent(*pieces))
                if not teller.missing:
                    break
                events = await _next(ticket, send)
            end = b"".join(map(_line, teller.last_pieces())) + b"data: [DONE]\n\n"
        except ClientLeft:
            raise
        except (Exception, asyncio.CancelledError) as error:  # the status is out: only the stream can tell
            refusal = refusal_for(error, request_id=self.request.state.request_id)
            end = _line(refusal.content)
        await send({"type": "http.response.body", "body": end})


async def _next(ticket: Ticket, send: Send) -> list[tuple[int, Event]]:
    """What comes next; until it does, comments, which no client takes for a part of the answer."""
    while True:
        try:
            return await asyncio.wait_for(ticket.take(), SILENT_SECONDS)
        except TimeoutError:
            await send({"type": "http.response.body", "body": COMMENT, "more_body": True})


def _sent(*pieces: Json) -> Json:
    return {"type": "http.response.body", "body": b"".join(map(_line, pieces)), "more_body": True}


def _line(content: Json) -> bytes:
    return b"data: " + json_bytes(content) + b"\n\n"
