"""Rows whose label may be wrong, each with the reason and, where there is one, a suggestion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gptailor.data.ledger import write_csv_safely
from gptailor.models.readout import as_label, decide, label_text
from gptailor.pipeline.labels import answers_of
from gptailor.pipeline.prepare import Prepared, answer_of, names_of
from gptailor.types import Example, FloatArray

if TYPE_CHECKING:  # it knows the trainer's losses, and `check` runs without them
    from gptailor.pipeline.kinds import Kind

SURE = 0.9  # a wrong answer this sure is worth a second look at the label


@dataclass(frozen=True, slots=True)
class Suspect:
    """One row to look at. `suggestion` is empty where we have none."""

    source: str
    row: int
    text: str
    label: str
    suggestion: str
    reason: str


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
        labels = {example.label for example in group}
        if len(labels) > 1:
            reason = "nearly the same text carries another label: " + ", ".join(
                f"{other.source} row {other.row}" for other in group[:4]
            )
            found.extend(_suspect(example, prepared, reason=reason) for example in group)
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
        )
        for place in places[np.argsort(-sureness[places], kind="stable")].tolist()
    ]


def write_suspects(path: Path, suspects: list[Suspect]) -> None:
    """Writes data/suspects.csv."""
    header = ["source", "row", "text", "label", "suggestion", "reason"]
    write_csv_safely(
        path, header, ([s.source, s.row, s.text, s.label, s.suggestion, s.reason] for s in suspects)
    )


def _suspect(example: Example, prepared: Prepared, *, reason: str, suggestion: str = "") -> Suspect:
    label = answer_of(prepared, example)
    return Suspect(example.source, example.row, example.text, label, suggestion, reason)
