"""Which part each piece of a document belongs to: by the person's groups and times, else drawn.

With few documents each is divided; with more, each stays whole, and near-duplicates stay together.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptailor.data.duplicates import near_duplicate_groups, near_matches
from gptailor.data.overlap import RUN, build_ngram_set, shares_a_run
from gptailor.data.split import join_groups, refuse_few_times, time_keys, undated_in_words, value_groups
from gptailor.data.store import StoredRows
from gptailor.data.views import each
from gptailor.errors import RecipeError, number_of
from gptailor.evaluate.resampling import FEWEST_UNITS
from gptailor.pipeline.documents_survey import Documents, pieces_of
from gptailor.pipeline.held_out import near_seed_of
from gptailor.recipe import DataSettings, Recipe
from gptailor.report.facts import bytes_text
from gptailor.types import PARTS, BoolArray, IntArray, Part, RawExample

DROPPED = -1
MANY_DOCUMENTS = 20  # with fewer, each is divided; with more, each stays whole in one part
COMPARED_CHARACTERS = 20_000  # of a document's beginning, when near-duplicates are looked for
ALL_ALIKE = (
    "Nearly all documents are near-duplicates of one another, so they can't be kept in one part: what is "
    "held out is nearly what was learned."
)
MOST_OF_A_SHORT_TEXT = 0.2  # that each held-out part may take of one for the sake of an interval
HELD_OUT_BYTES = 1_000_000  # of validation and of test, at most, where the recipe leaves it open


@dataclass(frozen=True, slots=True)
class Divided:
    """Every piece's part, and why the documents that have none were dropped."""

    documents: Documents
    parts: IntArray  # (P,) index into PARTS, or DROPPED
    reasons: dict[int, tuple[Any, str]]  # document: reason and detail
    divided: bool  # whether single documents are spread over parts
    together: IntArray  # (D,) ids: alike for documents that were drawn together, and so count once
    near_groups: int = 0  # groups of near-duplicates, each in one part
    notes: tuple[str, ...] = ()


def divide(documents: Documents, recipe: Recipe, *, beside: Sequence[Documents], given: set[Part]) -> Divided:
    """Drops empty, repeated and leaked documents, and spreads the rest over the parts that weren't given.

    `beside` are the held-out files. Documents of one group, and near-duplicates, stay in one part; with
    times, the newest test.
    """
    parts, reasons = _usable(
        documents, beside, recipe.data, drop_duplicates=recipe.data.clean.drop_duplicates
    )
    size = np.array(documents.piece_bytes, np.int64)
    owner = np.array(documents.piece_document, np.int64)
    sizes = _document_bytes(documents)
    kept = np.unique(owner[parts == 0])
    shares = _shares(recipe, int(size[parts == 0].sum()), given)
    stay = len(kept) >= MANY_DOCUMENTS and _may_stay_whole(sizes[kept].tolist(), shares)
    whole = bool(documents.groups or documents.times) or stay
    of_ends = _shares_of_ends(recipe, shares, np.flatnonzero(parts == 0), owner, size)
    if not whole and _divide_each(parts, owner, size, of_ends):
        alone = np.arange(len(sizes))
        notes = (*_leaks(documents), *_repeats(documents, parts, recipe.data))
        return Divided(documents, parts, reasons, divided=True, together=alone, notes=notes)
    near = _near_documents(documents, kept, recipe.data, near_seed_of(recipe))
    count = len(np.unique(near))
    alike = count < len(kept) and count <= sum(map(bool, shares.values()))  # one for each part, and no more
    if alike:
        near = np.arange(len(kept))
    together = np.arange(len(sizes)) + len(kept)
    together[kept] = _ids(documents, kept, near)
    order = _in_turn(documents, kept, near, sizes, shares, seed=recipe.seed)
    _divide_whole(parts, owner, sizes, order, shares)
    several = int((np.bincount(near) > 1).sum())
    if documents.times:
        _refuse_undated(documents, order, owner[parts > 0])
    notes = (
        *_leaks(documents),
        *(ALL_ALIKE,) * alike,
        *_undated(documents, kept),
        *_too_large(documents, order, sizes, shares, set(owner[parts == 0].tolist())),
    )
    return Divided(
        documents, parts, reasons, divided=False, together=together, near_groups=several, notes=notes
    )


def _near_documents(
    documents: Documents, kept: IntArray, settings: DataSettings, seed: int | None
) -> IntArray:
    """(K,) ids of the kept documents: alike for near-duplicates, by their first characters; without a seed
    each has its own.
    """
    if seed is None or not len(kept):
        return np.arange(len(kept))
    return near_duplicate_groups(_beginnings(documents, kept, settings), seed=seed)


def _beginnings(documents: Documents, among: IntArray, settings: DataSettings) -> Sequence[str]:
    """(K,) how the documents with these numbers begin: enough to tell whether two are alike."""
    wanted = set(among.tolist())

    def rows() -> Iterator[RawExample]:
        pieces = zip(documents.piece_document, pieces_of(documents, settings), strict=False)
        for document, ones in itertools.groupby(pieces, key=lambda pair: pair[0]):
            if document in wanted:
                text, room = [], COMPARED_CHARACTERS
                for _, piece in ones:
                    text.append(piece.text[:room])
                    room -= len(text[-1])
                yield RawExample({"text": "".join(text)}, "", document)

    return each(StoredRows([], rows()), lambda row: row.fields["text"])


def _near_held_out(
    documents: Documents, among: IntArray, held_out: Documents, settings: DataSettings
) -> Iterator[tuple[int, str]]:
    """The documents that nearly stand in a held-out file, and where: short ones have no run of words."""
    sizes = _document_bytes(held_out)
    theirs = np.flatnonzero(sizes > 0)
    if not len(among) or not len(theirs):
        return
    matches = near_matches(_beginnings(documents, among, settings), _beginnings(held_out, theirs, settings))
    for place in np.flatnonzero(matches >= 0).tolist():
        source, row = held_out.place(int(theirs[matches[place]]))
        yield int(among[place]), f"nearly the same text as {source} row {row}"


def _document_bytes(documents: Documents) -> IntArray:
    """(D,) the bytes of each document."""
    owner = np.array(documents.piece_document, np.int64)
    size = np.array(documents.piece_bytes, np.int64)
    return np.bincount(owner, weights=size, minlength=len(documents.row_of)).astype(np.int64)


def _usable(
    documents: Documents, beside: Sequence[Documents], settings: DataSettings, *, drop_duplicates: bool
) -> tuple[IntArray, dict[int, tuple[Any, str]]]:
    """0 for each piece that can be used, else DROPPED; and why documents have none that can."""
    reasons: dict[int, tuple[Any, str]] = {}
    size = np.array(documents.piece_bytes, np.int64)
    owner = np.array(documents.piece_document, np.int64)
    sizes = _document_bytes(documents)
    known = {digest for one in beside for digest in one.digests}
    known_groups = {group for one in beside for group in one.groups if group}
    groups = documents.groups or [""] * len(sizes)
    seen: dict[bytes, int] = {}
    for number, digest in enumerate(documents.digests):
        if sizes[number] == 0:
            reasons[number] = ("no_text", "")
        elif digest in known:
            reasons[number] = ("leak_exact", "stands in the held-out file")
        elif groups[number] in known_groups:
            detail = f"of the group {groups[number]!r}, which stands in the held-out file"
            reasons[number] = ("leak_group", detail)
        elif drop_duplicates and digest in seen:
            source, row = documents.place(seen[digest])
            reasons[number] = ("duplicate", f"the same as {source} row {row}")
        else:
            seen[digest] = number
    for held_out in beside:
        among = np.array([number for number in range(len(sizes)) if number not in reasons], np.int64)
        reasons |= {
            number: ("leak_near", says)
            for number, says in _near_held_out(documents, among, held_out, settings)
        }
    parts = np.where(np.isin(owner, list(reasons)) | (size == 0), DROPPED, 0)
    for piece in documents.overlapping:
        parts[piece] = DROPPED
    left = np.bincount(owner[parts == 0], minlength=len(sizes)) if len(owner) else sizes
    for number in np.flatnonzero(left == 0).tolist():
        reasons.setdefault(number, ("leak_near", "every piece shares a run of words with the held-out file"))
    return parts, reasons


def _shares(recipe: Recipe, total: int, given: set[Part]) -> dict[Part, float]:
    """The share of the bytes that each held-out part takes.

    Raises:
        RecipeError: together they take all.
    """
    split = recipe.data.split
    wanted = {"validation": split.validation, "test": split.test}
    usual = min(0.1, HELD_OUT_BYTES / max(1, total))
    shares: dict[Part, float] = {
        part: 0.0 if part in given else usual if wanted[part] is None else float(wanted[part] or 0.0)
        for part in ("validation", "test")
    }
    if sum(shares.values()) >= 1:
        raise RecipeError(
            "the shares for validation and test leave no text to train on.",
            where="data.split",
            fix="Lower data.split.validation or data.split.test.",
        )
    return shares


def _room(total: int, shares: dict[Part, float]) -> float:
    """The bytes of the smallest part that is held out: what is larger trains, where others are left."""
    return min((share for share in shares.values() if share), default=1.0) * total


def _may_stay_whole(sizes: Sequence[int], shares: dict[Part, float]) -> bool:
    """Whether what is no larger than a part is enough for all that is held out, with as much again left, or
    half of the rest where more than that is held out.
    """
    total, held = sum(sizes), sum(shares.values())
    room = _room(total, shares)
    return sum(size for size in sizes if size <= room) >= min(2 * held, (1 + held) / 2) * total


def _shares_of_ends(
    recipe: Recipe, shares: dict[Part, float], kept: IntArray, owner: IntArray, size: IntArray
) -> dict[Part, float]:
    """The shares where documents are divided: of a short text as much as an interval needs, unless the recipe
    names them. `kept`: the pieces that are divided among the parts.
    """
    long = kept[np.bincount(owner[kept])[owner[kept]] > sum(map(bool, shares.values()))]
    if not long.size:
        return shares
    enough = FEWEST_UNITS * float(size[long].max() / size[kept].sum())
    wanted = {"validation": recipe.data.split.validation, "test": recipe.data.split.test}
    return {
        part: max(share, enough)
        if share and wanted[part] is None and enough <= MOST_OF_A_SHORT_TEXT
        else share
        for part, share in shares.items()
    }


@dataclass(slots=True)
class _Ends:
    """A document whose last pieces are held out. `training`: the bytes of those that train, in order."""

    pieces: IntArray
    training: list[int]
    total: int
    held: int = 0  # bytes

    def hold_out(self, parts: IntArray, part: Part) -> int:
        """Takes the last piece that trains for a part; its bytes."""
        parts[self.pieces[len(self.training) - 1]] = PARTS.index(part)
        size = self.training.pop()
        self.held += size
        return size


def _divide_each(whole: IntArray, owner: IntArray, size: IntArray, shares: dict[Part, float]) -> bool:
    """The end of each document is held out: its last pieces test, those before them validate.

    Where a document's share is less than a piece, the longest documents give a piece each, until the part has
    its share of all bytes. False, and nothing is changed, where the documents are too short for that.
    """
    parts = whole.copy()
    kept = np.flatnonzero(parts == 0)
    among = np.split(kept, np.flatnonzero(np.diff(owner[kept])) + 1)
    ends = [_Ends(pieces, size[pieces].tolist(), int(size[pieces].sum())) for pieces in among]
    ends.sort(key=lambda one: -one.total)
    behind = 0.0  # the share that this part and those behind it take
    held_out: Sequence[Part] = [part for part in ("test", "validation") if shares[part]]
    for number, part in enumerate(held_out):
        spare = len(held_out) - number  # pieces that are left for what stands before
        behind += shares[part]
        taken, wanted = 0, shares[part] * int(size[kept].sum())
        for one in ends:
            while len(one.training) > spare and one.held + one.training[-1] <= behind * one.total:
                taken += one.hold_out(parts, part)
        before = -1
        while before < taken:  # a piece of each, as long as most of it has room; one of all in any case
            before = taken
            for one in ends:
                if len(one.training) > spare and (not taken or taken + one.training[-1] / 2 <= wanted):
                    taken += one.hold_out(parts, part)
        if not taken:
            return False
    whole[:] = parts
    return True


def _in_turn(
    documents: Documents,
    kept: IntArray,
    near: IntArray,
    sizes: IntArray,
    shares: dict[Part, float],
    *,
    seed: int,
) -> Sequence[Any]:
    """What stays together, one document or several, in the order of being held out: by time, or drawn."""
    rng = np.random.default_rng(seed)
    if not len(kept):
        return []
    together = _together(documents, kept, near)
    if len(together) == len(kept) and not documents.groups and not documents.times:
        room = _room(int(sizes[kept].sum()), shares)
        return sorted(rng.permutation(kept).tolist(), key=lambda one: bool(sizes[one] > room))
    if documents.times:
        keys = time_keys([documents.times[one] for one in kept], lambda at: _named(documents, kept[at]))
        when = dict(zip(kept.tolist(), keys, strict=True))
        order = sorted(
            together, key=lambda ones: max((when[one], one) for one in ones.tolist()), reverse=True
        )
    else:
        order = [together[place] for place in rng.permutation(len(together))]
    room = _room(int(sizes[kept].sum()), shares)
    return sorted(order, key=lambda ones: bool(sizes[ones].sum() > room))


def _repeats(documents: Documents, parts: IntArray, settings: DataSettings) -> Iterator[str]:
    """That what is held out of a divided text stands in the rest of it, too."""
    held = build_ngram_set(
        piece.text for piece, part in zip(pieces_of(documents, settings), parts, strict=False) if part > 0
    )
    repeated = sum(
        shares_a_run(piece.text, held)
        for piece, part in zip(pieces_of(documents, settings), parts, strict=False)
        if part == 0
    )
    if repeated:
        pieces = number_of(int((parts == 0).sum()), "training piece")
        yield (
            f"{repeated:,} of {pieces} share a run of {RUN} words with what is held out of the same text: "
            "where a text repeats itself, its score says less of new text."
        )


def _undated(documents: Documents, kept: IntArray) -> list[str]:
    """That documents have no time, where others have."""
    times = [documents.times[one] for one in kept] if documents.times else []
    return [f"{line}." for line in undated_in_words(times, one="document")]


def _refuse_undated(documents: Documents, order: Sequence[Any], held_out: IntArray) -> None:
    """Refuses to hold out as the newest what has no time, nor stands beside what has one."""
    undated = [ones for ones in order if not any(documents.times[one].strip() for one in ones.tolist())]
    if undated and np.isin(np.concatenate(undated), held_out).any():
        every = sum(map(len, order))
        refuse_few_times(every - sum(map(len, undated)), every, one="document")


def _too_large(
    documents: Documents,
    order: Sequence[Any],
    sizes: IntArray,
    shares: dict[Part, float],
    training: Collection[int],
) -> Iterator[str]:
    """That something trains whatever its time: a part that is held out has no room for it."""
    if not documents.times or not any(shares.values()):
        return
    room = _room(sum(int(sizes[ones].sum()) for ones in order), shares)
    train = [int(sizes[ones].sum()) for ones in order if int(ones[0]) in training]
    if large := [size for size in train if size > room]:
        which = number_of(len(large), "document or group", "documents or groups")
        size = bytes_text(sum(large))
        yield f"trains whatever its time, being larger than what is held out: {which} ({size})."


def _together(documents: Documents, kept: IntArray, near: IntArray) -> list[IntArray]:
    """Documents by group and by likeness; one that has neither is alone."""
    ids = _ids(documents, kept, near)
    order = np.argsort(ids, kind="stable")
    return np.split(kept[order], np.flatnonzero(np.diff(ids[order])) + 1)


def _ids(documents: Documents, kept: IntArray, near: IntArray) -> IntArray:
    """(K,) ids of the kept documents: alike for those of one group, and for near-duplicates."""
    if not documents.groups:
        return near
    return join_groups(near, value_groups([documents.groups[document] for document in kept]))


def _named(documents: Documents, document: int) -> str:
    source, row = documents.place(document)
    return f"{source} row {row}"


def _divide_whole(
    parts: IntArray,
    owner: IntArray,
    sizes: IntArray,
    order: Sequence[Any],
    shares: dict[Part, float],
) -> None:
    """Whole documents, and those of a group together, until the share of the bytes is reached: of all bytes,
    or where most are in ones that are larger than a part, of the others'.
    """
    held = [int(sizes[ones].sum()) for ones in order]
    total = sum(held)
    if not _may_stay_whole(held, shares):
        total = sum(size for size in held if size <= _room(total, shares))
    place = np.zeros(len(sizes), np.int64)
    taken = 0
    for number, part in ((2, "test"), (1, "validation")):
        share = shares[part]  # type: ignore[index]
        reached = 0
        while share and taken < len(order) - 1 and (reached == 0 or reached < share * total):
            place[order[taken]] = number
            reached += held[taken]
            taken += 1
    inside = parts == 0
    parts[inside] = place[owner[inside]]


def all_in(
    documents: Documents,
    part: Part,
    settings: DataSettings,
    *,
    near_seed: int | None,
    beside: Sequence[Documents] = (),
) -> Divided:
    """Every document with text in one part, but for what stands in the files beside it.

    With `near_seed` near-duplicates among them are drawn together.
    """
    usable, reasons = _usable(documents, beside, settings, drop_duplicates=False)
    parts = np.where(usable == DROPPED, DROPPED, PARTS.index(part))
    every = np.arange(len(documents.row_of))
    near = _near_documents(documents, every, settings, near_seed)
    return Divided(
        documents,
        parts,
        reasons,
        divided=False,
        together=_ids(documents, every, near),
        notes=_leaks(documents),
    )


def numbered_pieces(file: Divided, settings: DataSettings, *parts: Part) -> Iterator[tuple[int, str]]:
    """The pieces of these parts that hold text, each with the number of its document."""
    kept = held_by(file, *parts).tolist()
    pieces = zip(file.documents.piece_document, pieces_of(file.documents, settings), strict=False)
    return ((document, piece.text) for document, piece in itertools.compress(pieces, kept))


def held_by(file: Divided, *parts: Part) -> BoolArray:
    """(P,) which pieces are of these parts and hold text."""
    blank = np.array(file.documents.piece_bytes, np.int64) == 0
    kept: BoolArray = np.isin(file.parts, [PARTS.index(part) for part in parts]) & ~blank
    return kept


def _leaks(documents: Documents) -> tuple[str, ...]:
    """What was left out because it stands in a held-out file, in words."""
    if not documents.overlapping:
        return ()
    size = sum(documents.piece_bytes[piece] for piece in documents.overlapping)
    pieces = number_of(len(documents.overlapping), "piece")
    return (
        f"{documents.location}: {pieces} ({bytes_text(size)}) left out: they share a run of "
        f"{RUN} words with a held-out file.",
    )
