"""Our loop against transformers' own Trainer: the same losses, gradient norms and weights.

Both get the same rows in the same order, fp32, no dropout, a constant rate, and the same attention.
The Trainer pads with an attention mask; ours pads without one, so the mask's absence is tested here too.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

import tiny
from gptailor.data.batch import Order, StepRows
from gptailor.models.approach import Adapted, adapt_full
from gptailor.models.load import load_classifier, load_tokenizer
from gptailor.models.names import resolve_base
from gptailor.train.loop import training_steps
from gptailor.train.loss import classification_logits, classification_loss
from gptailor.train.optimize import build_optimizer, rate_factor
from gptailor.types import Batch, StepResult, TokenizedExample

LABELS = ("business", "health", "sports")
STEPS = 20
BATCH_SIZE = 8
RATE = 1e-3
DECAY = 0.01
CLIP = 1.0


def random_rows(count: int) -> list[TokenizedExample]:
    """Rows of 3 to 40 tokens; the label hangs on the first token, so that the loss falls."""
    rng = np.random.default_rng(7)
    rows = []
    for row in range(count):
        ids = rng.integers(1, 250, rng.integers(3, 41)).astype(np.int32)
        learn = np.zeros(len(ids), np.bool_)
        learn[-1] = True
        rows.append(TokenizedExample(ids, learn, "rows.csv", row + 1, label=int(ids[0]) % len(LABELS)))
    return rows


def classifier(base: Path) -> PreTrainedModel:
    found = resolve_base(str(base))
    return load_classifier(found, load_tokenizer(found), label_names=LABELS, seed=3, dropout=0.0)


def pad_id_of(model: PreTrainedModel) -> int:
    pad_id: Any = model.config.pad_token_id
    return int(pad_id)


def our_steps(adapted: Adapted, rows: list[TokenizedExample], *, micro_batch: int) -> list[StepResult]:
    """As `pipeline.training` does it."""
    order = StepRows(Order(np.array([len(row.token_ids) for row in rows]), BATCH_SIZE, seed=0))

    def batches(step: int) -> list[Batch]:
        chosen = [rows[int(row)] for row in order(step)]
        return tiny.micro_batches(chosen, size=micro_batch, pad_id=pad_id_of(adapted.plain))

    def loss(batch: Batch) -> tuple[torch.Tensor, int]:
        assert batch.labels is not None
        logits = classification_logits(adapted.plain, adapted.head, batch)
        return classification_loss(logits, batch.labels), batch.num_targets

    optimizer = build_optimizer(
        adapted.trained, learning_rate=RATE, head_learning_rate=RATE, weight_decay=DECAY, head="score"
    )
    rate = partial(rate_factor, total=STEPS, schedule="constant", warmup=0.0)
    steps = training_steps(
        adapted.trained,
        optimizer,
        batches=batches,
        loss=loss,
        rate=rate,
        steps=range(1, STEPS + 1),
        clip=CLIP,
    )
    return list(steps)


def collate_with_mask(items: list[dict[str, Any]], *, pad_id: int) -> dict[str, torch.Tensor]:
    length = max(len(item["input_ids"]) for item in items)
    padded = [item["input_ids"] + [pad_id] * (length - len(item["input_ids"])) for item in items]
    mask = [[1] * len(item["input_ids"]) + [0] * (length - len(item["input_ids"])) for item in items]
    return {
        "input_ids": torch.tensor(padded),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor([item["label"] for item in items]),
    }


def trainer_of(
    model: PreTrainedModel, rows: list[TokenizedExample], folder: Path, *, micro_batch: int
) -> Trainer:
    order = StepRows(Order(np.array([len(row.token_ids) for row in rows]), BATCH_SIZE, seed=0))
    in_order = [rows[int(row)] for step in range(1, STEPS + 1) for row in order(step)]
    # GPT2ForSequenceClassification takes any keyword, so the Trainer believes that it divides its loss by
    # the rows of the whole step, which it doesn't: accumulated gradients would be summed, not averaged.
    model.accepts_loss_kwargs = False
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=BATCH_SIZE // micro_batch,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        max_steps=STEPS,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )

    class InOrder(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    return InOrder(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": row.token_ids.tolist(), "label": row.label} for row in in_order],
        data_collator=partial(collate_with_mask, pad_id=pad_id_of(model)),
    )


def decayed(optimizer: torch.optim.Optimizer, model: nn.Module) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]
        for group in optimizer.param_groups
        if group["weight_decay"]
        for parameter in group["params"]
    }


def weights_that_count(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """All weights, without the keys' biases: softmax can't see them, so their gradient is rounding alone,
    and Adam, which divides a gradient by its own size, would make whole steps of it."""
    width = int(model.config.hidden_size)
    found = {}
    for name, parameter in model.named_parameters():
        queries, keys, values = (slice(width), slice(width, 2 * width), slice(2 * width, None))
        if name.endswith("c_attn.bias"):
            assert len(parameter[keys]) == width
            parameter = torch.cat([parameter[queries], parameter[values]])
        found[name] = parameter.detach()
    return found


@pytest.mark.parametrize("micro_batch", [8, 4, 1])
def test_trajectory_equals_the_trainers(
    tiny_bases: dict[str, Path], tmp_path: Path, micro_batch: int
) -> None:
    rows = random_rows(40)
    adapted = adapt_full(classifier(tiny_bases["gpt2"]))
    start = {name: weight.clone() for name, weight in weights_that_count(adapted.plain).items()}
    ours = our_steps(adapted, rows, micro_batch=micro_batch)

    theirs = classifier(tiny_bases["gpt2"])
    trainer = trainer_of(theirs, rows, tmp_path, micro_batch=micro_batch)
    trainer.train()
    log = [line for line in trainer.state.log_history if "grad_norm" in line]

    assert [line["step"] for line in log] == [result.step for result in ours] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([r.loss for r in ours], [line["loss"] for line in log], rtol=1e-5)
    np.testing.assert_allclose([r.grad_norm for r in ours], [line["grad_norm"] for line in log], rtol=1e-5)
    assert {r.learning_rate for r in ours} == {line["learning_rate"] for line in log} == {RATE}
    assert max(r.grad_norm for r in ours) > CLIP  # else clipping was not compared
    assert ours[-1].loss < 0.9 * ours[0].loss  # else there was nothing to compare
    trained, expected = weights_that_count(adapted.plain), weights_that_count(theirs)
    assert trained.keys() == expected.keys()
    for name, weight in trained.items():
        assert (weight - expected[name]).abs().max() < 1e-5, name
        assert (weight - start[name]).abs().max() > 1e-3, name  # a hundred times what is tolerated


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_same_weights_decay_as_in_the_trainer(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str
) -> None:
    model = classifier(tiny_bases[family])
    ours = build_optimizer(model, learning_rate=RATE, head_learning_rate=RATE, weight_decay=DECAY)
    theirs = trainer_of(model, random_rows(8), tmp_path, micro_batch=8).create_optimizer()
    assert decayed(ours, model) == decayed(theirs, model)
    assert 0 < len(decayed(ours, model)) < len(list(model.parameters()))
    for key in ("betas", "eps", "amsgrad", "maximize"):
        assert {str(group[key]) for group in ours.param_groups} == {
            str(group[key]) for group in theirs.param_groups
        }


def test_decay_goes_by_shape_where_the_trainer_goes_by_name(tmp_path: Path) -> None:
    """The one place where the groups differ: a vector that is not called norm or bias."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.ones(4))

    model = Scaled()
    ours = build_optimizer(model, learning_rate=RATE, head_learning_rate=RATE, weight_decay=DECAY)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), weight_decay=DECAY, use_cpu=True, report_to=[], disable_tqdm=True
    )
    theirs = Trainer(model=model, args=arguments).create_optimizer()
    assert decayed(ours, model) == {"linear.weight"}
    assert decayed(theirs, model) == {"linear.weight", "scale"}
