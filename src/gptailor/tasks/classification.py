"""Classification: a text and one of a closed set of labels."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence, Set

from gptailor.errors import DataError, Problem, RecipeError, did_you_mean, number_of, raise_together
from gptailor.tasks.columns import refuse_unknown
from gptailor.tasks.labels import number_in
from gptailor.types import Example, Label, RawExample, Segment

MINIMUM_ROWS = 20
MINIMUM_CLASSES = 2
MOST_SHOWN, LONGEST_SHOWN = 20, 60  # labels in a message, and their characters
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
    refuse_unknown(wanted, columns, purpose="slice by", flag="--slice ", where=file)


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
            fix="Check which columns are text and label, and add labelled rows.",
        )
    numbers = {label: number for label in labels if (number := number_in(label)) is not None}
    # 1 and 1.0 are two labels, and a set has no order: which comes first must not be left to it.
    return sorted(labels, key=lambda label: (numbers[label], label) if len(numbers) == len(labels) else label)


def name_labels(
    carried: Sequence[tuple[str, ...]],
    names: Mapping[str, str],
    *,
    flag: str = "--label-names",
    known: Collection[str] = (),
) -> list[tuple[str, ...]]:
    """Replaces bare labels by their names, row by row; those that training `known` need none.

    Raises:
        DataError: a label of the file has no name.
    """
    if not names:
        return list(carried)
    named, spelled = {*names, *names.values(), ""}, {label.casefold() for label in known}
    given = {label for labels in carried for label in labels} - named
    unnamed = {label for label in given if " ".join(label.split()).casefold() not in spelled}
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
    why_gone: Callable[[Set[str]], Mapping[str, str]] = lambda _: {},
) -> None:
    """Raises DataError if a held-out file has labels that training doesn't know; both sets are shown.

    One label a row is probably another spelling of a known one. In `sets` of labels it is one more label.
    Of labels that the training rows had, and that cleaning took, `why_gone` tells what became of them.
    """
    learned = {*known, ""}
    counts = Counter(label for labels in carried for label in {*labels} - learned)
    if not counts:
        return
    gone = why_gone(counts.keys())
    strangers = sorted(counts.keys() - gone.keys())
    fixes = ["Label more rows of what training dropped, or take its rows out of the file."] if gone else []
    if strangers and sets:
        fixes.append("A model can't give what it never saw: take these labels out of the file's cells.")
    elif strangers and len(strangers[0]) > LONGEST_SHOWN:
        fixes.append("These are texts: look which of its columns holds the labels.")
    elif strangers:
        pairs = shlex.quote(",".join(f"{bare}=NAME" for bare in strangers[:3]))
        fixes.append(
            f"Say which is which, as in {flag} {pairs}, each NAME a known label (none is guessed), or mend "
            "the file."
        )
    shown = [*map(_quoted, known[:MOST_SHOWN]), *(["..."] if len(known) > MOST_SHOWN else [])]
    raise_together(
        [
            Problem(_quoted(label), f"in {number_of(count, 'row')}{gone.get(label, '')}")
            for label, count in sorted(counts.items())
        ],
        error=DataError,
        summary=(
            f"{file} has labels that training doesn't know. Training has {', '.join(shown)}; "
            "the file also has:"
        ),
        fix=" ".join(fixes),
    )


def _quoted(label: str) -> str:
    """A label as shown in a message; one that is a whole text, cut."""
    return repr(label if len(label) <= LONGEST_SHOWN else f"{label[:LONGEST_SHOWN]}...")


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
