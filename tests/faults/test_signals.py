"""SIGTERM and SIGINT: the state is saved, the process leaves with 130, the run goes on to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import tiny
from gptailor import cli
from gptailor.errors import Interrupted
from gptailor.launch import StopRequest, catch_signals
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.place import Listener
from gptailor.recipe import Recipe, build_recipe
from gptailor.train.checkpoint import faults, file_hash, newest_verified

KILLS = Path(__file__).parents[2] / "benchmarks" / "kills.py"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
each_signal = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    tiny.build_base(folder / "base")
    tiny.write_news(folder / "news.csv", rows=300)
    return folder


def recipe_for(place: Path, name: str, approach: str = "full") -> Recipe:
    return build_recipe(
        {
            "data": {"train": str(place / "news.csv")},
            "base": str(place / "base"),
            "approach": approach,
            "train": {"length": "14 steps", "save_every": "5 steps", "validations_per_epoch": 2},
            "evaluate": {"baselines": "none", "resamples": 100},
            "out": str(place / name),
        }
    )


@pytest.fixture(scope="module")
def alone(place: Path) -> str:
    """The weights of a run that nobody stopped."""
    return weights(fit_recipe(recipe_for(place, "alone")).folder)


def weights(run: Path) -> str:
    return file_hash(run / "model" / "model.safetensors")


def strike(number: signal.Signals, step: int) -> Callable[[Mapping[str, Any]], None]:
    """Sends this process a signal once a step was logged."""

    def show(line: Mapping[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == step:
            os.kill(os.getpid(), number)

    return show


@each_signal
@pytest.mark.parametrize("step", [1, 6, 10, 14])
def test_a_signal_saves_this_very_step_and_the_run_goes_on_to_the_same_weights(
    place: Path, alone: str, number: signal.Signals, step: int
) -> None:
    """Steps between saves, at a save (10) and at the end of training (14)."""
    recipe = recipe_for(place, f"{number.name}-{step}")
    if step < 14:
        with pytest.raises(Interrupted, match=f"stopped by {number.name} at step {step} of 14") as caught:
            fit_recipe(recipe, listener=Listener(show=strike(number, step)))
        assert "Run the same command again" in str(caught.value.fix)
    else:
        with pytest.raises((Interrupted, KeyboardInterrupt)):
            fit_recipe(recipe, listener=Listener(show=strike(number, step)))
    newest, passed_over = newest_verified(Path(str(recipe.out)) / "checkpoints")
    assert newest is not None
    assert (newest.step, passed_over) == (step, [])
    assert not (Path(str(recipe.out)) / "report.json").exists()
    said: list[str] = []
    run = fit_recipe(recipe, listener=Listener(say=said.append))
    assert (f"going on after step {step}" if step < 14 else "it was trained to its end before") in said
    assert weights(run.folder) == alone


@pytest.mark.parametrize("words", ["reading", "opening the sealed test set"])
def test_a_signal_where_nothing_trains_leaves_at_once_and_loses_nothing(
    place: Path, alone: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def say(line: str) -> None:
        if line.startswith(words):
            os.kill(os.getpid(), signal.SIGTERM)

    recipe = recipe_for(place, f"idle-{words.split()[0]}")
    with pytest.raises(KeyboardInterrupt):
        fit_recipe(recipe, listener=Listener(say=say))
    assert "SIGTERM: leaving. The same command goes on from there." in capfd.readouterr().err
    assert weights(fit_recipe(recipe).folder) == alone


def test_a_signal_while_the_head_of_frozen_features_is_fitted_leaves_at_once(place: Path) -> None:
    def say(line: str) -> None:
        if "fitting the head" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        fit_recipe(recipe_for(place, "frozen", "frozen"), listener=Listener(say=say))
    assert fit_recipe(recipe_for(place, "frozen", "frozen")).report["approach"] == "frozen"


@each_signal
def test_the_command_line_leaves_with_130_and_no_traceback(
    place: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        fit_recipe(recipe_for(place, f"words-{number.name}"), listener=Listener(show=strike(number, 3)))

    monkeypatch.setattr("gptailor.pipeline.fit.fit_recipe", stopped)
    monkeypatch.setattr(sys, "argv", ["gptailor", "fit", "news.csv", "--base", "base"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 130
    told = " ".join(capfd.readouterr().err.split())
    assert f"{number.name}: saving, then leaving. Once more leaves at once." in told
    assert "at step 3 of 14; the state is saved. Run the same command again to go on." in told
    assert "Traceback" not in told


def test_the_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with catch_signals() as stop:
        assert [signal.getsignal(number) for number in SIGNALS] == [stop, stop]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_signal_leaves_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    stop = StopRequest()

    def twice() -> None:
        with stop.deferred():
            stop(signal.SIGINT, None)
            assert stop.name == "SIGINT"
            assert left == []
            stop(signal.SIGTERM, None)
            assert left == [130]

    with pytest.raises(KeyboardInterrupt):  # nobody acted on it inside
        twice()


def test_a_signal_may_come_while_somebody_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffered stream refuses to be entered twice, so the handler writes past it."""

    class Busy:
        def write(self, _: str) -> int:
            raise RuntimeError("reentrant call")

        flush = write

    monkeypatch.setattr(sys, "stderr", Busy())
    with pytest.raises(KeyboardInterrupt):
        StopRequest()(signal.SIGTERM, None)


@pytest.mark.slow
def test_real_processes_leave_in_time_whatever_they_write(tmp_path: Path) -> None:
    """Of four signals two meet a slow disk and are followed by a second one inside the write."""
    words = [sys.executable, str(KILLS), "--kills", "0", "--signals", "4", "--results", str(tmp_path)]
    subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=280)
    (path,) = tmp_path.iterdir()
    found = json.loads(path.read_text())["interrupts"]
    assert found["signals"] == found["left_with_130"] == found["identical"] == 4
    assert found["saved"] >= 2, "where one signal came, its step is committed"
    assert found["second_signals"] == 2
    assert found["torn"] == 0
    assert found["seconds_to_leave"] < 10
    assert found["seconds_to_leave_at_once"] < 1.5


def test_nothing_is_torn(place: Path, alone: str) -> None:
    """Looks at all that the tests above left."""
    checkpoints = [path for path in place.rglob("step-*") if path.is_dir()]
    assert checkpoints
    assert [fault for path in checkpoints for fault in faults(path)] == []
