"""Parts of examples to parts of token sequences, and what happened to each row's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gptailor.data.ledger import LedgerLine
from gptailor.data.tokenize import Encoder, TooLong, token_lengths, tokenize
from gptailor.errors import DataError
from gptailor.pipeline.prepare import PARTS, Prepared
from gptailor.recipe import DataSettings
from gptailor.types import Example, IntArray, Part, RejectedRow, TokenizedExample

DEFAULT_LONGEST = 512  # tokens, where the recipe leaves it open and the base could read more


@dataclass(frozen=True, slots=True)
class TokenizedParts:
    """Token sequences of every part. A long text under `window` has several in a row."""

    rows: dict[Part, list[TokenizedExample]]
    examples: dict[Part, list[Example]]  # those that have sequences, in the same order
    lengths: IntArray  # (N,) tokens of every text before cutting
    max_tokens: int
    too_long: TooLong
    rejected: list[RejectedRow] = field(default_factory=list)


def tokenize_parts(
    prepared: Prepared, encoder: Encoder, settings: DataSettings, *, context: int
) -> TokenizedParts:
    """Tokenizes every part. Held-out rows are never dropped for their length: their head is read.

    Raises:
        DataError: the recipe's max_tokens doesn't fit the base, or too little is left to learn from.
    """
    every = [example.text for part in PARTS for example in prepared.parts[part]]
    lengths = token_lengths(encoder, every)
    max_tokens = choose_max_tokens(lengths, settings.max_tokens, context=context)
    rows: dict[Part, list[TokenizedExample]] = {}
    examples: dict[Part, list[Example]] = {}
    rejected: list[RejectedRow] = []
    for part in PARTS:
        given = prepared.parts[part]
        too_long: TooLong = settings.too_long
        if too_long == "drop" and part != "train":
            too_long = "cut"
        rows[part], examples[part] = [], []
        for index, sequences in tokenize(encoder, given, max_tokens=max_tokens, too_long=too_long):
            example = given[index]
            if sequences:
                rows[part].extend(sequences)
                examples[part].append(example)
            else:
                rejected.append(_rejected(example, encoder, max_tokens))
    _refuse_too_little(examples, where=settings.train)
    return TokenizedParts(rows, examples, lengths, max_tokens, settings.too_long, rejected)


def _refuse_too_little(examples: dict[Part, list[Example]], *, where: str) -> None:
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


def _rejected(example: Example, encoder: Encoder, max_tokens: int) -> RejectedRow:
    if token_lengths(encoder, [example.text])[0] == encoder.overhead:
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


def ledger_lines(prepared: Prepared, tokens: TokenizedParts) -> list[LedgerLine]:
    """One line per input row: used rows by part, then dropped ones with their reason."""
    lines = []
    for part in PARTS:
        total: dict[tuple[str, int], int] = {}
        windows: dict[tuple[str, int], int] = {}
        cut: dict[tuple[str, int], int] = {}
        for row in tokens.rows[part]:
            key = (row.source, row.row)
            total[key] = total.get(key, 0) + len(row.token_ids)
            windows[key] = windows.get(key, 0) + 1
            cut[key] = cut.get(key, 0) + row.cut
        for example in tokens.examples[part]:
            key = (example.source, example.row)
            learned = windows[key] if part == "train" else 0  # the head reads one position of each window
            lines.append(
                LedgerLine(
                    source=example.source,
                    row=example.row,
                    outcome="used",
                    part=part,
                    reason=None,
                    detail=prepared.fixes.detail(*key),
                    trained=learned,
                    context=total[key] - learned,
                    cut=cut[key],
                )
            )
    lines.extend(
        LedgerLine(r.source, r.row, "dropped", None, r.reason, r.detail, trained=0, context=0, cut=0)
        for r in [*prepared.rejected, *tokens.rejected]
    )
    return sorted(lines, key=lambda line: (line.source, line.row))


def length_histogram(tokens: TokenizedParts) -> dict[str, object]:
    """What the page and `check` draw of the lengths."""
    longest = int(tokens.lengths.max())
    counts, edges = np.histogram(tokens.lengths, bins=min(30, max(4, longest // 4)), range=(0, longest + 1))
    cut = [row.cut for rows in tokens.rows.values() for row in rows if row.cut]
    return {
        "counts": counts.tolist(),
        "edges": [round(float(edge), 1) for edge in edges],
        "max_tokens": tokens.max_tokens,
        "longest": longest,
        "cut_rows": len(cut),
        "cut_tokens": sum(cut),
    }


def sequences_of(rows: Sequence[TokenizedExample]) -> list[list[int]]:
    """Token ids as plain lists."""
    return [row.token_ids.tolist() for row in rows]
