"""From segments to what the model reads: the same ids for training, evaluation and serving."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from gptailor.data.segments import Encoded, SegmentEncoder, encode_segments
from gptailor.types import Segment


class PromptIds(tuple[int, ...]):
    """The token ids of a prompt. `left_out`: how many tokens of it they lack."""

    left_out: int

    def __new__(cls, ids: Iterable[int] = (), left_out: int = 0) -> Self:
        made = super().__new__(cls, ids)
        made.left_out = left_out
        return made


@dataclass(frozen=True, slots=True)
class Feeder:
    """Encodes prompts and what follows them, within the longest sequence.

    Args:
        encoder: The base's tokenizer.
        prefix: Token ids that every sequence begins with; none where a chat template writes its own.
        max_tokens: Longest sequence.
        reserve: Tokens of it that are kept free for an answer.
    """

    encoder: SegmentEncoder
    prefix: tuple[int, ...]
    max_tokens: int
    reserve: int
    chat: bool = False  # what is too long is cut at its end; a prompt at its beginning

    def feed(self, prompts: Sequence[Sequence[Segment]]) -> list[PromptIds | None]:
        """The token ids of each prompt; None where a chat leaves no room for an answer."""
        found: list[PromptIds | None] = []
        encoded = encode_segments(self.encoder, prompts, prefix=self.prefix)
        for prompt, one in zip(prompts, encoded, strict=True):
            ids = one.token_ids.tolist()
            fitted = ids if self.chat else self._fitted(ids)
            left_out = len(ids) - len(fitted) + sum(segment.left_out for segment in prompt)
            refused = self.chat and len(ids) > self.max_tokens - self.reserve
            found.append(None if refused else PromptIds(fitted, left_out))
        return found

    def learn(
        self, sequences: Sequence[Sequence[Segment]], *, whole: bool = False
    ) -> Iterator[tuple[Encoded, int]]:
        """Each sequence with its learned tokens, and how many tokens of it didn't fit.

        `whole`: it ends with its last answer that fits as a whole, if one does. To learn half of an answer is
        to learn to break off.
        """
        for encoded in encode_segments(self.encoder, sequences, prefix=self.prefix):
            size = len(encoded.token_ids)
            if not self.chat:
                encoded = self._with_fitted_prompt(encoded)
            room = self._end_of_answers(encoded) if whole else self.max_tokens
            kept = Encoded(encoded.token_ids[:room], encoded.learn[:room])
            yield kept, size - len(kept.token_ids)

    def _end_of_answers(self, encoded: Encoded) -> int:
        """Where the last answer ends that fits; a text that answers nothing keeps its beginning."""
        asked = bool(encoded.learn.any()) and int(np.argmax(encoded.learn)) > len(self.prefix)
        if len(encoded.learn) <= self.max_tokens or not asked:
            return self.max_tokens
        learn = encoded.learn[: self.max_tokens + 1]
        ends = np.flatnonzero(learn[:-1] & ~learn[1:])
        return int(ends[-1]) + 1 if len(ends) else 0

    def _fitted(self, ids: list[int]) -> list[int]:
        """A prompt that leaves room for the answer: its beginning goes, for its end leads to the answer."""
        room = self.max_tokens - self.reserve - len(self.prefix)
        return ids if len(ids) - len(self.prefix) <= room else [*self.prefix, *ids[-room:]]

    def _with_fitted_prompt(self, encoded: Encoded) -> Encoded:
        """As in `_fitted`, whatever the answer's length: a server doesn't know it either."""
        first = int(np.argmax(encoded.learn)) if encoded.learn.any() else len(encoded.learn)
        head = self._fitted(encoded.token_ids[:first].tolist())
        if len(head) == first:
            return encoded
        unlearned = np.zeros(len(head), np.bool_)
        return Encoded(
            np.concatenate([np.array(head, np.int32), encoded.token_ids[first:]]),
            np.concatenate([unlearned, encoded.learn[first:]]),
        )
