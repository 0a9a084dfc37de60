"""Rows drawn again: whole groups where rows are alike, so that intervals are as wide as they should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor.evaluate.calibrate import calibration_error
from gptailor.evaluate.label_sets import (
    label_calibration_error,
    label_set_scores,
    paired_label_set_difference,
)
from gptailor.evaluate.metrics import (
    bootstrap_mean,
    bootstrap_share,
    classification_scores,
    paired_difference,
    share_interval,
)
from gptailor.evaluate.numbers import number_scores, paired_error_difference
from gptailor.evaluate.resampling import FEWEST_GROUPS, Resampling, columns

GROUPS = np.repeat(np.arange(30), 10)


def drawn_groups(resampling: Resampling) -> list[np.ndarray[Any, Any]]:
    """The rows of each resample, drawn by hand."""
    groups = resampling.groups
    assert groups is not None
    found, units = np.unique(groups, return_inverse=True)
    drawn = np.random.default_rng(resampling.seed).integers(
        len(found), size=(resampling.resamples, len(found))
    )
    return [np.concatenate([np.flatnonzero(units == unit) for unit in one]) for one in drawn]


def test_a_resample_is_made_of_whole_groups() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(25, size=200) * 7  # of unequal size, their ids with gaps
    resampling = Resampling(40, 3, groups)
    rows = rng.normal(size=(200, 3))
    by_hand = [rows.sum(axis=0), *(rows[drawn].sum(axis=0) for drawn in drawn_groups(resampling))]
    assert resampling.sums(rows) == pytest.approx(np.array(by_hand))
    cells = rng.integers(4, size=200)
    counts = np.concatenate(list(resampling.counts(cells)))
    assert counts.tolist() == [
        np.bincount(cells[drawn], minlength=4).tolist() for drawn in drawn_groups(resampling)
    ]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=120))
def test_too_few_groups_are_not_drawn(groups: list[int]) -> None:
    ids = np.array(groups)
    resampling, count = Resampling(2, 0, ids), len(set(groups))
    drawn = count >= FEWEST_GROUPS
    assert resampling.num_units(len(ids)) == (count if drawn else len(ids))
    assert resampling.num_groups(len(ids)) == count
    assert bool(resampling.caveat(len(ids))) == (not drawn and 2 * count <= len(ids))
    numbers = np.arange(len(ids), dtype=np.float64)
    assert resampling.sums(columns(numbers))[0].tolist() == [numbers.sum(), len(ids)]


def test_groups_of_one_are_rows() -> None:
    values = np.random.default_rng(1).normal(size=50)
    alone = Resampling(groups=np.random.default_rng(2).permutation(50))
    found, expected = bootstrap_mean(values, resampling=alone), bootstrap_mean(values)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05)
    assert alone.of(np.arange(50) % 2 == 0).num_units(25) == 25


def alike(rng: np.random.Generator) -> tuple[Any, Any]:
    """Whether each of 300 rows is right, when half of what decides it is the group's; of two models."""
    difficulty = rng.normal(size=(2, 30))[:, GROUPS]
    return tuple((0.7 * difficulty + 0.7 * rng.normal(size=(2, 300)) > -0.5).astype(np.int64))


def test_intervals_of_groups_hold_what_they_say() -> None:
    """Where rows of a group are alike, rows drawn one by one give every third verdict by chance."""
    rng, false = np.random.default_rng(0), {"rows": 0, "groups": 0}
    for seed in range(150):
        ours, theirs = alike(rng)
        for name, groups in (("rows", None), ("groups", GROUPS)):
            gap = bootstrap_mean((ours - theirs).astype(np.float64), resampling=Resampling(300, seed, groups))
            false[name] += gap.low > 0 or gap.high < 0
    assert false["rows"] > 30  # of 150; 5 % would be 8
    assert false["groups"] < 18


SCORES: dict[str, Callable[..., Any]] = {
    "classes": lambda a, p, **s: classification_scores(a, p, ["n", "y"], **s)["macro_f1"],
    "label sets": lambda a, p, **s: label_set_scores(a[:, None], p[:, None], ["y"], **s)["subset_accuracy"],
    "numbers": lambda a, p, **s: number_scores(a + 0.5, p + 0.1, **s)["mae"],
    "correlation": lambda a, p, **s: number_scores(a + 0.5, p + 0.1, **s)["pearson"],
    "share": lambda a, p, **s: bootstrap_share((a == p).astype(np.float64), **s),
    "calibration": lambda a, p, **s: calibration_error(np.stack([1 - 0.9 * p, 0.9 * p], axis=1), a, **s),
    "label calibration": lambda a, p, **s: label_calibration_error(0.9 * p[:, None], a[:, None], **s),
    "classes, paired": lambda a, p, **s: paired_difference(a, p, np.ones_like(p), num_labels=2, **s),
    "label sets, paired": lambda a, p, **s: paired_label_set_difference(
        a[:, None], p[:, None], np.ones_like(p)[:, None], **s
    ),
    "numbers, paired": lambda a, p, **s: paired_error_difference(a * 1.0, p * 1.0, np.ones(len(p)), **s),
}


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_drawn_by_groups(name: str) -> None:
    """Rows that come ten times each: the interval is that of the different rows, and the value stays."""
    rng = np.random.default_rng(4)
    answers = rng.integers(2, size=60)
    predictions = np.where(rng.random(60) < 0.8, answers, 1 - answers)
    once = SCORES[name](answers, predictions, resampling=Resampling(1000, 0))
    copies = (np.repeat(answers, 10), np.repeat(predictions, 10))
    grouped = SCORES[name](*copies, resampling=Resampling(1000, 0, np.repeat(np.arange(60), 10)))
    alone = SCORES[name](*copies, resampling=Resampling(1000, 0))
    assert grouped.value == pytest.approx(once.value) == alone.value
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.2)
    assert alone.high - alone.low < 0.5 * (once.high - once.low)


def test_a_score_without_spread_counts_its_groups() -> None:
    right = bootstrap_share(np.ones(300), resampling=Resampling(50, 0, GROUPS))
    assert (right.low, right.high) == share_interval(30, 30)


def test_groups_in_words() -> None:
    assert Resampling().told(12) == "12 test rows"
    assert Resampling(groups=np.arange(1)).told(1) == "1 test row"
    assert Resampling(groups=GROUPS).told(300) == "30 groups of test rows"
    assert Resampling(groups=GROUPS).caveat(300) == ""
    assert "of 5 groups only" in Resampling(groups=GROUPS).of(slice(50)).caveat(50)


def test_twenty_sets_that_are_all_right_are_not_right_for_sure() -> None:
    answers = np.tile([[1, 0], [1, 1]], (10, 1))
    scores = label_set_scores(answers, answers, ["a", "b"])
    for name in ("micro_f1", "macro_f1", "subset_accuracy"):
        assert scores[name].value == scores[name].high == 1
        assert scores[name].low == scores["subset_accuracy"].low < 0.9
    assert all(0.6 < scores["per_class"][label]["recall"].low < 0.9 for label in "ab")


def test_a_class_of_two_groups_is_as_unsure_as_two_rows() -> None:
    answers = np.repeat(np.arange(12) % 6, 10)
    predictions = answers.copy()
    predictions[answers == 5] = 4
    grouped = classification_scores(
        answers, predictions, list("abcdef"), resampling=Resampling(groups=np.repeat(np.arange(12), 10))
    )
    apart = classification_scores(answers, predictions, list("abcdef"))
    assert grouped["recall"]["a"].low == pytest.approx(share_interval(2, 2)[0])
    assert apart["recall"]["a"].low == pytest.approx(share_interval(20, 20)[0])


def test_many_tables_are_drawn_alike_and_once() -> None:
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=(300, 2)), rng.normal(size=(300, 5))]
    resampling = Resampling(50, 1, GROUPS)
    pieces = list(resampling.drawn(tables))
    for place, table in enumerate(tables):
        assert np.concatenate([piece[place] for piece in pieces]) == pytest.approx(resampling.sums(table))
