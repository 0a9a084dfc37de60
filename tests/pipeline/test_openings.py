"""The sealed test set: a run knows its own files again, and every look at the test file is written down."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import gptailor
import tiny
from gptailor.errors import DataError
from gptailor.launch import one_writer
from gptailor.pipeline.openings import note_opening, openings_of, own_file
from gptailor.pipeline.place import Listener
from gptailor.pipeline.run import Run
from gptailor.recipe import build_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a test file of its own."""
    folder = tmp_path_factory.mktemp("openings")
    news = tiny.write_news(folder / "news.csv", rows=140).read_text().splitlines()
    (folder / "train.csv").write_text("\n".join(news[:101]) + "\n")
    (folder / "test.csv").write_text("\n".join([news[0], *news[101:121]]) + "\n")
    (folder / "new.csv").write_text("\n".join([news[0], *news[121:]]) + "\n")
    settings = {
        "data": {"train": str(folder / "train.csv"), "test": str(folder / "test.csv")},
        "base": str(tiny.build_base(folder / "base")),
        "approach": {"kind": "frozen", "strengths": [1]},
        "evaluate": {"baselines": "none", "resamples": 100},
        "out": str(folder / "run"),
    }
    return gptailor.fit(build_recipe(settings))


def test_every_look_at_the_test_file_is_written_down_whatever_its_name(run: Run, tmp_path: Path) -> None:
    log = run.folder / "openings.jsonl"
    assert [json.loads(line)["command"] for line in log.read_text().splitlines()] == ["fit"]
    renamed = shutil.copy(run.folder.parent / "test.csv", tmp_path / "fresh.csv")
    found = run.evaluate(str(renamed))
    assert "sealed test file" in found["note"]
    assert "Look 2" in found["note"]
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["command"] == "evaluate"
    assert last["scores"]["macro_f1"] == found["scores"]["macro_f1"]
    assert "Look 3" in run.evaluate(str(run.folder.parent / "test.csv"))["note"]
    assert "Opened 3 times" in (run.folder / "README.md").read_text(encoding="utf-8")
    assert "It was opened 3 times" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_intervals_over_near_duplicates_of_the_test_file_are_the_report_s(run: Run, tmp_path: Path) -> None:
    """Each test row stands there three times, all but the same: they are drawn as one, then and now."""
    folder = run.folder.parent
    header, *rows = (folder / "test.csv").read_text().splitlines()
    more = [row.replace(",", f" {word},") for word in ("indeed", "again") for row in rows]
    (tmp_path / "thrice.csv").write_text("\n".join([header, *rows, *more]) + "\n")
    settings: dict[str, Any] = {
        "data": {"train": str(folder / "train.csv"), "test": str(tmp_path / "thrice.csv")},
        "base": str(folder / "base"),
        "approach": {"kind": "frozen", "strengths": [1]},
        "evaluate": {"baselines": "none", "resamples": 300},
        "seed": 3,
        "out": str(tmp_path / "run"),
    }
    thrice = gptailor.fit(build_recipe(settings))
    told = thrice.report["test"]["accuracy"]
    assert thrice.evaluate(str(tmp_path / "thrice.csv"))["scores"]["accuracy"] == told
    with (thrice.folder / "predictions.csv").open(newline="") as file:
        groups = [line["group"] for line in csv.DictReader(file)]
    assert len(set(groups)) <= len(rows)
    settings["data"] |= {"clean": {"near_duplicates": False}}
    apart = gptailor.fit(build_recipe({**settings, "out": str(tmp_path / "apart")})).report["test"][
        "accuracy"
    ]
    assert apart["value"] == told["value"]
    assert apart["high"] - apart["low"] < told["high"] - told["low"]


def test_new_rows_are_no_opening_and_training_rows_are_told(run: Run) -> None:
    before = (run.folder / "openings.jsonl").read_text()
    assert "note" not in run.evaluate(str(run.folder.parent / "new.csv"))
    assert "trained with" in run.evaluate(str(run.folder.parent / "train.csv"))["note"]
    assert (run.folder / "openings.jsonl").read_text() == before


def test_training_rows_are_known_again_in_a_file_that_has_grown(run: Run, tmp_path: Path) -> None:
    """A row more, another order, other blanks: another file by its hash, and the model knows it by heart."""
    header, *taught = (run.folder.parent / "train.csv").read_text().splitlines()
    new = (run.folder.parent / "new.csv").read_text().splitlines()[1:]
    grown = tmp_path / "grown.csv"
    grown.write_text("\r\n".join([header, *new, *taught[::-1]]))
    found = run.evaluate(str(grown))
    assert f"{len(taught)} of {len(taught) + len(new)} rows taught this run" in found["note"]


def test_a_damaged_list_of_what_taught_is_told(run: Run, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run.folder, tmp_path / "run"))
    taught = copied / "data" / "taught.npz"
    taught.write_bytes(taught.read_bytes()[:700])
    note = Run(copied).evaluate(str(run.folder.parent / "new.csv"))["note"]
    assert "data/taught.npz is damaged" in note


def test_a_base_that_learned_held_out_rows_is_told(run: Run, tmp_path: Path) -> None:
    """Another seed deals the rows out anew: most of the new test rows taught the run that is the base."""
    folder = run.folder.parent
    evaluate = {"baselines": "none", "resamples": 100}
    settings: dict[str, Any] = {"data": {"train": str(folder / "train.csv")}, "evaluate": evaluate}
    few_steps = {"approach": "full", "train": {"length": "2 steps", "dropout": 0.0}}
    tested = {"train": str(folder / "train.csv"), "test": str(folder / "test.csv")}
    first = {**settings, **few_steps, "data": tested, "base": str(folder / "base")}
    first["out"] = str(tmp_path / "first")
    base = str(gptailor.fit(build_recipe(first)).folder)
    settings |= {"base": base, "approach": {"kind": "frozen", "strengths": [1]}, "seed": 1}
    said: list[str] = []
    next_run = gptailor.fit(
        build_recipe({**settings, "out": str(tmp_path / "run")}), listener=Listener(say=said.append)
    )
    data = next_run.report["data"]
    assert data["taught_before"] == {"validation": data["validation"], "test": data["test"]}
    assert any(f"{data['test']} of {data['test']} test rows taught the base" in line for line in said)
    told = f"of which {data['test']} taught the base"
    assert told in (next_run.folder / "report.html").read_text(encoding="utf-8")
    card = (next_run.folder / "README.md").read_text(encoding="utf-8")
    assert told in card
    validation = data["validation"]
    assert f"Of {validation} validation rows, {validation} taught the base" in card
    # What taught the base taught whatever goes on from it, too, also where its model folder is named.
    third = {**settings, "base": str(next_run.folder / "model"), "data": {"train": str(folder / "new.csv")}}
    last = gptailor.fit(build_recipe({**third, "out": str(tmp_path / "last")}))
    assert "taught_before" not in last.report["data"]
    assert "rows taught this run" in last.evaluate(str(folder / "train.csv"))["note"]
    assert (
        "rows taught this run"
        in gptailor.load(last.folder / "model").evaluate(str(folder / "train.csv"))["note"]
    )


@pytest.mark.parametrize("approach", [{"kind": "frozen", "strengths": [1]}, "scratch"])
def test_weights_that_learned_nothing_know_no_row(run: Run, approach: Any, tmp_path: Path) -> None:
    """The head of a frozen base is left behind, and from scratch nothing of a base is kept."""
    folder, base = run.folder.parent, run.folder
    if approach == "scratch":
        few_steps = {"approach": "full", "train": {"length": "2 steps"}, "out": str(tmp_path / "base")}
        base = gptailor.fit(build_recipe({**_plain(folder), **few_steps})).folder
    asked = {**_plain(folder), "base": str(base), "approach": approach, "seed": 1}
    asked |= {"train": {"length": "2 steps"}, "out": str(tmp_path / "run")}
    found = gptailor.fit(build_recipe(asked))
    assert "taught_before" not in found.report["data"]
    assert "neither training nor the settings' choice saw" in (found.folder / "README.md").read_text()


def _plain(folder: Path) -> dict[str, Any]:
    return {
        "data": {"train": str(folder / "train.csv")},
        "base": str(folder / "base"),
        "evaluate": {"baselines": "none", "resamples": 100},
    }


def test_a_label_that_training_dropped_is_not_called_another_spelling(run: Run, tmp_path: Path) -> None:
    header, *lines = (run.folder.parent / "train.csv").read_text().splitlines()
    rows = [*lines, "a painting of the sea at night,art", "two songs for a choir,art"]
    (tmp_path / "train.csv").write_text("\n".join([header, *rows]))
    settings = {
        "data": {"train": str(tmp_path / "train.csv"), "test": str(run.folder.parent / "test.csv")},
        "base": str(run.folder.parent / "base"),
        "approach": {"kind": "frozen", "strengths": [1]},
        "evaluate": {"baselines": "none", "resamples": 100},
        "out": str(tmp_path / "run"),
    }
    few = gptailor.fit(build_recipe(settings))
    (tmp_path / "new.csv").write_text("\n".join([header, lines[0], "a new play on an old stage,Art"]))
    with pytest.raises(DataError) as caught:
        few.evaluate(str(tmp_path / "new.csv"))
    assert "'art': in 1 row; training's 2 rows of it went: label too rare to learn" in str(caught.value)
    assert "--label-names" not in str(caught.value.fix)


def test_a_look_that_cannot_be_written_down_is_told(run: Run) -> None:
    with one_writer(run.folder):
        assert "could not be written down" in run.evaluate(str(run.folder.parent / "test.csv"))["note"]


def test_a_line_torn_by_a_power_cut_does_not_stop_the_run(tmp_path: Path) -> None:
    note_opening(tmp_path, command="fit", scores={})
    with (tmp_path / "openings.jsonl").open("a") as file:
        file.write('{"when": "2026-')
    note_opening(tmp_path, command="evaluate", scores={})
    assert [one["command"] for one in openings_of(tmp_path)] == ["fit", "evaluate"]


def test_a_pipe_is_not_opened_a_second_time(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody writes: whoever opened it would wait for ever
    assert own_file(run.folder, str(tmp_path / "pipe"), tree=False) is None


def test_a_folder_is_known_again_as_a_file_is(tmp_path: Path) -> None:
    """A test set of one subfolder for each label."""
    news = tiny.write_news(tmp_path / "news.csv", rows=140)
    for number, line in enumerate(news.read_text().splitlines()[101:]):
        text, _, label = line.rpartition(",")
        (tmp_path / "test" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "test" / label / f"{number}.txt").write_text(text)
    settings = {
        "data": {"train": str(news), "test": str(tmp_path / "test")},
        "base": str(tiny.build_base(tmp_path / "base")),
        "approach": {"kind": "frozen", "strengths": [1]},
        "evaluate": {"baselines": "none", "resamples": 100},
        "out": str(tmp_path / "run"),
    }
    run = gptailor.fit(build_recipe(settings))
    assert "Look 2" in run.evaluate(str(tmp_path / "test"))["note"]


@pytest.mark.parametrize("given", [True, False])
def test_the_sealed_rows_in_another_file_are_a_look_too(given: bool, run: Run, tmp_path: Path) -> None:
    """Copied out of the predictions, mixed with new rows, or in the whole file that was dealt out."""
    folder = run.folder.parent
    test = {"test": str(folder / "test.csv")} if given else {}
    settings = {**_plain(folder), "approach": {"kind": "frozen", "strengths": [1]}}
    settings["data"] = {"train": str(folder / "train.csv"), **test}
    made = gptailor.fit(build_recipe({**settings, "out": str(tmp_path / "run")}))
    header, *new = (folder / "new.csv").read_text().splitlines()
    sealed = (folder / ("test.csv" if given else "train.csv")).read_text().splitlines()[1:]
    (tmp_path / "mixed.csv").write_text("\n".join([header, *new, *sealed]))
    assert "Most of the sealed test set" in made.evaluate(str(tmp_path / "mixed.csv"))["note"]
    assert len(openings_of(made.folder)) == 2
    (tmp_path / "few.csv").write_text("\n".join([header, *new, sealed[0]]))
    assert "sealed" not in made.evaluate(str(tmp_path / "few.csv")).get("note", "")
    assert len(openings_of(made.folder)) == 2
