"""How often the preferred answer is ranked first, with an interval, and what ranks without a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptailor.evaluate.metrics import bootstrap_mean, bootstrap_share
from gptailor.evaluate.resampling import Resampling
from gptailor.types import FloatArray, Score


def right_shares(margins: Sequence[float] | FloatArray) -> FloatArray:
    """(N,) 1 where the chosen answer is ahead, 0 where it is behind, a half where neither is."""
    values = np.asarray(margins, np.float64)
    return np.where(values > 0, 1.0, np.where(values < 0, 0.0, 0.5))


def ranking_score(margins: Sequence[float] | FloatArray) -> float:
    """The share of pairs ranked right; equal shares differ by the mean margin over the margins' mean size.

    No factor of the margins changes it, so settings that scale them can be compared by it. Margins move it
    by less than half a pair, so that `ranked_share` finds the share again.
    """
    values = np.asarray(margins, np.float64)
    ahead = float(values.mean()) / (float(np.abs(values).mean()) or 1.0)  # from -1 to 1
    return float(right_shares(values).mean()) + 0.2 * ahead / len(values)


def ranked_share(score: float, pairs: int) -> float:
    """The share in a ranking score of so many pairs, of which one can be ranked half right."""
    return round(2 * pairs * score) / (2 * pairs)


def share_score(shares: FloatArray, *, resampling: Resampling) -> Score:
    """The mean of (N,) shares with its 95 % bootstrap interval."""
    return bootstrap_share(shares, resampling=resampling)


def share_difference(ours: FloatArray, theirs: FloatArray, *, resampling: Resampling) -> Score:
    """Our mean minus theirs on the same rows, with the interval of a paired bootstrap."""
    return bootstrap_mean(ours - theirs, resampling=resampling)


def by_length(chosen: Sequence[str], rejected: Sequence[str]) -> FloatArray:
    """(N,) how much longer the chosen answer is, in characters: all that a preference for length sees."""
    return np.array([len(a) - len(b) for a, b in zip(chosen, rejected, strict=True)], np.float64)
