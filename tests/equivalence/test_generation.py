"""An answer has the same bits alone and among any others, and is the one transformers gives."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, MistralConfig, Qwen2Config

import tiny
from gptailor.models import decode, shapes
from gptailor.models.decode import Decoder, Generated, Request
from gptailor.models.generate import generate
from gptailor.models.sampling import Sampling
from gptailor.models.slots import SlotCache

END = 0
CONTEXT = 64
SETTINGS = (
    Sampling(max_new_tokens=20),
    Sampling(max_new_tokens=200),  # up to the context's end
    Sampling(temperature=1.0, seed=3, max_new_tokens=24),
    Sampling(temperature=0.7, top_p=0.9, top_k=40, repetition_penalty=1.2, seed=9, max_new_tokens=12),
)
NEIGHBOR_SETS = 40


def lively(model: Any) -> Any:
    """A random model repeats one token; with larger weights it depends on what it reads."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    model.generation_config = GenerationConfig()
    model.eval()
    return model


@pytest.fixture(scope="module")
def models(tiny_bases: dict[str, Path]) -> dict[str, Any]:
    return {
        family: lively(AutoModelForCausalLM.from_pretrained(tiny_bases[family])) for family in tiny.FAMILIES
    }


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny contexts, and yet several sizes of the window."""
    monkeypatch.setattr(shapes, "FEWEST_COLUMNS", 16)
    monkeypatch.setattr(shapes, "_found", WeakKeyDictionary())


def no_text(ids: Sequence[int]) -> str:
    return ""


def draw_prompt(stream: random.Random, longest: int = CONTEXT - 4) -> tuple[int, ...]:
    return tuple(stream.randrange(1, 400) for _ in range(stream.randint(1, longest)))


def answer_among(
    model: Any, request: Request, neighbors: Sequence[Request], stream: random.Random
) -> Generated:
    """The request's answer, while neighbors come before it, with it and later, and some are cancelled."""
    decoder = Decoder(model, decode=no_text, end={END})
    before = stream.randint(0, len(neighbors))
    handles = [decoder.add(neighbor) for neighbor in neighbors[:before]]
    for _ in range(stream.randint(0, 12)):  # they are in the middle of their answers, some are over
        decoder.step()
    handle = decoder.add(request)
    later = list(neighbors[before:])
    while decoder.busy:
        if later and stream.random() < 0.5:
            handles.append(decoder.add(later.pop()))
        if handles and stream.random() < 0.1:
            decoder.cancel(handles.pop(stream.randrange(len(handles))))
        for event in decoder.step():
            if event.handle == handle and event.result is not None:
                return event.result
    raise AssertionError("no answer came")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_answer_does_not_depend_on_its_neighbors(models: dict[str, Any], family: str) -> None:
    model, stream = models[family], random.Random(family)
    requests = [Request(draw_prompt(stream), settings, 3) for settings in SETTINGS]
    for request in requests:
        (alone,) = generate(
            model,
            [request.prompt],
            request.sampling,
            decode=no_text,
            end={END},
            top_log_probabilities=3,
        )
        assert alone.token_ids
        for _ in range(NEIGHBOR_SETS // len(requests)):
            neighbors = [
                Request(draw_prompt(stream), stream.choice(SETTINGS)) for _ in range(stream.randint(1, 20))
            ]
            assert answer_among(model, request, neighbors, stream) == alone


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_nor_on_those_answered_in_one_call(models: dict[str, Any], family: str) -> None:
    model, stream = models[family], random.Random(1)
    prompts = [draw_prompt(stream) for _ in range(30)]
    settings = [SETTINGS[place % len(SETTINGS)] for place in range(30)]
    together = generate(model, prompts, settings, decode=no_text, end={END})
    order = random.Random(2).sample(range(30), 30)
    shuffled = generate(
        model, [prompts[at] for at in order], [settings[at] for at in order], decode=no_text, end={END}
    )
    assert [together[at] for at in order] == shuffled
    for at in (0, 7, 29):
        assert generate(model, [prompts[at]], settings[at], decode=no_text, end={END}) == [together[at]]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_many_rows_and_few_columns_give_the_bits_of_the_one_shape_that_always_serves(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    model, stream = models[family], random.Random(3)
    prompts = [draw_prompt(stream) for _ in range(40)]
    settings = [SETTINGS[place % len(SETTINGS)] for place in range(40)]
    free = generate(model, prompts, settings, decode=no_text, end={END})
    monkeypatch.setattr(decode, "find_shapes", lambda _, capacity: shapes.Shapes((8,), (capacity,)))
    assert generate(model, prompts, settings, decode=no_text, end={END}) == free


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_who_moves_to_larger_pools_keeps_the_bits(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """An answer outgrows pools of 8, 16 and 32 tokens, whose larger ones are full now and then."""
    monkeypatch.setattr(decode, "SMALLEST_CAPACITY", 8)
    monkeypatch.setattr(decode, "ROOM", 4)
    monkeypatch.setattr(decode, "MOST_BETWEEN", 2)
    moved, copy = [], SlotCache.copy

    def counted(self: SlotCache, slot: int) -> Any:
        moved.append(slot)
        return copy(self, slot)

    monkeypatch.setattr(SlotCache, "copy", counted)
    model, stream = models[family], random.Random(family)
    for settings in SETTINGS:
        request = Request(draw_prompt(stream, longest=20), settings, 3)
        alone = answer_among(model, request, [], stream)
        for _ in range(4):
            neighbors = [Request(draw_prompt(stream), stream.choice(SETTINGS)) for _ in range(20)]
            assert answer_among(model, request, neighbors, stream) == alone
        if settings.temperature == 0:
            limit = min(settings.max_new_tokens, CONTEXT - len(request.prompt))
            assert alone.token_ids == transformers_answer(model, request.prompt, max_new_tokens=limit)
    assert len(moved) > 50


def test_pools_of_different_capacity_do_not_mix(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which pool a request is in depends on its own needs, so that its shapes do."""
    monkeypatch.setattr(decode, "SMALLEST_CAPACITY", 8)
    model, stream = models["gpt2"], random.Random(5)
    prompts = [draw_prompt(stream, longest=40) for _ in range(16)]
    sampling = Sampling(max_new_tokens=5)
    together = generate(model, prompts, sampling, decode=no_text, end={END})
    alone = [generate(model, [prompt], sampling, decode=no_text, end={END})[0] for prompt in prompts]
    assert together == alone


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_slot_computes_the_same_bits_with_several_threads(models: dict[str, Any], family: str) -> None:
    """Threads share out the rows; what a thread works with must not show."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    cache = SlotCache(models[family], capacity=CONTEXT)
    cache.grow(8)
    try:
        for token in random.Random(6).choices(range(1, 400), k=12):
            rows = cache.compute([token] * 8, window=CONTEXT)
            cache.advance(8)
            assert (rows == rows[0]).all()
    finally:
        torch.set_num_threads(before)


def transformers_answer(model: Any, prompt: Sequence[int], **settings: Any) -> tuple[int, ...]:
    """What `model.generate` gives, without the end token and what follows it."""
    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            eos_token_id=END,
            pad_token_id=END,
            **settings,
        )
    new = made[0, len(prompt) :].tolist()
    return tuple(new[: new.index(END)] if END in new else new)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_is_transformers_own_token_for_token(models: dict[str, Any], family: str) -> None:
    model, stream = models[family], random.Random(11)
    prompts = [draw_prompt(stream) for _ in range(12)]
    for penalty in (1.0, 1.5):
        sampling = Sampling(max_new_tokens=30, repetition_penalty=penalty)
        made = generate(model, prompts, sampling, decode=no_text, end={END})
        for prompt, answer in zip(prompts, made, strict=True):
            limit = min(30, CONTEXT - len(prompt))
            theirs = transformers_answer(model, prompt, max_new_tokens=limit, repetition_penalty=penalty)
            assert answer.token_ids == theirs


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_beams_are_transformers_own(models: dict[str, Any], family: str) -> None:
    model, stream = models[family], random.Random(12)
    prompts = [draw_prompt(stream, longest=30) for _ in range(3)]
    made = generate(model, prompts, Sampling(max_new_tokens=10, num_beams=3), decode=no_text, end={END})
    for prompt, answer in zip(prompts, made, strict=True):
        assert answer.token_ids == transformers_answer(model, prompt, max_new_tokens=10, num_beams=3)
        check_log_probabilities(model, prompt, answer)


def check_log_probabilities(model: Any, prompt: Sequence[int], answer: Generated) -> None:
    """They are those of one plain pass over the prompt and the answer."""
    ids = torch.tensor([[*prompt, *answer.token_ids]])
    with torch.inference_mode():
        plain = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    own = plain[torch.arange(len(answer.token_ids)), list(answer.token_ids)]
    np.testing.assert_allclose(answer.log_probabilities, own.numpy(), rtol=0, atol=2e-5)
    for row, top in zip(plain, answer.top_log_probabilities, strict=True):
        if top:
            np.testing.assert_allclose([value for _, value in top], row.topk(len(top)).values, atol=2e-5)
            np.testing.assert_allclose([row[token] for token, _ in top], row.topk(len(top)).values, atol=2e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_log_probabilities_are_the_models_own(models: dict[str, Any], family: str) -> None:
    """Before temperature, filters and penalty; the cache gives what a plain pass gives."""
    model, stream = models[family], random.Random(13)
    prompts = [draw_prompt(stream, longest=30) for _ in range(4)]
    sampling = Sampling(
        temperature=2.0, top_k=30, repetition_penalty=1.3, max_new_tokens=40, seed=4
    )  # long enough for the cache's window to come round
    made = generate(model, prompts, sampling, decode=no_text, end={END}, top_log_probabilities=4)
    for prompt, answer in zip(prompts, made, strict=True):
        check_log_probabilities(model, prompt, answer)


def sliding_models() -> dict[str, Any]:
    size: dict[str, Any] = {
        "vocab_size": 400,
        "hidden_size": 16,
        "intermediate_size": 32,
        "pad_token_id": END,
    }
    size |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    size |= {"max_position_embeddings": CONTEXT, "sliding_window": 8, "bos_token_id": 0, "eos_token_id": 0}
    mixed = Qwen2Config(**size, use_sliding_window=True, max_window_layers=1)
    return {"mistral": MistralConfig(**size), "qwen2 with one layer of each": mixed}


@pytest.mark.parametrize("name", sliding_models())
def test_a_window_slides_as_in_transformers(name: str) -> None:
    torch.manual_seed(0)
    model = lively(AutoModelForCausalLM.from_config(sliding_models()[name]))
    stream = random.Random(14)
    prompts = [draw_prompt(stream, longest=30) for _ in range(6)]
    made = generate(model, prompts, Sampling(max_new_tokens=30), decode=no_text, end={END})
    for prompt, answer in zip(prompts, made, strict=True):
        assert answer.token_ids == transformers_answer(model, prompt, max_new_tokens=30)
