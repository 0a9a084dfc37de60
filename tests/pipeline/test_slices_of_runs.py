"""Slices on the road: carried from the file to the test rows, scored, told, refused where they can't be."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import tiny
import tiny_texts as texts
from gptailor.errors import DataError, InputError, RecipeError
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.run import Run, load
from gptailor.recipe import build_recipe

ROWS = 300


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with a language; one language's labels are drawn by lot, so nobody can get them right."""
    folder = tmp_path_factory.mktemp("slices")
    tiny.build_base(folder / "base")
    lines = tiny.write_news(folder / "plain.csv", rows=ROWS).read_text(encoding="utf-8").splitlines()[1:]
    labels = ["sports", "business", "health"]
    with (folder / "news.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "language"])
        for row, line in enumerate(lines):
            text, label = line.rsplit(",", 1)
            is_odd = row % 3 == 0
            wrong = labels[(labels.index(label) + 1 + row // 3 % 2) % 3]
            writer.writerow([text, wrong if is_odd else label, "xx" if is_odd else "=en"])
    return folder


def settings(place: Path, **evaluate: object) -> dict[str, object]:
    return {
        "data": {"train": str(place / "news.csv"), "split": {"test": 0.5}, "text": "text", "label": "label"},
        "base": str(place / "base"),
        "approach": {"kind": "frozen", "strengths": [100]},
        "evaluate": {"resamples": 200, "baselines": "none", **evaluate},
    }


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    values = {**settings(place, slices=["language"]), "out": str(place / "run")}
    return fit_recipe(build_recipe(values))


def test_every_test_row_is_in_one_slice_of_each_column(run: Run) -> None:
    by = run.report["slices"]["by"]
    assert list(by) == ["length", "language"]
    for slices in by.values():
        assert sum(one["rows"] for one in slices) == run.report["data"]["test"]
        for one in slices:
            assert one["accuracy"]["low"] <= one["accuracy"]["value"] <= one["accuracy"]["high"]
            assert one["macro_f1"]["low"] <= one["macro_f1"]["value"] <= one["macro_f1"]["high"]
    assert by["length"][0]["slice"].startswith("short")


def test_the_slice_that_nobody_can_get_right_is_the_worst_and_warned_of(run: Run) -> None:
    slices = run.report["slices"]
    assert (slices["worst"]["by"], slices["worst"]["slice"]) == ("language", "xx")
    assert slices["worst"]["much_worse"]
    assert slices["worst"]["p"] < 0.05
    assert any(warning.startswith("language 'xx' is much worse") for warning in slices["warnings"])
    assert not any("'=en'" in warning for warning in slices["warnings"])
    assert "Fisher" in slices["test"]
    assert "Holm" in slices["test"]


def test_the_values_stand_in_predictions_csv_and_agree_with_the_scores(run: Run) -> None:
    with (run.folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    odd = [row for row in rows if row["slice(language)"] == "xx"]
    found = next(one for one in run.report["slices"]["by"]["language"] if one["slice"] == "xx")
    assert found["rows"] == len(odd)
    right = sum(row["answer"] == row["prediction"] for row in odd) / len(odd)
    assert found["accuracy"]["value"] == pytest.approx(right, abs=1e-6)
    others = {row["slice(language)"] for row in rows} - {"xx"}
    assert others == {"'=en"}, "a formula is defused"


def test_the_page_shows_slices_and_the_warning(run: Run) -> None:
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "Is it fair to every group?" in page
    assert "Much worse than the rest" in page


def test_a_new_file_is_sliced_too(run: Run, place: Path) -> None:
    result = load(run.folder).evaluate(str(place / "news.csv"), slices=["language"])
    assert [one["slice"] for one in result["slices"]["by"]["language"]] == ["=en", "xx"]
    assert result["slices"]["worst"]["slice"] == "xx"
    with pytest.raises(DataError, match=r"no column 'langage' to slice by.*language"):
        load(run.folder).evaluate(str(place / "news.csv"), slices=["langage"])


def test_a_given_test_file_must_hold_the_column_and_training_need_not(place: Path, tmp_path: Path) -> None:
    values = settings(place, slices=["language"])
    values["data"] = {
        "train": str(place / "plain.csv"),
        "test": str(place / "news.csv"),
        "text": "text",
        "label": "label",
    }
    with pytest.raises(DataError, match="remain"):  # all of them leak; no fault of slices
        fit_recipe(build_recipe({**values, "out": str(tmp_path / "a")}))
    values["data"] = {"train": str(place / "news.csv"), "test": str(place / "plain.csv")}
    with pytest.raises(DataError, match="no column 'language' to slice by"):
        fit_recipe(build_recipe({**values, "out": str(tmp_path / "b")}))


def test_written_answers_are_scored_by_what_they_cost(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    """One source answers with what the prompt says, the other with anything: its answers cost more."""
    rows = [
        {
            "prompt": texts.words(seed, 4 + seed % 7),
            "completion": "the cup" if seed % 2 else texts.words(seed + 5000, 6),
            "source": "noise" if seed % 2 == 0 else "club",
        }
        for seed in range(240)
    ]
    values = {
        "data": {"train": str(texts.write_csv(tmp_path / "rows.csv", rows)), "split": {"test": 0.4}},
        "task": "completion",
        "base": str(tiny_bases["gpt2"]),
        "approach": "full",
        "train": {"length": "60 steps", "learning_rate": 0.01, "patience": 0},
        "evaluate": {"baselines": "none", "resamples": 100, "generated_rows": 10, "slices": ["source"]},
        "out": str(tmp_path / "run"),
    }
    made = fit_recipe(build_recipe(values))
    slices = made.report["slices"]
    assert list(slices["by"]) == ["length", "source"]
    assert [one["slice"] for one in slices["by"]["source"]] == ["club", "noise"]
    assert sum(one["rows"] for one in slices["by"]["length"]) == made.report["test"]["rows"]
    assert (slices["worst"]["slice"], slices["worst"]["much_worse"]) == ("noise", True), slices
    (warning,) = [line for line in slices["warnings"] if "'noise'" in line]
    assert "is much worse than the rest: answers cost" in warning
    assert "bits per byte" in warning
    page = (made.folder / "report.html").read_text(encoding="utf-8")
    assert "Worst slice: source" in page
    found = load(made.folder).evaluate(str(tmp_path / "rows.csv"), slices=["source"])
    assert found["slices"]["worst"]["slice"] == "noise"
    with pytest.raises(DataError, match="no column 'sauce' to slice by"):
        load(made.folder).evaluate(str(tmp_path / "rows.csv"), slices=["sauce"])
    values["evaluate"] = {**values["evaluate"], "slices": ["sauce"]}
    with pytest.raises(DataError, match="no column 'sauce' to slice by"):
        fit_recipe(build_recipe({**values, "out": str(tmp_path / "other")}))


def test_other_tasks_refuse_slices(place: Path, tmp_path: Path) -> None:
    values = {**settings(place, slices=["language"]), "task": "language", "out": str(tmp_path / "c")}
    values["data"] = {"train": str(place / "plain.csv")}
    del values["approach"]
    with pytest.raises(RecipeError, match="is for classification"):
        fit_recipe(build_recipe(values))


def test_a_run_of_text_refuses_them_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "task", "language")
    with pytest.raises(InputError, match="slices are of labels and of written answers"):
        Run(run.folder).evaluate("any.csv", slices=["language"])
