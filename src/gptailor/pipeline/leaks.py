"""Rows that teach or choose and stand in a given test or validation file, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from gptailor.data.duplicates import is_exact, near_matches
from gptailor.data.views import each, picked
from gptailor.errors import DataError
from gptailor.recipe import DataSettings
from gptailor.types import RawExample, Reason, RejectedRow

Row = TypeVar("Row")
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Leak:
    """A row that teaches or chooses, and the row of a given file that it is, exactly, nearly, or by group."""

    row: RawExample
    held_out: RawExample
    kind: Reason


def remove_leaks(
    train: Sequence[RawExample], held_out: Sequence[RawExample]
) -> tuple[Sequence[RawExample], list[Leak]]:
    """Takes rows that stand in the held-out rows, exactly, nearly, or by their group, out of the others."""
    if not held_out:
        return train, []
    matches = near_matches(each(train, _text), [_text(row) for row in held_out])
    same_text = matches >= 0
    of_group = {group: place for place, row in enumerate(held_out) if (group := _group(row))}
    if of_group:
        by_group = np.array([of_group.get(_group(row), -1) for row in train], matches.dtype)
        matches = np.where(same_text, matches, by_group)
    leaks = []
    for place in np.flatnonzero(matches >= 0).tolist():
        row, found = train[place], held_out[int(matches[place])]
        near: Reason = "leak_exact" if is_exact(_text(row), _text(found)) else "leak_near"
        leaks.append(Leak(row, found, near if same_text[place] else "leak_group"))
    return picked(train, np.flatnonzero(matches < 0)), leaks


def take_test_out_of_validation(
    given: dict[str, Sequence[Row]],
    settings: DataSettings,
    remove: Callable[[Sequence[Row], Sequence[Row]], tuple[Sequence[Row], list[Found]]],
) -> list[Found]:
    """Takes what stands in a given test file out of the given validation rows; returns what it was.

    What chooses the settings must not stand in the test either.

    Raises:
        DataError: no validation row is left.
    """
    if not {"validation", "test"} <= given.keys():
        return []
    given["validation"], leaks = remove(given["validation"], given["test"])
    refuse_all_leaked(given["validation"], settings)
    return leaks


def refuse_all_leaked(validation: Sequence[object], settings: DataSettings) -> None:
    """Raises DataError where no given validation row is without its like in the given test file."""
    if not validation:
        raise DataError(
            "has no row of its own: each is empty, or stands in the test file, exactly or nearly, or has the "
            "group, the context or the opening of a row there.",
            where=settings.validation,
            fix="Give other rows to choose the settings by, or leave it out: a share of the rows is taken.",
        )


def refuse_same_file(settings: DataSettings) -> None:
    """Raises DataError where train, validation and test aren't different files."""
    files = (settings.train, settings.validation, settings.test)
    targets = (settings.target, settings.validation_target, settings.test_target)
    given = [place for place in (*files, *targets) if place is not None]
    places = [Path(location).resolve() for location in given]
    twice = next(
        (location for location, place in zip(given, places, strict=True) if places.count(place) > 1), None
    )
    if twice is not None:
        raise DataError(
            "is given twice: train, validation and test must be different files.",
            where=twice,
            fix="Leave it out as --test or --validation; a share of the rows is taken instead.",
        )


def rejected(leaks: Sequence[Leak]) -> list[RejectedRow]:
    """The leaks as rows that aren't used."""
    return [RejectedRow(leak.row.source, leak.row.row, leak.kind, _says(leak)) for leak in leaks]


def _says(leak: Leak) -> str:
    if leak.kind == "leak_group":
        return f"of the group {_group(leak.row)!r}, as {leak.held_out.source} row {leak.held_out.row} is"
    same = "the same text as" if leak.kind == "leak_exact" else "nearly the same text as"
    return f"{same} {leak.held_out.source} row {leak.held_out.row}"


def _text(row: RawExample) -> str:
    return row.fields["text"]


def _group(row: RawExample) -> str:
    return row.fields.get("group", "").strip()
