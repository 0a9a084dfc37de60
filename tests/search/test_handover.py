"""The last fit of a search goes on from what a trial trained, and ends as if it had trained by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from fake_search import recipe_with, rehearsal_of
from gptailor.errors import RecipeError, RunError
from gptailor.models.approach import Adapted
from gptailor.pipeline import handover, training
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.handover import TRAININGS, Ended, Handover, key_of
from gptailor.pipeline.place import Listener, Progress
from gptailor.recipe import Recipe, TuneSettings, build_recipe, load_recipe
from gptailor.search.study import Study
from gptailor.search.trials import Search, run_trials
from gptailor.search.tune import tune_recipe
from gptailor.train.checkpoint import file_hash


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("handover")
    tiny.build_base(folder / "base")
    tiny.write_news(folder / "news.csv", rows=300)
    rows = [f"name {n},the {n} in town is a nice place to eat" for n in range(240)]
    (folder / "pairs.csv").write_text("prompt,completion\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (folder / "rows.txt").write_text(
        "\n".join(f"the cup final in town {n} was a nice goal" for n in range(300)), encoding="utf-8"
    )
    return folder


DATA: dict[str, dict[str, Any]] = {
    "classification": {"train": "news.csv"},
    "completion": {"train": "pairs.csv", "max_new_tokens": 4},
    "language": {"train": "rows.txt", "max_tokens": 32},
}


def recipe_of(place: Path, out: str, *, task: str, approach: str, **train: Any) -> Recipe:
    data = DATA[task]
    return build_recipe(
        {
            "data": {**data, "train": str(place / data["train"])},
            "task": task,
            "base": str(place / "base"),
            "approach": approach,
            "train": {"length": "40 steps", "learning_rate": 1e-7, **train},
            "evaluate": {"baselines": "none", "resamples": 100},
            "trackers": ["tensorboard"],
            "tune": {"space": {"train.learning_rate": [0.01]}, "trials": 2, "finalists": 1, "seeds": 2},
            "out": str(place / out),
        }
    )


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """The peak rate and the first step of each training of a fit."""
    found: list[tuple[float, int]] = []
    steps_of = training.steps_of

    def noted(*given: Any, plan: Any, steps: range, **settings: Any) -> Iterator[Any]:
        if steps:
            found.append((plan.learning_rate, steps.start))
        return steps_of(*given, plan=plan, steps=steps, **settings)

    monkeypatch.setattr(training, "steps_of", noted)
    return found


@pytest.mark.parametrize(
    ("task", "approach", "train", "trainings"),
    [
        ("classification", "full", {"head_learning_rate": 1e-7}, 2),  # of both, a refit
        ("classification", "lora", {"refit": False, "learning_rate": "find"}, 0),
        ("classification", "auto", {"minutes": 60.0, "head_learning_rate": 0.01}, None),
        ("completion", "full", {}, 0),
        ("language", "full", {"patience": 0}, 0),
    ],
)
def test_the_last_fit_ends_as_if_it_had_trained_by_itself(
    task: str,
    approach: str,
    train: dict[str, Any],
    trainings: int | None,
    place: Path,
    tmp_path: Path,
    stepped: list[tuple[float, int]],
) -> None:
    said: list[str] = []
    recipe = recipe_of(place, f"{task}-{approach}", task=task, approach=approach, **train)
    run = tune_recipe(recipe, listener=Listener(say=said.append)).run
    assert not (run.folder / "tune" / TRAININGS).exists(), "what nobody needs any more was left"
    assert "it was trained to its end before" in said
    assert trainings is None or len(stepped) == trainings
    before = len(stepped)

    winner = load_recipe(run.folder / "request.yaml")
    again = fit_recipe(winner.model_copy(update={"out": str(tmp_path / "again"), "tune": TuneSettings()}))
    assert len(stepped) > before
    files = ("model/model.safetensors", "predictions.csv")
    for name in files:
        if (again.folder / name).exists():
            assert file_hash(run.folder / name) == file_hash(again.folder / name), name
    assert (again.folder / files[0]).exists()
    assert untimed(run.folder / "metrics.jsonl") == untimed(again.folder / "metrics.jsonl")
    ours, theirs = run.report["training"], again.report["training"]
    for name in ("steps", "best_step", "stopped", "curves"):
        assert ours.get(name) == theirs.get(name), name
    assert ours["seconds"] > 0
    assert (run.folder / "tracking" / "tensorboard").exists()
    for name in ("micro_batch_size", "precision", "workers", "compiled"):
        environments = [
            json.loads((folder / "environment.json").read_text(encoding="utf-8"))
            for folder in (run.folder, again.folder)
        ]
        assert environments[0][name] == environments[1][name]


def untimed(log: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def leave_one(search: Path, recipe: Recipe, value: float = 1.0) -> list[str]:
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, value)
    adapted = Adapted(plain=model, trained=model, head=model)  # type: ignore[arg-type]
    ended = Ended(Progress(best_step=2, score=0.5, stopped="early"), [{"kind": "step", "step": 1}], {"a": 1})
    said: list[str] = []
    Handover(search).leave({"threads": 2}, "1234", said.append, recipe, adapted, ended)
    return said


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_training_that_was_half_moved_is_moved_whole_the_next_time(
    moved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, run, recipe = tmp_path / "tune", tmp_path / "run", recipe_with()
    search.mkdir()
    run.mkdir()
    leave_one(search, recipe)
    replace, count = Path.replace, 0

    def fails(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count > moved:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails)
        with pytest.raises(KeyboardInterrupt):
            Handover(search).take(recipe, run)
    Handover(search).take(recipe, run)
    assert (run / "metrics.jsonl").read_text(encoding="utf-8") == '{"kind": "step", "step": 1}\n'
    assert json.loads((run / "environment.json").read_text(encoding="utf-8")) == {
        "threads": 2,
        "a": 1,
        "data_hash": "1234",
    }
    assert (run / "checkpoints" / "step-000002" / "weights.safetensors").exists()


def test_a_run_that_trains_already_stays_as_it_is(tmp_path: Path) -> None:
    search, run, recipe = tmp_path / "tune", tmp_path / "run", recipe_with()
    search.mkdir()
    leave_one(search, recipe)
    (run / "checkpoints" / "step-000009").mkdir(parents=True)
    (run / "checkpoints" / "step-000009" / "manifest.json").touch()
    Handover(search).take(recipe, run)
    assert [path.name for path in run.iterdir()] == ["checkpoints"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000009"]


def test_a_run_that_was_killed_before_its_first_checkpoint_takes_one_over(tmp_path: Path) -> None:
    search, run, recipe = tmp_path / "tune", tmp_path / "run", recipe_with()
    search.mkdir()
    leave_one(search, recipe)
    (run / "checkpoints" / ".partial-000001-7").mkdir(parents=True)
    Handover(search).take(recipe, run)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"]


def test_other_settings_take_nothing_over(tmp_path: Path) -> None:
    search, run = tmp_path / "tune", tmp_path / "run"
    search.mkdir()
    run.mkdir()
    leave_one(search, recipe_with())
    Handover(search).take(recipe_with(seed=7), run)
    assert not list(run.iterdir())


def test_a_trial_that_is_tried_again_leaves_its_training_once(tmp_path: Path) -> None:
    recipe = recipe_with()
    for value in (1.0, 2.0):
        leave_one(tmp_path, recipe, value)
    (kept,) = (tmp_path / TRAININGS).iterdir()
    weights = handover_weights(kept)
    assert float(weights["weight"][0, 0]) == 2.0


def handover_weights(kept: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(kept / "checkpoints" / "step-000002" / "weights.safetensors")


def test_a_full_disk_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gptailor.train.checkpoint.save_file", full)
    (told,) = leave_one(tmp_path, recipe_with())
    assert "isn't kept for the last fit" in told
    assert "No space left" in told
    assert not list((tmp_path / TRAININGS).iterdir())


def test_what_dead_processes_left_is_swept(tmp_path: Path) -> None:
    leave_one(tmp_path, recipe_with())
    for name in (".gone-abc.999999999", ".abc.999999999", f".abc.{os.getpid()}"):
        (tmp_path / TRAININGS / name).mkdir()
    Handover(tmp_path).sweep()
    left = {path.name for path in (tmp_path / TRAININGS).iterdir()}
    assert left == {key_of(recipe_with()), f".abc.{os.getpid()}"}


def test_all_but_some_are_forgotten_at_once(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        leave_one(tmp_path, recipe_with(seed=seed))
    Handover(tmp_path).clear(but=[recipe_with(seed=2)])
    assert [path.name for path in (tmp_path / TRAININGS).iterdir()] == [key_of(recipe_with(seed=2))]
    Handover(tmp_path).drop(recipe_with(seed=2))
    assert not list((tmp_path / TRAININGS).iterdir())
    Handover(tmp_path).clear()
    assert not (tmp_path / TRAININGS).exists()


@pytest.mark.parametrize("task", ["classification", "language"])
def test_data_that_changed_after_the_trials_are_refused(task: str, place: Path, tmp_path: Path) -> None:
    """The rows of the new split may have taught what was trained before."""
    original = place / str(DATA[task]["train"])
    file = tmp_path / original.name
    file.write_bytes(original.read_bytes())
    recipe = recipe_of(place, f"changed-{task}", task=task, approach="full")
    data = recipe.data.model_copy(update={"train": str(file)})
    recipe = recipe.model_copy(update={"data": data, "out": str(tmp_path / "run")})

    def change(line: str) -> None:
        if line.startswith("fitting the "):
            file.write_bytes(original.read_bytes() + original.read_bytes().splitlines()[-1] + b"\n")

    with pytest.raises(RunError, match="the data files changed"):
        tune_recipe(recipe, listener=Listener(say=change))
    file.write_bytes(original.read_bytes())
    assert tune_recipe(recipe).run.is_finished


def test_a_start_that_was_refused_leaves_the_next_nothing_to_trust(place: Path, tmp_path: Path) -> None:
    recipe = recipe_of(place, "unused", task="language", approach="full")
    recipe = recipe.model_copy(update={"out": str(tmp_path / "run")})
    one = recipe.model_copy(update={"tune": recipe.tune.model_copy(update={"seeds": 1})})
    with pytest.raises(RecipeError, match="one repeat can't win"):
        tune_recipe(one)
    work = tmp_path / "run" / "tune"
    left = [work / "environment.json", work / "data" / "tokens" / "train" / "tokens.bin"]
    assert all(path.exists() for path in left)
    for path in left:
        path.write_bytes(b"of settings that were mended since")
    seen: list[bool] = []

    def look(line: str) -> None:
        if line.startswith("searching"):
            seen.extend(path.read_bytes().startswith(b"of settings") for path in left)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_recipe(recipe, listener=Listener(say=look))
    assert seen == [False, False]


def test_where_it_lies_and_what_was_searched_change_no_key() -> None:
    recipe = recipe_with()
    moved = recipe.model_copy(update={"out": "elsewhere", "tune": TuneSettings(trials=3)})
    assert key_of(moved) == key_of(recipe)
    assert key_of(recipe_with(seed=7)) != key_of(recipe)


def test_only_finalists_and_the_recipes_own_are_kept(tmp_path: Path) -> None:
    rates = [1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5]
    recipe = recipe_with(
        tune={"space": {"train.learning_rate": rates}, "trials": 6, "finalists": 2, "pruner": "none"},
        train={"learning_rate": 2.5e-5},
        approach="full",
    )
    dropped: list[float | str | None] = []
    rehearsal = rehearsal_of(lambda tried: float(tried.train.learning_rate or 0))
    from gptailor.search.space import build_space

    search = Search(
        recipe,
        build_space(recipe, rehearsal),
        rehearsal,
        Study(f"sqlite:///{tmp_path / 'trials.sqlite3'}", name="study", pruner="none", seed=0),
        lambda _: None,
        drop=lambda tried: dropped.append(tried.train.learning_rate),
    )
    trials = run_trials(search)
    tried = {search.recipe_of(one).train.learning_rate for one in trials if one.same_as is None}
    best = sorted((rate for rate in tried if isinstance(rate, float)), reverse=True)[:2]
    assert set(dropped) == tried - {*best, 2.5e-5}
    assert handover.TRAININGS == "trainings"
