"""The ladder: which rungs are climbed, on which rows, and that the verdict is the paired test it claims."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import tiny
from gptailor.errors import ModelError
from gptailor.evaluate.baselines import tfidf
from gptailor.evaluate.metrics import as_json, classification_scores, paired_difference
from gptailor.evaluate.resampling import Resampling
from gptailor.evaluate.run import macro_f1
from gptailor.models.predictor import Predictor
from gptailor.pipeline import ladder
from gptailor.pipeline.fit import open_workshop
from gptailor.pipeline.frozen import run_frozen
from gptailor.pipeline.keep import keep
from gptailor.pipeline.ladder import (
    Ladder,
    Rung,
    climb,
    judge,
    kept_modest,
    prompted_limit,
    stratified_sample,
)
from gptailor.pipeline.place import Listener, Trained
from gptailor.pipeline.prepare import prepare
from gptailor.pipeline.workshop import Candidate, Workshop
from gptailor.recipe import FrozenApproach, build_recipe

FROZEN = FrozenApproach(strengths=[100])
ROWS = 300  # 210 train, 45 validate, 45 test


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ladder")
    tiny.build_base(folder / "narrow")
    tokenizer = tiny.build_tokenizer("gpt2")
    config = tiny.build_config("gpt2", len(tokenizer))
    config.n_positions = 256  # room for examples in the prompt
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    tiny.write_news(folder / "news.csv", rows=ROWS)
    return folder


def build_shop(
    place: Path, out: Path, *, data: Path | None = None, base: str = "base", **evaluate: Any
) -> Workshop:
    recipe = build_recipe(
        {
            "data": {"train": str(data or place / "news.csv")},
            "base": str(place / base),
            "evaluate": {"resamples": 200, **evaluate},
        }
    )
    out.mkdir(exist_ok=True)
    return open_workshop(recipe, prepare(recipe), out, Listener())


@pytest.fixture(scope="module")
def shop(place: Path) -> Workshop:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTAILOR_CACHE", str(place / "cache"))
        return build_shop(place, place / "out")


def answers_of(shop: Workshop, part: Any) -> Any:
    return np.array([example.label for example in shop.tokens.examples[part]])


def texts_of(shop: Workshop, part: Any) -> list[str]:
    return [example.text for example in shop.tokens.examples[part]]


def trained(shop: Workshop, tokens: int) -> Candidate:
    """A full fine-tune of which only the cost is known."""
    none: Any = None
    empty = np.zeros((0, 3)), np.zeros(0, np.int64)
    return Candidate("full", none, *empty, score=0.5, seconds=1.0, trained=Trained(tokens=tokens))


# The rungs.


def test_without_baselines_there_is_no_ladder_and_no_verdict(place: Path, tmp_path: Path) -> None:
    shop = build_shop(place, tmp_path / "out", baselines="none")
    climbed = climb(shop, trained(shop, 100), None, say=lambda _: pytest.fail("something was fitted"))
    assert climbed == Ladder()
    answers = answers_of(shop, "test")
    assert judge(shop, climbed, answers=answers, predictions=answers, approach="full") == ({}, None)


def test_every_rung_answers_the_validation_and_test_rows(shop: Workshop) -> None:
    said: list[str] = []
    frozen = run_frozen(shop, FROZEN)
    climbed = climb(shop, trained(shop, 10**9), frozen, say=said.append)
    assert list(climbed.rungs) == ["majority", "tfidf", "frozen", "zero_shot", "few_shot"]
    assert climbed.skipped == {}
    assert said == [
        "baseline: always the same answer, and TF-IDF",
        "baseline: frozen features",
        "baseline: zero-shot",
        "baseline: few-shot",
    ]
    answers = answers_of(shop, "test")
    for rung in climbed.rungs.values():
        assert rung.rows.tolist() == list(range(45)), "45 rows are under the limit of every rung"
        assert rung.predictions.shape == (45,)
        assert rung.validation_rows.tolist() == list(range(45))
        assert rung.validation.shape == (45,)
    majority = climbed.rungs["majority"]
    most = Counter(answers_of(shop, "train").tolist()).most_common(1)[0][1]
    assert majority.note.startswith(f"{most} of 210")
    expected = tfidf(
        texts_of(shop, "train"),
        answers_of(shop, "train"),
        texts_of(shop, "validation"),
        texts_of(shop, "test"),
        validation_labels=answers_of(shop, "validation"),
        seed=0,
    )
    assert climbed.rungs["tfidf"].predictions.tolist() == expected.test.tolist()
    assert climbed.rungs["tfidf"].validation.tolist() == expected.validation.tolist()
    assert "45 of 45 test rows" in climbed.rungs["few_shot"].note
    scores, _ = judge(shop, climbed, answers=answers, predictions=answers, approach="full")
    assert set(scores) == set(climbed.rungs)
    reached = macro_f1(answers_of(shop, "validation"), expected.validation, num_labels=3)
    assert scores["tfidf"]["validation_macro_f1"] == round(reached, 6)


def test_the_frozen_rung_answers_as_the_frozen_model_does(shop: Workshop, tmp_path: Path) -> None:
    frozen = run_frozen(shop, FROZEN)
    rung = ladder.frozen_rung(shop, frozen)
    _, predictor, _ = keep(tmp_path, shop, frozen)
    assert isinstance(predictor, Predictor)
    answers = [predictor.label_names.index(a.label) for a in predictor.predict(texts_of(shop, "test")) if a]
    assert rung.predictions.tolist() == answers
    assert macro_f1(answers_of(shop, "validation"), rung.validation, num_labels=3) == frozen.score


def test_a_frozen_run_is_no_baseline_of_itself(shop: Workshop) -> None:
    frozen = run_frozen(shop, FROZEN)
    assert "frozen" not in climb(shop, frozen, frozen).rungs


# Prompting.


def write_labels(path: Path, names: list[str]) -> Path:
    rows = [
        f"{name} in town {row} and {name[::-1]} again {row * row},{name}"
        for name in names
        for row in range(30)
    ]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([f"topic{chr(97 + n)}" for n in range(21)], "21 classes are over 20"),
        (["0", "1", "2"], "bare numbers without names"),
        (["a" + "zq" * 20, "b"], "leaves too little of the base's context"),
    ],
)
def test_labels_that_cannot_be_prompted_are_skipped_with_the_reason(
    names: list[str], reason: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "prompted_scores", lambda *_: pytest.fail("a base was prompted"))
    data = write_labels(tmp_path / "rows.csv", names)
    shop = build_shop(place, tmp_path / "out", data=data, base="narrow")
    assert len(shop.label_names) == len(names)
    climbed = climb(shop, run_frozen(shop, FROZEN), None)
    assert set(climbed.rungs) == {"majority", "tfidf"}
    assert set(climbed.skipped) == {"zero_shot", "few_shot"}
    assert all(reason in told for told in climbed.skipped.values())
    answers = answers_of(shop, "test")
    scores, verdict = judge(shop, climbed, answers=answers, predictions=answers, approach="full")
    assert scores["few_shot"] == {"skipped": climbed.skipped["few_shot"]}
    assert verdict is not None
    assert verdict["best_baseline"] in climbed.rungs


def test_numbers_with_names_are_prompted_by_their_names(place: Path, tmp_path: Path) -> None:
    data = write_labels(tmp_path / "rows.csv", ["0", "1"])
    recipe = build_recipe(
        {
            "data": {"train": str(data), "label_names": {"0": "rain", "1": "goal"}},
            "base": str(place / "base"),
            "evaluate": {"resamples": 100},
        }
    )
    (tmp_path / "out").mkdir()
    shop = open_workshop(recipe, prepare(recipe), tmp_path / "out", Listener())
    assert "zero_shot" in climb(shop, run_frozen(shop, FROZEN), None).rungs


def test_examples_that_do_not_fit_leave_out_few_shot_alone(place: Path, tmp_path: Path) -> None:
    rows = [
        f"{'word ' * 12}{name} in town {row} {row * row},{name}"
        for name in ("rain", "goal")
        for row in range(40)
    ]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    shop = build_shop(place, tmp_path / "out", data=tmp_path / "rows.csv", base="narrow")
    climbed = climb(shop, run_frozen(shop, FROZEN), None)
    assert "zero_shot" in climbed.rungs
    assert list(climbed.skipped) == ["few_shot"]
    assert "doesn't fit half the base's context" in climbed.skipped["few_shot"]


def test_a_base_without_words_to_predict_is_said(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def wordless(_: object) -> None:
        raise ModelError("has no language-model head", where="base", fix="Take another.")

    monkeypatch.setattr(ladder, "load_language_model", wordless)
    climbed = climb(shop, run_frozen(shop, FROZEN), None)
    assert climbed.skipped["zero_shot"] == "the base has no language-model head"


def test_prompting_costs_at_most_a_fifth_of_training(place: Path, tmp_path: Path) -> None:
    shop = build_shop(place, tmp_path / "out", prompted_rows=100)
    mean = shop.tokens.lengths.mean()
    for tokens in (10, 20_000, 60_000, 10**9):
        limit = prompted_limit(shop, trained(shop, tokens), num_test=1000)
        assert 30 <= limit <= 100
        # Validation and test, both zero- and few-shot; training goes forward and, twice as dear, back.
        cost = 4 * limit * (mean + 2 * 3)
        assert limit == 30 or cost <= 0.2 * 3 * tokens
        assert limit == 100 or cost + 4 * (mean + 6) > 0.2 * 3 * tokens
    assert prompted_limit(shop, trained(shop, 10**9), num_test=1000) == 100
    every = build_shop(place, tmp_path / "all", baselines="all", prompted_rows=100)
    assert prompted_limit(every, trained(every, 10), num_test=1000) == 1000


def test_only_a_sample_is_prompted_where_more_would_cost_too_much(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "FEWEST_PROMPTED_ROWS", 12)
    monkeypatch.setattr(ladder, "PROMPTED_SHARE", 0.0)
    climbed = climb(shop, run_frozen(shop, FROZEN), None)
    answers = answers_of(shop, "test")
    for name in ("zero_shot", "few_shot"):
        rung = climbed.rungs[name]
        assert rung.rows.tolist() == stratified_sample(answers, 12, seed=0).tolist()
        assert len(rung.predictions) == 12
        assert rung.note.startswith("12 of 45 test rows")
    scores, _ = judge(shop, climbed, answers=answers, predictions=answers, approach="full")
    assert scores["zero_shot"]["rows"] == 12
    expected = classification_scores(
        answers[climbed.rungs["zero_shot"].rows],
        climbed.rungs["zero_shot"].predictions,
        shop.label_names,
        resampling=Resampling(200),
    )
    assert scores["zero_shot"]["macro_f1"] == as_json(expected["macro_f1"])


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=120).map(lambda labels: np.array(labels, np.int64)),
    st.integers(1, 130),
    st.integers(0, 3),
)
def test_a_sample_is_fixed_and_holds_every_class_in_its_share(answers: Any, limit: int, seed: int) -> None:
    rows = stratified_sample(answers, limit, seed=seed)
    assert len(rows) == min(limit, len(answers))
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert rows.tolist() == stratified_sample(answers, limit, seed=seed).tolist()
    for label, count in Counter(answers.tolist()).items():
        share = count * len(rows) / len(answers)
        assert abs((answers[rows] == label).sum() - share) <= 1


def test_another_seed_draws_another_sample() -> None:
    answers = np.arange(200) % 4
    assert stratified_sample(answers, 40, seed=0).tolist() != stratified_sample(answers, 40, seed=1).tolist()


# The verdict.


def guesses(answers: Any, wrong: int, *, start: int = 0) -> Any:
    """The answers with `wrong` of them off by one."""
    changed = answers.copy()
    changed[start : start + wrong] = (changed[start : start + wrong] + 1) % 3
    return changed


def test_the_verdict_is_the_paired_difference_to_the_best_on_validation(shop: Workshop) -> None:
    """Not to the best on test: that would choose the opponent by the test set."""
    answers = answers_of(shop, "test")
    every = np.arange(len(answers))
    judged = answers_of(shop, "validation")
    better_on_test = Rung("tfidf", guesses(judged, 9), every, guesses(answers, 2), every)
    better_on_validation = Rung("frozen", guesses(judged, 3), every, guesses(answers, 20), every)
    climbed = Ladder({rung.name: rung for rung in (better_on_test, better_on_validation)})
    ours = guesses(answers, 6, start=10)
    scores, verdict = judge(shop, climbed, answers=answers, predictions=ours, approach="full")
    assert verdict is not None
    assert verdict["best_baseline"] == "frozen"
    expected = paired_difference(
        answers, ours, better_on_validation.predictions, num_labels=3, resampling=Resampling(200, 0)
    )
    assert verdict["difference"] == as_json(expected)
    assert verdict["worth_it"] is (expected.low > 0) is True
    assert scores["tfidf"]["macro_f1"]["value"] > scores["frozen"]["macro_f1"]["value"]
    reached = macro_f1(judged, guesses(judged, 3), num_labels=3)
    assert scores["frozen"]["validation_macro_f1"] == round(reached, 6)


def test_the_best_is_chosen_on_rows_that_all_were_asked(shop: Workshop) -> None:
    """The prompted rung misses one of ten easy rows; the other misses none, and twenty of the rest."""
    answers, judged = answers_of(shop, "test"), answers_of(shop, "validation")
    every, easy = np.arange(len(answers)), np.arange(10)
    whole = guesses(judged, 20, start=10)
    few = Rung("few_shot", guesses(judged[:10], 1), easy, guesses(answers, 5), every)
    climbed = Ladder({"tfidf": Rung("tfidf", whole, every, answers, every), "few_shot": few})
    _, verdict = judge(shop, climbed, answers=answers, predictions=answers, approach="full")
    assert verdict is not None
    assert macro_f1(judged, whole, num_labels=3) < macro_f1(judged[:10], few.validation, num_labels=3)
    assert verdict["best_baseline"] == "tfidf"


def test_a_small_sample_does_not_choose_among_those_that_answered_everything(shop: Workshop) -> None:
    """On the ten rows that were prompted the weaker one looks better; all rows say otherwise."""
    answers, judged = answers_of(shop, "test"), answers_of(shop, "validation")
    every, few = np.arange(len(answers)), np.arange(10)
    strong, weak = guesses(judged, 3), guesses(judged, 25, start=10)
    rungs = [
        Rung("frozen", strong, every, guesses(answers, 3), every),
        Rung("tfidf", weak, every, guesses(answers, 25), every),
        Rung("few_shot", guesses(judged[:10], 9), few, guesses(answers, 40), every),
    ]
    climbed = Ladder({rung.name: rung for rung in rungs})
    _, verdict = judge(shop, climbed, answers=answers, predictions=answers, approach="full")
    assert verdict is not None
    assert verdict["best_baseline"] == "frozen"


def test_too_few_telling_rows_are_no_verdict(shop: Workshop) -> None:
    """Five rows that all speak for us are chance in one of sixteen cases, and the bootstrap doesn't know."""
    answers = answers_of(shop, "test")
    every, judged = np.arange(len(answers)), answers_of(shop, "validation")
    for wrong, told in ((5, True), (6, False)):
        climbed = Ladder({"tfidf": Rung("tfidf", judged, every, guesses(answers, wrong), every)})
        _, verdict = judge(shop, climbed, answers=answers, predictions=answers, approach="frozen")
        assert verdict is not None
        assert verdict["difference"]["low"] > 0
        assert verdict.get("too_few", False) == told
        assert verdict["worth_it"] == (not told)
        assert ("only 5 of 45 test rows tell the two apart: too few" in verdict["says"]) == told
        assert verdict["says"].startswith("The head on frozen features is")


def test_rows_of_one_group_speak_once() -> None:
    said = {"difference": {"low": 0.1, "high": 0.2}, "worth_it": True, "says": "Ahead: worth it."}
    groups = np.repeat(np.arange(30), 10)
    telling = np.isin(groups, [3, 4, 5, 6, 7])  # fifty rows, five groups
    modest = kept_modest(said, telling, Resampling(groups=groups))
    assert modest["says"] == "Ahead, but only 5 of 30 groups of test rows tell the two apart: too few to say."
    assert modest["too_few"]
    assert not modest["worth_it"]
    assert kept_modest(said, telling, Resampling())["worth_it"]
    enough = kept_modest(said, np.isin(groups, range(6)), Resampling(groups=groups))
    assert enough == {**said, "says": "Ahead: worth it."}
    of_few = kept_modest(said, np.ones(300, bool), Resampling(groups=np.repeat(np.arange(8), 38)[:300]))
    assert of_few["worth_it"]
    assert "of 8 groups only" in of_few["says"]


def test_five_test_rows_are_no_reason_for_advice() -> None:
    says = "No clear difference: the model is 36.5 points ahead of it (95 % interval -28 to 100); use that."
    said = {"difference": {"low": -0.28, "high": 1.0}, "worth_it": False, "says": says}
    modest = kept_modest(said, np.array([True, False, True, False, False]), Resampling())
    assert modest["too_few"]
    assert modest["says"].endswith("(95 % interval -28 to 100), on 5 test rows: too few to tell.")
    assert "use that" in kept_modest(said, np.ones(10, bool), Resampling())["says"]


def test_groups_of_the_test_rows_widen_what_is_said_of_them(shop: Workshop) -> None:
    """Each score, each baseline's and the verdict are drawn by the groups that the split kept together."""
    rows = shop.tokens.examples["test"]
    grouped = [replace(row, group=str(place // 2)) for place, row in enumerate(rows)]  # 23 of 45 rows
    tokens = replace(shop.tokens, examples={**shop.tokens.examples, "test": grouped})
    answers = answers_of(shop, "test")
    every, judged = np.arange(len(answers)), answers_of(shop, "validation")
    wrong = guesses(answers, 16)  # the first sixteen rows: eight groups
    climbed = Ladder({"tfidf": Rung("tfidf", judged, every, wrong, every)})
    widths = []
    for one in (shop, replace(shop, tokens=tokens)):
        scores, verdict = judge(one, climbed, answers=answers, predictions=answers, approach="full")
        assert verdict is not None
        ends = (scores["tfidf"]["accuracy"], verdict["difference"])
        widths.append([end["high"] - end["low"] for end in ends])
    assert all(wide > 1.2 * narrow for narrow, wide in zip(*widths, strict=True))


@pytest.mark.parametrize(("ours", "worth"), [(0, True), (19, False), (20, False), (45, False)])
def test_worth_it_means_that_the_interval_is_above_zero(ours: int, worth: bool, shop: Workshop) -> None:
    answers = answers_of(shop, "test")
    every = np.arange(len(answers))
    rung = Rung("tfidf", answers_of(shop, "validation"), every, guesses(answers, 20), every)
    _, verdict = judge(
        shop, Ladder({"tfidf": rung}), answers=answers, predictions=guesses(answers, ours), approach="full"
    )
    assert verdict is not None
    assert verdict["worth_it"] is worth
    low, high = verdict["difference"]["low"], verdict["difference"]["high"]
    assert worth == (low > 0)
    if ours == 20:
        assert (low, high) == (0, 0)
        assert "same answers" in verdict["says"]
    if ours == 45:
        assert high < 0
        assert "worse" in verdict["says"]


def test_against_a_sample_the_difference_is_taken_on_its_rows_alone(shop: Workshop) -> None:
    answers = answers_of(shop, "test")
    rows = np.arange(5, 25)
    judged = answers_of(shop, "validation")[rows]
    rung = Rung("few_shot", judged, rows, guesses(answers[rows], 8), rows)
    ours = guesses(answers, 12)
    _, verdict = judge(shop, Ladder({"few_shot": rung}), answers=answers, predictions=ours, approach="full")
    assert verdict is not None
    expected = paired_difference(
        answers[rows], ours[rows], rung.predictions, num_labels=3, resampling=Resampling(200, 0)
    )
    assert verdict["difference"] == as_json(expected)
