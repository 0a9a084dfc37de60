"""From segments to token ids: markers become control tokens, people's texts never do.

The ids are those that transformers' `apply_chat_template` gives for the same text, except where a token would
reach over the place where an answer begins: there the prompt is encoded as the server will encode it, alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer

from gptailor.data.tokenize import closed, copied
from gptailor.types import Segment

CHUNK = 1024  # sequences per call into the tokenizer
ANCHOR = "\uec00gptailor\uec01"


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A control token's id, and whether it swallows the white space on its sides."""

    id: int
    lstrip: bool
    rstrip: bool


@dataclass(frozen=True, slots=True)
class SegmentEncoder:
    """A tokenizer ready for segments.

    `closed` takes the strings of control tokens for text. `anchored` does too and knows one token more,
    which stands before a text that isn't the first of its sequence: some tokenizers put a blank before
    the first text only.
    """

    closed: Tokenizer
    anchored: Tokenizer
    control: Mapping[str, ControlToken]
    letter: tuple[int, ...]  # the token ids of a letter, for what is decoded behind something

    def __reduce__(self) -> tuple[Any, ...]:
        both = (self.closed.to_str(), self.anchored.to_str())
        return copied, (SegmentEncoder, both, dict(self.control), self.letter)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sequence. Shapes: `token_ids` (T,), `learn` (T,)."""

    token_ids: npt.NDArray[np.int32]
    learn: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Run:
    """Text between two control tokens, in pieces that no token reaches over; is each learned?"""

    pieces: tuple[tuple[str, bool], ...]
    first: bool  # nothing stands before it in its sequence


_Item = _Run | tuple[int, bool]  # a run of text, or a control token's id and whether it is learned


def build_segment_encoder(backend: Tokenizer) -> SegmentEncoder:
    """Makes an encoder of a fast tokenizer, which is left as it is."""
    without_control, tokens = closed(backend)
    control = {one["content"]: ControlToken(one["id"], one["lstrip"], one["rstrip"]) for one in tokens}
    anchored = closed(backend)[0]
    anchored.add_tokens([AddedToken(ANCHOR, special=False, normalized=False)])
    return SegmentEncoder(without_control, anchored, control, tuple(_ids(without_control, ["a"])[0]))


def counter_of(encoder: SegmentEncoder) -> Callable[[Sequence[str]], list[list[int]]]:
    """From texts to their token ids; remembers the last ones, since many questions have one context."""

    @lru_cache(maxsize=64)
    def encode(texts: tuple[str, ...]) -> list[list[int]]:
        return _ids(encoder.closed, texts)

    return lambda texts: encode(tuple(texts))


def _ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, with nothing around it."""
    return [one.ids for one in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def text_behind(encoder: SegmentEncoder, ids: Sequence[int]) -> str:
    """The text of token ids that have others before them: some decoders drop a text's first blank."""
    both = encoder.closed.decode([*encoder.letter, *ids], skip_special_tokens=True)
    return both[len(encoder.closed.decode(list(encoder.letter))) :]


class PieceEncoder:
    """Encodes long texts piece by piece: a piece within a text isn't taken for the beginning of one.

    Some tokenizers put a blank before every text they are given, and nobody wrote it in the middle.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend, self._anchored = backend, closed(backend)[0]
        self._anchored.add_tokens([AddedToken(ANCHOR, special=False, normalized=False)])
        self._tells_apart = _ids(self._anchored, [ANCHOR + "a"])[0][1:] != _ids(backend, ["a"])[0]

    def encode(self, texts: Sequence[str], begins: Sequence[bool]) -> list[list[int]]:
        """Token ids of each piece; `begins` says which of them are the beginning of a text."""
        found = _ids(self._backend, texts)
        inside = [place for place, first in enumerate(begins) if self._tells_apart and not first]
        behind = _ids(self._anchored, [ANCHOR + texts[place] for place in inside])
        for place, ids in zip(inside, behind, strict=True):
            found[place] = ids[1:]
        return found


def encode_segments(
    encoder: SegmentEncoder, sequences: Sequence[Sequence[Segment]], *, prefix: Sequence[int] = ()
) -> Iterator[Encoded]:
    """The token ids of each sequence of segments, and which of them are learned.

    Args:
        encoder: The base's tokenizer.
        sequences: Segments of each example.
        prefix: Token ids to begin each sequence with, such as Llama's begin token. For chats none: their
            template writes its own.
    """
    pattern = re.compile("|".join(map(re.escape, sorted(encoder.control, key=len, reverse=True))) or r"(?!)")
    for start in range(0, len(sequences), CHUNK):
        items = [_items(encoder, pattern, segments) for segments in sequences[start : start + CHUNK]]
        runs = [item for sequence in items for item in sequence if isinstance(item, _Run)]
        texts = iter(_encode(encoder, [(text, run.first) for run in runs for text in _beginnings(run)]))
        for sequence in items:
            ids: list[int] = list(prefix)
            learn = [False] * len(prefix)
            for item in sequence:
                if isinstance(item, tuple):
                    ids.append(item[0])
                    learn.append(item[1])
                    continue
                for new, learned in _assembled(encoder, item, [next(texts) for _ in item.pieces]):
                    ids += new
                    learn += [learned] * len(new)
            yield Encoded(np.array(ids, np.int32), np.array(learn, np.bool_))


def _items(encoder: SegmentEncoder, pattern: re.Pattern[str], segments: Sequence[Segment]) -> list[_Item]:
    """Segments as control tokens and the runs of text between them."""
    items: list[_Item] = []
    pieces: list[tuple[list[str], bool]] = []  # joined once: a text may come in very many parts
    strip = False  # the token before takes the white space that follows it

    def add(text: str, learn: bool, cut: bool) -> None:
        nonlocal strip
        text = text.lstrip() if strip else text
        if text:
            strip = False
            if pieces and pieces[-1][1] == learn and not cut:
                pieces[-1][0].append(text)
            else:
                pieces.append(([text], learn))

    def close() -> None:
        if pieces:
            items.append(_Run(tuple(("".join(parts), learn) for parts, learn in pieces), first=not items))
            pieces.clear()

    for segment in segments:
        place, cut = 0, segment.cut
        for match in pattern.finditer(segment.text) if segment.markers else ():
            token = encoder.control[match[0]]
            add(segment.text[place : match.start()], segment.learn, cut)
            if token.lstrip:
                _strip_end(pieces)
            close()
            items.append((token.id, segment.learn))
            place, strip, cut = match.end(), token.rstrip, False
        add(segment.text[place:], segment.learn, cut)
    close()
    return items


def _strip_end(pieces: list[tuple[list[str], bool]]) -> None:
    while pieces:
        parts, _ = pieces[-1]
        while parts:
            if text := parts.pop().rstrip():
                parts.append(text)
                return
        pieces.pop()


def _beginnings(run: _Run) -> list[str]:
    """The run up to the end of each piece; the last is the whole run."""
    texts = [text for text, _ in run.pieces]
    return ["".join(texts[: place + 1]) for place in range(len(texts))]


def _assembled(
    encoder: SegmentEncoder, run: _Run, beginnings: list[list[int]]
) -> list[tuple[list[int], bool]]:
    """The ids of each piece of a run, from the ids of its beginnings.

    Where the ids of a beginning aren't the beginning of the ids, a token reaches over the border of two
    pieces; then each is encoded for itself.
    """
    learned = [learn for _, learn in run.pieces]
    whole = beginnings[-1]
    if any(whole[: len(ids)] != ids for ids in beginnings):
        texts = [(text, run.first and not place) for place, (text, _) in enumerate(run.pieces)]
        return list(zip(_encode(encoder, texts), learned, strict=True))
    ends = [len(ids) for ids in beginnings]
    cuts = zip([0, *ends], ends, strict=False)
    return [(whole[a:b], learn) for (a, b), learn in zip(cuts, learned, strict=True)]


def _encode(encoder: SegmentEncoder, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
    """The ids of each (text, whether it is the first of its sequence)."""
    found: list[list[int]] = [[] for _ in texts]
    alone = [place for place, (text, first) in enumerate(texts) if first or ANCHOR in text]
    behind = sorted(set(range(len(texts))) - set(alone))
    for backend, places, before in ((encoder.closed, alone, ""), (encoder.anchored, behind, ANCHOR)):
        batch = [before + texts[place][0] for place in places]
        encodings = backend.encode_batch_fast(batch, add_special_tokens=False)
        for place, encoding in zip(places, encodings, strict=True):
            found[place] = encoding.ids[bool(before) :]
    return found
