"""Which token comes next: the settings, the filters and the draw.

Everything here works on one row of logits at a time, on the CPU, so that a request's tokens can't depend on
what else is being answered. Weights are drawn from in float64.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gptailor.errors import InputError, NonFiniteError
from gptailor.types import FloatArray

LONGEST_STOP = 500  # characters: each is looked for after every token
_UNSIGNED = (1 << 64) - 1  # as a mask: of a negative number, its 64 bits


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn. Names, meanings and order of the filters are those of transformers.

    Args:
        temperature: 0 takes the likeliest token each time (greedy).
        top_k: Only the k likeliest tokens; 0 is off.
        top_p: Only the likeliest tokens that together reach this probability (Holtzman et al. 2020).
        min_p: Only tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024).
        repetition_penalty: Above 1, tokens of the prompt and the answer are less likely again (Keskar et
            al. 2019, section 4.1).
        no_repeat: No run of so many tokens comes twice in the answer; 0 is off. What the prompt holds may be
            copied, other than with transformers' `no_repeat_ngram_size`.
        max_new_tokens: The answer ends after so many tokens.
        stop: Strings that end the answer; they are not part of it.
        seed: With the step, all that the random draws depend on.
        num_beams: Above 1, beam search; needs temperature 0.
        stop_after_text: Stop strings count once something that isn't blank was written.

    Raises:
        InputError: a value is out of its range; names the field.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat: int = 0
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    seed: int = 0
    num_beams: int = 1
    stop_after_text: bool = False

    def __post_init__(self) -> None:
        for field, kind, low, high, says in _RANGES:
            value: Any = getattr(self, field)
            if not _is_number(value, kind) or not low <= value <= high:
                raise _refusal(field, value, says)
        stop: Any = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, list | tuple) or not all(isinstance(text, str) and text for text in stop):
            raise _refusal("stop", self.stop, "a text or several, none of them empty")
        for text in stop:
            if len(text) > LONGEST_STOP:
                raise _refusal("stop", f"{text[:20]}...", f"texts of at most {LONGEST_STOP} characters")
        object.__setattr__(self, "stop", tuple(stop))
        if self.num_beams > 1 and self.temperature > 0:
            raise InputError(
                "beam search takes the likeliest answer, so it can't be drawn at a temperature.",
                where="num_beams",
                fix="Set temperature to 0, or num_beams to 1.",
            )
        if self.num_beams > 1 and self.no_repeat:
            raise InputError(
                "beam search doesn't watch for runs that come twice.",
                where="num_beams",
                fix="Set no_repeat to 0, or num_beams to 1.",
            )


def drawn_apart(sampling: Sampling, place: int) -> Sampling:
    """How the answer at a place among several is drawn: with a seed of its own, or all would be one draw."""
    if sampling.temperature == 0 or not place:
        return sampling
    return replace(sampling, seed=(sampling.seed + place) & _UNSIGNED)


# field, kind, lowest, highest, in words
_RANGES: tuple[tuple[str, type, float, float, str], ...] = (
    ("temperature", float, 0, math.inf, "a number, 0 or more"),
    ("top_k", int, 0, math.inf, "a whole number, 0 (off) or more"),
    ("top_p", float, math.ulp(0), 1, "a number above 0, at most 1"),
    ("min_p", float, 0, 1, "a number from 0 to 1"),
    ("repetition_penalty", float, 0.01, 100, "a number from 0.01 to 100"),
    ("no_repeat", int, 0, math.inf, "a whole number, 0 (off) or more"),
    ("max_new_tokens", int, 1, math.inf, "a whole number, 1 or more"),
    ("seed", int, -(1 << 63), _UNSIGNED, "a whole number of at most 64 bits"),
    ("num_beams", int, 1, 64, "a whole number from 1 to 64"),
)


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of an answer. Log-probabilities (nats) are the model's own, before penalty and filters.

    `top` holds the likeliest tokens of the step with theirs, likeliest first, as many as were asked for.
    """

    token_id: int
    log_probability: float
    top: tuple[tuple[int, float], ...] = ()


class Chooser:
    """Draws the tokens of one request, one step after the other."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], *, top: int = 0) -> None:
        self._sampling = sampling
        self._top = top
        self._step = 0
        self._seen = set(prompt) if sampling.repetition_penalty != 1 else None
        self._runs = Runs(sampling.no_repeat) if sampling.no_repeat else None

    def choose(self, logits: FloatArray) -> ScoredToken:
        """The next token, from the model's logits (V,).

        Raises:
            NonFiniteError: the logits hold NaN or infinity.
        """
        total = log_total(logits)
        scores = logits
        if self._seen is not None:
            scores = penalized(logits, self._seen, self._sampling.repetition_penalty)
        closing = self._runs.closing() if self._runs is not None else ()
        if 0 < len(closing) < len(scores):  # where nothing else is left, a run comes twice
            scores = np.array(scores, np.float64)
            scores[list(closing)] = -np.inf
        if self._sampling.temperature == 0:
            token = int(scores.argmax())
        else:
            token = draw(scores, self._sampling, step=self._step)
        self._step += 1
        if self._seen is not None:
            self._seen.add(token)
        if self._runs is not None:
            self._runs.add(token)
        return scored(token, logits, total, top=self._top)


class Runs:
    """The runs of so many tokens that an answer holds so far."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._last: tuple[int, ...] = ()  # of the answer, one less than a run
        self._after: dict[tuple[int, ...], set[int]] = {}

    def closing(self) -> set[int]:
        """The tokens that would end a run that was there before."""
        return self._after.get(self._last, set())

    def add(self, token: int) -> None:
        """One more token of the answer."""
        if len(self._last) == self._length - 1:
            self._after.setdefault(self._last, set()).add(token)
        self._last = (*self._last, token)[-self._length + 1 :] if self._length > 1 else ()


def log_total(logits: FloatArray) -> float:
    """Log of the sum of the exponentials of logits (V,): what a logit exceeds its log-probability by.

    Raises:
        NonFiniteError: the logits hold NaN or infinity.
    """
    largest = logits.max()
    with np.errstate(invalid="ignore"):  # told below, in words
        total = float(largest) + math.log(np.exp(logits - largest).sum(dtype=np.float64))
    if not math.isfinite(total):
        raise NonFiniteError(
            "the model's logits are not numbers.",
            fix="Its weights are damaged or overflow in this precision; use fp32, or get them again.",
        )
    return total


def scored(token: int, logits: FloatArray, total: float, *, top: int = 0) -> ScoredToken:
    """A token with its log-probability by the logits (V,) and their `log_total`, the likeliest beside it."""
    likeliest: tuple[tuple[int, float], ...] = ()
    if top:
        places = np.argpartition(-logits, min(top, len(logits)) - 1)[:top]
        places = places[np.lexsort((places, -logits[places]))]
        likeliest = tuple((place, float(logits[place]) - total) for place in places.tolist())
    return ScoredToken(token, float(logits[token]) - total, likeliest)


def penalized(logits: FloatArray, seen: set[int], penalty: float) -> FloatArray:
    """Logits (V,) with those of the seen tokens divided (above zero) or multiplied (below) by the penalty."""
    scores = np.array(logits, np.float64)
    places = np.fromiter(seen, np.int64, len(seen))
    values = scores[places]
    scores[places] = np.where(values < 0, values * penalty, values / penalty)
    return scores


def draw(scores: FloatArray, sampling: Sampling, *, step: int) -> int:
    """One token id, drawn by the scores (V,) after temperature and filters."""
    reach = np.cumsum(weigh(scores, sampling))
    aim = uniform(sampling.seed, step) * reach[-1]  # below the end, however it rounds
    return int(np.searchsorted(reach, aim, side="right"))


def weigh(scores: FloatArray, sampling: Sampling) -> FloatArray:
    """(V,) weights to draw the tokens by, the likeliest weighs 1; 0 for those that are filtered out.

    Tokens as likely as the last one that a filter keeps are kept too.

    Args:
        scores: (V,) logits.
        sampling: Its temperature is above 0.
    """
    with np.errstate(over="ignore"):  # almost 0 takes the likeliest
        scores = (scores.astype(np.float64) - float(scores.max())) / sampling.temperature
    weights: FloatArray = np.exp(scores)
    smallest = sampling.min_p
    if 0 < sampling.top_k < len(weights):
        weights[weights < np.partition(weights, -sampling.top_k)[-sampling.top_k]] = 0
    if sampling.top_p < 1:
        falling = np.sort(weights)[::-1]
        reach = np.cumsum(falling)
        smallest = max(smallest, float(falling[np.searchsorted(reach, sampling.top_p * reach[-1])]))
    weights[weights < smallest] = 0
    return weights


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1), a function of the seed and the step alone (Philox: Salmon et al. 2011)."""
    key = np.array([seed & _UNSIGNED, step], np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key)).random())


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    return kind is int or abs(value) <= sys.float_info.max  # neither infinite nor NaN, nor an int beyond


def _refusal(field: str, value: object, says: str) -> InputError:
    return InputError(f"{field} is {value!r}.", where=field, fix=f"Give {says}.")
