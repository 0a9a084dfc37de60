"""Whose turn it is to compute."""

from __future__ import annotations

import threading
from collections import deque


class Turn:
    """A lock that goes round in the order of asking.

    An ordinary lock is mostly taken again by the thread that has just let it go, so a model that writes,
    step after step, would keep the others out.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._taken = False

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False
