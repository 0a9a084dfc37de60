"""Which answer is ahead: shares, their intervals, paired differences, and what length alone says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor.evaluate.metrics import has_interval
from gptailor.evaluate.preference import (
    by_length,
    ranked_share,
    ranking_score,
    right_shares,
    share_difference,
    share_score,
)
from gptailor.evaluate.resampling import FEWEST_UNITS, Resampling

SETTINGS = {"resampling": Resampling(500, 0)}
margins = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def test_ahead_is_one_behind_is_nothing_and_a_tie_is_a_half() -> None:
    assert right_shares([2.0, -0.1, 0.0, 1e-12]).tolist() == [1, 0, 0.5, 1]


@given(margins)
def test_turned_round_it_is_the_other_half(values: list[float]) -> None:
    shares = right_shares(values)
    assert (shares + right_shares([-value for value in values])).tolist() == [1.0] * len(values)


def test_a_share_is_the_mean_with_an_interval_that_holds_it() -> None:
    shares = right_shares([1.0] * 70 + [-1.0] * 30)
    found = share_score(shares, resampling=Resampling(2000, 0))
    assert found.value == 0.7
    error = np.sqrt(0.7 * 0.3 / 100)  # of a binomial share
    assert found.low == pytest.approx(0.7 - 1.96 * error, abs=0.015)
    assert found.high == pytest.approx(0.7 + 1.96 * error, abs=0.015)
    assert share_score(shares, resampling=Resampling(2000, 0)) == found
    assert share_score(np.ones(9), **SETTINGS) == share_score(np.ones(9), resampling=Resampling(100, 7))


def test_a_difference_is_paired() -> None:
    """Two models that are wrong on the same rows differ surely; on others, hardly."""
    ours = np.array([1.0] * 60 + [0.0] * 40)
    same = np.array([1.0] * 50 + [0.0] * 50)
    other = np.array([0.0] * 40 + [1.0] * 50 + [0.0] * 10)
    paired, crossed = (share_difference(ours, theirs, **SETTINGS) for theirs in (same, other))
    assert paired.value == crossed.value == pytest.approx(0.1)
    assert paired.low > 0 > crossed.low
    assert share_difference(ours, ours, **SETTINGS).high == 0


@given(margins)
def test_a_difference_is_one_of_means(values: list[float]) -> None:
    ours, theirs = right_shares(values), right_shares(values[::-1])
    found = share_difference(ours, theirs, resampling=Resampling(100, 1))
    assert found.value == pytest.approx(ours.mean() - theirs.mean())
    turned = share_difference(theirs, ours, resampling=Resampling(100, 1))
    expected = pytest.approx((-found.value, -found.high, -found.low), nan_ok=True)
    assert (turned.value, turned.low, turned.high) == expected
    assert has_interval(found) == (len(values) >= FEWEST_UNITS)


def test_length_counts_characters_and_sees_nothing_else() -> None:
    assert by_length(["longer", "a", "ab", "日本"], ["long", "ab", "ba", "J"]).tolist() == [2, -1, 0, 1]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        by_length(["a", "b"], ["c"])


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=40), st.sampled_from([0.03, 1.0, 250.0]))
def test_a_ranking_score_has_no_scale_and_holds_the_share(values: list[int], factor: float) -> None:
    score = ranking_score(values)
    assert ranking_score([factor * value for value in values]) == pytest.approx(score, abs=1e-6)
    assert ranked_share(score, len(values)) == pytest.approx(right_shares(values).mean())


def test_equal_shares_are_told_apart_by_their_margins() -> None:
    assert ranking_score([3.0, -1.0]) > ranking_score([1.0, -1.0]) > ranking_score([1.0, -3.0])
    assert ranking_score([0.1, 0.1, -9.0]) > ranking_score([9.0, -0.1, -0.1]), "a pair outweighs all margins"
    assert ranking_score([0.0, 0.0]) == 0.5
