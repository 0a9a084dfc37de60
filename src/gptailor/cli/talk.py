"""What is said to a person on the way, what is asked of them, and the result for a program."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import typer

Result = TypeVar("Result")


@contextlib.contextmanager
def talking() -> Iterator[tuple[Any, Any]]:
    """A console on standard error and a narrator on it."""
    from rich.console import Console

    from gptailor.report.terminal import Narrator

    console = Console(stderr=True, highlight=False)
    narrator = Narrator(console)
    try:
        yield console, narrator
    finally:
        narrator.close()


def emit(result: Mapping[str, Any], as_json: bool) -> None:
    """One JSON object on standard output, where it was asked for."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False))


def make_room(page: Path | None) -> None:
    """The folder of a page, before anything is measured for it."""
    if page is None:
        return
    if page.is_dir():
        raise typer.BadParameter(f"--page {page} is a folder; name a file")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"--page {page} can't be written: {error.strerror or error}") from None


def point(console: Any, line: str) -> None:
    """A line with a path or a command in it: not broken, nothing in it taken for markup."""
    from rich.text import Text

    console.print(Text(line), soft_wrap=True)


def asking(attempt: Callable[[dict[str, str]], Result], console: Any) -> Result:
    """Attempts; where several columns fit and there is a terminal, asks which, and attempts again."""
    from gptailor.data.roles import AmbiguousColumnError
    from gptailor.recipe import DataSettings
    from gptailor.tasks.columns import AmbiguousRoleError

    chosen: dict[str, str] = {}
    while True:
        try:
            return attempt(chosen)
        except (AmbiguousColumnError, AmbiguousRoleError) as error:
            asked = error.role in DataSettings.model_fields and error.role not in chosen
            answer = _ask(error, console) if asked and sys.stdin.isatty() else None
            if answer is None:
                raise
            chosen[error.role] = answer


def _ask(error: Any, console: Any) -> str | None:
    """The column a person chooses for a role; for the text also two as `a+b`. None at the end of input."""
    point(console, error.what)
    while True:
        try:
            answer = console.input(f"Which is the {error.role}? ").strip()
        except EOFError:
            return None
        parts = answer.split("+") if error.role == "text" else [answer]
        if answer in error.candidates or set(parts) <= set(error.candidates):
            return str(answer)
        point(console, f"It is one of {', '.join(error.candidates)}.")
