"""What each test row of a finished run gives to a score, from the files in its folder.

Runs are compared on these rows: row by row they must be the same texts with the same answers, whatever
order, file or tokenizer they came by.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptailor.data.ledger import undo_defusing
from gptailor.errors import ModelError
from gptailor.evaluate import label_sets, metrics
from gptailor.evaluate.metrics import Counts
from gptailor.evaluate.paired import FromSums
from gptailor.evaluate.preference import right_shares
from gptailor.evaluate.text_metrics import METRICS, TextAnswers
from gptailor.models.bundle import find_model_folder, read_bundle
from gptailor.pipeline.finished import BITS
from gptailor.recipe import load_recipe
from gptailor.tasks.labels import labels_in
from gptailor.types import AnswerForm, FloatArray, IntArray

Line = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """N test rows: what they are, and their lines in the run's file. `form` is that of a classifier."""

    keys: list[Hashable]
    lines: Sequence[Line]
    form: AnswerForm

    def in_order_of(self, keys: Sequence[Hashable]) -> list[Line]:
        """The lines in another run's order; the rows must be the same."""
        place = {key: place for place, key in enumerate(self.keys)}
        return [self.lines[place[key]] for key in keys]


@dataclass(frozen=True, slots=True)
class Road:
    """How the rows of one kind of run are read.

    Args:
        file: In the run folder.
        key: What a row is, so that the same row is known in another run.
        sums: From the lines of every run to what each row gives, (N, K), and to the score of sums.
    """

    file: str
    key: Callable[[Line, AnswerForm], Hashable]
    sums: Callable[[Sequence[Sequence[Line]], Sequence[AnswerForm], str], tuple[list[FloatArray], FromSums]]


def road_of(report: Mapping[str, Any], metric: str) -> Road | None:
    """How this run's rows give this score; None where they don't."""
    task = report.get("task")
    kind = str(report.get("answer") or ("single" if task == "classification" else task))
    if metric == "bits_per_byte":
        return BITS_ROAD
    if kind in ("completion", "chat"):
        return TEXT_ROAD if metric in METRICS and METRICS[metric].of_texts else None
    road, known = ROADS.get(kind, (None, ()))
    return road if metric in known else None


def read_scored_rows(run: Path, road: Road) -> ScoredRows | None:
    """The test rows of a run; None where the run has no such file."""
    path = run / road.file
    if not path.exists():
        return None
    csv.field_size_limit(2**31 - 1)  # not the usual 131,072 characters; a C long holds no more on Windows
    with path.open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    lines = [{name: undo_defusing(cell or "") for name, cell in line.items()} for line in cells]
    form = _form_of(run)
    seen: Counter[Hashable] = Counter()
    keys: list[Hashable] = []
    for line in lines:
        key = road.key(line, form)
        keys.append((key, seen[key]))  # a text may stand there twice
        seen[key] += 1
    return ScoredRows(keys, lines, form)


def _form_of(run: Path) -> AnswerForm:
    """What its labels stand in a cell by; also where the weights are gone."""
    try:
        return read_bundle(find_model_folder(run)).answer
    except ModelError:
        recipe = load_recipe(run / "recipe.yaml")
        kind = "single" if recipe.task_answer == "auto" else recipe.task_answer
        return AnswerForm(kind, recipe.data.label_separator or "")


def groups_in(lines: Sequence[Line]) -> IntArray:
    """(N,) ids: alike for what the run drew together."""
    ids: dict[Hashable, int] = {}
    groups = [line.get("group") or (line["source"], line["row"]) for line in lines]
    return np.array([ids.setdefault(group, len(ids)) for group in groups])


def _labels(cell: str, form: AnswerForm) -> tuple[str, ...]:
    return tuple(sorted({label for label in labels_in(cell, form) if label}))


def _label_sums(
    runs: Sequence[Sequence[Line]], forms: Sequence[AnswerForm], metric: str
) -> tuple[list[FloatArray], FromSums]:
    """Each row's labels that are right, those it carries, and those given: (N, 3 C)."""
    cells = [
        [(_labels(line["answer"], form), _labels(line["prediction"], form)) for line in run]
        for run, form in zip(runs, forms, strict=True)
    ]
    names = sorted({label for run in cells for pair in run for labels in pair for label in labels})
    places = {name: place for place, name in enumerate(names)}
    summaries = metrics.SUMMARIES if forms[0].kind == "single" else label_sets.SUMMARIES

    def marks(sets: Sequence[tuple[str, ...]]) -> FloatArray:
        found = np.zeros((len(sets), len(names)))
        for row, labels in enumerate(sets):
            found[row, [places[label] for label in labels]] = 1
        return found

    def score(sums: FloatArray) -> FloatArray:
        return summaries[metric](Counts(*np.split(sums, 3, axis=1)))

    found = []
    for run in cells:
        answers, predictions = marks([a for a, _ in run]), marks([p for _, p in run])
        found.append(np.hstack([answers * predictions, answers, predictions]))
    return found, score


def _number_sums(
    runs: Sequence[Sequence[Line]], _: Sequence[AnswerForm], metric: str
) -> tuple[list[FloatArray], FromSums]:
    """Each row's error, squared or absolute, and its count: (N, 2)."""

    def errors(run: Sequence[Line]) -> FloatArray:
        gaps = np.array([float(line["answer"]) - float(line["prediction"]) for line in run])
        return np.column_stack([gaps**2 if metric == "rmse" else np.abs(gaps), np.ones(len(run))])

    def score(sums: FloatArray) -> FloatArray:
        means = sums[:, 0] / sums[:, 1]
        found: FloatArray = np.sqrt(means) if metric == "rmse" else means
        return found

    return [errors(run) for run in runs], score


def _text_sums(
    runs: Sequence[Sequence[Line]], _: Sequence[AnswerForm], metric: str
) -> tuple[list[FloatArray], FromSums]:
    """What each written answer gives beside the reference that stands in the file."""

    def answers(run: Sequence[Line]) -> TextAnswers:
        references = tuple((line["reference"],) for line in run)
        stopped = tuple(line["ended"] == "True" for line in run)
        return TextAnswers(tuple(line["answer"] for line in run), references, stopped)

    return [METRICS[metric].rows(answers(run)) for run in runs], METRICS[metric].score


def _preference_sums(
    runs: Sequence[Sequence[Line]], _: Sequence[AnswerForm], __: str
) -> tuple[list[FloatArray], FromSums]:
    """1 where the preferred answer is ahead, and its count: (N, 2)."""
    shares = [right_shares([float(line["margin"]) for line in run]) for run in runs]
    return [np.column_stack([one, np.ones(len(one))]) for one in shares], _quotient


def _bit_sums(
    runs: Sequence[Sequence[Line]], _: Sequence[AnswerForm], __: str
) -> tuple[list[FloatArray], FromSums]:
    """Each piece's bits and bytes: (N, 2)."""

    def costs(run: Sequence[Line]) -> FloatArray:
        bits = np.array([float(line["nats"]) for line in run]) / np.log(2)
        return np.column_stack([bits, [float(line["bytes"]) for line in run]])

    return [costs(run) for run in runs], _quotient


def _quotient(sums: FloatArray) -> FloatArray:
    found: FloatArray = sums[:, 0] / np.maximum(1, sums[:, 1])
    return found


BITS_ROAD = Road(BITS, lambda line, _: (Path(line["source"]).name, line["row"], line["bytes"]), _bit_sums)
TEXT_ROAD = Road("predictions.csv", lambda line, _: (line["prompt"], line["reference"]), _text_sums)
LABEL_ROAD = Road(
    "predictions.csv", lambda line, form: (line["text"], _labels(line["answer"], form)), _label_sums
)
ROADS: dict[str, tuple[Road, Sequence[str]]] = {
    "single": (LABEL_ROAD, tuple(metrics.SUMMARIES)),
    "multiple": (LABEL_ROAD, tuple(label_sets.SUMMARIES)),
    "score": (
        Road("predictions.csv", lambda line, _: (line["text"], float(line["answer"])), _number_sums),
        ("rmse", "mae"),
    ),
    "preference": (
        Road(
            "predictions.csv",
            lambda line, _: (line["prompt"], line["chosen"], line["rejected"]),
            _preference_sums,
        ),
        ("preference_accuracy",),
    ),
}
