"""How much a chat template may do: every step counted, every text measured before it is made."""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

MAX_STEPS = 300_000  # turns of all loops and calls of one rendering; a long chat takes thousands
MAX_CHARACTERS = 12_000_000  # of any text or list
MAX_MADE = 16 * MAX_CHARACTERS  # of all that filters, calls and outputs of one rendering make
MAX_NUMBER = 100_000  # of any whole number handed to a function
MAX_BITS = 4096  # of any whole number that is computed
MAX_SECONDS = 10.0
LIMITED_FORMAT = re.compile(r"\d{5,}|\*")  # a width in a format, which is a size


class LimitError(Exception):
    """A template asks for more than any chat needs."""


@dataclass(slots=True)
class Meter:
    """What one rendering has used so far."""

    deadline: float
    now: datetime
    steps: int = 0
    characters: int = 0
    written: int = 0  # characters that have left the template
    blocks: list[tuple[int, str]] = field(default_factory=list)  # of {% generation %}: start and text


class Meters(threading.local):
    """The rendering that this thread is at."""

    current: Meter | None = None
    deadline: float | None = None  # of all renderings together, where they are to share one


meters = Meters()


def meter() -> Meter:
    """The meter of the rendering that runs."""
    if meters.current is None:  # while a template is compiled
        return Meter(time.monotonic() + MAX_SECONDS, datetime.now())
    return meters.current


@contextmanager
def one_deadline() -> Iterator[None]:
    """Within it all renderings of this thread together have the seconds that one has."""
    meters.deadline = time.monotonic() + MAX_SECONDS
    try:
        yield
    finally:
        meters.deadline = None


def new_meter(now: datetime) -> Meter:
    """The meter of a rendering that begins."""
    deadline = time.monotonic() + MAX_SECONDS if meters.deadline is None else meters.deadline
    return Meter(deadline, now)


def charge(*, steps: int = 0, characters: int = 0) -> None:
    """Counts what was done. Raises LimitError where it is too much."""
    used = meter()
    used.steps += steps
    used.characters += characters
    if used.steps > MAX_STEPS:
        raise LimitError(f"more than {MAX_STEPS:,} steps for one conversation")
    if used.characters > MAX_MADE:
        raise LimitError(f"more than {MAX_MADE:,} characters for one conversation")
    if time.monotonic() > used.deadline:
        raise LimitError(f"more than {MAX_SECONDS:g} seconds for one conversation")


def check_size(size: int) -> None:
    """Raises LimitError for a value that is too large."""
    if size > MAX_CHARACTERS:
        raise LimitError(f"a value of {size:,} characters or items")


def size_of(value: Any) -> int:
    """Characters of a text, items of a collection."""
    return len(value) if isinstance(value, (str, list, tuple, dict, set, range)) else 0


def check_call(name: str, owner: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Refuses what would make something huge, before it is made. `owner` is what a method belongs to."""
    charge(steps=1)
    given = [*arguments, *named.values()]
    for value in given:
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise LimitError(f"{name}() with the number {str(value)[:20]}")
    texts = [value for value in (owner, *given) if isinstance(value, str)]
    if name == "replace" and len(texts) >= 3:
        check_size(len(texts[0]) + texts[0].count(texts[1]) * len(texts[2]))
    elif name == "join":
        check_size(_size_joined(given, sum(map(len, texts))))
    elif name == "sum" and any(isinstance(value, (list, tuple)) for value in given[1:]):
        raise LimitError("sum() of lists")
    elif name in ("indent", "format", "format_map") and texts:
        if LIMITED_FORMAT.search(texts[0]) and name != "indent":
            raise LimitError(f"{name}() with a width")
        values = [*given, *(v for value in given if isinstance(value, dict) for v in value.values())]
        if any(isinstance(value, (list, dict)) for value in values) and name != "format_map":
            raise LimitError(f"{name}() of a list")
        marks = texts[0].count("\n") if name == "indent" else texts[0].count("{") + texts[0].count("%")
        check_size(len(texts[0]) + (1 + marks) * sum(map(size_of, values)))


def _size_joined(given: Sequence[Any], separator: int) -> int:
    """At most so long is what a join makes of its arguments, one of which holds the parts."""
    parts = next((value for value in given if isinstance(value, (list, tuple))), ())
    inner = [value for part in parts if isinstance(part, dict) for value in part.values()]
    return sum(map(size_of, [*parts, *inner])) + separator * max(1, len(parts))


def limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that checks what it is given and what it gives."""
    takes_context = hasattr(function, "jinja_pass_arg")

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        context: tuple[Any, ...]
        given: tuple[Any, ...]
        context, given = (args[:1], args[1:]) if takes_context else ((), args)
        if name == "join" and given and not isinstance(given[0], (str, list, tuple)):
            given = (list(given[0]), *given[1:])  # its parts have to be seen before they are joined
        check_call(name, None, given, kwargs)
        result = function(*context, *given, **kwargs)
        check_size(size_of(result))
        charge(characters=size_of(result))
        return result

    return checked
