"""Slices by themselves: bands, values taken together, intervals, the corrected test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gptailor.evaluate.resampling import Resampling
from gptailor.evaluate.slices import (
    EMPTY,
    OTHER,
    group_values,
    length_bands,
    share_right,
    slice_rows,
    worst_slice,
)


def test_heavy_rows_count_by_their_weight_and_are_tested_by_another_measure() -> None:
    """A short answer of four nats and a long one of a hundred: bits per byte of all is sum over sum."""
    sizes, nats = np.array([2.0, 200.0] * 15), np.array([4.0, 100.0] * 15)
    columns = {"all": ["x"] * 30}
    (one,) = slice_rows(columns, nats / sizes, are_numbers=True, weights=sizes, resampling=Resampling(200))
    assert one.score.value == pytest.approx(104 / 202)
    assert one.score.low <= one.score.value <= one.score.high
    sides = {"side": ["a", "b"] * 30}
    errors = np.tile([2.0, 1.0], 30)
    worse = {
        one.value: one.much_worse
        for one in slice_rows(sides, errors, are_numbers=True, resampling=Resampling(200))
    }
    assert worse == {"a": True, "b": False}
    tested = slice_rows(sides, errors, are_numbers=True, ranked=np.ones(60), resampling=Resampling(200))
    assert not any(one.much_worse for one in tested), "by what they are tested by they are alike"


def test_length_bands_are_thirds_in_order() -> None:
    bands = length_bands(np.arange(1, 91))
    assert bands[0] == "short (1 to 30 tokens)"
    assert bands[45] == "middle (31 to 60 tokens)"
    assert bands[89] == "long (61 to 90 tokens)"


def test_equal_lengths_stay_in_one_band() -> None:
    assert set(length_bands(np.full(9, 7))) == {"all (7 to 7 tokens)"}
    bands = length_bands(np.array([3, 3, 3, 3, 9, 9]))
    assert len({(band, length) for band, length in zip(bands, (3, 3, 3, 3, 9, 9), strict=True)}) == 2


def test_thirds_of_dates_and_times_keep_their_digits() -> None:
    """To six digits all of a day's timestamps are one: then no third could be worse than another."""
    times = [str(1_700_000_000 + n) for n in range(90)]
    found = group_values(times)
    assert sorted(set(found)) == [
        "1700000000 to 1700000029",
        "1700000030 to 1700000059",
        "1700000060 to 1700000089",
    ]


def test_few_values_stay_many_numbers_become_thirds_rare_words_one_slice() -> None:
    assert group_values([" de", "en", ""]) == ["de", "en", EMPTY]
    numbers = group_values([str(n) for n in range(30)] + [""])
    assert sorted(set(numbers)) == sorted(["0 to 9", "10 to 19", "20 to 29", EMPTY])
    words = group_values([*("often" for _ in range(9)), *(f"word {n}" for n in range(40))])
    assert words.count("often") == 9
    assert words.count(OTHER) == 40 - 18


def test_shares_have_wilsons_interval() -> None:
    """Newcombe 1998, table I: 81 of 263 is 0.2553 to 0.3662."""
    score = share_right(81, 263)
    assert (score.low, score.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    sure = share_right(10, 10)
    assert sure.high == 1.0
    assert sure.low < 0.75, "ten right rows don't prove a perfect slice"


def errors_with(rates: dict[str, float], rows: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    values = [name for name in rates for _ in range(rows)]
    wrong = np.concatenate([rng.random(rows) < rate for rate in rates.values()])
    return values, wrong * 0.9


def test_a_worse_slice_is_found_with_fishers_exact_test() -> None:
    values, errors = errors_with({"de": 0.4, "en": 0.1, "fr": 0.1}, rows=100)
    slices = slice_rows({"language": values}, errors)
    worst = worst_slice(slices)
    assert worst is not None
    assert (worst.value, worst.much_worse) == ("de", True)
    inside = np.array(values) == "de"
    table = [[int((errors[part] > 0).sum()), int((errors[part] == 0).sum())] for part in (inside, ~inside)]
    assert worst.p == pytest.approx(3 * stats.fisher_exact(table, alternative="greater").pvalue)
    assert worst.rest == pytest.approx((errors[~inside] == 0).mean())
    assert not any(one.much_worse for one in slices if one.value != "de")


def test_the_worst_slice_is_worse_than_the_rest() -> None:
    """The lowest of those that can be judged, where a smaller one is lower, isn't the worst of all."""
    values, errors = errors_with({"en": 0.1}, rows=40)
    smaller = [*values, *(["de"] * 15)], np.concatenate([errors, np.ones(15)])
    assert worst_slice(slice_rows({"language": smaller[0]}, smaller[1])) is None
    larger = [*values, *(["de"] * 25)], np.concatenate([errors, np.ones(25)])
    found = worst_slice(slice_rows({"language": larger[0]}, larger[1]))
    assert found is not None
    assert found.value == "de"


def test_a_small_slice_is_shown_and_not_judged() -> None:
    values = ["xx"] * 19 + ["en"] * 200
    errors = np.array([0.9] * 19 + [0.0] * 200)
    tiny_one = next(one for one in slice_rows({"language": values}, errors) if one.value == "xx")
    assert (tiny_one.p, tiny_one.much_worse) == (None, False)
    assert tiny_one.score.value == 0


def test_a_small_gap_is_no_warning_however_sure() -> None:
    values = ["a"] * 20_000 + ["b"] * 20_000
    errors = np.zeros(40_000)
    errors[:1_600], errors[20_000:20_800] = 0.9, 0.9  # 8 % against 4 %
    worse = next(one for one in slice_rows({"source": values}, errors) if one.value == "a")
    assert worse.p is not None
    assert worse.p < 1e-6
    assert not worse.much_worse


def test_false_alarms_are_rare_among_many_slices() -> None:
    """Twenty slices of one quality, a hundred times: a family-wise error of 5 % at most, within noise."""
    alarms = 0
    for seed in range(100):
        values, errors = errors_with({f"s{n}": 0.3 for n in range(20)}, rows=40, seed=seed)
        alarms += any(one.p is not None and one.p < 0.05 for one in slice_rows({"source": values}, errors))
    assert alarms <= 10


def test_numbers_are_judged_by_their_absolute_errors() -> None:
    rng = np.random.default_rng(0)
    errors = np.concatenate([rng.exponential(2.0, 60), rng.exponential(1.0, 200)])
    slices = slice_rows(
        {"source": ["far"] * 60 + ["near"] * 200}, errors, are_numbers=True, resampling=Resampling(200)
    )
    worst = worst_slice(slices, are_numbers=True)
    assert worst is not None
    assert (worst.value, worst.much_worse) == ("far", True)
    assert worst.score.value == pytest.approx(errors[:60].mean())


def test_rows_of_one_slice_have_no_rest() -> None:
    (only,) = slice_rows({"source": ["a"] * 30}, np.zeros(30))
    assert np.isnan(only.rest)
    assert (only.p, only.much_worse) == (None, False)


def test_a_slice_of_few_groups_is_not_judged_and_one_of_many_is_by_groups() -> None:
    """A hundred rows of two authors tell of two authors."""
    errors = np.concatenate([np.ones(100), np.zeros(900)])
    side = {"side": ["worse"] * 100 + ["others"] * 900}
    by_rows = {one.value: one for one in slice_rows(side, errors, resampling=Resampling(200))}
    assert by_rows["worse"].much_worse
    few = Resampling(200, groups=np.repeat(np.arange(20), 50))
    assert {one.p for one in slice_rows(side, errors, resampling=few)} == {None}
    many = Resampling(200, groups=np.repeat(np.arange(250), 4))
    by_groups = {one.value: one for one in slice_rows(side, errors, resampling=many)}
    assert by_groups["worse"].much_worse
    assert by_groups["worse"].p > by_rows["worse"].p  # type: ignore[operator]
    assert by_groups["worse"].score.high > by_rows["worse"].score.high  # Wilson's, of 25 groups
    rng = np.random.default_rng(0)
    chance = (rng.random(250) < 0.5)[np.repeat(np.arange(250), 4)].astype(np.float64)
    wide, narrow = (
        next(one.score for one in slice_rows(side, chance, resampling=drawn) if one.value == "worse")
        for drawn in (many, Resampling(200))
    )
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
