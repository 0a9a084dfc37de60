"""Under 200 training rows: folds choose the settings, answers are out of fold, the model sees every row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import gptailor
import tiny
from gptailor.errors import DataError
from gptailor.evaluate.run import macro_f1
from gptailor.launch import StopRequest
from gptailor.models.approach import fit_frozen_head
from gptailor.models.load import load_classifier
from gptailor.pipeline import frozen, kinds, settle, trained
from gptailor.pipeline.fit import VALIDATION_TAUGHT, open_workshop, validation_taught
from gptailor.pipeline.frozen import features_of, features_of_names, run_frozen
from gptailor.pipeline.ladder import cheap_rungs
from gptailor.pipeline.place import Listener, Trained, TrainingPlace
from gptailor.pipeline.plan import STEPPING
from gptailor.pipeline.prepare import prepare
from gptailor.pipeline.trained import refit_steps, run_trained, steps_after_folds
from gptailor.pipeline.workshop import Candidate, Workshop, few_rows, fold_numbers, folds_of
from gptailor.recipe import FrozenApproach, FullApproach, LoraApproach, build_recipe
from gptailor.types import TokenizedExample

STRENGTHS = [0.01, 1, 100]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    tiny.build_base(folder / "base")
    lines = tiny.write_news(folder / "news.csv", rows=100).read_text().splitlines()
    for row in range(1, 100, 7):  # two windows each
        text, label = lines[row].split(",")
        lines[row] = f"{text} {'and so on ' * 6},{label}"
    (folder / "news.csv").write_text("\n".join(lines) + "\n")
    return folder


def build_shop(place: Path, folder: Path, **changes: Any) -> Workshop:
    recipe = build_recipe(
        {
            "data": {"train": str(place / "news.csv"), "max_tokens": 32, "too_long": "window"},
            "base": str(place / "base"),
            **changes,
        }
    )
    return open_workshop(recipe, prepare(recipe), folder, Listener())


@pytest.fixture
def shop(place: Path, tmp_path: Path) -> Workshop:
    return build_shop(place, tmp_path)


def rows_of(shop: Workshop) -> list[TokenizedExample]:
    return [*shop.tokens.rows["train"], *shop.tokens.rows["validation"]]


def answers_of(shop: Workshop) -> list[int | None]:
    """The labels of every text that is trained on or validates, in order."""
    return [example.label for part in ("train", "validation") for example in shop.tokens.examples[part]]


def averaged(logits: Any, rows: Sequence[TokenizedExample]) -> Any:
    """The mean over each text's windows, by hand."""
    places: dict[tuple[str, int], list[int]] = {}
    for at, row in enumerate(rows):
        places.setdefault((row.source, row.row), []).append(at)
    return np.stack([logits[at].mean(axis=0) for at in places.values()])


# The folds.


def test_folds_hold_every_text_out_once_with_its_windows_and_labels_in_proportion(shop: Workshop) -> None:
    rows = rows_of(shop)
    assert len(rows) > len(answers_of(shop)) + 10, "there are windows"
    folds = folds_of(rows, seed=0)
    assert len(folds) == 5
    held = np.concatenate([outside for _, outside in folds])
    assert sorted(held.tolist()) == list(range(len(rows)))
    for inside, outside in folds:
        assert sorted([*inside, *outside]) == list(range(len(rows)))
        assert {rows[at].row for at in inside}.isdisjoint(rows[at].row for at in outside)
        texts = {rows[at].row: rows[at].label for at in outside}
        assert max(Counter(texts.values()).values()) - min(Counter(texts.values()).values()) <= 2
    assert str(folds_of(rows, seed=0)) == str(folds)
    assert str(folds_of(rows, seed=1)) != str(folds)


def token_rows(labels: Sequence[int]) -> list[TokenizedExample]:
    ids, learn = np.arange(3, dtype=np.int32), np.array([False, False, True])
    return [TokenizedExample(ids, learn, "file", row, label) for row, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("sizes", "count"), [([9, 9, 3], 5), ([9, 3, 1], 3), ([9, 9, 1], 5), ([20, 20, 20], 5)]
)
def test_two_labels_decide_how_many_folds_there_are(sizes: list[int], count: int) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    folds = folds_of(token_rows(labels), seed=0)
    assert len(folds) == count
    for inside, _ in folds:
        assert len({labels[at] for at in inside}) >= 2


def test_no_fold_cuts_through_a_group() -> None:
    """Nor anything that asks for folds: whoever saw a customer's other rows knows this one's label."""
    rows = [
        replace(row, group=str(place // 4))
        for place, row in enumerate(token_rows([0, 0, 0, 0, 1, 1, 1, 1] * 10))
    ]
    for inside, outside in folds_of(rows, seed=0):
        assert {rows[at].group for at in inside}.isdisjoint(rows[at].group for at in outside)
        assert len({rows[at].label for at in outside}) == 2, "labels aren't spread evenly over the folds"


def test_groups_of_several_labels_are_dealt_out_by_all_their_rows() -> None:
    """Ten customers who wrote spam now and then: by each group's first row hardly one would count as spam."""
    labels = [1 if place % 10 in (3, 7) else 0 for place in range(100)]
    rows = [replace(row, group=str(place // 10)) for place, row in enumerate(token_rows(labels))]
    folds = folds_of(rows, seed=0)
    assert len(folds) == 5
    assert sorted(np.concatenate([outside for _, outside in folds]).tolist()) == list(range(100))
    for inside, outside in folds:
        assert {rows[at].group for at in inside}.isdisjoint(rows[at].group for at in outside)
        assert sum(labels[at] for at in outside) == 4
    numbers = fold_numbers(rows, seed=0, strata=lambda given: given)
    assert numbers is not None
    assert all((numbers[outside] == place).all() for place, (_, outside) in enumerate(folds))
    lone = [replace(row, group="all") for row in rows]
    assert fold_numbers(lone, seed=0, strata=lambda given: given) is None


def test_near_duplicates_and_a_group_column_reach_the_folds(place: Path, tmp_path: Path) -> None:
    lines = (place / "news.csv").read_text().splitlines()
    rows = [f"{line},{number // 2}" for number, line in enumerate(lines[1:])]
    (tmp_path / "grouped.csv").write_text("\n".join(["text,label,who", *rows]))
    data = {"train": str(tmp_path / "grouped.csv"), "split": {"group": "who"}}
    shop = build_shop(place, tmp_path, data=data)
    pool = rows_of(shop)
    assert len({row.group for row in pool} - {""}) > 20
    for inside, outside in folds_of(pool, seed=0):
        assert {(pool[at].row - 2) // 2 for at in inside}.isdisjoint(
            (pool[at].row - 2) // 2 for at in outside
        )


def test_near_duplicates_give_way_where_a_label_is_one_pattern() -> None:
    """Twenty rows of one sentence with another number: folds of groups would have nothing to tell apart."""
    rows = [replace(row, group=f"~{row.label}") for row in token_rows([0, 1] * 10)]
    assert len(folds_of(rows, seed=0)) == 5
    with pytest.raises(DataError, match="groups of them"):
        folds_of([replace(row, group=f"{row.label}") for row in rows], seed=0)


def test_near_duplicates_are_one_group(place: Path, tmp_path: Path) -> None:
    words = " ".join(f"word{n}" for n in range(30))
    lines = (place / "news.csv").read_text().splitlines()
    near = [f"{words} {end},sports" for end in ("first", "second", "third", "fourth", "fifth", "sixth")]
    (tmp_path / "near.csv").write_text("\n".join([*lines, *near]))
    shop = build_shop(place, tmp_path, data={"train": str(tmp_path / "near.csv")})
    parts = shop.tokens.examples.values()
    told = [{row.group for row in rows if row.text.startswith(words)} for rows in parts]
    [found] = [groups for groups in told if groups]
    assert len(found) == 1
    assert found != {""}


def test_few_rows_don_t_train_on_a_given_validation_file(place: Path, tmp_path: Path) -> None:
    tiny.write_news(tmp_path / "others.csv", rows=60)
    text = (tmp_path / "others.csv").read_text().replace("town", "village")
    (tmp_path / "others.csv").write_text(text)
    data = {"train": str(place / "news.csv"), "validation": str(tmp_path / "others.csv"), "max_tokens": 32}
    shop = build_shop(place, tmp_path, data=data)
    assert len(shop.tokens.examples["train"]) < 200
    assert not few_rows(shop)
    assert few_rows(build_shop(place, tmp_path))
    assert not few_rows(build_shop(place, tmp_path, train={"refit": False}))


def test_the_cheap_rungs_are_judged_out_of_fold_too(shop: Workshop) -> None:
    rows = [*shop.tokens.examples["train"], *shop.tokens.examples["validation"]]
    answers = np.array(answers_of(shop))
    guesses = np.empty(len(rows), np.int64)
    for inside, outside in folds_of(rows, seed=0):
        guesses[outside] = np.bincount(answers[inside]).argmax()
    rungs = {result.name: result for result in cheap_rungs(shop)}
    assert rungs["majority"].validation.tolist() == guesses.tolist()
    assert "then fitted to training and validation rows" in rungs["tfidf"].note


def test_one_label_and_a_single_other_text_are_refused() -> None:
    with pytest.raises(DataError, match="two labels"):
        folds_of(token_rows([0] * 30 + [1]), seed=0)


@pytest.mark.parametrize(("rows", "few"), [(284, True), (290, False)])
def test_200_training_rows_are_enough(rows: int, few: bool, place: Path, tmp_path: Path) -> None:
    data = tiny.write_news(tmp_path / "news.csv", rows=rows)
    shop = build_shop(place, tmp_path, data={"train": str(data)})
    assert (len(shop.tokens.examples["train"]) < 200) == few
    assert few_rows(shop) == few


# Frozen.


def head_on(shop: Workshop, model: Any, features: Any, labels: Any) -> Any:
    """A head on these rows and on the labels' names, which teach wherever rows do."""
    names = features_of_names(shop, model)
    assert len(names) == len(shop.label_names)
    features, labels = np.concatenate([features, names]), np.concatenate([labels, np.arange(len(names))])
    return fit_frozen_head(features, labels, num_labels=len(names), strength=1.0)


def test_frozen_answers_are_out_of_fold_and_in_row_order(shop: Workshop) -> None:
    candidate = run_frozen(shop, FrozenApproach(strengths=[1.0]))
    rows = rows_of(shop)
    model: Any = candidate.model
    features = features_of(shop, model, rows)
    labels = np.array([row.label for row in rows])
    logits = np.full((len(rows), 3), np.nan)
    for inside, outside in folds_of(rows, seed=0):
        weights = head_on(shop, model, features[inside], labels[inside])
        logits[outside] = features[outside] @ weights.T
    assert candidate.validation_answers.tolist() == answers_of(shop)
    assert np.abs(candidate.validation_logits - averaged(logits, rows)).max() < 1e-9
    assert candidate.score == macro_f1(
        candidate.validation_answers, candidate.validation_logits.argmax(axis=1), num_labels=3
    )


def test_the_frozen_head_is_refitted_on_every_row(shop: Workshop) -> None:
    candidate = run_frozen(shop, FrozenApproach(strengths=[1.0]))
    model: Any = candidate.model
    labels = np.array([row.label for row in rows_of(shop)])
    expected = head_on(shop, model, features_of(shop, model, rows_of(shop)), labels)
    assert np.abs(model.score.weight.detach().numpy() - expected).max() < 1e-4


def test_the_strength_with_the_best_out_of_fold_score_wins(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[tuple[int, float]] = []
    original = kinds.fit_frozen_head

    def noted(features: Any, labels: Any, **settings: Any) -> Any:
        fitted.append((len(features), settings["strength"]))
        return original(features, labels, **settings)

    monkeypatch.setattr(kinds, "fit_frozen_head", noted)
    candidate = run_frozen(shop, FrozenApproach(strengths=STRENGTHS))
    scores = {item["strength"]: item["validation_macro_f1"] for item in candidate.strengths}
    assert list(scores) == STRENGTHS
    assert candidate.score == max(scores.values())
    rows = len(rows_of(shop))
    assert [size < rows for size, _ in fitted] == [True] * 15 + [False]
    assert scores[fitted[-1][1]] == candidate.score


# Full.


def test_full_trains_five_folds_and_refits_and_every_answer_is_out_of_fold(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer is replaced by one that writes down what it was given; the steps it found best differ."""
    trainings: list[dict[str, Any]] = []
    given: list[tuple[Any, Any, Any]] = []
    build = trained.objective_of

    def watched(shop: Any, adapted: Any, rows: Any, held: Any) -> Any:
        objective = build(shop, adapted, rows, held)
        given.append((objective, rows, held))
        return objective

    def fake_train(adapted: Any, objective: Any, *, place: TrainingPlace, **named: Any) -> Trained:
        rows, held = next((rows, held) for known, rows, held in given if known is objective)
        number = len(trainings)
        trainings.append(
            {
                "model": adapted,
                "rows": {row.row for row in rows},
                "held": {row.row for row in held},
                "folder": place.folder.name,
                "end_at": named.get("end_at"),
                "steps": named["plan"].steps,
            }
        )
        return Trained(steps=10, best_step=[4, 9, 5, 1, 8, 5][number], seconds=1.0)

    def fake_classify(adapted: Any, rows: Any, *, pad_id: int) -> Any:
        number = next(at for at, training in enumerate(trainings) if training["model"] is adapted)
        return np.array([[row.row, number, len(row.token_ids)] for row in rows], float)

    monkeypatch.setattr(trained, "objective_of", watched)
    monkeypatch.setattr(trained, "train", fake_train)
    monkeypatch.setattr(trained, "classify_rows", fake_classify)
    place = TrainingPlace(tmp_path / "checkpoints", tmp_path / "log", 0, shop.environment, StopRequest())
    candidate = run_trained(shop, FullApproach(), place)
    assert candidate is not None
    every = {row.row for row in rows_of(shop)}
    *folds, refit = trainings
    assert [fold["folder"] for fold in folds] == [f"fold-{number}" for number in range(1, 6)]
    assert all(fold["rows"] | fold["held"] == every for fold in folds)
    assert all(fold["rows"].isdisjoint(fold["held"]) for fold in folds)
    assert sorted(row for fold in folds for row in fold["held"]) == sorted(every)
    assert (refit["rows"], refit["held"]) == (every, set())
    # Half as long again as the median of the best steps, 5, and per row: a fold has four fifths of them.
    assert refit["end_at"] == refit["steps"] == candidate.refit_steps == 9
    assert candidate.trained.best_step == 5
    keys = list(dict.fromkeys(row.row for row in rows_of(shop)))
    assert candidate.validation_logits[:, 0].tolist() == keys, "the answers are not in row order"
    for row, number in candidate.validation_logits[:, :2].tolist():
        assert row in folds[int(number)]["held"], "the model of this answer had seen the row"
    assert candidate.validation_answers.tolist() == answers_of(shop)
    assert candidate.seconds == 6.0


@pytest.mark.parametrize("given", [False, True])
def test_with_many_rows_the_frozen_head_that_is_kept_has_seen_validation_too(
    given: bool, place: Path, tmp_path: Path
) -> None:
    """But not where validation is a file of its own; and its answers there come from a head that had not."""
    tiny.write_news(tmp_path / "many.csv", rows=320)
    data = {"train": str(tmp_path / "many.csv"), "max_tokens": 32}
    if given:
        data["validation"] = str(place / "news.csv")
    shop = build_shop(place, tmp_path, data=data)
    assert not few_rows(shop)
    candidate = run_frozen(shop, FrozenApproach(strengths=[1.0]))
    model: Any = candidate.model
    features = features_of(shop, model, rows_of(shop))
    labels = np.array([row.label for row in rows_of(shop)])
    count = len(shop.tokens.rows["train"])

    def head_of(rows: slice) -> Any:
        return head_on(shop, model, features[rows], labels[rows])

    kept = model.score.weight.detach().double().numpy()
    apart = head_of(slice(0, count))
    np.testing.assert_allclose(kept, apart if given else head_of(slice(None)), atol=1e-4)
    np.testing.assert_allclose(candidate.validation_logits, features[count:] @ apart.T, atol=1e-6)


@pytest.mark.parametrize("approach", [FullApproach(), LoraApproach()])
def test_with_many_rows_training_is_done_anew_with_the_validation_rows(
    approach: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that are kept saw every row; what validation says comes from those that had not."""
    shop = many_rows_shop(place, tmp_path)
    trainings = note_trainings(monkeypatch)
    alone = build_shop(place, tmp_path, **many(tmp_path, train={"length": "10 steps", "refit": False}))
    before = run_trained(alone, approach, place_of(tmp_path / "alone", alone))
    candidate = run_trained(shop, approach, place_of(tmp_path / "refitted", shop))
    assert before is not None
    assert candidate is not None
    assert [training["folder"] for training in trainings] == ["alone", "refitted", "refit"]
    train, validation = (len(shop.tokens.rows[part]) for part in ("train", "validation"))
    _, first, refit = trainings
    train += len(shop.tokens.names)
    longer = (train + validation) / train
    assert (first["rows"], refit["rows"]) == (train, train + validation)
    best = candidate.trained.best_step
    assert refit["steps"] == refit["end_at"] == candidate.refit_steps
    assert refit["steps"] == max(1, round(min(1.5 * best, 10) * longer)), "the rate doesn't end at zero"
    assert np.array_equal(candidate.validation_logits, before.validation_logits)
    assert candidate.score == before.score
    assert candidate.seconds > candidate.trained.seconds
    assert any(
        not torch.equal(one, other)
        for one, other in zip(before.model.parameters(), candidate.model.parameters(), strict=True)
    ), "the refitted weights weren't taken"
    if candidate.parity:
        assert candidate.parity["merge"] < 1e-4, "the adapter and the merged weights aren't of one training"


def test_all_folds_together_share_the_minutes(
    shop: Workshop, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "timed_plan", lambda *given, **_: (given[3], 60.0, (0, 0)))
    timed = build_shop(place, tmp_path, train={"minutes": 1, "length": "60 steps"})
    trainings = note_trainings(monkeypatch)
    trained_so = run_trained(timed, FullApproach(), place_of(tmp_path / "run", timed))
    assert len(trainings) == 6
    assert timed.environment["steps"] == int(60 * STEPPING / 6)
    assert trained_so is not None
    assert trained_so.trained.stopped == "time"


@pytest.mark.parametrize("why", ["beaten", "given"])
def test_no_refit_for_a_loser_or_over_a_validation_file(
    why: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"validation": str(place / "news.csv")} if why == "given" else {}
    shop = many_rows_shop(place, tmp_path, **given)
    trainings = note_trainings(monkeypatch)
    rival = 1.1 if why == "beaten" else -1.0
    candidate = run_trained(shop, FullApproach(), place_of(tmp_path / "run", shop), rival=rival)
    assert candidate is not None
    assert [training["folder"] for training in trainings] == ["run"]
    assert candidate.refit_steps == 0


@pytest.mark.parametrize(
    ("changes", "best", "trained_for", "expected"),
    [
        ({}, 100, 1000, 180),  # few rows: 1.5 times the best step, and a fifth more rows
        ({}, 900, 1000, 1200),  # never longer than the plan, per row
        ({"schedule": "constant"}, 100, 1000, 120),  # the rate falls nowhere
        ({"minutes": 5}, 100, 1000, 0),  # the time is used up
        ({"minutes": 5}, 100, 800, 180),  # stopping early saved it
        ({"rows": 50_000}, 100, 1000, 0),
        ({"rows": 50_000}, 100, 820, 180),
        ({"rows": 50_000}, 100, 821, 0),
        ({"refit": False}, 100, 200, 0),
        ({"given": "validation.csv"}, 100, 200, 0),
    ],
)
def test_how_long_a_refit_is(changes: dict[str, Any], best: int, trained_for: int, expected: int) -> None:
    rows = changes.get("rows", 1000)
    parts: Any = {"train": range(rows), "validation": range(rows // 5)}
    recipe = build_recipe(
        {
            "data": {"train": "rows.csv", "validation": changes.get("given")},
            "train": {
                "refit": changes.get("refit", True),
                "minutes": changes.get("minutes"),
                "schedule": changes.get("schedule", "cosine"),
            },
        }
    )
    shop: Any = SimpleNamespace(recipe=recipe, tokens=SimpleNamespace(rows=parts, examples=parts, names=()))
    assert refit_steps(shop, best_step=best, step=trained_for, longest=1000) == expected


@pytest.mark.parametrize(("minutes", "expected"), [(None, 1250), (5, 1000)])
def test_a_refit_after_folds_keeps_to_the_minutes(minutes: float | None, expected: int) -> None:
    """Each of the six trainings has a sixth of them."""
    parts: Any = {"train": [0] * 80, "validation": [0] * 20}
    recipe = build_recipe({"data": {"train": "rows.csv"}, "train": {"minutes": minutes}})
    shop: Any = SimpleNamespace(recipe=recipe, tokens=SimpleNamespace(rows=parts, examples=parts, names=()))
    assert steps_after_folds([900, 980], [80] * 5, shop, longest=1000) == expected


def many(folder: Path, *, train: dict[str, Any], **data: Any) -> dict[str, Any]:
    source = tiny.write_news(folder / "many.csv", rows=320)
    return {"data": {"train": str(source), "max_tokens": 32, **data}, "train": train}


def many_rows_shop(place: Path, folder: Path, **data: Any) -> Workshop:
    shop = build_shop(place, folder, **many(folder, train={"length": "10 steps"}, **data))
    assert not few_rows(shop)
    return shop


def place_of(folder: Path, shop: Workshop) -> TrainingPlace:
    folder.mkdir()
    return TrainingPlace(folder, folder / "log", 0, dict(shop.environment), StopRequest())


def note_trainings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The real trainer, watched."""
    trainings: list[dict[str, Any]] = []
    train = trained.train

    def watched(adapted: Any, objective: Any, *, plan: Any, place: TrainingPlace, **named: Any) -> Trained:
        trainings.append(
            {
                "folder": place.folder.name,
                "rows": len(objective.lengths),
                "steps": plan.steps,
                "end_at": named.get("end_at"),
            }
        )
        return train(adapted, objective, plan=plan, place=place, **named)

    monkeypatch.setattr(trained, "train", watched)
    return trainings


# A whole run.


@pytest.mark.parametrize("approach", [{"kind": "frozen", "strengths": STRENGTHS}, "full"])
def test_the_report_is_complete(approach: Any, place: Path, tmp_path: Path) -> None:
    settings = {
        "base": str(place / "base"),
        "approach": approach,
        "data": {"max_tokens": 32, "too_long": "window"},
        "train": {"length": "4 steps"},
        "evaluate": {"baselines": "quick", "resamples": 100},
        "out": str(tmp_path / "run"),
    }
    run = gptailor.fit(place / "news.csv", settings=settings)
    report = run.report
    data = report["data"]
    assert (data["read"], data["train"], data["validation"], data["test"]) == (100, 70, 15, 15)
    assert (report["validation"]["rows"], report["test"]["rows"]) == (85, 15)
    for part in ("validation", "test"):
        assert set(report[part]["per_class"]) == {"business", "health", "sports"}
        for name in ("accuracy", "macro_f1", "calibration_error"):
            score = report[part][name]
            assert 0 <= score["low"] <= score["value"] <= score["high"]
    kind = "full" if approach == "full" else "frozen"
    assert report["approach"] == kind
    rungs = {"majority", "tfidf", "zero_shot", "few_shot"} | ({"frozen"} if kind == "full" else set())
    assert set(report["baselines"]) == rungs
    assert report["verdict"]["best_baseline"] in rungs
    assert report["training"]["bit_exact"] is True
    notes = json.loads((run.folder / "details.json").read_text())["notes"]
    assert VALIDATION_TAUGHT in notes
    if kind == "full":
        assert report["training"]["steps"] == report["training"]["refit_steps"]
        assert 1 <= report["training"]["steps"] <= 5, "the length, and per row: a fold has four fifths"
        folds = sorted(path.name for path in (run.folder / "checkpoints").glob("fold-*"))
        assert folds == [f"fold-{number}" for number in range(1, 6)]
    for name in ("report.html", "README.md", "predictions.csv", "openings.jsonl", "data/suspects.csv"):
        assert (run.folder / name).is_file(), name
    assert len((run.folder / "openings.jsonl").read_text().splitlines()) == 1
    json.dumps(report, allow_nan=False)


def test_a_run_whose_second_label_has_one_row_says_so(place: Path, tmp_path: Path) -> None:
    lines = ["text,label", *(f"the bank in town {row} raised its rate {row * row},a" for row in range(40))]
    (tmp_path / "rows.csv").write_text("\n".join([*lines, "the cup final,b"]) + "\n")
    settings = {
        "base": str(place / "base"),
        "approach": "frozen",
        "data": {"clean": {"minimum_class_size": 1}},
        "out": str(tmp_path / "run"),
    }
    with pytest.raises(DataError, match=r"two labels|one label"):
        gptailor.fit(tmp_path / "rows.csv", settings=settings)


@pytest.mark.parametrize(
    ("approach", "changes", "refit", "taught"),
    [
        ("frozen", {}, 0, True),
        ("frozen", {"train": {"refit": False}}, 0, False),
        ("full", {}, 0, True),  # few rows: the last training is on all of them
        ("full", {"train": {"refit": False}}, 0, False),
    ],
)
def test_whether_validation_taught_is_known(
    approach: str, changes: dict[str, Any], refit: int, taught: bool, place: Path, tmp_path: Path
) -> None:
    shop = build_shop(place, tmp_path, **changes)
    candidate = Candidate(approach, None, np.zeros((1, 3)), [0], 0.0, 0.0, refit_steps=refit)  # type: ignore[arg-type]
    assert validation_taught(shop, candidate) is taught


def test_what_takes_too_long_is_left_out_and_said(place: Path, tmp_path: Path) -> None:
    shop = build_shop(place, tmp_path)
    said: list[str] = []
    running = place_of(tmp_path / "run", shop)
    running = replace(running, say=said.append)
    assert run_trained(shop, FullApproach(), running, longest_seconds=0.0) is None
    assert any("full: left out, it would take about" in line for line in said)
    assert any("--approach full runs it anyway" in line for line in said)


def test_features_of_other_weights_precision_or_tokens_are_others(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run's features must never serve another's."""
    keys: list[str] = []

    def noted(_: str, key: str, compute: Any) -> Any:
        keys.append(key)
        return compute()

    monkeypatch.setattr(frozen, "cached_array", noted)
    rows = rows_of(shop)[:3]
    model = load_classifier(shop.base, shop.tokenizer, label_names=shop.label_names, seed=0)

    def asked(shop: Workshop, rows: Any) -> str:
        frozen.features_of(shop, model, rows)
        return keys[-1]

    first = asked(shop, rows)
    assert asked(shop, rows) == first
    other_base = replace(shop, base=replace(shop.base, revision="other"))
    train = shop.recipe.train.model_copy(update={"precision": "bf16"})
    other_precision = replace(shop, recipe=shop.recipe.model_copy(update={"train": train}))
    changed = rows[0].token_ids.copy()
    changed[0] += 1
    other_rows = [replace(rows[0], token_ids=changed), *rows[1:]]
    others = [asked(other_base, rows), asked(other_precision, rows), asked(shop, other_rows)]
    monkeypatch.setattr(frozen, "FEATURES_VERSION", "other")
    others.append(asked(shop, rows))
    monkeypatch.setattr(frozen.torch, "__version__", "0")
    others.append(asked(shop, rows))
    assert len({first, *others}) == 6
