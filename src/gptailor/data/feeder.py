"""From segments to what the model reads: the same ids for training, evaluation and serving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gptailor.data.segments import Encoded, SegmentEncoder, encode_segments
from gptailor.types import Segment


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

    def feed(self, prompts: Sequence[Sequence[Segment]]) -> list[tuple[int, ...] | None]:
        """The token ids of each prompt; None where a chat leaves no room for an answer."""
        found: list[tuple[int, ...] | None] = []
        for encoded in encode_segments(self.encoder, prompts, prefix=self.prefix):
            ids = encoded.token_ids.tolist()
            if self.chat:
                found.append(tuple(ids) if len(ids) <= self.max_tokens - self.reserve else None)
            else:
                found.append(tuple(self._fitted(ids)))
        return found

    def learn(self, sequences: Sequence[Sequence[Segment]]) -> Iterator[tuple[Encoded, int]]:
        """Each sequence with its learned tokens, and how many tokens of it didn't fit."""
        for encoded in encode_segments(self.encoder, sequences, prefix=self.prefix):
            size = len(encoded.token_ids)
            if not self.chat:
                encoded = self._with_fitted_prompt(encoded)
            kept = Encoded(encoded.token_ids[: self.max_tokens], encoded.learn[: self.max_tokens])
            yield kept, size - len(kept.token_ids)

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
