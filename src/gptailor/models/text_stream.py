"""From tokens to text as they come: whole characters only, and nothing that belongs to a stop string."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for the bytes of a part of a character


class TextStream:
    """The text of one answer while it is being written. The pieces taken from it, joined, are its text.

    A character whose bytes are spread over several tokens is held back until it is whole; where the answer
    ends before that, it is left out. A text that could be the beginning of a stop string is held back until
    that is decided. Of several stop strings the one that is complete first counts.

    Args:
        decode: From token ids to text, special tokens left out.
        stop: Strings that end the answer.
        stop_after_text: They count once something that isn't blank was written.
        before: Tokens that stand before the answer.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[str] = (),
        *,
        stop_after_text: bool = False,
        before: Sequence[int] = (),
    ) -> None:
        self.text = ""
        self.stopped = False  # a stop string came
        self._decode, self._stop, self._stop_after_text = decode, tuple(stop), stop_after_text
        self._longest = max(map(len, self._stop), default=0)
        self._ids = list(before)
        self.begins: list[int] = []  # where in the text each token begins
        # Decoding starts one run of tokens before what is new: some decoders treat a text's first token
        # differently (a leading space is dropped). vLLM's detokenizer does the same.
        self._before, self._settled = 0, len(self._ids)
        self._shown = self._released = 0

    def push(self, token_id: int) -> None:
        """Appends a token. After a stop string nothing more is taken."""
        if self.stopped:
            return
        self.begins.append(len(self.text))
        self._ids.append(token_id)
        self._settle(ended=False)

    def end(self) -> None:
        """Nothing more comes: what was held back is decided."""
        if not self.stopped:
            self._settle(ended=True)

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer: those that begin before the stop string; without one, all."""
        return bisect_left(self.begins, len(self.text)) if self.stopped else len(self.begins)

    def take(self, *, ended: bool = False) -> tuple[str, int]:
        """What may be shown since the last time: text, and how many tokens it completes.

        A token goes with the first piece that holds a character of it; at the end the rest follow.
        """
        until = len(self.text) - (0 if ended or self.stopped else self._held())
        piece = self.text[self._shown : until]
        self._shown = until
        released = self.num_tokens if ended or self.stopped else bisect_left(self.begins, until)
        count, self._released = released - self._released, released
        return piece, count

    def _settle(self, *, ended: bool) -> None:
        before = self._decode(self._ids[self._before : self._settled])
        now = self._decode(self._ids[self._before :])
        if now.endswith(UNFINISHED):
            if not ended:
                return
            now = now.rstrip(UNFINISHED)
        if len(now) <= len(before):
            return
        self._before, self._settled = self._settled, len(self._ids)
        self._append(now[len(before) :])

    def _append(self, new: str) -> None:
        searched = max(0, len(self.text) - self._longest + 1)
        self.text += new
        if self._stop_after_text:
            searched = max(searched, len(self.text) - len(self.text.lstrip()))
        found = [(at + len(stop), at) for stop in self._stop if (at := self.text.find(stop, searched)) >= 0]
        if found:
            self.stopped = True
            self.text = self.text[: min(found)[1]]

    def _held(self) -> int:
        """Characters at the end that could be the beginning of a stop string."""
        for count in range(min(self._longest - 1, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-count:]) for stop in self._stop):
                return count
        return 0
