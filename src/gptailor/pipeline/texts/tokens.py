"""Rows of a text task as token ids: what is learned, what is asked, and what didn't fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptailor.data.feeder import Feeder
from gptailor.data.ledger import LedgerLine
from gptailor.data.segments import Encoded
from gptailor.errors import DataError, RecipeError
from gptailor.pipeline.texts.rows import PreparedTexts
from gptailor.recipe import DataSettings
from gptailor.tasks.form import TextRow
from gptailor.types import PARTS, Part, RejectedRow, Segment, TokenizedExample

CHUNK = 256  # rows whose prompts are encoded together
DEFAULT_LONGEST = 512  # tokens, where the recipe leaves it open and the base could read more


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """A row's sequences; for preference the chosen answer's and the rejected one's."""

    row: TextRow
    sequences: tuple[TokenizedExample, ...]
    prompt_ids: tuple[int, ...] | None  # None: it leaves no room for an answer; of training rows empty
    lost: int = 0  # tokens of sequences whose answer lies wholly behind the cut

    @property
    def right(self) -> tuple[TokenizedExample, ...]:
        """The sequences whose answers are right: all of them, but of a preference the chosen one alone."""
        return self.sequences[:1] if self.row.sequences[0].rejected else self.sequences

    @property
    def cut(self) -> int:
        return sum(sequence.cut for sequence in self.sequences) + self.lost + self.row.left_out


@dataclass(frozen=True, slots=True)
class TextTokens:
    """Token sequences of every part, and the rows that have none."""

    rows: dict[Part, list[TokenizedRow]]
    rejected: list[RejectedRow]
    lengths: tuple[int, ...]  # tokens of every sequence before cutting
    max_tokens: int


def choose_longest(wanted: int | None, context: int) -> int:
    """The longest sequence: what the recipe says, else 512 or the base's context.

    Raises:
        DataError: the recipe's doesn't fit the base.
    """
    if wanted is not None and wanted > context:
        raise DataError(
            f"data.max_tokens is {wanted}, but the base reads at most {context} tokens.",
            fix=f"Set it to {context} or less, or choose a base with a longer context.",
        )
    return wanted or min(DEFAULT_LONGEST, context)


def refuse_window(settings: DataSettings) -> None:
    """Raises RecipeError: windows over an answer would teach answers without their questions."""
    if settings.too_long == "window":
        raise RecipeError(
            "window can't be used where the answer is text.",
            where="data.too_long",
            fix="Use cut or drop.",
        )


def tokenize_texts(prepared: PreparedTexts, feeder: Feeder, settings: DataSettings) -> TextTokens:
    """Tokenizes every part. No answer is learned in part; held-out rows are never dropped for their length.

    Raises:
        DataError: too little is left to learn from.
    """
    rows: dict[Part, list[TokenizedRow]] = {}
    rejected: list[RejectedRow] = []
    lengths: list[int] = []
    for part in PARTS:
        given = prepared.parts[part]
        flat = [sequences_of(row) for row in given]
        learned = iter(feeder.learn([segments for one in flat for segments in one], whole=part == "train"))
        prompts = _prompts_of(given, feeder, asked=part != "train")
        rows[part] = []
        for row, own, prompt in zip(given, flat, prompts, strict=True):
            encoded = [next(learned) for _ in own]
            lengths += [len(one.token_ids) + cut + row.left_out for one, cut in encoded]
            sequences = tuple(_tokenized(row, one, cut) for one, cut in encoded if one.learn[1:].any())
            lost = sum(len(one.token_ids) + cut for one, cut in encoded if cut and not one.learn[1:].any())
            found = TokenizedRow(row, sequences, prompt, lost)
            reason = _why_not(found, own, settings, part)
            if reason is None:
                rows[part].append(found)
            else:
                rejected.append(reason)
    empty = [part for part in PARTS if not rows[part]]
    if empty:
        raise DataError(
            f"no row is left for {' and '.join(empty)}: no answer fits into {feeder.max_tokens} tokens.",
            where=settings.train,
            fix="Raise data.max_tokens, choose a base with a longer context, or give shorter rows.",
        )
    return TextTokens(rows, rejected, tuple(lengths), feeder.max_tokens)


def _prompts_of(rows: Sequence[TextRow], feeder: Feeder, *, asked: bool) -> Iterator[tuple[int, ...] | None]:
    """What each row asks, or None where it leaves no room for an answer; of what isn't asked, only whether.

    The prompts of all training rows would be most of what a run holds in memory.
    """
    for start in range(0, len(rows), CHUNK):
        for ids in feeder.feed([row.prompt for row in rows[start : start + CHUNK]]):
            yield ids if asked or ids is None else ()


def ledger_lines(prepared: PreparedTexts, tokens: TextTokens) -> list[LedgerLine]:
    """One line per input row: used rows by part, then dropped ones with their reason."""
    lines = []
    for part in PARTS:
        for one in tokens.rows[part]:
            size = sum(len(sequence.token_ids) for sequence in one.sequences)
            learned = sum(int(sequence.learn[1:].sum()) for sequence in one.sequences)
            learned = learned if part == "train" else 0
            lines.append(
                LedgerLine(
                    source=one.row.source,
                    row=one.row.row,
                    outcome="used",
                    part=part,
                    reason=None,
                    detail="",
                    trained=learned,
                    context=size - learned,
                    cut=one.cut,
                )
            )
    lines.extend(
        LedgerLine(r.source, r.row, "dropped", None, r.reason, r.detail, trained=0, context=0, cut=0)
        for r in [*prepared.rejected, *tokens.rejected]
    )
    return sorted(lines, key=lambda line: (line.source, line.row))


def length_histogram(tokens: TextTokens) -> dict[str, Any]:
    """What the page and `check` draw of the lengths."""
    lengths = np.array(tokens.lengths)
    longest = int(lengths.max())
    counts, edges = np.histogram(lengths, bins=min(30, max(4, longest // 4)), range=(0, longest + 1))
    cut = [row.cut for rows in tokens.rows.values() for row in rows if row.cut]
    return {
        "counts": counts.tolist(),
        "edges": [round(float(edge), 1) for edge in edges],
        "max_tokens": tokens.max_tokens,
        "longest": longest,
        "cut_rows": len(cut),
        "cut_tokens": sum(cut),
    }


def sequences_of(row: TextRow) -> list[Sequence[Segment]]:
    """What is learned of a row; of a preference, the prompt with each of its answers."""
    [first, *_] = row.sequences
    if not first.rejected:
        return [example.segments for example in row.sequences]
    before = [segment for segment in first.segments if not segment.learn]
    return [first.segments, (*before, *first.rejected)]


def _tokenized(row: TextRow, encoded: Encoded, cut: int) -> TokenizedExample:
    return TokenizedExample(encoded.token_ids, encoded.learn, row.source, row.row, cut=cut)


def _why_not(
    found: TokenizedRow, segments: Sequence[object], settings: DataSettings, part: Part
) -> RejectedRow | None:
    """Why a row can't be used once its tokens are known."""
    row, sequences = found.row, found.sequences
    if not sequences or (row.sequences[0].rejected and len(sequences) < 2):
        if part == "train" and found.cut:
            return RejectedRow(row.source, row.row, "too_long", "its answer doesn't fit into data.max_tokens")
        detail = "no token of its answer fits" if segments else "it has no answer"
        return RejectedRow(row.source, row.row, "nothing_to_learn", detail)
    if part == "train" and settings.too_long == "drop" and found.cut:
        detail = "longer than data.max_tokens, and the recipe says drop"
        return RejectedRow(row.source, row.row, "too_long", detail)
    return None
