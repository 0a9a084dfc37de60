"""Columns by name and by what stands in them, and how to ask which is meant."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import islice

from gptailor.errors import DataError, did_you_mean
from gptailor.types import RawExample


class AmbiguousRoleError(DataError):
    """Several columns fit a role equally well. `role` is what they could be, such as "prompt"."""

    def __init__(self, what: str, *, role: str, candidates: Sequence[str], fix: str) -> None:
        self.role, self.candidates = role, tuple(candidates)
        super().__init__(what, fix=fix)


def refuse_unknown(
    wanted: Sequence[str], columns: Sequence[str], *, purpose: str, flag: str, where: str | None
) -> None:
    """Raises DataError for a column that a file lacks, named with a flag for a purpose such as "slice by"."""
    for column in wanted:
        if column not in columns:
            raise DataError(
                f"there is no column {column!r} to {purpose}; it has {', '.join(columns)}."
                f"{did_you_mean(column, columns)}",
                where=where,
                fix=f"Name one of its columns with {flag}COLUMN.",
            )


def named(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The columns that have one of the names, whatever their case."""
    return [column for column in columns if column.strip().lower() in names]


def textual(columns: Sequence[str], rows: Sequence[RawExample]) -> list[str]:
    """Columns of mostly distinct values of several words."""
    found = []
    for column in columns:
        values = [value for row in rows if (value := row.fields.get(column, "").strip())]
        words = sum(len(value.split()) for value in islice(values, 200)) / max(1, min(200, len(values)))
        if values and words >= 2 and len(set(values)) >= 0.2 * len(values):
            found.append(column)
    return found


def unplain(
    fits: Sequence[str], columns: Sequence[str], rows: Sequence[RawExample], *, role: str
) -> DataError:
    """The error for a role that none or several columns fit."""
    if fits:
        return ambiguous(fits, rows, role=role)
    return DataError(
        f"no column looks like the {role}.",
        fix=f"{listing(columns, rows)}\nName it with --{role} COLUMN.",
    )


def ambiguous(fits: Sequence[str], rows: Sequence[RawExample], *, role: str) -> AmbiguousRoleError:
    """The error that lists the columns that fit a role, and what to type."""
    return AmbiguousRoleError(
        f"{len(fits)} columns could be the {role}:\n{listing(fits, rows)}",
        role=role,
        candidates=fits,
        fix=f"Choose with {' or '.join(f'--{role} {shlex.quote(column)}' for column in fits)}.",
    )


def listing(columns: Sequence[str], rows: Sequence[RawExample]) -> str:
    """Each column with two of its values."""
    lines = []
    for column in columns:
        values = list(dict.fromkeys(row.fields.get(column, "") for row in rows if row.fields.get(column)))[:2]
        shown = ", ".join(repr(value if len(value) <= 40 else value[:37] + "...") for value in values)
        lines.append(f"  {column}: {shown or 'empty'}")
    return "\n".join(lines)
