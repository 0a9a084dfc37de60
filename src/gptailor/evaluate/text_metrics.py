"""Scores of generated texts against references, each with an interval, and the paired test of two systems.

A score is a function of sums over rows (`text_rows`), so a resample costs a weighted sum and no text is read
twice. BLEU and chrF are sacrebleu's, ROUGE is rouge-score's on English text, exact match and F1 are SQuAD's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gptailor.errors import DataError, RecipeError, did_you_mean
from gptailor.evaluate import text_rows
from gptailor.evaluate.metrics import interval, unless_all_alike
from gptailor.evaluate.paired import resampled_sums
from gptailor.evaluate.resampling import ROWS, Resampling
from gptailor.evaluate.text_rows import TextAnswers
from gptailor.types import FloatArray, Score

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric as SacreMetric

__all__ = [
    "METRICS",
    "TextAnswers",
    "TextMetric",
    "paired_text_difference",
    "signature",
    "text_answer_scores",
]

BLEU_ORDERS = 4
CHRF_ORDERS = 6
CHRF_BETA = 2
# Means of rows from 0 to 1: where all rows are at one end, the interval is Wilson's.
SHARES = ("exact_match", "f1", "rouge_1", "rouge_2", "rouge_l", "stop_rate")
WORDS = "words:unicode|case:lower"


@dataclass(frozen=True, slots=True)
class TextMetric:
    """How a score is made.

    Args:
        rows: From N answers to what each row gives, (N, K).
        score: From sums of those over rows, (R, K), to R scores.
        signature: What someone needs to know to make the same number; sacrebleu says its own.
        of_texts: Whether it is a score of the predicted texts, and not of how they ended.
    """

    rows: Callable[[TextAnswers], FloatArray]
    score: Callable[[FloatArray], FloatArray]
    signature: str = ""
    of_texts: bool = True


def text_answer_scores(
    answers: TextAnswers, *, metrics: Sequence[str], resampling: Resampling = ROWS
) -> dict[str, Score]:
    """Scores of N generated texts, each with a 95 % percentile bootstrap interval over rows.

    BLEU and chrF are scores of the whole corpus, from 0 to 100; resamples sum each row's statistics, which is
    what sacrebleu would make of the resampled rows. All others go from 0 to 1 (length ratio has no end).
    All metrics see the same resamples.

    Args:
        answers: N rows.
        metrics: Names out of `METRICS`.
        resampling: Of the bootstrap.

    Raises:
        DataError: There is no row to score.
        RecipeError: There is no such metric.
    """
    chosen = {name: _metric(name) for name in metrics}
    _check(answers)
    rows = {name: metric.rows(answers) for name, metric in chosen.items()}
    scores = {}
    for name, sums in resampled_sums(rows, resampling=resampling).items():
        values = chosen[name].score(sums)
        scores[name] = interval(float(values[0]), values[1:])
        if name in SHARES:
            scores[name] = unless_all_alike(scores[name], resampling.num_units(len(answers.stopped)))
    return scores


def paired_text_difference(
    answers: TextAnswers,
    other_predictions: Sequence[str],
    *,
    metric: str,
    resampling: Resampling = ROWS,
) -> Score:
    """Our score minus the other system's on the same N rows, with the interval of a paired bootstrap.

    Both are scored on the same resampled rows, so that what makes a row easy or hard for both cancels
    (Koehn 2004).

    Raises:
        DataError: There is no row to score.
        RecipeError: There is no such metric.
        ValueError: The metric is not about the texts: `stop_rate`.
    """
    chosen = _metric(metric)
    if not chosen.of_texts:
        raise ValueError(f"{metric} is no score of the texts")
    others = replace(answers, predictions=other_predictions)
    for system in (answers, others):
        _check(system)
    rows = {"ours": chosen.rows(answers), "theirs": chosen.rows(others)}
    sums = resampled_sums(rows, resampling=resampling)
    ours, theirs = (chosen.score(sums[name]) for name in rows)
    return interval(float(ours[0] - theirs[0]), ours[1:] - theirs[1:])


def signature(metric: str, references: Sequence[Sequence[str]] | None = None) -> str:
    """What is needed to make the same number again: versions and choices, in sacrebleu's manner.

    With the references it also says how many a row has (`nrefs:var` where that differs).

    Raises:
        RecipeError: There is no such metric.
    """
    chosen = _metric(metric)
    if metric not in SACREBLEU:
        return chosen.signature
    scorer = SACREBLEU[metric]()
    sizes = {len(row) for row in references or ()}
    scorer.num_refs = sizes.pop() if len(sizes) == 1 else -1  # -1: it differs
    found = scorer.get_signature()
    if references is None:
        found.update("nrefs", None)  # left out
    return str(found)


def _metric(name: str) -> TextMetric:
    if name not in METRICS:
        raise RecipeError(
            f"there is no metric {name!r} for texts.{did_you_mean(name, METRICS)}",
            fix=f"Known are: {', '.join(METRICS)}.",
        )
    return METRICS[name]


def _check(answers: TextAnswers) -> None:
    sizes = [len(column) for column in (answers.predictions, answers.references, answers.stopped)]
    if len(set(sizes)) != 1:
        raise ValueError(f"need as many predictions as references and stops, got {sizes}")
    if not sizes[0]:
        raise DataError("there is no row to score.", fix="Give a file with at least one usable row.")
    bare = [row for row, references in enumerate(answers.references) if not references]
    if bare:
        raise ValueError(f"row {bare[0]} has no reference")


def _bleu_scorer() -> SacreMetric:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(force=True)  # no warning about texts that look tokenized: Multi30k ends in " ."


def _chrf_scorer() -> SacreMetric:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


SACREBLEU: dict[str, Callable[[], SacreMetric]] = {"bleu": _bleu_scorer, "chrf": _chrf_scorer}


def _sacrebleu_rows(answers: TextAnswers, name: str) -> FloatArray:
    return text_rows.sacrebleu_rows(answers, SACREBLEU[name]())


def _bleu(sums: FloatArray) -> FloatArray:
    """Corpus BLEU from (R, 10): both lengths, then the right n-grams of orders 1 to 4, then all of them.

    Papineni et al. 2002, with sacrebleu's default smoothing: the first order without a match counts as
    half a match, the next one as a quarter, and so on (Chen & Cherry 2014, method 3).
    """
    found, expected = sums[:, 0], sums[:, 1]
    right, total = np.split(sums[:, 2:], [BLEU_ORDERS], axis=1)
    missed = (right == 0) & (total > 0)
    smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=1), right)
    with np.errstate(divide="ignore"):  # the logarithm of 0 is as it should be: the score is 0
        logarithms = np.log(_ratio(smoothed, total)).mean(axis=1)
    brevity = np.minimum(1.0, np.exp(1 - _ratio(expected, found)))
    return np.where(right.any(axis=1), 100 * brevity * np.exp(logarithms), 0.0)


def _chrf(sums: FloatArray) -> FloatArray:
    """Corpus chrF2 from (R, 18): for orders 1 to 6 the n-grams found, expected and matched.

    Popović 2015; precision and recall are averaged over the orders that both sides have.
    """
    found, expected, matched = np.moveaxis(sums.reshape(len(sums), CHRF_ORDERS, 3), 2, 0)
    both = (found > 0) & (expected > 0)
    orders = both.sum(axis=1).astype(np.float64)
    precision = _ratio((_ratio(matched, found) * both).sum(axis=1), orders)
    recall = _ratio((_ratio(matched, expected) * both).sum(axis=1), orders)
    weight = CHRF_BETA**2
    return 100 * _ratio((1 + weight) * precision * recall, weight * precision + recall)


def _quotient(sums: FloatArray) -> FloatArray:
    """The first sum over the second, (R, 2); a mean where the second is a count."""
    return _ratio(sums[:, 0], sums[:, 1])


def _share(sums: FloatArray) -> FloatArray:
    """A quotient that cannot leave 0 to 1; linearized scores could, in a resample."""
    return np.clip(_quotient(sums), 0.0, 1.0)


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """0 where nothing stands below."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _rouge(matches: Callable[[list[str], list[str]], tuple[int, int, int]]) -> TextMetric:
    return TextMetric(
        partial(text_rows.rouge_rows, matches=matches),
        _quotient,
        f"{WORDS}|stem:porter-nltk|refs:best|as:rouge-score-0.1.2",
    )


METRICS: dict[str, TextMetric] = {
    "bleu": TextMetric(partial(_sacrebleu_rows, name="bleu"), _bleu),
    "chrf": TextMetric(partial(_sacrebleu_rows, name="chrf"), _chrf),
    "rouge_1": _rouge(partial(text_rows.ngram_matches, order=1)),
    "rouge_2": _rouge(partial(text_rows.ngram_matches, order=2)),
    "rouge_l": _rouge(text_rows.sequence_matches),
    "exact_match": TextMetric(text_rows.exact_match_rows, _quotient, "norm:squad-1.1|refs:best"),
    "f1": TextMetric(text_rows.word_f1_rows, _quotient, "norm:squad-1.1|refs:best|empty:squad-2.0"),
    "distinct_1": TextMetric(partial(text_rows.distinct_rows, order=1), _share, f"{WORDS}|order:1|corpus"),
    "distinct_2": TextMetric(partial(text_rows.distinct_rows, order=2), _share, f"{WORDS}|order:2|corpus"),
    "repetition": TextMetric(text_rows.repetition_rows, _quotient, f"{WORDS}|order:4|mean"),
    "stop_rate": TextMetric(text_rows.stopped_rows, _quotient, "share", of_texts=False),
    "length_ratio": TextMetric(text_rows.length_rows, _quotient, f"{WORDS}|refs:closest|corpus"),
}
