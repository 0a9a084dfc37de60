"""Answers and preferences: however a step's rows lie in batches, its loss and gradients are the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tiny
import tiny_texts as texts
from gptailor.errors import Interrupted
from gptailor.launch import StopRequest
from gptailor.models.approach import Adapted
from gptailor.pipeline.causal import adapt_causal
from gptailor.pipeline.objective import Objective
from gptailor.pipeline.place import Listener
from gptailor.pipeline.texts import objective as objectives
from gptailor.pipeline.texts.objective import answer_objective, log_likelihoods, preference_objective
from gptailor.pipeline.texts.shop import TextShop, open_text_shop
from gptailor.recipe import FullApproach, Recipe
from gptailor.train.loop import accumulate
from gptailor.types import TokenizedExample

ROWS = 8  # of a step
LOSSES = ("dpo", "ipo", "simpo")
Step = tuple[float, dict[str, Tensor]]


def bar(family: str) -> float:
    """transformers computes GPT-Neo's attention in fp32, whatever the weights are."""
    return 1e-6 if family == "gpt_neo" else 1e-10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_bases: dict[str, Path]) -> texts.Place:
    return texts.Place(tmp_path_factory.mktemp("batches"), tiny_bases)


def open_shop(place: texts.Place, name: str, rows: Sequence[Any], **settings: Any) -> tuple[Recipe, TextShop]:
    file = texts.write_jsonl(place.folder / f"{name}.jsonl", rows)
    recipe = place.recipe(name, data={"train": file}, dropout=0.0, **settings)
    run = place.folder / name
    run.mkdir(exist_ok=True)
    return recipe, open_text_shop(recipe, run, Listener())


def adapted_to(recipe: Recipe, shop: TextShop) -> Adapted:
    """The base with attention that cares, in float64."""
    adapted = adapt_causal(recipe, shop.base, shop.text.tokenizer, FullApproach(), device="cpu")
    with torch.no_grad():
        for name, weight in adapted.plain.named_parameters():
            if weight.ndim == 2 and "emb" not in name and "wte" not in name and "wpe" not in name:
                weight.mul_(5)
    adapted.plain.double()  # type: ignore[no-untyped-call]
    return adapted


def step_of(adapted: Adapted, objective: Objective, rows: list[int], micro_batch: int) -> Step:
    adapted.plain.zero_grad()
    batches = [
        objective.batch(rows[start : start + micro_batch]) for start in range(0, len(rows), micro_batch)
    ]
    total = accumulate(batches, objective.loss, weights=list(adapted.plain.parameters()))
    named = adapted.plain.named_parameters()
    return total.item(), {name: p.grad.clone() for name, p in named if p.grad is not None}


def assert_same(one: Step, other: Step, tolerance: float) -> None:
    """Relative to each tensor's own largest value; one that is all rounding is measured against 1e-3."""
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        scale = max(other[1][name].abs().max().item(), 1e-3)
        assert (gradient - other[1][name]).abs().max().item() <= tolerance * scale, name


def by_hand(model: Any, one: TokenizedExample) -> Tensor:
    """The log-likelihoods of a sequence's learned tokens, by transformers alone."""
    ids = torch.from_numpy(one.token_ids.astype(np.int64))
    table = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
    chosen: Tensor = table.gather(1, ids[1:, None])[:, 0][torch.from_numpy(one.learn[1:])]
    return chosen


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_packed_is_padded_is_one_by_one(
    place: texts.Place, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conversations of one and two answers, so that what is learned lies at several places of a row."""
    recipe, shop = open_shop(place, f"chat-{family}", texts.chats(60), task="chat", base=family)
    adapted = adapted_to(recipe, shop)
    objective = answer_objective(shop, adapted)
    rows = list(range(ROWS))
    found: dict[str, Step] = {}
    for name, least in (("packed", 1.0), ("padded", 0.0)):
        monkeypatch.setattr(objectives, "LEAST_SAVED", least)
        batch = objective.batch(rows)
        assert (batch.positions is not None) is (name == "packed")
        assert (len(batch.input_ids) < ROWS) is (name == "packed")
        found[name] = step_of(adapted, objective, rows, ROWS)
        for micro_batch in (1, 3, 4):
            found[f"{name} by {micro_batch}"] = step_of(adapted, objective, rows, micro_batch)
    for step in found.values():
        assert_same(step, found["padded by 1"], bar(family))
    sequences = [one for row in shop.tokens.rows["train"] for one in row.sequences][:ROWS]
    nats = torch.cat([-by_hand(adapted.plain, one) for one in sequences])
    assert found["packed"][0] == pytest.approx(nats.mean().item(), rel=1e-6 if family == "gpt_neo" else 1e-9)


def test_the_control_packing_that_mixes_rows_would_be_seen(
    place: texts.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, shop = open_shop(place, "control", texts.chats(60), task="chat")
    adapted = adapted_to(recipe, shop)
    objective = answer_objective(shop, adapted)
    monkeypatch.setattr(objectives, "LEAST_SAVED", 1.0)
    alone, _ = step_of(adapted, objective, list(range(ROWS)), 1)
    plain = objectives.collate_texts

    def mixed(rows: Any) -> Any:
        return objectives.replace(plain(rows), positions=None)

    monkeypatch.setattr(objectives, "collate_texts", mixed)
    together, _ = step_of(adapted, objective, list(range(ROWS)), ROWS)
    assert abs(together / alone - 1) > 1e-4


def test_rows_are_packed_only_where_that_saves_enough() -> None:
    def example(size: int) -> TokenizedExample:
        return TokenizedExample(np.ones(size, np.int32), np.ones(size, np.bool_), "f", size)

    assert [len(row) for row in objectives.packed([example(9), example(8), example(7)])] == [1, 1, 1]
    found = objectives.packed([example(20), example(9), example(8), example(3)])
    assert sorted(one.row for row in found for one in row) == [3, 8, 9, 20]
    assert len(found) == 2


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_preference_step_is_the_mean_over_its_pairs_however_it_is_cut(
    place: texts.Place, tmp_path: Path, family: str, loss: str
) -> None:
    name = f"preference-{family}-{loss}"
    settings = {"task": "preference", "base": family, "preference": {"loss": loss}}
    recipe, shop = open_shop(place, name, texts.preferences(60), **settings)
    adapted = adapted_to(recipe, shop)
    objective = preference_objective(shop, adapted, tmp_path)
    with torch.no_grad():  # so that the reference isn't what it is compared with
        for number, weight in enumerate(adapted.plain.parameters()):
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    rows = list(range(ROWS))
    whole = step_of(adapted, objective, rows, ROWS)
    for micro_batch in (1, 2, 3, 4):
        assert_same(step_of(adapted, objective, rows, micro_batch), whole, 1e-10)
    sums = np.zeros((ROWS, 2))
    counts = np.zeros((ROWS, 2))
    for place_, row in enumerate(shop.tokens.rows["train"][:ROWS]):
        for side, one in enumerate(row.sequences):
            nats = by_hand(adapted.plain, one)
            sums[place_, side], counts[place_, side] = nats.sum().item(), len(nats)
    if loss != "simpo":
        sums -= np.load(tmp_path / "train.fp32.npy")[:ROWS]
    gap = torch.from_numpy((sums if loss == "dpo" else sums / counts) @ [1.0, -1.0])
    expected = {
        "dpo": -functional.logsigmoid(0.1 * gap),
        "ipo": (gap - 5) ** 2,
        "simpo": -functional.logsigmoid(2 * gap - 1),
    }[loss]
    assert expected.std() > 1e-4
    assert whole[0] == pytest.approx(expected.mean().item(), rel=1e-5), "the reference is kept in fp32"
    assert objective.batch(rows[:2]).num_targets == 2, "pairs, not tokens"


def test_the_reference_is_the_bases_own_and_made_once(
    place: texts.Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, shop = open_shop(place, "reference", texts.preferences(60), task="preference")
    adapted = adapted_to(recipe, shop)
    preference_objective(shop, adapted, tmp_path)
    rows = shop.tokens.rows["train"]
    kept = np.load(tmp_path / "train.fp32.npy")
    expected = [[by_hand(adapted.plain, one).sum().item() for one in row.sequences] for row in rows]
    np.testing.assert_allclose(kept, expected, rtol=1e-10)
    np.testing.assert_allclose(log_likelihoods(adapted, rows[3:4]), kept[3:4], rtol=1e-10)
    assert len(np.load(tmp_path / "validation.fp32.npy")) == len(shop.tokens.rows["validation"])
    monkeypatch.setattr(objectives, "log_likelihoods", lambda *_: pytest.fail("made again"))
    preference_objective(shop, adapted, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.fp32.npy", "validation.fp32.npy"]


def test_a_reference_that_is_stopped_goes_on_with_the_same_bits(
    place: texts.Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "REFERRED", 8)
    recipe, shop = open_shop(place, "stopped", texts.preferences(60), task="preference")
    adapted = adapted_to(recipe, shop)
    preference_objective(shop, adapted, tmp_path / "whole")
    stop, asked = StopRequest(), []
    compute = objectives.log_likelihoods

    def counted(adapted: Any, rows: Any, **settings: Any) -> Any:
        asked.append(len(rows))
        stop.name = "SIGINT" if len(asked) == 2 else None
        return compute(adapted, rows, **settings)

    monkeypatch.setattr(objectives, "log_likelihoods", counted)
    with pytest.raises(Interrupted, match="SIGINT"):
        preference_objective(shop, adapted, tmp_path / "stopped", stop=stop)
    stop.name = None
    preference_objective(shop, adapted, tmp_path / "stopped", stop=stop)
    parts = [len(shop.tokens.rows[part]) for part in ("train", "validation")]
    assert sum(asked) == sum(parts), "none twice"
    for name in ("train.fp32.npy", "validation.fp32.npy"):
        whole, again = ((tmp_path / folder / name).read_bytes() for folder in ("whole", "stopped"))
        assert whole == again
    preference_objective(shop, adapted, None)
    assert sum(asked) == sum(parts), "a step is timed without"
