from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptailor.data.split import join_groups, split_rows, time_keys, value_groups
from gptailor.errors import DataError, RecipeError
from gptailor.recipe import SplitSettings
from gptailor.types import IntArray, Part


def split(*rows: Any, **options: Any) -> list[Part]:
    return deal(*rows, **options)[0]


def deal(
    labels: list[str] | list[tuple[str, ...]] | None = None,
    groups: IntArray | None = None,
    times: list[str] | None = None,
    seed: int = 0,
    has_validation: bool = False,
    has_test: bool = False,
    **shares: float,
) -> tuple[list[Part], list[str]]:
    return split_rows(
        labels,
        groups=groups,
        times=times,
        settings=SplitSettings(**shares),
        seed=seed,
        has_validation=has_validation,
        has_test=has_test,
    )


def sizes(parts: list[Part]) -> tuple[int, int, int]:
    counts = Counter(parts)
    return counts["train"], counts["validation"], counts["test"]


@pytest.mark.parametrize(
    ("rows", "given", "expected"),
    [
        (1000, {}, (700, 150, 150)),
        (1999, {}, (1399, 300, 300)),
        (2000, {}, (1600, 200, 200)),
        (60_000, {}, (50_000, 5_000, 5_000)),
        (1000, {"has_test": True}, (850, 150, 0)),
        (10_000, {"has_test": True}, (8500, 1500, 0)),
        (1000, {"has_validation": True}, (850, 0, 150)),
        (1000, {"has_validation": True, "has_test": True}, (1000, 0, 0)),
        (1000, {"validation": 0.2, "test": 0.3}, (500, 200, 300)),
        (1000, {"test": 0.0}, (850, 150, 0)),
        (1, {}, (1, 0, 0)),
    ],
)
def test_parts_have_the_decided_sizes(
    rows: int, given: dict[str, float], expected: tuple[int, int, int]
) -> None:
    assert sizes(split([f"class {i % 3}" for i in range(rows)], **given)) == expected  # type: ignore[arg-type]
    assert sizes(split(times=[str(i) for i in range(rows)], **given)) == expected  # type: ignore[arg-type]


@st.composite
def labelled_groups(draw: st.DrawFn) -> tuple[list[str], IntArray]:
    """Rows in groups that each hold one label."""
    shapes = draw(
        st.lists(
            st.tuples(st.integers(0, 5), st.one_of(st.just(1), st.integers(1, 6))), min_size=7, max_size=120
        )
    )
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(sum(size for _, size in shapes))
    labels = np.repeat([f"class {label}" for label, _ in shapes], [size for _, size in shapes])
    groups = np.repeat(np.arange(len(shapes)), [size for _, size in shapes])
    return [str(label) for label in labels[order]], groups[order].astype(np.int64)


@given(labelled_groups(), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_groups_are_never_cut_and_labels_stand_in_every_part(
    rows: tuple[list[str], IntArray], seed: int
) -> None:
    labels, groups = rows
    parts = split(labels, groups, seed=seed)
    assert len(parts) == len(labels)
    parts_of_group = defaultdict(set)
    parts_of_label = defaultdict(set)
    groups_of_label = defaultdict(set)
    for label, group, part in zip(labels, groups.tolist(), parts, strict=True):
        parts_of_group[group].add(part)
        parts_of_label[label].add(part)
        groups_of_label[label].add(group)
    assert all(len(found) == 1 for found in parts_of_group.values())
    assert all(len(parts_of_label[label]) == 3 for label, found in groups_of_label.items() if len(found) >= 3)
    assert parts == split(labels, groups, seed=seed)
    # Beyond its share a part may have one group for each label, because each label must stand in it.
    for size in sizes(parts)[1:]:
        assert abs(size - 0.15 * len(labels)) <= 6 * (len(groups_of_label) + 1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=150))
@settings(max_examples=100, deadline=None)
def test_groups_of_several_labels_are_never_cut_either(rows: list[tuple[int, int]]) -> None:
    labels, groups = [str(label) for label, _ in rows], np.array([group for _, group in rows])
    parts = split(labels, groups)
    found = set(zip(groups.tolist(), parts, strict=True))
    assert len(found) == len(set(groups.tolist()))
    assert "train" in parts


@given(st.lists(st.sampled_from("aaaaaaaabbbc"), min_size=40, max_size=400), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_labels_keep_their_shares_in_each_part(labels: list[str], seed: int) -> None:
    parts = split(labels, seed=seed)
    for label, count in Counter(labels).items():
        for part in ("validation", "test"):
            held = sum(mine == label and its == part for mine, its in zip(labels, parts, strict=True))
            assert abs(held - 0.15 * count) <= 2.01
    total = round(0.15 * len(labels))
    assert all(abs(size - total) <= 3 for size in sizes(parts)[1:])


def test_split_is_the_same_on_every_machine() -> None:
    labels = [f"class {i % 4}" for i in range(24)]
    marks = {"train": "-", "validation": "v", "test": "t"}
    letters = "".join(marks[part] for part in split(labels, seed=7))
    assert letters == "v--ttv-----------tt---vv"
    assert letters != "".join(marks[part] for part in split(labels, seed=8))


def test_seed_chooses_among_all_rows() -> None:
    tested = {
        row for seed in range(60) for row, part in enumerate(split(["a"] * 40, seed=seed)) if part == "test"
    }
    assert tested == set(range(40))


def test_small_groups_are_not_kept_from_the_test() -> None:
    groups = np.concatenate([np.arange(1000), np.arange(500)])  # 500 pairs and 500 alone
    parts = np.array(split(["a"] * 1500, groups))
    paired = groups < 500
    assert 0.5 < np.mean(paired[parts == "test"]) < 0.83  # two thirds of the rows


def test_many_classes_do_not_bend_the_shares() -> None:
    labels = [f"class {i // 10}" for i in range(1500)]
    assert sizes(split(labels)) == (1050, 225, 225)
    # As many groups as labels: only the shares of the whole can be kept.
    assert sizes(split(labels, np.arange(1500) // 10)) == (1060, 220, 220)


def test_large_group_goes_to_train_and_the_rest_is_spread() -> None:
    groups = np.concatenate([np.zeros(600, dtype=np.int64), np.arange(1, 401)])
    parts = split(["a"] * 1000, groups)
    assert set(parts[:600]) == {"train"}
    assert sizes(parts) == (700, 150, 150)


def test_cap_holds_where_groups_mix_labels() -> None:
    random = np.random.default_rng(0)
    labels = [f"class {k}" for k in random.integers(0, 20, 3000)]
    _, validation, test = sizes(split(labels, random.integers(0, 3000, 3000)))
    assert 280 <= validation <= 300
    assert 280 <= test <= 300


def test_train_is_the_past_and_test_the_newest() -> None:
    times = [str(i) for i in np.random.default_rng(0).permutation(1000)]
    parts = split(["a"] * 1000, times=times)
    bounds = {part: [int(t) for t, p in zip(times, parts, strict=True) if p == part] for part in set(parts)}
    assert max(bounds["train"]) < min(bounds["validation"])
    assert max(bounds["validation"]) < min(bounds["test"])


def test_a_group_too_large_to_be_held_out_trains_and_closes_no_part() -> None:
    """It would be taken for the end of validation or of test, of which a handful of rows was left."""
    groups = np.arange(3000)
    large = np.random.default_rng(0).choice(3000, 900, replace=False)  # three in ten rows of one customer
    groups[large] = groups[large].min()
    times = [str(i) for i in range(3000)]
    parts, says = deal(groups=groups, times=times)
    assert {parts[row] for row in large.tolist()} == {"train"}
    assert sizes(parts) == (2400, 300, 300)
    assert says == ["900 rows of groups larger than what is held out: they train, whatever their time"]
    assert deal(groups=np.arange(3000), times=times)[1] == []


def test_rows_without_a_time_are_counted_and_never_held_out() -> None:
    times = [str(i) for i in range(60)] + [" "] * 40
    parts, says = deal(["a"] * 100, times=times)
    assert set(parts[60:]) == {"train"}
    assert sizes(parts) == (70, 15, 15)
    assert says == ["no time stands in 40 of 100 rows: such rows count as the oldest"]
    with pytest.raises(DataError, match=r"only 29 of 100 rows have a time: too few"):
        deal(["a"] * 100, times=times[:29] + [""] * 71)
    assert deal(["a"] * 100, times=times[:15] + [""] * 85, has_validation=True)[1]
    of_two = np.repeat(np.arange(50), 2)  # the one with a time speaks for the other
    parts, _ = deal(groups=of_two, times=[time for one in range(50) for time in (str(one), "")])
    assert set(parts[70:]) == {"validation", "test"}


def test_group_stands_at_its_newest_row() -> None:
    groups = np.arange(100)
    groups[0] = 99
    parts = split(groups=groups, times=[str(i) for i in range(100)])
    assert parts[0] == parts[99] == "test"


def test_times_are_numbers_or_dates_or_text_but_never_guessed() -> None:
    def order(times: list[str]) -> list[str]:
        return [time for _, time in sorted(zip(time_keys(times), times, strict=True))]

    assert order(["10", "9", "-1.5", ""]) == ["", "-1.5", "9", "10"]
    assert order(["2024-01-01T01:00:00+02:00", "2024-01-01", "2023-12-31T22:30:00Z"]) == [
        "2023-12-31T22:30:00Z",
        "2024-01-01T01:00:00+02:00",
        "2024-01-01",
    ]
    assert order(["2023 Q2", "", "2022 Q4"]) == ["", "2022 Q4", "2023 Q2"]
    for wrong in ("31/12/2023", "12.1.24", "Mon Apr 06 2009", "5 March 2020"):
        with pytest.raises(DataError, match="begin with the year"):
            time_keys(["2024-01-01", wrong])


def test_dates_as_spreadsheets_write_them_are_dates() -> None:
    times = ["2024/1/5", "2024/12/28", "2024/9/1 8:05", "2024-9-1 8:04:59"]
    keys = time_keys(times)
    order = [time for _, time in sorted(zip(keys, times, strict=True))]
    assert order == ["2024/1/5", "2024-9-1 8:04:59", "2024/9/1 8:05", "2024/12/28"]


@pytest.mark.parametrize(
    ("times", "odd"),
    [
        (["5", "7", "n/a"], "n/a"),
        (["Q1 2024", "Q4 2023"], "Q1 2024"),
        (["2024-Q1", "2023-Q4", "2024"], "2024"),
        (["2024-03-31 06:00 PM", "2024-03-31 11:00 AM"], "2024-03-31 06:00 PM"),
        (["12.2023", "01.2024"], "12.2023"),
        (["2024.9", "2024.10"], "2024.9"),
    ],
)
def test_what_text_would_put_in_a_wrong_order_is_refused(times: list[str], odd: str) -> None:
    with pytest.raises(DataError, match="can't be ordered") as caught:
        time_keys(times)
    assert repr(odd) in str(caught.value)
    assert time_keys(["2024-Q1", "", "2023-Q4"]) == ["2024-Q1", "", "2023-Q4"]
    assert time_keys(["2024.09", "2024.10", "12.5", "1.25"]) == [2024.09, 2024.10, 12.5, 1.25]


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(RecipeError, match="leave none of 100"):
        split(["a"] * 100, validation=0.5, test=0.5)


def test_groupings_join_over_chains() -> None:
    one = np.array([5, 5, 7, 7, 9, 3])
    other = np.array([0, 1, 1, 2, 3, 3])
    assert join_groups(one, other).tolist() == [0, 0, 0, 0, 1, 1]
    assert join_groups(one, np.arange(6)).tolist() == [0, 0, 1, 1, 2, 3]


def test_rows_without_a_group_are_alone() -> None:
    assert value_groups(["a", "", "b", " a ", " "]).tolist() == [0, 1, 2, 0, 3]


def test_many_labels_and_rows_keep_exact_sizes() -> None:
    random = np.random.default_rng(0)
    labels = [str(k) for k in random.integers(0, 50, 30_000)]
    assert sizes(split(labels, random.permutation(30_000))) == (24_000, 3_000, 3_000)


# --- several labels a row ---------------------------------------------------------------------------


def reuters_like(rows: int, seed: int) -> list[tuple[str, ...]]:
    """Many rows of few labels, few rows of many labels, and some rows without any."""
    rng = np.random.default_rng(seed)
    shares = 0.5 / np.arange(1, 21) ** 1.5
    return [tuple(f"label {c}" for c in np.flatnonzero(rng.random(20) < shares)) for _ in range(rows)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999))
def test_every_label_of_a_set_stands_in_every_part(seed: int) -> None:
    """Above all the rare ones in train, also those that only ever come beside rarer ones."""
    carried = reuters_like(400, seed)
    parts = split(carried, seed=seed)
    # Twenty labels and the rows without any are rounded, each by half a row at most.
    assert sizes(parts) == pytest.approx((280, 60, 60), abs=10.5)
    found: dict[str, Counter[Part]] = defaultdict(Counter)
    for labels, part in zip(carried, parts, strict=True):
        for label in labels:
            found[label][part] += 1
    for label, counts in found.items():
        total = sum(counts.values())
        if total >= 3:  # as many as there are parts
            assert set(counts) == {"train", "validation", "test"}, label
        assert abs(counts["test"] - 0.15 * total) <= 3 + 0.06 * total


def test_rows_without_a_label_are_spread_like_a_label() -> None:
    carried: list[tuple[str, ...]] = [()] * 100 + [("a", "b")] * 100
    parts = split(carried)
    assert Counter(parts[:100]) == {"train": 70, "validation": 15, "test": 15}
    assert parts == split(carried)


def test_groups_of_sets_stay_together() -> None:
    carried = reuters_like(300, 1)
    groups = np.arange(300) // 3
    parts = split(carried, groups=groups)
    for group in range(100):
        assert len(set(parts[3 * group : 3 * group + 3])) == 1
    assert sizes(parts) == pytest.approx((210, 45, 45), abs=12)
