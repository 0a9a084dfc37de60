"""From the head's logits to an answer: one label, a set of labels, or a number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptailor.types import AnswerForm, FloatArray, IntArray, Label


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one text.

    `label` is its name; of several labels they stand joined, and one by one in `labels`; a number is written
    out, and stands in `value`. `probability` is that of the label; of several that of the least probable one
    given, and where none is given, that of the most probable one's absence; a number has none.
    `abstained`: the probability is under the threshold ("not sure").
    """

    label: str
    probability: float | None
    probabilities: dict[str, float]
    abstained: bool
    truncated: bool
    labels: tuple[str, ...] = ()
    value: float | None = None


def probabilities_of(logits: FloatArray, form: AnswerForm, *, temperature: float = 1.0) -> FloatArray:
    """(N, C) calibrated probabilities of (N, C) logits, row by row in float64; (N, 1) numbers for a score."""
    if form.kind == "score":
        numbers: FloatArray = form.mean + form.deviation * logits
        return numbers
    scaled = logits / temperature
    if form.kind == "multiple":
        return sigmoid(scaled)
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    exponentials = np.exp(scaled)
    probabilities: FloatArray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def sigmoid(values: FloatArray) -> FloatArray:
    """1 / (1 + e^-x), without overflow."""
    small = np.exp(-np.abs(values))
    result: FloatArray = np.where(values >= 0, 1.0, small) / (1.0 + small)
    return result


def decide(probabilities: FloatArray, form: AnswerForm) -> IntArray | FloatArray:
    """The answers: classes (N,); 0 or 1 for every label (N, C); numbers (N,)."""
    if form.kind == "score":
        return probabilities[:, 0]
    if form.kind == "multiple":
        given: IntArray = (probabilities >= form.cutoff).astype(np.int64)
        return given
    best: IntArray = probabilities.argmax(axis=1)
    return best


def label_text(label: Label, names: Sequence[str], form: AnswerForm) -> str:
    """An answer as a person reads it; `names` are those of the classes. For files see `joined`."""
    if form.kind == "score":
        return number_text(float(label))  # type: ignore[arg-type]
    labels = labels_named(label, names)
    return (joined(labels, form) if labels else "no label") if form.kind == "multiple" else labels[0]


def as_label(answer: Any) -> Label:
    """One of the answers that `decide` gives as a plain value."""
    plain = answer.tolist()
    return tuple(plain) if isinstance(plain, list) else plain


def labels_named(label: Label, names: Sequence[str]) -> tuple[str, ...]:
    """The names an answer holds; those of a set in the order of the classes."""
    if isinstance(label, int | np.integer):
        return (names[int(label)],)
    if isinstance(label, float):
        return ()
    return tuple(name for name, given in zip(names, label, strict=True) if given)


def joined(labels: Iterable[str], form: AnswerForm) -> str:
    """Several labels in one cell, as the training file divides them.

    None at all are an empty array; and an array they are where what divides them stands in one of them.
    """
    labels = tuple(labels)
    if not labels or not form.separator or any(form.separator in label for label in labels):
        return json.dumps(labels, ensure_ascii=False)
    return form.separator.join(labels)


def number_text(value: float) -> str:
    """A number with four significant digits at least, and none lost before the point."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"


def read_answer(
    row: FloatArray, names: Sequence[str], form: AnswerForm, *, threshold: float | None, truncated: bool
) -> Answer:
    """Names one row (C,) of `probabilities_of`."""
    if form.kind == "score":
        value = float(row[0])
        return Answer(number_text(value), None, {}, abstained=False, truncated=truncated, value=value)
    probabilities = dict(zip(names, map(float, row), strict=True))
    if form.kind == "multiple":
        labels = labels_named(tuple(decide(row[None], form)[0].tolist()), names)
        sure = min((probabilities[name] for name in labels), default=1 - float(row.max()))
        return Answer(
            joined(labels, form), sure, probabilities, abstained=False, truncated=truncated, labels=labels
        )
    best = int(row.argmax())
    top = float(row[best])
    return Answer(
        label=names[best],
        probability=top,
        probabilities=probabilities,
        abstained=threshold is not None and top < threshold,
        truncated=truncated,
        labels=(names[best],),
    )
