"""`predict --rank uncertain`: every row once, the doubtful first, those without an answer at the end."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import tiny
from gptailor.errors import InputError
from gptailor.pipeline.answers import predict_to
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.rank import rank_file
from gptailor.pipeline.run import Run
from gptailor.recipe import build_recipe
from gptailor.serve.label import label_file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("rank")
    values = {
        "data": {"train": str(tiny.write_news(folder / "news.csv"))},
        "base": str(tiny.build_base(folder / "base")),
        "approach": "frozen",
        "out": str(folder / "run"),
        "evaluate": {"baselines": "none", "resamples": 100},
    }
    return fit_recipe(build_recipe(values))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "new.csv"
    words = (
        "the cup final",
        "the bank",
        "a vaccine trial",
        "the flu and the race",
        "rain",
        "its shares and doctors",
    )
    lines = [f"{words[row % 6]} in town {row}" for row in range(40)]
    path.write_text("text\n" + "\n".join([*lines[:20], '""', *lines[20:], lines[0]]) + "\n")
    return path


def test_predict_orders_the_rows_and_keeps_each(run: Run, rows: Path, tmp_path: Path) -> None:
    settings = {"text": "text", "columns": None, "to_stdout": False}
    result = predict_to(run.folder, str(rows), out=tmp_path / "out.csv", rank=True, **settings)
    assert (result["rows"], result["answered"], result["rejected"]) == (42, 41, 1)
    predict_to(run.folder, str(rows), out=tmp_path / "plain.csv", **settings)
    with (
        (tmp_path / "out.csv").open(newline="") as ranked,
        (tmp_path / "plain.csv").open(newline="") as plain,
    ):
        found, usual = list(csv.DictReader(ranked)), list(csv.DictReader(plain))
    assert "doubt" not in usual[0]
    doubts = [float(line["doubt"]) for line in found[:-1]]
    assert found[-1]["rejected"] == "no text"
    assert found[-1]["doubt"] == ""
    without = [{key: line[key] for key in usual[0]} for line in found]
    assert sorted(without, key=lambda line: int(line["row"])) == usual  # the very same answers
    for line, doubt in zip(found, doubts, strict=False):
        top = sorted((float(line[key]) for key in line if key.startswith("p(")), reverse=True)
        assert doubt == pytest.approx(1 - (top[0] - top[1]))
    assert doubts[0] > sum(doubts) / len(doubts)


def test_the_page_asks_the_most_telling_first(run: Run, rows: Path, tmp_path: Path) -> None:
    file = label_file(str(rows), run=run.folder, text="text", out=tmp_path / "labels.csv")
    assert file.labels == list(run.predictor.label_names)
    ranked = [one.text for one in rank_file(run, str(rows), text="text") if one.answer is not None]
    assert [row.text for row in file.rows] == list(dict.fromkeys(ranked))


def test_runs_without_labels_are_refused(run: Run, rows: Path, tmp_path: Path) -> None:
    values = {
        "data": {"train": str(tiny.write_ratings(tmp_path / "ratings.csv")), "label": "rating"},
        "task_answer": "score",
        "base": str(run.folder.parent / "base"),
        "approach": "frozen",
        "out": str(tmp_path / "run"),
        "evaluate": {"baselines": "none", "resamples": 100},
    }
    scored = fit_recipe(build_recipe(values))
    with pytest.raises(InputError, match="answer with labels"):
        rank_file(scored, str(rows), text="text")
