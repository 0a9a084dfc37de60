"""Templates over columns: `Translate: {source}` and nothing cleverer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gptailor.errors import DataError, RecipeError, did_you_mean

TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True, slots=True)
class Template:
    """How the columns of a row become a prompt and its answer.

    `{column}` stands for the value of a column, its outer white space taken off; `{{` and `}}` stand for
    braces. Where the column `optional` is empty, `short` is the prompt.
    """

    prompt: str
    completion: str
    optional: str = ""
    short: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """A literal and the column whose value follows it ("": none does)."""

    literal: str
    column: str = ""


def parse_pattern(pattern: str, columns: Sequence[str], *, where: str) -> tuple[Piece, ...]:
    """One side of a template as pieces.

    Args:
        pattern: Such as `Question: {question}`.
        columns: The columns there are.
        where: The setting or option it came from, for the message.

    Raises:
        RecipeError: a brace has no partner, or there is no such column.
    """
    pieces: list[Piece] = []
    literal, place = "", 0
    for match in TOKEN.finditer(pattern):
        literal += pattern[place : match.start()]
        place = match.end()
        if match[0] in ("{{", "}}"):
            literal += match[0][0]
        elif match[1] is None:
            raise RecipeError(
                f"the template {pattern!r} has a brace without its partner at character {match.start() + 1}.",
                where=where,
                fix="Write {column} for a value, and {{ or }} for a brace.",
            )
        elif match[1] not in columns:
            raise RecipeError(
                f"the template {pattern!r} names a column {match[1]!r}, which isn't there."
                f"{did_you_mean(match[1], columns)}",
                where=where,
                fix=f"Columns are: {', '.join(columns)}. For a brace that is text write {{{{ or }}}}.",
            )
        else:
            pieces.append(Piece(literal, match[1]))
            literal = ""
    return (*pieces, Piece(literal + pattern[place:]))


def columns_of(pieces: Sequence[Piece]) -> tuple[str, ...]:
    """The columns of a parsed pattern, each once, in order."""
    return tuple(dict.fromkeys(piece.column for piece in pieces if piece.column))


def fill(pieces: Sequence[Piece], values: Mapping[str, str]) -> str:
    """The text of a parsed pattern. Values are put in as they are, whatever braces they hold."""
    return "".join(piece.literal + (values[piece.column].strip() if piece.column else "") for piece in pieces)


def bind(template: Template, columns: Mapping[str, str]) -> Template:
    """A template over role names as one over the columns that play them.

    Raises:
        DataError: a column's own name holds a brace, so no template can name it.
    """
    unnameable = next((column for column in columns.values() if "{" in column or "}" in column), None)
    if unnameable is not None:
        raise DataError(
            f"the column {unnameable!r} can't stand in a template: its name holds a brace.",
            fix="Rename the column.",
        )
    if template.optional and template.optional not in columns:
        template = replace(template, prompt=template.short, optional="", short="")

    def renamed(pattern: str) -> str:
        pieces = parse_pattern(pattern, list(columns), where="template")
        return "".join(
            escape(piece.literal) + (f"{{{columns[piece.column]}}}" if piece.column else "")
            for piece in pieces
        )

    return replace(
        template,
        prompt=renamed(template.prompt),
        completion=renamed(template.completion),
        optional=columns.get(template.optional, ""),
        short=renamed(template.short),
    )


def escape(literal: str) -> str:
    """A literal as it is written in a template."""
    return literal.replace("{", "{{").replace("}", "}}")
