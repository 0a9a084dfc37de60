"""Requests through one model: what ends an answer, what is shown of it, who comes and goes.

That an answer has the same bits among any others, and is the one transformers gives, is in
`equivalence/test_generation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config

from gptailor.errors import InputError, NonFiniteError
from gptailor.models import decode, shapes
from gptailor.models.decode import Decoder, Event, Generated, Request
from gptailor.models.generate import continue_text, generate
from gptailor.models.sampling import Sampling
from gptailor.models.slots import SlotCache

END = 0
CONTEXT = 32
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def model() -> Any:
    """Random, of 26 tokens, so lively that what it says depends on what it reads."""
    torch.manual_seed(1)
    size = {"n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": len(LETTERS)}
    made: Any = AutoModelForCausalLM.from_config(GPT2Config(**size, bos_token_id=END, eos_token_id=END))
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() > 1:
                weight.mul_(8)
    made.generation_config = GenerationConfig()
    return made


def spell(ids: Sequence[int]) -> str:
    """Token 3 is "d"."""
    return "".join(LETTERS[token] for token in ids)


def answer(model: Any, prompt: Sequence[int], sampling: Sampling, end: set[int] | None = None) -> Generated:
    (made,) = generate(model, [prompt], sampling, decode=spell, end=end or set())
    return made


def run(decoder: Decoder) -> dict[int, list[Event]]:
    """Everything that comes until the decoder has nothing left to do, by handle."""
    events: dict[int, list[Event]] = {}
    while decoder.busy:
        for event in decoder.step():
            events.setdefault(event.handle, []).append(event)
    return events


def test_max_new_tokens_ends_an_answer(model: Any) -> None:
    made = answer(model, [1, 2], Sampling(max_new_tokens=7))
    assert (len(made.token_ids), made.num_drawn) == (7, 7)
    assert (made.finished, made.reason) == ("length", "max_new_tokens")
    assert made.text == spell(made.token_ids)


@pytest.mark.parametrize("length", [1, 2, CONTEXT - 2, CONTEXT - 1])
def test_the_context_ends_an_answer(model: Any, length: int) -> None:
    made = answer(model, [5] * length, Sampling(max_new_tokens=1000))
    assert len(made.token_ids) == CONTEXT - length
    assert (made.finished, made.reason) == ("length", "context")


def test_a_column_is_always_masked(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are all full have no mask, so with grouped heads their bits would tell that all are."""
    compute, left = SlotCache.compute, []

    def watched(self: SlotCache, token_ids: Sequence[int], *, window: int) -> Any:
        left.append(window - 1 - self.past[: len(token_ids)].max())
        return compute(self, token_ids, window=window)

    monkeypatch.setattr(shapes, "_found", WeakKeyDictionary())
    monkeypatch.setattr(shapes, "FEWEST_COLUMNS", 8)
    for _ in range(2):  # the first time shapes are tried
        left.clear()
        generate(model, [[1]] * 32, Sampling(max_new_tokens=1000), decode=spell, end=set())
        monkeypatch.setattr(SlotCache, "compute", watched)
    assert min(left) == 1


def test_a_prompt_and_answer_that_just_fit_are_no_cut(model: Any) -> None:
    assert answer(model, [5] * (CONTEXT - 4), Sampling(max_new_tokens=4)).reason == "max_new_tokens"


def test_an_end_token_ends_an_answer_and_is_no_part_of_it(model: Any) -> None:
    free = answer(model, [1, 2], Sampling(max_new_tokens=12))
    last = free.token_ids[5]
    first = free.token_ids.index(last)
    made = answer(model, [1, 2], Sampling(max_new_tokens=12), end={last, 99})
    assert made.token_ids == free.token_ids[:first]
    assert (made.finished, made.reason, made.num_drawn) == ("stop", "end_token", first + 1)
    assert len(made.log_probabilities) == len(made.top_log_probabilities) == first


def test_a_stop_string_over_two_tokens_is_cut_off_and_never_shown(model: Any) -> None:
    free = answer(model, [1, 2], Sampling(max_new_tokens=12))
    stop = free.text[4:6]
    at = free.text.index(stop)
    decoder = Decoder(model, decode=spell, end=set())
    decoder.add(Request((1, 2), Sampling(max_new_tokens=12, stop=(stop, "??"))))
    (events,) = run(decoder).values()
    made = events[-1].result
    assert made is not None
    assert (made.finished, made.reason) == ("stop", "stop_string")
    assert made.text == "".join(event.text for event in events) == free.text[:at]
    assert made.token_ids == tuple(token.token_id for event in events for token in event.tokens)
    assert made.token_ids == free.token_ids[:at]
    assert made.num_drawn == at + 2


def test_a_stop_string_that_never_comes_holds_nothing_back_at_the_end(model: Any) -> None:
    free = answer(model, [1, 2], Sampling(max_new_tokens=8))
    stopped = answer(model, [1, 2], Sampling(max_new_tokens=8, stop=(free.text[-2:] + "!",)))
    assert stopped == free


def test_tokens_begin_where_they_do_also_when_text_was_held_back(model: Any) -> None:
    free = answer(model, [1, 2], Sampling(max_new_tokens=12))
    decoder = Decoder(model, decode=spell, end=set())
    decoder.add(Request((1, 2), Sampling(max_new_tokens=12, stop=(free.text[2:6] + "!",))))
    (events,) = run(decoder).values()
    assert max(len(event.tokens) for event in events) > 1, "nothing was held back"
    assert [begin for event in events for begin in event.begins] == list(range(12))


def test_an_event_a_token_and_the_whole_answer_with_the_last(model: Any) -> None:
    decoder = Decoder(model, decode=spell, end=set())
    handle = decoder.add(Request((1, 2), Sampling(max_new_tokens=5), top_log_probabilities=2))
    events = run(decoder)[handle]
    assert [event.result is not None for event in events] == [False] * 4 + [True]
    made = events[-1].result
    assert made is not None
    tokens = [token for event in events for token in event.tokens]
    assert made.log_probabilities == tuple(token.log_probability for token in tokens)
    assert made.top_log_probabilities == tuple(token.top for token in tokens)
    assert all(len(top) == 2 for top in made.top_log_probabilities)


def test_the_same_seed_gives_the_same_answer_and_others_differ(model: Any) -> None:
    sampling = Sampling(temperature=1.5, max_new_tokens=12)
    seeds = [replace(sampling, seed=seed) for seed in (0, 1, 2, 0)]
    made = [one.token_ids for one in generate(model, [[1, 2]] * 4, seeds, decode=spell, end=set())]
    assert made[0] == made[3] == answer(model, [1, 2], seeds[0]).token_ids
    assert len(set(made)) == 3


def test_answers_come_in_the_order_of_the_prompts_whoever_ends_first(model: Any) -> None:
    settings = [Sampling(max_new_tokens=count) for count in (9, 1, 5, 12, 3)]
    made = generate(model, [[place + 1] for place in range(5)], settings, decode=spell, end=set())
    assert [len(one.token_ids) for one in made] == [9, 1, 5, 12, 3]
    assert made == [answer(model, [place + 1], own) for place, own in enumerate(settings)]
    assert generate(model, [], Sampling(), decode=spell, end=set()) == []


def test_requests_join_while_others_run(model: Any) -> None:
    decoder = Decoder(model, decode=spell, end=set())
    first = decoder.add(Request((1, 2), Sampling(max_new_tokens=20)))
    for _ in range(3):
        decoder.step()
    second = decoder.add(Request((3,), Sampling(max_new_tokens=2)))
    assert {event.handle for event in decoder.step()} == {first, second}
    events = run(decoder)
    for handle, prompt, count in ((first, [1, 2], 20), (second, [3], 2)):
        assert events[handle][-1].result == answer(model, prompt, Sampling(max_new_tokens=count))


def test_all_seated_make_the_others_wait_and_a_cancelled_one_makes_room(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "find_shapes", lambda _, capacity: shapes.Shapes((8,), (capacity,)))
    decoder = Decoder(model, decode=spell, end=set())
    sampling = Sampling(max_new_tokens=10)
    handles = [decoder.add(Request((place % 20 + 1,), sampling)) for place in range(10)]
    assert {event.handle for event in decoder.step()} == set(handles[:8])
    decoder.cancel(handles[2])  # is being answered
    decoder.cancel(handles[8])  # waits
    decoder.cancel(12345)
    assert {event.handle for event in decoder.step()} == {*handles[:8], handles[9]} - {handles[2]}
    events = run(decoder)
    assert {handles[2], handles[8]}.isdisjoint(events)
    for place in (0, 7, 9):
        assert events[handles[place]][-1].result == answer(model, [place % 20 + 1], sampling)


@pytest.fixture
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slots each, from 4 tokens on."""
    for name in ("one_shape", "find_shapes"):
        monkeypatch.setattr(decode, name, lambda _, capacity: shapes.Shapes((2,), (capacity,)))
    monkeypatch.setattr(decode, "SMALLEST_CAPACITY", 4)
    monkeypatch.setattr(decode, "ROOM", 2)
    monkeypatch.setattr(decode, "MOST_BETWEEN", 1)


@pytest.mark.usefixtures("small_pools")
def test_memory_goes_to_what_is_written_and_not_to_what_may_be(model: Any) -> None:
    decoder = Decoder(model, decode=spell, end=set())
    decoder.add(Request((1,), Sampling(max_new_tokens=1000)))
    largest = []
    while decoder.busy:
        decoder.step()
        largest.append(max(decoder._pools))
    assert largest[:8] == [4, 4, 8, 8, 8, 8, 16, 16]
    assert largest[-1] == CONTEXT


@pytest.mark.usefixtures("small_pools")
def test_who_may_have_to_move_waits_while_others_are_between_pools(model: Any) -> None:
    decoder = Decoder(model, decode=spell, end=set())
    long = [decoder.add(Request((1,), Sampling(max_new_tokens=14))) for _ in range(20)]
    short = decoder.add(Request((1,), Sampling(max_new_tokens=2)))
    ended: list[int] = []
    while decoder.busy:
        ended += [event.handle for event in decoder.step() if event.result is not None]
        between = {job.handle for pool in decoder._pools.values() for job in pool.moved}
        assert len(between) <= 4  # who sat in the two smaller pools when the first found no slot
        assert not between & decoder.waiting
    assert sorted(ended) == [*long, short]
    assert ended[0] == short, "it fits its pool, so that it needn't wait for those that don't"
    assert decoder.drawn == 20 * 14 + 2, "nothing is written between pools"


@pytest.mark.usefixtures("small_pools")
def test_who_is_cancelled_between_pools_is_gone(model: Any) -> None:
    decoder = Decoder(model, decode=spell, end=set())
    handles = [decoder.add(Request((1,), Sampling(max_new_tokens=14))) for _ in range(8)]
    while not (between := [job.handle for pool in decoder._pools.values() for job in pool.moved]):
        decoder.step()
    decoder.cancel(between[0])
    assert set(run(decoder)) == set(handles) - {between[0]}


def test_free_seats_are_those_that_nobody_sits_in_or_waits_for(model: Any) -> None:
    decoder = Decoder(model, decode=spell, end=set())
    assert decoder.free == 8
    handles = [decoder.add(Request((1,), Sampling(max_new_tokens=10))) for _ in range(3)]
    assert decoder.free == 5
    decoder.step()
    decoder.cancel(handles[0])
    assert decoder.free == 6
    run(decoder)
    assert decoder.free == 8


def test_cancelling_everything_ends_the_work(model: Any) -> None:
    decoder = Decoder(model, decode=spell, end=set())
    kinds = (Sampling(), Sampling(), Sampling(num_beams=2), Sampling(num_beams=2))
    handles = [decoder.add(Request((1,), sampling)) for sampling in kinds]
    decoder.step()  # one of those with beams is answered in it, the other waits
    for handle in handles:
        decoder.cancel(handle)
    assert not decoder.busy
    assert decoder.step() == []


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ((), "empty"),
        ((1,) * CONTEXT, "32 tokens long"),
        ((1, len(LETTERS)), "0 to 25"),
        ((-1,), "0 to 25"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_refused_in_words(
    model: Any, prompt: tuple[int, ...], says: str
) -> None:
    decoder = Decoder(model, decode=spell, end=set())
    with pytest.raises(InputError, match=says) as caught:
        decoder.add(Request(prompt))
    assert caught.value.where == "prompt"
    assert not decoder.busy


@pytest.mark.parametrize("top", [-1, 1.5, True, None])
def test_a_bad_number_of_likeliest_tokens_is_refused(model: Any, top: Any) -> None:
    with pytest.raises(InputError, match="whole number"):
        Decoder(model, decode=spell, end=set()).add(Request((1,), top_log_probabilities=top))


def test_weights_that_are_not_numbers_are_told(tmp_path: Path) -> None:
    broken: Any = AutoModelForCausalLM.from_config(
        GPT2Config(n_positions=8, n_embd=8, n_layer=1, n_head=1, vocab_size=26)
    )
    with torch.no_grad():
        broken.transformer.ln_f.weight[0] = torch.nan
    with pytest.raises(NonFiniteError, match="not numbers"):
        answer(broken, [1], Sampling())


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_beams_find_what_transformers_finds(model: Any, penalty: float) -> None:
    sampling = Sampling(num_beams=3, max_new_tokens=8, repetition_penalty=penalty)
    for prompt in ([1, 2], [7], [9, 9, 4]):
        for end in (set[int](), {3, 4, 5}):
            ids = torch.tensor([prompt])
            theirs = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                num_beams=3,
                max_new_tokens=8,
                do_sample=False,
                repetition_penalty=penalty,
                eos_token_id=sorted(end) or None,
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
            until = next((place for place, token in enumerate(theirs) if token in end), len(theirs))
            made = answer(model, prompt, sampling, end)
            assert list(made.token_ids) == theirs[:until]
            assert made.reason == ("end_token" if until < len(theirs) else "max_new_tokens")


def test_beams_never_score_below_greedy(model: Any) -> None:
    """Without an end token all answers are equally long, so the sums compare."""
    totals = []
    for beams in (1, 8):
        made = [answer(model, [seed], Sampling(num_beams=beams, max_new_tokens=4)) for seed in range(1, 9)]
        totals.append(sum(sum(one.log_probabilities) for one in made))
    assert totals[1] > totals[0]


def test_beams_stop_at_stop_strings_and_at_the_context(model: Any) -> None:
    whole = answer(model, [1, 2], Sampling(num_beams=2, max_new_tokens=8))
    cut = answer(model, [1, 2], Sampling(num_beams=2, max_new_tokens=8, stop=(whole.text[3:5],)))
    assert cut.text == whole.text[: whole.text.index(whole.text[3:5])]
    assert cut.reason == "stop_string"
    assert answer(model, [1] * 30, Sampling(num_beams=2, max_new_tokens=8)).reason == "context"


def test_beams_leave_the_models_own_settings_alone(model: Any) -> None:
    own = GenerationConfig(no_repeat_ngram_size=1, suppress_tokens=list(range(12)), length_penalty=-5.0)
    before, model.generation_config = model.generation_config, own
    try:
        made = answer(model, [1, 2], Sampling(num_beams=2, max_new_tokens=6))
        assert model.generation_config is own
    finally:
        model.generation_config = before
    assert made == answer(model, [1, 2], Sampling(num_beams=2, max_new_tokens=6))


def as_letters(ids: Sequence[int]) -> str:
    """One letter for each token."""
    return "".join(chr(ord("A") + token) for token in ids)


def test_a_long_prompt_is_continued_from_its_end(model: Any) -> None:
    """Half a context of it is read at least, and more where the answer leaves room."""
    prompt = [place % 25 + 1 for place in range(100)]
    for wanted, read in ((1000, 16), (20, 16), (5, 27)):
        greedy = Sampling(max_new_tokens=wanted)
        made = continue_text(model, prompt, greedy, decode=as_letters, end=99, pad=0)
        same = answer(model, prompt[-read:], greedy)
        assert made == as_letters(same.token_ids)
