"""Every setting of training changes what is trained: one that is accepted and ignored would be a lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gptailor
import tiny
from crashed import metrics_of
from gptailor.errors import NonFiniteError
from gptailor.pipeline.objective import Validation
from gptailor.pipeline.place import Progress
from gptailor.pipeline.training import judge
from gptailor.recipe import TrainSettings, build_recipe
from gptailor.train.checkpoint import file_hash

BESIDE_THE_WEIGHTS = {
    # How the same numbers are computed, kept or bounded; each has tests of its own.
    "micro_batch_size",
    "precision",
    "gradient_checkpointing",
    "compile",
    "save_every",
    "validations_per_epoch",
    "minutes",
    "patience",
    "refit",
    "length",
}
OTHER: dict[str, dict[str, Any]] = {
    "train.learning_rate": {"train": {"learning_rate": 2e-3}},
    "train.head_learning_rate": {"train": {"head_learning_rate": 2e-3}},
    "train.batch_size": {"train": {"batch_size": 8}},
    "train.schedule": {"train": {"schedule": "constant"}},
    "train.warmup": {"train": {"warmup": 0.5}},
    "train.decay": {"train": {"schedule": "warmup-stable-decay", "decay": 0.9}},
    "train.weight_decay": {"train": {"weight_decay": 0.5}},
    "train.clip": {"train": {"clip": 0.01}},
    "train.dropout": {"train": {"dropout": 0.3}},
    "train.attention_dropout": {"train": {"attention_dropout": 0.3}},
    "train.class_weights": {"train": {"class_weights": "balanced"}},
    "train.label_smoothing": {"train": {"label_smoothing": 0.2}},
    "approach[lora].rank": {"approach": {"kind": "lora", "rank": 2}},
    "approach[lora].alpha": {"approach": {"kind": "lora", "alpha": 64}},
    "approach[lora].dropout": {"approach": {"kind": "lora", "dropout": 0.5}},
    "approach[lora].targets": {"approach": {"kind": "lora", "targets": ["c_fc"]}},
    "seed": {"seed": 1},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of uneven counts; a validation file, so that nothing is folded or fitted again."""
    folder = tmp_path_factory.mktemp("reach")
    tiny.build_base(folder / "base")
    head, *lines = tiny.write_news(folder / "news.csv", rows=340).read_text().splitlines()
    rare = [line for n, line in enumerate(lines[:240]) if not line.endswith("sports") or n % 4 == 0]
    (folder / "train.csv").write_text("\n".join([head, *rare]) + "\n")
    (folder / "validation.csv").write_text("\n".join([head, *lines[240:290]]) + "\n")
    (folder / "test.csv").write_text("\n".join([head, *lines[290:]]) + "\n")
    return folder


def trained(place: Path, name: str, changes: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """The weights of three steps, and what was logged of them."""
    parts = {part: str(place / f"{part}.csv") for part in ("train", "validation", "test")}
    values: dict[str, Any] = {
        "data": parts,
        "base": str(place / "base"),
        "approach": "full",
        "evaluate": {"baselines": "none", "resamples": 100},
        "out": str(place / name),
        **changes,
        "train": {"length": "3 steps", "precision": "fp32", "compile": "off", **changes.get("train", {})},
    }
    run = gptailor.fit(build_recipe(values))
    steps = [line for line in metrics_of(run.folder) if line["kind"] == "step"]
    return file_hash(run.folder / "model" / "model.safetensors"), [line["loss"] for line in steps]


@pytest.fixture(scope="module")
def usual(place: Path) -> dict[str, str]:
    """The weights of the settings as they are, by approach."""
    return {
        "full": trained(place, "usual-full", {})[0],
        "lora": trained(place, "usual-lora", {"approach": "lora"})[0],
        "wsd": trained(place, "usual-wsd", {"train": {"schedule": "warmup-stable-decay"}})[0],
    }


def test_all_settings_of_training_are_tried() -> None:
    tried = {key.removeprefix("train.") for key in OTHER if key.startswith("train.")}
    assert tried | BESIDE_THE_WEIGHTS == set(TrainSettings.model_fields)
    assert not tried & BESIDE_THE_WEIGHTS


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by an old name
@pytest.mark.parametrize("key", OTHER)
def test_another_value_trains_other_weights(key: str, place: Path, usual: dict[str, str]) -> None:
    like = "lora" if "lora" in key else "wsd" if key == "train.decay" else "full"
    weights, losses = trained(place, key, OTHER[key])
    assert len(losses) == 3
    assert weights != usual[like]


# When training ends.

PLAN: Any = SimpleNamespace(steps=100, in_time=False)


def judged(scores: list[tuple[float, float]], plan: Any = PLAN, **settings: Any) -> list[Progress]:
    """Progress after each of some validations, ten steps apart, of (loss, score)."""
    found = [Progress()]
    for place, (loss, score) in enumerate(scores, start=1):
        validation = Validation(loss=loss, score=score, shown={})
        wanted = TrainSettings(**settings)
        found.append(judge(found[-1], validation, 10 * place, plan=plan, settings=wanted))
    return found[1:]


def test_training_stops_after_so_many_validations_without_any_gain() -> None:
    """A lower loss is a gain, too; only the score, and of equal ones the loss, chooses the weights."""
    scores = [(1.0, 0.5), (0.9, 0.5), (0.8, 0.4), (0.85, 0.45), (0.9, 0.5), (0.7, 0.6)]
    found = judged(scores, patience=2)
    assert [one.stale for one in found[:5]] == [0, 0, 0, 1, 2]
    assert [one.stopped for one in found[:5]] == ["", "", "", "", "early"]
    assert [one.best_step for one in found[:5]] == [10, 20, 20, 20, 20]
    assert [one.stopped for one in judged(scores, patience=3)] == [""] * 6
    assert [one.stopped for one in judged([(1.0, 0.5)] * 5, patience=0)] == [""] * 5, "0: never"


@pytest.mark.parametrize(("in_time", "told"), [(False, "length"), (True, "time")])
def test_a_training_that_ended_says_why(in_time: bool, told: str) -> None:
    plan: Any = SimpleNamespace(steps=20, in_time=in_time)
    assert [one.stopped for one in judged([(1.0, 0.5), (1.0, 0.5)], plan, patience=1)] == ["", told]


def test_a_validation_loss_that_is_no_number_ends_it() -> None:
    with pytest.raises(NonFiniteError, match="at step 10"):
        judged([(float("nan"), 0.5)])
