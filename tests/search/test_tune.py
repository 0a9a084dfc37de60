"""The whole search on a tiny base: what it leaves, and that the sealed rows are opened once."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptailor.search
import tiny
from fake_search import rehearsal_of
from gptailor.errors import FolderBusyError, GptailorError, InputError, RecipeError, RunError
from gptailor.evaluate.run import macro_f1
from gptailor.launch import catch_signals, in_use
from gptailor.models.predictor import load_predictor
from gptailor.pipeline.fit import fit_recipe, fit_sealed
from gptailor.pipeline.folder import claim_folder, next_to, refuse_fitted
from gptailor.pipeline.place import Listener
from gptailor.pipeline.rehearsal import error_of_fits, rehearse_classification
from gptailor.pipeline.rehearse import Repeat, Settled
from gptailor.pipeline.run import Run
from gptailor.pipeline.task import settle_task
from gptailor.recipe import Recipe, TuneSettings, build_recipe, load_recipe
from gptailor.search import tune
from gptailor.search.space import build_space
from gptailor.search.study import Study
from gptailor.search.trials import Search
from gptailor.search.tune import (
    Tuned,
    _Clock,
    keep_request,
    open_search,
    refuse_other_space,
    tune_recipe,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    tiny.build_base(folder / "base")
    tiny.write_news(folder / "news.csv", rows=300)
    return folder


def recipe_in(place: Path, out: str, **tune: Any) -> Recipe:
    """A recipe whose own rate is hopeless, and a space with one that isn't."""
    space = {"train.learning_rate": [0.01]}
    return build_recipe(
        {
            "data": {"train": str(place / "news.csv")},
            "base": str(place / "base"),
            "approach": "full",
            "train": {"length": "60 steps", "learning_rate": 1e-7, "head_learning_rate": 1e-7, "patience": 0},
            "evaluate": {"baselines": "none", "resamples": 200},
            "tune": {"space": space, "trials": 2, "finalists": 1, "seeds": 2, **tune},
            "out": str(place / out),
        }
    )


@pytest.fixture(scope="module")
def tuned(place: Path) -> Tuned:
    return tune_recipe(recipe_in(place, "run"))


def test_the_better_settings_win_and_are_fitted(tuned: Tuned) -> None:
    assert tuned.result["winner"]["trial"] == 1
    assert tuned.result["winner"]["settings"] == {"train.learning_rate": 0.01}
    (finalist,) = tuned.result["finalists"]
    assert finalist["won"]
    assert finalist["ahead"]["value"] > 0.2
    assert len(finalist["repeats"]) == len(tuned.result["default"]["repeats"]) == 2
    assert "learning_rate: 0.01" in (tuned.run.folder / "recipe.yaml").read_text(encoding="utf-8")


def test_the_test_rows_are_opened_once_for_both(tuned: Tuned) -> None:
    folder = tuned.run.folder
    (opening,) = (folder / "openings.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(opening)["command"] == "tune"
    own = folder / "tune" / "own"
    assert (own / "model").is_dir()
    assert not (own / "openings.jsonl").exists()
    assert not (own / "predictions.csv").exists()
    report = tuned.run.report
    assert report["default"]["macro_f1"]["value"] < report["test"]["macro_f1"]["value"]
    assert tuned.result["test"]["difference"] == report["default"]["difference"]
    found = report["test"]["macro_f1"]["value"] - report["default"]["macro_f1"]["value"]
    assert report["default"]["difference"]["value"] == pytest.approx(found, abs=2e-6)


@pytest.mark.parametrize("split", [{"time": "when"}, {"group": "who"}, {}])
@pytest.mark.parametrize(
    "settled", [Settled("frozen"), Settled("full", steps=60)], ids=lambda one: one.approach
)
def test_no_repeat_is_judged_on_rows_that_taught_it(
    settled: Settled, split: dict[str, str], place: Path, tmp_path: Path
) -> None:
    """Labels are drawn at random, so whoever is right far more often than by chance has seen them."""
    rng = np.random.default_rng(0)
    lines = ["text,label,who,when"]
    for n in range(400):
        words = " ".join(rng.choice(list("abcdefghijklmnop"), 6))
        lines.append(f"{words} {n},{'ab'[rng.integers(2)]},customer {n // 4},{2000 + n}")
    (tmp_path / "noise.csv").write_text("\n".join(lines))
    values = {
        "data": {"train": str(tmp_path / "noise.csv"), "text": "text", "label": "label", "split": split},
        "base": str(place / "base"),
        "approach": {"kind": "frozen", "strengths": [100]} if settled.approach == "frozen" else "full",
        "train": {"learning_rate": 0.01},
    }
    recipe = build_recipe(values)
    rehearsal = rehearse_classification(recipe, tmp_path, Listener())
    repeats = [rehearsal.repeat(recipe, number, settled) for number in range(3)]
    assert np.mean([repeat.score for repeat in repeats]) < 0.65
    others = [dataclasses.replace(repeat, predictions=repeat.answers) for repeat in repeats]

    def width(some: slice) -> float:
        gap = rehearsal.gap(others[some], repeats[some])
        return gap.high - gap.low

    together, alone = width(slice(3)), np.mean([width(slice(n, n + 1)) for n in range(3)])
    if settled.approach == "full":
        return  # taught by noise it gives one label to nearly all rows: then widths say nothing
    if "time" in split:  # always the same rows: asking them three times doesn't narrow anything
        assert together == pytest.approx(alone, rel=0.25)
    else:
        assert together < 0.75 * alone


@pytest.mark.parametrize("rows", [300, 120])
def test_no_row_that_chose_a_trial_judges_a_repeat(rows: int, place: Path, tmp_path: Path) -> None:
    """Of few rows, most of which choose by folds, some folds are kept from the trials."""
    from gptailor.pipeline import rehearsal, rehearsal_rows

    tiny.write_news(tmp_path / "news.csv", rows=rows)
    recipe = build_recipe({"data": {"train": str(tmp_path / "news.csv")}, "base": str(place / "base")})
    shop = rehearsal.without_test(
        rehearsal.open_workshop(recipe, rehearsal.prepare(recipe), tmp_path, Listener())
    )
    assert rehearsal.few_rows(shop) == (rows == 120)
    chose = {rehearsal_rows.key_of(row) for _, outside in rehearsal_rows.splits_of(shop) for row in outside}
    judging: set[tuple[str, int]] = set()
    for number in range(recipe.tune.seeds):
        (train, validation), outside = rehearsal_rows.elsewhere(shop, number)
        asked, taught = (
            {rehearsal_rows.key_of(row) for row in part} for part in (outside, [*train, *validation])
        )
        assert asked
        assert asked.isdisjoint(chose)
        assert asked.isdisjoint(taught)
        assert len(asked | taught) == len(shop.tokens.examples["train"]) + len(
            shop.tokens.examples["validation"]
        )
        judging |= asked
    if rows == 120:  # and a frozen head is scored on the rows that may choose
        asked_of: list[int] = []
        score = shop.kind.score
        kind = dataclasses.replace(shop.kind, score=lambda x, y: asked_of.append(len(y)) or score(x, y))
        shop = dataclasses.replace(shop, kind=kind)
        rehearsal.frozen_score(shop, rehearsal.run_frozen(shop, rehearsal.FrozenApproach()))
        assert asked_of[-1] == len(chose)
    else:
        assert judging == {rehearsal_rows.key_of(row) for row in shop.tokens.rows["train"]}


@pytest.mark.parametrize(("seeds", "folds"), [(1, 3), (3, 3), (5, 5), (9, 5)])
def test_every_training_row_judges_once_before_any_judges_again(
    seeds: int, folds: int, place: Path, tmp_path: Path
) -> None:
    from gptailor.pipeline import rehearsal, rehearsal_rows

    recipe = build_recipe(
        {
            "data": {"train": str(place / "news.csv")},
            "base": str(place / "base"),
            "tune": {"seeds": seeds},
        }
    )
    shop = rehearsal.without_test(
        rehearsal.open_workshop(recipe, rehearsal.prepare(recipe), tmp_path, Listener())
    )
    asked = [rehearsal_rows.elsewhere(shop, number)[1] for number in range(folds)]
    rows = [rehearsal_rows.key_of(row) for part in asked for row in part]
    assert sorted(rows) == sorted(rehearsal_rows.key_of(row) for row in shop.tokens.rows["train"])
    again = rehearsal_rows.elsewhere(shop, folds)[1]
    assert {rehearsal_rows.key_of(row) for row in again} not in [
        {rehearsal_rows.key_of(row) for row in part} for part in asked
    ], "dealt anew"


@pytest.mark.parametrize("again", [False, True])
def test_repeats_on_other_rows_count_these_once(again: bool, place: Path, tmp_path: Path) -> None:
    """What repeats differ by holds the rows, where each has its own; else both have to be added."""
    recipe = recipe_in(place, "unused")
    found = rehearse_classification(recipe, tmp_path, Listener())
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    for number in range(3):
        answers = rng.integers(3, size=200)
        rows = tuple(("news.csv", row + (0 if again else 200 * number)) for row in range(200))
        for repeats, share in ((ours, 0.9), (theirs, 0.8)):
            right = rng.random(200) < share
            predictions = np.where(right, answers, (answers + 1) % 3)
            repeats.append(Repeat(float(right.mean()), answers, predictions, rows))
    fits = error_of_fits(ours, theirs)
    gap = found.gap(ours, theirs)
    same = [dataclasses.replace(one, score=other.score) for one, other in zip(ours, theirs, strict=True)]
    rows_only = found.gap(same, theirs).error  # equal scores: fits don't differ
    expected = np.hypot(rows_only, fits) if again else max(rows_only, fits)
    assert gap.error == pytest.approx(expected)


def test_a_trial_of_few_rows_is_scored_by_all_its_answers_together(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a fit is: a mean of the folds' macro-F1 is another number."""
    from gptailor.pipeline import rehearsal

    answered: list[tuple[Any, Any]] = []
    kept = rehearsal.by_text
    monkeypatch.setattr(rehearsal, "by_text", lambda *known: answered.append(kept(*known)) or answered[-1])
    tiny.write_news(tmp_path / "news.csv", rows=120)
    recipe = recipe_in(place, "unused")
    data = recipe.data.model_copy(update={"train": str(tmp_path / "news.csv")})
    train = recipe.train.model_copy(update={"length": "6 steps", "learning_rate": 0.01})
    recipe = recipe.model_copy(update={"data": data, "train": train})
    *_, last = rehearse_classification(recipe, tmp_path, Listener()).trial(recipe)
    assert last.last
    assert len(answered) == 3
    logits, answers = (np.concatenate(parts) for parts in zip(*answered, strict=True))
    assert last.score == macro_f1(answers, logits.argmax(1), num_labels=3)
    assert len(answers) == pytest.approx(0.6 * 102, abs=2)


def test_a_search_that_runs_is_not_moved_away(place: Path) -> None:
    recipe = recipe_in(place, "searched")
    (place / "searched" / "tune").mkdir(parents=True)
    used = place / "searched" / "tune"
    with in_use(used), in_use(used), pytest.raises(FolderBusyError, match="used by a search that runs"):
        claim_folder(recipe, overwrite=True)
    claim_folder(recipe, overwrite=True)
    assert not (place / "searched" / "tune").exists()


def test_a_fit_stays_out_of_a_search_that_has_not_ended(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run would lie where the search's last fit goes, and the search could never end."""

    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    recipe = recipe_in(place, "both")
    with monkeypatch.context() as first:
        first.setattr(tune, "fit_winner", stopped)
        with pytest.raises(KeyboardInterrupt):
            tune_recipe(recipe)
    with pytest.raises(RunError, match="a search for settings that hasn't ended"):
        fit_recipe(recipe)
    with pytest.raises(RunError, match="the same `gptailor tune` again"):
        _ = Run(place / "both").report
    assert tune_recipe(recipe).result["winner"]["trial"] == 1


def test_data_that_can_be_read_once_only_are_refused_before_the_search(place: Path) -> None:
    recipe = recipe_in(place, "stream")
    piped = recipe.data.model_copy(update={"train": "-"})
    with pytest.raises(InputError, match="read once only"):
        tune_recipe(recipe.model_copy(update={"data": piped}))
    assert not (place / "stream").exists()


def test_a_folder_with_a_fit_is_refused_before_the_search(place: Path) -> None:
    recipe = recipe_in(place, "fitted")
    fit_recipe(recipe.model_copy(update={"tune": TuneSettings()}))
    with pytest.raises(RunError, match=r"holds a run that `fit` made") as refused:
        tune_recipe(recipe)
    assert "fitted-tuned" in str(refused.value)
    assert not (place / "fitted" / "tune").exists()


def test_trials_never_hold_a_test_row(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptailor.pipeline import rehearsal

    shops: list[Any] = []
    kept = rehearsal.rehearse_trial
    monkeypatch.setattr(
        rehearsal, "rehearse_trial", lambda shop, *known: shops.append(shop) or kept(shop, *known)
    )
    recipe = recipe_in(place, "unused")
    found = rehearse_classification(recipe, tmp_path, Listener())
    next(found.trial(recipe))
    assert shops[0].tokens.rows["test"] == []
    assert shops[0].tokens.examples["test"] == []


def test_a_step_is_measured_once_for_each_size(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptailor.pipeline import settle

    sizes: list[int] = []

    def measure(_adapted: Any, _objective: Any, plan: Any) -> tuple[Any, float]:
        sizes.append(plan.batch_size)
        return dataclasses.replace(plan, micro_batch_size=3), 4.0 * plan.steps

    monkeypatch.setattr(settle, "measure_plan", measure)
    recipe = recipe_in(place, "unused")

    def with_settings(**settings: Any) -> Recipe:
        return recipe.model_copy(update={"train": recipe.train.model_copy(update=settings)})

    found = rehearse_classification(recipe, tmp_path, Listener())
    looks = [
        next(found.trial(with_settings(**settings)))
        for settings in ({}, {"learning_rate": 0.01}, {"length": "12 steps"}, {"batch_size": 8})
    ]
    found.repeat(with_settings(length="2 steps"), 0, Settled("full", steps=2))
    assert sizes == [16, 8]
    assert [look.forecast for look in looks] == pytest.approx([240, 240, 48, 240])


def test_a_tracker_that_is_missing_is_told_before_the_search(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    recipe = recipe_in(place, "tracked").model_copy(update={"trackers": ["wandb"]})
    with pytest.raises(GptailorError, match="wandb"):
        tune_recipe(recipe)
    assert not (place / "tracked" / "tune").exists()


def test_what_it_leaves(tuned: Tuned) -> None:
    folder = tuned.run.folder
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["0", "1"]
    assert rows[1]["train.learning_rate"] == "0.01"
    page = (folder / "tune.html").read_text(encoding="utf-8")
    for words in ("Better settings found", "Trial by trial", "Every trial", "Fitted again, elsewhere"):
        assert words in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert json.loads((folder / "tune.json").read_text(encoding="utf-8")) == tuned.result
    kept = {path.relative_to(folder / "tune").parts[0] for path in (folder / "tune").rglob("checkpoints")}
    assert kept <= {"own"}


def test_once_more_does_nothing_and_other_settings_are_refused(place: Path, tuned: Tuned) -> None:
    said: list[str] = []
    again = tune_recipe(recipe_in(place, "run"), listener=Listener(say=said.append))
    assert again.result == tuned.result
    assert said == [f"{tuned.run.folder} is finished; nothing to do"]
    with pytest.raises(RunError, match="finished with 2 trials") as more:
        tune_recipe(recipe_in(place, "run", trials=3))
    assert "--out" in str(more.value)
    with pytest.raises(RunError, match="other settings") as caught:
        tune_recipe(recipe_in(place, "run", seeds=3))
    assert "tune.seeds: 2, now 3" in str(caught.value)


def test_a_search_by_time_killed_in_its_last_fit_fits_the_same_winner(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time begins anew with every start: it would try on, and its folder holds the first winner's fit."""

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    def two_trials(_: Any, trials: Sequence[Any]) -> float:
        return 600.0 * (2 - sum(one.state != "running" for one in trials))

    space = {"train.learning_rate": [0.01, 0.02, 0.03]}
    recipe = recipe_in(place, "hour", time="1h", trials=None, space=space, seeds=1)
    with monkeypatch.context() as first:
        first.setattr(Search, "seconds_left", two_trials)
        first.setattr(tune, "fit_winner", killed)
        with pytest.raises(KeyboardInterrupt):
            tune_recipe(recipe)
    monkeypatch.delattr(Study, "begin")
    tuned = tune_recipe(recipe)
    assert [one["trial"] for one in tuned.result["trials"]] == [0, 1]
    assert tuned.result["winner"]["trial"] == 1


def test_a_search_refuses_a_folder_that_its_last_fit_would(place: Path) -> None:
    folder = place / "foreign"
    folder.mkdir()
    (folder / ".DS_Store").write_text("what a file manager leaves")
    refuse_fitted(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"not empty \(it holds notes\.txt\)"):
        tune_recipe(recipe_in(place, "foreign"))


@pytest.mark.parametrize("name", ["my%20data", "why?", "a#b", "größe"])
def test_the_trials_lie_in_the_folder_whatever_its_name(place: Path, name: str, tmp_path: Path) -> None:
    open_search(settle_task(recipe_in(place, "unused")), tmp_path / name, Listener())
    assert (tmp_path / name / "trials.sqlite3").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_recipes_own_settings_stay_where_nothing_is_better(place: Path) -> None:
    recipe = recipe_in(place, "stays", space={"train.weight_decay": [0.02]}, seeds=1)
    tuned = tune_recipe(recipe)
    assert tuned.result["winner"] == {**tuned.result["winner"], "trial": 0, "settings": {}}
    assert "stay" in tuned.result["says"]
    assert "default" not in tuned.run.report
    assert len((tuned.run.folder / "openings.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    assert "The default stays" in (tuned.run.folder / "tune.html").read_text(encoding="utf-8")


def test_a_trial_scores_what_a_fit_scores(place: Path, tuned: Tuned) -> None:
    """The same steps and the same judgement: the winner's trial and its fit agree to the last bit."""
    trial = next(one for one in tuned.result["trials"] if one["trial"] == 1)
    fitted = tuned.run.report["training"]["validation_macro_f1"]
    assert trial["score"] == fitted


@pytest.mark.parametrize("train", [{"length": "8 epochs"}, {"validations_per_epoch": 20}], ids=str)
def test_a_trial_looks_when_a_fit_looks(train: dict[str, Any], place: Path, tmp_path: Path) -> None:
    """Patience counts looks, so another rhythm would end elsewhere."""
    recipe = recipe_in(place, f"looks-{next(iter(train))}")
    train = {"length": "2 epochs", "patience": 5, "learning_rate": 0.01, **train}
    recipe = recipe.model_copy(
        update={"tune": TuneSettings(), "train": recipe.train.model_copy(update=train)}
    )
    rehearsal = rehearse_classification(recipe, tmp_path, Listener())
    looks = [look.score for look in rehearsal.trial(recipe)]
    run = fit_recipe(recipe)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    scores = [line["macro_f1"] for line in lines if line["kind"] == "validation"]
    assert looks == np.maximum.accumulate(scores).tolist()


APPROACHES = [
    {"kind": "frozen", "strengths": [0.1, 1.0]},
    {"kind": "full"},
    {"kind": "lora", "rank": 4},
    {"kind": "auto"},
]


def test_a_repeat_takes_the_rate_that_its_trial_found(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps were settled at that rate; another range test could find another."""
    from gptailor.pipeline import settle

    recipe = recipe_in(place, "unused")
    train = recipe.train.model_copy(update={"learning_rate": "find", "head_learning_rate": None})
    recipe = recipe.model_copy(update={"train": train})
    found = rehearse_classification(recipe, tmp_path, Listener())
    *_, last = found.trial(recipe)
    assert last.settled is not None
    assert last.settled.learning_rate > 0
    monkeypatch.setattr(settle, "range_test", lambda *_, **__: pytest.fail("looked for again"))
    found.repeat(recipe, 0, last.settled)


@pytest.mark.parametrize("approach", APPROACHES, ids=lambda one: one["kind"])
@pytest.mark.parametrize("answer", ["label", "topics"])
@pytest.mark.parametrize("refit", [True, False])
def test_a_repeat_makes_what_a_fit_keeps(
    answer: str,
    approach: dict[str, Any],
    refit: bool,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the fit's own rows and seed a repeat is the fit's model, and cuts probabilities as it does."""
    from gptailor.pipeline import rehearsal

    source = place / "news.csv"
    if answer == "topics":
        source = tiny.write_topics(tmp_path / "topics.jsonl", rows=300)
    recipe = build_recipe(
        {
            "data": {"train": str(source), "label": answer},
            "base": str(place / "base"),
            "approach": approach,
            "train": {"length": "40 steps", "learning_rate": 0.003, "patience": 3, "refit": refit},
            "evaluate": {"baselines": "none", "resamples": 100},
            "out": str(tmp_path / "run"),
        }
    )
    run = fit_recipe(recipe)
    shops, asked = [], []
    build, cut = rehearsal.without_test, rehearsal.probabilities_of
    monkeypatch.setattr(rehearsal, "without_test", lambda shop: shops.append(build(shop)) or shops[0])
    monkeypatch.setattr(
        rehearsal,
        "probabilities_of",
        lambda *known, **named: asked.append((*known, named)) or cut(*known, **named),
    )
    found = rehearse_classification(recipe, tmp_path, Listener())
    *_, last = found.trial(recipe)
    rows = shops[0].tokens.rows
    monkeypatch.setattr(
        rehearsal, "elsewhere", lambda *_: ((rows["train"], rows["validation"]), rows["validation"])
    )
    found.repeat(recipe, -1, last.settled)  # repeat 0 has the next seed
    assert last.settled is not None
    assert last.settled.approach == run.report["approach"]
    assert last.settled.steps == run.report["training"]["refit_steps"]
    ((logits, form, named),) = asked
    predictor = load_predictor(run.folder)
    texts = [example.text for example in shops[0].tokens.examples["validation"]]
    encoded = [one for one in predictor.encode_many(texts) if one is not None]
    np.testing.assert_allclose(logits, predictor.logits(encoded), atol=2e-4)
    assert form == predictor.form
    assert answer == "label" or named["temperature"] == pytest.approx(predictor.bundle.temperature)


def test_a_wrong_space_stops_before_the_first_trial(place: Path) -> None:
    recipe = recipe_in(place, "wrong", space={"train.dropuot": [0.1]})
    with pytest.raises(RecipeError, match=r"train\.dropout"):
        tune_recipe(recipe)
    assert not (Path(str(recipe.out)) / "tune" / "trials.sqlite3").exists()
    mended = tune_recipe(recipe_in(place, "wrong"))  # nothing of the mistake is left in the folder
    assert mended.run.is_finished


def test_a_search_of_another_space_is_refused(place: Path, tmp_path: Path) -> None:
    """A newer version may try other settings by itself; trials of both can't be compared."""
    recipe = recipe_in(place, "spaces")
    space = build_space(recipe, rehearsal_of(lambda _: 0.5))
    keep_request(tmp_path, recipe, space)
    refuse_other_space(tmp_path, space)
    with pytest.raises(RunError, match="tries other settings"):
        refuse_other_space(tmp_path, [dataclasses.replace(space[0], choices=(0.02,))])


def test_without_optuna_the_install_command_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gptailor import cli

    monkeypatch.setattr(gptailor, "search", gptailor.search)  # the package that others hold comes back
    for name in [name for name in sys.modules if name.startswith("gptailor.search")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr(sys, "argv", ["gptailor", "tune", "news.csv"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    assert "pip install 'gptailor[tune]'" in capsys.readouterr().err


def test_the_time_before_a_stop_counts(tmp_path: Path) -> None:
    """Written down with every line that is said, so that a kill loses little of it."""
    path, said = tmp_path / "seconds.txt", []
    path.write_text("100.0", encoding="utf-8")
    clock = _Clock(path)
    clock.saying(Listener(say=said.append)).say("trial 3")
    assert said == ["trial 3"]
    assert 100 <= float(path.read_text(encoding="utf-8")) <= clock.seconds + 0.1 < 110


def test_tune_has_every_option_of_fit() -> None:
    import inspect

    from gptailor.cli import verbs

    fit, tune = (set(inspect.signature(verb).parameters) for verb in (verbs.fit, verbs.tune))
    assert tune - fit == {"trials", "time", "storage"}
    assert fit <= tune


def test_completion_is_tuned_by_its_validation_loss(place: Path) -> None:
    rows = [f"name {n},the {n} in town is a nice place to eat" for n in range(240)]
    (place / "pairs.csv").write_text("prompt,completion\n" + "\n".join(rows) + "\n", encoding="utf-8")
    recipe = build_recipe(
        {
            "data": {"train": str(place / "pairs.csv"), "max_new_tokens": 4},
            "task": "completion",
            "base": str(place / "base"),
            "approach": "full",
            "train": {"length": "8 steps", "learning_rate": 1e-7},
            "evaluate": {"baselines": "none", "resamples": 100, "generated_rows": 10},
            "tune": {"space": {"train.learning_rate": [0.01]}, "trials": 2, "finalists": 1, "seeds": 2},
            "out": str(place / "pairs"),
        }
    )
    once = recipe.model_copy(update={"tune": recipe.tune.model_copy(update={"seeds": 1})})
    with pytest.raises(RecipeError, match="one repeat can't win"):
        tune_recipe(once)
    result = tune_recipe(recipe).result
    assert result["winner"]["trial"] == 1
    assert not result["higher_is_better"]
    assert result["winner"]["validation"] < result["default"]["validation"]
    assert "on the validation rows that chose it" in result["says"]
    run = Run(place / "pairs")
    assert run.is_finished
    (opening,) = (run.folder / "openings.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(opening)["command"] == "tune"
    own = run.folder / "tune" / "own"
    assert (own / "model").is_dir()
    assert not (own / "openings.jsonl").exists()
    ours, theirs = run.report["test"]["loss"]["value"], run.report["default"]["loss"]["value"]
    assert result["test"]["difference"]["value"] == pytest.approx(ours - theirs, abs=2e-6)
    assert "On the sealed test set, opened once: +" in result["says"]  # ahead, though lower is better


@pytest.mark.parametrize("task", ["language", "preference"])
def test_every_task_asks_its_default_the_test_rows(task: str, place: Path, tmp_path: Path) -> None:
    """A fit beside a rival: the same rows, the same opening, and a difference that is that of the scores."""
    if task == "language":
        (tmp_path / "rows.txt").write_text(
            "\n".join(f"the cup final in town {n} was a nice goal" for n in range(300)), encoding="utf-8"
        )
        data: dict[str, Any] = {"train": str(tmp_path / "rows.txt"), "max_tokens": 32}
    else:
        lines = [{"prompt": f"{n}", "chosen": f"nice {n}", "rejected": f"bad goal {n}"} for n in range(80)]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        data = {"train": str(tmp_path / "rows.jsonl")}
    recipe = build_recipe(
        {
            "data": data,
            "task": task,
            "base": str(place / "base"),
            "approach": "full",
            "train": {"length": "4 steps", "learning_rate": 0.001},
            "evaluate": {"baselines": "none", "resamples": 100},
            "out": str(tmp_path / "run"),
        }
    )
    other = recipe.train.model_copy(update={"learning_rate": 1e-7})
    beside = str(tmp_path / "run" / "tune" / "own")
    rival = fit_sealed(recipe.model_copy(update={"train": other, "out": beside}))
    assert not (rival / "openings.jsonl").exists()
    report = fit_recipe(recipe, rival=rival, search=rival.parent).report
    (opening,) = (tmp_path / "run" / "openings.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(opening)["command"] == "tune"
    metric = "loss" if task == "language" else "preference_accuracy"
    gap = report["test"][metric]["value"] - report["default"][metric]["value"]
    assert report["default"]["difference"]["value"] == pytest.approx(gap, abs=2e-6)


def test_an_interrupted_search_beside_a_run_is_gone_on_with(place: Path, tuned: Tuned) -> None:
    """`gptailor tune RUN/recipe.yaml`, typed again after a kill, and typed in two terminals."""
    run = tuned.run.folder
    asked = load_recipe(run / "recipe.yaml").model_copy(
        update={"tune": TuneSettings(trials=2, space={"train.learning_rate": [0.01]}), "out": None}
    )
    beside = next_to(run, asked, search=True)
    assert beside.name == "run-2"
    recipe = asked.model_copy(update={"out": str(beside)})
    with catch_signals():
        open_search(recipe, beside / "tune", Listener())
    more = asked.model_copy(update={"tune": asked.tune.model_copy(update={"trials": 5})})
    assert next_to(run, more, search=True) == beside
    assert next_to(run, asked) == run.with_name("run-3"), "a fit has no part in it"
    other = asked.model_copy(update={"seed": 9})
    assert next_to(run, other, search=True) == run.with_name("run-3")


def test_a_tracker_that_comes_later_loses_no_trial(place: Path) -> None:
    """What numbers don't depend on names no other search."""
    recipe = settle_task(recipe_in(place, "renamed"))
    tracked = recipe.model_copy(update={"trackers": ["tensorboard"], "out": "elsewhere"})
    assert tune.study_name(tracked) == tune.study_name(recipe)
    kinds = ("auto", "frozen", "full", "lora", "scratch")
    others = [recipe.model_copy(update={"seed": 3})]
    values = {"data": {"train": recipe.data.train}}
    others += [build_recipe({**values, "approach": kind}) for kind in kinds]
    assert len({tune.study_name(one) for one in (recipe, *others)}) == 2 + len(kinds)
