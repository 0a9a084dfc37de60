"""Schedules that move at every step, decay groups by shape, and a rate of its own for the head."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tiny
from gptailor.models.load import load_classifier, load_tokenizer
from gptailor.models.names import resolve_base
from gptailor.train.optimize import Schedule, build_optimizer, rate_factor, set_rates

SCHEDULES = get_args(Schedule)
FALLING = [schedule for schedule in SCHEDULES if schedule != "constant"]
shares = st.floats(0, 1)
totals = st.integers(1, 400)


def factors(schedule: Schedule, total: int, *, warmup: float = 0.06, decay: float = 0.2) -> list[float]:
    return [
        rate_factor(step, total, schedule=schedule, warmup=warmup, decay=decay)
        for step in range(1, total + 1)
    ]


@given(st.sampled_from(SCHEDULES), totals, shares, shares)
@settings(deadline=None)
def test_every_step_moves_and_none_beyond_the_peak(
    schedule: Schedule, total: int, warmup: float, decay: float
) -> None:
    assert all(0 < factor <= 1 for factor in factors(schedule, total, warmup=warmup, decay=decay))


@given(st.sampled_from(SCHEDULES), totals, shares, shares)
@settings(deadline=None)
def test_rate_rises_through_the_warmup_and_never_after(
    schedule: Schedule, total: int, warmup: float, decay: float
) -> None:
    rates = factors(schedule, total, warmup=warmup, decay=decay)
    steps = min(total, math.ceil(warmup * total))
    rising, after = rates[:steps], rates[steps:]
    assert all(one < next_one for one, next_one in pairwise(rising))
    assert all(one >= next_one for one, next_one in pairwise(after))
    if rising:
        assert rising[0] == pytest.approx(1 / (steps + 1))
    if after and warmup + decay < 0.99 and total > 100:
        assert after[0] == 1


@given(st.sampled_from(FALLING), st.integers(200, 20_000), st.floats(0, 0.5))
@settings(deadline=None)
def test_rate_ends_near_zero(schedule: Schedule, total: int, warmup: float) -> None:
    last = rate_factor(total, total, schedule=schedule, warmup=warmup, decay=0.2)
    assert 0 < last < 0.03


def test_shapes_at_their_turning_points() -> None:
    """A hundred steps after ten of warm-up: k / 11, then the curve from 1."""
    for schedule in SCHEDULES:
        rates = factors(schedule, 110, warmup=10 / 110, decay=0.5)
        assert rates[:10] == pytest.approx([k / 11 for k in range(1, 11)])
        assert rates[10] == 1
    assert factors("constant", 110, warmup=10 / 110)[10:] == [1.0] * 100
    linear = factors("linear", 110, warmup=10 / 110)[10:]
    assert linear == pytest.approx([k / 100 for k in range(100, 0, -1)])
    cosine = factors("cosine", 110, warmup=10 / 110)[10:]
    assert cosine[50] == pytest.approx(0.5)
    assert cosine[-1] == pytest.approx(math.sin(math.pi / 200) ** 2)
    stable = factors("warmup-stable-decay", 110, warmup=10 / 110, decay=0.5)[10:]
    assert stable[:46] == [1.0] * 46
    assert stable[45:] == pytest.approx([k / 55 for k in range(55, 0, -1)])


def test_one_step_is_taken_at_the_peak_without_warmup() -> None:
    assert [rate_factor(1, 1, schedule=schedule, warmup=0) for schedule in SCHEDULES] == [1] * len(SCHEDULES)


class Toy(nn.Module):
    """One of everything, and a head; `scored` must not be taken for `score`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.scored = nn.Linear(4, 4)
        self.score = nn.Linear(4, 3)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def groups_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    """(rate, decay) of every weight that the optimizer moves."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], (group["lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(found) == len(dict(found))
    return dict(found)


def test_matrices_decay_and_the_head_has_its_own_rate() -> None:
    model = Toy()
    optimizer = build_optimizer(
        model, learning_rate=0.1, head_learning_rate=0.3, weight_decay=0.01, head="score"
    )
    assert groups_of(optimizer, model) == {
        "embed.weight": (0.1, 0.01),
        "norm.weight": (0.1, 0.0),
        "norm.bias": (0.1, 0.0),
        "scored.weight": (0.1, 0.01),
        "scored.bias": (0.1, 0.0),
        "score.weight": (0.3, 0.01),
        "score.bias": (0.3, 0.0),
    }


def test_without_a_head_all_have_one_rate() -> None:
    model = Toy()
    optimizer = build_optimizer(model, learning_rate=0.1, head_learning_rate=0.3, weight_decay=0.01)
    assert {rate for rate, _ in groups_of(optimizer, model).values()} == {0.1}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_weight_of_a_base_is_in_one_group(tiny_bases: dict[str, Path], family: str) -> None:
    base = resolve_base(str(tiny_bases[family]))
    model = load_classifier(base, load_tokenizer(base), label_names=["a", "b"], seed=0)
    optimizer = build_optimizer(
        model, learning_rate=0.1, head_learning_rate=0.3, weight_decay=0.01, head="score"
    )
    found = groups_of(optimizer, model)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert found[name] == (0.3 if name == "score.weight" else 0.1, 0.01 if parameter.ndim >= 2 else 0.0)


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_rates_are_set_from_the_peak_however_often(factors: list[float]) -> None:
    model = Toy()
    optimizer = build_optimizer(
        model, learning_rate=0.1, head_learning_rate=0.3, weight_decay=0.01, head="score"
    )
    for factor in factors:
        assert set_rates(optimizer, factor) == pytest.approx(0.1 * factor)
    rates = {name: rate for name, (rate, _) in groups_of(optimizer, model).items()}
    assert rates["embed.weight"] == rates["norm.bias"] == 0.1 * factors[-1]
    assert rates["score.weight"] == rates["score.bias"] == 0.3 * factors[-1]


def test_decay_is_decoupled_from_the_gradient() -> None:
    """Without a gradient's push a matrix shrinks by rate x decay, and a bias stays."""
    model = Toy()
    optimizer = build_optimizer(model, learning_rate=0.1, head_learning_rate=0.1, weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        shrunk = 0.95 if parameter.ndim >= 2 and parameter.requires_grad else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * shrunk)
