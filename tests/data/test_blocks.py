"""Blocks lose no token, learn none twice, and never across documents, by a slow and plain second opinion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptailor.data.blocks import (
    TokenStore,
    TokenWriter,
    block_lengths,
    collate_blocks,
    is_whole,
    num_blocks,
    open_store,
    target_pieces,
    targets_by_piece,
)

SHARED, APART = (0, 0), (0, 1)
each_ends = pytest.mark.parametrize("ends", [SHARED, APART], ids=["shared", "apart"])


@dataclass(frozen=True)
class Stretch:
    """Neighboring pieces of one document; `whole` where the document ends with them."""

    pieces: list[list[int]]
    whole: bool


def stretches(longest: int = 6) -> st.SearchStrategy[list[Stretch]]:
    ids = st.lists(st.integers(2, 40), max_size=longest)
    stretch = st.builds(Stretch, st.lists(ids, min_size=1, max_size=4), st.booleans())
    return st.lists(stretch, min_size=1, max_size=8)


@dataclass(frozen=True)
class Target:
    """One thing to predict: what stands before it, itself, and the piece it counts for."""

    given: int
    target: int
    piece: int
    offset: int  # of what stands before it, in its stretch


def expected_targets(documents: Sequence[Stretch], ends: tuple[int, int]) -> list[Target]:
    """Stretch by stretch, without any store."""
    found, number = [], 0
    for stretch in documents:
        before, offset = ends[0], 0
        for piece in stretch.pieces:
            for token in piece:
                found.append(Target(before, token, number, offset))
                before, offset = token, offset + 1
            number += 1
        if stretch.whole:
            found.append(Target(before, ends[1], number - 1, offset))
    return found


def write(
    folder: Path, documents: Sequence[Stretch], ends: tuple[int, int], *, vocabulary: int = 50
) -> TokenStore:
    writer = TokenWriter(folder, vocabulary=vocabulary, ends=ends)
    for number, stretch in enumerate(documents):
        for place, ids in enumerate(stretch.pieces):
            writer.add(ids, document=number, num_bytes=3 * len(ids), begins=place == 0)
        if stretch.whole:
            writer.end(whole=True)
    writer.finish()
    return open_store(folder)


def found_targets(store: TokenStore, length: int, *, at_once: int) -> Iterator[Target]:
    """What batches of blocks say, with positions counted back to the last beginning in the block."""
    begins = set(store.begins.tolist())
    total = num_blocks(store, length)
    for start in range(0, total, at_once):
        blocks = range(start, min(start + at_once, total))
        batch = collate_blocks(store, blocks, length=length, where="here")
        assert batch.targets is not None
        assert batch.learned is not None
        assert batch.positions is not None
        assert batch.num_targets == len(batch.targets) == len(batch.learned)
        pieces = target_pieces(store, blocks, length=length)
        for flat, target, piece in zip(
            batch.learned.tolist(), batch.targets.tolist(), pieces.tolist(), strict=True
        ):
            row, column = divmod(flat, length)
            assert column <= int(batch.last[row])
            first = blocks[row] * length
            back = next((b for b in range(column + 1) if first + column - b in begins), column)
            assert int(batch.positions[row, column]) == back
            place = first + column
            offset = place - max(b for b in begins if b <= place)
            assert back in (offset, column), "a position counts from the document's or the block's beginning"
            yield Target(int(batch.input_ids[row, column]), target, piece, offset)


@each_ends
@given(documents=stretches(), length=st.integers(1, 30), at_once=st.integers(1, 4))
@settings(deadline=None, max_examples=80)
def test_each_token_and_each_end_is_predicted_once(
    tmp_path_factory: pytest.TempPathFactory,
    ends: tuple[int, int],
    documents: list[Stretch],
    length: int,
    at_once: int,
) -> None:
    """In order, with the right token before it, for the right piece, and nothing from another document."""
    store = write(tmp_path_factory.getbasetemp() / "property", documents, ends)
    expected = expected_targets(documents, ends)
    assert list(found_targets(store, length, at_once=at_once)) == expected
    assert store.num_targets == len(expected)
    counts = np.bincount([t.piece for t in expected], minlength=len(store.piece_starts))
    assert targets_by_piece(store).tolist() == counts.tolist()
    assert block_lengths(store, length).sum() == max(0, len(store.tokens) - 1)


@each_ends
@given(documents=stretches())
@settings(deadline=None, max_examples=50)
def test_the_index_says_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, ends: tuple[int, int], documents: list[Stretch]
) -> None:
    store = write(tmp_path_factory.getbasetemp() / "index", documents, ends)
    pieces = [(number, ids) for number, s in enumerate(documents) for ids in s.pieces]
    assert store.piece_documents.tolist() == [number for number, _ in pieces]
    assert store.piece_bytes.tolist() == [3 * len(ids) for _, ids in pieces]
    for start, (_, ids) in zip(store.piece_starts.tolist(), pieces, strict=True):
        assert store.tokens[start : start + len(ids)].tolist() == ids
    assert len(store.begins) == len(documents)
    assert set(store.tokens[store.begins].tolist()) == {ends[0]}


def test_one_token_between_two_documents_is_enough(tmp_path: Path) -> None:
    documents = [Stretch([[5, 6], [7]], whole=True), Stretch([[8]], whole=False), Stretch([[9]], whole=True)]
    shared = write(tmp_path / "shared", documents, SHARED)
    assert shared.tokens.tolist() == [0, 5, 6, 7, 0, 8, 0, 9, 0]
    assert shared.unlearned.tolist() == [5], "what was cut off after 8 is no end of a document"
    apart = write(tmp_path / "apart", documents, APART)
    assert apart.tokens.tolist() == [0, 5, 6, 7, 1, 0, 8, 0, 9, 1]
    assert apart.unlearned.tolist() == [4, 6], "nobody can know that a document begins"


def test_a_batch_of_blocks_written_out(tmp_path: Path) -> None:
    store = write(tmp_path, [Stretch([[5, 6, 7]], whole=True), Stretch([[8, 9]], whole=False)], SHARED)
    batch = collate_blocks(store, [1, 0], length=4, where="a.txt")
    assert batch.positions is not None
    assert batch.learned is not None
    assert batch.targets is not None
    assert batch.input_ids.tolist() == [[0, 8, 0, 0], [0, 5, 6, 7]]
    assert batch.positions[0, :2].tolist() == [0, 1]
    assert batch.positions[1].tolist() == [0, 1, 2, 3]
    assert batch.last.tolist() == [1, 3]
    assert batch.learned.tolist() == [0, 1, 4, 5, 6, 7]
    assert batch.targets.tolist() == [8, 9, 5, 6, 7, 0]
    assert batch.num_targets == batch.num_tokens == 6
    assert batch.rows == ("a.txt block 1", "a.txt block 0")


def test_padding_is_never_a_target(tmp_path: Path) -> None:
    store = write(tmp_path, [Stretch([[5, 6]], whole=False)], APART)
    batch = collate_blocks(store, [0], length=50, where="")
    assert (batch.num_targets, batch.num_tokens) == (2, 2)
    assert block_lengths(store, 50).tolist() == [2]


@pytest.mark.parametrize(("vocabulary", "width"), [(2**16, 2), (2**16 + 1, 4), (150_000, 4)])
def test_token_ids_of_large_vocabularies_are_kept(tmp_path: Path, vocabulary: int, width: int) -> None:
    ids = [2, vocabulary - 1, 300, vocabulary - 2]
    store = write(tmp_path, [Stretch([ids], whole=True)], SHARED, vocabulary=vocabulary)
    assert store.tokens.tolist() == [0, *ids, 0]
    assert (tmp_path / "tokens.bin").stat().st_size == 6 * width
    batch = collate_blocks(store, [0], length=8, where="")
    assert batch.targets is not None
    assert batch.targets.tolist() == [*ids, 0]
    assert batch.input_ids[0, :5].tolist() == [0, *ids]


def test_the_tokens_stay_on_disk(tmp_path: Path) -> None:
    store = write(tmp_path, [Stretch([list(range(2, 40))] * 3, whole=True)] * 5, SHARED)
    assert isinstance(store.tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.tokens[0] = 1


def test_nothing_written_is_an_empty_store(tmp_path: Path) -> None:
    store = write(tmp_path, [], SHARED)
    assert (len(store.tokens), store.num_targets, num_blocks(store, 8)) == (0, 0, 0)
    assert block_lengths(store, 8).tolist() == []
    assert targets_by_piece(store).tolist() == []


@pytest.mark.parametrize("name", ["tokens.bin", "index.npz", "tokens.json"])
def test_a_store_that_a_power_cut_left_short_is_known(name: str, tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path, vocabulary=100, ends=SHARED)
    writer.add([3, 4, 5], document=0, num_bytes=3, begins=True)
    assert not is_whole(tmp_path)
    writer.finish()
    assert is_whole(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_whole(tmp_path)
