"""What `check` finds out and shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptailor.data.tokenize import Encoder
from gptailor.pipeline.prepare import Prepared
from gptailor.pipeline.tokens import TokenizedParts


@dataclass(frozen=True, slots=True)
class RenderedExample:
    """What the model will read of a row or document: (piece of text, whether its token is learned)."""

    where: str
    label: str  # empty where the task has none
    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All that `gptailor check` prints."""

    summary: dict[str, Any]
    rendered: tuple[RenderedExample, ...]
    estimate: dict[str, Any] | None
    prepared: Prepared | None = None  # of classification
    tokens: TokenizedParts | None = None


def token_pieces(encoder: Encoder, ids: Sequence[int], learn: Sequence[bool]) -> tuple[tuple[str, bool], ...]:
    """The text of each token; tokens that are parts of one character stand together."""
    pieces, said = [], ""
    for end, learned in enumerate(learn, 1):
        text = encoder.backend.decode(list(ids[:end]), skip_special_tokens=False)
        if text.endswith("\ufffd") and end < len(learn):  # the bytes so far end within a character
            continue
        pieces.append((text[len(said) :], learned))
        said = text
    return tuple(pieces)
