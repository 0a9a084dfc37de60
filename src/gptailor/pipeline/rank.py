"""The rows of an unlabelled file in the order in which labelling them would teach a run most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gptailor.data.duplicates import near_duplicate_groups
from gptailor.errors import InputError
from gptailor.evaluate.choice import doubts, most_telling_first
from gptailor.models.predictor import Answer, Predictor
from gptailor.pipeline.run import Run
from gptailor.types import FloatArray, IntArray, RawExample, RejectedRow


@dataclass(frozen=True, slots=True)
class RankedRow:
    """A row of the file with its answer. `doubt` is from 0 to 1; None where the row can't be asked."""

    row: RawExample | RejectedRow
    text: str
    answer: Answer | None
    doubt: float | None


def rank_file(
    run: Run,
    location: str,
    *,
    text: str | None = None,
    columns: str | None = None,
    needed: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> list[RankedRow]:
    """Every row of a file, the most telling first; those without a text at the end.

    Raises:
        InputError: the run doesn't answer with labels, so it has no doubt between them.
        DataError: the file can't be read, its text column isn't plain, or one of `needed` isn't there.
    """
    refuse_without_labels(run)
    found = list(run.predict_file(location, text=text, columns=columns, needed=needed, say=say))
    asked = [(row, given, answer) for row, given, answer in found if answer is not None]
    doubt, order = rank_texts(run.predictor, [given for _, given, _ in asked], [one for _, _, one in asked])
    ranked = []
    for place in order.tolist():
        row, given, answer = asked[place]
        ranked.append(RankedRow(row, given, answer, float(doubt[place])))
    left = [RankedRow(row, given, None, None) for row, given, answer in found if answer is None]
    return [*ranked, *left]


def rank_texts(
    predictor: Predictor, texts: Sequence[str], answers: Sequence[Answer]
) -> tuple[FloatArray, IntArray]:
    """(N,) doubts, and the (N,) order in which to label."""
    names = predictor.label_names
    probabilities = np.array([[answer.probabilities[name] for name in names] for answer in answers])
    doubt = doubts(probabilities.reshape(len(texts), len(names)), predictor.form)

    def features_of(rows: IntArray) -> FloatArray:
        return predictor.features([texts[row] for row in rows.tolist()])

    def duplicates_of(rows: IntArray) -> IntArray:
        return near_duplicate_groups([texts[row] for row in rows.tolist()])

    return doubt, most_telling_first(doubt, features_of=features_of, duplicates_of=duplicates_of)


def refuse_without_labels(run: Run) -> None:
    """Raises InputError where the run gives no labels with probabilities."""
    if run.task != "classification" or run.predictor.form.kind == "score":
        raise InputError(
            "only runs that answer with labels can tell which rows they are in doubt about.",
            where=str(run.folder),
            fix="Give a classification run.",
        )
