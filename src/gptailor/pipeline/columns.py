"""Columns of a file as what they mean: text, label, group, time, slices."""

from __future__ import annotations

from collections.abc import Sequence

from gptailor.data.read import ReadResult, Roles
from gptailor.data.views import each
from gptailor.errors import DataError, did_you_mean
from gptailor.recipe import DataSettings
from gptailor.tasks.classification import slice_fields
from gptailor.types import RawExample, RejectedRow


def take_roles(
    file: ReadResult, roles: Roles, settings: DataSettings, *, slices: Sequence[str] = ()
) -> Sequence[RawExample]:
    """Renames a file's columns to what they mean: text, label, group, time; carries the slice columns."""
    wanted = {"group": settings.split.group, "time": settings.split.time}
    for role, column in wanted.items():
        if column is not None and column not in file.columns:
            raise DataError(
                f"there is no column {column!r} to {'group' if role == 'group' else 'order'} by; "
                f"it has {', '.join(file.columns)}.{did_you_mean(column, file.columns)}",
                where=file.rows[0].source if file.rows else None,
                fix=f"Name one of its columns with --set data.split.{role}=COLUMN.",
            )
    columns = {role: column for role, column in wanted.items() if column is not None}

    def named(row: RawExample) -> RawExample:
        fields = {"text": joined(row, roles.text)}
        if roles.label:
            fields["label"] = row.fields.get(roles.label, "")
        fields |= {role: row.fields.get(column, "") for role, column in columns.items()}
        fields |= slice_fields(row, slices)
        return RawExample(fields, row.source, row.row)

    return each(file.rows, named)


def refuse_unknown_kept(
    wanted: Sequence[str], held: Sequence[RawExample | RejectedRow], *, where: str
) -> None:
    """Raises DataError where the first rows of a file have no column that shall stand beside the answers."""
    columns = list(dict.fromkeys(name for row in held for name in row.fields))
    for column in wanted:
        if column not in columns:
            raise DataError(
                f"there is no column {column!r} to keep; it has {', '.join(columns)}."
                f"{did_you_mean(column, columns)}",
                where=where,
                fix="Name one of its columns with --keep COLUMN.",
            )


def joined(row: RawExample, columns: str) -> str:
    """The text of one column, or of `a+b` joined with a space."""
    if columns in row.fields:
        return row.fields[columns]
    return " ".join(part for name in columns.split("+") if (part := row.fields.get(name, "")))
