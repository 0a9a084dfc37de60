"""Several labels a row, and numbers, the whole way: fit by every approach, load anywhere, predict, serve."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import gptailor
import tiny
from gptailor.errors import DataError, RecipeError
from gptailor.evaluate.label_sets import micro_f1
from gptailor.models.onnx_file import _build_graph
from gptailor.models.predictor import load_predictor
from gptailor.pipeline.answers import predict_inputs, predict_to
from gptailor.pipeline.check import check_recipe
from gptailor.pipeline.run import Run
from gptailor.recipe import build_recipe, load_recipe
from gptailor.serve.app import build_app

APPROACHES = ("frozen", "full", "lora", "scratch", "auto")
LABELS = ["business", "health", "sports"]
TEXTS = ["the cup final and the bank", "in town 12 5", "a vaccine trial", "東京 🏆"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("kinds")
    tiny.build_base(folder / "base")
    tiny.write_topics(folder / "topics.jsonl", rows=330)
    tiny.write_ratings(folder / "ratings.csv", rows=330)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTAILOR_CACHE", str(folder / "cache"))
        yield folder


def values(place: Path, kind: str, approach: Any, **more: Any) -> dict[str, Any]:
    return {
        "base": str(place / "base"),
        "approach": {"kind": "frozen", "strengths": [1, 100]} if approach == "frozen" else approach,
        "task_answer": "score" if kind == "score" else "auto",
        "data": {"clean": {"near_duplicates": False}},
        "train": {"length": "30 steps", "validations_per_epoch": 1, **more.pop("train", {})},
        "evaluate": {"baselines": "none", "resamples": 100},
        "out": str(place / f"{kind}-{approach}"),
        **more,
    }


@pytest.fixture(
    scope="module", params=[(k, a) for k in ("multiple", "score") for a in APPROACHES], ids="-".join
)
def run(place: Path, request: pytest.FixtureRequest) -> Run:
    kind, approach = request.param
    data = place / ("ratings.csv" if kind == "score" else "topics.jsonl")
    return gptailor.fit(data, settings=values(place, kind, approach))


def test_other_tools_load_the_folder_and_agree(run: Run) -> None:
    """Logits, and transformers' own loss by the problem type that stands in the configuration."""
    model = AutoModelForSequenceClassification.from_pretrained(run.folder / "model").eval().double()
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "model")
    form = run.predictor.form
    kinds = {"multiple": "multi_label_classification", "score": "regression"}
    assert model.config.problem_type == kinds[form.kind]
    for text in TEXTS:
        encoded = run.predictor.encode(text)
        ours = run.predictor.logits([encoded])[0]
        tokens = tokenizer(text, return_tensors="pt")
        assert tokens["input_ids"][0].tolist() == list(encoded.sequences[0])
        with torch.no_grad():
            theirs = model(**tokens).logits[0].numpy()  # finer than fp32: a logit may be 50
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_the_report_says_what_the_predictions_say(run: Run) -> None:
    """The test scores of report.json, computed again from predictions.csv."""
    report, form = run.report, run.predictor.form
    with (run.folder / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == report["test"]["rows"] == report["data"]["test"]
    assert report["answer"] == form.kind
    if form.kind == "score":
        errors = np.array([float(row["answer"]) - float(row["prediction"]) for row in rows])
        assert report["test"]["rmse"]["value"] == pytest.approx(float(np.sqrt((errors**2).mean())), abs=1e-5)
        assert "probability" not in rows[0]
        return
    sets = [
        np.array([[name in labels_of(row[key]) for name in LABELS] for row in rows]).astype(np.int64)
        for key in ("answer", "prediction")
    ]
    assert report["test"]["micro_f1"]["value"] == pytest.approx(micro_f1(*sets), abs=1e-5)
    by_cutoff = [[float(row[f"p({name})"]) >= form.cutoff for name in LABELS] for row in rows]
    assert (np.array(by_cutoff) == sets[1]).all()


def labels_of(cell: str) -> list[str]:
    return [] if cell == "[]" else cell.split(";")


def test_it_learns_what_there_is_to_learn(place: Path) -> None:
    """Better than the constant answer by far; the frozen head on random features is enough for these rows."""
    data = place / "topics.jsonl"
    settings = values(place, "multiple", "frozen", out=str(place / "ladder"))
    report = gptailor.fit(data, settings={**settings, "evaluate": {"resamples": 100}}).report
    assert report["test"]["micro_f1"]["value"] > 0.9
    assert report["baselines"]["majority"]["micro_f1"]["value"] < 0.6
    assert report["baselines"]["tfidf"]["micro_f1"]["value"] > 0.9
    assert report["baselines"]["zero_shot"]["skipped"]
    settings = values(place, "score", "frozen", out=str(place / "ladder-score"))
    report = gptailor.fit(place / "ratings.csv", settings={**settings, "evaluate": {"resamples": 100}}).report
    assert report["test"]["rmse"]["value"] < 0.7 * report["baselines"]["mean"]["rmse"]["value"]
    assert report["baselines"]["tfidf_ridge"]["mae"]["value"] < report["baselines"]["mean"]["mae"]["value"]
    assert report["verdict"]["metric"] == "rmse"


@pytest.fixture(scope="module")
def several(place: Path) -> Run:
    return Run(gptailor.fit(place / "topics.jsonl", settings=values(place, "multiple", "frozen")).folder)


@pytest.fixture(scope="module")
def score(place: Path) -> Run:
    return Run(gptailor.fit(place / "ratings.csv", settings=values(place, "score", "frozen")).folder)


def test_file_prompt_and_server_agree_on_sets(place: Path, several: Run) -> None:
    source = place / "new.csv"
    source.write_text("text\n" + "\n".join(TEXTS) + "\n", encoding="utf-8")
    predict_to(
        several.folder, str(source), out=place / "new-out.csv", text=None, columns=None, to_stdout=False
    )
    with (place / "new-out.csv").open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    asked = predict_inputs(several.folder, TEXTS)
    with TestClient(build_app([load_predictor(several.folder)])) as client:
        content = client.post("/classify", json={"input": TEXTS}).json()
        assert client.get("/v1/models").json()["data"][0]["answer"] == "multiple"
    for row, answer, item in zip(written, asked, content["data"], strict=True):
        assert row["label"] == answer["label"] == item["label"]
        assert labels_of(row["label"]) == answer["labels"] == item["labels"]
        assert item["label_probs"] == answer["probabilities"]
        assert [float(row[f"p({name})"]) for name in LABELS] == item["probs"]
        cutoff = several.predictor.form.cutoff
        assert item["labels"] == [n for n, p in item["label_probs"].items() if p >= cutoff]
    assert asked[1]["label"] == "[]"
    assert asked[1]["labels"] == []


def test_file_prompt_and_server_agree_on_numbers(place: Path, score: Run) -> None:
    source = place / "new.csv"
    source.write_text("text\n" + "\n".join(TEXTS) + "\n", encoding="utf-8")
    predict_to(score.folder, str(source), out=place / "n.csv", text=None, columns=None, to_stdout=False)
    with (place / "n.csv").open(encoding="utf-8") as file:
        written = [float(row["label"]) for row in csv.DictReader(file)]
    asked = [answer["value"] for answer in predict_inputs(score.folder, TEXTS)]
    with TestClient(build_app([load_predictor(score.folder)])) as client:
        items = client.post("/classify", json={"input": TEXTS}).json()["data"]
    assert written == asked == [item["value"] for item in items]
    assert items[0]["label_probs"] == {}
    assert not items[0]["abstained"]


def test_scores_of_the_test_rows_are_those_of_the_report(place: Path, several: Run) -> None:
    """The same rows as a file of their own, divided by the separator instead of arrays."""
    with (several.folder / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    path = place / "again.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "topics"), *((row["text"], row["answer"]) for row in rows)])
    found = several.evaluate(str(path))
    assert found["rows"] == len(rows)
    for name in ("micro_f1", "macro_f1", "subset_accuracy", "hamming_loss"):
        assert found["scores"][name]["value"] == several.report["test"][name]["value"]


def test_the_resolved_recipe_repeats_the_answers(several: Run, score: Run) -> None:
    recipe = load_recipe(several.folder / "recipe.yaml")
    assert (recipe.task_answer, recipe.data.label_separator) == ("multiple", ";")
    recipe = load_recipe(score.folder / "recipe.yaml")
    assert (recipe.task_answer, recipe.data.label_separator) == ("score", None)


def test_page_and_card_speak_of_sets(several: Run) -> None:
    page = (several.folder / "report.html").read_text(encoding="utf-8")
    assert "several labels a row" in page
    assert "Micro-F1" in page
    assert "A label is given from a probability of" in page
    card = (several.folder / "README.md").read_text(encoding="utf-8")
    assert ".sigmoid()" in card
    assert "Cutoff" in card
    assert ".softmax(" not in card


def test_the_cards_code_gives_the_number(score: Run) -> None:
    card = (score.folder / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\nimport torch")[1].split("```")[0].replace('"model"', "folder")
    said: list[float] = []
    exec("import torch" + code, {"folder": str(score.folder / "model"), "print": said.append})
    (expected,) = score.predict(["your text"])
    assert expected is not None
    assert said == [pytest.approx(expected.value, rel=1e-4)]
    page = (score.folder / "report.html").read_text(encoding="utf-8")
    assert "a number a row" in page
    assert "Numbers and answers" in page
    assert "Root mean square error" in page


def test_settings_for_one_label_are_refused(place: Path) -> None:
    settings = values(place, "multiple", "frozen", out=str(place / "refused"))
    for name, value in (("class_weights", "balanced"), ("label_smoothing", 0.1)):
        with pytest.raises(RecipeError, match=f"train.{name}"):
            gptailor.fit(
                place / "topics.jsonl", settings={**settings, "train": {name: value}}, overwrite=True
            )
        data = {**settings["data"], "train": str(place / "topics.jsonl")}
        recipe = build_recipe({**settings, "data": data, "train": {name: value}})
        with pytest.raises(RecipeError, match=f"train.{name}"):
            check_recipe(recipe, estimate=False)


def test_few_rows_are_judged_by_folds(place: Path) -> None:
    tiny.write_topics(place / "few.jsonl", rows=90)
    settings = values(place, "multiple", "full", out=str(place / "few"), train={"length": "4 steps"})
    report = gptailor.fit(place / "few.jsonl", settings=settings).report
    assert report["validation"]["rows"] == report["data"]["train"] + report["data"]["validation"]


def check(path: Path, place: Path, **changes: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    recipe = build_recipe({"data": {"train": str(path)}, "base": str(place / "base"), **changes})
    return dict(check_recipe(recipe, estimate=False, say=said.append).summary), said


def test_check_tells_what_was_inferred(place: Path) -> None:
    summary, said = check(place / "topics.jsonl", place)
    assert summary["answer"] == "multiple"
    assert list(summary["labels"]) == LABELS
    assert any("--set task_answer=single" in line for line in said)
    assert any("none in 55 rows" in line for line in summary["notes"])


def test_a_number_is_hinted_at_and_never_taken(place: Path) -> None:
    path = place / "many.csv"
    path.write_text("text,rating\n" + "".join(f"town {n} and {n * n},{n / 7}\n" for n in range(60)))
    with pytest.raises(DataError, match="0 usable rows"):
        check(path, place)
    said: list[str] = []
    recipe = build_recipe({"data": {"train": str(path)}, "base": str(place / "base")})
    with pytest.raises(DataError):
        check_recipe(recipe, estimate=False, say=said.append)
    assert any("60 different numbers" in line and "task_answer=score" in line for line in said)
    summary, _ = check(path, place, task_answer="score")
    assert summary["train"] == 42


def test_a_cell_that_is_no_number_is_counted(place: Path) -> None:
    path = tiny.write_ratings(place / "gaps.csv", rows=60)
    lines = path.read_text().splitlines()
    lines[3] = lines[3].rpartition(",")[0] + ",n/a"
    path.write_text("\n".join(lines) + "\n")
    summary, _ = check(path, place, task_answer="score")
    assert summary["dropped"]["no_label"] == 1
    with pytest.raises(DataError, match="hold no number"):
        check(tiny.write_news(place / "news.csv"), place, task_answer="score")


def test_rare_labels_leave_new_files_as_they_left_training(place: Path) -> None:
    lines = [json.loads(line) for line in (place / "topics.jsonl").read_text().splitlines()]
    lines[0]["topics"] = ["rare"]
    lines[1]["topics"] = ["rare", "sports"]
    path = place / "rare.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    run = gptailor.fit(path, settings=values(place, "multiple", "frozen", out=str(place / "rare")))
    assert run.report["data"]["dropped"]["rare_label"] == 1
    assert list(run.predictor.label_names) == LABELS
    found = run.evaluate(str(path))
    assert found["left_out"] == 1
    lines[2]["topics"] = ["unheard"]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    with pytest.raises(DataError, match=r"'unheard'(?s:.*)take these labels out"):
        run.evaluate(str(path))


@pytest.mark.parametrize("kind", ["multiple", "score"])
def test_a_graph_for_other_runtimes_says_what_the_run_says(several: Run, score: Run, kind: str) -> None:
    """The second output of the exported graph, which other programs read without us."""
    run = several if kind == "multiple" else score
    graph = _build_graph(run.predictor.bundle)
    for text in TEXTS:
        encoded = run.predictor.encode(text)
        ids = torch.tensor([encoded.sequences[0]])
        with torch.no_grad():
            _, said = graph(ids, torch.tensor([ids.shape[1] - 1]))
        assert said[0].tolist() == pytest.approx(run.predictor.run([encoded])[0].tolist(), rel=1e-5, abs=1e-5)


def test_a_column_of_arrays_is_the_label_whatever_its_name(place: Path) -> None:
    path = place / "named.jsonl"
    path.write_text((place / "topics.jsonl").read_text().replace('"topics"', '"about"'))
    summary, _ = check(path, place)
    assert summary["label"] == "about"
    assert summary["answer"] == "multiple"
