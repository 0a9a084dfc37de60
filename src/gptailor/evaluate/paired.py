"""Several systems on the same rows: one set of resamples for all, paired tests, and a correction for many.

A score is a function of sums over rows, so a resample costs a product of matrices, and because every system
sees the same resamples, what makes a row easy or hard for all of them cancels (Koehn 2004).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np

from gptailor.evaluate.metrics import interval
from gptailor.evaluate.resampling import ROWS, Resampling
from gptailor.types import FloatArray, Score

FromSums = Callable[[FloatArray], FloatArray]  # (R, K) sums over rows to (R,) scores


def resampled_sums(rows: Mapping[str, FloatArray], *, resampling: Resampling) -> dict[str, FloatArray]:
    """Sums over the rows as they are, then over each resample: (1 + R, K) of each (N, K)."""
    if not rows:
        return {}
    ends = np.cumsum([block.shape[1] for block in rows.values()])[:-1]
    sums = resampling.sums(np.hstack(list(rows.values())))
    return dict(zip(rows, np.split(sums, ends, axis=1), strict=True))


def resampled_scores(
    rows: Mapping[str, FloatArray], score: FromSums, *, resampling: Resampling = ROWS
) -> dict[str, FloatArray]:
    """(1 + R,) scores of each system from its (N, K) rows: as they are, then of each resample.

    Some resamples at a time: with many classes the sums of all would be large.
    """
    scores = [[score(sums) for sums in piece] for piece in resampling.drawn(list(rows.values()))]
    return {name: np.concatenate(parts) for name, parts in zip(rows, zip(*scores, strict=True), strict=True)}


def difference_of(ours: FloatArray, theirs: FloatArray) -> tuple[Score, float]:
    """Ours minus theirs with its interval and its two-sided bootstrap p-value, from (1 + R,) scores.

    The p-value is twice the share of resamples on the other side of zero, each share counted with one
    more so that it is never 0 (Davison & Hinkley 1997, equation 4.11); ties count for both sides. Of
    too few rows it is 1.
    """
    gaps = ours - theirs
    drawn = gaps[1:]
    sides = [len(drawn) - int(np.count_nonzero(side)) for side in (drawn > 0, drawn < 0)]
    return interval(float(gaps[0]), drawn), min(1.0, 2 * (1 + min(sides)) / (1 + len(drawn)))


def corrected_for_all_pairs(drawn: Mapping[str, FloatArray]) -> dict[frozenset[str], float]:
    """Holm's p-values of the difference of each pair, from the (1 + R,) scores of each system.

    Who compares all others with the best picked it by these very rows: it could have been any, so all pairs
    count.
    """
    pairs = [*combinations(drawn, 2)]
    corrected = holm([difference_of(drawn[one], drawn[other])[1] for one, other in pairs])
    return {frozenset(pair): value for pair, value in zip(pairs, corrected, strict=True)}


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm 1979): they hold for all the tests together."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
