"""What can go wrong, and how we say it: what happened, where, and what to do.

Every error a person can cause is a `GptailorError`; the command line prints it without a traceback
and leaves with its `exit_code`. Anything else that escapes is our fault and leaves with 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


class GptailorError(Exception):
    """A problem with a person's data, recipe, input or machine.

    Args:
        what: What happened, with the value that caused it.
        where: File and row, key or route, if there is one.
        fix: What to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__("\n".join(part for part in (f"{where}: {what}" if where else what, fix) if part))


class DataError(GptailorError):
    """The rows, columns or labels of a file can't be used."""


class RecipeError(GptailorError):
    """A setting is unknown, has the wrong type or contradicts another."""


class ModelError(GptailorError):
    """A base or a saved model can't be loaded, or isn't what it says it is."""


class RunError(GptailorError):
    """A run folder can't be used as asked."""


class FolderBusyError(RunError):
    """Another process is writing to a run folder."""


class CheckpointError(GptailorError):
    """A checkpoint can't be written or is damaged."""


class NonFiniteError(GptailorError):
    """A loss, gradient or weight became NaN or infinite; the weights were not moved."""


class InputError(GptailorError):
    """What was sent to a predictor or server can't be answered."""


class PromptTooLong(InputError):
    """A prompt leaves no room for an answer, and nothing of it may be left out."""


class MissingExtraError(GptailorError):
    """An optional library isn't installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f"This needs the library {library!r}, which isn't installed.",
            fix=f"Install it with: pip install 'gptailor[{extra}]'",
        )


class Interrupted(GptailorError):
    """A signal asked us to stop; the state is saved."""

    exit_code = 130


@dataclass(frozen=True, slots=True)
class Problem:
    """One of several faults that are collected and then told together."""

    where: str
    what: str


def raise_together(
    problems: Sequence[Problem], *, error: type[GptailorError], summary: str, fix: str, shown: int = 10
) -> None:
    """Raises one error that lists every problem (the first `shown` in full); does nothing for none."""
    if not problems:
        return
    lines = [f"  {p.where}: {p.what}" for p in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  ... and {len(problems) - shown} more")
    raise error("\n".join([summary, *lines]), fix=fix)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """A hint such as " Did you mean 'label'?", or nothing where no candidate is near."""
    near = get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def number_of(count: int, noun: str, plural: str | None = None) -> str:
    """`1 row`, `2,310 rows`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def without_passwords(text: str) -> str:
    """A text whose addresses may be shown: `postgresql://me:secret@host` without the secret."""
    text = re.sub(r"(://[^\s:/@]*):(?!\d+(?:[/?\s]|$))[^\s@]*(?:@[^\s/?#@]*)*@", r"\1@", text)
    return re.sub(r"(?i)([?&]password=)[^&\s]*", r"\1***", text)
