"""The second reading of documents: cleaned, tokenized and on disk, and what became of each in the ledger."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptailor.data.blocks import TokenStore, TokenWriter, open_store, targets_by_piece
from gptailor.data.documents import Piece
from gptailor.data.ledger import LedgerLine
from gptailor.data.repair import repair
from gptailor.data.segments import PieceEncoder
from gptailor.data.tokenize import Encoder
from gptailor.errors import DataError
from gptailor.pipeline.documents import PreparedDocuments
from gptailor.pipeline.documents_split import DROPPED, Divided
from gptailor.pipeline.documents_survey import pieces_of
from gptailor.recipe import CleanSettings, DataSettings
from gptailor.types import PARTS, Part

CHUNK = 256  # pieces per call into the tokenizer
DEFAULT_BLOCK = 512  # tokens, where the base could read more
Kept = tuple[Part, int, Piece, tuple[bool, bool]]  # part, document, piece, (begins, ends) in its part


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


def kept_chunks(file: Divided, settings: DataSettings) -> Iterator[tuple[list[Kept], list[str]]]:
    """The pieces that have a part, some hundreds at a time, with their mended texts."""
    kept = kept_pieces(file, settings)
    while held := list(itertools.islice(kept, CHUNK)):
        yield held, [repair_document(piece.text, settings.clean) for _, _, piece, _ in held]


def repair_document(text: str, settings: CleanSettings) -> str:
    """A document keeps its blanks and line breaks; broken characters are mended like any other text's."""
    return repair(
        text,
        repair_text=settings.repair_text,
        unescape_entities=settings.unescape_entities,
        drop_control=settings.drop_control,
        squeeze_space=False,
    )


def _write_file(
    file: Divided,
    encoder: Encoder,
    writers: Mapping[Part, TokenWriter],
    *,
    settings: DataSettings,
    key: tuple[int, int],
) -> None:
    """`key` makes numbers of documents that differ between files: (how many files, which one)."""
    pieces = PieceEncoder(encoder.backend)
    for chunk, texts in kept_chunks(file, settings):
        encoded = pieces.encode(texts, [begins for _, _, _, (begins, _) in chunk])
        for (part, document, _, (begins, ends)), text, ids in zip(chunk, texts, encoded, strict=True):
            writer = writers[part]
            size = len(text.encode(errors="replace"))
            writer.add(ids, document=document * key[0] + key[1], num_bytes=size, begins=begins)
            if ends:
                writer.end(whole=True)


def kept_pieces(file: Divided, settings: DataSettings) -> Iterator[Kept]:
    """The pieces of a file that have a part. A stretch begins anew after every piece that isn't beside it."""
    owner, parts = file.documents.piece_document, file.parts
    number = -1
    for number, piece in enumerate(pieces_of(file.documents, settings)):
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


def _tokens_by_document(store: TokenStore) -> dict[int, int]:
    """Targets, so that the sums are the tokens that were trained on, and those that were scored."""
    totals: dict[int, int] = {}
    for document, count in zip(store.piece_documents.tolist(), targets_by_piece(store).tolist(), strict=True):
        totals[document] = totals.get(document, 0) + count
    return totals


def _dropped(source: str, row: int, reason: Any, detail: str) -> LedgerLine:
    return LedgerLine(source, row, "dropped", None, reason, detail, trained=0, context=0, cut=0)


def choose_block(wanted: int | None, context: int) -> int:
    """Tokens of a block: what the recipe says, else 512 or the base's context."""
    if wanted is not None and wanted > context:
        raise DataError(
            f"data.max_tokens is {wanted}, but the base reads at most {context} tokens.",
            fix=f"Set it to {context} or less, or choose a base with a longer context.",
        )
    return wanted or min(DEFAULT_BLOCK, context)
