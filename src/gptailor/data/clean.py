"""Cleans rows: mends texts and labels, and drops what can't teach anything, each row with its reason."""

from __future__ import annotations

import json
import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import numpy as np

from gptailor.data.repair import Step, excerpts, is_plain, run_steps, steps_of
from gptailor.data.spellings import each_label, labels_of, merge_labels, squeezed
from gptailor.data.store import store_rows
from gptailor.data.views import each, picked
from gptailor.errors import number_of
from gptailor.recipe import CleanSettings
from gptailor.types import AnswerKind, RawExample, Reason, RejectedRow

EXAMPLES_PER_KIND = 5


@dataclass(frozen=True, slots=True)
class CleanResult:
    """What cleaning kept and what it did. Every row that came in is in `rows` or in `rejected`, in order."""

    rows: Sequence[RawExample]
    rejected: list[RejectedRow]
    repaired: int  # rows whose text changed
    label_merges: dict[str, str] = field(default_factory=dict)  # spelling -> kept spelling
    label_suspicions: list[tuple[str, str]] = field(default_factory=list)  # (rarer, commoner), not merged
    rare_labels: dict[str, int] = field(
        default_factory=dict
    )  # label -> its rows, which go, or in sets lose it
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # kind -> (before, after)


def clean_rows(
    rows: Sequence[RawExample],
    *,
    settings: CleanSettings,
    label_role: str | None = "label",
    text_roles: Sequence[str] = ("text",),
    protected: bool = False,
    known: CleanResult | None = None,
    kind: AnswerKind = "single",
) -> CleanResult:
    """Repairs rows and drops those without text or label, duplicates, conflicts and rare labels.

    Args:
        rows: Rows whose fields are named by role.
        settings: What may be done.
        label_role: The label's role, or None for a task without labels.
        text_roles: The roles that are repaired. A row without a word in any of them has no text.
        protected: The rows are a given validation or test file: repaired the same way, but a row goes
            only for want of text or label, and labels merge only over case and white space.
        known: The training rows' result. Labels are then spelled as in training (its merges included),
            and a label that training doesn't know stays as it is.
        kind: What a label cell holds: a label; several, as a JSON array of texts that may be empty; a number,
            which is neither merged nor rare. In a set of labels a rare one is taken out, and the row goes
            where none is left.
    """
    mender = _Mender(settings, label_role, text_roles, kind)
    mended = store_rows(map(mender.mend, rows))
    labels = mender.labels
    fates: dict[int, RejectedRow] = {}
    _drop_empty(mended, mender, fates, text_roles)

    merges: dict[str, str] = {}
    suspicions: list[tuple[str, str]] = []
    rare: dict[str, int] = {}
    if label_role is not None and kind != "score":
        counts = _label_counts(labels, fates, kind)
        merges, suspicions = _label_spellings(counts, settings, label_role, protected, known, kind)
        if merges:
            spell = partial(each_label, change=lambda label: merges.get(label, label), kind=kind)
            labels = [spell(label) for label in labels]
            mended = each(mended, lambda row: _with(row, {label_role: spell(row.fields[label_role])}))

    if not protected:
        _drop_repeats(mended, mender.hashes, labels, fates, settings, text_roles)
    if label_role is not None and kind == "multiple":
        rare = known.rare_labels if known else _rare(labels, fates, settings, kind)
        if rare:
            mended = _without_rare(mended, fates, rare, settings.minimum_class_size, label_role)
    elif label_role is not None and kind == "single" and not protected:
        rare = _drop_rare(mended, labels, fates, settings.minimum_class_size)
    is_kept = np.ones(len(mended), dtype=bool)
    is_kept[list(fates)] = False
    return CleanResult(
        rows=picked(mended, np.flatnonzero(is_kept)),
        rejected=[fates[i] for i in sorted(fates)],
        repaired=mender.repaired,
        label_merges=merges,
        label_suspicions=suspicions,
        rare_labels=rare,
        examples=mender.examples,
    )


class _Mender:
    """Repairs one row after the other, and keeps what the rest of cleaning asks of all of them."""

    def __init__(
        self, settings: CleanSettings, label_role: str | None, text_roles: Sequence[str], kind: AnswerKind
    ) -> None:
        self.steps = steps_of_settings(settings)
        self.label_role, self.text_roles, self.kind = label_role, text_roles, kind
        self.repaired = 0  # rows whose text changed
        self.examples: dict[str, list[tuple[str, str]]] = {}
        self.empty: list[int] = []  # rows without text
        self.labels: list[str] = []  # each row's; equal ones are one object
        self.hashes = array("q")  # of each row's texts as repaired: rows with equal texts have equal ones

    def mend(self, row: RawExample) -> RawExample:
        fields: dict[str, str] = {}
        for role in self.text_roles:
            text = row.fields.get(role, "")
            if not is_plain(text):
                fields[role] = self._mended_text(text)
        self.repaired += any(row.fields.get(role, "") != text for role, text in fields.items())
        if self.label_role is not None:
            cell = row.fields.get(self.label_role, "")
            fields[self.label_role] = label = sys.intern(each_label(cell, self._mended_label, self.kind))
            self.labels.append(label)
        row = _with(row, fields)
        texts = _texts(row, self.text_roles)
        if self.text_roles and not any(text.strip() for text in texts):
            self.empty.append(len(self.hashes))
        self.hashes.append(hash(texts))
        return row

    def _mended_text(self, text: str) -> str:
        mended, changes = run_steps(text, self.steps)
        for change, (before, after) in changes.items():
            shown = self.examples.setdefault(change, [])
            if len(shown) < EXAMPLES_PER_KIND:
                shown.append(excerpts(before, after))
        return mended

    def _mended_label(self, label: str) -> str:
        return mended_label(label, self.steps)


def steps_of_settings(settings: CleanSettings) -> list[Step]:
    """What is done to a text and a label, in order."""
    return steps_of(
        repair_text=settings.repair_text,
        unescape_entities=settings.unescape_entities,
        drop_control=settings.drop_control,
        squeeze_space=settings.squeeze_space,
    )


def mended_label(label: str, steps: Sequence[Step]) -> str:
    """A label as cleaning spells it, before it is merged with others."""
    return squeezed(label if is_plain(label) else run_steps(label, steps)[0])


def _texts(row: RawExample, text_roles: Sequence[str]) -> tuple[str, ...]:
    """What makes a row a duplicate of another; without roles for texts, all its fields."""
    return tuple([row.fields.get(role, "") for role in text_roles or sorted(row.fields)])


def _with(row: RawExample, fields: Mapping[str, str]) -> RawExample:
    if all(row.fields.get(role) == text for role, text in fields.items()):
        return row
    return replace(row, fields={**row.fields, **fields})


def _label_counts(labels: Sequence[str], fates: Mapping[int, RejectedRow], kind: AnswerKind) -> Counter[str]:
    """Rows that carry each label, the dropped ones left out."""
    cells = Counter(label for i, label in enumerate(labels) if i not in fates)
    counts: Counter[str] = Counter()
    for cell, count in cells.items():
        for label in labels_of(cell, kind):
            counts[label] += count
    return counts


def _label_spellings(
    counts: Mapping[str, int],
    settings: CleanSettings,
    label_role: str,
    protected: bool,
    known: CleanResult | None,
    kind: AnswerKind,
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """(spelling -> kept spelling; look-alikes), by the rows themselves or by what training knows."""
    if known is not None:
        cells = dict.fromkeys(cell for row in known.rows if (cell := row.fields.get(label_role, "")))
        names = {label: label for cell in cells for label in labels_of(cell, kind)}
        names |= {label: label for label in known.rare_labels} | known.label_merges
        folded = {squeezed(label).casefold(): kept for label, kept in names.items()}
        found = {
            label: names.get(label, folded.get(label.casefold(), label) if settings.merge_labels else label)
            for label in counts
        }
        return {label: kept for label, kept in found.items() if label != kept}, []
    merges, suspicions = merge_labels(counts)
    wrong = {
        label: kept
        for label, kept in merges.items()
        if not settings.merge_labels or (protected and label.casefold() != kept.casefold())
    }
    merges = {label: kept for label, kept in merges.items() if label not in wrong}
    return merges, [*wrong.items(), *suspicions]


def _drop_empty(
    rows: Sequence[RawExample],
    mender: _Mender,
    fates: dict[int, RejectedRow],
    text_roles: Sequence[str],
) -> None:
    for i, label in enumerate(mender.labels):
        if not label:
            fates[i] = _rejected(rows[i], "no_label", "the label is empty")
    for i in mender.empty:
        fates[i] = _rejected(rows[i], "no_text", f"there is no text in {' or '.join(text_roles)}")


def _drop_repeats(
    rows: Sequence[RawExample],
    hashes: Sequence[int],
    labels: Sequence[str],
    fates: dict[int, RejectedRow],
    settings: CleanSettings,
    text_roles: Sequence[str],
) -> None:
    """Conflicts and exact duplicates, by text exactly as repaired."""
    same_text: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i in _not_alone(hashes):
        if i not in fates:
            same_text[_texts(rows[i], text_roles)].append(i)
    for same in same_text.values():
        if len(same) == 1:
            continue
        first: dict[str, int] = {}
        for i in same:
            first.setdefault(labels[i] if labels else "", i)
        if len(first) > 1 and settings.drop_conflicts:
            names = _some([f'"{label}"' for label in first])
            for i in same:
                # No more than are named: a short text can be a conflict of thousands of rows.
                others = _places(rows[i], [rows[j] for j in islice((j for j in same if j != i), 6)])
                fates[i] = _rejected(
                    rows[i], "conflict", f"same text as {others}, but the labels are {names}"
                )
        elif settings.drop_duplicates:
            what = "text and label" if labels else "text"
            for i in same:
                original = first[labels[i] if labels else ""]
                if i != original:
                    place = _places(rows[i], [rows[original]])
                    fates[i] = _rejected(rows[i], "duplicate", f"same {what} as {place}")


def _not_alone(hashes: Sequence[int]) -> list[int]:
    """Places whose hash others have, too, in order."""
    values = np.array(hashes, dtype=np.int64)
    order = np.argsort(values, kind="stable")
    equal = values[order[1:]] == values[order[:-1]]
    places: list[int] = np.unique(np.concatenate([order[1:][equal], order[:-1][equal]])).tolist()
    return places


def _drop_rare(
    rows: Sequence[RawExample], labels: Sequence[str], fates: dict[int, RejectedRow], minimum: int
) -> dict[str, int]:
    counts = Counter(label for i, label in enumerate(labels) if i not in fates)
    rare = {label: count for label, count in counts.items() if count < minimum}
    for i, label in enumerate(labels) if rare else ():
        if i not in fates and label in rare:
            has = f'label "{label}" has {number_of(counts[label], "row")}'
            fates[i] = _rejected(rows[i], "rare_label", f"{has}; {minimum} are needed")
    return rare


def _rare(
    labels: Sequence[str], fates: Mapping[int, RejectedRow], settings: CleanSettings, kind: AnswerKind
) -> dict[str, int]:
    counts = _label_counts(labels, fates, kind)
    return {label: count for label, count in counts.items() if count < settings.minimum_class_size}


def _without_rare(
    rows: Sequence[RawExample],
    fates: dict[int, RejectedRow],
    rare: Mapping[str, int],
    minimum: int,
    label_role: str,
) -> Sequence[RawExample]:
    """Takes rare labels out of the sets; a row that carried no other is dropped."""

    def kept() -> Iterator[RawExample]:
        for i, row in enumerate(rows):
            carried = labels_of(row.fields[label_role], "multiple") if i not in fates else []
            left = [label for label in carried if label not in rare]
            if carried and not left:
                names = ", ".join(f'"{label}"' for label in carried)
                detail = f"no label but {names}; {minimum} rows of each are needed"
                fates[i] = _rejected(row, "rare_label", detail)
            elif len(left) < len(carried):
                row = _with(row, {label_role: json.dumps(left, ensure_ascii=False)})
            yield row

    return store_rows(kept())


def _places(row: RawExample, others: Sequence[RawExample]) -> str:
    """`row 12, row 40 and more`; rows of another file with its name."""
    names = [
        f"row {other.row}" + ("" if other.source == row.source else f" of {other.source}") for other in others
    ]
    return _some(names)


def _some(names: Sequence[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (" and more" if len(names) > shown else "")


def _rejected(row: RawExample, reason: Reason, detail: str) -> RejectedRow:
    return RejectedRow(source=row.source, row=row.row, reason=reason, detail=detail)
