"""Gives every row to exactly one part: train, validation or test."""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn, overload

import numpy as np

from gptailor.data.duplicates import merge_chains
from gptailor.data.shingles import mixed
from gptailor.errors import DataError, RecipeError, number_of
from gptailor.recipe import SplitSettings
from gptailor.types import PARTS, IntArray, Part

FEW_ROWS = 2000
SHARE_OF_FEW, SHARE_OF_MANY = 0.15, 0.10
MOST_ROWS = 5000  # of validation and of test, when nothing is given
NOWHERE = 255  # the place of a group that has none yet
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's step

MONTH_YEAR = re.compile(r"(0?[1-9]|1[0-2])\.(19|20)\d\d")
YEAR_MONTH = re.compile(r"(19|20)\d\d\.(0?[1-9]|1[0-2])")
LOOSE = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?:[ T](\d{1,2}):(\d{2})(?::(\d{2}))?)?")
# 31/3/2024, "Mar 31" and 06:00 PM: their order as text is not their order in time.
NOT_SORTABLE = re.compile(
    r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b|.*\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b"
    r"|.*\d\s*[ap]\.?m\b",
    re.I | re.S,
)


def split_rows(
    labels: Sequence[str] | Sequence[Sequence[str]] | None,
    *,
    groups: IntArray | None,
    times: Sequence[str] | None,
    settings: SplitSettings,
    seed: int,
    has_validation: bool = False,
    has_test: bool = False,
    name_of: Callable[[int], str] | None = None,
) -> tuple[list[Part], list[str]]:
    """The part of each row, and what is to be said of their times.

    A pure function of its arguments, the same on every machine.

    Without shares in the settings: 70/15/15 under 2,000 rows, else 80/10/10 with validation and test at
    most 5,000 each; where one of the two is a given file, the other takes 15 %.

    Labels are spread evenly. Every label with as many groups as there are parts stands in every part
    (where groups mix labels: as far as they allow it). Groups are never cut; a large one goes where most
    room is left, which is mostly train.

    With times, the oldest rows train and the newest test, and labels don't count. A group stands at its
    newest row. Times are compared as numbers if all are numbers, else as dates if all are ISO dates
    (without a zone: UTC), else as text, which is refused for dates that don't begin with the year. Rows
    without a time count as the oldest.

    Args:
        labels: (N,) label of each row, or its labels where a row may carry several (or none), or None for a
            task without labels. Rows with several are dealt out by their rarest one (Sechidis et al. 2011).
        groups: (N,) rows with equal ids stay in one part; None: each row for itself.
        times: (N,) when each row happened; None: at random.
        settings: The shares. At least one of `labels`, `groups` and `times` must be given.
        seed: Of the random choice.
        has_validation: A validation file is given, so no row is taken for it.
        has_test: A test file is given.
        name_of: What a row is called in an error; usually its file and its row there.

    Raises:
        RecipeError: The shares leave nothing to train on.
        DataError: The times can't be ordered, or fewer rows have one than are to be held out.
    """
    lengths = {len(values) for values in (labels, groups, times) if values is not None}
    if len(lengths) != 1:
        raise ValueError(f"labels, groups and times must have one length, not {sorted(lengths)}")
    size = lengths.pop()
    targets = _part_sizes(size, settings, has_validation=has_validation, has_test=has_test)
    rows_of = _Groups(np.arange(size) if groups is None else groups)
    places: Sequence[int]
    says: list[str] = []
    if times is not None:
        keys = time_keys(times, name_of)
        newest = [max((keys[row], row) for row in rows) for rows in rows_of]
        dated = sum(len(rows) for rows in rows_of if any(times[row].strip() for row in rows))
        if dated < sum(targets[1:]):
            refuse_few_times(dated, size)
        places = _split_by_time(rows_of, newest, targets)
        says = [*undated_in_words(times), *_late_in_words(rows_of, newest, places)]
    else:
        given = [()] * size if labels is None else labels
        places = _split_by_label(rows_of, given, targets, seed)
    parts: list[Part] = ["train"] * size
    for rows, place in zip(rows_of, places, strict=True):
        for row in rows:
            parts[row] = PARTS[place]
    return parts, says


def join_groups(one: IntArray, other: IntArray) -> IntArray:
    """Rows that share an id in either grouping, directly or over other rows, in one group.

    Args:
        one: (N,) ids.
        other: (N,) ids of another grouping.

    Returns:
        (N,) ids, numbered from 0 in the order of each group's first row.
    """
    first = [np.unique(ids, return_index=True, return_inverse=True) for ids in (one, other)]
    (_, one_first, one_place), (_, other_first, other_place) = first
    joined = merge_chains(
        one_first[one_place].astype(np.int64), np.arange(len(one)), other_first[other_place].astype(np.int64)
    )
    return np.unique(joined, return_inverse=True)[1].astype(np.int64)


def value_groups(values: Sequence[str]) -> IntArray:
    """(N,) group ids of a column's values. A row without a value is a group for itself."""
    ids: dict[object, int] = {}
    keys = (value.strip() or i for i, value in enumerate(values))
    return np.array([ids.setdefault(key, len(ids)) for key in keys], dtype=np.int64)


def time_keys(times: Sequence[str], name_of: Callable[[int], str] | None = None) -> list[float | str]:
    """What to order rows by; see `split_rows`. Rows without a time come first."""
    given = [time.strip() for time in times]
    filled = [time for time in given if time]
    _refuse_months_as_numbers(given, filled, name_of)
    for parse in (_as_number, _as_seconds, _as_loose_seconds):
        keys = [parse(time) for time in filled]
        if all(key is not None for key in keys):
            values = iter(key for key in keys if key is not None)
            return [next(values) if time else -math.inf for time in given]
    wrong = next((i for i, time in enumerate(given) if NOT_SORTABLE.match(time)), None)
    if wrong is not None:
        raise DataError(
            f"the time {given[wrong]!r} can't be ordered: it doesn't begin with the year, or has AM or PM.",
            where=name_of(wrong) if name_of is not None else f"row {wrong + 1}",
            fix="Write times as 2024-03-31, 2024-03-31T18:00:00 or numbers.",
        )
    # As text only what is written alike, the year first: 2024-Q1, 2024-03.
    shapes = [re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "0", time)) for time in filled]
    usual = Counter(shapes).most_common(1)[0][0] if shapes else ""
    odd = next((time for time, shape in zip(filled, shapes, strict=True) if shape != usual), None)
    if odd is None and usual and not usual.startswith("0000"):
        odd = filled[0]
    if odd is not None:
        place = given.index(odd)
        raise DataError(
            f"the time {odd!r} can't be ordered with the others ({len(filled):,}, most like {usual!r}).",
            where=name_of(place) if name_of is not None else f"row {place + 1}",
            fix="Write all times alike: 2024-03-31, 2024-03-31T18:00:00, or numbers.",
        )
    return list(given)


def _part_sizes(size: int, settings: SplitSettings, *, has_validation: bool, has_test: bool) -> list[int]:
    """Rows of train, validation and test."""
    share = SHARE_OF_FEW if size < FEW_ROWS or has_validation or has_test else SHARE_OF_MANY
    most = size if has_validation or has_test else MOST_ROWS
    validation, test = (
        0 if is_given else min(most, round(share * size)) if wanted is None else round(wanted * size)
        for wanted, is_given in ((settings.validation, has_validation), (settings.test, has_test))
    )
    if size and validation + test >= size:
        raise RecipeError(
            f"{validation:,} rows for validation and {test:,} for test leave none of {size:,} to train on.",
            where="data.split",
            fix="Lower data.split.validation or data.split.test.",
        )
    return [size - validation - test, validation, test]


class _Groups(Sequence[Sequence[int]]):
    """Rows of each group, groups in the order of their first row."""

    def __init__(self, ids: IntArray) -> None:
        _, first, numbers = np.unique(ids, return_index=True, return_inverse=True)
        place = np.argsort(np.argsort(first))[numbers]
        self._rows: IntArray = np.argsort(place, kind="stable")
        self._borders = np.concatenate([[0], np.cumsum(np.bincount(place))])

    def __len__(self) -> int:
        return len(self._borders) - 1

    @overload
    def __getitem__(self, index: int) -> Sequence[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sequence[int]]: ...
    def __getitem__(self, index: int | slice) -> Sequence[int] | list[Sequence[int]]:
        if isinstance(index, slice):
            return [self[group] for group in range(*index.indices(len(self)))]
        rows: list[int] = self._rows[self._borders[index] : self._borders[index + 1]].tolist()
        return rows

    def __iter__(self) -> Iterator[Sequence[int]]:
        return map(self.__getitem__, range(len(self)))

    @property
    def first(self) -> IntArray:
        """(G,) the first row of each."""
        first: IntArray = self._rows[self._borders[:-1]]
        return first


def _shuffle_keys(first: IntArray, seed: int) -> Sequence[int]:
    """A random number per group, from SplitMix64 of the seed and its first row: the same everywhere."""
    start = mixed(np.array([seed * int(GOLDEN) % (1 << 64)], np.uint64))
    return array("Q", mixed(start + first.astype(np.uint64) * GOLDEN - GOLDEN).tobytes())


# --- by label --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Seating:
    """Where groups have been put, and how many rows that gives each part."""

    held: list[Counter[str]]  # per group: rows of each label in it; one object for all rows alike
    sizes: Sequence[int]  # per group: rows
    groups_of: dict[str, array[int]]  # per label: the groups that hold it
    keys: Sequence[int]  # per group: a random number
    places: bytearray  # per group: its part, an index into PARTS, or NOWHERE
    taken: dict[str, list[int]]  # per label: rows in each part
    room: list[int]  # rows that each part may still take
    done: set[str] = field(default_factory=set)  # labels whose groups all have a place
    settled: list[int] = field(default_factory=lambda: [0, 0, 0])  # rows of these labels in each part

    def place(self, group: int, part: int) -> None:
        self.places[group] = part
        for label, rows in self.held[group].items():
            self.taken[label][part] += rows
            if label in self.done:
                self.settled[part] += rows
        self.room[part] -= self.sizes[group]

    def finish(self, label: str) -> None:
        self.done.add(label)
        self.settled = [have + rows for have, rows in zip(self.settled, self.taken[label], strict=True)]

    def free(self, label: str) -> list[int]:
        return [group for group in self.groups_of[label] if self.places[group] == NOWHERE]

    def main_label(self, group: int) -> str:
        """The label of most of its rows; of equals the rarest, which is hardest to spread evenly."""
        held = self.held[group]
        return min(held, key=lambda label: (-held[label], len(self.groups_of[label]), label))


def _split_by_label(
    rows_of: _Groups, labels: Sequence[str] | Sequence[Sequence[str]], targets: Sequence[int], seed: int
) -> Sequence[int]:
    """The part (an index into PARTS) of each group."""
    alone: dict[str | Sequence[str], Counter[str]] = {}

    def held_by(rows: Sequence[int]) -> Counter[str]:
        if len(rows) > 1:
            return sum((held_by([row]) for row in rows), Counter())
        carried = labels[rows[0]]
        if carried not in alone:
            alone[carried] = Counter((carried,) if isinstance(carried, str) else carried or ("",))
        return alone[carried]

    seating = _Seating(
        held=[held_by(rows) for rows in rows_of],
        sizes=array("q", map(len, rows_of)),
        groups_of=defaultdict(lambda: array("q")),
        keys=_shuffle_keys(rows_of.first, seed),
        places=bytearray([NOWHERE]) * len(rows_of),
        taken={},
        room=list(targets),
    )
    for group in range(len(rows_of)):
        for label in seating.held[group]:
            seating.groups_of[label].append(group)
            seating.taken[label] = [0, 0, 0]
    rarest_first = sorted(seating.groups_of, key=lambda label: (len(seating.groups_of[label]), label))
    existing = [part for part in (1, 2, 0) if targets[part]]
    for label in rarest_first:
        if len(seating.groups_of[label]) >= len(existing):
            _seat_everywhere(seating, label, existing)

    rows_done = 0
    for label in rarest_first:
        size = sum(seating.held[group][label] for group in seating.groups_of[label])
        rows_done += size
        # What rounding and large groups gave a part too much with one label, the next ones make good.
        owed = [rows_done * targets[part] / len(labels) - seating.settled[part] for part in (0, 1, 2)]
        _seat_evenly(seating, label, existing, _rounded(owed, size))
        seating.finish(label)
    return seating.places


def _rounded(owed: Sequence[float], size: int) -> list[int]:
    """Rows of one label for each part: whole, together its size, and one at least for train."""
    validation = min(max(math.floor(owed[1] + 0.5), 0), max(0, size - 1))
    test = min(max(math.floor(owed[2] + 0.5), 0), max(0, size - 1 - validation))
    return [size - validation - test, validation, test]


def _seat_everywhere(seating: _Seating, label: str, existing: Sequence[int]) -> None:
    """Puts one group with the label into each part that has none: small ones, and a large one to train."""
    free = sorted(seating.free(label), key=lambda group: (seating.sizes[group], seating.keys[group]))
    for part in existing:
        if free and not seating.taken[label][part]:
            seating.place(free.pop(0) if part else free.pop(), part)


def _seat_evenly(seating: _Seating, label: str, existing: Sequence[int], wanted: Sequence[int]) -> None:
    """Places the other groups whose main label this is, each where most room is left."""
    taken = seating.taken[label]
    smallest = min(wanted[part] for part in existing)

    def turn(group: int) -> tuple[int, int]:
        # Large groups go first, while there is room. The others go by chance alone: by size, all
        # groups of two would go to train.
        size = seating.sizes[group]
        return (-size if size > max(1, smallest / 10) else 0, seating.keys[group])

    mine = [group for group in seating.free(label) if seating.main_label(group) == label]
    for group in sorted(mine, key=turn):
        open_parts = [part for part in existing if not part or seating.sizes[group] <= seating.room[part]]
        seating.place(group, max(open_parts, key=lambda part: wanted[part] - taken[part]))


# --- by time ---------------------------------------------------------------------------------------


def _split_by_time(
    rows_of: Sequence[Sequence[int]], newest: Sequence[tuple[Any, int]], targets: Sequence[int]
) -> list[int]:
    """The part of each group, from the newest back: test, validation, train.

    What is larger than any part that is held out trains, and the next group takes its place.
    """
    room = max(targets[1:])
    order = sorted(range(len(rows_of)), key=lambda group: newest[group], reverse=True)
    places = [0] * len(rows_of)
    part, filled = 2, 0
    for group in order:
        size = len(rows_of[group])
        if size > 1 and size > room:
            continue
        # A group goes over a part's end only if that is nearer to the target than stopping short.
        while part and filled + size / 2 > targets[part]:
            part, filled = part - 1, 0
        places[group] = part
        filled += size
    return places


def undated_in_words(times: Sequence[str], *, one: str = "row") -> list[str]:
    """That some have no time, where some don't; `one` is what is counted."""
    undated = sum(not time.strip() for time in times)
    told = number_of(len(times), one)
    return [f"no time stands in {undated:,} of {told}: such {one}s count as the oldest"] if undated else []


def refuse_few_times(num_dated: int, num_all: int, *, one: str = "row") -> NoReturn:
    """Says that too few have a time, or stand beside one that has, for the newest to be held out.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"only {num_dated:,} of {number_of(num_all, one)} have a time: too few to hold out the newest.",
        where="data.split.time",
        fix="Name the column that holds the times, fill it in, or leave the setting out.",
    )


def _late_in_words(
    rows_of: Sequence[Sequence[int]], newest: Sequence[tuple[Any, int]], places: Sequence[int]
) -> list[str]:
    """That rows train which are newer than some that are held out: their group was too large to hold out."""
    times = [time for time, _ in newest]
    held = [time for time, place in zip(times, places, strict=True) if place]
    if not held:
        return []
    oldest, groups = min(held), zip(rows_of, times, places, strict=True)
    late = sum(len(rows) for rows, time, place in groups if not place and time > oldest)
    if not late:
        return []
    return [
        f"{number_of(late, 'row')} of groups larger than what is held out: they train, whatever their time"
    ]


def _refuse_months_as_numbers(
    given: Sequence[str], filled: Sequence[str], name_of: Callable[[int], str] | None
) -> None:
    """Raises DataError for months as 12.2023, or as 2023.9 and 2023.10: numbers order them otherwise."""
    backwards = all(MONTH_YEAR.fullmatch(time) for time in filled)
    months = {time.partition(".")[2] for time in filled if YEAR_MONTH.fullmatch(time)}
    lengths = {len(month) for month in months}
    forwards = lengths == {1, 2} and all(YEAR_MONTH.fullmatch(time) for time in filled)
    if not filled or not (backwards or forwards):
        return
    place = given.index(filled[0])
    raise DataError(
        f"the time {filled[0]!r} can't be ordered: as a number it isn't the month that it seems to be.",
        where=name_of(place) if name_of is not None else f"row {place + 1}",
        fix="Write months as 2024-03.",
    )


def _as_number(time: str) -> float | None:
    try:
        number = float(time)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _as_loose_seconds(time: str) -> float | None:
    """2024/3/1 and 2024-3-1 9:05, as spreadsheets write them."""
    found = LOOSE.fullmatch(time)
    if found is None:
        return None
    try:
        moment = datetime(*(int(part or 0) for part in found.groups()), tzinfo=UTC)  # type: ignore[arg-type, misc]
    except ValueError:
        return None
    return moment.timestamp()


def _as_seconds(time: str) -> float | None:
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
