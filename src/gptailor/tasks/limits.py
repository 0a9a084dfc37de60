"""How much a chat template may do: every step counted, every text measured before it is made."""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set, ValuesView
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
MAX_COMPARED = 10**9  # characters of a text times those looked for at each, where Python compares them all
MAX_DEPTH = 100  # of lists in lists that are looked through
ITEM = 8  # what an item of a collection counts, in characters
LARGEST_FLOAT = 320  # digits of 1e308, written out
LIMITED_FORMAT = re.compile(r"\d{5,}|\*")  # a width in a format, which is a size
WIDTH = re.compile(r"\d+")
INNER_WIDTH = re.compile(r"\{[^{}]*:[^{}]*\{")  # {0:{1}}: a width that is an argument
NESTED = (list, tuple, Set, ValuesView)  # what holds values, but for dicts
CONSUMERS = ("join", "sort", "unique", "min", "max", "sum")  # which look through all they're given
QUADRATIC = {"trim", "strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"}
SHALLOW = {  # filters that don't look into the values they're given
    "count", "d", "default", "first", "items", "last", "length", "list", "map", "reject", "rejectattr",
    "reverse", "select", "selectattr",
}  # fmt: skip
# What some take besides what they work on, in order; as texts they are measured.
PARAMETERS = {
    "replace": ("old", "new", "count"),
    "join": ("d", "attribute"),
    "indent": ("width", "first", "blank"),
}
TEXTS = ("old", "new", "d")


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


def len_of(value: Any) -> int:
    """Items of whatever has a length."""
    return len(value) if hasattr(value, "__len__") else 0


def charge_made(value: Any) -> None:
    """Counts a value that was just made."""
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise LimitError("a number without end")
    check_size(size_of(value))
    charge(characters=size_of(value) * (ITEM if isinstance(value, (list, tuple, dict)) else 1))


def weigh(value: Any, *, per_item: int = ITEM, per_level: int = 0) -> int:
    """About as many characters as a value has when it is written out, and steps to compare it.

    Not what it takes in memory: thirty lists, each of which holds the one before twice, are a billion items.

    Raises:
        LimitError: it is too large, or too deep, to be looked through.
    """
    weight, depth, level = 0, 0, [value]
    while level:
        below: list[Any] = []
        for item in level:
            weight += per_item + depth * per_level
            if isinstance(item, str):
                weight += len(item)
            elif isinstance(item, int):
                weight += item.bit_length() // 3
            elif isinstance(item, (dict, *NESTED)):
                inside = 2 * len(item) if isinstance(item, dict) else len(item)
                check_size(weight + per_item * (len(below) + inside))
                below.extend(item)
                below.extend(item.values() if isinstance(item, dict) else ())
        check_size(weight)
        level, depth = below, depth + 1
        if level and depth > MAX_DEPTH:
            raise LimitError(f"a value nested more than {MAX_DEPTH} deep")
    return weight


def check_call(name: str, owner: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Refuses what would make something huge, before it is made. `owner` is what a method belongs to."""
    charge(steps=1)
    given = [*arguments, *named.values()]
    for value in given:
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise LimitError(f"{name}() with the number {str(value)[:20]}")
    texts = [value for value in (owner, *given) if isinstance(value, str)]
    if name in PARAMETERS:
        _check_text(name, owner, arguments, named)
    elif name in QUADRATIC and len(texts) >= 2 and len(texts[0]) * len(texts[1]) > MAX_COMPARED:
        raise LimitError(f"{name}() with a text of {len(texts[1]):,} characters")
    elif name == "sum" and any(isinstance(value, (list, tuple)) for value in given[1:]):
        raise LimitError("sum() of lists")
    elif name in ("format", "format_map"):
        if owner is None and not (given and isinstance(given[0], str)):
            raise LimitError(f"{name}() of what is no text")
        _check_format(name, texts[0], given)


def _check_text(name: str, owner: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """How large `replace`, `join` and `indent` make a text, as a filter or as a text's method."""
    if isinstance(owner, str):  # of a method: `join` is one of what stands between
        arguments = [*arguments, owner] if name == "join" else [owner, *arguments]
    worked_on = arguments[0] if arguments else next(iter(named.values()), "")
    values = {**dict(zip(PARAMETERS[name], arguments[1:], strict=False)), **named}
    for key in TEXTS:
        if not isinstance(values.get(key, ""), str):
            raise LimitError(f"{name}() with what is no text")
    if name == "join":
        check_size(weigh(worked_on) + len(values.get("d", "")) * len_of(worked_on))
        return
    weight = weigh(worked_on)
    text = worked_on if isinstance(worked_on, str) else str(worked_on)
    if name == "replace":
        check_size(weight + text.count(values.get("old", "")) * len(values.get("new", "")))
    else:
        width = values.get("width", 4)
        wide = len(width) if isinstance(width, str) else int(width)
        check_size(weight + (1 + len(text.splitlines())) * wide)


def _check_format(name: str, text: str, given: Sequence[Any]) -> None:
    if LIMITED_FORMAT.search(text) or INNER_WIDTH.search(text.replace("{{", "")):
        raise LimitError(f"{name}() with a width")
    values = [*given, *(v for value in given if isinstance(value, dict) for v in value.values())]
    if any(isinstance(value, (list, dict)) for value in values) and name != "format_map":
        raise LimitError(f"{name}() of a list")
    longest = sum(map(weigh, values)) + LARGEST_FLOAT * any(isinstance(value, float) for value in values)
    widths = sum(int(width) for width in WIDTH.findall(text))
    check_size(len(text) + widths + (1 + text.count("{") + text.count("%")) * longest)


def consumable(name: str, given: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments whose first one can be looked at before it is used up."""
    if given and name in CONSUMERS and not isinstance(given[0], (str, dict, range, *NESTED)):
        return list(given[0]), *given[1:]
    return tuple(given)


def limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that checks what it is given and what it gives."""
    takes_context = hasattr(function, "jinja_pass_arg")

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        context: tuple[Any, ...]
        given: tuple[Any, ...]
        context, given = (args[:1], args[1:]) if takes_context else ((), args)
        if given and name not in SHALLOW and isinstance(given[0], Iterator):
            given = (list(given[0]), *given[1:])
        given = consumable(name, given)
        check_call(name, None, given, kwargs)
        if name not in SHALLOW:
            weigh([*given, *kwargs.values()])
        result = function(*context, *given, **kwargs)
        charge_made(result)
        return result

    return checked


def weighed(function: Callable[..., Any]) -> Callable[..., Any]:
    """A test with a check of what it is given: some look through all of it, and `select` asks them often."""

    @functools.wraps(function)
    def checked(*given: Any) -> Any:
        charge(steps=1, characters=weigh(given))
        return function(*given)

    return checked


def numeric(function: Callable[..., Any]) -> Callable[..., Any]:
    """A test of numbers alone: of a text, `odd` would be a format."""

    @functools.wraps(function)
    def checked(*given: Any) -> Any:
        if not all(isinstance(value, (int, float)) for value in given):
            raise LimitError("a remainder of what is no number")
        return function(*given)

    return checked
