"""Label cells of rows as the rest of the road reads them, and back to words."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gptailor.data.clean import CleanResult
from gptailor.data.views import Mapped, each
from gptailor.errors import DataError, RecipeError, number_of
from gptailor.evaluate.numbers import quantile_bins
from gptailor.models.readout import number_text
from gptailor.recipe import DataSettings, TrainSettings
from gptailor.tasks.classification import MINIMUM_ROWS, collect_labels, name_labels
from gptailor.tasks.labels import LOOKED_AT, label_cell, labels_in, labels_of, names_as_texts, number_in
from gptailor.types import AnswerForm, Example, RawExample, RejectedRow, TokenizedExample

SHOWN = 6
MANY_NUMBERS = 30  # different ones; fewer may be classes
PARTING = (";", "|", ",")  # what stands between labels in tables
FEWEST_SETS, LEAST_SETS = 5, 0.02  # cells, and of all, that look like several labels
MISSING = {"nan", "null", "n/a", "#n/a", "<na>"}  # what programs write where there is nothing


def read_labels(
    rows: Sequence[RawExample],
    form: AnswerForm,
    names: Mapping[str, str],
    *,
    flag: str = "--label-names",
    known: Collection[str] = (),
) -> tuple[Sequence[RawExample], list[RejectedRow]]:
    """Rows with their label cell in one spelling, and those whose cell isn't the number it should be.

    Labels that training `known` need no name.

    Raises:
        DataError: a label of the file has no name, though others have, or no cell holds a number.
    """
    if form.kind == "single" and not names and rows and "label" in rows[0].fields:
        return rows, []
    if form.kind != "score":
        given = list(dict.fromkeys(row.fields.get("label") for row in rows))
        carried = [labels_in(cell or "", form) for cell in given]
        carried = name_labels(carried, names, flag=flag, known=known)
        cells = {cell: label_cell(labels, form) for cell, labels in zip(given, carried, strict=True)}
        if all(cell == changed for cell, changed in cells.items()):
            return rows, []
        return each(rows, lambda row: _with_cell(row, cells[row.fields.get("label")])), []
    kept, rejected = [], []
    for row in rows:
        cell = row.fields.get("label", "")
        number = number_in(cell)
        if number is None and cell.strip():
            detail = f"{cell!r} is not a number"
            rejected.append(RejectedRow(row.source, row.row, "no_label", detail))
        else:
            kept.append(_with_cell(row, "" if number is None else repr(number)))
    if len(rejected) > len(kept):
        raise DataError(
            f"{number_of(len(rejected), 'row')} of {len(rows):,} hold no number: {rejected[0].detail}.",
            where=f"{rejected[0].source} row {rejected[0].row}",
            fix="Name the column of numbers with --label COLUMN, or leave task_answer=score out.",
        )
    return kept, rejected


def cells_of(rows: Sequence[RawExample]) -> list[str]:
    """The label cells; equal ones are one object."""
    return [sys.intern(row.fields["label"]) for row in rows]


def classes_of(cells: Sequence[str], form: AnswerForm, column: str) -> list[str]:
    """The names of the head's outputs: the labels, or the column of the numbers.

    Raises:
        DataError: there is too little to learn from.
    """
    if form.kind != "score":
        return collect_labels(Mapped(cells, lambda cell: labels_of(cell, form)))
    distinct = set(cells)
    if len(cells) < MINIMUM_ROWS or len(distinct) < 2:
        raise DataError(
            f"only {number_of(len(cells), 'usable row')} with {number_of(len(distinct), 'different number')} "
            f"remain after cleaning; at least {MINIMUM_ROWS} rows and 2 numbers are needed.",
            fix="Check which columns are text and number, and add rows.",
        )
    return [column]


def strata_of(cells: list[str], form: AnswerForm) -> list[str] | list[tuple[str, ...]]:
    """What the split deals out evenly: the label, all labels of a row, or the fifth its number is in."""
    if form.kind == "multiple":
        return [labels_of(cell, form) for cell in cells]
    if form.kind == "score":
        return [str(bin_) for bin_ in quantile_bins(np.array([float(cell) for cell in cells]))]
    return cells


def without_labels(
    rows: Sequence[RawExample], form: AnswerForm, rare: Collection[str]
) -> Sequence[RawExample]:
    """Takes labels that training found too rare out of sets; a row that carried no other loses its cell."""
    if form.kind != "multiple" or not rare:
        return rows
    found = []
    for row in rows:
        carried = labels_of(row.fields["label"], form)
        left = [label for label in carried if label not in rare]
        lost = bool(carried) and not left
        found.append(_with_cell(row, "" if lost or not row.fields["label"] else label_cell(left, form)))
    return found


def hint_of_numbers(rows: Sequence[RawExample], form: AnswerForm) -> str:
    """What to type where the labels look like numbers to be predicted; a number is never taken unasked."""
    cells: set[str] = set()
    for row in rows if form.kind == "single" else ():
        cell = row.fields["label"].strip()
        if cell and number_in(cell) is None:
            return ""
        cells.add(cell)
    cells.discard("")
    if len(cells) < MANY_NUMBERS:
        return ""
    return (
        f"the labels are {len(cells):,} different numbers, each taken as a class of its own; "
        "--set task_answer=score learns the number itself"
    )


def hint_of_sets(rows: Sequence[RawExample], form: AnswerForm) -> str:
    """What to type where label cells look like several labels that one sign parts; some cells alone prove
    nothing, so none is divided unasked.
    """
    looked_at = rows[:LOOKED_AT] if form.kind == "single" else []
    cells = [row.fields["label"].strip() for row in looked_at]
    alone = {cell.casefold() for cell in cells}
    for sign in PARTING:
        parts = [[one.strip().casefold() for one in cell.split(sign)] for cell in cells if sign in cell]
        known = sum(alone.issuperset(ones) for ones in parts)
        if known >= FEWEST_SETS and known >= LEAST_SETS * len(cells):
            flag = shlex.quote(f"data.label_separator={sign}")
            return (
                f"{number_of(known, 'label')} of {len(cells):,} are others with {sign!r} between, each taken "
                f"as a class of its own; --set {flag} reads several labels a row"
            )
    return ""


def notes_on(cells: Sequence[str], form: AnswerForm, cleaned: CleanResult, *, asked: bool) -> Iterator[str]:
    """What was made of the label cells, in words."""
    if form.kind == "multiple":
        counts = Counter(len(labels_of(cell, form)) for cell in cells)
        total = sum(size * count for size, count in counts.items())
        told = f"several labels a row: {total / max(1, len(cells)):.2f} on average"
        told += f", {max(counts, default=0)} at most, none in {number_of(counts[0], 'row')}"
        told += f"; {form.separator!r} stands between them" if form.separator else ""
        yield told if asked else f"{told}; --set task_answer=single takes each cell as one label"
    if cleaned.rare_labels:
        rare = sorted(cleaned.rare_labels, key=lambda label: (-cleaned.rare_labels[label], label))
        more = f" and {len(rare) - SHOWN} more" if len(rare) > SHOWN else ""
        shown = ", ".join(f"{label} ({cleaned.rare_labels[label]})" for label in rare[:SHOWN])
        their = "its" if len(rare) == 1 else "their"
        what = f"taken out of {their} rows" if form.kind == "multiple" else f"dropped with {their} rows"
        yield f"{number_of(len(rare), 'label is', 'labels are')} too rare to learn and {what}: {shown}{more}"
    if form.kind == "single" and (missing := Counter(cell for cell in cells if cell.casefold() in MISSING)):
        shown = ", ".join(f"{cell!r} ({number_of(count, 'row')})" for cell, count in missing.most_common())
        yield f"labels that read as if there were none: {shown}; where that is so, leave the cells empty"
    if form.kind == "score":
        numbers = np.array([float(cell) for cell in cells])
        low, middle, high = (number_text(float(edge)) for edge in np.quantile(numbers, [0, 0.5, 1]))
        yield f"the label is a number, from {low} to {high}, half of them up to {middle}"


def taught_names(label_names: Sequence[str], form: AnswerForm, settings: DataSettings) -> list[str]:
    """The labels' names as the texts that teach beside the rows; none where they say nothing."""
    return names_as_texts(label_names) if form.kind == "single" and settings.teach_names else []


def notes_on_names(label_names: Sequence[str], form: AnswerForm, settings: DataSettings) -> Iterator[str]:
    """That the labels' names teach, where they do."""
    texts = taught_names(label_names, form, settings)
    if texts:
        shown = ", ".join(map(repr, texts[:SHOWN])) + (", ..." if len(texts) > SHOWN else "")
        yield (
            f"the labels' names teach, too, as one more text each: {shown} "
            "(--set data.teach_names=false leaves them out)"
        )


def answers_of(rows: Sequence[Example | TokenizedExample]) -> Any:
    """Their answers as an array: classes (N,), 0 and 1 for every label (N, C), or numbers (N,)."""
    return np.array([row.label for row in rows])


def _with_cell(row: RawExample, cell: str) -> RawExample:
    if row.fields.get("label") == cell:
        return row
    return dataclasses.replace(row, fields={**row.fields, "label": cell})


def refuse_of_classes(settings: TrainSettings) -> None:
    """Raises RecipeError for a setting that needs one label a row, where rows have several, or a number."""
    for name, given in (
        ("class_weights", settings.class_weights != "none"),
        ("label_smoothing", settings.label_smoothing > 0),
    ):
        if given:
            raise RecipeError(
                "is for rows with one label each; these have several, or a number.",
                where=f"train.{name}",
                fix=f"Leave train.{name} out.",
            )
