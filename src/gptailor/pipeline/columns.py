"""Columns of a file as what they mean: text, label, group, time, slices."""

from __future__ import annotations

from collections.abc import Sequence

from gptailor.data.read import ReadResult, Roles
from gptailor.data.views import each
from gptailor.recipe import DataSettings, SplitSettings
from gptailor.tasks.classification import slice_fields
from gptailor.tasks.columns import refuse_unknown
from gptailor.types import RawExample, RejectedRow

MOST_NAMED = 8  # columns that one line names


def take_roles(
    file: ReadResult, roles: Roles, settings: DataSettings, *, slices: Sequence[str] = ()
) -> Sequence[RawExample]:
    """Renames a file's columns to what they mean: text, label, group, time; carries the slice columns."""
    refuse_unknown_of_split(settings.split, file.columns, where=file.rows[0].source if file.rows else None)
    roles_of_split = {"group": settings.split.group, "time": settings.split.time}
    columns = {role: column for role, column in roles_of_split.items() if column is not None}

    def named(row: RawExample) -> RawExample:
        fields = {"text": joined(row, roles.text)}
        if roles.label:
            fields["label"] = row.fields.get(roles.label, "")
        fields |= {role: row.fields.get(column, "") for role, column in columns.items()}
        fields |= slice_fields(row, slices)
        return RawExample(fields, row.source, row.row)

    return each(file.rows, named)


def refuse_unknown_of_split(split: SplitSettings, columns: Sequence[str], *, where: str | None) -> None:
    """Raises DataError for a column to group or order by that isn't there."""
    for role, purpose, column in (("group", "group by", split.group), ("time", "order by", split.time)):
        if column is not None:
            flag = f"--set data.split.{role}="
            refuse_unknown([column], columns, purpose=purpose, flag=flag, where=where)


def notes_on_unread(
    columns: Sequence[str], read: Sequence[str], settings: SplitSettings, *, slices: Sequence[str] = ()
) -> list[str]:
    """A line with the columns that are left lying, if any; the split's and the slices' are read, too."""
    read = [*read, *slices, settings.group or "", settings.time or ""]
    left = [column for column in columns if column not in read]
    if not left:
        return []
    more = f" and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else ""
    return [f"not read: {', '.join(left[:MOST_NAMED])}{more}"]


def refuse_unknown_kept(
    wanted: Sequence[str], held: Sequence[RawExample | RejectedRow], *, where: str
) -> None:
    """Raises DataError where the first rows of a file have no column that shall stand beside the answers."""
    columns = list(dict.fromkeys(name for row in held for name in row.fields))
    refuse_unknown(wanted, columns, purpose="keep", flag="--keep ", where=where)


def value_of(row: RawExample, column: str | None) -> str:
    """A row's value of a column; "" where none is asked for, or it has none."""
    return "" if column is None else row.fields.get(column, "")


def parts_of(text: str, columns: Sequence[str]) -> list[str]:
    """The column or columns that a text is made of: `a+b` is two, unless one has that name."""
    return [text] if text in columns else text.split("+")


def joined(row: RawExample, columns: str) -> str:
    """The text of one column, or of `a+b` joined with a space."""
    if columns in row.fields:
        return row.fields[columns]
    return " ".join(part for name in columns.split("+") if (part := row.fields.get(name, "")))
