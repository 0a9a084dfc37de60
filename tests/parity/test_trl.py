"""Our objectives against TRL's trainers: the same losses, step by step, and the same weights at the end.

TRL gets the texts and makes its own tokens of them, so what is learned of a row is compared too: the answer
and its end token, nothing of the prompt. Both see the same rows in the same order, fp32, no dropout, a
constant rate.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import tiny_texts as texts
from gptailor.data.batch import Order, StepRows
from gptailor.models.approach import Adapted
from gptailor.pipeline.causal import adapt_causal
from gptailor.pipeline.objective import Objective
from gptailor.pipeline.place import Listener
from gptailor.pipeline.texts.objective import answer_objective, preference_objective
from gptailor.pipeline.texts.shop import TextShop, open_text_shop
from gptailor.recipe import FullApproach, Recipe
from gptailor.train.loop import training_steps
from gptailor.train.optimize import build_optimizer, rate_factor
from gptailor.types import StepResult

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    datasets = pytest.importorskip("datasets", reason="TRL needs datasets")
    trl = pytest.importorskip("trl", reason="TRL is not installed (pip install trl)")

# TRL itself says "gradient_checkpointing", a name that transformers is retiring.
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")
STEPS = 10
BATCH_SIZE = 8
DECAY = 0.01
CLIP = 1.0
BAR = 1e-4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_bases: dict[str, Path]) -> texts.Place:
    return texts.Place(tmp_path_factory.mktemp("trl"), tiny_bases)


def open_shop(place: texts.Place, name: str, rows: list[Any], **settings: Any) -> tuple[Recipe, TextShop]:
    file = texts.write_jsonl(place.folder / f"{name}.jsonl", rows)
    data = {"train": file, "split": {"validation": 0.125, "test": 0.25}}
    recipe = place.recipe(name, data=data, base="llama", dropout=0.0, **settings)
    (place.folder / name).mkdir(exist_ok=True)
    shop = open_text_shop(recipe, place.folder / name, Listener())
    assert len(shop.tokens.rows["train"]) == 5 * BATCH_SIZE, "TRL knows no short batch in the middle"
    return recipe, shop


def adapted_to(recipe: Recipe, shop: TextShop) -> Adapted:
    return adapt_causal(recipe, shop.base, shop.text.tokenizer, FullApproach(), device="cpu")


def their_tokenizer(place: texts.Place) -> Any:
    """The base's own, which takes `</s>` at the end of a text for the token."""
    return AutoTokenizer.from_pretrained(place.bases["llama"])


def order_of(objective: Objective) -> list[list[int]]:
    rows = StepRows(Order(objective.lengths, BATCH_SIZE, seed=0))
    return [rows(step).tolist() for step in range(1, STEPS + 1)]


def our_steps(
    adapted: Adapted, objective: Objective, *, rate: float, micro_batch: int
) -> Iterator[StepResult]:
    """As `pipeline.training` does it."""
    order = order_of(objective)
    optimizer = build_optimizer(
        adapted.trained, learning_rate=rate, head_learning_rate=rate, weight_decay=DECAY
    )
    return training_steps(
        adapted.trained,
        optimizer,
        batches=lambda step: [
            objective.batch(order[step - 1][start : start + micro_batch])
            for start in range(0, BATCH_SIZE, micro_batch)
        ],
        loss=objective.loss,
        rate=partial(rate_factor, total=STEPS, schedule="constant", warmup=0.0),
        steps=range(1, STEPS + 1),
        clip=CLIP,
    )


def arguments_for(folder: Path, *, rate: float, micro_batch: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": BATCH_SIZE // micro_batch,
        "learning_rate": rate,
        "lr_scheduler_type": "constant",
        "weight_decay": DECAY,
        "max_grad_norm": CLIP,
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": None,
    }


def their_steps(trainer_class: Any, **given: Any) -> list[dict[str, float]]:
    class InOrder(trainer_class):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    trainer = InOrder(**given)
    trainer.train()
    return [line for line in trainer.state.log_history if "grad_norm" in line]


def assert_same_road(
    ours: list[StepResult], theirs: list[dict[str, float]], adapted: Adapted, other: Any
) -> None:
    assert [line["step"] for line in theirs] == [result.step for result in ours] == [*range(1, STEPS + 1)]
    np.testing.assert_allclose([r.loss for r in ours], [line["loss"] for line in theirs], atol=BAR)
    np.testing.assert_allclose(
        [r.grad_norm for r in ours], [line["grad_norm"] for line in theirs], rtol=1e-3, atol=BAR
    )
    expected = dict(other.named_parameters())
    for name, weight in adapted.plain.named_parameters():
        assert (weight - expected[name]).abs().max() < BAR, name


@pytest.mark.parametrize("micro_batch", [8, 2])
def test_answers_are_learned_as_by_trls_sft_trainer(
    place: texts.Place, tmp_path: Path, micro_batch: int
) -> None:
    rows = [{**row, "completion": row["completion"] * (1 + n % 3)} for n, row in enumerate(texts.pairs(64))]
    recipe, shop = open_shop(place, f"sft-{micro_batch}", rows, task="completion")
    adapted = adapted_to(recipe, shop)
    theirs = copy.deepcopy(adapted.plain)
    objective = answer_objective(shop, adapted)
    train = [row.row for row in shop.tokens.rows["train"]]
    in_order = [train[row] for step in order_of(objective) for row in step]
    log = their_steps(
        trl.SFTTrainer,
        model=theirs,
        args=trl.SFTConfig(
            **arguments_for(tmp_path, rate=1e-2, micro_batch=micro_batch), completion_only_loss=True
        ),
        train_dataset=datasets.Dataset.from_list(
            [{"prompt": row.asked, "completion": row.references[0]} for row in in_order]
        ),
        processing_class=their_tokenizer(place),
    )
    ours = list(our_steps(adapted, objective, rate=1e-2, micro_batch=micro_batch))
    assert_same_road(ours, log, adapted, theirs)
    assert ours[-1].loss < ours[0].loss - 0.2, "else there was nothing to compare"
    assert len({result.num_targets for result in ours}) > 1, "rows of several lengths"


@pytest.mark.parametrize(("loss", "micro_batch"), [("dpo", 8), ("dpo", 2), ("ipo", 4)])
def test_preferences_are_learned_as_by_trls_dpo_trainer(
    place: texts.Place, tmp_path: Path, loss: str, micro_batch: int
) -> None:
    name, rate = f"{loss}-{micro_batch}", 3e-3
    rows = texts.preferences(64)
    recipe, shop = open_shop(place, name, list(rows), task="preference", preference={"loss": loss})
    adapted = adapted_to(recipe, shop)
    theirs, reference = copy.deepcopy(adapted.plain), copy.deepcopy(adapted.plain)
    objective = preference_objective(shop, adapted, tmp_path)
    train = [row.row for row in shop.tokens.rows["train"]]
    in_order = [train[row] for step in order_of(objective) for row in step]
    tokenizer = their_tokenizer(place)
    tokenizer.chat_template = shop.form.template.source  # type: ignore[union-attr]
    log = their_steps(
        trl.DPOTrainer,
        model=theirs,
        ref_model=reference,
        args=trl.DPOConfig(
            **arguments_for(tmp_path, rate=rate, micro_batch=micro_batch),
            loss_type=["sigmoid" if loss == "dpo" else loss],
            beta=0.1,
        ),
        train_dataset=datasets.Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": row.asked}],
                    "chosen": [{"role": "assistant", "content": row.references[0]}],
                    "rejected": [{"role": "assistant", "content": row.references[1]}],
                }
                for row in in_order
            ]
        ),
        processing_class=tokenizer,
    )
    ours = list(our_steps(adapted, objective, rate=rate, micro_batch=micro_batch))
    assert_same_road(ours, log, adapted, theirs)
    assert ours[-1].loss < 0.95 * ours[0].loss, "else there was nothing to compare"
