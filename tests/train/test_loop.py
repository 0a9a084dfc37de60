"""The loop: what is not a number never reaches the weights, and a step is a function of its number."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from gptailor.data.batch import Order, StepRows
from gptailor.errors import NonFiniteError
from gptailor.models.approach import Adapted, adapt_full, adapt_lora
from gptailor.models.load import load_classifier, load_tokenizer
from gptailor.models.names import resolve_base
from gptailor.train import loop
from gptailor.train.loop import step_seed, training_steps
from gptailor.train.loss import classification_logits, classification_loss
from gptailor.train.optimize import build_optimizer
from gptailor.types import Batch, StepResult, TokenizedExample

LABELS = ("business", "health", "sports")
Loss = Callable[[Batch], tuple[Tensor, int]]


def random_rows(count: int) -> list[TokenizedExample]:
    rng = np.random.default_rng(5)
    rows = []
    for row in range(count):
        ids = rng.integers(1, 250, rng.integers(3, 20)).astype(np.int32)
        rows.append(TokenizedExample(ids, np.zeros(len(ids), np.bool_), "rows.csv", row + 2, label=row % 3))
    return rows


ROWS = random_rows(20)


class Training:
    """A small run as the pipeline makes it: rows by step, classifier, loss, optimizer."""

    def __init__(
        self, base: Path, *, dropout: float = 0.0, lora: bool = False, weight_decay: float = 0.01
    ) -> None:
        found = resolve_base(str(base))
        model = load_classifier(found, load_tokenizer(found), label_names=LABELS, seed=3, dropout=dropout)
        self.adapted: Adapted = adapt_full(model)
        if lora:
            self.adapted = adapt_lora(model, rank=2, alpha=4, dropout=dropout, targets=(), seed=3)
        self.optimizer: torch.optim.Optimizer = build_optimizer(
            self.adapted.trained, learning_rate=1e-2, head_learning_rate=1e-2, weight_decay=weight_decay
        )
        self.rows_of = StepRows(Order(np.array([len(row.token_ids) for row in ROWS]), batch_size=8, seed=0))

    def batches(self, step: int) -> list[Batch]:
        pad_id: Any = self.adapted.plain.config.pad_token_id
        return tiny.micro_batches([ROWS[int(row)] for row in self.rows_of(step)], size=4, pad_id=pad_id)

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        assert batch.labels is not None
        logits = classification_logits(self.adapted.plain, self.adapted.head, batch)
        return classification_loss(logits, batch.labels), batch.num_targets

    def steps(self, steps: range, *, seed: int = 0, **changes: Any) -> Iterator[StepResult]:
        settings = {"batches": self.batches, "loss": self.loss, "rate": lambda _: 1.0, **changes}
        return training_steps(self.adapted.trained, self.optimizer, steps=steps, seed=seed, **settings)

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.adapted.trained.named_parameters()}

    def optimizer_state(self) -> dict[str, Any]:
        return copy.deepcopy(self.optimizer.state_dict())


def same_bits(one: Any, other: Any) -> bool:
    """NaN equals NaN here: a weight that was NaN before must be the same NaN after."""
    if isinstance(one, Tensor):
        return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return bool(one == other)


def poison_weight(training: Training, value: float) -> Loss:
    """A weight that every row reads."""
    with torch.no_grad():
        weight = training.adapted.plain.get_parameter("transformer.h.1.mlp.c_fc.weight")
        weight[3, 5] = value
    return training.loss


def poison_loss(training: Training, value: float) -> Loss:
    """Only the second micro-batch of a step is bad."""
    calls = iter(range(10**6))

    def loss(batch: Batch) -> tuple[Tensor, int]:
        total, count = training.loss(batch)
        return (total * value if next(calls) % 2 else total), count

    return loss


def poison_gradient(training: Training, value: float) -> Loss:
    """The loss stays finite."""
    head = training.adapted.plain.get_parameter("score.weight")
    head.register_hook(lambda gradient: gradient * value)
    return training.loss


POISONS = {"weight": poison_weight, "loss": poison_loss, "gradient": poison_gradient}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize("poison", POISONS)
def test_what_is_not_a_number_stops_before_the_weights_move(
    tiny_bases: dict[str, Path], poison: str, value: float
) -> None:
    training = Training(tiny_bases["gpt2"])
    assert len(list(training.steps(range(1, 3)))) == 2  # there are moments to be spoiled
    loss = POISONS[poison](training, value)
    weights, state = training.weights(), training.optimizer_state()
    rates = [group["lr"] for group in training.optimizer.param_groups]
    with pytest.raises(NonFiniteError) as caught:
        list(training.steps(range(3, 6), loss=loss, rate=lambda _: 0.5))
    assert same_bits(training.weights(), weights)
    assert same_bits(training.optimizer_state(), state)
    assert [group["lr"] for group in training.optimizer.param_groups] == rates
    expected = "gradient" if poison == "gradient" else "loss"
    assert f"the {expected} became" in caught.value.what
    assert "at step 3" in caught.value.what
    assert caught.value.exit_code == 1


def test_the_rows_of_the_guilty_step_are_named(tiny_bases: dict[str, Path]) -> None:
    training = Training(tiny_bases["gpt2"])
    guilty = [f"rows.csv:{ROWS[int(row)].row}" for row in training.rows_of(2)]

    def loss(batch: Batch) -> tuple[Tensor, int]:
        total, count = training.loss(batch)
        return (total * float("nan") if guilty[-1] in batch.rows else total), count

    with pytest.raises(NonFiniteError, match="at step 2") as caught:
        list(training.steps(range(1, 4), loss=loss))
    assert caught.value.where == f"rows {', '.join(guilty)}"


def test_long_lists_of_rows_are_cut_short(tiny_bases: dict[str, Path]) -> None:
    training = Training(tiny_bases["gpt2"])
    everything = tiny.micro_batches(ROWS, size=20, pad_id=0)
    with pytest.raises(NonFiniteError) as caught:
        list(
            training.steps(
                range(1, 2),
                batches=lambda _: everything,
                loss=lambda batch: (training.loss(batch)[0] * float("inf"), 20),
            )
        )
    assert caught.value.where is not None
    assert caught.value.where.count("rows.csv:") == 16
    assert caught.value.where.endswith(" ...")


def test_gradient_too_large_to_measure_is_refused(tiny_bases: dict[str, Path]) -> None:
    """Every element is finite; their norm is not, and clipping by it would make zeros of them."""
    training = Training(tiny_bases["gpt2"])
    before = training.weights()
    training.adapted.plain.get_parameter("score.weight").register_hook(lambda g: g.sign() * 3e38)
    with pytest.raises(NonFiniteError, match="the gradient became inf at step 1"):
        list(training.steps(range(1, 2)))
    assert same_bits(training.weights(), before)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_steps_run_alone_equal_the_same_steps_of_a_full_run(
    tiny_bases: dict[str, Path], family: str, lora: bool
) -> None:
    """With dropout: its stream is a function of (seed, step), so nothing of it need be saved."""
    full = Training(tiny_bases[family], dropout=0.3, lora=lora)
    first = list(full.steps(range(1, 3), seed=9))
    weights, state = full.weights(), full.optimizer_state()
    rest = list(full.steps(range(3, 6), seed=9))
    assert len(first) + len(rest) == 5

    alone = Training(tiny_bases[family], dropout=0.3, lora=lora)
    torch.manual_seed(12345)  # whatever the process drew before
    with torch.no_grad():
        for name, parameter in alone.adapted.trained.named_parameters():
            parameter.copy_(weights[name])
    alone.optimizer.load_state_dict(state)
    resumed = []
    for result in alone.steps(range(3, 6), seed=9):
        torch.rand(17)  # a consumer that validates, or draws, between the steps
        resumed.append(result)
    assert [(r.step, r.loss, r.grad_norm) for r in resumed] == [(r.step, r.loss, r.grad_norm) for r in rest]
    assert same_bits(alone.weights(), full.weights())
    assert same_bits(alone.optimizer_state(), full.optimizer_state())


def test_dropout_differs_by_step_and_by_seed(tiny_bases: dict[str, Path]) -> None:
    """The same rows at a rate of zero: only dropout is left to change the loss."""
    training = Training(tiny_bases["gpt2"], dropout=0.3)
    same_rows = training.batches(1)

    def losses(seed: int) -> list[float]:
        steps = training.steps(range(1, 6), seed=seed, batches=lambda _: same_rows, rate=lambda _: 0.0)
        return [result.loss for result in steps]

    one = losses(seed=0)
    assert len(set(one)) == 5
    assert losses(seed=0) == one
    assert not set(one) & set(losses(seed=1))
    without = Training(tiny_bases["gpt2"])
    steps = without.steps(range(1, 4), batches=lambda _: same_rows, rate=lambda _: 0.0)
    assert len({result.loss for result in steps}) == 1


def test_seeds_of_steps_do_not_meet() -> None:
    seeds = {step_seed(seed, step) for seed in range(20) for step in range(1, 2000)}
    assert len(seeds) == 20 * 1999
    assert 0 <= step_seed(2**32 - 1, 10**6) < 2**63


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_after_step_one_every_weight_has_moved(tiny_bases: dict[str, Path], family: str) -> None:
    training = Training(tiny_bases[family], weight_decay=0.0)
    before = training.weights()
    assert next(training.steps(range(1, 2))).step == 1
    after = training.weights()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert still == []
    assert all(torch.isfinite(weight).all() for weight in after.values())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_lora_moves_the_adapters_and_the_head_and_nothing_else(
    tiny_bases: dict[str, Path], family: str
) -> None:
    """An adapter's second matrix begins at zero and moves first; its first matrix follows at step 2."""
    training = Training(tiny_bases[family], lora=True, weight_decay=0.0)
    before = training.weights()
    trainable = {name for name, p in training.adapted.trained.named_parameters() if p.requires_grad}
    moved = []
    for _ in training.steps(range(1, 3)):
        after = training.weights()
        moved.append({name for name in before if not torch.equal(before[name], after[name])})
    first_matrices = {name for name in trainable if "lora_A" in name}
    assert first_matrices
    assert moved[0] == trainable - first_matrices
    assert moved[1] == trainable
    assert len(trainable) < len(before)


def test_results_say_what_happened(tiny_bases: dict[str, Path]) -> None:
    training = Training(tiny_bases["gpt2"])
    results = list(training.steps(range(1, 4), rate=lambda step: step / 10))
    assert [result.step for result in results] == [1, 2, 3]
    assert sum(result.num_targets for result in results) == len(ROWS)  # one epoch
    for result in results:
        rows = training.rows_of(result.step)
        assert result.num_targets == len(rows)
        assert result.num_tokens == sum(len(ROWS[int(row)].token_ids) for row in rows)
        assert result.learning_rate == pytest.approx(1e-2 * result.step / 10)
        assert result.seconds > 0
        assert result.grad_norm > 0


def test_gradients_are_clipped_to_the_norm_that_is_told(tiny_bases: dict[str, Path]) -> None:
    """Plain gradient descent at rate 1: the weights move by exactly the clipped gradient."""
    for clip in (0.0, 0.01, 1e6):
        training = Training(tiny_bases["gpt2"])
        parameters = list(training.adapted.trained.parameters())
        training.optimizer = torch.optim.SGD([{"params": parameters, "peak": 1.0}], lr=1.0)
        before = training.weights()
        (result,) = training.steps(range(1, 2), clip=clip)
        after = training.weights()
        moved = torch.stack([(after[name] - before[name]).norm() for name in before]).norm().item()
        expected = 0.01 if clip == 0.01 else result.grad_norm
        assert result.grad_norm > 0.1
        assert moved == pytest.approx(expected, rel=1e-3)


def test_model_trains_in_training_mode_and_leaves_no_gradients(tiny_bases: dict[str, Path]) -> None:
    training = Training(tiny_bases["gpt2"])
    model: nn.Module = training.adapted.trained
    model.eval()
    for _ in training.steps(range(1, 3)):
        assert model.training
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("first", ["sparse", "dense"])
@pytest.mark.parametrize("second", ["sparse", "dense"])
def test_gradients_of_few_tokens_and_of_many_add_up_in_any_order(first: str, second: str) -> None:
    """Of a micro-batch with few tokens the embedding's gradient is sparse, of one with many it is dense."""
    one, other = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    parts = [
        part.to_sparse(1) if kind == "sparse" else part.clone()
        for part, kind in ((one, first), (other, second))
    ]
    found = loop._add(*parts)
    assert found is not None
    assert torch.equal(found.to_dense(), one + other)
