"""Which unlabelled rows to label first: those the model is in doubt about, and not the same doubt twice.

Rows are chosen in batches. A batch comes out of the ten times as many rows the model doubts most: they are
clustered by what the model sees in them, and each cluster gives its most doubtful row (Zhdanov 2019, "Diverse
mini-batch active learning"; Citovsky et al. 2021). `benchmarks/active_choice.py` measures what that brings.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from gptailor.types import AnswerForm, FloatArray, IntArray

BATCH = 100  # rows chosen together: about what one sitting labels
MOST = 500  # rows chosen in batches; all others follow by doubt alone
SPREAD = 10  # a batch is chosen among so many times its size (Zhdanov's beta)


def doubts(probabilities: FloatArray, form: AnswerForm) -> FloatArray:
    """(N,) how much in doubt each answer is, 0 to 1, from (N, C) probabilities.

    One label: 1 less the margin between the two most probable ones. Several: how near the least sure label
    comes to the cutoff.
    """
    if form.kind == "multiple":
        nearest: FloatArray = np.abs(probabilities - form.cutoff).min(axis=1)
        return 1 - nearest / max(form.cutoff, 1 - form.cutoff)
    if probabilities.shape[1] < 2:
        return np.zeros(len(probabilities))
    two: FloatArray = np.partition(probabilities, -2, axis=1)[:, -2:]
    return 1 - (two[:, 1] - two[:, 0])


def most_telling_first(
    doubt: FloatArray,
    *,
    features_of: Callable[[IntArray], FloatArray],
    duplicates_of: Callable[[IntArray], IntArray],
    batch: int = BATCH,
    most: int = MOST,
    seed: int = 0,
) -> IntArray:
    """(N,) all rows, in the order in which labelling them teaches most.

    Args:
        doubt: (N,) from `doubts`.
        features_of: (n, H) features of the given rows; asked once, for the rows that may be chosen.
        duplicates_of: (n,) the group of near-duplicates of each of the given rows. Of a group one is chosen.
        batch: Rows chosen together.
        most: Rows chosen so; the others follow by doubt, those that nearly repeat a chosen one at the end.
        seed: Of the clustering.
    """
    by_doubt = np.argsort(-doubt, kind="stable").astype(np.int64)
    candidates = by_doubt[: most + (SPREAD - 1) * batch]
    if len(candidates) <= 2:
        return by_doubt
    _, first = np.unique(duplicates_of(candidates), return_index=True)
    first = np.sort(first)  # the most doubtful of each group
    features, rows = _standardized(features_of(candidates))[first], candidates[first]
    chosen: list[int] = []
    left = np.arange(len(rows))
    while len(left) and len(chosen) < most:
        pool = left[: SPREAD * batch]
        picked = _one_of_each_cluster(features[pool], doubt[rows[pool]], min(batch, most - len(chosen)), seed)
        chosen += rows[pool[picked]].tolist()
        left = np.setdiff1d(left, pool[picked])
    repeated = np.setdiff1d(candidates, rows)
    late = set(chosen) | set(repeated.tolist())
    others = [row for row in by_doubt.tolist() if row not in late]
    return np.array([*chosen, *others, *repeated[np.argsort(-doubt[repeated], kind="stable")]], np.int64)


def _one_of_each_cluster(features: FloatArray, doubt: FloatArray, count: int, seed: int) -> IntArray:
    """The most doubtful row of each of `count` clusters, the most doubtful of these first."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(features) <= count:
        return np.arange(len(features))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        fitted = KMeans(count, n_init=1, max_iter=30, random_state=seed).fit(
            features, sample_weight=np.maximum(doubt, 1e-6)
        )
    order = np.argsort(-doubt, kind="stable")
    _, first = np.unique(fitted.labels_[order], return_index=True)
    return order[np.sort(first)].astype(np.int64)


def _standardized(features: FloatArray) -> FloatArray:
    """Each feature with mean 0 and deviation 1, so that no large one decides alone."""
    deviation = features.std(axis=0)
    found: FloatArray = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    return found
