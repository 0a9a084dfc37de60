"""Micro-batches side by side: the same sums, whichever ends first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from test_loop import ROWS, Training
from torch import Tensor

import tiny
from gptailor.launch import Precision
from gptailor.models.dropout import use_streams
from gptailor.models.lean import lean_training
from gptailor.train.loop import accumulate
from gptailor.train.workers import Workers, choose_workers
from gptailor.types import Batch


def test_every_item_is_done_once_and_told_by_worker() -> None:
    workers = Workers(3)
    assert workers.run(list, list(range(8))) == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert workers.run(list, [1]) == [[1]]
    assert workers.run(list, []) == []


def test_a_fault_comes_through() -> None:
    def fail(share: Sequence[int]) -> None:
        raise ValueError(f"share of {share[0]}")

    with pytest.raises(ValueError, match="share of"):
        Workers(2).run(fail, [1, 2])


def test_one_by_one_never_meets() -> None:
    times: list[tuple[float, float]] = []

    def work(_: Sequence[int]) -> None:
        began = time.monotonic()
        time.sleep(0.02)
        times.append((began, time.monotonic()))

    Workers(2).run(work, [1, 2], one_by_one=True)
    (_, first_end), (second_begin, _) = sorted(times)
    assert first_end <= second_begin


def test_cores_of_a_worker_are_shared_out() -> None:
    before = torch.get_num_threads()
    assert Workers(2).run(lambda _: torch.get_num_threads(), [1, 2]) == [max(1, before // 2)] * 2
    assert torch.get_num_threads() == before


def test_more_cores_than_workers_and_a_gpu() -> None:
    assert [choose_workers(threads, "cpu") for threads in (1, 2, 4, 64)] == [1, 2, 4, 4]
    assert choose_workers(8, "cuda") == 1


def gradients(
    training: Training, batches: list[Batch], count: int, precision: Precision
) -> dict[str, Tensor]:
    """Of one step; the first worker is slowed down in half of the calls."""
    model = training.adapted.trained
    model.zero_grad()
    with lean_training(training.adapted.plain, precision=precision) as lean:
        model.train()
        accumulate(
            batches,
            training.loss,
            weights=[weight for weight in model.parameters() if weight.requires_grad],
            seed=3,
            workers=Workers(count),
            lean=lean,
        )
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_two_workers_make_the_gradients_of_one(tiny_bases: dict[str, Path], family: str, lora: bool) -> None:
    """With dropout: its masks belong to the micro-batch, not to who computes it."""
    training = Training(tiny_bases[family], dropout=0.2, lora=lora)
    use_streams(training.adapted.trained)
    batches = tiny.micro_batches(ROWS[:12], size=3, pad_id=0)
    one = gradients(training, batches, 1, "fp32")
    two = gradients(training, batches, 2, "fp32")
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        scale = max(gradient.abs().max().item(), 1e-3)
        assert (two[name] - gradient).abs().max().item() <= 1e-5 * scale, name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_workers_give_the_same_bits_every_time(tiny_bases: dict[str, Path], precision: Precision) -> None:
    training = Training(tiny_bases["gpt2"], dropout=0.2)
    use_streams(training.adapted.trained)
    batches = tiny.micro_batches(ROWS[:12], size=2, pad_id=0)
    first = gradients(training, batches, 3, precision)  # of two, a + b is b + a
    for _ in range(3):
        again = gradients(training, batches, 3, precision)
        assert all(torch.equal(gradient, again[name]) for name, gradient in first.items())
