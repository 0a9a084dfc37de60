"""The labels a person gives: what is asked next, and the CSV file that holds every answer at once.

The file holds one line per answer, in the order of the answers, and is written whole after each one, so it is
never half an answer. What was labelled before is known again by source and row, and only if the text there is
still the same. Beside it lie the names of the labels in the order of their keys, so that a key means the same
label in every sitting.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptailor.data.ledger import LABEL_COLUMNS, defuse, undo_defusing, write_csv_safely
from gptailor.errors import GptailorError, InputError, RunError
from gptailor.launch import write_atomically

KEYS = "1234567890abcdefghijklmnopqrtvwxyz"  # s skips and u takes back
SHOWN = 120  # characters of the last answer's text


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A row to label."""

    source: str
    row: int
    text: str


class Stale(GptailorError):
    """The page answered a row that isn't the one that is asked: it stands open twice."""


class LabelFile:
    """The queue and the answers. Used from one thread."""

    def __init__(self, rows: Sequence[LabelRow], out: Path, labels: Sequence[str]) -> None:
        """Takes up what `out` holds.

        Args:
            rows: In the order in which they are asked; a text that stands there again is left out.
            out: The CSV file; it is made with the first answer.
            labels: Names to choose from. Those of an earlier sitting keep their keys; where names are given,
                one that isn't among them and never was an answer is left out.

        Raises:
            InputError: the rows of `out` aren't those of the file any more, or there is no label.
        """
        first: dict[str, LabelRow] = {}
        for row in rows:
            first.setdefault(row.text, row)
        self.rows = list(first.values())
        self.repeated = len(rows) - len(self.rows)
        self.out = out
        self.answers: dict[int, str] = {}  # by place in rows, in the order of the answers
        self._stamp: tuple[int, int] | None = None
        self._names = out.with_name(f"{out.stem}.keys.json")
        self._kept = self._read_names()
        self._read([*self._kept, *labels], rows)
        wanted = {*(labels or self._kept), *self.answers.values()}
        before = [name for name in self._kept if name in wanted]
        self.labels = list(dict.fromkeys([*before, *labels, *self.answers.values()]))
        if not self.labels:
            raise InputError(
                "there are no labels to choose from.",
                where=str(out),
                fix="Name them with --labels a,b,c, or give a run with --run.",
            )
        self._queue = deque(place for place in range(len(self.rows)) if place not in self.answers)
        self._done: list[tuple[str, int]] = [("label", place) for place in self.answers]

    @property
    def current(self) -> int | None:
        """The place of the row that is asked; None when all are labelled."""
        return self._queue[0] if self._queue else None

    def label(self, place: int, label: str) -> None:
        """Takes an answer and writes the file.

        Raises:
            Stale: another row is asked.
            InputError: there is no such label.
            RunError: the file can't be written, or another program changed it.
        """
        self._refuse_stale(place)
        if label not in self.labels:
            raise InputError(f"there is no label {label!r}.", fix="Choose one of those on the page.")
        self.answers[place] = label
        try:
            self._write()
        except GptailorError:
            del self.answers[place]
            raise
        self._queue.popleft()
        self._done.append(("label", place))

    def skip(self, place: int) -> None:
        """Puts the row at the end of the queue; nothing is written of it."""
        self._refuse_stale(place)
        self._queue.rotate(-1)
        self._done.append(("skip", place))

    def undo(self) -> None:
        """Takes the last answer or skip back, also one of an earlier day, and asks that row again."""
        if not self._done:
            return
        what, place = self._done[-1]
        if what == "label":
            label = self.answers.pop(place)
            try:
                self._write()
            except GptailorError:
                self.answers[place] = label
                raise
        else:
            self._queue.remove(place)
        self._queue.appendleft(place)
        self._done.pop()

    def state(self) -> dict[str, Any]:
        """All that the page shows."""
        place = self.current
        row = None if place is None else self.rows[place]
        what, last = self._done[-1] if self._done else ("", 0)
        counts = Counter(self.answers.values())
        return {
            "out": str(self.out),
            "labels": [
                {"name": name, "key": KEYS[number] if number < len(KEYS) else "", "count": counts[name]}
                for number, name in enumerate(self.labels)
            ],
            "row": row and {"place": place, "source": row.source, "row": row.row, "text": row.text},
            "done": len(self.answers),
            "total": len(self.rows),
            "last": what
            and {"what": what, "label": self.answers.get(last, ""), "text": self.rows[last].text[:SHOWN]},
        }

    def _refuse_stale(self, place: int) -> None:
        if place != self.current:
            raise Stale("This row isn't asked any more: the page may be open twice.")

    def _write(self) -> None:
        """Writes all answers, unless somebody else wrote the file since."""
        if self._stamp != _stamp_of(self.out):
            raise RunError(
                "was changed by another program; nothing was written over it.",
                where=str(self.out),
                fix="Start `gptailor label` again: it goes on from what stands there now.",
            )
        if self._kept != self.labels:
            write_atomically(self._names, json.dumps(self.labels, indent=1))
            self._kept = self.labels
        lines = ((*self._key(place), self.rows[place].text, label) for place, label in self.answers.items())
        write_csv_safely(self.out, LABEL_COLUMNS, lines)
        self._stamp = _stamp_of(self.out)

    def _key(self, place: int) -> tuple[str, int]:
        return self.rows[place].source, self.rows[place].row

    def _places(self, given: Sequence[LabelRow]) -> dict[tuple[str, str], int]:
        """Where each row's text is asked, by its source and number; another row may have stood for it."""
        asked = {row.text: place for place, row in enumerate(self.rows)}
        return {(_as_written(row.source), str(row.row)): asked[row.text] for row in given}

    def _read_names(self) -> list[str]:
        """The labels of earlier sittings, in the order of their keys."""
        where, fix = str(self._names), "Remove it, and name the labels again."
        try:
            names = json.loads(self._names.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise InputError(f"can't be read: {error}.", where=where, fix=fix) from None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError("isn't a list of labels.", where=where, fix=fix)
        return names

    def _read(self, labels: Sequence[str], given: Sequence[LabelRow]) -> None:
        self._stamp = _stamp_of(self.out)
        if self._stamp is None:
            return
        csv.field_size_limit(2**31 - 1)  # a C long holds no more on Windows
        try:
            with self.out.open(encoding="utf-8-sig", newline="") as file:  # Excel writes a BOM
                reader = csv.DictReader(file)
                lines = list(reader)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(
                f"can't be read: {error}.", where=str(self.out), fix="Write to another file with --out."
            ) from None
        if reader.fieldnames is not None and not set(LABEL_COLUMNS) <= set(reader.fieldnames):
            raise InputError(
                f"isn't a file of labels (its columns are {', '.join(reader.fieldnames)}).",
                where=str(self.out),
                fix="Save it with commas between the columns."
                if ";" in reader.fieldnames[0]
                else "Write to another file with --out.",
            )
        more = [name for name in reader.fieldnames or () if name not in LABEL_COLUMNS]
        if more:
            raise InputError(
                f"has more columns than labels need ({', '.join(more)}); writing an answer would lose them.",
                where=str(self.out),
                fix="Take them out into another file, or write to another file with --out.",
            )
        places = self._places(given)
        by_name = self._places(_named_alone(given))
        known = {_as_written(label): label for label in labels}
        for number, line in enumerate(lines, 2):
            place = places.get((line["source"], line["row"]))
            if place is None:  # the same file from another folder, or spelled otherwise
                place = by_name.get((Path(line["source"]).name, line["row"]))
            if place is None or _as_written(self.rows[place].text) != line["text"]:
                raise InputError(
                    f"row {line['row']} of {line['source']} isn't what it was when it was labelled: the file "
                    "changed since.",
                    where=f"{self.out}:{number}",
                    fix="Put the old file back, or label the new one into another file with --out.",
                )
            if not line["label"]:
                continue
            label = known.get(line["label"]) or undo_defusing(line["label"])
            if self.answers.setdefault(place, label) != label:
                raise InputError(
                    f"row {line['row']} of {line['source']} has two labels, {self.answers[place]!r} and "
                    f"{label!r}.",
                    where=f"{self.out}:{number}",
                    fix="Take one of the two lines out.",
                )


def _named_alone(rows: Sequence[LabelRow]) -> list[LabelRow]:
    """The rows by their file's name alone, where no two files have the same."""
    times = Counter(Path(source).name for source in {row.source for row in rows})
    named = [replace(row, source=Path(row.source).name) for row in rows]
    return [row for row in named if times[row.source] == 1]


def _as_written(cell: str) -> str:
    """A cell as `write_csv_safely` writes it."""
    return defuse(cell).encode("utf-8", "backslashreplace").decode("utf-8")


def _stamp_of(path: Path) -> tuple[int, int] | None:
    """What tells a changed file; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size
