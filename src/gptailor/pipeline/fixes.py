"""A person's corrections of labels: suspects.csv with its column `correction` filled in.

A correction is a new label or `drop`; an empty cell leaves the row as it is. Rows are known by source and
row, and their text is compared, so that corrections of a file that changed meanwhile are refused.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptailor.data.ledger import undo_defusing
from gptailor.data.read import read_rows
from gptailor.data.repair import repair
from gptailor.errors import DataError, did_you_mean
from gptailor.tasks.labels import label_cell, labels_in, labels_of, number_in
from gptailor.types import AnswerForm, RawExample, RejectedRow

DROP = "drop"
COLUMNS = ("source", "row", "text", "correction")
SHOWN = 8
Place = tuple[str, int]  # source and row


@dataclass(frozen=True, slots=True)
class Correction:
    """One filled line of the file of corrections."""

    source: str
    row: int
    text: str
    cell: str  # a label, or `drop`
    line: int


@dataclass(frozen=True, slots=True)
class Fixes:
    """The corrections, and what they did to the rows they were applied to."""

    file: str = ""
    sha256: str = ""
    corrections: Mapping[Place, Correction] = field(default_factory=dict)
    locations: tuple[str, ...] = ()  # all that the run reads rows of
    relabelled: dict[Place, tuple[str, str]] = field(default_factory=dict)  # label cells before and after
    dropped: dict[Place, str] = field(default_factory=dict)
    unchanged: set[Place] = field(default_factory=set)  # corrected to the label they have
    faults: dict[Place, str] = field(default_factory=dict)  # corrections that can't be made, and why
    before: list[RawExample] = field(default_factory=list)  # the training rows as they were

    def detail(self, source: str, row: int) -> str:
        """What was done to a row that is used, in words; empty for most."""
        old, new = self.relabelled.get((source, row), ("", ""))
        return f"label corrected from {old!r} to {new!r}" if new else ""


def read_fixes(location: str | None) -> Fixes:
    """The filled lines of a file of corrections; nothing without one.

    Raises:
        DataError: it can't be read, lacks a column, names no row, or corrects one row in two ways.
    """
    if location is None:
        return Fixes()
    file = read_rows(location)
    missing = [name for name in COLUMNS if name not in file.columns]
    if missing:
        raise DataError(
            f"has no column {' and none '.join(repr(name) for name in missing)}.",
            where=location,
            fix="Give a suspects.csv with the column `correction` filled in: a label, or drop.",
        )
    found: dict[Place, Correction] = {}
    faults = []
    for line in file.rows:
        cell, number = line.fields["correction"].strip(), line.fields["row"].strip()
        if not cell:
            continue
        if not number.isdecimal():
            faults.append(f"row {line.row}: {number!r} is not the number of a row")
            continue
        source = undo_defusing(line.fields["source"])
        correction = Correction(source, int(number), line.fields["text"], cell, line.row)
        before = found.setdefault((source, int(number)), correction)
        if before.cell != cell:
            faults.append(
                f"row {line.row}: {cell!r}, but row {before.line} corrects the same to {before.cell!r}"
            )
    _refuse(faults, location)
    return Fixes(location, file.sha256, found)


def apply_fixes(
    rows: Sequence[RawExample], fixes: Fixes, form: AnswerForm, *, keep_before: bool = False
) -> tuple[Sequence[RawExample], list[RejectedRow]]:
    """Gives rows their corrected labels and takes dropped ones out; `fixes` notes what was done.

    A row whose correction can't be made (it has another text now, or the correction is no label of the file)
    stays as it is; `refuse_faults` tells all of them at once.

    Args:
        rows: With `text` and a label cell as `read_labels` leaves it.
        fixes: What to do.
        form: What a label cell holds.
        keep_before: These are the training rows: keep them as they were, to see later what fixing did.
    """
    if not fixes.corrections:
        return rows, []
    if keep_before:
        fixes.before.extend(rows)
    known = _known_labels([*fixes.before, *rows], form)  # training's, too: a file may lack some
    by_place = _by_place(rows, fixes)
    kept, rejected = [], []
    for row in rows:
        correction = by_place.get((row.source, row.row))
        if correction is None:
            kept.append(row)
            continue
        place, old = (row.source, row.row), row.fields.get("label", "")
        new = _label_of(correction.cell, known, form)
        if not _is_same(correction.text, row.fields["text"]):
            fixes.faults[place] = f"row {correction.line}: {row.source} row {row.row} has another text now"
            kept.append(row)
        elif new is None and correction.cell.casefold() == DROP:
            fixes.dropped[place] = old
            detail = f"{fixes.file} row {correction.line} says {DROP}"
            rejected.append(RejectedRow(row.source, row.row, "reviewed", detail))
        elif new is None:
            hint = did_you_mean(correction.cell, known.values())
            told = f"row {correction.line}: {correction.cell!r} is no label of the file.{hint}"
            fixes.faults[place] = told
            kept.append(row)
        else:
            if new == old:
                fixes.unchanged.add(place)
            else:
                fixes.relabelled[place] = (old, new)
            kept.append(dataclasses.replace(row, fields={**row.fields, "label": new}))
    return kept, rejected


def refuse_faults(fixes: Fixes) -> None:
    """Raises DataError where corrections can't be made, or met no row of training and validation data."""
    met = (*fixes.relabelled, *fixes.dropped, *fixes.unchanged, *fixes.faults)
    names = {(Path(source).name, row) for source, row in met}
    strays = [c for c in fixes.corrections.values() if (Path(c.source).name, c.row) not in names]
    told = [f"row {c.line}: {c.source} row {c.row} is not in the training or validation data" for c in strays]
    _refuse([*fixes.faults.values(), *told], fixes.file)


def refuse_to_lose_corrections(path: Path) -> None:
    """Raises DataError if a file that is about to be written anew holds a person's corrections."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            filled = sum(bool((line.get("correction") or "").strip()) for line in lines)
            filled += not {*COLUMNS} <= {*(lines.fieldnames or ())}
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError, csv.Error):
        filled = 1  # whatever it is, it isn't ours to write over
    if filled:
        raise DataError(
            "is there and holds corrections, or isn't a file of suspects.",
            where=str(path),
            fix="Write elsewhere with --out FILE, or move it aside.",
        )


def _by_place(rows: Sequence[RawExample], fixes: Fixes) -> dict[Place, Correction]:
    """Corrections by the rows they mean: the same source, else the same file name (from another folder)."""
    corrections, read = fixes.corrections, {row.source for row in rows}

    def is_read(source: str) -> bool:
        inside = (source == at or source.startswith(f"{at.rstrip('/')}/") for at in fixes.locations)
        return source in read or any(inside)

    by_name = {
        (Path(source).name, row): correction
        for (source, row), correction in corrections.items()
        if not is_read(source)
    }
    found: dict[Place, Correction] = {}
    for row in rows:
        place = (row.source, row.row)
        correction = corrections.get(place) or by_name.get((Path(row.source).name, row.row))
        if correction is not None:
            found[place] = correction
    return found


def _known_labels(rows: Iterable[RawExample], form: AnswerForm) -> dict[str, str]:
    """Every label of the rows by its spelling without case and blanks, as it stands and repaired."""
    if form.kind == "score":
        return {}
    cells = dict.fromkeys(row.fields.get("label", "") for row in rows)
    labels = dict.fromkeys(label for cell in cells for label in labels_of(cell, form) if label.strip())
    known: dict[str, str] = {}
    for spell in (str, repair):
        for label in labels:
            known.setdefault(_squeezed(spell(label)), label)
    return known


def _label_of(cell: str, known: Mapping[str, str], form: AnswerForm) -> str | None:
    """The label cell that a correction means; None where it is no label of the file."""
    if form.kind == "score":
        number = number_in(cell)
        return None if number is None else repr(number)
    found = [
        known.get(_squeezed(part))
        or known.get(_squeezed(part.removeprefix("'")))  # what a CSV was defused with
        for part in labels_in(cell, form)
    ]
    carried = [label for label in found if label is not None]
    return label_cell(carried, form) if len(carried) == len(found) else None


def _squeezed(label: str) -> str:
    return " ".join(label.split()).casefold()


def _is_same(one: str, other: str) -> bool:
    """Whether two texts have the same letters and digits: a spreadsheet may change blanks and marks."""
    return _letters(one) == _letters(other)


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", repair(text)).casefold()


def _refuse(faults: Sequence[str], location: str) -> None:
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise DataError(
            "\n  ".join(["holds corrections that can't be made:", *faults[:SHOWN], *more]),
            where=location,
            fix="Mend these cells, or empty them to leave their rows as they are.",
        )
