"""Sequences that are made as they are looked at, so that a million rows needn't lie in memory twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar, overload

from gptailor.types import IntArray

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Mapped(Sequence[Made], Generic[Item, Made]):
    """`[make(item) for item in items]`, each made anew whenever it is asked for."""

    items: Sequence[Item]
    make: Callable[[Item], Made]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Made]:
        return map(self.make, self.items)

    @overload
    def __getitem__(self, index: int) -> Made: ...
    @overload
    def __getitem__(self, index: slice) -> list[Made]: ...
    def __getitem__(self, index: int | slice) -> Made | list[Made]:
        if isinstance(index, slice):
            return [self.make(item) for item in self.items[index]]
        return self.make(self.items[index])


def each(items: Sequence[Item], make: Callable[[Item], Made]) -> Sequence[Made]:
    """What is made of each item: of a list a list, of what isn't in memory a view."""
    return [make(item) for item in items] if isinstance(items, list) else Mapped(items, make)


def picked(items: Sequence[Item], places: IntArray) -> Sequence[Item]:
    """The items at these places: of a list a list, of what isn't in memory a view."""
    if isinstance(items, list):
        return [items[place] for place in places.tolist()]
    if isinstance(items, Mapped):  # what is picked first needn't be made
        return Mapped(picked(items.items, places), items.make)
    if isinstance(items, Picked):
        return Picked(items.items, items.places[places])
    return Picked(items, places)


def chained(left: Sequence[Item], right: Sequence[Item]) -> Sequence[Item]:
    """The one and then the other: of lists a list, else a view."""
    both_held = isinstance(left, list) and isinstance(right, list)
    return [*left, *right] if both_held else Joined(left, right)


@dataclass(frozen=True, slots=True)
class Picked(Sequence[Item]):
    """`[items[place] for place in places]`."""

    items: Sequence[Item]
    places: IntArray  # (N,)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Item]:
        return map(self.items.__getitem__, self.places.tolist())

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self.items[place] for place in self.places[index].tolist()]
        return self.items[int(self.places[index])]


@dataclass(frozen=True, slots=True)
class Joined(Sequence[Item]):
    """`[*left, *right]`."""

    left: Sequence[Item]
    right: Sequence[Item]

    def __len__(self) -> int:
        return len(self.left) + len(self.right)

    def __iter__(self) -> Iterator[Item]:
        return chain(self.left, self.right)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        index, size = range(len(self))[index], len(self.left)
        return self.left[index] if index < size else self.right[index - size]
