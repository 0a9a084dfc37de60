"""OpenAI's answers: from the events of a request to whole answers, or to the pieces of a stream.

A whole answer is put together from the same events as the pieces, so the two can't differ.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gptailor.models.sampling import ScoredToken
from gptailor.serve.openai import Asked
from gptailor.serve.writing import ServableAnswerer

if TYPE_CHECKING:
    from gptailor.models.decode import Event

Json = dict[str, Any]


class Teller:
    """What a client is told of one request, while its answers are being written."""

    def __init__(self, asked: Asked, *, request_id: str) -> None:
        self.asked = asked
        self.missing = len(asked.requests)  # answers that aren't finished
        self._answerer = asked.worker.answerer
        self._texts = [""] * self.missing
        self._tokens: list[Json] = [{} for _ in asked.requests]  # the log-probabilities so far
        self._finished: list[str | None] = [None] * self.missing
        self._begun = [False] * self.missing
        self._drawn = 0
        kind, name = ("chatcmpl", "chat.completion") if asked.chat else ("cmpl", "text_completion")
        self._head = {
            "id": f"{kind}-{request_id}",
            "object": name,
            "created": int(time.time()),
            "model": self._answerer.name,
            "system_fingerprint": self._answerer.version,
        }

    def pieces(self, place: int, event: Event) -> list[Json]:
        """The pieces of a stream that an event of the answer at `place` brings."""
        scores = self._take(place, event)
        reason = self._finished[place]
        if not self.asked.chat:
            choice = {"index": place, "text": event.text, "logprobs": scores, "finish_reason": reason}
            choice["truncated"] = self.asked.truncated[place]
            return [self._piece([choice])] if event.text or scores or reason else []
        deltas: list[tuple[Json, Json | None, str | None]] = []
        if not self._begun[place]:
            deltas.append(({"role": "assistant", "content": ""}, None, None))
        if event.text or scores:
            deltas.append(({"content": event.text}, scores, None))
        if reason:
            deltas.append(({}, None, reason))
        self._begun[place] = True
        return [
            self._piece([{"index": place, "delta": delta, "logprobs": told, "finish_reason": end}])
            for delta, told, end in deltas
        ]

    def last_pieces(self) -> list[Json]:
        """What follows the last answer: the usage, if it was asked for."""
        if not self.asked.include_usage:
            return []
        return [{**self._piece([]), "usage": self._usage()}]

    def add(self, place: int, event: Event) -> None:
        """Keeps an event for the whole answer."""
        scores = self._take(place, event)
        for key, values in (scores or {}).items():
            if values is not None:
                self._tokens[place].setdefault(key, []).extend(values)

    def whole(self) -> Json:
        """All answers, once none is missing."""
        choices = [self._choice(place) for place in range(len(self._texts))]
        return {**self._head, "choices": choices, "usage": self._usage()}

    def _choice(self, place: int) -> Json:
        scores = None
        if self.asked.logprobs:
            empty = _chat_scores([]) if self.asked.chat else _completion_scores([], [], [], [])
            scores = {**empty, **self._tokens[place]}
        answer: Json = {"text": self._texts[place], "truncated": self.asked.truncated[place]}
        if self.asked.chat:
            answer = {"message": {"role": "assistant", "content": self._texts[place], "refusal": None}}
        return {"index": place, **answer, "logprobs": scores, "finish_reason": self._finished[place]}

    def _take(self, place: int, event: Event) -> Json | None:
        """Notes an event; gives the log-probabilities of its tokens, if they were asked for."""
        self._texts[place] += event.text
        if event.result is not None:
            self._finished[place] = event.result.finished
            self._drawn += event.result.num_drawn
            self.missing -= 1
        if not self.asked.logprobs or not event.tokens:
            return None
        if self.asked.chat:
            return _chat_scores([_chat_token(self._answerer, token) for token in event.tokens])
        return self._completion_tokens(event.tokens, event.begins)

    def _completion_tokens(self, tokens: Sequence[ScoredToken], begins: Sequence[int]) -> Json:
        texts, tops = [], []
        for token in tokens:
            texts.append(self._answerer.token_text(token.token_id))
            top = {texts[-1]: token.log_probability}
            for other, score in token.top:
                top.setdefault(self._answerer.token_text(other), score)
            tops.append(top)
        return _completion_scores(list(begins), [token.log_probability for token in tokens], texts, tops)

    def _piece(self, choices: list[Json]) -> Json:
        name = "chat.completion.chunk" if self.asked.chat else "text_completion"
        usage = {"usage": None} if self.asked.include_usage else {}
        return {**self._head, "object": name, "choices": choices, **usage}

    def _usage(self) -> Json:
        read, written = self.asked.prompt_tokens, self._drawn
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _completion_scores(
    offsets: list[int], scores: list[float], texts: list[str], tops: list[dict[str, float]]
) -> Json:
    return {"text_offset": offsets, "token_logprobs": scores, "tokens": texts, "top_logprobs": tops}


def _chat_scores(tokens: list[Json]) -> Json:
    return {"content": tokens, "refusal": None}


def _chat_token(answerer: ServableAnswerer, token: ScoredToken) -> Json:
    others = [_told(answerer, *other) for other in token.top]
    return {**_told(answerer, token.token_id, token.log_probability), "top_logprobs": others}


def _told(answerer: ServableAnswerer, token_id: int, log_probability: float) -> Json:
    text = answerer.token_text(token_id)
    known = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
    return {"token": text, "bytes": known, "logprob": log_probability}
