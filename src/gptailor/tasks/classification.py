"""Classification: a text and one of a closed set of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gptailor.errors import DataError, Problem, RecipeError, did_you_mean, number_of, raise_together
from gptailor.tasks.labels import number_in
from gptailor.types import Example, Label, RawExample, Segment

MINIMUM_ROWS = 20
MINIMUM_CLASSES = 2
SLICE = "slice:"  # before the column's name in a row's fields, where scores are wanted by its values


def to_example(row: RawExample, label: Label | None) -> Example:
    """One text whose last token carries the answer; None where nobody knows it."""
    return Example(
        segments=(Segment(row.fields["text"], learn=True),),
        source=row.source,
        row=row.row,
        label=label,
        group=row.fields.get("group", ""),
        time=row.fields.get("time", ""),
        slices=tuple(
            (name.removeprefix(SLICE), value) for name, value in row.fields.items() if name.startswith(SLICE)
        ),
    )


def slice_fields(row: RawExample, columns: Sequence[str]) -> dict[str, str]:
    """A row's values of the columns to score by, under names that can't be a role's."""
    return {f"{SLICE}{column}": row.fields.get(column, "") for column in columns}


def refuse_unknown_slices(wanted: Sequence[str], columns: Sequence[str], *, file: str) -> None:
    """Raises DataError where the tested file lacks a column to score by."""
    for column in wanted:
        if column not in columns:
            raise DataError(
                f"there is no column {column!r} to slice by; it has {', '.join(columns)}."
                f"{did_you_mean(column, columns)}",
                where=file,
                fix="Name one of its columns with --slice COLUMN.",
            )


def collect_labels(carried: Sequence[Sequence[str]]) -> list[str]:
    """The label set of all rows in a stable order: by number where all are numbers, else by text.

    Raises:
        DataError: there are fewer than 20 rows or 2 classes to learn from.
    """
    labels = {label for labels in carried for label in labels}
    if len(carried) < MINIMUM_ROWS or len(labels) < MINIMUM_CLASSES:
        raise DataError(
            f"only {number_of(len(carried), 'usable row')} with {number_of(len(labels), 'class', 'classes')} "
            f"remain after cleaning; at least {MINIMUM_ROWS} rows and {MINIMUM_CLASSES} classes are needed.",
            fix="Look at what was dropped and why with `gptailor check`, and add labelled rows.",
        )
    numbers = {label: number for label in labels if (number := number_in(label)) is not None}
    # 1 and 1.0 are two labels, and a set has no order: which comes first must not be left to it.
    return sorted(labels, key=lambda label: (numbers[label], label) if len(numbers) == len(labels) else label)


def name_labels(
    carried: Sequence[tuple[str, ...]], names: Mapping[str, str], *, flag: str = "--label-names"
) -> list[tuple[str, ...]]:
    """Replaces bare labels by their names, row by row.

    Raises:
        DataError: a label of the file has no name.
    """
    if not names:
        return list(carried)
    unnamed = {label for labels in carried for label in labels} - set(names) - set(names.values()) - {""}
    if unnamed:
        raise DataError(
            f"{flag} has no name for {', '.join(map(repr, sorted(unnamed)))}; it names "
            + ", ".join(f"{bare}={name}" for bare, name in names.items())
            + ".",
            fix=f"Name every label of the file in {flag}.",
        )
    return [tuple(names.get(label, label) for label in labels) for labels in carried]


def refuse_unknown_labels(
    carried: Sequence[Sequence[str]],
    known: Sequence[str],
    *,
    file: str,
    flag: str = "--test-label-names",
    sets: bool = False,
) -> None:
    """Raises DataError if a held-out file has labels that training doesn't know; both sets are shown.

    One label a row is probably another spelling of a known one. In `sets` of labels it is one more label.
    """
    unknown = sorted({label for labels in carried for label in labels} - set(known) - {""})
    if not unknown:
        return
    counts = {label: sum(label in labels for labels in carried) for label in unknown}
    example = ",".join(f"{bare}={name}" for bare, name in zip(unknown, known, strict=False))
    raise_together(
        [Problem(repr(label), f"in {number_of(count, 'row')}") for label, count in counts.items()],
        error=DataError,
        summary=(
            f"{file} has labels that training doesn't know. Training has "
            f"{', '.join(map(repr, known))}; the file also has:"
        ),
        fix="A model can't give what it never saw: take these labels out of the file's cells."
        if sets
        else f"Say which is which, such as {flag} {example} (labels are never guessed), or mend the file.",
    )


def weights_by_label(weights: Mapping[str, float], label_names: Sequence[str]) -> list[float]:
    """One weight per class, 1 where none is given.

    Raises:
        RecipeError: a weight is given to a label that isn't in the data.
    """
    unknown = [label for label in weights if label not in label_names]
    if unknown:
        raise RecipeError(
            f"gives weights to labels that aren't in the data: {', '.join(map(repr, unknown))}."
            f"{did_you_mean(unknown[0], label_names)}",
            where="train.class_weights",
            fix=f"The labels are {', '.join(map(repr, label_names))}.",
        )
    return [float(weights.get(name, 1.0)) for name in label_names]
