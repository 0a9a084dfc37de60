"""Text examples in a batch: what is learned, where documents begin, and how rows are filled."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gptailor.data.batch import collate_texts, pack
from gptailor.types import TokenizedExample

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def build_examples(sizes: list[int], seed: int = 0) -> list[TokenizedExample]:
    dice = np.random.default_rng(seed)
    return [
        TokenizedExample(dice.integers(1, 1000, size).astype(np.int32), dice.random(size) < 0.5, "file", row)
        for row, size in enumerate(sizes)
    ]


@given(lengths, st.integers(1, 50))
def test_packing_loses_no_example_and_fills_no_row_over(sizes: list[int], capacity: int) -> None:
    rows = pack(np.array(sizes), capacity=capacity)
    assert sorted(example for row in rows for example in row) == list(range(len(sizes)))
    for row in rows:
        assert len(row) == 1 or sum(sizes[example] for example in row) <= capacity


@given(lengths)
def test_packing_leaves_no_two_rows_that_would_fit_one(sizes: list[int]) -> None:
    rows = pack(np.array(sizes), capacity=64)
    half_empty = [row for row in rows if 2 * sum(sizes[example] for example in row) <= 64]
    assert len(half_empty) <= 1


@given(lengths, st.booleans())
def test_every_learned_token_is_a_target_after_the_token_before_it(sizes: list[int], packed: bool) -> None:
    examples = build_examples(sizes)
    rows = pack(np.array(sizes), capacity=80) if packed else [[place] for place in range(len(sizes))]
    batch = collate_texts([[examples[place] for place in row] for row in rows])
    width = batch.input_ids.shape[1]
    expected = []
    for number, row in enumerate(rows):
        start = number * width
        for place in row:
            example = examples[place]
            expected += [
                (start + at - 1, int(example.token_ids[at]))
                for at in range(1, len(example.token_ids))
                if example.learn[at]
            ]
            start += len(example.token_ids)
    assert batch.learned is not None
    assert batch.targets is not None
    assert list(zip(batch.learned.tolist(), batch.targets.tolist(), strict=True)) == expected
    assert batch.num_targets == len(expected)
    assert batch.num_tokens == sum(sizes)
    if batch.positions is not None:
        for number, row in enumerate(rows):
            counted = [at for place in row for at in range(sizes[place])]
            assert batch.positions[number, : len(counted)].tolist() == counted
    assert batch.rows == tuple(f"file:{place}" for row in rows for place in row)
