"""Scores of a classifier that gives every row a set of labels, perhaps an empty one.

Each label is a question of yes or no. Micro-F1 counts all these questions together and decides; it is the
usual score where labels are many and uneven, such as Reuters' topics (Lewis et al. 2004, section 5.1).
Answers and predictions are (N, C) arrays of 0 and 1. Every interval is a bootstrap over rows, whose labels
stay together, or over groups of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gptailor.evaluate.calibrate import bin_numbers, binned, likeliest_temperature
from gptailor.evaluate.metrics import (
    PER_CLASS,
    Counts,
    as_score,
    check_rows,
    class_scores,
    interval,
    macro,
    unless_all_alike,
)
from gptailor.evaluate.resampling import ROWS, Resampling, columns
from gptailor.models.readout import decide, probabilities_of, sigmoid
from gptailor.types import AnswerForm, EvalReport, FloatArray, IntArray, Predictions, Score

BINS = 15
MOST_CONFUSED = 12


def micro_f1(answers: IntArray, predictions: IntArray) -> float:
    """F1 over all labels of all rows taken together; 0 where nothing is right."""
    right, there = int((answers & predictions).sum()), int(answers.sum() + predictions.sum())
    return 2 * right / there if there else 0.0


def best_cutoff(probabilities: FloatArray, answers: IntArray) -> tuple[float, float]:
    """The one probability from which labels are given for the best micro-F1, and that micro-F1.

    It lies half-way between the last probability that is given and the first that isn't. Of equal ones the
    highest stays. 0.5 where no row carries a label. Shapes: (N, C).
    """
    order = np.argsort(-probabilities, axis=None, kind="stable")
    sorted_ones = probabilities.ravel()[order]
    right = np.cumsum(answers.ravel()[order])
    if not len(order) or right[-1] == 0:
        return 0.5, 0.0
    scores = 2 * right / (np.arange(1, len(order) + 1) + right[-1])
    last = np.append(sorted_ones[1:] != sorted_ones[:-1], True)  # equal ones are given together or not
    scores[~last] = -1
    best = int(scores.argmax())
    below = sorted_ones[best + 1] if best + 1 < len(order) else 0.0
    return float((sorted_ones[best] + below) / 2), float(scores[best])


def score_logits(logits: FloatArray, answers: IntArray) -> float:
    """Micro-F1 of (N, C) logits at the cutoff that suits these rows best."""
    return best_cutoff(sigmoid(logits), answers)[1]


def mean_nats(logits: FloatArray, answers: IntArray, temperature: float = 1.0) -> float:
    """Binary cross-entropy, summed over the labels and averaged over the rows."""
    scaled = logits / temperature
    return float((np.logaddexp(0, scaled) - answers * scaled).sum() / max(1, len(logits)))


def fit_label_temperature(logits: FloatArray, answers: IntArray) -> float:
    """One temperature for all labels: the likeliest, with the prior of `calibrate.fit_temperature`."""
    if not answers.size:
        return 1.0
    return likeliest_temperature(lambda value: mean_nats(logits, answers, value) * len(logits))


def label_set_scores(
    answers: IntArray,
    predictions: IntArray,
    label_names: Sequence[str],
    *,
    resampling: Resampling = ROWS,
) -> dict[str, Any]:
    """Every score of the sets, each with a 95 % bootstrap interval.

    Point values equal scikit-learn's with `zero_division=0`; macro averages run over the labels that stand in
    the answers or the predictions. `subset_accuracy` is the share of rows whose whole set is right,
    `hamming_loss` the share of wrong decisions among rows x labels.
    """
    (true, guessed), cells = _cells(answers, predictions)
    differing = (true != guessed).astype(np.float64)
    whole, share = (differing.max(axis=1) == 0).astype(np.float64), differing.mean(axis=1)
    point, resampled = _counts(np.bincount(cells)[None], true, guessed), []
    means: list[FloatArray] = []
    for times in resampling.counts(cells):
        resampled.append(_counts(times, true, guessed))
        means.append(times @ np.stack([whole, share], axis=1) / times.sum(axis=1, keepdims=True))
    drawn = Counts(
        *(
            np.concatenate([getattr(c, part) for c in resampled])
            for part in ("right", "answered", "predicted")
        )
    )
    scores: dict[str, Any] = {name: as_score(one(point), one(drawn)) for name, one in SUMMARIES.items()}
    points = np.bincount(cells) @ np.stack([whole, share], axis=1) / len(answers)
    for place, name in enumerate(("subset_accuracy", "hamming_loss")):
        scores[name] = interval(float(points[place]), np.concatenate(means)[:, place])
    rows = resampling.num_units(len(answers))
    scores["subset_accuracy"] = unless_all_alike(scores["subset_accuracy"], rows)
    whole = scores["subset_accuracy"]
    if whole.value in (0, 1):  # then no resample differs, whatever the score
        scores |= {name: whole for name in SUMMARIES if scores[name].value == whole.value}
    if whole.value == 1:
        scores["hamming_loss"] = Score(0.0, 0.0, 1 - whole.low)  # of a wrong set at most all labels are wrong
    classes = {name: class_scores(one(point), one(drawn)) for name, one in PER_CLASS.items()}
    units = resampling.units(len(answers))
    for name, member in (("precision", predictions), ("recall", answers), ("f1", answers)):
        classes[name] = [
            unless_all_alike(score, len(np.unique(units[held > 0])))
            for score, held in zip(classes[name], member.T, strict=True)
        ]
    scores["per_class"] = {
        label: {
            **{name: classes[name][place] for name in PER_CLASS},
            "support": int(point.answered[0, place]),
        }
        for place, label in enumerate(label_names)
    }
    return scores


def paired_label_set_difference(
    answers: IntArray, ours: IntArray, theirs: IntArray, *, resampling: Resampling = ROWS
) -> Score:
    """Our micro-F1 minus theirs on the same rows, with the interval of a paired bootstrap."""
    (true, our_sets, their_sets), cells = _cells(answers, ours, theirs)
    statistic = SUMMARIES["micro_f1"]

    def difference(times: Any) -> FloatArray:
        return statistic(_counts(times, true, our_sets)) - statistic(_counts(times, true, their_sets))

    drawn = [difference(times) for times in resampling.counts(cells)]
    return as_score(difference(np.bincount(cells)[None]), np.concatenate(drawn))


def evaluate_label_sets(
    logits: FloatArray,
    answers: IntArray,
    *,
    form: AnswerForm,
    label_names: Sequence[str],
    split: str,
    temperature: float,
    resampling: Resampling,
) -> EvalReport:
    """Scores with intervals from (N, C) logits and (N, C) answers, at the form's cutoff."""
    probabilities = probabilities_of(logits, form, temperature=temperature)
    scores = label_set_scores(
        answers,
        np.asarray(decide(probabilities, form), np.int64),
        label_names,
        resampling=resampling,
    )
    for place, label in enumerate(label_names):
        scores["per_class"][label]["calibration_error"] = float(
            np.abs(_gaps(probabilities[:, [place]], answers[:, [place]]).sum(axis=0)).sum() / len(answers)
        )
    before = label_calibration_error(sigmoid(logits), answers, resampling=resampling)
    return EvalReport(
        split=split,
        size=len(answers),
        scores={
            **scores,
            "calibration_error": label_calibration_error(probabilities, answers, resampling=resampling),
            "calibration_error_before": before,
        },
        predictions=Predictions(probabilities, answers),
    )


def label_calibration_error(
    probabilities: FloatArray, answers: IntArray, *, resampling: Resampling = ROWS
) -> Score:
    """How far the labels' probabilities are from how often the labels are there, over rows x labels.

    Fifteen equal-width bins of all (N, C) probabilities, as in `calibrate.expected_calibration_error`.
    """
    check_rows(len(answers))
    *gaps, rows = resampling.sums(columns(*_gaps(probabilities, answers).T)).T
    errors = np.abs(gaps).sum(axis=0) / (rows * answers.shape[1])
    return interval(float(errors[0]), errors[1:])


def label_set_details(
    logits: FloatArray,
    answers: IntArray,
    *,
    form: AnswerForm,
    label_names: Sequence[str],
    temperature: float,
) -> dict[str, Any]:
    """What the page draws beside the scores: which labels are missed and invented, reliability."""
    before, after = sigmoid(logits), probabilities_of(logits, form, temperature=temperature)
    given = np.asarray(decide(after, form), np.int64)
    missed, invented = (answers > given).sum(axis=0).tolist(), (given > answers).sum(axis=0).tolist()
    there = answers.ravel().astype(np.float64)
    wrong = [one for one in zip(missed, invented, label_names, strict=True) if one[0] + one[1]]
    wrong.sort(key=lambda one: (-one[0] - one[1], one[2]))
    return {
        "label_names": list(label_names),
        "errors_by_label": [
            {"label": name, "missed": less, "invented": more} for less, more, name in wrong[:MOST_CONFUSED]
        ],
        "reliability": {"before": binned(before.ravel(), there), "after": binned(after.ravel(), there)},
        "temperature": temperature,
        "cutoff": form.cutoff,
        "labels_a_row": {
            "answer": float(answers.sum(axis=1).mean()),
            "prediction": float(given.sum(axis=1).mean()),
        },
    }


def rarest_label(answers: IntArray, *, fewest: int) -> IntArray:
    """(N,) the rarest label of each row, to spread rows evenly by; C where it has too few rows, or none."""
    counts = answers.sum(axis=0)
    rarity = np.where(answers == 1, counts, len(answers) + 1)
    rarest = rarity.argmin(axis=1)
    rarest[answers.sum(axis=1) == 0] = answers.shape[1]
    sizes = np.bincount(rarest, minlength=answers.shape[1] + 1)
    rarest[sizes[rarest] < fewest] = answers.shape[1]
    found: IntArray = rarest.astype(np.int64)
    return found


def _gaps(probabilities: FloatArray, answers: IntArray) -> FloatArray:
    """(N, bins) sums of probability less truth of each row's labels, by the bin of the probability."""
    rows = len(answers)
    cell = bin_numbers(probabilities, BINS) + BINS * np.arange(rows)[:, None]
    gaps = np.bincount(cell.ravel(), weights=(probabilities - answers).ravel(), minlength=BINS * rows)
    by_row: FloatArray = gaps.astype(np.float64).reshape(rows, BINS)
    return by_row


def _cells(*sets: IntArray) -> tuple[list[FloatArray], IntArray]:
    """The combinations of (N, C) sets that occur, each as (K, C) arrays, and which each row is, (N,)."""
    check_rows(len(sets[0]))
    if len({one.shape for one in sets}) != 1 or any(((one != 0) & (one != 1)).any() for one in sets):
        raise ValueError(f"need 0 and 1 in arrays of one shape (N, C), got {[one.shape for one in sets]}")
    found, cells = np.unique(np.hstack(sets), axis=0, return_inverse=True)
    return [part.astype(np.float64) for part in np.split(found, len(sets), axis=1)], cells


def _counts(draws: Any, true: FloatArray, guessed: FloatArray) -> Counts:
    """Per-label counts (R, C) from cell counts (R, K)."""
    cells = np.asarray(draws, np.float64)
    return Counts(cells @ (true * guessed), cells @ true, cells @ guessed)


def _micro(statistic: Callable[[Counts], FloatArray]) -> Callable[[Counts], FloatArray]:
    """A statistic of all labels taken together; 0 where it isn't defined."""

    def over_all(counts: Counts) -> FloatArray:
        summed = Counts(*(part.sum(axis=-1) for part in (counts.right, counts.answered, counts.predicted)))
        found: FloatArray = np.nan_to_num(statistic(summed))
        return found

    return over_all


def _macro_or_none(statistic: Callable[[Counts], FloatArray]) -> Callable[[Counts], FloatArray]:
    """The mean over labels; 0 where no label stands in answers or predictions, as sets may all be empty."""
    over_labels = macro(statistic)

    def over_classes(counts: Counts) -> FloatArray:
        with np.errstate(invalid="ignore"):
            found: FloatArray = np.nan_to_num(over_labels(counts))
        return found

    return over_classes


SUMMARIES: dict[str, Callable[[Counts], FloatArray]] = {
    **{f"micro_{name}": _micro(statistic) for name, statistic in PER_CLASS.items()},
    **{f"macro_{name}": _macro_or_none(statistic) for name, statistic in PER_CLASS.items()},
}
