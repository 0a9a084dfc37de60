"""The report's `slices`: scores by column and length, the worst slice, a warning where one is much worse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gptailor.data.tokenize import Encoder, token_lengths
from gptailor.errors import number_of
from gptailor.evaluate.language import PieceNats
from gptailor.evaluate.metrics import as_json
from gptailor.evaluate.resampling import Resampling
from gptailor.evaluate.slices import (
    GROUPS_TEST,
    NUMBERS_TEST,
    SHARES_TEST,
    Slice,
    group_values,
    length_bands,
    slice_rows,
    worst_slice,
)
from gptailor.models.readout import decide
from gptailor.pipeline.kinds import Kind
from gptailor.tasks.form import TextRow
from gptailor.types import Example, FloatArray, IntArray

COSTS_TEST = "Mann-Whitney U test of what a token costs"
# What a slice is judged by: it must be a mean over rows, so that no slice suffers for the classes it lacks.
ROW_SCORES = {"single": "accuracy", "multiple": "subset_accuracy", "score": "mae"}
OFF_BY = "off on average by {}"


def slice_columns(examples: Sequence[Example | TextRow]) -> dict[str, list[str]]:
    """The values of tested examples by slice column; all carry the same columns."""
    carried = [dict(example.slices) for example in examples]
    return {name: [values[name] for values in carried] for name in carried[0]}


def score_slices(
    kind: Kind,
    probabilities: FloatArray,
    answers: Any,
    *,
    texts: Sequence[str],
    encoder: Encoder,
    columns: Mapping[str, Sequence[str]],
    label_names: Sequence[str],
    resampling: Resampling,
) -> dict[str, Any]:
    """Plain values for the report: every slice with rows, scores and intervals, the worst, and warnings.

    Args:
        kind: The kind of answer.
        probabilities: (N, C) of the rows, or (N, 1) numbers.
        answers: Their true answers.
        texts: (N,) texts; their lengths in tokens are always a column of their own.
        encoder: Counts the tokens.
        columns: The rows' values by the person's column.
        label_names: The classes.
        resampling: Of the bootstrap.
    """
    are_numbers, score = kind.form.kind == "score", ROW_SCORES[kind.form.kind]
    guesses = decide(probabilities, kind.form)
    by = _by_column(token_lengths(encoder, texts), columns)
    errors = kind.errors(probabilities, answers)
    slices = slice_rows(by, errors, are_numbers=are_numbers, resampling=resampling)

    def metric_of(one: Slice) -> dict[str, Any]:
        own = {"label_names": label_names, "resampling": resampling.of(one.rows)}
        measured = kind.measure(answers[one.rows], guesses[one.rows], **own)
        return {kind.metric: as_json(measured[kind.metric])}

    grouped = resampling.num_units(len(texts)) < len(texts)
    test = NUMBERS_TEST if are_numbers else GROUPS_TEST if grouped else SHARES_TEST
    return _told(slices, by, score=score, test=test, are_numbers=are_numbers, more=metric_of)


def score_text_slices(
    pieces: PieceNats,
    *,
    lengths: IntArray,
    columns: Mapping[str, Sequence[str]],
    resampling: Resampling,
) -> dict[str, Any]:
    """The same of rows whose answer is text: every slice's bits per byte.

    Slices are tested by what a token of each row's answer costs: bits per byte would call short answers
    worse, whose end is a larger part of them.

    Args:
        pieces: What each of the N rows' answers cost.
        lengths: (N,) tokens of each prompt.
        columns: The rows' values by the person's column.
        resampling: Of the bootstrap.
    """
    by = _by_column(lengths, columns)
    sizes = np.maximum(1, pieces.bytes).astype(np.float64)
    slices = slice_rows(
        by,
        pieces.nats / sizes / np.log(2),
        are_numbers=True,
        weights=sizes,
        ranked=pieces.nats / np.maximum(1, pieces.tokens),
        resampling=replace(resampling, groups=pieces.documents),
    )

    cost = "answers cost {} bits per byte"
    return _told(slices, by, score="bits_per_byte", test=COSTS_TEST, are_numbers=True, cost=cost)


def _by_column(lengths: IntArray, columns: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The rows' slices by column: how long they are, and the person's own columns."""
    by = {"length": length_bands(lengths)}
    return by | {_free_name(name, by): group_values(values) for name, values in columns.items()}


def _told(
    slices: Sequence[Slice],
    by: Mapping[str, Sequence[str]],
    *,
    score: str,
    test: str,
    are_numbers: bool,
    cost: str = OFF_BY,
    more: Callable[[Slice], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The report's entry: every slice by column, the worst, and a sentence on each that is much worse."""

    def told(one: Slice) -> dict[str, Any]:
        return {
            "slice": one.value,
            "rows": len(one.rows),
            score: as_json(one.score),
            **(more(one) if more else {}),
            "rest": as_json(one.rest),
            "p": as_json(one.p),
            "much_worse": one.much_worse,
        }

    worst = worst_slice(slices, are_numbers=are_numbers)
    judged = sum(one.p is not None for one in slices)
    return {
        "score": score,
        "test": f"{test} against the other rows, one-sided; Holm's correction over "
        f"{number_of(judged, 'slice')} of 20 rows, or groups of them, or more",
        "by": {column: [told(one) for one in slices if one.column == column] for column in by},
        "worst": None if worst is None else {"by": worst.column, **told(worst)},
        "warnings": [
            in_words(one, are_numbers=are_numbers, test=test, cost=cost) for one in slices if one.much_worse
        ],
    }


def in_words(one: Slice, *, are_numbers: bool, test: str, cost: str = OFF_BY) -> str:
    """One sentence on a slice that is much worse than the rest; `cost` says what a number is."""
    name, rows = f"{one.column} {one.value!r}", number_of(len(one.rows), "row")
    p = one.p or 0.0
    sure = f"({'p < 0.0001' if p < 1e-4 else f'p = {p:.2g}'}, {test}, Holm's correction)"
    low, high, value = one.score.low, one.score.high, one.score.value
    if are_numbers:
        return (
            f"{name} is much worse than the rest: {cost.format(f'{value:.3g} ({low:.3g} to {high:.3g})')} "
            f"over {rows}, all others {one.rest:.3g} {sure}."
        )
    return (
        f"{name} is much worse than the rest: {value:.1%} of {rows} are right ({low:.1%} to {high:.1%}), "
        f"of all others {one.rest:.1%} {sure}."
    )


def _free_name(column: str, taken: Mapping[str, Any]) -> str:
    """A person's own column `length` stands beside ours."""
    return f"{column} (column)" if column in taken else column
