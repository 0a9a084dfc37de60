"""Rows whose label may be wrong, each with the reason and, where there is one, a suggestion."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gptailor.data.ledger import write_csv_safely
from gptailor.evaluate.label_errors import doubt_labels
from gptailor.models.readout import as_label, decide, label_text
from gptailor.pipeline.fixes import refuse_to_lose_corrections
from gptailor.pipeline.labels import answers_of
from gptailor.pipeline.prepare import Prepared, answer_of, names_of
from gptailor.types import Example, FloatArray

if TYPE_CHECKING:  # it knows the trainer's losses, and `check` runs without them
    from gptailor.pipeline.kinds import Kind

SURE = 0.9  # a wrong answer this sure is worth a second look at the label
HEADER = ("source", "row", "score", "label", "suggestion", "correction", "reason", "text")


@dataclass(frozen=True, slots=True)
class Suspect:
    """One row to look at. `suggestion` is empty where we have none, `score` None where none was measured."""

    source: str
    row: int
    text: str
    label: str
    suggestion: str
    reason: str
    score: float | None = None


def suspects_in_data(prepared: Prepared) -> list[Suspect]:
    """What the texts and labels themselves show, before any model."""
    found = []
    conflicts = {(r.source, r.row): r.detail for r in prepared.rejected if r.reason == "conflict"}
    for row in prepared.rejected_rows:
        detail = conflicts.get((row.source, row.row))
        if detail is not None:
            fields = row.fields
            found.append(Suspect(row.source, row.row, fields["text"], fields.get("label", ""), "", detail))
    for group in prepared.near_groups:
        for example in group:
            others = [f"{one.source} row {one.row}" for one in group if one.label != example.label]
            if others:
                reason = f"nearly the same text carries another label: {', '.join(others[:4])}"
                found.append(_suspect(example, prepared, reason=reason))
    alike = dict(prepared.cleaned.label_suspicions)
    for examples in prepared.parts.values():
        for example in examples:
            for label in names_of(prepared, example):
                if label in alike:
                    reason = f"the label is spelled almost like {alike[label]!r}"
                    found.append(_suspect(example, prepared, reason=reason, suggestion=alike[label]))
    return found


def suspects_by_model(
    examples: list[Example], probabilities: FloatArray, prepared: Prepared, kind: Kind
) -> list[Suspect]:
    """Validation rows (M,) whose (M, C) answer contradicts the label and is sure of it, surest first."""
    if not kind.doubt:
        return []
    sureness = kind.errors(probabilities, answers_of(examples))
    guesses = decide(probabilities, kind.form)
    places = np.flatnonzero(sureness >= SURE)
    return [
        _suspect(
            examples[place],
            prepared,
            reason=f"the model is {sureness[place]:.0%} sure of {kind.doubt}",
            suggestion=label_text(as_label(guesses[place]), prepared.label_names, kind.form),
            score=round(float(sureness[place]), 4),
        )
        for place in places[np.argsort(-sureness[places], kind="stable")].tolist()
    ]


def suspects_out_of_fold(
    examples: Sequence[Example], probabilities: FloatArray, prepared: Prepared, *, top: int | None = None
) -> list[Suspect]:
    """The rows that models fitted without them doubt most, by their (N, C) probabilities; one label a row.

    `top` says how many; None lists as many as there seem to be wrong labels. The score ranks: where people
    make the same mistake again and again, the models learn it, and then it is far too low.
    """
    labels = answers_of(examples)
    doubts = doubt_labels(probabilities, labels)
    wanted = round(float(doubts.wrong.sum())) if top is None else top
    found = []
    for place in np.argsort(-doubts.wrong, kind="stable")[:wanted].tolist():
        other = int(doubts.likeliest[place])
        suggestion = prepared.label_names[other]
        told = f"{suggestion} {probabilities[place, other]:.0%}"
        own = f"the label {probabilities[place, labels[place]]:.0%}"
        found.append(
            _suspect(
                examples[place],
                prepared,
                reason=f"fitted without this row, models give {told}, {own}",
                suggestion=suggestion,
                score=round(float(doubts.wrong[place]), 4),
            )
        )
    return found


def merge_suspects(found: Iterable[Suspect]) -> list[Suspect]:
    """Each row once, where it came first, with all its reasons and the first score and suggestion known."""
    merged: dict[tuple[str, int], Suspect] = {}
    for suspect in found:
        key = (suspect.source, suspect.row)
        before = merged.get(key)
        if before is None:
            merged[key] = suspect
            continue
        reasons = dict.fromkeys([before.reason, suspect.reason])
        merged[key] = dataclasses.replace(
            before,
            reason="; ".join(reasons),
            suggestion=before.suggestion or suspect.suggestion,
            score=suspect.score if before.score is None else before.score,
        )
    return list(merged.values())


def write_suspects(path: Path, suspects: Iterable[Suspect]) -> None:
    """Writes suspects.csv; the column `correction` is left to a person (see fixes.py).

    Raises:
        DataError: the file is there and holds corrections, perhaps since the rows were ranked.
    """
    refuse_to_lose_corrections(path)
    write_csv_safely(
        path,
        HEADER,
        (
            [s.source, s.row, "" if s.score is None else s.score, s.label, s.suggestion, "", s.reason, s.text]
            for s in suspects
        ),
    )


def _suspect(
    example: Example, prepared: Prepared, *, reason: str, suggestion: str = "", score: float | None = None
) -> Suspect:
    label = answer_of(prepared, example)
    return Suspect(example.source, example.row, example.text, label, suggestion, reason, score)
