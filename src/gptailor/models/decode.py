"""Many requests at once through one model: they join and leave between steps, and none sees another.

A request's answer has the same bits alone and among any others. Its prompt is computed in the length bucket
that the prompt's length gives; then it takes a slot in the pool whose capacity its own prompt and the next
tokens of its answer give, and moves on to a larger one when these are written. A pool computes its steps in
one shape, or in several that give the same bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from gptailor.errors import InputError
from gptailor.models.beams import search_beams
from gptailor.models.forward import shape_for
from gptailor.models.names import context_length
from gptailor.models.sampling import Chooser, Sampling, ScoredToken
from gptailor.models.shapes import find_shapes, one_shape
from gptailor.models.slots import SlotCache
from gptailor.models.text_stream import TextStream

SMALLEST_CAPACITY = 256  # tokens
TOKENS_BEFORE = 4  # of the prompt, that an answer's text is decoded behind
ROOM = 256  # tokens of an answer that a pool is chosen for; max_new_tokens may be far more than is written
MOST_BETWEEN = 8  # requests that have left a pool and find no free slot in the next

Finished = Literal["stop", "length"]
Reason = Literal["end_token", "stop_string", "max_new_tokens", "context"]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt as token ids, and how its answer is drawn.

    `top_log_probabilities`: how many of the likeliest tokens of each step are told.
    """

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    top_log_probabilities: int = 0


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer. The end token and the stop string are no part of it.

    `finished` is OpenAI's word; `reason` says more: "stop" for an end token or a stop string, "length" for
    max_new_tokens or the end of the model's context. `num_drawn` counts every token that was computed.
    `truncated`: part of the prompt did not fit and wasn't read.
    """

    token_ids: tuple[int, ...]
    text: str
    finished: Finished
    reason: Reason
    log_probabilities: tuple[float, ...]
    top_log_probabilities: tuple[tuple[tuple[int, float], ...], ...]
    num_drawn: int
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """What a step brought to one request: the new text, the tokens it holds; at the end the whole answer.

    `begins` says where in the answer's text each of the tokens begins.
    """

    handle: int
    text: str
    tokens: tuple[ScoredToken, ...]
    result: Generated | None = None
    begins: tuple[int, ...] = ()


class Decoder:
    """The requests of one model. Single-threaded: whoever calls `step` also calls the rest.

    Args:
        model: A causal language model; it is switched to evaluation.
        decode: From token ids to text, special tokens left out.
        end: Ids of the tokens that end an answer.
        pad: A token id for places that nothing reads.
        context: Tokens of a prompt and its answer at most; None: as many as the model reads.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        decode: Callable[[Sequence[int]], str],
        end: Collection[int],
        pad: int = 0,
        context: int | None = None,
    ) -> None:
        model.eval()
        self.model = model
        self.context = context or context_length(model.config)
        self._decode, self._end, self._pad = decode, frozenset(end), pad
        self._pools: dict[int, _Pool] = {}
        self._beams: deque[_Job] = deque()
        self._handles = 0
        self.drawn = 0  # tokens of all answers so far, what ends them too

    @property
    def busy(self) -> bool:
        """Whether a request waits or is being answered."""
        return bool(self._beams) or any(pool.busy for pool in self._pools.values())

    @property
    def waiting(self) -> set[int]:
        """Handles of the requests that nothing was computed for yet."""
        queues = (self._beams, *(pool.waiting for pool in self._pools.values()))
        return {job.handle for queue in queues for job in queue}

    @property
    def free(self) -> int:
        """Seats for more requests than there are, at least: some lengths have seats of their own."""
        held = sum(len(pool.seated) + len(pool.waiting) + len(pool.moved) for pool in self._pools.values())
        (fewest,) = one_shape(self.model, capacity=self.context).rows
        return max(0, fewest - held)

    def add(self, request: Request) -> int:
        """Takes a request in; its events carry the handle that comes back.

        Raises:
            InputError: the prompt is empty, leaves no room for an answer, or holds an unknown token.
        """
        self._check(request)
        limit = min(request.sampling.max_new_tokens, self.context - len(request.prompt))
        self._handles += 1
        job = _Job(self._handles, request, limit, self._decode)
        if request.sampling.num_beams > 1:
            self._beams.append(job)
        else:
            self._pool_for(job.wanted).waiting.append(job)
        return job.handle

    def cancel(self, handle: int) -> None:
        """Lets a request go; no event of it comes any more. An unknown handle is none's."""
        self._beams = deque(job for job in self._beams if job.handle != handle)
        for pool in self._pools.values():
            pool.drop(handle)

    def step(self) -> list[Event]:
        """Lets waiting requests join, then brings every joined one a token further.

        Whoever has filled a pool moves on, and where the next one is full waits once more. A request with
        beams is answered in one step, one such request a step.

        Raises:
            NonFiniteError: the model's logits are not numbers; start over with a new decoder.
        """
        found: list[Event] = []
        between = sum(len(pool.moved) for pool in self._pools.values())
        with torch.inference_mode():
            for pool in self._pools.values():
                for job, token in pool.step(self._prefill, may_grow=between < MOST_BETWEEN):
                    event = self._take(job, token)
                    if event.result is not None:
                        pool.drop(job.handle)
                    if event.result is not None or event.text or event.tokens:
                        found.append(event)
            grown = [job for pool in self._pools.values() for job in pool.let_go()]
        for job in grown:
            self._pool_for(job.wanted).moved.append(job)
        if self._beams:
            found.append(self._search(self._beams.popleft()))
        return found

    def _take(self, job: _Job, token: ScoredToken) -> Event:
        """Appends a token to an answer and says what there is to show."""
        job.drawn += 1
        self.drawn += 1
        reason: Reason | None = None
        if token.token_id in self._end:
            reason = "end_token"
        else:
            job.tokens.append(token)
            job.stream.push(token.token_id)
            if job.drawn == job.limit:
                reason = "max_new_tokens" if job.limit == job.request.sampling.max_new_tokens else "context"
        if reason is not None:
            job.stream.end()
        if job.stream.stopped:
            reason = "stop_string"
        text, count = job.stream.take(ended=reason is not None)
        new = slice(job.shown, job.shown + count)
        job.shown += count
        result = None if reason is None else job.result(reason)
        return Event(job.handle, text, tuple(job.tokens[new]), result, tuple(job.stream.begins[new]))

    def _search(self, job: _Job) -> Event:
        request = job.request
        tokens = search_beams(
            self.model,
            request.prompt,
            request.sampling,
            limit=job.limit,
            end=self._end,
            pad=self._pad,
            top=request.top_log_probabilities,
        )
        events = []
        for token in tokens:
            events.append(self._take(job, token))
            if events[-1].result is not None:
                break
        shown = tuple(token for event in events for token in event.tokens)
        begins = tuple(begin for event in events for begin in event.begins)
        return Event(job.handle, "".join(event.text for event in events), shown, events[-1].result, begins)

    def _prefill(self, tokens: Sequence[int]) -> Cache:
        """A one-row cache of the tokens, computed in their length bucket. Padding follows them: no token
        sees what comes after it.
        """
        _, length = shape_for(len(tokens), max_tokens=self.context, per_pass=1)
        ids = torch.full((1, length), self._pad, device=self.model.device)
        ids[0, : len(tokens)] = torch.tensor(tokens, device=self.model.device)
        cache = DynamicCache()
        self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache

    def _pool_for(self, num_tokens: int) -> _Pool:
        # Coarse, for every pool in use costs a pass of the model a step; attention over unused columns costs
        # as much as a pass only from some 400 (1.4 M parameters) to 1,800 columns (GPT-2 small) on.
        capacity = min(max(SMALLEST_CAPACITY, 1 << (num_tokens - 1).bit_length()), self.context)
        if capacity not in self._pools:  # memory goes to those in use
            self._pools = {size: pool for size, pool in self._pools.items() if pool.busy}
            self._pools[capacity] = _Pool(self.model, capacity)
        return self._pools[capacity]

    def _check(self, request: Request) -> None:
        prompt, known = request.prompt, int(self.model.config.vocab_size)
        what = None
        if not prompt:
            what = "it is empty; the model needs a token to go on from."
        elif len(prompt) >= self.context:
            what = f"it is {len(prompt):,} tokens long; the model reads {self.context:,} with its answer."
        elif not all(0 <= token < known for token in prompt):
            what = f"it holds a token id that the model doesn't know (it knows 0 to {known - 1:,})."
        if what is not None:
            raise InputError(what, where="prompt", fix="Give a prompt that fits the model.")
        top: Any = request.top_log_probabilities
        if isinstance(top, bool) or not isinstance(top, int) or top < 0:
            raise InputError(
                f"it is {top!r}.",
                where="top_log_probabilities",
                fix="Give a whole number, 0 (none) or more.",
            )


class _Job:
    """A request on its way to an answer."""

    def __init__(
        self, handle: int, request: Request, limit: int, decode: Callable[[Sequence[int]], str]
    ) -> None:
        self.handle, self.request, self.limit = handle, request, limit
        self.chooser = Chooser(request.sampling, request.prompt, top=request.top_log_probabilities)
        self.stream = TextStream(
            decode,
            request.sampling.stop,
            stop_after_text=request.sampling.stop_after_text,
            before=request.prompt[-TOKENS_BEFORE:],
        )
        self.tokens: list[ScoredToken] = []
        self.next_id = request.prompt[-1]  # what the model reads next
        self.drawn = self.shown = 0
        self.cache: Cache | None = None  # of all before next_id, while it moves from pool to pool

    @property
    def wanted(self) -> int:
        """Tokens it should have room for: by its own prompt and answer alone, or its neighbors would show."""
        return len(self.request.prompt) + min(self.drawn + ROOM, self.limit)

    def result(self, reason: Reason) -> Generated:
        """The answer as it stands."""
        tokens = self.tokens[: self.stream.num_tokens]
        return Generated(
            token_ids=tuple(token.token_id for token in tokens),
            text=self.stream.text,
            finished="stop" if reason in ("end_token", "stop_string") else "length",
            reason=reason,
            log_probabilities=tuple(token.log_probability for token in tokens),
            top_log_probabilities=tuple(token.top for token in tokens),
            num_drawn=self.drawn,
        )


class _Pool:
    """Slots of one capacity and who sits in them; the others wait, first come, first served.

    Who comes from a smaller pool goes before those that haven't begun.
    """

    def __init__(self, model: PreTrainedModel, capacity: int) -> None:
        self._model = model
        self.shapes = one_shape(model, capacity=capacity)
        self.cache = SlotCache(model, capacity=capacity)
        self.seated: list[_Job] = []  # in the first slots, one after the other
        self.moved: deque[_Job] = deque()
        self.waiting: deque[_Job] = deque()

    @property
    def busy(self) -> bool:
        return bool(self.moved or self.waiting or self.seated)

    def drop(self, handle: int) -> None:
        """Frees the slot or the place in the queue of a request, if it is here."""
        self.moved = deque(job for job in self.moved if job.handle != handle)
        self.waiting = deque(job for job in self.waiting if job.handle != handle)
        for slot, job in enumerate(self.seated):
            if job.handle == handle:  # the last one takes its slot
                last = self.seated.pop()
                if last is not job:
                    self.seated[slot] = last
                    self.cache.move(len(self.seated), slot)
                return

    def step(
        self, prefill: Callable[[Sequence[int]], Cache], *, may_grow: bool
    ) -> list[tuple[_Job, ScoredToken]]:
        """Seats who waits, then one token for everyone seated.

        Args:
            prefill: From tokens to a cache of one row.
            may_grow: Whether those may begin that may have to move on from here.
        """
        if len(self.seated) + len(self.moved) + len(self.waiting) > self.shapes.rows[-1]:
            self.shapes = find_shapes(self._model, capacity=self.cache.capacity)  # now the trial pays
        while len(self.seated) < self.shapes.rows[-1] and (job := self._next(may_grow)) is not None:
            self._seat(job, prefill)
        if not self.seated:
            return []
        rows = self.shapes.rows_for(len(self.seated))
        self.cache.grow(rows)
        self.cache.past[len(self.seated) :] = 0  # an empty slot reads a token at position 0 and forgets it
        token_ids = [job.next_id for job in self.seated] + [0] * (rows - len(self.seated))
        window = self.shapes.window_for(int(self.cache.past.max()) + 2)
        logits: Any = self.cache.compute(token_ids, window=window)
        self.cache.advance(len(self.seated))
        found = []
        for job, row in zip(self.seated, logits, strict=False):
            token = job.chooser.choose(row)
            job.next_id = token.token_id
            found.append((job, token))
        return found

    def let_go(self) -> list[_Job]:
        """Frees the slots of those who have filled them; they take along what was computed."""
        # A column stays masked: see SlotCache.compute.
        most = self.cache.capacity - 2
        full = [slot for slot in range(len(self.seated)) if self.cache.past[slot] > most]
        jobs = [self.seated[slot] for slot in full]
        for slot, job in zip(full, jobs, strict=True):
            job.cache = self.cache.copy(slot)
        for job in jobs:
            self.drop(job.handle)
        return jobs

    def _next(self, may_grow: bool) -> _Job | None:
        if self.moved:
            return self.moved.popleft()
        for job in self.waiting:
            if may_grow or len(job.request.prompt) + job.limit <= self.cache.capacity:
                self.waiting.remove(job)
                return job
        return None

    def _seat(self, job: _Job, prefill: Callable[[Sequence[int]], Cache]) -> None:
        # The last token is read by the next step, which gives the logits.
        slot, past = len(self.seated), len(job.request.prompt) + job.drawn - 1
        if past and job.cache is None:
            job.cache = prefill(job.request.prompt[:-1])
        self.cache.grow(self.shapes.rows_for(slot + 1))
        self.cache.load(slot, job.cache, past)
        job.cache = None
        self.seated.append(job)
