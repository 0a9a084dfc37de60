"""The run folder: when it is resumed, when it is only reported, when it is refused; nothing in it is lost."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import tiny
from crashed import Crash
from gptailor import cli
from gptailor.errors import RunError
from gptailor.launch import one_writer, write_atomically
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.folder import claim_folder, default_folder, holds_work, next_to, open_for_fit, sweep
from gptailor.pipeline.place import Listener
from gptailor.recipe import Recipe, build_recipe, load_recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    tiny.build_base(folder / "base")
    tiny.write_news(folder / "news.csv", rows=300)
    return folder


def recipe_for(place: Path, out: Path, *, data: Path | None = None, **changes: Any) -> Recipe:
    values = {
        "data": {"train": str(data or place / "news.csv")},
        "base": str(place / "base"),
        "approach": "full",
        "train": {"length": "6 steps", "save_every": "2 steps"},
        "evaluate": {"baselines": "none", "resamples": 100},
        "out": str(out),
    }
    return build_recipe({**values, **changes})


def crash(recipe: Recipe, at: int = 4) -> None:
    def show(line: Mapping[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == at:
            raise Crash

    with pytest.raises(Crash):
        fit_recipe(recipe, listener=Listener(show=show))


def crashing(*_: Any) -> None:
    raise Crash


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """A finished run of `recipe_for`."""
    return fit_recipe(recipe_for(place, place / "finished")).folder


def test_a_finished_run_is_reported_and_nothing_is_trained(place: Path, finished: Path) -> None:
    before = contents(finished)
    said: list[str] = []
    run = fit_recipe(
        recipe_for(place, finished),
        listener=Listener(say=said.append, show=lambda line: pytest.fail(f"trained: {line}")),
    )
    assert run.report["training"]["steps"] == 6
    assert said == [f"{finished} is finished; nothing to do"]
    assert contents(finished) == before
    assert before["openings.jsonl"].count(b"\n") == 1, "the test set was opened once"


def test_a_run_that_was_begun_is_resumed_in_its_folder(place: Path, finished: Path, tmp_path: Path) -> None:
    recipe = recipe_for(place, tmp_path / "run")
    crash(recipe)
    said: list[str] = []
    fit_recipe(recipe, listener=Listener(say=said.append))
    assert any(line.startswith("going on after step") for line in said)
    model = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert model == (finished / "model" / "model.safetensors").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_begun_anew_keeps_no_log_of_other_settings(place: Path, tmp_path: Path) -> None:
    """Killed before its first checkpoint, then other settings: trackers would go on with the other's run."""
    out = tmp_path / "run"
    out.mkdir()
    open_for_fit(out, recipe_for(place, out))
    left = ["metrics.jsonl", "trackers.json", "tracking/tensorboard/events"]
    for name in left:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("{}")
    assert not open_for_fit(out, recipe_for(place, out))
    assert all((out / name).exists() for name in left)
    assert not open_for_fit(out, recipe_for(place, out, seed=3))
    assert not any((out / name).exists() for name in left)


def test_data_that_were_mended_before_anything_was_made_are_taken(place: Path, tmp_path: Path) -> None:
    """What many messages ask for: add rows, and start again."""
    data = tiny.write_news(tmp_path / "news.csv", rows=300)
    recipe = recipe_for(place, tmp_path / "run", data=data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptailor.pipeline.fit.run_candidates", crashing)
        with pytest.raises(Crash):
            fit_recipe(recipe)
    before = json.loads((tmp_path / "run" / "data" / "summary.json").read_text())
    data.write_bytes(data.read_bytes() + b"one row more about the flu,health\n")
    said: list[str] = []
    run = fit_recipe(recipe, listener=Listener(say=said.append))
    assert run.report["data"]["read"] == before["read"] + 1
    assert any("begun with other data" in line for line in said)


@pytest.mark.parametrize("state", ["begun", "finished"])
def test_other_settings_are_refused_and_each_is_named(
    place: Path, finished: Path, tmp_path: Path, state: str
) -> None:
    out = finished
    if state == "begun":
        out = tmp_path / "run"
        crash(recipe_for(place, out))
    before = contents(out)
    other = recipe_for(
        place, out, seed=3, train={"length": "8 steps", "save_every": "2 steps"}, data=place / "base"
    )
    with pytest.raises(RunError) as caught:
        fit_recipe(other)
    told = str(caught.value)
    assert "seed: 0, now 3" in told
    assert "train.length: '6 steps', now '8 steps'" in told
    assert f"data.train: '{place / 'news.csv'}', now '{place / 'base'}'" in told
    assert "save_every" not in told, "what is the same is not named"
    assert "--overwrite" in str(caught.value.fix)
    assert str(out) == caught.value.where
    assert contents(out) == before


@pytest.mark.parametrize("state", ["begun", "finished"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_changed_data_is_refused(place: Path, tmp_path: Path, state: str, part: str) -> None:
    files = {
        "train": tiny.write_news(tmp_path / "train.csv", rows=300),
        "test": tmp_path / "test.csv",
    }
    files["test"].write_text("text,label\nthe goal in extra time,sports\nthe bank and its rate,business\n")
    data = {name: str(path) for name, path in files.items()}
    recipe = recipe_for(place, tmp_path / "run").model_copy()
    recipe = build_recipe({**recipe.model_dump(mode="json"), "data": data})
    if state == "begun":
        crash(recipe)
    else:
        fit_recipe(recipe)
    before, whole = contents(tmp_path / "run"), files[part].read_bytes()
    files[part].write_bytes(whole + b"one row more about the flu,health\n")
    with pytest.raises(RunError, match="the data files changed since this run was begun"):
        fit_recipe(recipe)
    assert contents(tmp_path / "run") == before
    files[part].write_bytes(whole)
    fit_recipe(recipe)


def test_a_finished_run_can_be_reported_without_its_data(place: Path, tmp_path: Path) -> None:
    data = tiny.write_news(tmp_path / "news.csv", rows=300)
    recipe = recipe_for(place, tmp_path / "run", data=data)
    fit_recipe(recipe)
    data.unlink()
    assert fit_recipe(recipe).report["training"]["steps"] == 6


def test_damaged_records_of_a_run_are_told(place: Path, tmp_path: Path) -> None:
    recipe = recipe_for(place, tmp_path / "run")
    crash(recipe)
    for text in ("", "[1]", "\x00"):
        (tmp_path / "run" / "data" / "summary.json").write_text(text)
        with pytest.raises(RunError, match=r"summary\.json is damaged"):
            fit_recipe(recipe)


# --overwrite: the old run is moved aside, never deleted.


def test_overwrite_moves_the_old_run_aside_whole_however_often(
    place: Path, finished: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(place, tmp_path / "run")
    crash(recipe)
    expected = []
    for number in range(3):  # within the same second
        expected.append(contents(tmp_path / "run"))
        assert claim_folder(recipe, overwrite=True) == tmp_path / "run"
        assert contents(tmp_path / "run") == {}
        (tmp_path / "run" / "request.yaml").write_text(f"data: {{train: {number}.csv}}")
    aside = sorted(tmp_path.glob("run.old-*"))
    assert [contents(path) for path in aside] == expected, "in the order of their dates, nothing lost"
    assert fit_recipe(recipe, overwrite=True).report["training"]["steps"] == 6
    assert len(list(tmp_path.glob("run.old-*"))) == 4


def test_overwrite_moves_a_link_and_not_what_it_points_to(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(place, tmp_path / "run")
    crash(recipe)
    before = contents(tmp_path / "run")
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    linked = recipe.model_copy(update={"out": str(tmp_path / "latest")})
    assert claim_folder(linked, overwrite=True) == tmp_path / "latest"
    assert not (tmp_path / "latest").is_symlink()
    assert contents(tmp_path / "latest") == {}
    assert contents(tmp_path / "run") == before
    monkeypatch.chdir(tmp_path / "run")
    here = claim_folder(recipe.model_copy(update={"out": "."}), overwrite=True)
    assert here.resolve() == (tmp_path / "run").resolve()
    assert contents(tmp_path / "run") == {}


@pytest.mark.parametrize("what", ["data.fix", "base"])
def test_overwrite_does_not_move_away_what_the_run_is_made_from(what: str, tmp_path: Path) -> None:
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "request.yaml").touch()
    filled = tmp_path / "run" / "data" / "suspects.csv"
    filled.write_text("source,row,text,correction\n")
    data = {"train": str(tmp_path / "rows.csv"), "label": "label"}
    if what == "base":
        recipe = build_recipe({"data": data, "base": str(tmp_path / "run"), "out": str(tmp_path / "run")})
    else:
        recipe = build_recipe({"data": {**data, "fix": str(filled)}, "out": str(tmp_path / "run")})
    with pytest.raises(RunError, match="would move aside") as caught:
        claim_folder(recipe, overwrite=True)
    assert what in str(caught.value)
    assert filled.exists()


def test_overwrite_does_not_touch_a_folder_that_holds_no_run(place: Path, tmp_path: Path) -> None:
    mine = tmp_path / "letters"
    mine.mkdir()
    (mine / "dear.txt").write_text("not yours")
    (mine / ".hidden.77").write_text("nor this")
    before = contents(mine)
    for overwrite in (True, False):
        with pytest.raises(
            RunError, match=r"is not a run folder and not empty \(it holds .hidden.77, dear.txt"
        ):
            fit_recipe(recipe_for(place, mine), overwrite=overwrite)
    assert contents(mine) == before
    assert {path.name for path in tmp_path.iterdir()} == {"letters"}


def test_overwrite_waits_for_nobody_and_moves_nothing_that_is_being_written(
    place: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(place, tmp_path / "run")
    crash(recipe)
    for overwrite in (True, False):
        with one_writer(tmp_path / "run"), pytest.raises(RunError, match="is writing to this run"):
            fit_recipe(recipe, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_empty_folder_and_one_whose_writer_died_at_once_may_be_used(place: Path, tmp_path: Path) -> None:
    for leftover in (None, ".lock", ".request.yaml.4711"):
        folder = tmp_path / str(leftover)
        folder.mkdir()
        if leftover:
            (folder / leftover).write_text("begun")
        for _ in range(2):
            assert open_for_fit(claim_folder(recipe_for(place, folder)), recipe_for(place, folder)) is False
        assert load_recipe(folder / "request.yaml").data.train == str(place / "news.csv")


def test_a_file_in_place_of_the_folder_is_refused(place: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(RunError, match=r"is a file|can't be made") as caught:
            claim_folder(recipe_for(place, out), overwrite=True)
        assert caught.value.where == str(out)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_a_killed_writer_left_is_swept_and_nothing_else(place: Path, tmp_path: Path) -> None:
    recipe = recipe_for(place, tmp_path / "run")
    crash(recipe)
    run = tmp_path / "run"
    before = contents(run)
    (run / ".model.4711").mkdir()
    (run / ".model.4711" / "model.safetensors").write_text("half")
    for name in (".report.json.4711", ".predictions.csv.4711.temporary", "data/.ledger.jsonl.12.temporary"):
        (run / name).write_text("half")
    for name in ("notes.txt", ".gitignore", "data/.keep"):
        (run / name).write_text("a person's")
    sweep(run)
    kept = {"notes.txt", ".gitignore", "data/.keep"}
    assert set(contents(run)) == set(before) | kept


def test_the_folder_is_named_after_the_data() -> None:
    def named(location: str) -> str:
        return default_folder(build_recipe({"data": {"train": location}})).as_posix()

    assert named("some/where/news.csv") == "runs/news"
    assert named("news.csv.gz") == "runs/news"
    assert named("hub:owner/name") == "runs/name"
    assert named("texts/") == "runs/texts"


# RUN/recipe.yaml repeats the run into RUN-2.


def run_cli(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gptailor", *words])
    try:
        cli.main()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_the_recipe_of_a_run_repeats_it_beside_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    fit_recipe(recipe_for(place, run))
    before = contents(run)
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, "fit", "run/recipe.yaml") == 0
    assert contents(run) == before, "the first run is left alone"
    again = contents(tmp_path / "run-2")
    for name in ("model/model.safetensors", "predictions.csv", "data/ledger.jsonl"):
        assert again[name] == before[name], name
    assert run_cli(monkeypatch, "fit", "run/recipe.yaml", "--seed", "1") == 0
    assert load_recipe(tmp_path / "run-3" / "recipe.yaml").seed == 1
    assert contents(tmp_path / "run-3")["model/model.safetensors"] != before["model/model.safetensors"]
    monkeypatch.chdir(run)
    assert run_cli(monkeypatch, "fit", "recipe.yaml", "--seed", "2") == 0, "the command of the run's page"
    assert load_recipe(tmp_path / "run-4" / "recipe.yaml").seed == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-2", "run-3", "run-4"]


def test_an_interrupted_repetition_is_gone_on_with(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command goes on: it doesn't begin RUN-3 while RUN-2 waits."""
    run = tmp_path / "run"
    fit_recipe(recipe_for(place, run))
    asked = load_recipe(run / "recipe.yaml")
    assert next_to(run, asked) == tmp_path / "run-2"
    crash(asked.model_copy(update={"out": str(tmp_path / "run-2")}))
    assert next_to(run, asked) == tmp_path / "run-2"
    assert next_to(run, asked, search=True) == tmp_path / "run-3"
    assert run_cli(monkeypatch, "fit", str(run / "recipe.yaml")) == 0
    assert (tmp_path / "run-2" / "report.json").exists()
    assert next_to(run, asked) == tmp_path / "run-3"
    crash(asked.model_copy(update={"out": str(tmp_path / "run-3"), "seed": 7}))
    assert next_to(run, asked) == tmp_path / "run-4", "unfinished, and another run"
    assert next_to(run, asked.model_copy(update={"seed": 7})) == tmp_path / "run-3"


def test_a_text_in_the_place_of_a_file_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "what a long text this is " * 20
    for words in (["check", text], ["fit", text], ["evaluate", text, text], ["predict", text, text]):
        assert run_cli(monkeypatch, *words) == 1
        told = " ".join(capsys.readouterr().err.split())
        assert "what a long text this is" in told
        assert "too long for the name of a file" in told
        assert "--input" in told


def test_the_exit_codes_say_whose_fault_it_is(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", str(place / "news.csv"), "--base", str(place / "base"), "--out", str(finished)]
    same = ["--approach", "full", "--baselines", "none", "--set", "evaluate.resamples=100"]
    same += ["--set", "train.length=6 steps", "--set", "train.save_every=2 steps"]
    assert run_cli(monkeypatch, *words, *same) == 0
    assert "is finished; nothing to do" in capsys.readouterr().err
    assert run_cli(monkeypatch, *words, *same, "--seed", "9") == 1
    told = " ".join(capsys.readouterr().err.split())  # the terminal breaks lines where it likes
    assert "holds a run with other settings" in told
    assert "seed: 0, now 9" in told
    assert "Traceback" not in told


def test_a_finished_run_is_not_told_of_other_data_from_a_pipe(place: Path, tmp_path: Path) -> None:
    """Whether a pipe holds what the run was made from, nobody can tell: it isn't reported as if it did."""
    recipe = recipe_for(place, tmp_path / "run")
    fit_recipe(recipe)
    os.mkfifo(tmp_path / "pipe")
    request = tmp_path / "run" / "request.yaml"
    request.write_text(request.read_text().replace(str(place / "news.csv"), str(tmp_path / "pipe")))
    piped = recipe_for(place, tmp_path / "run", data=tmp_path / "pipe")
    with pytest.raises(RunError, match="whether a pipe holds the same data can't be told"):
        fit_recipe(piped)


@pytest.mark.parametrize("out", ["run", "deep/er/run", "."])
def test_a_run_does_not_lie_among_its_data(out: str, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "one.txt").write_text("A text.")
    recipe = build_recipe({"data": {"train": str(texts)}, "task": "language", "out": str(texts / out)})
    with pytest.raises(RunError, match="whose files are the data"):
        claim_folder(recipe)
    assert contents(texts) == {"one.txt": b"A text."}
    claim_folder(recipe.model_copy(update={"out": str(tmp_path / "texts-run")}))


@pytest.mark.parametrize("name", ["tuned-by-hand", "tune_notes.md", ".lock-of-mine"])
def test_names_that_begin_like_ours_are_not_ours(name: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    with pytest.raises(RunError, match="is not a run folder and not empty"):
        fit_recipe(recipe_for(place, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name], "something of ours was left there"


def test_what_was_begun_and_never_made_whole_is_no_work(tmp_path: Path) -> None:
    """Of folds the first may end before its first checkpoint; then other settings may begin anew."""
    (tmp_path / "checkpoints" / "fold-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".partial-step-4").mkdir()
    assert not holds_work(tmp_path)
    whole = tmp_path / "checkpoints" / "fold-1" / "step-000004"
    whole.mkdir()
    assert not holds_work(tmp_path)
    (whole / "manifest.json").write_text("{}")
    assert holds_work(tmp_path)


def test_names_that_are_not_utf_8_break_nothing(tmp_path: Path) -> None:
    """A folder out of an old archive: `caf\xe9.csv`."""
    name = os.fsdecode(b"caf\xe9")
    assert default_folder(build_recipe({"data": {"train": f"{name}.csv"}})) == Path("runs/caf_")
    write_atomically(tmp_path / "details.json", json.dumps({"where": name}, ensure_ascii=False))
    assert json.loads((tmp_path / "details.json").read_text(encoding="utf-8")) == {"where": name}
