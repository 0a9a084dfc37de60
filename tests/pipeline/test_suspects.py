"""The verb that ranks labels, the list in every run, and what fixing them did, end to end on a tiny base."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import gptailor
import tiny
from crashed import Crash
from gptailor.errors import DataError, RecipeError
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.out_of_fold import rank_suspects
from gptailor.pipeline.place import Listener
from gptailor.pipeline.run import Run
from gptailor.recipe import Recipe, build_recipe

WRONG = range(10, 210, 10)  # places of rows whose label is changed
Lines = list[dict[str, str]]


def recipe_for(folder: Path, base: Path, **values: Any) -> Recipe:
    data = {"train": str(folder / "news.csv"), **values.pop("data", {})}
    evaluate = {"baselines": "none", "resamples": 100}
    approach = {"kind": "frozen", "strengths": [1, 10]}
    return build_recipe(
        {"base": str(base), "data": data, "approach": approach, "evaluate": evaluate, **values}
    )


def read(path: Path) -> Lines:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, lines: Lines) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


@pytest.fixture(scope="module")
def base(tiny_bases: dict[str, Path]) -> Path:
    return tiny_bases["gpt2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 rows of news, every tenth from the tenth on with the label that comes next in the alphabet."""
    folder = tmp_path_factory.mktemp("suspects")
    lines = read(tiny.write_news(folder / "news.csv", rows=240))
    labels = sorted({line["label"] for line in lines})
    (folder / "truth.json").write_text(json.dumps([line["label"] for line in lines]))
    for place in WRONG:
        lines[place]["label"] = labels[(labels.index(lines[place]["label"]) + 1) % len(labels)]
    write(folder / "news.csv", lines)
    return folder


@pytest.fixture(scope="module")
def ranked(folder: Path, base: Path) -> Lines:
    out = folder / "ranked.csv"
    found = rank_suspects(recipe_for(folder, base), top=len(WRONG), out=out)
    lines = read(out)
    assert [(one.row, one.suggestion) for one in found] == [(int(e["row"]), e["suggestion"]) for e in lines]
    return lines


@pytest.fixture(scope="module")
def fixed(folder: Path, base: Path, ranked: Lines) -> Run:
    """A run with the rows above corrected as a person would: the first dropped, the second left empty."""
    truth = json.loads((folder / "truth.json").read_text())
    lines = [dict(line, correction=truth[int(line["row"]) - 2]) for line in ranked]
    lines[0]["correction"], lines[1]["correction"] = "drop", ""
    write(folder / "corrected.csv", lines)
    data = {"fix": str(folder / "corrected.csv")}
    return gptailor.fit(recipe_for(folder, base, data=data, out=str(folder / "run")))


def test_changed_labels_are_ranked_first(ranked: Lines, folder: Path) -> None:
    truth = json.loads((folder / "truth.json").read_text())
    wrong = [line["label"] != truth[int(line["row"]) - 2] for line in ranked]
    assert len(ranked) == len(WRONG)
    assert sum(wrong) >= 0.8 * len(WRONG), "models of rows that share their words know better"
    right = [line["suggestion"] == truth[int(line["row"]) - 2] for line in ranked]
    assert sum(right) >= 0.8 * len(WRONG)
    scores = [float(line["score"]) for line in ranked]
    assert scores == sorted(scores, reverse=True)
    assert {line["correction"] for line in ranked} == {""}
    assert all(f"models give {line['suggestion']}" in line["reason"] for line in ranked)


def test_what_fixing_did_is_told(fixed: Run, ranked: Lines) -> None:
    fixes = fixed.report["fixes"]
    assert (fixes["dropped"], fixes["relabelled"] + fixes["unchanged"]) == (1, len(WRONG) - 2)
    gap = fixes["with"]["macro_f1"]["value"] - fixes["without"]["macro_f1"]["value"]
    assert fixes["difference"]["value"] == pytest.approx(gap, abs=1e-5)
    assert f"{fixes['relabelled']} labels corrected and 1 row dropped" in fixes["says"]
    assert fixes["with"]["macro_f1"] == fixed.report["test"]["macro_f1"], "the head that the run keeps"
    assert fixes["says"] in (fixed.folder / "report.html").read_text("utf-8").replace("&#39;", "'")


def test_corrections_are_counted_in_ledger_and_summary(fixed: Run) -> None:
    summary = json.loads((fixed.folder / "data" / "summary.json").read_text("utf-8"))
    assert summary["dropped"] == {"reviewed": 1}
    assert summary["fixes"]["dropped"] == 1
    lines = [
        json.loads(line) for line in (fixed.folder / "data" / "ledger.jsonl").read_text("utf-8").splitlines()
    ]
    told = [line for line in lines if "label corrected from" in line["detail"]]
    assert len(told) == summary["fixes"]["relabelled"] == fixed.report["fixes"]["relabelled"]
    in_test = sum(line["part"] == "test" for line in told)
    assert fixed.report["fixes"]["relabelled_in_test"] == in_test
    assert ("stand in the test set" in fixed.report["fixes"]["says"]) == (in_test > 0)


def test_a_finished_run_is_known_with_its_corrections(fixed: Run, folder: Path, base: Path) -> None:
    data = {"fix": str(folder / "corrected.csv")}
    recipe = recipe_for(folder, base, data=data, out=str(folder / "run"))
    before = (fixed.folder / "report.json").stat().st_mtime_ns
    gptailor.fit(recipe)
    assert (fixed.folder / "report.json").stat().st_mtime_ns == before, "nothing was done again"


def test_every_run_ranks_its_training_and_validation_rows(fixed: Run) -> None:
    lines = (fixed.folder / "data" / "ledger.jsonl").read_text("utf-8").splitlines()
    part = {entry["row"]: entry["part"] for entry in map(json.loads, lines)}
    listed = read(fixed.folder / "data" / "suspects.csv")
    assert all(part[int(line["row"])] in ("train", "validation") for line in listed)


def test_sets_of_labels_and_other_tasks_are_refused(folder: Path, base: Path, tmp_path: Path) -> None:
    topics = tiny.write_topics(tmp_path / "topics.csv")
    recipe = build_recipe({"base": str(base), "data": {"train": str(topics)}})
    with pytest.raises(DataError, match="several labels a row"):
        rank_suspects(recipe, out=tmp_path / "s.csv")
    with pytest.raises(RecipeError, match=r"data\.fix: is for classification; the task is language"):
        gptailor.fit(recipe_for(folder, base, task="language", data={"fix": "corrected.csv"}))


def test_a_list_that_was_filled_in_before_the_run_ended_stays(
    folder: Path, base: Path, tmp_path: Path
) -> None:
    """A run that was stopped while its baselines ran has left a list; a person works on it meanwhile."""
    recipe = recipe_for(folder, base, out=str(tmp_path / "run"))
    path = tmp_path / "run" / "data" / "suspects.csv"

    def fill(line: str) -> None:
        if line == "opening the sealed test set":
            raise Crash

    with pytest.raises(Crash):
        fit_recipe(recipe, listener=Listener(say=fill))
    lines = read(path)
    lines[0]["correction"] = "drop"
    write(path, lines)
    said: list[str] = []
    fit_recipe(recipe, listener=Listener(say=said.append))
    assert read(path)[0]["correction"] == "drop"
    assert any("holds corrections" in line for line in said)
