"""The process: a listening socket, uvicorn on it, and a stop that answers what was accepted."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptailor.errors import GptailorError
from gptailor.serve.app import build_app
from gptailor.serve.batcher import ServablePredictor
from gptailor.serve.service import Service
from gptailor.serve.writing import ServableAnswerer

HEAD_SECONDS = 20.0  # a connection that hasn't brought a whole request head by then is closed
STALL_SECONDS = 30.0  # a client that lets an answer lie for so long is cut off


class Connection(H11Protocol):
    """uvicorn's connection with a clock on the request's head, and one on a client that doesn't read.

    uvicorn's own setting ends a connection that falls silent after an answer. One that never speaks, or
    sends its headers a byte at a time, would hold its socket forever; one that reads nothing of a stream
    would hold its answer, too.
    """

    clock: asyncio.TimerHandle | None = None
    stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The clock runs from the first moment."""
        super().connection_made(transport)
        self._wind()

    def data_received(self, data: bytes) -> None:
        """A whole head stops the clock; a piece of one doesn't."""
        super().data_received(data)
        self._wind()

    def on_response_complete(self) -> None:
        """After an answer the next head is awaited."""
        super().on_response_complete()
        self._wind()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to time."""
        super().connection_lost(exc)
        self._stop()
        self._go_on()

    def pause_writing(self) -> None:
        """So much lies unread that the answer waits. What is cut off frees its place as one who leaves."""
        super().pause_writing()
        self._wait_for_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._go_on()

    def _wait_for_reading(self) -> None:
        """Who reads, however slowly, isn't cut off: the less lies there, the longer it may take."""
        unread = self.transport.get_write_buffer_size()

        def look() -> None:
            if self.transport.get_write_buffer_size() >= unread:
                self.transport.abort()
            else:
                self._wait_for_reading()

        self.stall = self.loop.call_later(STALL_SECONDS, look)

    def _go_on(self) -> None:
        if self.stall is not None:
            self.stall.cancel()
            self.stall = None

    def _wind(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.transport.is_closing():
            self._stop()
        elif self.clock is None:
            self.clock = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self.clock is not None:
            self.clock.cancel()
            self.clock = None


class DrainingServer(uvicorn.Server):
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
    answerers: Sequence[ServableAnswerer] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    drain_seconds: float = 10.0,
    announce: Callable[[str], None] = print,
) -> None:
    """Serves until SIGTERM or SIGINT, then answers what was accepted and returns.

    Args:
        predictors: The models that classify; the first answers where a request names none.
        answerers: The models that write, likewise.
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
    app = build_app(predictors, answerers=answerers, api_key=api_key, allowed_hosts=hosts)
    listener = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"

    def started() -> None:
        names = ", ".join((*app.state.service.batchers, *app.state.service.workers))
        announce(f"Serving {names} at {address} (Ctrl+C stops it)")
        if not private and api_key is None:
            announce("Whoever reaches this address can use it: set an API key to change that.")

    config = server_config(app)
    server = DrainingServer(config, service=app.state.service, drain_seconds=drain_seconds, started=started)
    with listener:
        server.run(sockets=[listener])


def server_config(app: Any) -> uvicorn.Config:
    """How uvicorn serves an app of ours: quietly, and without a word on what it is."""
    return uvicorn.Config(
        app,
        http=Connection,
        loop="asyncio",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one.

    Raises:
        GptailorError: The address isn't ours, or is in use.
    """
    if not 0 <= port <= 65_535:  # the C library would take it modulo 65,536
        raise GptailorError(f"Can't listen on port {port}.", fix="Ports go from 0 to 65535.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        # asyncio sends small packets at once (TCP_NODELAY) only where the socket names its protocol;
        # otherwise every answer, being two writes, waits 40 ms for the client's acknowledgment.
        listener = socket.socket(family, kind, protocol)
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
