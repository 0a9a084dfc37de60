"""A request that is being answered, between the thread that writes and the coroutine that reads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptailor.models.decode import Event


class Ticket:
    """An admitted request. The worker puts events in from its thread; one coroutine takes them out."""

    def __init__(self, *, deadline: float, request_id: str) -> None:
        self.deadline, self.request_id = deadline, request_id
        self.begun = self.over = False
        self._loop = asyncio.get_running_loop()
        self._events: list[tuple[int, Event]] = []
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    async def take(self) -> list[tuple[int, Event]]:
        """What has come since the last time, at least one event, each with the place of its answer.

        Raises:
            Exception: what `fail` was told, once all that came before is taken.
        """
        await self._changed.wait()
        events, self._events = self._events, []
        if not events:
            assert self._error is not None
            raise self._error
        if self._error is None:
            self._changed.clear()
        return events

    def put(self, events: Sequence[tuple[int, Event]]) -> None:
        """From any thread."""
        self._tell(events, None)

    def fail(self, error: Exception) -> None:
        """Ends the request. From any thread; only the first error counts."""
        self.over = True
        self._tell((), error)

    def _tell(self, events: Sequence[tuple[int, Event]], error: Exception | None) -> None:
        def tell() -> None:
            self._events.extend(events)
            self._error = self._error or error
            self._changed.set()

        with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(tell)
