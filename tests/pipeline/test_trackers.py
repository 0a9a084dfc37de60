"""Trackers: what metrics.jsonl gets, the recipe and the scores; never a reason to stop, never a surprise."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gptailor.errors import MissingExtraError, RecipeError
from gptailor.pipeline import trackers
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.place import Listener
from gptailor.pipeline.trackers import OPENERS, TrackedRun, Tracker, final_scores, tracked
from gptailor.recipe import Recipe, build_recipe, differences

SETTINGS = {"train": {"length": "6 steps"}, "evaluate": {"baselines": "none", "resamples": 100}}
STEP = {"kind": "step", "loss": 1.5, "seconds": 0.1}


def recipe_of(data: Path, base: Path, out: Path, *names: str) -> Recipe:
    values = {"data": {"train": str(data)}, "base": str(base), "approach": "full", "out": str(out)}
    return build_recipe({**values, **SETTINGS, "trackers": list(names)})


class Memory:
    """A tracker that remembers; `fails` is the number of the line at which it breaks."""

    def __init__(self, fails: int = 0) -> None:
        self.lines: list[tuple[dict[str, float], int]] = []
        self.last: dict[str, float] | None = None
        self.opened_with: list[str] = []
        self.fails = fails
        self.holds = False

    def open(self, run: TrackedRun) -> Tracker:
        self.opened_with.append(run.id)
        return Tracker("it", self.log, self.close, self.holds)

    def log(self, numbers: Mapping[str, float], step: int, _: float) -> None:
        self.lines.append((dict(numbers), step))
        if len(self.lines) == self.fails:
            raise ConnectionError("the server is gone")

    def close(self, numbers: Mapping[str, float]) -> None:
        self.last = dict(numbers)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    found = Memory()
    monkeypatch.setitem(OPENERS, "wandb", found.open)
    monkeypatch.setattr(trackers, "find_spec", lambda _: True)
    return found


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> types.ModuleType:
    """A module in place of a library."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_a_tracker_gets_the_lines_of_metrics_and_the_scores(
    memory: Memory, news_csv: Path, tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    run = fit_recipe(recipe_of(news_csv, tiny_bases["gpt2"], tmp_path / "run", "wandb"))
    lines = [json.loads(text) for text in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [step for _, step in memory.lines] == [line["step"] for line in lines]
    for (numbers, _), line in zip(memory.lines, lines, strict=True):
        group = {"step": "train"}.get(line["kind"], line["kind"])
        expected = {f"{group}/{key}": value for key, value in line.items() if key not in ("kind", "step")}
        assert numbers == expected
    assert memory.last is not None
    assert memory.last["test/macro_f1"] == run.report["test"]["macro_f1"]["value"]
    assert memory.last["test/macro_f1_low"] <= memory.last["test/macro_f1"]
    assert memory.last["training_seconds"] == run.report["training"]["seconds"]


def test_a_tracker_that_fails_is_told_of_once_and_left_out(
    memory: Memory, news_csv: Path, tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    memory.fails = 2
    told: list[str] = []
    run = fit_recipe(
        recipe_of(news_csv, tiny_bases["gpt2"], tmp_path / "run", "wandb"), listener=Listener(say=told.append)
    )
    training = run.report["training"]
    assert training["steps"] == training["refit_steps"] > 2, "it went on to its end"
    assert len(memory.lines) == 2
    assert memory.last is None
    assert [line for line in told if line.startswith("warning")] == [
        "warning: the tracker wandb failed (the server is gone); the run goes on without it"
    ]


def test_a_tracker_that_cannot_open_is_told_of(memory: Memory, tmp_path: Path) -> None:
    def broken(run: TrackedRun) -> Tracker:
        raise OSError("no room")

    OPENERS["wandb"] = broken  # the fixture puts the old one back
    told: list[str] = []
    (tmp_path / "report.json").write_text("{}")
    with tracked(recipe_of(tmp_path, tmp_path, tmp_path, "wandb"), tmp_path, told.append) as track:
        track({**STEP, "step": 1})
    assert told == ["warning: the tracker wandb failed (no room); the run goes on without it"]
    assert json.loads((tmp_path / "trackers.json").read_text()) == {}


def test_a_resumed_run_goes_on_in_the_same_place_without_repeating_lines(
    memory: Memory, tmp_path: Path
) -> None:
    recipe = recipe_of(tmp_path, tmp_path, tmp_path, "wandb")
    log = tmp_path / "metrics.jsonl"

    def interrupted() -> None:
        with tracked(recipe, tmp_path, print) as track:
            for step in (1, 2, 3):
                track({**STEP, "step": step})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert memory.last == {}
    log.write_text("".join(json.dumps({**STEP, "step": step}) + "\n" for step in (1, 2, 3)) + '{"kind": "st')
    (tmp_path / "report.json").write_text("{}")
    with tracked(recipe, tmp_path, print) as track:  # from the checkpoint at step 1
        for step in (2, 3, 4):
            track({**STEP, "step": step})
    assert [step for _, step in memory.lines] == [1, 2, 3, 4]
    assert memory.opened_with == ["", "it"]


def test_what_a_tracker_held_when_the_run_was_killed_is_sent_again(memory: Memory, tmp_path: Path) -> None:
    """MLflow gets its numbers at validations: what stands in the log behind the last one never went out."""
    recipe = recipe_of(tmp_path, tmp_path, tmp_path, "wandb")
    (tmp_path / "trackers.json").write_text('{"wandb": "it"}')
    (tmp_path / "report.json").write_text("{}")
    lines = [{**STEP, "step": 1}, {**STEP, "step": 2}, {**STEP, "kind": "validation", "step": 2}]
    lines += [{**STEP, "step": 3}, {**STEP, "step": 4}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for holds, sent in ((True, [3, 4, 5]), (False, [5])):
        memory.holds, memory.lines = holds, []
        with tracked(recipe, tmp_path, print) as track:  # from the checkpoint at step 1
            for step in (2, 3, 4, 5):
                track({**STEP, "step": step})
        assert [step for _, step in memory.lines] == sent


@pytest.mark.parametrize("killed", [True, False])
def test_no_line_is_lost_or_sent_twice_wherever_a_run_stops(
    killed: bool, memory: Memory, tmp_path: Path
) -> None:
    """Stopped at step 7 by a signal, which sends what was held, or killed there; resumed from step 5."""
    memory.holds = True
    recipe = recipe_of(tmp_path, tmp_path, tmp_path, "wandb")
    log = tmp_path / "metrics.jsonl"

    def run(*steps: int) -> None:
        with tracked(recipe, tmp_path, print) as track:
            for step in steps:
                lines = [{**STEP, "step": step}]
                lines += [{**STEP, "kind": "validation", "step": step}] if step == 4 else []
                for line in lines:
                    with log.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    track(line)
            if 8 not in steps:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        if killed:
            patch.setattr(trackers.Trackers, "close", lambda *_: None)
            patch.setattr(trackers, "CLOSED", "nowhere")
        with pytest.raises(KeyboardInterrupt):
            run(1, 2, 3, 4, 5, 6, 7)
    assert [step for _, step in memory.lines] == [1, 2, 3, 4, 4, *([] if killed else [5, 6, 7])]
    (tmp_path / "report.json").write_text("{}")
    run(6, 7, 8)
    assert [step for _, step in memory.lines] == [1, 2, 3, 4, 4, 5, 6, 7, 8]


def test_a_tracker_that_came_later_gets_what_it_missed(memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({**STEP, "step": 1}) + "\n")
    (tmp_path / "report.json").write_text("{}")
    with tracked(recipe_of(tmp_path, tmp_path, tmp_path, "wandb"), tmp_path, print) as track:
        track({**STEP, "step": 1})
        track({**STEP, "step": 2})
    assert [step for _, step in memory.lines] == [1, 2]


def test_folds_are_not_tracked_as_the_run(
    memory: Memory, tiny_bases: dict[str, Path], news_csv: Path, tmp_path: Path
) -> None:
    """120 rows are few: five folds train first, each with a log of its own."""
    run = fit_recipe(recipe_of(news_csv, tiny_bases["gpt2"], tmp_path / "run", "wandb"))
    assert list((run.folder / "checkpoints").glob("*/metrics.jsonl")), "no fold had a log: nothing is tested"
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert len(memory.lines) == len(lines)


@pytest.mark.parametrize("name", ["mlflow", "trackio", "wandb"])
def test_a_missing_library_is_said_before_anything_starts(
    name: str, monkeypatch: pytest.MonkeyPatch, news_csv: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=rf"gptailor\[{name}\]"):
        fit_recipe(recipe_of(news_csv, tmp_path, tmp_path / "run", name))
    assert not (tmp_path / "run").exists()


def test_the_names_are_a_closed_list(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="trackers"):
        recipe_of(tmp_path, tmp_path, tmp_path, "tensorbord")
    one, other = (recipe_of(tmp_path, tmp_path, tmp_path, *names) for names in ((), ("wandb",)))
    assert differences(one, other) == []  # a tracker changes no number


def test_final_scores_are_numbers_alone() -> None:
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    report = {"test": {"rows": 9, "accuracy": score, "per_class": {"a": {"f1": score}}}, "training": {}}
    assert final_scores(report) == {"test/accuracy": 0.5, "test/accuracy_low": 0.4, "test/accuracy_high": 0.6}


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = OPENERS["tensorboard"](TrackedRun(tmp_path, recipe_of(tmp_path, tmp_path, tmp_path), ""))
    tracker.log({"train/loss": 1.5}, 1, 100.0)
    tracker.log({"train/loss": 0.5}, 2, 200.0)
    tracker.log({"validation/loss": 0.7}, 2, 300.0)
    found = EventAccumulator(str(tmp_path / "tracking" / "tensorboard"))
    found.Reload()
    assert len(found.Scalars("train/loss")) == 2, "a kill after a validation loses nothing before it"
    tracker.close({"test/accuracy": 0.75})
    found.Reload()
    losses = found.Scalars("train/loss")
    assert [(event.step, event.value) for event in losses] == [(1, 1.5), (2, 0.5)]
    assert [event.wall_time for event in losses] == [100.0, 200.0], "when they were, not when they were sent"
    assert [(event.step, event.value) for event in found.Scalars("test/accuracy")] == [(2, 0.75)]
    assert "recipe/text_summary" in found.Tags()["tensors"]


class Calls(list[tuple[str, Any]]):
    """Remembers how a library was used."""

    def __getattr__(self, name: str) -> Any:
        def call(*values: Any, **named: Any) -> Any:
            self.append((name, (values, named)))
            return types.SimpleNamespace(
                id="abc", info=types.SimpleNamespace(run_id="r1"), experiment_id="e", log=self.log
            )

        if name.startswith("__"):
            raise AttributeError(name)
        return call


def test_wandb_stays_offline_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    calls, summary = Calls(), dict[str, float]()
    ended: list[int] = []
    opened = types.SimpleNamespace(
        id="abc", log=calls.log, summary=summary, finish=lambda exit_code, **_: ended.append(exit_code)
    )
    asked: dict[str, Any] = {}
    fake(monkeypatch, "wandb", init=lambda **named: asked.update(named) or opened, Settings=dict)
    tracker = OPENERS["wandb"](TrackedRun(tmp_path, recipe_of(tmp_path, tmp_path, tmp_path), ""))
    assert (asked["mode"], asked["resume"], asked["config"]["seed"]) == ("offline", None, 0)
    tracker.log({"train/loss": 1.0}, 3, 100.0)
    tracker.close({"test/accuracy": 0.5})
    assert calls == [("log", (({"train/loss": 1.0},), {"step": 3}))]
    assert (summary, ended) == ({"test/accuracy": 0.5}, [0])
    monkeypatch.setenv("WANDB_MODE", "online")
    OPENERS["wandb"](TrackedRun(tmp_path, recipe_of(tmp_path, tmp_path, tmp_path), "abc"))
    assert (asked["mode"], asked["resume"], asked["id"]) == ("online", "allow", "abc")


def test_trackio_goes_on_with_its_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = Calls()
    asked: list[dict[str, Any]] = []
    fake(monkeypatch, "trackio", init=lambda **named: asked.append(named) or calls)
    first = OPENERS["trackio"](TrackedRun(tmp_path, recipe_of(tmp_path, tmp_path, tmp_path), ""))
    OPENERS["trackio"](TrackedRun(tmp_path, recipe_of(tmp_path, tmp_path, tmp_path), first.id))
    assert asked[0]["name"] == asked[1]["name"] == first.id
    assert first.id.startswith(tmp_path.name)
    first.log({"train/loss": 1.0}, 2, 100.0)
    first.close({"test/accuracy": 0.5})
    assert [name for name, _ in calls] == ["log", "log", "finish"]
    assert calls[1][1] == (({"test/accuracy": 0.5},), {"step": 2})


def test_mlflow_gets_numbers_in_few_calls_and_says_nothing_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    calls = Calls()
    fake(monkeypatch, "mlflow", MlflowClient=lambda: calls)
    fake(monkeypatch, "mlflow.entities", Metric=lambda *cells: cells, Param=lambda *cells: cells)
    tracker = OPENERS["mlflow"](TrackedRun(tmp_path, recipe_of(tmp_path, tmp_path, tmp_path), ""))
    assert trackers.os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    calls.clear()
    for step in range(1, 10):
        tracker.log({"train/loss": 1.0}, step, 100.0 + step)
    assert not calls
    tracker.log({"validation/loss": 1.0}, 9, 110.0)
    sent = [values for name, values in calls if name == "log_batch"]
    assert len(sent) == 1
    (_, named) = sent[0]
    times = [metric[2] for metric in named["metrics"]]
    assert times == [1000 * at for at in range(101, 111)], "milliseconds of when they were"
    tracker.close({"test/accuracy": 0.5})
    assert calls[-1] == ("set_terminated", (("r1", "FINISHED"), {}))
