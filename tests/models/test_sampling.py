"""Filters are transformers' own, draws follow the weights, bad values are refused in words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gptailor.errors import InputError, NonFiniteError
from gptailor.models.sampling import Chooser, Sampling, draw, penalized, uniform, weigh
from gptailor.types import FloatArray

VOCABULARY = 60
SEEDS = (-1, 0, 1, 2**63 - 1, -(2**63))


def draw_logits(seed: int) -> FloatArray:
    logits: Any = np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)
    return logits


def transformers_probabilities(logits: FloatArray, sampling: Sampling) -> FloatArray:
    """By transformers' processors, in the order in which its `generate` applies them."""
    steps: list[LogitsProcessor] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        steps.append(MinPLogitsWarper(sampling.min_p))
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    for step in steps:
        scores = step(torch.zeros(1, 1, dtype=torch.long), scores)  # type: ignore[arg-type]
    found: Any = scores.softmax(-1)[0].numpy()
    return found


@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 1000]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
@settings(deadline=None, max_examples=150, database=None)
def test_filters_leave_the_distribution_of_transformers(seed: int, **values: Any) -> None:
    logits, sampling = draw_logits(seed), Sampling(**values)
    weights = weigh(logits, sampling)
    theirs = transformers_probabilities(logits, sampling)
    np.testing.assert_allclose(weights / weights.sum(), theirs, rtol=1e-9, atol=1e-12)
    assert ((weights > 0) == (theirs > 0)).all()


def test_the_penalty_is_that_of_transformers() -> None:
    logits, seen = draw_logits(1), {3, 8, 59}
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(
        torch.tensor([sorted(seen)]),  # type: ignore[arg-type]
        torch.from_numpy(logits)[None].double(),  # type: ignore[arg-type]
    )
    np.testing.assert_allclose(penalized(logits, seen, 1.7), theirs[0].numpy(), rtol=1e-12)


def test_the_penalty_counts_prompt_and_answer() -> None:
    logits = np.zeros(4, np.float32)
    logits[:3] = (3.0, 2.9, 2.8)
    chooser = Chooser(Sampling(repetition_penalty=2.0), [0])
    assert [chooser.choose(logits).token_id for _ in range(3)] == [1, 2, 0]


@given(
    length=st.integers(1, 4),
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_no_run_comes_twice_and_only_what_would_close_one_is_forbidden(
    length: int, seed: int, temperature: float
) -> None:
    """Few tokens, so that runs come again. transformers' processor, shown the answer alone, does the same."""
    sampling = Sampling(no_repeat=length, temperature=temperature, seed=seed)
    steps = 6 if length == 1 else 25
    logits = np.random.default_rng(seed).normal(0, 3, (steps, 7)).astype(np.float32)
    chooser, answer = Chooser(sampling, [0, 1, 2]), []
    processor = NoRepeatNGramLogitsProcessor(length)
    for step, row in enumerate(logits):
        theirs = processor(torch.tensor([answer], dtype=torch.long), torch.from_numpy(row)[None].double())[0]  # type: ignore[arg-type]
        if not torch.isfinite(theirs).any():
            break  # see below
        token = chooser.choose(row).token_id
        expected = int(theirs.argmax()) if temperature == 0 else draw(theirs.numpy(), sampling, step=step)
        assert token == expected
        answer.append(token)
    runs = [tuple(answer[at : at + length]) for at in range(len(answer) - length + 1)]
    assert len(set(runs)) == len(runs)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_every_token_would_close_a_run_one_comes_all_the_same(temperature: float) -> None:
    chooser = Chooser(Sampling(no_repeat=1, temperature=temperature), [])
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    found = [chooser.choose(logits).token_id for _ in range(4)]
    assert sorted(found[:3]) == [0, 1, 2]
    assert temperature == 1 or found[3] == 1


def test_what_the_prompt_holds_may_be_copied() -> None:
    logits = np.eye(4, dtype=np.float32)
    chooser = Chooser(Sampling(no_repeat=2), [0, 1, 2, 3, 0, 1, 2, 3])
    assert [chooser.choose(row).token_id for row in logits] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=1.0), Sampling(temperature=0.7, top_k=12, top_p=0.9, min_p=0.01)],
    ids=["plain", "filtered"],
)
def test_draws_are_as_frequent_as_the_probabilities_say(sampling: Sampling) -> None:
    """Each of 20,000 draws' frequencies lies within four and a half standard errors."""
    logits, draws = draw_logits(2), 20_000
    probabilities = transformers_probabilities(logits, sampling)
    counts = np.bincount(
        [draw(logits, sampling, step=step) for step in range(draws)], minlength=VOCABULARY
    ).astype(float)
    assert not counts[probabilities == 0].any()
    error = np.sqrt(probabilities * (1 - probabilities) / draws)
    assert (np.abs(counts / draws - probabilities) <= 4.5 * error + 1 / draws).all()


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    found = {
        (seed, step): uniform(seed, step) for seed in (-1, 0, 1, 2**63 - 1, -(2**63)) for step in range(50)
    }
    assert found == {key: uniform(*key) for key in reversed(found)}
    assert len(set(found.values())) == len(found)
    assert all(0 <= value < 1 for value in found.values())


def test_each_token_is_drawn_anew() -> None:
    logits, sampling = draw_logits(6), Sampling(temperature=5.0, seed=3)
    chooser = Chooser(sampling, [])
    drawn = [chooser.choose(logits).token_id for _ in range(12)]
    assert drawn == [draw(logits, sampling, step=step) for step in range(12)]
    assert len(set(drawn)) > 6


@pytest.mark.parametrize("aim", [0.0, 1 - 2**-53], ids=["lowest", "highest"])
def test_the_ends_of_the_range_draw_a_token_that_may_be_drawn(
    monkeypatch: pytest.MonkeyPatch, aim: float
) -> None:
    monkeypatch.setattr("gptailor.models.sampling.uniform", lambda *_: aim)
    logits = np.array([-9, 1, 0.9, -9], np.float32)
    assert draw(logits, Sampling(temperature=1.0, top_k=2), step=0) == (1 if aim == 0 else 2)


def test_almost_no_temperature_takes_the_likeliest() -> None:
    logits = draw_logits(3)
    for temperature in (1e-3, 1e-300, math.ulp(0)):
        assert draw(logits, Sampling(temperature=temperature), step=0) == int(logits.argmax())


def test_log_probabilities_are_the_log_softmax() -> None:
    """Of the logits as they come, whatever is done to them for the choice."""
    logits = draw_logits(4)
    plain = torch.from_numpy(logits).double().log_softmax(-1)
    sampling = Sampling(temperature=3.0, top_k=7, repetition_penalty=1.5, seed=1)
    token = Chooser(sampling, [1, 2], top=5).choose(logits)
    assert token.log_probability == pytest.approx(float(plain[token.token_id]), abs=1e-6)
    values, ids = plain.topk(5)
    assert [place for place, _ in token.top] == ids.tolist()
    assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-6)
    assert len(Chooser(sampling, [], top=VOCABULARY + 5).choose(logits).top) == VOCABULARY


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_refused(bad: float) -> None:
    logits = draw_logits(5)
    logits[3] = bad
    with pytest.raises(NonFiniteError, match="not numbers"):
        Chooser(Sampling(), [1]).choose(logits)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 10**400),
        ("temperature", "hot"),
        ("temperature", None),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", True),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e-300),
        ("no_repeat", -1),
        ("no_repeat", 2.5),
        ("max_new_tokens", 0),
        ("max_new_tokens", 3.0),
        ("seed", 1.5),
        ("seed", 1 << 64),
        ("num_beams", 0),
        ("num_beams", 65),
        ("stop", ("",)),
        ("stop", (3,)),
        ("stop", None),
        ("stop", 3),
    ],
)
def test_a_bad_value_is_named_with_its_range(field: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        Sampling(**{field: value})
    assert caught.value.where == field
    assert repr(value) in str(caught.value)
    assert "Give a" in str(caught.value)


def test_beams_at_a_temperature_are_refused() -> None:
    with pytest.raises(InputError, match="num_beams to 1"):
        Sampling(num_beams=2, temperature=0.5)


def test_beams_that_should_not_repeat_are_refused() -> None:
    with pytest.raises(InputError, match="num_beams to 1"):
        Sampling(num_beams=2, no_repeat=3)


def test_extreme_but_possible_values_are_taken() -> None:
    Sampling(seed=-(1 << 63), top_k=10**400, max_new_tokens=10**400, stop=["a", "b"])  # type: ignore[arg-type]
    assert Sampling(stop="end").stop == ("end",)  # type: ignore[arg-type]
