"""The order of rows is a pure function of (seed, epoch, step), and batches hold what was given."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptailor.data.batch import (
    WINDOW,
    Order,
    StepRows,
    collate,
    epoch_batches,
    length_buckets,
    row_cost,
    split_step,
)
from gptailor.types import IntArray, TokenizedExample

lengths_lists = st.lists(st.integers(1, 500), min_size=1, max_size=150)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    lengths = np.array(draw(lengths_lists))
    return Order(lengths, batch_size=draw(st.integers(1, 20)), seed=draw(st.integers(0, 2**32 - 1)))


def skewed_lengths(count: int) -> IntArray:
    """As texts are: most short, a few very long."""
    drawn = np.random.default_rng(0).lognormal(3, 0.8, count)
    return np.clip(drawn, 1, 512).astype(np.int64)


def example(ids: list[int], *, row: int = 1, label: int | None = 0) -> TokenizedExample:
    return TokenizedExample(np.array(ids, np.int32), np.zeros(len(ids), np.bool_), "r.csv", row, label=label)


@given(orders(), st.integers(0, 5))
@settings(deadline=None)
def test_every_epoch_sees_each_row_exactly_once(order: Order, epoch: int) -> None:
    batches = epoch_batches(order, epoch)
    assert len(batches) == order.steps_per_epoch
    assert sorted(np.concatenate(batches)) == list(range(len(order.lengths)))
    assert all(1 <= len(batch) <= order.batch_size for batch in batches)
    assert sum(len(batch) < order.batch_size for batch in batches) <= 1


@given(orders(), st.integers(1, 3))
@settings(deadline=None)
def test_steps_of_an_epoch_see_each_row_exactly_once(order: Order, epoch: int) -> None:
    rows_of = StepRows(order)
    first = (epoch - 1) * order.steps_per_epoch + 1
    seen = np.concatenate([rows_of(step) for step in range(first, first + order.steps_per_epoch)])
    assert sorted(seen) == list(range(len(order.lengths)))


@given(orders())
@settings(max_examples=50, deadline=None)
def test_steps_looked_up_in_any_order_equal_the_sequence(order: Order) -> None:
    steps = list(range(1, 3 * order.steps_per_epoch + 1))
    one, other = StepRows(order), StepRows(order)
    sequence = {step: one(step).tolist() for step in steps}
    shuffled = np.random.default_rng(order.seed).permutation(steps).tolist()
    assert {step: other(step).tolist() for step in shuffled} == sequence
    assert StepRows(order)(steps[-1]).tolist() == sequence[steps[-1]]  # as after a resume


@given(orders(), st.integers(0, 3))
@settings(deadline=None)
def test_order_is_a_pure_function_of_seed_and_epoch(order: Order, epoch: int) -> None:
    before = (torch.get_rng_state().tolist(), str(np.random.get_state()))
    first = [batch.tolist() for batch in epoch_batches(order, epoch)]
    epoch_batches(order, epoch + 1)
    assert [batch.tolist() for batch in epoch_batches(order, epoch)] == first
    assert (torch.get_rng_state().tolist(), str(np.random.get_state())) == before


def test_epochs_and_seeds_differ() -> None:
    lengths = skewed_lengths(300)
    found = {
        (seed, epoch): tuple(map(tuple, epoch_batches(Order(lengths, 8, seed), epoch)))
        for seed, epoch in itertools.product(range(4), range(4))
    }
    assert len(set(found.values())) == 16


def test_order_of_a_known_epoch_never_changes() -> None:
    """A run begun by an older version and resumed by this one must meet the same rows."""
    order = Order(np.array([5, 3, 9, 1, 7, 2, 8, 4, 6, 10]), batch_size=3, seed=0)
    assert [batch.tolist() for batch in epoch_batches(order, 0)] == [[1], [3, 5, 7], [4, 6, 2], [0, 8, 9]]


@given(orders(), st.integers(1, 40))
@settings(deadline=None)
def test_rows_of_a_step_come_longest_first(order: Order, step: int) -> None:
    lengths = order.lengths[StepRows(order)(step)]
    assert (np.diff(lengths) <= 0).all()


def test_padding_is_small_beside_random_batches() -> None:
    lengths = skewed_lengths(4000)

    def padding(batches: list[IntArray]) -> float:
        padded = sum(len(batch) * lengths[batch].max() for batch in batches)
        return 1 - lengths.sum() / padded

    ours = padding(epoch_batches(Order(lengths, 16, seed=0), 0))
    shuffled = np.random.default_rng(0).permutation(len(lengths))
    random = padding([shuffled[at : at + 16] for at in range(0, len(shuffled), 16)])
    assert random > 0.5
    assert ours < 0.1


def test_batches_stay_mixed() -> None:
    """Lengths travel together only within a window: neither the epoch nor a batch's company is sorted."""
    lengths = skewed_lengths(WINDOW * 16 * 3)
    order = Order(lengths, 16, seed=0)
    means = np.array([lengths[batch].mean() for batch in epoch_batches(order, 0)])
    steps = np.arange(len(means))
    assert abs(np.corrcoef(means, steps)[0, 1]) < 0.2
    company = [
        {
            frozenset(pair)
            for batch in epoch_batches(order, epoch)
            for pair in itertools.pairwise(batch.tolist())
        }
        for epoch in (0, 1)
    ]
    assert len(company[0] & company[1]) < 0.05 * len(company[0])


@given(st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=12), min_size=1, max_size=8), st.data())
@settings(deadline=None)
def test_batch_holds_every_token_and_pads_on_the_right(ids: list[list[int]], data: st.DataObject) -> None:
    pad_id = data.draw(st.integers(0, 999))  # a pad id that may stand in the text, too
    longest = max(map(len, ids))
    pad_to = data.draw(st.none() | st.integers(longest, longest + 5))
    batch = collate(
        [example(row, row=n, label=n % 3) for n, row in enumerate(ids)], pad_id=pad_id, pad_to=pad_to
    )
    assert batch.input_ids.shape == (len(ids), pad_to or longest)
    assert batch.input_ids.dtype == torch.int64
    for n, row in enumerate(ids):
        assert batch.input_ids[n, : len(row)].tolist() == row
        assert set(batch.input_ids[n, len(row) :].tolist()) <= {pad_id}
        assert batch.last[n] == len(row) - 1
    assert batch.labels is not None
    assert batch.labels.tolist() == [n % 3 for n in range(len(ids))]
    assert (batch.num_targets, batch.num_tokens) == (len(ids), sum(map(len, ids)))
    assert batch.rows == tuple(f"r.csv:{n}" for n in range(len(ids)))


def test_row_without_a_label_is_told_apart() -> None:
    batch = collate([example([1], label=None), example([2], label=0)], pad_id=0)
    assert batch.labels is not None
    assert batch.labels.tolist() == [-1, 0]


@given(st.integers(1, 40), st.integers(1, 40))
@settings(deadline=None)
def test_micro_batches_hold_the_step_in_order(count: int, micro_batch_size: int) -> None:
    cuts = split_step([5] * count, micro_batch_size=micro_batch_size)
    assert [row for cut in cuts for row in range(count)[cut]] == list(range(count))
    sizes = [cut.stop - cut.start for cut in cuts]
    assert sizes[:-1] == [micro_batch_size] * (len(cuts) - 1)
    assert 1 <= sizes[-1] <= micro_batch_size


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=24),
    st.integers(1, 24),
    st.integers(1, 4),
    st.booleans(),
)
@settings(deadline=None)
def test_workers_get_even_parts(
    lengths: list[int], micro_batch_size: int, workers: int, padded: bool
) -> None:
    """Against all ways to cut the rows."""
    lengths = sorted(lengths, reverse=True)
    cuts = split_step(lengths, micro_batch_size=micro_batch_size, workers=workers, padded=padded)
    assert [row for cut in cuts for row in range(len(lengths))[cut]] == list(range(len(lengths)))
    for start in range(0, len(lengths), micro_batch_size):
        rows = lengths[start : start + micro_batch_size]
        own = [cut for cut in cuts if start <= cut.start < start + micro_batch_size]
        assert 1 <= len(own) <= workers
        least = min(
            largest(rows, [0, *places, len(rows)], padded=padded)
            for parts in range(min(workers, len(rows)))
            for places in itertools.combinations(range(1, len(rows)), parts)
        )
        assert largest(rows, [cut.start - start for cut in own] + [len(rows)], padded=padded) == least


def largest(lengths: list[int], borders: Sequence[int], *, padded: bool) -> int:
    """What the part costs that costs most; all rows of a part are as wide as its first."""
    return max(
        sum(row_cost(length, width=lengths[start], padded=padded) for length in lengths[start:stop])
        for start, stop in itertools.pairwise(borders)
    )


def test_a_part_is_not_made_wide_by_one_row() -> None:
    """Twenty short rows beside a long one would be computed in a grid as wide as that."""
    lengths = [500] * 3 + [25] * 20
    assert split_step(lengths, micro_batch_size=23, workers=2, padded=False) == [slice(0, 3), slice(3, 23)]


@given(lengths_lists, st.integers(1, 2000))
@settings(deadline=None)
def test_buckets_cover_all_rows_within_the_limit(lengths: list[int], limit: int) -> None:
    given_lengths = np.array(lengths)
    buckets = length_buckets(given_lengths, max_tokens_per_batch=limit)
    assert sorted(np.concatenate(buckets)) == list(range(len(lengths)))
    for bucket in buckets:
        assert len(bucket) == 1 or len(bucket) * given_lengths[bucket].max() <= limit
    in_order = given_lengths[np.concatenate(buckets)]
    assert (np.diff(in_order) <= 0).all()  # longest first: memory peaks at the start


def test_no_rows_make_no_buckets() -> None:
    assert length_buckets(np.array([], np.int64), max_tokens_per_batch=100) == []


def test_batch_mates_change_from_epoch_to_epoch() -> None:
    """Sorting a whole small epoch by length would bring the same rows together every time."""
    order = Order(skewed_lengths(608), 16, 0)

    def mates(epoch: int) -> set[tuple[int, int]]:
        return {
            pair
            for batch in epoch_batches(order, epoch)
            for pair in itertools.combinations(sorted(batch.tolist()), 2)
        }

    first, second = mates(0), mates(1)
    assert len(first & second) / len(first) < 0.25
