"""From a recipe's data settings to documents in parts, and from those to tokens on disk.

The data is read twice: once to see what there is and to decide, once to tokenize. Neither reading holds more
than a few numbers for each piece, so the data may be larger than memory.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptailor.cache import content_key
from gptailor.data.blocks import TokenStore, TokenWriter, open_store, targets_by_piece
from gptailor.data.documents import Piece, columns_of, iterate_pieces
from gptailor.data.duplicates import near_duplicate_groups
from gptailor.data.ledger import LedgerLine
from gptailor.data.overlap import NgramSet, build_ngram_set, shares_a_run, shares_across
from gptailor.data.repair import repair
from gptailor.data.source import is_stream
from gptailor.data.split import join_groups, time_keys, value_groups
from gptailor.data.store import StoredRows
from gptailor.data.tokenize import Encoder
from gptailor.data.views import each
from gptailor.errors import DataError, did_you_mean
from gptailor.pipeline.folder import hash_files
from gptailor.pipeline.prepare import PARTS, refuse_all_leaked, refuse_same_file
from gptailor.recipe import CleanSettings, DataSettings, Recipe
from gptailor.types import IntArray, Part, RawExample, RejectedRow

DROPPED = -1
MANY_DOCUMENTS = 20  # with fewer, each is divided; with more, each stays whole in one part
COMPARED_CHARACTERS = 20_000  # of a document's beginning, when near-duplicates are looked for
ALL_ALIKE = (
    "Nearly all documents are near-duplicates of one another, so they can't be kept in one part: what is "
    "held out is nearly what was learned."
)
HELD_OUT_BYTES = 1_000_000  # of validation and of test, at most, where the recipe leaves it open
CHUNK = 256  # pieces per call into the tokenizer
DEFAULT_BLOCK = 512  # tokens, where the base could read more


@dataclass(slots=True)
class Documents:
    """What the first reading found in one location: a few numbers for each document and piece."""

    location: str
    columns: str | None = None  # names for a headerless file
    sources: list[str] = field(default_factory=list)
    source_of: array[int] = field(default_factory=lambda: array("q"))  # for each document
    row_of: array[int] = field(default_factory=lambda: array("q"))
    digests: list[bytes] = field(default_factory=list)
    piece_bytes: array[int] = field(default_factory=lambda: array("q"))  # for each piece
    piece_document: array[int] = field(default_factory=lambda: array("q"))
    overlapping: set[int] = field(default_factory=set)  # pieces that stand in a held-out file
    rejected: list[RejectedRow] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)  # for each document, where a column is named for them
    times: list[str] = field(default_factory=list)

    def place(self, document: int) -> tuple[str, int]:
        return self.sources[self.source_of[document]], self.row_of[document]


@dataclass(frozen=True, slots=True)
class Divided:
    """Every piece's part, and why the documents that have none were dropped."""

    documents: Documents
    parts: IntArray  # (P,) index into PARTS, or DROPPED
    reasons: dict[int, tuple[Any, str]]  # document: reason and detail
    divided: bool  # whether single documents are spread over parts
    near_groups: int = 0  # groups of near-duplicates, each in one part
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PreparedDocuments:
    """Everything known about the documents before a model is loaded."""

    files: list[Divided]  # the training location first, then those given for validation and test
    read: int
    data_hash: str


def prepare_documents(recipe: Recipe, say: Callable[[str], None] = lambda _: None) -> PreparedDocuments:
    """Reads everything once and decides where each piece goes.

    Raises:
        DataError: there is too little text, or a location can't be read.
    """
    settings = recipe.data
    refuse_same_file(settings)
    _refuse_unknown_columns(settings)
    tests, validations = [], []
    if settings.test is not None:
        say(f"reading {settings.test}")
        tests = [survey(settings.test, settings, columns=settings.test_columns)]
    if settings.validation is not None:
        say(f"reading {settings.validation}")
        grams = _grams(tests, settings)
        validations = [survey(settings.validation, settings, columns=settings.columns, held_out=grams)]
    held_out = [*validations, *tests]
    say(f"reading {settings.train}")
    train = survey(settings.train, settings, columns=settings.columns, held_out=_grams(held_out, settings))
    given: set[Part] = set()
    if validations:
        given.add("validation")
    if tests:
        given.add("test")
    files = [divide(train, recipe, beside=held_out, given=given)]
    for note in files[0].notes:
        say(note)
    # What chooses the settings must not stand in the test either.
    files += [all_in(documents, "validation", beside=tests) for documents in validations]
    if validations and tests:
        refuse_all_leaked(np.flatnonzero(files[1].parts != DROPPED).tolist(), settings)
    files += [all_in(documents, "test") for documents in tests]
    _refuse_too_little(files, settings.train)
    return PreparedDocuments(
        files=files,
        read=sum(len(f.documents.row_of) + len(f.documents.rejected) for f in files),
        data_hash=hash_files(recipe) or content_key(*(d for f in files for d in f.documents.digests)),
    )


def survey(
    location: str, settings: DataSettings, *, columns: str | None = None, held_out: NgramSet | None = None
) -> Documents:
    """The first reading. Pieces that share a run of words with `held_out` are marked."""
    found = Documents(location, columns)
    names: dict[str, int] = {}
    digest = hashlib.blake2b(digest_size=16)
    before = ""
    _refuse_stream(location)
    pieces = iterate_pieces(
        location,
        text=settings.text,
        columns=columns,
        separator=settings.separator,
        group=settings.split.group,
        time=settings.split.time,
    )
    for item in pieces:
        if isinstance(item, RejectedRow):
            found.rejected.append(item)
            continue
        if item.begins:
            if found.row_of:
                found.digests.append(digest.digest())
            digest = hashlib.blake2b(digest_size=16)
            found.source_of.append(names.setdefault(item.source, len(names)))
            found.row_of.append(item.row)
            if settings.split.group is not None:
                found.groups.append(item.group)
            if settings.split.time is not None:
                found.times.append(item.time)
        digest.update(item.text.encode(errors="surrogateescape"))
        if held_out is not None:
            number = len(found.piece_bytes)
            if shares_a_run(item.text, held_out):
                found.overlapping.add(number)
            if not item.begins and shares_across(before, item.text, held_out):
                found.overlapping |= {number - 1, number}
            before = item.text
        found.piece_bytes.append(len(item.text.encode(errors="surrogateescape")) if item.text.strip() else 0)
        found.piece_document.append(len(found.row_of) - 1)
    if found.row_of:
        found.digests.append(digest.digest())
    found.sources = list(names)
    return found


def divide(documents: Documents, recipe: Recipe, *, beside: Sequence[Documents], given: set[Part]) -> Divided:
    """Drops empty, repeated and leaked documents, and spreads the rest over the parts that weren't given.

    `beside` are the held-out files. Documents of one group, and near-duplicates, stay in one part; with
    times, the newest test.
    """
    parts, reasons = _usable(documents, beside, drop_duplicates=recipe.data.clean.drop_duplicates)
    size = np.array(documents.piece_bytes, np.int64)
    owner = np.array(documents.piece_document, np.int64)
    sizes = np.bincount(owner, weights=size, minlength=len(documents.row_of)).astype(np.int64)
    kept = np.unique(owner[parts == 0])
    shares = _shares(recipe, int(size[parts == 0].sum()), given)
    whole = bool(documents.groups or documents.times) or len(kept) >= MANY_DOCUMENTS
    if not whole and _divide_each(parts, owner, size, shares):
        return Divided(documents, parts, reasons, divided=True)
    near = _near_documents(documents, kept, recipe)
    count = len(np.unique(near))
    alike = count < len(kept) and count <= sum(map(bool, shares.values()))  # one for each part, and no more
    if alike:
        near = np.arange(len(kept))
    order = _in_turn(documents, kept, near, sizes, shares, seed=recipe.seed)
    _divide_whole(parts, owner, sizes, order, shares)
    several = int((np.bincount(near) > 1).sum())
    return Divided(documents, parts, reasons, divided=False, near_groups=several, notes=(ALL_ALIKE,) * alike)


def _near_documents(documents: Documents, kept: IntArray, recipe: Recipe) -> IntArray:
    """(K,) ids of the kept documents: alike for near-duplicates, by their first characters."""
    if not recipe.data.clean.near_duplicates or not len(kept):
        return np.arange(len(kept))
    place_of = {document: place for place, document in enumerate(kept.tolist())}

    def beginnings() -> Iterator[RawExample]:
        pieces = zip(documents.piece_document, _pieces(documents, recipe.data), strict=False)
        for document, ones in itertools.groupby(pieces, key=lambda pair: pair[0]):
            if document in place_of:
                text, room = [], COMPARED_CHARACTERS
                for _, piece in ones:
                    text.append(piece.text[:room])
                    room -= len(text[-1])
                yield RawExample({"text": "".join(text)}, "", document)

    texts = each(StoredRows([], beginnings()), lambda row: row.fields["text"])
    return near_duplicate_groups(texts, seed=recipe.seed)


def _usable(
    documents: Documents, beside: Sequence[Documents], *, drop_duplicates: bool
) -> tuple[IntArray, dict[int, tuple[Any, str]]]:
    """0 for each piece that can be used, else DROPPED; and why documents have none that can."""
    reasons: dict[int, tuple[Any, str]] = {}
    size = np.array(documents.piece_bytes, np.int64)
    owner = np.array(documents.piece_document, np.int64)
    sizes = np.bincount(owner, weights=size, minlength=len(documents.row_of)).astype(np.int64)
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
    parts = np.where(np.isin(owner, list(reasons)) | (size == 0), DROPPED, 0)
    for piece in documents.overlapping:
        parts[piece] = DROPPED
    left = np.bincount(owner[parts == 0], minlength=len(sizes)) if len(owner) else sizes
    for number in np.flatnonzero(left == 0).tolist():
        reasons.setdefault(number, ("leak_near", "every piece shares a run of words with the held-out file"))
    return parts, reasons


def write_tokens(
    prepared: PreparedDocuments,
    encoder: Encoder,
    folder: Path,
    *,
    settings: DataSettings,
    vocabulary: int,
    ends: tuple[int, int],
) -> dict[Part, TokenStore]:
    """The second reading: every kept piece, cleaned and tokenized, in one file for each part.

    `ends` are the tokens that a document begins and ends with.
    """
    writers = {part: TokenWriter(folder / part, vocabulary=vocabulary, ends=ends) for part in PARTS}
    for number, file in enumerate(prepared.files):
        _write_file(file, encoder, writers, settings=settings, key=(len(prepared.files), number))
    for writer in writers.values():
        writer.finish()
    return {part: open_store(folder / part) for part in PARTS}


def write_store(
    file: Divided,
    encoder: Encoder,
    folder: Path,
    *,
    settings: DataSettings,
    vocabulary: int,
    ends: tuple[int, int],
) -> TokenStore:
    """One location in one part as tokens on disk."""
    writer = TokenWriter(folder, vocabulary=vocabulary, ends=ends)
    _write_file(file, encoder, dict.fromkeys(PARTS, writer), settings=settings, key=(1, 0))
    writer.finish()
    return open_store(folder)


def _write_file(
    file: Divided,
    encoder: Encoder,
    writers: Mapping[Part, TokenWriter],
    *,
    settings: DataSettings,
    key: tuple[int, int],
) -> None:
    """`key` makes numbers of documents that differ between files: (how many files, which one)."""
    for chunk, texts in kept_chunks(file, settings):
        encodings = encoder.backend.encode_batch_fast(texts, add_special_tokens=False)
        for (part, document, _, (begins, ends)), text, encoding in zip(chunk, texts, encodings, strict=True):
            writer = writers[part]
            size = len(text.encode(errors="replace"))
            writer.add(encoding.ids, document=document * key[0] + key[1], num_bytes=size, begins=begins)
            if ends:
                writer.end(whole=True)


def repair_document(text: str, settings: CleanSettings) -> str:
    """A document keeps its blanks and line breaks; broken characters are mended like any other text's."""
    return repair(
        text,
        repair_text=settings.repair_text,
        unescape_entities=settings.unescape_entities,
        drop_control=settings.drop_control,
        squeeze_space=False,
    )


def ledger_lines(prepared: PreparedDocuments, stores: dict[Part, TokenStore]) -> Iterator[LedgerLine]:
    """One line per document; a divided one counts where most of it is, and says so."""
    tokens = {part: _tokens_by_document(store) for part, store in stores.items()}
    for number, file in enumerate(prepared.files):
        documents = file.documents
        for rejected in documents.rejected:
            yield _dropped(rejected.source, rejected.row, rejected.reason, rejected.detail)
        owner = np.array(documents.piece_document, np.int64)
        left_out = np.bincount(owner[file.parts == DROPPED], minlength=len(documents.row_of))
        for document in range(len(documents.row_of)):
            source, row = documents.place(document)
            if document in file.reasons:
                yield _dropped(source, row, *file.reasons[document])
                continue
            key = document * len(prepared.files) + number
            counts = {part: tokens[part].get(key, 0) for part in PARTS}
            part = max(PARTS, key=lambda name: counts[name])
            told = [
                f"{count:,} of its tokens are for {name}"
                for name, count in counts.items()
                if count and name != part
            ]
            if left_out[document]:
                told.append(f"{left_out[document]:,} of its pieces are left out (empty or held out)")
            yield LedgerLine(
                source,
                row,
                "used",
                part,
                None,
                "; ".join(told),
                counts["train"],
                sum(counts.values()) - counts["train"],
                0,
            )


def _tokens_by_document(store: TokenStore) -> dict[int, int]:
    """Targets, so that the sums are the tokens that were trained on, and those that were scored."""
    totals: dict[int, int] = {}
    for document, count in zip(store.piece_documents.tolist(), targets_by_piece(store).tolist(), strict=True):
        totals[document] = totals.get(document, 0) + count
    return totals


def _dropped(source: str, row: int, reason: Any, detail: str) -> LedgerLine:
    return LedgerLine(source, row, "dropped", None, reason, detail, trained=0, context=0, cut=0)


def _pieces(documents: Documents, settings: DataSettings) -> Iterator[Piece]:
    for item in iterate_pieces(
        documents.location, text=settings.text, columns=documents.columns, separator=settings.separator
    ):
        if isinstance(item, Piece):
            yield item


Kept = tuple[Part, int, Piece, tuple[bool, bool]]  # part, document, piece, (begins, ends) in its part


def _kept(file: Divided, settings: DataSettings) -> Iterator[Kept]:
    """The pieces of a file that have a part. A stretch begins anew after every piece that isn't beside it."""
    owner, parts = file.documents.piece_document, file.parts
    number = -1
    for number, piece in enumerate(_pieces(file.documents, settings)):
        if number >= len(parts):
            break
        if parts[number] == DROPPED:
            continue
        same_before = number > 0 and owner[number - 1] == owner[number] and parts[number - 1] == parts[number]
        is_last = number + 1 == len(parts) or owner[number + 1] != owner[number]
        yield PARTS[int(parts[number])], owner[number], piece, (not same_before, is_last)
    if number + 1 != len(parts):
        raise DataError(
            "changed while it was read.",
            where=file.documents.location,
            fix="Fit again once it stays as it is.",
        )


def kept_chunks(file: Divided, settings: DataSettings) -> Iterator[tuple[list[Kept], list[str]]]:
    """The pieces that have a part, some hundreds at a time, with their mended texts."""
    kept = _kept(file, settings)
    while held := list(itertools.islice(kept, CHUNK)):
        yield held, [repair_document(piece.text, settings.clean) for _, _, piece, _ in held]


def choose_block(wanted: int | None, context: int) -> int:
    """Tokens of a block: what the recipe says, else 512 or the base's context."""
    if wanted is not None and wanted > context:
        raise DataError(
            f"data.max_tokens is {wanted}, but the base reads at most {context} tokens.",
            fix=f"Set it to {context} or less, or choose a base with a longer context.",
        )
    return wanted or min(DEFAULT_BLOCK, context)


def _shares(recipe: Recipe, total: int, given: set[Part]) -> dict[Part, float]:
    """The share of the bytes that each held-out part takes."""
    split = recipe.data.split
    wanted = {"validation": split.validation, "test": split.test}
    usual = min(0.1, HELD_OUT_BYTES / max(1, total))
    return {
        part: 0.0 if part in given else usual if wanted[part] is None else float(wanted[part] or 0.0)
        for part in ("validation", "test")
    }


def _divide_each(whole: IntArray, owner: IntArray, size: IntArray, shares: dict[Part, float]) -> bool:
    """The end of each document is held out: its last pieces test, those before them validate.

    False, and nothing is changed, where the documents are too short for that.
    """
    parts = whole.copy()
    for document in np.unique(owner[parts == 0]):
        pieces = np.flatnonzero((owner == document) & (parts == 0))
        middles = (np.cumsum(size[pieces]) - size[pieces] / 2) / size[pieces].sum()
        parts[pieces[middles > 1 - shares["test"] - shares["validation"]]] = 1
        parts[pieces[middles > 1 - shares["test"]]] = 2
        if shares["test"] and len(pieces) >= 3:
            parts[pieces[-1]] = 2
        if shares["validation"] and len(pieces) >= 3 and not (parts[pieces] == 1).any():
            parts[pieces[np.flatnonzero(parts[pieces] == 0)[-1]]] = 1
    if not {0, *(PARTS.index(part) for part, share in shares.items() if share)} <= set(parts.tolist()):
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
        alone: list[int] = rng.permutation(kept).tolist()
        return alone
    if documents.times:
        keys = time_keys([documents.times[one] for one in kept], lambda at: _named(documents, kept[at]))
        when = dict(zip(kept.tolist(), keys, strict=True))
        return sorted(together, key=lambda ones: max((when[one], one) for one in ones.tolist()), reverse=True)
    # A group larger than a part trains, where others are left.
    room = min((share for share in shares.values() if share), default=1.0) * sizes[kept].sum()
    drawn = [together[place] for place in rng.permutation(len(together))]
    return sorted(drawn, key=lambda ones: bool(sizes[ones].sum() > room))


def _together(documents: Documents, kept: IntArray, near: IntArray) -> list[IntArray]:
    """Documents by group and by likeness; one that has neither is alone."""
    ids = near
    if documents.groups:
        ids = join_groups(near, value_groups([documents.groups[document] for document in kept]))
    order = np.argsort(ids, kind="stable")
    return np.split(kept[order], np.flatnonzero(np.diff(ids[order])) + 1)


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
    """Whole documents, and those of a group together, until the share of the bytes is reached."""
    total = sizes[np.unique(owner[parts == 0])].sum()
    place = np.zeros(len(sizes), np.int64)
    taken = 0
    for number, part in ((2, "test"), (1, "validation")):
        share = shares[part]  # type: ignore[index]
        reached = 0
        while share and taken < len(order) - 1 and (reached == 0 or reached < share * total):
            place[order[taken]] = number
            reached += int(sizes[order[taken]].sum())
            taken += 1
    inside = parts == 0
    parts[inside] = place[owner[inside]]


def all_in(documents: Documents, part: Part, *, beside: Sequence[Documents] = ()) -> Divided:
    """Every document with text in one part, but for what stands in the files beside it."""
    usable, reasons = _usable(documents, beside, drop_duplicates=False)
    return Divided(documents, np.where(usable == DROPPED, DROPPED, PARTS.index(part)), reasons, divided=False)


def _grams(held_out: Sequence[Documents], settings: DataSettings) -> NgramSet | None:
    """The runs of words in held-out files, if there are any."""
    if not held_out:
        return None
    return build_ngram_set(piece.text for documents in held_out for piece in _pieces(documents, settings))


def _refuse_stream(location: str) -> None:
    if is_stream(location):
        raise DataError(
            "standard input, or a pipe, can't be read twice, and texts are.",
            fix="Write it to a file and give that.",
        )


def _refuse_unknown_columns(settings: DataSettings) -> None:
    """Raises DataError for a column to group or order by that isn't there."""
    for role, column in (("group", settings.split.group), ("order", settings.split.time)):
        if column is None:
            continue
        _refuse_stream(settings.train)
        names = columns_of(settings.train, settings.columns)
        if column not in names:
            told = f"it has {', '.join(names)}" if names else "a plain text has none"
            raise DataError(
                f"there is no column {column!r} to {role} by; {told}.{did_you_mean(column, names)}",
                where=settings.train,
                fix=f"Name one of its columns with --set data.split.{'group' if role == 'group' else 'time'}"
                "=COLUMN, or leave it out.",
            )


def _refuse_too_little(files: list[Divided], where: str) -> None:
    present = {int(part) for file in files for part in np.unique(file.parts)}
    empty = [part for number, part in enumerate(PARTS) if number not in present]
    if empty:
        raise DataError(
            f"there is too little text: nothing is left for {' and '.join(empty)}.",
            where=where,
            fix="Give more text (some ten thousand characters at least), or --validation and --test files.",
        )
