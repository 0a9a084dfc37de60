"""A run that was stopped goes on to the very same bits, and says what it can't promise any more."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gptailor
import gptailor.pipeline.plan
import tiny
from crashed import Crash, alike, metrics_of
from gptailor.errors import CheckpointError, ModelError, NonFiniteError, RunError
from gptailor.models.lean import can_compile
from gptailor.pipeline import keep, training
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.place import Listener
from gptailor.pipeline.run import Run
from gptailor.recipe import Recipe, build_recipe
from gptailor.train import checkpoint

STEPS = 24


class Place:
    """A tiny base, tiny data, and runs made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = tiny.build_base(folder / "base")
        self.data = tiny.write_news(folder / "news.csv", rows=300)
        self.said: list[str] = []

    def recipe(self, name: str, *, approach: Any = "full", **train: Any) -> Recipe:
        defaults = {"length": f"{STEPS} steps", "save_every": "3 steps", "patience": 0}
        train = {**defaults, "validations_per_epoch": 2, **train}
        return build_recipe(
            {
                "data": {"train": str(self.data)},
                "base": str(self.base),
                "approach": approach,
                "train": train,
                "evaluate": {"baselines": "none", "resamples": 100},
                "out": str(self.folder / name),
            }
        )

    def fit(self, recipe: Recipe, *, crash_at: int | None = None) -> Run:
        """Fits; with `crash_at` it ends right after that step was logged."""

        def show(line: Mapping[str, Any]) -> None:
            if line["kind"] == "step" and line["step"] == crash_at:
                raise Crash

        self.said = []
        return fit_recipe(recipe, listener=Listener(say=self.said.append, show=show))

    def crash(self, recipe: Recipe, at: int) -> Path:
        with pytest.raises(Crash):
            self.fit(recipe, crash_at=at)
        assert not (Path(str(recipe.out)) / "report.json").exists()
        return Path(str(recipe.out))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def alone(place: Place) -> dict[str, Any]:
    """What a full fine-tune gives that nobody stopped."""
    return results(place.fit(place.recipe("alone")).folder)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is half the time of a tiny fit; what it is good for is tested in tests/faults."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def results(run: Path) -> dict[str, Any]:
    """All that must be equal, bit for bit."""
    newest, _ = checkpoint.newest_verified(run / "checkpoints")
    assert newest is not None
    return {
        "model": checkpoint.file_hash(run / "model" / "model.safetensors"),
        "optimizer": checkpoint.file_hash(newest.path / "optimizer.safetensors"),
        "predictions": (run / "predictions.csv").read_text(encoding="utf-8"),
        "report": alike(json.loads((run / "report.json").read_text(encoding="utf-8"))),
        "metrics": alike(metrics_of(run)),
    }


@pytest.mark.parametrize("at", [1, STEPS])
def test_a_run_that_crashed_ends_as_if_it_had_not(place: Place, alone: dict[str, Any], at: int) -> None:
    recipe = place.recipe(f"crash-{at}")
    place.crash(recipe, at)
    assert results(place.fit(recipe).folder) == alone
    went_on = [line for line in place.said if line.startswith("going on after step")]
    assert went_on == ([] if at == 1 else ["going on after step 21"])


def test_a_run_that_crashed_again_and_again_ends_the_same(place: Place, alone: dict[str, Any]) -> None:
    recipe = place.recipe("often")
    for at in (4, 5, 11, 19):
        place.crash(recipe, at)
    assert results(place.fit(recipe).folder) == alone


@pytest.mark.parametrize("approach", [{"kind": "lora", "rank": 2, "dropout": 0.1}, "scratch", "auto"])
def test_every_approach_that_trains_goes_on_to_the_same_bits(place: Place, approach: Any) -> None:
    name = approach if isinstance(approach, str) else approach["kind"]
    expected = results(place.fit(place.recipe(f"{name}-alone", approach=approach)).folder)
    recipe = place.recipe(name, approach=approach)
    place.crash(recipe, 10)
    assert results(place.fit(recipe).folder) == expected


@pytest.mark.skipif(not can_compile(), reason="no C++ compiler here")
@pytest.mark.filterwarnings("default")  # torch's compiler warns of what it does itself
def test_a_compiled_run_goes_on_to_the_same_bits(place: Place) -> None:
    settings = {"compile": "on", "length": "6 steps"}
    expected = place.fit(place.recipe("compiled-alone", **settings))
    assert json.loads((expected.folder / "environment.json").read_text())["compiled"] is True
    recipe = place.recipe("compiled", **settings)
    place.crash(recipe, 4)
    assert results(place.fit(recipe).folder) == results(expected.folder)


def test_few_rows_whose_folds_are_stopped_end_the_same(place: Place, tmp_path: Path) -> None:
    few = Place(tmp_path)
    few.data = tiny.write_news(tmp_path / "few.csv", rows=60)
    expected = results(few.fit(few.recipe("alone", length="6 steps", save_every="2 steps")).folder)
    recipe, crashes = few.recipe("stopped", length="6 steps", save_every="2 steps"), 0

    def show(line: Mapping[str, Any]) -> None:
        nonlocal calls
        calls += line["kind"] == "step"
        if calls == 9:  # in another fold each time
            raise Crash

    while True:
        calls = 0
        try:
            run = fit_recipe(recipe, listener=Listener(show=show))
            break
        except Crash:
            crashes += 1
    assert crashes >= 3
    assert results(run.folder) == expected


@pytest.mark.parametrize("at", [STEPS + 2, STEPS + 9])
def test_a_refit_that_crashed_ends_as_if_it_had_not(place: Place, alone: dict[str, Any], at: int) -> None:
    recipe, logged = place.recipe(f"refit-{at}"), 0

    def show(line: Mapping[str, Any]) -> None:
        nonlocal logged
        logged += line["kind"] == "step"
        if logged == at:
            raise Crash

    with pytest.raises(Crash):
        fit_recipe(recipe, listener=Listener(show=show))
    refit = Path(str(recipe.out)) / "checkpoints" / "refit"
    assert len(metrics_of(refit)) == at - STEPS, "it wasn't the refit that crashed"
    assert results(place.fit(recipe).folder) == alone


def test_the_control_another_seed_ends_differently(place: Place, alone: dict[str, Any]) -> None:
    other = place.recipe("other").model_copy(update={"seed": 1})
    found = results(place.fit(other).folder)
    assert [key for key in alone if found[key] == alone[key]] == []


def test_the_log_is_cut_back_to_the_commit(place: Place, alone: dict[str, Any]) -> None:
    recipe = place.recipe("log")
    run = place.crash(recipe, 8)
    assert metrics_of(run)[-1]["step"] == 8, "logged, and not committed"
    newest, _ = checkpoint.newest_verified(run / "checkpoints")
    assert newest is not None
    assert newest.step < 8
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"kind": "step", "step": 9, "lo')  # torn by a kill
    place.fit(recipe)
    steps = [line["step"] for line in metrics_of(run) if line["kind"] == "step"]
    assert steps == list(range(1, STEPS + 1)), "each step once, in order"
    assert results(run) == alone


def test_a_log_that_is_gone_is_told(place: Place) -> None:
    recipe = place.recipe("no-log")
    run = place.crash(recipe, 8)
    whole = (run / "metrics.jsonl").read_bytes()
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(whole[:100])):
        damage(run / "metrics.jsonl")
        with pytest.raises(RunError, match=r"missing or shorter than it was at step \d"):
            place.fit(recipe)
    (run / "metrics.jsonl").write_bytes(whole)
    place.fit(recipe)


def test_early_stopping_remembers_what_it_counted(place: Place) -> None:
    """A rate so high that nothing is gained after a few validations."""
    wild = {"learning_rate": 0.5, "head_learning_rate": 0.5, "patience": 3, "length": "200 steps"}
    expected = place.fit(place.recipe("early-alone", **wild))
    training = expected.report["training"]
    assert training["stopped"] == "early"
    assert training["steps"] < 200
    recipe = place.recipe("early", **wild)
    place.crash(recipe, training["steps"] - 1)  # two validations without gain are behind it
    assert results(place.fit(recipe).folder) == results(expected.folder)
    assert "going on after step" in " ".join(place.said)


def test_a_run_that_stopped_early_before_the_report_trains_no_step_more(place: Place) -> None:
    wild = {"learning_rate": 0.5, "head_learning_rate": 0.5, "patience": 3, "length": "200 steps"}
    recipe = place.recipe("early-done", **wild)
    run = place.fit(recipe).folder
    before = results(run)
    (run / "report.json").unlink()
    steps: list[Any] = []
    fit_recipe(recipe, listener=Listener(show=lambda line: steps.append(line)))
    assert [line for line in steps if line["kind"] == "step"] == []
    assert results(run) == before


# What is damaged, and what a disk does.


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_a_damaged_newest_checkpoint_is_named_and_the_older_one_taken(
    place: Place, alone: dict[str, Any]
) -> None:
    recipe = place.recipe("damaged")
    run = place.crash(recipe, 17)
    newest, _ = checkpoint.newest_verified(run / "checkpoints")
    assert newest is not None
    flip(newest.path / "weights.safetensors")
    assert results(place.fit(recipe).folder) == alone
    named = [line for line in place.said if line.startswith("damaged checkpoint passed over")]
    assert named == [
        f"damaged checkpoint passed over: {newest.path / 'weights.safetensors'}: its content changed"
    ]


def test_damaged_best_weights_never_become_the_model(
    place: Place, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk changes a bit between the last step and the loading of the best weights."""

    def load(path: Path, model: torch.nn.Module) -> None:
        flip(path / "weights.safetensors")
        checkpoint.load_weights(path, model)

    recipe = place.recipe("best")
    best = Path(str(recipe.out)) / "checkpoints" / f"step-{alone['report']['training']['best_step']:06d}"
    monkeypatch.setattr(training, "load_weights", load)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: its content changed") as caught:
        place.fit(recipe)
    assert caught.value.where == str(best)
    monkeypatch.undo()
    assert results(place.fit(recipe).folder) == alone, "what depended on them was trained again"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["checkpoint", "log"])
def test_a_full_disk_ends_the_run_with_a_message_and_room_lets_it_go_on(
    place: Place, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    recipe = place.recipe(f"disk-{call}-{number}")
    run = Path(str(recipe.out))
    calls = 0

    def failing(real: Callable[..., Any], concerned: Callable[..., bool]) -> Callable[..., Any]:
        def wrapped(*args: Any, **given: Any) -> Any:
            nonlocal calls
            calls += concerned(*args)
            if calls == 9 and concerned(*args):
                raise OSError(number, os.strerror(number))
            return real(*args, **given)

        return wrapped

    if call == "checkpoint":
        monkeypatch.setattr(checkpoint, "save_file", failing(checkpoint.save_file, lambda *_: True))
    else:
        monkeypatch.setattr(
            Path, "open", failing(Path.open, lambda path, mode="r", *_: mode == "a" and path.parent == run)
        )
    with pytest.raises(CheckpointError, match=os.strerror(number)) as caught:
        place.fit(recipe)
    monkeypatch.undo()
    assert str(caught.value.where).startswith(str(run))
    assert "Needed: " in caught.value.what
    assert "free: " in caught.value.what
    assert results(place.fit(recipe).folder) == alone


def test_too_full_a_disk_is_told_before_the_first_step(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full)
    recipe = place.recipe("full-disk")
    with pytest.raises(CheckpointError, match=r"three checkpoints need .* MB, and 0\.0 MB are free"):
        place.fit(recipe)
    assert (Path(str(recipe.out)) / "metrics.jsonl").read_bytes() == b""


@pytest.mark.parametrize("train", [{"validations_per_epoch": 2}, {"validations_per_epoch": 14}])
def test_a_rate_that_breaks_the_numbers_is_told_and_leaves_nothing_broken(
    place: Place, train: dict[str, Any]
) -> None:
    """Found by the next step, or by the validation that comes before it."""
    name = f"rate-{train['validations_per_epoch']}"
    recipe = place.recipe(name, learning_rate=1e38, head_learning_rate=1e38, precision="fp32", **train)
    with pytest.raises(NonFiniteError, match=r"became (nan|inf) at step [12]") as caught:
        place.fit(recipe)
    assert "Lower train.learning_rate" in str(caught.value.fix)
    for path in Path(str(recipe.out)).rglob("*.safetensors"):
        tensors = load_file(path).values()
        assert all(torch.isfinite(tensor).all() for tensor in tensors), path
    log = (Path(str(recipe.out)) / "metrics.jsonl").read_text()
    assert "NaN" not in log
    assert "Infinity" not in log


@pytest.mark.parametrize("approach", ["frozen", "full"])
def test_a_base_with_broken_weights_is_told(tmp_path: Path, approach: str) -> None:
    own = Place(tmp_path)
    weights = load_file(own.base / "model.safetensors")
    weights["transformer.h.0.ln_1.weight"][3] = float("nan")
    save_file(weights, own.base / "model.safetensors", metadata={"format": "pt"})
    recipe = own.recipe("run", approach=approach)
    with pytest.raises((ModelError, NonFiniteError), match="NaN"):
        own.fit(recipe)
    assert not list((own.folder / "run").rglob("*.safetensors"))


# The environment of the first start, reused.


def environment(run: Path) -> dict[str, Any]:
    return json.loads((run / "environment.json").read_text())  # type: ignore[no-any-return]


def test_measured_choices_are_written_before_the_first_step_and_reused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if memory had been short at first: the micro-batch of then decides, not today's."""
    expected = results(place.fit(place.recipe("micro-alone", micro_batch_size=4)).folder)
    recipe = place.recipe("micro")
    monkeypatch.setattr(gptailor.pipeline.plan, "choose_micro_batch", lambda *_, **__: 4)
    run = place.crash(recipe, 1)
    assert environment(run)["micro_batch_size"] == 4
    assert environment(run)["precision"] == "fp32"
    assert environment(run)["threads"] == torch.get_num_threads()
    monkeypatch.setattr(gptailor.pipeline.plan, "choose_micro_batch", lambda *_, **__: 16)
    found = results(place.fit(recipe).folder)
    assert found["model"] == expected["model"]
    assert found["metrics"] == expected["metrics"]
    assert environment(run)["micro_batch_size"] == 4
    assert found["report"]["training"]["bit_exact"] is True


def test_a_resumed_run_takes_the_threads_it_had(place: Place, alone: dict[str, Any]) -> None:
    recipe = place.recipe("threads")
    before = torch.get_num_threads()
    place.crash(recipe, 8)
    torch.set_num_threads(before + 1)
    assert results(place.fit(recipe).folder) == alone
    assert torch.get_num_threads() == before


def test_another_machine_ends_the_promise_and_says_so(place: Place) -> None:
    recipe = place.recipe("machine")
    run = place.crash(recipe, 4)
    first = environment(run)
    versions = {**first["versions"], "torch": "0.0.1"}
    (run / "environment.json").write_text(json.dumps({**first, "processor": "abacus", "versions": versions}))
    place.crash(recipe, 9)
    changes = [
        f"torch: 0.0.1 then, {first['versions']['torch']} now",
        f"processor: abacus then, {first['processor']} now",
    ]
    said = [line for line in place.said if "not bit-exact" in line]
    assert [line.endswith(change) for line, change in zip(said, changes, strict=True)] == [True, True]
    assert environment(run)["bit_exact"] is False
    assert environment(run)["processor"] == "abacus", "what the run began with stays on record"
    # Back on the first machine the middle part is still another's.
    (run / "environment.json").write_text(
        json.dumps({**first, "bit_exact": False, "changed": environment(run)["changed"]})
    )
    report = place.fit(recipe).report
    assert report["training"]["bit_exact"] is False
    assert report["environment"]["changed"] == changes


def test_an_unchanged_machine_keeps_the_promise(alone: dict[str, Any], place: Place) -> None:
    assert alone["report"]["training"]["bit_exact"] is True
    assert alone["report"]["environment"]["changed"] == []
    assert environment(place.folder / "alone")["bit_exact"] is True


def test_another_base_of_the_same_name_is_refused(place: Place, tmp_path: Path) -> None:
    own = Place(tmp_path)
    recipe = own.recipe("run")
    own.crash(recipe, 4)
    tiny.build_base(own.base, seed=5)
    with pytest.raises(RunError, match=r"base_revision was \w+ when this run was begun and is"):
        own.fit(recipe)


def test_a_damaged_environment_is_told(place: Place) -> None:
    recipe = place.recipe("environment")
    run = place.crash(recipe, 4)
    for text in ("{", "[]", "{}"):
        (run / "environment.json").write_text(text)
        with pytest.raises(RunError, match="can't be read"):
            place.fit(recipe)


def test_a_run_that_was_begun_compiled_goes_on_without_a_compiler(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = place.recipe("begun-compiled")
    environment = place.crash(recipe, 10) / "environment.json"
    begun = json.loads(environment.read_text())
    environment.write_text(json.dumps({**begun, "compiled": True}))
    monkeypatch.setattr("gptailor.pipeline.settle.can_compile", lambda: False)
    run = place.fit(recipe)
    assert any("there is no C++ compiler here" in line for line in place.said)
    assert run.report["training"]["bit_exact"] is False
    assert any("compiler" in change for change in json.loads(environment.read_text())["changed"])


def test_a_model_that_is_not_what_was_trained_is_never_taken(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever loads a run's model waits for the bundle, and that comes after the proof."""
    save = keep.save_model

    def saving(folder: Path, **what: Any) -> None:
        save(folder, **what)
        weights = load_file(folder / "model.safetensors")
        weights["score.weight"] += 1
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(keep, "save_model", saving)
    recipe = place.recipe("unlike", length="4 steps")
    with pytest.raises(ModelError, match="the saved model's logits differ"):
        place.fit(recipe)
    with pytest.raises(ModelError, match="no finished model"):
        gptailor.load(str(recipe.out)).predict(["a text"])
