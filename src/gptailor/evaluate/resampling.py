"""The rows of a test drawn again with replacement: one by one, or by whole groups where rows are alike.

What the rows of one group share (an author, a page, the pattern of near-duplicates) was drawn once. Drawing
such rows one by one takes a few groups for many rows, and the intervals come out far too narrow (Davison &
Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from gptailor.errors import number_of
from gptailor.types import FloatArray, IntArray

FEWEST_UNITS = 6  # five that all agree do so by chance once in sixteen: an interval would be made up
FEWEST_GROUPS = 10  # fewer spread too little, drawn as groups: then rows are drawn, which is to be said
CHUNK_CELLS = 4_000_000  # numbers held at once: 32 MB


@dataclass(frozen=True, slots=True, eq=False)
class Resampling:
    """How rows are drawn again.

    Args:
        resamples: How often.
        seed: Of the draws.
        groups: (N,) ids of N rows; those with the same id are drawn together. None: every row by itself.
    """

    resamples: int = 2000
    seed: int = 0
    groups: IntArray | None = None

    def of(self, rows: Any) -> Resampling:
        """For some of the rows, by their places or a slice."""
        return self if self.groups is None else replace(self, groups=self.groups[rows])

    def units(self, num_rows: int) -> IntArray:
        """(N,) the number of what each row is drawn with, from 0: its group, or the row itself."""
        every = np.arange(num_rows)
        if self.groups is None:
            return every
        found, units = np.unique(self.groups, return_inverse=True)
        return every if len(found) < FEWEST_GROUPS else units

    def num_units(self, num_rows: int) -> int:
        """How many things there are to draw."""
        return int(self.units(num_rows).max(initial=-1)) + 1

    def num_groups(self, num_rows: int) -> int:
        """The same, however few they are."""
        return num_rows if self.groups is None else len(np.unique(self.groups))

    def told(self, num_rows: int) -> str:
        """How many there are, in words."""
        groups = self.num_groups(num_rows)
        if groups == num_rows:
            return number_of(groups, "test row")
        return number_of(groups, "group of test rows", "groups of test rows")

    def caveat(self, num_rows: int) -> str:
        """What to know of the interval where there are groups, but too few to be drawn; else empty."""
        groups = self.num_groups(num_rows)
        if groups == self.num_units(num_rows) or 2 * groups > num_rows:
            return ""
        return f" The test rows are of {groups} groups only: the interval is of these, not of others."

    def means(self, values: FloatArray) -> FloatArray:
        """(U,) the mean of (N,) values in each of the things there are to draw."""
        units = self.units(len(values))
        found: FloatArray = np.bincount(units, values) / np.bincount(units)
        return found

    def sums(self, rows: FloatArray) -> FloatArray:
        """(1 + R, K): the sums of (N, K) as they are, then those of each resample; of fewer things than
        `FEWEST_UNITS` none is drawn.
        """
        by_unit = self._table(self.units(len(rows)), rows)
        drawn = [times @ by_unit for times in self._times(len(by_unit))]
        return np.concatenate([by_unit.sum(axis=0, keepdims=True), *drawn])

    def drawn(self, tables: Sequence[FloatArray]) -> Iterator[list[FloatArray]]:
        """Of several (N, K) tables of the same rows the sums as they are, (1, K), then in pieces those of
        each resample, (R', K), as in `sums`; all by the same draws, which are made once.
        """
        units = self.units(len(tables[0])) if tables else np.arange(0)
        by_unit = [self._table(units, rows) for rows in tables]
        yield [table.sum(axis=0, keepdims=True) for table in by_unit]
        for times in self._times(int(units.max(initial=-1)) + 1):
            yield [times @ table for table in by_unit]

    def counts(self, cells: IntArray) -> Iterator[FloatArray]:
        """How often each cell comes in each resample, in pieces of shape (R', K).

        (N,) `cells` are the rows' kinds, from 0. A statistic that only looks at how often each kind of row
        comes needs no rows: drawing N of them is drawing the counts from a multinomial distribution.
        """
        units, num_cells = self.units(len(cells)), int(cells.max(initial=-1)) + 1
        num_units = int(units.max(initial=-1)) + 1
        if num_units < len(cells):
            ones = np.ones(len(cells))
            table = sparse.csr_array((ones, (units, cells)), shape=(num_units, num_cells))
            for times in self._times(num_units):
                yield times @ table
            return
        rng = np.random.default_rng(self.seed)
        shares = np.bincount(cells) / len(cells)
        for size in self._pieces(num_cells):
            yield rng.multinomial(len(cells), shares, size=size).astype(np.float64)

    def _times(self, num_units: int) -> Iterator[FloatArray]:
        """How often each unit is drawn, in pieces of shape (R', U): what indexing would give, a product of
        matrices then does with less memory."""
        rng = np.random.default_rng(self.seed)
        for size in self._pieces(num_units) if num_units >= FEWEST_UNITS else ():
            drawn = rng.integers(num_units, size=(size, num_units))
            drawn += np.arange(size)[:, None] * num_units
            times = np.bincount(drawn.ravel(), minlength=size * num_units)
            yield times.reshape(size, num_units).astype(np.float64)

    def _pieces(self, width: int) -> Iterator[int]:
        step = max(1, CHUNK_CELLS // max(width, 1))
        for start in range(0, self.resamples, step):
            yield min(step, self.resamples - start)

    @staticmethod
    def _table(units: IntArray, rows: FloatArray) -> FloatArray:
        """(U, K) sums of (N, K) by unit."""
        num_units = int(units.max(initial=-1)) + 1
        if num_units == len(rows):
            return rows
        columns = [np.bincount(units, column, minlength=num_units) for column in rows.T]
        return np.stack(columns, axis=1).astype(np.float64)


ROWS = Resampling()  # two thousand times, every row by itself


def columns(*values: Sequence[float] | FloatArray) -> FloatArray:
    """(N, K + 1) of K numbers a row, (N,) each, and a column of ones: resampled groups differ in size."""
    given = [np.asarray(one, np.float64) for one in values]
    return np.stack([*given, np.ones(len(given[0]))], axis=1)
