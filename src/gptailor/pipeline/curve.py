"""How many more labels? The score over the number of training rows, measured and carried on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from gptailor.errors import InputError, number_of
from gptailor.evaluate.learning_curve import CurvePoint, forecast, nested_order, subset_sizes
from gptailor.evaluate.metrics import as_json
from gptailor.pipeline.classify import by_text
from gptailor.pipeline.frozen import features_of, features_of_names, fit_head
from gptailor.pipeline.labels import answers_of
from gptailor.pipeline.taught import in_weights, marks_of
from gptailor.pipeline.workshop import Workshop, folds_of
from gptailor.recipe import FrozenApproach
from gptailor.types import FloatArray, IntArray, Score, TokenizedExample

FEWEST_TEXTS = 100  # with fewer, no curve can be told from noise
ENOUGH_HELD_OUT = 500  # validation texts; fewer, and the texts are judged out of fold
MOST_TEXTS = 10_000  # the curve needs no more, and the fits would take long
WORK = 1_700_000  # rows times classes of one fit, times the subsets drawn of each size
FURTHEST = 10  # times the rows: no forecast reaches beyond
SMALLEST_SUBSET = 20
PATIENCE = 3  # strengths without gain before the search ends
STRENGTHS = (1 / 3, 1.0, 3.0)  # tried at each size, times the best one for all rows
CHOOSING = 4  # of the subsets of a size choose its strength
LITTLE = 0.01  # a gain of less than a point is hardly worth labelling for


@dataclass(frozen=True, slots=True)
class Splits:
    """Training and held-out texts, by their places; rows are the windows of a text."""

    rows: Sequence[TokenizedExample]
    texts: IntArray  # (N,) the text that a row belongs to
    answers: Any  # (M,) of the texts
    parts: list[tuple[IntArray, IntArray]]  # texts inside and outside
    held_out: int  # texts that are judged


@dataclass(frozen=True, slots=True)
class Features:
    """What heads are fitted to: features of the rows of `Splits`, and of the labels' names."""

    rows: FloatArray  # (N, H)
    names: FloatArray  # (C, H), or none


def has_curve(shop: Workshop) -> bool:
    """Whether a report can tell a curve."""
    return shop.kind.form.kind != "score" and len(shop.tokens.examples["train"]) >= FEWEST_TEXTS


def learning_curve(
    shop: Workshop,
    model: PreTrainedModel,
    *,
    approach: str = "frozen",
    more: Sequence[int] = (),
    strength: float | None = None,
) -> dict[str, Any]:
    """The curve and its forecasts as plain values: see `report.json` in docs/run-folder.md.

    Args:
        shop: Tokenized rows and their base.
        model: The base, for features that the cache doesn't hold.
        approach: What the person's model was made with, to be said where it isn't frozen.
        more: How many more rows to forecast for; nothing: as many again, and four times as many.
        strength: The head's inverse regularization where it is known, for a report's quick look; None: every
            size chooses its own, and more subsets are drawn.

    Raises:
        InputError: `more` is further than can be forecast.
    """
    splits = _splits_of(shop)
    features = Features(features_of(shop, model, splits.rows), features_of_names(shop, model))
    points = measure(shop, splits, features, strength=strength)
    now, rows = float(points[-1].scores.mean()), points[-1].rows
    if rows == MOST_TEXTS < len(shop.tokens.examples["train"]):  # the rest of the rows is forecast, too
        rows = len(shop.tokens.examples["train"])
        now = forecast(points, [rows], seed=shop.recipe.seed)[0].value
    wanted = [rows + extra for extra in more or (_round(rows), _round(4 * rows))]
    if max(wanted) > FURTHEST * rows or min(wanted) <= rows:
        raise InputError(
            f"{max(more):,} more rows can't be forecast from {rows:,}.",
            fix=f"Ask for 1 to {(FURTHEST - 1) * rows:,} more.",
        )
    band = np.unique(np.geomspace(rows * 1.05, max(wanted), 12).round().astype(int)).tolist()
    found = forecast(points, [*wanted, *band], seed=shop.recipe.seed)
    told = [
        {
            "more": total - rows,
            "rows": total,
            "score": as_json(score),
            "on_new_rows": as_json(_on_new(score, splits.held_out)),
        }
        for total, score in zip(wanted, found, strict=False)
    ]
    metric = "accuracy" if shop.kind.form.kind == "single" else shop.kind.metric
    before, flatters = _taught_before(shop)
    return {
        "metric": metric,
        "measured_with": "frozen",
        "approach": approach,
        "rows": rows,
        "held_out": splits.held_out,
        "taught_before": before,
        "now": round(now, 6),
        "points": [
            {
                "rows": point.rows,
                "score": round(float(point.scores.mean()), 6),
                "low": round(float(point.scores.mean(axis=0).min()), 6),
                "high": round(float(point.scores.mean(axis=0).max()), 6),
            }
            for point in points
        ],
        "forecasts": told,
        "band": [
            {"rows": size, **as_json(score)} for size, score in zip(band, found[len(wanted) :], strict=True)
        ],
        "says": in_words(told, now=now, metric=metric, approach=approach) + flatters,
    }


def measure(
    shop: Workshop, splits: Splits, features: Features, *, strength: float | None = None
) -> list[CurvePoint]:
    """Scores on the held-out texts after fits on nested stratified subsets of the others.

    As a fit would, each size takes the strength that is best on what is held out, unless one is given.
    """
    largest, classes = min(len(inside) for inside, _ in splits.parts), len(shop.label_names)
    rng = np.random.default_rng((shop.recipe.seed, 5))
    repeats = subsets_drawn(
        largest * (1 if classes == 2 else classes), len(splits.parts), strength is not None
    )
    orders = [
        [inside[nested_order(shop.kind.strata(splits.answers[inside]), rng)] for _ in range(repeats)]
        for inside, _ in splits.parts
    ]
    best, scores = best_strength(shop, splits, features, [strength] if strength else None)
    points = [CurvePoint(largest, scores)]
    factors = STRENGTHS if strength is None else (1.0,)
    # A forecast needs three sizes; of many labels and few rows, the small ones can't hold every label twice.
    smallest = min(max(SMALLEST_SUBSET, 2 * classes), largest // 2)
    for size in subset_sizes(largest, smallest=smallest)[-2::-1]:
        drawn = [[order[:size] for order in of_split] for of_split in orders]
        first, rest = (
            [part[places] for part in drawn] for places in (slice(CHOOSING), slice(CHOOSING, None))
        )
        tried = [_scores(shop, splits, features, first, best * factor) for factor in factors]
        chosen = int(np.argmax([scores.mean() for scores in tried]))
        more = _scores(shop, splits, features, rest, best * factors[chosen])
        points.append(CurvePoint(size, np.concatenate([tried[chosen], more], axis=1)))
    return points[::-1]


def best_strength(
    shop: Workshop, splits: Splits, features: Features, strengths: Sequence[float] | None = None
) -> tuple[float, FloatArray]:
    """The strength with the best score after fits on all rows, and the scores (S, 1) of the splits."""
    largest = min(len(inside) for inside, _ in splits.parts)
    whole = [[inside[:largest]] for inside, _ in splits.parts]
    best, best_scores, worse, gained = 0.0, np.full((len(whole), 1), -1.0), 0, False
    for strength in sorted(strengths or FrozenApproach().strengths):
        scores = _scores(shop, splits, features, whole, strength)
        if scores.mean() > best_scores.mean():
            gained = best > 0
            best, best_scores, worse = strength, scores, 0
        # Before a gain, equal ones may all be of the commonest label, as strong regularization answers.
        elif gained or scores.mean() < best_scores.mean():
            worse += 1
        if worse == PATIENCE:  # weaker and weaker regularization: fits that take long and won't win
            break
    return best, best_scores


def subsets_drawn(work: int, num_splits: int, quick: bool) -> int:
    """How many subsets of each size: as many as a look of seconds, or of a minute, can afford."""
    fewest, most = (2, 4) if quick else (4, 16)
    return max(2, min(most, max(fewest, WORK // work)) // num_splits)


def in_words(told: Sequence[Mapping[str, Any]], *, now: float, metric: str, approach: str) -> str:
    """Two or three sentences: what more rows would bring, and whether that is worth it."""
    first = told[0]
    low, value, high = (first["score"][key] for key in ("low", "value", "high"))
    score = "accuracy" if metric == "accuracy" else "micro-F1"
    if high - now < LITTLE:
        advice = "More rows of this kind would hardly help."
    elif low > now:
        advice = "More rows would help."
    else:
        advice = "More rows may help; the interval holds no gain, too."
    return (
        f"With {first['more']:,} more rows about {100 * value:.1f} % {score} ({100 * low:.1f} to "
        f"{100 * high:.1f}); now, with {first['rows'] - first['more']:,}, it is {100 * now:.1f} %. {advice}"
        + " Measured on held-out rows, not on the test's"
        + ("." if approach == "frozen" else ", with frozen features; the model itself may gain differently.")
    )


def _taught_before(shop: Workshop) -> tuple[int, str]:
    """How many of the texts that a curve is made from taught the run that is the base; and that in words."""
    taught = in_weights(shop.base, "frozen")
    if not len(taught):  # most bases are no run
        return 0, ""
    seen = [*shop.tokens.examples["train"], *shop.tokens.examples["validation"]]
    count = marks_of(enumerate(one.text for one in seen)).count_in(taught)
    told = (
        f" {count:,} of the {number_of(len(seen), 'row')} for training and validation taught the base "
        f"{shop.base.name}: the scores flatter, and new rows may bring more."
    )
    return count, told if count else ""


def _scores(
    shop: Workshop,
    splits: Splits,
    features: Features,
    drawn: Sequence[Sequence[IntArray]],
    strength: float,
) -> FloatArray:
    """(S, R) by split and subset of texts."""
    return np.array(
        [
            [_score(shop, splits, features, inside, outside, strength) for inside in of_split]
            for of_split, (_, outside) in zip(drawn, splits.parts, strict=True)
        ]
    )


def _score(
    shop: Workshop, splits: Splits, features: Features, inside: IntArray, outside: IntArray, strength: float
) -> float:
    """Of the texts outside, after a fit on those inside: the share right, or of sets micro-F1."""
    chosen = np.flatnonzero(np.isin(splits.texts, inside))
    judged = np.flatnonzero(np.isin(splits.texts, outside))
    answers = splits.answers[splits.texts[chosen]]
    weights = fit_head(shop, features.rows[chosen], answers, strength, names=features.names)
    rows = [splits.rows[place] for place in judged.tolist()]
    logits, answers = by_text(features.rows[judged] @ weights.T, rows)
    if shop.kind.form.kind == "single":
        return float((logits.argmax(axis=1) == answers).mean())
    return shop.kind.score(logits, answers)


def _splits_of(shop: Workshop) -> Splits:
    """Training against validation where that is large, given or the newest; else folds over both."""
    parts, kind = shop.tokens.rows, shop.kind
    rows = [*parts["train"], *parts["validation"]]
    keys = {key: place for place, key in enumerate(dict.fromkeys((row.source, row.row) for row in rows))}
    texts = np.array([keys[row.source, row.row] for row in rows])
    answers = answers_of([*shop.tokens.examples["train"], *shop.tokens.examples["validation"]])
    trained, held = (len(shop.tokens.examples[part]) for part in ("train", "validation"))
    rng = np.random.default_rng((shop.recipe.seed, 6))
    data = shop.recipe.data
    fixed = data.validation is not None or data.split.time is not None  # the future isn't to teach

    def bounded(inside: IntArray) -> IntArray:
        order = nested_order(kind.strata(answers[inside]), rng)[:MOST_TEXTS]
        return np.sort(inside[order])

    if fixed or held >= ENOUGH_HELD_OUT:
        outside = np.arange(trained, trained + held)
        return Splits(rows, texts, answers, [(bounded(np.arange(trained)), outside)], held)
    folds = [
        (bounded(np.unique(texts[inside])), np.unique(texts[outside]))
        for inside, outside in folds_of(rows, seed=shop.recipe.seed, strata=kind.strata)
    ]
    return Splits(rows, texts, answers, folds, len(answers))


def _on_new(score: Score, held_out: int) -> Score:
    """The interval for rows that nobody has seen: the held-out ones are a sample, too."""
    sampled = 1.96**2 * score.value * (1 - score.value) / held_out
    low, high = (np.sqrt((score.value - edge) ** 2 + sampled) for edge in (score.low, score.high))
    return Score(score.value, max(0.0, float(score.value - low)), min(1.0, float(score.value + high)))


def _round(rows: int) -> int:
    """To one digit that counts: what a person would ask for."""
    unit = int(10 ** (len(str(rows)) - 1))
    return round(rows / unit) * unit
