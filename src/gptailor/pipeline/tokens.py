"""Parts of examples to parts of token sequences, and what happened to each row's tokens."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter

import numpy as np

from gptailor.data.ledger import LedgerLine
from gptailor.data.tokenize import Encoder, TokenizedRows, TooLong, encode_all, fit_rows
from gptailor.data.views import Mapped, chained, picked
from gptailor.errors import DataError
from gptailor.pipeline.labels import taught_names
from gptailor.pipeline.prepare import Prepared
from gptailor.recipe import DataSettings
from gptailor.tasks.classification import to_example
from gptailor.types import PARTS, Example, IntArray, Part, RawExample, RejectedRow, TokenizedExample

DEFAULT_LONGEST = 512  # tokens, where the recipe leaves it open and the base could read more


@dataclass(frozen=True, slots=True)
class TokenizedParts:
    """Token sequences of every part. A long text under `window` has several in a row."""

    rows: Mapping[Part, Sequence[TokenizedExample]]
    examples: dict[Part, Sequence[Example]]  # those that have sequences, in the same order
    lengths: IntArray  # (N,) tokens of every text before cutting
    max_tokens: int
    too_long: TooLong
    rejected: list[RejectedRow] = field(default_factory=list)
    names: Sequence[TokenizedExample] = ()  # of the labels, in their order, where they teach beside the rows


def tokenize_parts(
    prepared: Prepared, encoder: Encoder, settings: DataSettings, *, context: int
) -> TokenizedParts:
    """Tokenizes every part. Held-out rows are never dropped for their length: their head is read.

    Raises:
        DataError: the recipe's max_tokens doesn't fit the base, or too little is left to learn from.
    """
    train, validation, test = (prepared.parts[part] for part in PARTS)
    every = chained(chained(train, validation), test)
    encoded = encode_all(encoder, Mapped(every, attrgetter("text")))
    lengths = encoded.lengths + encoder.overhead
    max_tokens = choose_max_tokens(lengths, settings.max_tokens, context=context)
    rows: dict[Part, TokenizedRows] = {}
    examples: dict[Part, Sequence[Example]] = {}
    rejected: list[RejectedRow] = []
    first = 0
    for part in PARTS:
        given = prepared.parts[part]
        too_long: TooLong = settings.too_long
        if too_long == "drop" and part != "train":
            too_long = "cut"
        rows[part] = fit_rows(encoder, encoded, given, first=first, max_tokens=max_tokens, too_long=too_long)
        sequences = np.bincount(rows[part].places, minlength=len(given))
        examples[part] = picked(given, np.flatnonzero(sequences))
        rejected += [
            _rejected(given[place], encoded.lengths[first + place], max_tokens)
            for place in np.flatnonzero(sequences == 0).tolist()
        ]
        first += len(given)
    _refuse_too_little(examples, where=settings.train)
    names = tokenize_names(prepared, encoder, settings, max_tokens=max_tokens)
    return TokenizedParts(rows, examples, lengths, max_tokens, settings.too_long, rejected, names)


def tokenize_names(
    prepared: Prepared, encoder: Encoder, settings: DataSettings, *, max_tokens: int
) -> list[TokenizedExample]:
    """The labels' names as texts of their labels, one each, where they say something to the base, too."""
    texts = taught_names(prepared.label_names, prepared.form, settings)
    rows = [RawExample({"text": text}, "label names", place + 1) for place, text in enumerate(texts)]
    examples = [to_example(row, place) for place, row in enumerate(rows)]
    encoded = encode_all(encoder, texts)
    found = list(fit_rows(encoder, encoded, examples, first=0, max_tokens=max_tokens, too_long="cut"))
    return found if len(found) == len(texts) else []


def _refuse_too_little(examples: Mapping[Part, Sequence[Example]], *, where: str) -> None:
    empty = [part for part in PARTS if not examples[part]]
    if empty:
        raise DataError(
            f"no row is left for {' and '.join(empty)}.",
            where=where,
            fix="Add rows, or change data.split or data.too_long.",
        )
    if len({example.label for example in examples["train"]}) < 2:
        raise DataError(
            "the rows left for train all carry one label.",
            where=where,
            fix="Add rows of other labels, or change data.split or data.too_long.",
        )


def _rejected(example: Example, length: int, max_tokens: int) -> RejectedRow:
    if not length:
        detail = "the base's tokenizer knows none of it"
        return RejectedRow(example.source, example.row, "nothing_to_learn", detail)
    detail = f"longer than {max_tokens} tokens, and the recipe says drop"
    return RejectedRow(example.source, example.row, "too_long", detail)


def choose_max_tokens(lengths: IntArray, wanted: int | None, *, context: int) -> int:
    """The longest sequence: what the recipe says, else the longest text up to 512 and the base's context."""
    if wanted is not None:
        if wanted > context:
            raise DataError(
                f"data.max_tokens is {wanted}, but the base reads at most {context} tokens.",
                fix=f"Set it to {context} or less, or choose a base with a longer context.",
            )
        return wanted
    return int(min(max(8, lengths.max()), DEFAULT_LONGEST, context))


def ledger_lines(prepared: Prepared, tokens: TokenizedParts) -> Sequence[LedgerLine]:
    """One line per input row in the order of files and rows: where it went, or why it was dropped."""
    dropped = [*prepared.rejected, *tokens.rejected]
    used = [tokens.examples[part] for part in PARTS]
    size = sum(map(len, used))
    counts = np.concatenate([_token_counts(_of_a_run(tokens.rows[part]), part) for part in PARTS])
    part_of = np.repeat(np.arange(len(PARTS)), [len(examples) for examples in used])
    names: dict[str, int] = {}
    places = array("q")  # of each line, its source and its row
    every: Iterable[Example | RejectedRow] = chain(*used, dropped)
    for line in every:
        places.append(names.setdefault(line.source, len(names)))
        places.append(line.row)
    source_of, row_of = np.array(places).reshape(-1, 2).T
    sources = list(names)
    rank = np.argsort(np.argsort(np.array(sources, dtype=object)))

    def line_of(place: int) -> LedgerLine:
        source, row = sources[source_of[place]], int(row_of[place])
        if place < size:
            detail = prepared.fixes.detail(source, row)
            return LedgerLine(
                source, row, "used", PARTS[part_of[place]], None, detail, *counts[place].tolist()
            )
        lost = dropped[place - size]
        return LedgerLine(source, row, "dropped", None, lost.reason, lost.detail, 0, 0, 0)

    return Mapped(array("q", np.lexsort([row_of, rank[source_of]])), line_of)


def _token_counts(rows: TokenizedRows, part: Part) -> IntArray:
    """(N, 3) tokens trained on, seen as context, and cut, of each example that has sequences."""
    size = len(rows.examples)
    windows = np.bincount(rows.places, minlength=size)
    total = np.bincount(rows.places, rows.lengths + rows.encoder.overhead, minlength=size)
    cut = np.bincount(rows.places, rows.cut, minlength=size)
    learned = windows if part == "train" else np.zeros_like(windows)  # the head reads one position of each
    return np.stack([learned, total - learned, cut], axis=1).astype(np.int64)[windows > 0]


def _of_a_run(rows: Sequence[TokenizedExample]) -> TokenizedRows:
    assert isinstance(rows, TokenizedRows)  # a rehearsal's are lists, and it writes neither ledger nor page
    return rows


def length_histogram(tokens: TokenizedParts) -> dict[str, object]:
    """What the page and `check` draw of the lengths."""
    longest = int(tokens.lengths.max())
    counts, edges = np.histogram(tokens.lengths, bins=min(30, max(4, longest // 4)), range=(0, longest + 1))
    cut = np.concatenate([_of_a_run(rows).cut for rows in tokens.rows.values()])
    return {
        "counts": counts.tolist(),
        "edges": [round(float(edge), 1) for edge in edges],
        "max_tokens": tokens.max_tokens,
        "longest": longest,
        "cut_rows": int(np.count_nonzero(cut)),
        "cut_tokens": int(cut.sum()),
    }


def sequences_of(rows: Sequence[TokenizedExample]) -> list[list[int]]:
    """Token ids as plain lists."""
    return [row.token_ids.tolist() for row in rows]
