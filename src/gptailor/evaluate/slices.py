"""Scores by slice: the rows of one language, one source, one length; and which slice is truly worse."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from gptailor.evaluate.metrics import bootstrap_share, interval, share_interval
from gptailor.evaluate.paired import holm
from gptailor.evaluate.resampling import ROWS, Resampling
from gptailor.types import FloatArray, IntArray, Score

FEWEST_ROWS = 20  # or groups of rows; a smaller slice is shown, not judged
MOST_SLICES = 20  # of a column; rarer values are taken together
MUCH_WORSE = 0.05  # this much less of the slice is right than of the other rows
MUCH_FURTHER_OFF = 0.2  # for numbers: its mean absolute error is this share larger
LEVEL = 0.05  # of the family of tests
BANDS = ("short", "middle", "long")
EMPTY, OTHER = "(empty)", "(other values)"
SHARES_TEST = "Fisher's exact test"
GROUPS_TEST = "Mann-Whitney U test of the groups' shares"
NUMBERS_TEST = "Mann-Whitney U test of the absolute errors"


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows that share a value of a column, beside all others."""

    column: str
    value: str
    rows: IntArray  # their places
    score: Score  # the share that is right; for numbers the mean absolute error
    rest: float  # the same of all other rows; NaN where there are none
    p: float | None  # that it is no worse than the rest, corrected; None: too few rows to judge
    much_worse: bool


def length_bands(lengths: IntArray) -> list[str]:
    """Short, middle or long for each of (N,) token counts: thirds of the rows, as far as ties allow."""
    place = _thirds(lengths)
    names = {1: ("all",), 2: (BANDS[0], BANDS[2]), 3: BANDS}[int(place.max()) + 1]
    said = [
        f"{name} ({lengths[place == i].min():,} to {lengths[place == i].max():,} tokens)"
        for i, name in enumerate(names)
    ]
    return [said[i] for i in place.tolist()]


def group_values(values: Sequence[str]) -> list[str]:
    """A column's values as slices: many different numbers become thirds, rare values one slice."""
    cells = [value.strip() or EMPTY for value in values]
    counts = Counter(cells)
    if len(counts) <= MOST_SLICES:
        return cells
    numbers = [_number(cell) for cell in cells if cell != EMPTY]
    known = np.array([number for number in numbers if number is not None])
    if len(known) == len(numbers):
        place = _thirds(known)
        written = [cell for cell in cells if cell != EMPTY]  # a date or an id keeps all its digits
        said = {}
        for third in set(place.tolist()):
            rows = np.flatnonzero(place == third)
            ends = (rows[known[rows].argmin()], rows[known[rows].argmax()])
            said[third] = " to ".join(written[end] for end in ends)
        named = iter(said[i] for i in place.tolist())
        return [cell if cell == EMPTY else next(named) for cell in cells]
    kept = {value for value, _ in counts.most_common(MOST_SLICES - 1)}
    return [cell if cell in kept else OTHER for cell in cells]


def slice_rows(
    columns: Mapping[str, Sequence[str]],
    errors: FloatArray,
    *,
    are_numbers: bool = False,
    weights: FloatArray | None = None,
    ranked: FloatArray | None = None,
    resampling: Resampling = ROWS,
) -> list[Slice]:
    """Every slice of every column with its score, and whether it is worse than the other rows.

    A share's interval is Wilson's (1927), because a bootstrap gives a slice of ten right rows no width at
    all. A slice of at least `FEWEST_ROWS` is tested against all other rows, one-sided: shares by Fisher's
    exact test, absolute errors by Mann and Whitney's. Where rows come in groups, both are of groups: a
    bootstrap's interval, and Mann and Whitney's test of their means. Many slices make a bad one by chance, so
    the p values are corrected over all of them by Holm's step-down method (1979).

    Args:
        columns: The value of every row, by column, N each.
        errors: (N,) how wrong each answer is, 0 where it is right; of numbers the absolute error.
        are_numbers: The answers are numbers.
        weights: (N,) of the rows in the mean of numbers; None: alike.
        ranked: (N,) what numbers are tested by; None: the errors.
        resampling: Of the bootstrap, with the groups of the rows.
    """
    heavy = np.ones(len(errors)) if weights is None else weights
    tested = errors if ranked is None else ranked
    found: list[tuple[str, str, IntArray, Score, float, float | None]] = []
    for column, values in columns.items():
        cells = np.array(list(values), dtype=object)
        for value in sorted(set(values), key=lambda v: _order(column, v, cells)):
            inside = cells == value
            sides = resampling.of(inside), resampling.of(~inside)
            ours = errors[inside]
            if are_numbers:
                score = _weighted_mean(ours, heavy[inside], resampling=sides[0])
            elif sides[0].num_units(len(ours)) < len(ours):
                score = bootstrap_share((ours == 0).astype(np.float64), resampling=sides[0])
            else:
                score = share_right(int((ours == 0).sum()), len(ours))
            rest = math.nan
            if not inside.all():
                right = errors if are_numbers else (errors == 0).astype(np.float64)
                rest = float(np.average(right[~inside], weights=heavy[~inside]))
            p = None
            parts = tested[inside], tested[~inside]
            if all(s.num_groups(len(part)) >= FEWEST_ROWS for s, part in zip(sides, parts, strict=True)):
                p = _p_value(parts, sides, are_numbers)
            found.append((column, value, np.flatnonzero(inside), score, rest, p))
    corrected = iter(holm([p for *_, p in found if p is not None]))
    slices = []
    for column, value, rows, score, rest, p in found:
        p = None if p is None else next(corrected)
        gap = score.value > rest * (1 + MUCH_FURTHER_OFF) if are_numbers else rest - score.value >= MUCH_WORSE
        slices.append(Slice(column, value, rows, score, rest, p, bool(p is not None and p < LEVEL and gap)))
    return slices


def worst_slice(slices: Sequence[Slice], *, are_numbers: bool = False) -> Slice | None:
    """Of the slices of `FEWEST_ROWS` rows or more the one with the lowest score (numbers: the largest error),
    if the others are better.
    """
    sign = -1 if are_numbers else 1
    large = [one for one in slices if len(one.rows) >= FEWEST_ROWS]
    worst = min(large, key=lambda one: (sign * one.score.value, one.p is None, one.p), default=None)
    return worst if worst is not None and sign * worst.score.value < sign * worst.rest else None


def share_right(right: int, rows: int) -> Score:
    """A share of rows with Wilson's 95 % interval."""
    return Score(right / rows, *share_interval(right, rows))


def _p_value(
    parts: tuple[FloatArray, FloatArray], sides: tuple[Resampling, Resampling], are_numbers: bool
) -> float:
    """That the first part's errors are no larger than the other's."""
    if not are_numbers:
        parts = tuple((part > 0).astype(np.float64) for part in parts)  # type: ignore[assignment]
    ours, others = (side.means(part) for side, part in zip(sides, parts, strict=True))
    if are_numbers or len(ours) + len(others) < sum(map(len, parts)):
        return float(stats.mannwhitneyu(ours, others, alternative="greater").pvalue)
    table = [[int(part.sum()), int((1 - part).sum())] for part in (ours, others)]
    return float(stats.fisher_exact(table, alternative="greater").pvalue)


def _weighted_mean(values: FloatArray, weights: FloatArray, *, resampling: Resampling) -> Score:
    """The mean with its bootstrap interval."""
    means = np.divide(*resampling.sums(np.stack([values * weights, weights], axis=1)).T)
    return interval(float(means[0]), means[1:])


def _order(column: str, value: str, cells: Any) -> tuple[Any, ...]:
    """Length bands in their order; other values by their rows, the most first."""
    band = next((place for place, name in enumerate(BANDS) if value.startswith(f"{name} (")), None)
    if column == "length" and band is not None:
        return (band,)
    return (len(BANDS), -int((cells == value).sum()), value)


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _thirds(values: Any) -> IntArray:
    """(N,) 0, 1 or 2 for each value, rising; equal values stay together, so there may be fewer thirds."""
    edges = np.unique(np.quantile(values, [1 / 3, 2 / 3], method="lower"))
    places: IntArray = np.searchsorted(edges, values)
    return places
