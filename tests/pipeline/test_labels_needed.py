"""How many more labels: measured without the test set, told in words, in the report and by the verb."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import tiny
from gptailor.cli import app
from gptailor.errors import InputError, RecipeError, RunError
from gptailor.pipeline import curve as curves
from gptailor.pipeline.curve import in_words
from gptailor.pipeline.curve_new import curve_of
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.run import Run
from gptailor.recipe import Recipe, build_recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curve")
    tiny.build_base(folder / "base")
    tiny.write_news(folder / "news.csv", rows=240)
    return folder


def recipe_of(place: Path, **changes: Any) -> Recipe:
    return build_recipe(
        {
            "data": {"train": str(place / "news.csv")},
            "base": str(place / "base"),
            "approach": {"kind": "frozen", "strengths": [1, 100]},
            "evaluate": {"resamples": 200, "baselines": "none"},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    return fit_recipe(recipe_of(place, out=str(place / "run")))


@pytest.fixture(autouse=True)
def few_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirteen strengths at every size would only take longer."""
    monkeypatch.setattr(curves, "STRENGTHS", (1.0,))
    monkeypatch.setattr(curves, "WORK", 1)


def test_the_report_tells_the_curve(run: Run) -> None:
    curve = run.report["curve"]
    data = run.report["data"]
    assert curve["metric"] == "accuracy"
    assert curve["held_out"] == data["train"] + data["validation"], "few rows: each is judged out of fold"
    assert [point["rows"] for point in curve["points"]] == sorted(point["rows"] for point in curve["points"])
    assert curve["points"][-1]["score"] == curve["now"]
    assert [one["more"] for one in curve["forecasts"]] == [200, 700]
    for one in curve["forecasts"]:
        score, fresh = one["score"], one["on_new_rows"]
        assert 0 <= fresh["low"] <= score["low"] <= score["value"] <= score["high"] <= fresh["high"] <= 1
    assert curve["says"].startswith("With 200 more rows about ")
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "How many more labels?" in page
    assert 'class="band"' in page


def test_the_curve_never_sees_the_test_rows(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[tuple[str, int]]] = []
    features_of = curves.features_of

    def spy(shop: Any, model: Any, rows: Any) -> Any:
        seen.append({(row.source, row.row) for row in rows})
        test = {(row.source, row.row) for row in shop.tokens.rows["test"]}
        assert not seen[-1] & test
        return features_of(shop, model, rows)

    monkeypatch.setattr(curves, "features_of", spy)
    curve_of(recipe_of(place), more=[50])
    assert len(seen) == 1


def test_a_run_has_the_curve_of_its_own_data(run: Run, place: Path, tmp_path: Path) -> None:
    of_run = curve_of(run.folder, more=[100])
    of_data = curve_of(recipe_of(place), more=[100])
    assert of_run["points"] == of_data["points"]
    assert of_run["forecasts"] == of_data["forecasts"]
    assert of_run["forecasts"][0]["rows"] == of_run["rows"] + 100
    assert not list(tmp_path.iterdir())


def test_rows_that_taught_the_base_are_told(run: Run, place: Path, tmp_path: Path) -> None:
    few_steps = {"approach": "full", "train": {"length": "2 steps", "dropout": 0.0}}
    taught = fit_recipe(recipe_of(place, **few_steps, out=str(tmp_path / "run")))
    found = curve_of(recipe_of(place, base=str(taught.folder)))
    rows = sum(taught.report["data"][part] for part in ("train", "validation"))
    assert found["taught_before"] == rows
    assert f"{rows} of the {rows} rows for training and validation taught the base" in found["says"]
    # Of a frozen run only the head has learned, which a curve leaves behind.
    untaught = curve_of(recipe_of(place, base=str(run.folder)))
    assert untaught["taught_before"] == 0
    assert "taught" not in untaught["says"]


def test_validation_rows_that_are_given_judge(place: Path, tmp_path: Path) -> None:
    lines = (place / "news.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "train.csv").write_text("\n".join(lines[:201]), encoding="utf-8")
    (tmp_path / "held.csv").write_text("\n".join([lines[0], *lines[201:]]), encoding="utf-8")
    files = {"train": str(tmp_path / "train.csv"), "validation": str(tmp_path / "held.csv")}
    assert curve_of(recipe_of(place, data=files))["held_out"] == 40


def test_nearly_as_many_labels_as_rows_have_a_curve_too(place: Path, tmp_path: Path) -> None:
    """Two sizes or one would leave the forecast without a number."""
    dice = random.Random(0)
    rows = [(" ".join(dice.choices(tiny.WORDS.split(), k=8)), f"topic {n % 60}") for n in range(300)]
    lines = [f"{text},{label}\n" for text, label in rows]
    (tmp_path / "many.csv").write_text("text,label\n" + "".join(lines), encoding="utf-8")
    data = {"train": str(tmp_path / "many.csv"), "clean": {"minimum_class_size": 1, "merge_labels": False}}
    report = fit_recipe(recipe_of(place, data=data, out=str(tmp_path / "run"))).report
    assert report["data"]["train"] >= curves.FEWEST_TEXTS
    curve = report["curve"]
    assert len(curve["points"]) >= 3
    assert all(0 <= one["score"]["low"] <= one["score"]["high"] <= 1 for one in curve["forecasts"])


def test_what_has_no_curve_is_refused(place: Path, tmp_path: Path, run: Run) -> None:
    few = tiny.write_news(tmp_path / "few.csv", rows=60)
    with pytest.raises(InputError, match="a curve needs 100"):
        curve_of(recipe_of(place, data={"train": str(few)}))
    with pytest.raises(RecipeError, match="this is language"):
        curve_of(recipe_of(place, task="language", approach="full"))
    with pytest.raises(RunError, match="no recipe"):
        curve_of(tmp_path)
    with pytest.raises(InputError, match="can't be forecast"):
        curve_of(recipe_of(place), more=[10**6])
    text = (place / "news.csv").read_text(encoding="utf-8")
    try:
        (place / "news.csv").write_text(text + "one more row,sports\n", encoding="utf-8")
        with pytest.raises(RunError, match="changed"):
            curve_of(run.folder)
    finally:
        (place / "news.csv").write_text(text, encoding="utf-8")


def test_numbers_have_no_curve_and_sets_have_micro_f1(place: Path, tmp_path: Path) -> None:
    numbers = recipe_of(
        place, data={"train": str(tiny.write_ratings(tmp_path / "r.csv", rows=180))}, task_answer="score"
    )
    with pytest.raises(InputError, match="these are numbers"):
        curve_of(numbers)
    topics = recipe_of(place, data={"train": str(tiny.write_topics(tmp_path / "t.jsonl", rows=180))})
    found = curve_of(topics)
    assert found["metric"] == "micro_f1"
    assert "micro-F1" in found["says"]


def test_the_words_weigh_the_interval() -> None:
    def says(low: float, value: float, high: float, approach: str = "frozen") -> str:
        told = [{"more": 2000, "rows": 4000, "score": {"low": low, "value": value, "high": high}}]
        return in_words(told, now=0.85, metric="accuracy", approach=approach)

    assert says(0.855, 0.861, 0.88).startswith(
        "With 2,000 more rows about 86.1 % accuracy (85.5 to 88.0); now, with 2,000, it is 85.0 %."
    )
    assert "would help" in says(0.855, 0.861, 0.88)
    assert "may help" in says(0.84, 0.861, 0.88)
    assert "hardly help" in says(0.84, 0.851, 0.855)
    assert says(0.855, 0.861, 0.88).endswith("not on the test's.")
    assert "frozen features" in says(0.855, 0.861, 0.88, approach="full")


def test_windows_of_a_text_stay_together(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = recipe_of(
        place, data={"train": str(place / "news.csv"), "too_long": "window", "max_tokens": 16}
    )
    whole = curves._splits_of
    seen = []

    def spy(shop: Any) -> Any:
        splits = whole(shop)
        seen.append(splits)
        return splits

    monkeypatch.setattr(curves, "_splits_of", spy)
    found = curve_of(windows)
    (splits,) = seen
    assert len(splits.rows) > len(splits.answers), "some texts have several windows"
    assert len(splits.answers) == splits.held_out == found["held_out"]
    for inside, outside in splits.parts:
        assert not set(inside.tolist()) & set(outside.tolist())
    assert np.concatenate([outside for _, outside in splits.parts]).size == splits.held_out


def test_the_verb_prints_and_writes(place: Path, tmp_path: Path) -> None:
    arguments = ["curve", str(place / "news.csv"), "--base", str(place / "base"), "--more", "100"]
    result = CliRunner().invoke(app, [*arguments, "--json", "--page", str(tmp_path / "curve.html")])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert [one["more"] for one in found["forecasts"]] == [100]
    assert "How many more labels?" in (tmp_path / "curve.html").read_text(encoding="utf-8")


def test_a_curve_does_not_stop_where_all_answers_are_the_commonest_label(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under strong regularization labels that are uneven give one score again and again."""
    scores = iter([0.9, 0.9, 0.9, 0.9, 0.92, 0.98, 0.98, 0.97, 0.96, 0.99])
    monkeypatch.setattr(curves, "_scores", lambda *_: np.array([[next(scores)]]))
    splits: Any = SimpleNamespace(parts=[(np.arange(8), np.arange(2))])
    strength, best = curves.best_strength(Any, splits, Any, range(1, 11))  # type: ignore[arg-type]
    assert (strength, float(best.mean())) == (6, 0.98)
    scores = iter([0.9, 0.8, 0.8, 0.7])
    assert curves.best_strength(Any, splits, Any, range(1, 11))[0] == 1, "three worse ones are enough"  # type: ignore[arg-type]
