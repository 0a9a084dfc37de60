"""Python's way in: `fit`, `load`, and the classifier among scikit-learn's tools."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import DataConversionWarning, NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

import gptailor
import tiny
from gptailor import GPTClassifier
from gptailor.errors import DataError, GptailorError, InputError, Interrupted, RecipeError, RunError
from gptailor.pipeline.place import Listener

# The checks that don't feed numbers. `check_estimator` itself sees the tags and leaves out the others, which
# fit random matrices; what they look for is checked below with texts.
CHECKS = [
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_mixin_order",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
]


FROZEN = {"kind": "frozen", "strengths": [1, 100]}  # the default tries thirteen, which takes a second


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.build_base(tmp_path_factory.mktemp("api") / "base"))


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    path = tiny.write_news(tmp_path_factory.mktemp("api") / "news.csv", rows=90)
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    return [text for text, _ in rows], [label for _, label in rows]


@pytest.fixture(scope="module")
def fitted(base: str, news: tuple[list[str], list[str]]) -> GPTClassifier:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTAILOR_CACHE", str(Path(base).parent / "cache"))
        return GPTClassifier(base=base, approach=FROZEN).fit(*news)


def settings_for(base: str, out: Path) -> dict[str, Any]:
    return {
        "base": base,
        "approach": FROZEN,
        "evaluate": {"baselines": "none", "resamples": 100},
        "out": str(out),
    }


# Files.


def test_fit_returns_a_run_that_reports_predicts_and_evaluates(
    base: str, news_csv: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    run = gptailor.fit(
        news_csv, settings=settings_for(base, tmp_path / "run"), listener=Listener(say=said.append)
    )
    assert isinstance(run, gptailor.Run)
    assert f"reading {news_csv}" in said
    assert run.report == json.loads((run.folder / "report.json").read_text())
    answers = run.predict(["the bank raised its rate", "", "  doctors"])
    assert [answer is None for answer in answers] == [False, True, False]
    assert sum(answers[0].probabilities.values()) == pytest.approx(1, abs=1e-12)
    assert answers[0].label == max(answers[0].probabilities, key=answers[0].probabilities.__getitem__)
    assert run.predict("the bank raised its rate") == answers[:1], "one string is one text"
    scores = run.evaluate(str(news_csv))
    assert (scores["rows"], scores["left_out"]) == (120, 0)
    assert gptailor.load(run.folder).predict(["the bank raised its rate"]) == answers[:1]
    assert gptailor.load(run.folder / "model").predict(["the bank raised its rate"]) == answers[:1]


def test_evaluate_reads_labels_as_fit_reads_those_of_a_test_file(
    base: str, news_csv: Path, tmp_path: Path
) -> None:
    """Spelled otherwise, merged in training, or blank: the same numbers from the same file."""
    lines = news_csv.read_text(encoding="utf-8").splitlines()
    lines = [line.replace(",sports", ",sportz") if n == 7 else line for n, line in enumerate(lines * 4)]
    rows = [
        f"village {n} {line.replace('town', 'place')}" for n, line in enumerate(lines) if ",label" not in line
    ]
    train = tmp_path / "train.csv"
    train.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    words = [
        (f"the cup final and extra time, evening {n}", name)
        for n, name in enumerate(["sports", "Sports ", "SPORTS", "sportz", "health", "business", " ", ""])
    ]
    test = tmp_path / "test.csv"
    test.write_text(
        "text,label\n" + "".join(f'"{text}","{name}"\n' for text, name in words), encoding="utf-8"
    )
    settings = settings_for(base, tmp_path / "run")
    run = gptailor.fit(train, settings={**settings, "data": {"test": str(test)}})
    found = gptailor.load(run.folder).evaluate(str(test))
    assert (found["read"], found["rows"], found["left_out"]) == (8, 6, 2)
    assert run.report["test"]["rows"] == 6
    for name in ("accuracy", "macro_f1"):
        assert found["scores"][name]["value"] == run.report["test"][name]["value"]


def test_fit_takes_a_recipe_a_recipe_file_and_a_runs_own_recipe(
    base: str, news_csv: Path, tmp_path: Path
) -> None:
    values = {**settings_for(base, tmp_path / "run"), "data": {"train": str(news_csv)}}
    run = gptailor.fit(gptailor.build_recipe(values))
    written = tmp_path / "mine.yaml"
    written.write_text(json.dumps({**values, "out": str(tmp_path / "other")}))
    other = gptailor.fit(written)
    assert other.folder == tmp_path / "other"
    assert other.report["test"] == run.report["test"]
    repeated = gptailor.fit(run.folder / "recipe.yaml")
    assert repeated.folder == tmp_path / "run-2"
    assert repeated.report["test"] == run.report["test"]


def test_settings_beside_a_recipe_are_refused_and_not_ignored(base: str, news_csv: Path) -> None:
    recipe = gptailor.build_recipe({"data": {"train": str(news_csv)}, "base": base})
    with pytest.raises(RecipeError, match="a recipe was given"):
        gptailor.fit(recipe, settings={"seed": 1})


def test_loading_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GptailorError, match="no such folder"):
        gptailor.load(tmp_path / "nowhere")
    with pytest.raises(GptailorError, match="no finished model"):
        gptailor.load(tmp_path)
    with pytest.raises(RunError, match="not finished"):
        _ = gptailor.Run(tmp_path).report


# The classifier.


@pytest.mark.parametrize("check", CHECKS)
def test_it_passes_scikit_learns_checks_that_apply(check: str) -> None:
    getattr(estimator_checks, check)("GPTClassifier", GPTClassifier())


def test_check_estimator_passes_and_says_what_it_left_out() -> None:
    with pytest.warns(SkipTestWarning, match="requires input"):
        estimator_checks.check_estimator(GPTClassifier())


def test_an_unfitted_classifier_says_so(base: str) -> None:
    for method in ("predict", "predict_proba"):
        with pytest.raises(NotFittedError):
            getattr(GPTClassifier(base=base), method)(["the bank"])
    with pytest.raises(NotFittedError):
        GPTClassifier(base=base).score(["the bank"], ["business"])


def test_parameters_survive_clone_and_fit(fitted: GPTClassifier, base: str) -> None:
    asked = GPTClassifier(base=base, approach="full", length="3 steps", seed=7)
    twin = clone(asked).set_params(seed=8)
    assert twin.get_params() == {**asked.get_params(), "seed": 8}
    assert set(asked.get_params()) == {"base", "approach", "length", "learning_rate", "folder", "seed"}
    assert fitted.get_params() == GPTClassifier(base=base, approach=FROZEN).get_params(), (
        "fit changes no parameter"
    )
    assert not hasattr(clone(fitted), "classes_")
    assert is_classifier(asked)
    assert not {name for name in vars(fitted) if name in asked.get_params()} ^ set(asked.get_params())


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["sports", "business", "health"], str),
        ([30, -1, 200], np.integer),
        ([True, False, True], np.bool_),
    ],
)
def test_labels_of_any_kind_come_back_as_they_were(
    names: list[Any], kind: type, base: str, news: tuple[list[str], list[str]]
) -> None:
    texts, labels = news
    place = {name: at for at, name in enumerate(["sports", "business", "health"])}
    given = [names[place[label]] for label in labels]
    classifier = GPTClassifier(base=base, approach=FROZEN).fit(np.array(texts, dtype=object), np.array(given))
    assert classifier.classes_.tolist() == sorted(set(names))
    probabilities = classifier.predict_proba(texts)
    assert probabilities.shape == (len(texts), len(set(names)))
    assert np.abs(probabilities.sum(axis=1) - 1).max() < 1e-12
    predicted = classifier.predict(texts)
    assert all(isinstance(label, kind) for label in predicted)
    assert (predicted == classifier.classes_[probabilities.argmax(axis=1)]).all()
    right = np.array(given) == predicted
    assert classifier.score(texts, given) == right.mean() > 0.6, "a column stands under the wrong class"


def test_columns_are_in_the_order_of_classes_even_with_eleven_of_them(base: str) -> None:
    """As text, class 10 stands before class 2."""
    words = ["cup", "bank", "flu", "film", "rain", "vote", "rate", "goal", "town", "prize", "album"]
    texts = [f"{words[row % 11]} {words[row % 11]} in number {row}" for row in range(220)]
    labels = [row % 11 for row in range(220)]
    classifier = GPTClassifier(base=base, approach=FROZEN).fit(texts, labels)
    assert classifier.classes_.tolist() == list(range(11))
    for text, row in zip(texts[:22], classifier.predict_proba(texts[:22]), strict=True):
        (answer,) = classifier.run_.predict([text])
        assert [answer.probabilities[f"class {code}"] for code in range(11)] == row.tolist()


def test_a_class_that_cleaning_dropped_keeps_its_column(base: str, news: tuple[list[str], list[str]]) -> None:
    texts, labels = news
    classifier = GPTClassifier(base=base, approach=FROZEN).fit([*texts, "one of a kind"], [*labels, "zebra"])
    assert classifier.classes_.tolist() == ["business", "health", "sports", "zebra"]
    assert (classifier.predict_proba(texts)[:, 3] == 0).all()
    assert classifier.run_.report["data"]["dropped"] == {"rare_label": 1}


def test_answers_depend_on_nothing_but_the_text(
    fitted: GPTClassifier, news: tuple[list[str], list[str]]
) -> None:
    texts = news[0]
    together = fitted.predict_proba(texts)
    assert (fitted.predict_proba(texts[::-1])[::-1] == together).all()
    assert all(
        (fitted.predict_proba([text])[0] == row).all() for text, row in zip(texts[:9], together, strict=False)
    )
    assert fitted.predict_proba([]).shape == (0, 3)
    column = np.array(texts, dtype=object)[:, None]
    assert (fitted.predict_proba(column) == together).all()
    assert (fitted.predict_proba(text for text in texts) == together).all()


def test_fitting_again_gives_the_same_and_predicting_changes_nothing(
    fitted: GPTClassifier, news: tuple[list[str], list[str]], base: str
) -> None:
    before = {name: id(value) for name, value in vars(fitted).items()}
    expected = fitted.predict_proba(news[0])
    assert before == {name: id(value) for name, value in vars(fitted).items()}
    again = GPTClassifier(base=base, approach=FROZEN).fit(*news)
    assert (again.predict_proba(news[0]) == expected).all()
    assert again.fit(*news) is again
    assert (again.predict_proba(news[0]) == expected).all()


def test_a_fit_that_fails_leaves_the_earlier_one_whole(
    base: str, news: tuple[list[str], list[str]], fitted: GPTClassifier
) -> None:
    classifier = copy.deepcopy(fitted)
    before = classifier.predict(news[0][:5]).tolist()
    with pytest.raises(DataError):
        classifier.fit(["a", "b", "c"], ["apple", "pear", "plum"])
    assert classifier.predict(news[0][:5]).tolist() == before


def test_a_stop_in_a_search_of_scikit_learn_stops_it(
    base: str, news: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search takes any Exception for a fit that failed, and begins the next."""

    def stopped(*_: Any, **__: Any) -> Any:
        raise Interrupted("stopped after step 3.")

    monkeypatch.setattr("gptailor.api.fit_recipe", stopped)
    search = GridSearchCV(GPTClassifier(base=base, approach="full"), {"seed": [0, 1]}, cv=2)
    with pytest.raises(KeyboardInterrupt, match="after step 3"):
        search.fit(*news)


def test_it_is_copied_and_pickled_with_its_model(
    fitted: GPTClassifier, news: tuple[list[str], list[str]]
) -> None:
    expected = fitted.predict_proba(news[0])
    assert (copy.deepcopy(fitted).predict_proba(news[0]) == expected).all()
    assert (pickle.loads(pickle.dumps(fitted)).predict_proba(news[0]) == expected).all()


def test_the_temporary_folder_goes_with_the_classifier(base: str, news: tuple[list[str], list[str]]) -> None:
    classifier = GPTClassifier(base=base, approach=FROZEN).fit(*news)
    folder = classifier.run_.folder.parent
    assert (folder / "run" / "report.json").is_file()
    survivor = pickle.loads(pickle.dumps(classifier))
    del classifier
    gc.collect()
    assert not folder.exists()
    assert len(survivor.predict(news[0])) == 90, "the model is in memory"


def test_a_folder_of_its_own_stays_and_its_run_can_be_repeated(
    base: str, news: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    classifier = GPTClassifier(base=base, approach=FROZEN, folder=str(tmp_path / "kept" / "run")).fit(*news)
    expected = classifier.predict_proba(news[0])
    classifier.fit(*news)
    assert len(list((tmp_path / "kept").glob("run.old-*"))) == 1
    del classifier
    gc.collect()
    assert gptailor.load(tmp_path / "kept" / "run").report["test"]["rows"] == 14
    repeated = gptailor.fit(tmp_path / "kept" / "run" / "recipe.yaml")
    assert [answer.probability for answer in repeated.predict(news[0])] == expected.max(axis=1).tolist()


def test_texts_arrive_whatever_they_hold(base: str, news: tuple[list[str], list[str]]) -> None:
    texts, labels = news
    odd = [
        "a\x00b rain",
        "half \ud800 a pair",
        'quo"te, comma\r\nline',
        "=cmd()",
        "日本 🏆",
        "<|endoftext|> a",
    ]
    classifier = GPTClassifier(base=base, approach=FROZEN).fit([*texts, *odd], [*labels, *labels[: len(odd)]])
    assert classifier.run_.report["data"]["read"] == 96
    assert classifier.run_.report["data"]["dropped"] == {"unreadable": 1}, "half a character is no text"
    assert len(classifier.predict(odd)) == 6


# scikit-learn's tools.


def test_cross_val_score(base: str, news: tuple[list[str], list[str]]) -> None:
    scores = cross_val_score(GPTClassifier(base=base, approach=FROZEN), *news, cv=3, error_score="raise")
    assert scores.shape == (3,)
    assert scores.mean() > 0.5


def test_grid_search_over_approach_in_a_pipeline(base: str, news: tuple[list[str], list[str]]) -> None:
    shout = FunctionTransformer(lambda texts: [text.upper() for text in texts])
    steps = Pipeline([("shout", shout), ("gpt", GPTClassifier(base=base, length="2 steps"))])
    grid = {"gpt__approach": [FROZEN, "full"]}
    search = GridSearchCV(steps, grid, cv=2, scoring="f1_macro", error_score="raise").fit(*news)
    chosen = search.best_params_["gpt__approach"]
    assert chosen in grid["gpt__approach"]
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_.named_steps["gpt"]
    assert best.run_.report["approach"] == ("full" if chosen == "full" else "frozen")
    assert search.predict(news[0][:2]).shape == (2,)
    assert search.classes_.tolist() == ["business", "health", "sports"]


# Wrong inputs.

TEXTS = [f"the cup final in town {row} again" for row in range(90)]
LABELS = ["sports", "business", "health"] * 30
WRONG: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "lengths": (TEXTS, LABELS[:-1], DataError, "90 texts and 89 labels"),
    "one string": (TEXTS[0], LABELS, InputError, "one string"),
    "numbers": (np.eye(90)[:, :1], LABELS, InputError, "of type float"),
    "a table": (np.array([TEXTS, TEXTS]).T, LABELS, InputError, r"shape \(90, 2\)"),
    "a missing text": ([*TEXTS[:-1], None], LABELS, InputError, "of type NoneType"),
    "bytes": ([b"bank"] * 90, LABELS, InputError, "of type bytes"),
    "ragged": ([["a"], ["b", "c"]] * 45, LABELS, InputError, "of type list"),
    "no labels": (TEXTS, None, DataError, "labels can't be used"),
    "measures": (TEXTS, np.linspace(0, 1, 90), DataError, "continuous"),
    "not a number": (TEXTS, [float("nan"), *[1.0] * 89], DataError, "y contains NaN"),
    "a missing label": (TEXTS, [None, *LABELS[1:]], DataError, "labels can't be used"),
    "two labels each": (TEXTS, np.array([LABELS, LABELS]).T, DataError, "1d array"),
    "one class": (TEXTS, ["same"] * 90, DataError, "1 class"),
    "few rows": (TEXTS[:12], LABELS[:12], DataError, "12 usable rows"),
    "empty texts": ([" "] * 90, LABELS, DataError, "0 usable rows"),
    "nothing": ([], [], DataError, "rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_told(name: str, base: str) -> None:
    texts, labels, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        GPTClassifier(base=base).fit(texts, labels)


def test_wrong_parameters_are_told_when_fitting(base: str, news: tuple[list[str], list[str]]) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'lora'"):
        GPTClassifier(base=base, approach="lara").fit(*news)
    with pytest.raises(RecipeError, match="3 epochs"):
        GPTClassifier(base=base, length="3").fit(*news)


def test_an_empty_text_is_named_when_predicting(fitted: GPTClassifier) -> None:
    with pytest.raises(InputError, match="text 1 of 2 is empty"):
        fitted.predict(["the bank", "\u200b "])
    with pytest.raises(InputError, match="one string"):
        fitted.predict("the bank")


def test_a_column_of_labels_is_taken_with_scikit_learns_warning(
    base: str, news: tuple[list[str], list[str]]
) -> None:
    with pytest.warns(DataConversionWarning):
        classifier = GPTClassifier(base=base, approach=FROZEN).fit(news[0], np.array(news[1])[:, None])
    assert classifier.classes_.tolist() == ["business", "health", "sports"]
