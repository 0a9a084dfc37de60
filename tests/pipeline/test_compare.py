"""Comparing runs: the leaderboard, paired tests on the same rows only, the settings that differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptailor.data.ledger import write_csv_safely
from gptailor.errors import RunError
from gptailor.evaluate.label_sets import label_set_scores
from gptailor.evaluate.metrics import as_json, classification_scores, paired_difference
from gptailor.evaluate.numbers import number_scores, paired_error_difference
from gptailor.evaluate.paired import corrected_for_all_pairs, difference_of, holm, resampled_scores
from gptailor.evaluate.resampling import Resampling
from gptailor.pipeline.compare import compare_runs
from gptailor.recipe import build_recipe, dump_recipe
from gptailor.report.comparison import render_comparison

LABELS = ["a", "b", "c"]
ANSWERS = np.random.default_rng(0).integers(3, size=200)


def guesses(right: float, seed: int) -> Any:
    """Predictions of which about so many are right."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(ANSWERS)) < right, ANSWERS, rng.integers(3, size=len(ANSWERS)))


def write_run(
    folder: Path,
    *,
    test: dict[str, Any],
    header: Sequence[str] = (),
    rows: Sequence[Sequence[object]] = (),
    answer: dict[str, Any] | None = None,
    task: str = "classification",
    file: str = "predictions.csv",
    **settings: Any,
) -> Path:
    """A finished run as far as `compare` reads it."""
    form = {"kind": "single", "separator": "", "cutoff": 0.5, "mean": 0.0, "deviation": 1.0, **(answer or {})}
    (folder / "model").mkdir(parents=True)
    report = {
        "task": task,
        **({"answer": form["kind"]} if task == "classification" else {}),
        "approach": "frozen",
        "base": "starter",
        "test": test,
        "training": {"seconds": 3.5},
        "data": {"train": 70},
    }
    (folder / "report.json").write_text(json.dumps(report))
    recipe = build_recipe({"data": {"train": "rows.csv"}, "out": str(folder), **settings})
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    bundle = {
        "version": 1, "task": task, "base": "starter", "base_revision": "1", "approach": "frozen",
        "label_names": LABELS, "max_tokens": 64, "too_long": "cut", "temperature": 1.0, "threshold": None,
        "clean": {}, "scores": {}, "probes": [], "form": {}, "answer": form,
    }  # fmt: skip
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "gptailor.json").write_text(json.dumps(bundle))
    if header and "source" not in header:
        header, rows = ("source", "row", *header), [("x.csv", place, *row) for place, row in enumerate(rows)]
    if header:
        write_csv_safely(folder / file, header, rows)
    return folder


def write_classifier(
    folder: Path, predictions: Any, *, order: Any = None, places: Any = None, **settings: Any
) -> Path:
    places = np.arange(len(ANSWERS)) if places is None else places
    scores = classification_scores(ANSWERS[places], predictions[places], LABELS, resampling=Resampling(100))
    listed = places if order is None else order
    rows = [
        ("t.csv", int(row), f"text {row // 2}", LABELS[ANSWERS[row]], LABELS[predictions[row]])
        for row in listed
    ]
    header = ("source", "row", "text", "answer", "prediction")
    return write_run(folder, test=as_json(scores), header=header, rows=rows, **settings)


def test_the_best_comes_first_and_others_are_tested_against_it(tmp_path: Path) -> None:
    runs = [
        write_classifier(tmp_path / "poor", guesses(0.3, 1)),
        write_classifier(tmp_path / "good", guesses(0.9, 2)),
        write_classifier(tmp_path / "near", np.where(np.arange(200) == 7, 0, guesses(0.9, 2))),
    ]
    found = compare_runs(runs, resampling=Resampling(500))
    order = [Path(run["run"]).name for run in found["runs"]]
    assert order[-1] == "poor"
    assert found["best"] == found["runs"][0]["run"]
    assert found["runs"][0]["against_best"] is None
    assert next(iter(found["runs"][0]["scores"])) == "macro_f1"
    near, poor = (run["against_best"] for run in found["runs"][1:])
    assert (near["clear"], poor["clear"]) == (False, True)
    assert poor["p_holm"] == pytest.approx(
        3 * poor["p"], abs=1e-5
    )  # of three pairs, not two: the best could be any
    assert "not clearly worse" in found["says"]
    assert found["runs"][0]["training_seconds"] == 3.5


def test_a_handful_of_rows_is_too_few_to_tell(tmp_path: Path) -> None:
    """Three of four rows, and five of forty, on which one alone is right: a sign test finds that no proof."""
    for rows, wrong, says in ((4, 3, "on 4 test rows: too few to tell"), (40, 5, "only 5 of 40 test rows")):
        places = np.arange(rows)
        worse = np.where(places < wrong, (ANSWERS[:rows] + 1) % 3, ANSWERS[:rows])
        runs = [
            write_classifier(tmp_path / f"{name}{rows}", predictions, places=places)
            for name, predictions in (("right", ANSWERS[:rows]), ("wrong", worse))
        ]
        found = compare_runs(runs, resampling=Resampling(500))
        test = found["runs"][1]["against_best"]
        assert test["clear"] is False
        assert says in test["says"]
        assert "clearly ahead" not in found["says"]


def test_runs_are_compared_without_their_weights(tmp_path: Path) -> None:
    """Large models are thrown away; what they answered is still there."""
    runs = [write_classifier(tmp_path / name, guesses(right, 1)) for name, right in (("a", 0.3), ("b", 0.9))]
    whole = compare_runs(runs, resampling=Resampling(300))
    for run in runs:
        shutil.rmtree(run / "model")
    assert compare_runs(runs, resampling=Resampling(300)) == whole


@pytest.mark.parametrize("report", ["[]", "{}", "3", "{"])
def test_a_report_that_is_none_is_damaged(tmp_path: Path, report: str) -> None:
    run = write_classifier(tmp_path / "a", guesses(0.5, 1))
    (run / "report.json").write_text(report)
    with pytest.raises(RunError, match="damaged"):
        compare_runs([run])


def test_the_difference_is_that_of_the_report(tmp_path: Path) -> None:
    """The statistic from the files is the one the ladder uses."""
    ours, theirs = guesses(0.5, 1), guesses(0.7, 2)
    runs = [write_classifier(tmp_path / "a", ours), write_classifier(tmp_path / "b", theirs)]
    gap = compare_runs(runs, resampling=Resampling(4000))["runs"][1]["against_best"]["difference"]
    expected = paired_difference(ANSWERS, ours, theirs, num_labels=3, resampling=Resampling(4000))
    assert gap["value"] == pytest.approx(expected.value, abs=1e-6)
    assert gap["low"] == pytest.approx(expected.low, abs=0.01)
    assert gap["high"] == pytest.approx(expected.high, abs=0.01)


def test_rows_are_matched_by_text_and_answer_whatever_their_order(tmp_path: Path) -> None:
    ours, theirs = guesses(0.5, 1), guesses(0.7, 2)
    straight = [write_classifier(tmp_path / "a", ours), write_classifier(tmp_path / "b", theirs)]
    mixed = np.random.default_rng(3).permutation(100) * 2  # pairs of rows with one text stay in order
    order = np.column_stack([mixed, mixed + 1]).ravel()
    turned = [straight[0], write_classifier(tmp_path / "c", theirs, order=order)]
    one, other = (
        compare_runs(runs, resampling=Resampling(300))["runs"][1]["against_best"]
        for runs in (straight, turned)
    )
    assert one == other


def test_other_rows_are_no_test_and_said(tmp_path: Path) -> None:
    runs = [
        write_classifier(tmp_path / "a", guesses(0.9, 1)),
        write_classifier(tmp_path / "b", guesses(0.5, 2), places=np.arange(50)),
    ]
    found = compare_runs(runs)
    assert found["runs"][1]["against_best"].keys() == {"says"}
    assert "50 of 50 rows stand in the best run's 200" in found["runs"][1]["against_best"]["says"]
    assert "no run could be tested" in found["says"]
    assert "best" not in found["says"]


def test_the_same_predictions_are_no_difference(tmp_path: Path) -> None:
    runs = [write_classifier(tmp_path / name, guesses(0.6, 1)) for name in ("a", "b")]
    test = compare_runs(runs)["runs"][1]["against_best"]
    assert (test["difference"]["value"], test["p"], test["clear"]) == (0.0, 1.0, False)


def test_settings_that_differ_are_told_and_defaults_of_one_approach_are_not(tmp_path: Path) -> None:
    runs = [
        write_classifier(tmp_path / "a", guesses(0.9, 1), approach="lora", seed=1),
        write_classifier(tmp_path / "b", guesses(0.5, 1), approach={"kind": "frozen", "strengths": [1]}),
    ]
    settings = {entry["key"]: list(entry["values"].values()) for entry in compare_runs(runs)["settings"]}
    assert settings == {
        "approach.kind": ["lora", "frozen"],
        "approach.strengths": [None, [1.0]],
        "seed": [1, 0],
    }


def test_sets_of_labels_numbers_texts_preferences_and_bits(tmp_path: Path) -> None:
    """Every kind: the score from the rows is the report's, so no word of a drift."""
    rng = np.random.default_rng(0)
    sets = rng.integers(2, size=(120, 3))
    numbers = rng.normal(size=120)
    for name, noise, mark in (("a", 0.2, ";"), ("b", 0.4, "|")):
        flips = np.random.default_rng(int(10 * noise)).random(sets.shape) < noise / 2
        given = np.where(flips, 1 - sets, sets)
        cells = [[mark.join(np.array(LABELS)[row == 1]) or "[]" for row in one] for one in (sets, given)]
        write_run(
            tmp_path / "sets" / name,
            test=as_json(label_set_scores(sets, given, LABELS, resampling=Resampling(100))),
            header=("text", "answer", "prediction"),
            rows=[(f"t{i}", *pair) for i, pair in enumerate(zip(*cells, strict=True))],
            answer={"kind": "multiple", "separator": mark},  # each run's cells are read with its own mark
        )
        guessed = numbers + noise * np.random.default_rng(1).normal(size=120)
        write_run(
            tmp_path / "numbers" / name,
            test=as_json(number_scores(numbers, guessed, resampling=Resampling(100))),
            header=("text", "answer", "prediction"),
            rows=[
                (f"t{i}", repr(float(x)), repr(float(y)))
                for i, (x, y) in enumerate(zip(numbers, guessed, strict=True))
            ],
            answer={"kind": "score"},
        )
        margins = rng.normal(size=120) + 1 - 2 * noise
        share = float((margins > 0).mean())
        write_run(
            tmp_path / "preference" / name,
            test={"preference_accuracy": {"value": share, "low": share, "high": share}},
            header=("prompt", "chosen", "rejected", "margin"),
            rows=[(f"p{i}", "yes", "no", float(margin)) for i, margin in enumerate(margins)],
            task="preference",
        )
        texts = ["one two three" if i % 10 < 10 * (1 - noise) else "four" for i in range(40)]
        matched = float(np.mean([text == "one two three" for text in texts]))
        write_run(
            tmp_path / "texts" / name,
            test={"exact_match": {"value": matched, "low": 0.0, "high": 1.0}},
            header=("prompt", "reference", "answer", "ended"),
            rows=[(f"q{i}", "one two three", text, True) for i, text in enumerate(texts)],
            task="completion",
        )
        bits = (1 + noise) * rng.uniform(0.9, 1.1, size=60)
        write_run(
            tmp_path / "bits" / name,
            test={"bits_per_byte": {"value": float(bits.mean()), "low": 0.0, "high": 9.0}},
            header=("source", "row", "bytes", "tokens", "nats"),
            rows=[("x.txt", i, 10, 3, float(10 * bit * np.log(2))) for i, bit in enumerate(bits)],
            task="language",
            file="test_bits.csv",
        )
    for kind in ("sets", "numbers", "preference", "texts", "bits"):
        found = compare_runs([tmp_path / kind / "b", tmp_path / kind / "a"], resampling=Resampling(300))
        assert Path(found["best"]).name == "a", kind
        test = found["runs"][1]["against_best"]
        assert test["clear"], (kind, test)
        assert "by the one reference" not in test["says"], (kind, test)
        assert "</html>" in render_comparison(found)


def test_labels_are_read_without_the_apostrophes_before_formulas(tmp_path: Path) -> None:
    """A cell of `@home;@work` is written as `'@home;@work`: no label begins with an apostrophe."""
    names = ["@home", "@work"]
    rng = np.random.default_rng(0)
    answers = rng.integers(2, size=(120, 2))
    for name, noise in (("a", 0.1), ("b", 0.4)):
        given = np.where(rng.random(answers.shape) < noise, 1 - answers, answers)
        cells = [[";".join(np.array(names)[row == 1]) or "[]" for row in one] for one in (answers, given)]
        write_run(
            tmp_path / name,
            test=as_json(label_set_scores(answers, given, names, resampling=Resampling(100))),
            header=("text", "answer", "prediction"),
            rows=[(f"t{i}", *pair) for i, pair in enumerate(zip(*cells, strict=True))],
            answer={"kind": "multiple", "separator": ";"},
        )
    found = compare_runs([tmp_path / "a", tmp_path / "b"], resampling=Resampling(100))
    assert "by the one reference" not in found["runs"][1]["against_best"]["says"]


def test_rows_that_were_drawn_together_count_once(tmp_path: Path) -> None:
    """Seven answers to each of thirty prompts: a prompt that suits one run suits it seven times."""
    rng = np.random.default_rng(0)
    for name, level in (("a", 1.0), ("b", 1.03)):
        bits = np.repeat(level * rng.uniform(0.5, 1.5, size=30), 7)
        for kind in ("grouped", "apart"):
            write_run(
                tmp_path / kind / name,
                test={"bits_per_byte": {"value": float(bits.mean()), "low": 0.0, "high": 9.0}},
                header=("source", "row", "group", "bytes", "tokens", "nats"),
                rows=[
                    ("x.txt", i, i // 7 if kind == "grouped" else i, 10, 3, float(10 * bit * np.log(2)))
                    for i, bit in enumerate(bits)
                ],
                task="completion",
                file="test_bits.csv",
            )
    widths = {}
    for kind in ("grouped", "apart"):
        found = compare_runs([tmp_path / kind / "a", tmp_path / kind / "b"], resampling=Resampling(400))
        gap = found["runs"][1]["against_best"]["difference"]
        widths[kind] = gap["high"] - gap["low"]
    assert widths["grouped"] > 2 * widths["apart"]


def test_numbers_are_tested_as_in_the_report() -> None:
    rng = np.random.default_rng(0)
    answers = rng.normal(size=80)
    ours, theirs = answers + 0.3 * rng.normal(size=80), answers + 0.5 * rng.normal(size=80)
    rows = {n: np.column_stack([(p - answers) ** 2, np.ones(80)]) for n, p in (("a", ours), ("b", theirs))}
    drawn = resampled_scores(rows, lambda sums: np.sqrt(sums[:, 0] / sums[:, 1]), resampling=Resampling(3000))
    gap, p = difference_of(drawn["a"], drawn["b"])
    expected = paired_error_difference(answers, ours, theirs, resampling=Resampling(3000))
    assert (gap.value, gap.low, gap.high) == pytest.approx(
        (expected.value, expected.low, expected.high), abs=0.01
    )
    assert p < 0.05


def test_holm_is_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_best_of_many_equal_runs_is_seldom_clearly_better() -> None:
    """It was picked by the rows it is tested on, so tests against it alone would cry wolf far too often."""
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(60):
        rows = {str(run): (rng.random((80, 1)) < 0.7).astype(float) for run in range(8)}
        drawn = resampled_scores(rows, lambda sums: sums[:, 0] / 80, resampling=Resampling(200 * 28))
        corrected = corrected_for_all_pairs(drawn)
        best = max(drawn, key=lambda name: drawn[name][0])
        alarms += any(p < 0.05 for pair, p in corrected.items() if best in pair)
    assert alarms <= 6


def test_p_values_hold_under_no_difference() -> None:
    """Two systems that are equally good: about one test in twenty says otherwise."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(200):
        rows = {name: (rng.random((150, 1)) < 0.7).astype(float) for name in ("a", "b")}
        drawn = resampled_scores(rows, lambda sums: sums[:, 0], resampling=Resampling(400))
        found += difference_of(drawn["a"], drawn["b"])[1] < 0.05
    assert 2 <= found <= 20


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    one = write_classifier(tmp_path / "a", guesses(0.9, 1))
    bits = {"bits_per_byte": {"value": 1.0, "low": 0.9, "high": 1.1}}
    other = write_run(tmp_path / "b", test=bits, task="language")
    with pytest.raises(RunError, match="different things"):
        compare_runs([one, other])
    with pytest.raises(RunError, match="twice"):
        compare_runs([one, tmp_path / "b" / ".." / "a"])
    with pytest.raises(RunError, match="no such folder"):
        compare_runs([tmp_path / "nowhere"])


def test_a_run_without_rows_is_told_and_one_alone_too(tmp_path: Path) -> None:
    bits = {"bits_per_byte": {"value": 1.0, "low": 0.9, "high": 1.1}}
    runs = [write_run(tmp_path / name, test=bits, task="language") for name in ("a", "b")]
    assert "has no test_bits.csv" in compare_runs(runs)["runs"][1]["against_best"]["says"]
    assert "nothing to compare" in compare_runs(runs[:1])["says"]


def test_the_page_loads_nothing_and_escapes_names(tmp_path: Path) -> None:
    evil = tmp_path / "<img src=x onerror=alert(1)>"
    runs = [write_classifier(evil, guesses(0.9, 1)), write_classifier(tmp_path / "b", guesses(0.5, 1))]
    page = render_comparison(compare_runs(runs))
    assert "<img" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "default-src 'none'" in page


def test_of_many_runs_one_can_be_clearly_ahead(tmp_path: Path) -> None:
    """Each p-value is corrected for all 66 pairs, so 100 resamples alone could show nothing."""
    runs = [write_classifier(tmp_path / "best", guesses(0.95, 1))]
    runs += [write_classifier(tmp_path / f"poor-{n}", guesses(0.2, 10 + n)) for n in range(11)]
    found = compare_runs(runs, resampling=Resampling(100))
    assert found["runs"][0]["run"].endswith("best")
    assert all(run["against_best"]["clear"] for run in found["runs"][1:])


def test_groups_count_whichever_run_names_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    level = np.repeat(rng.uniform(0.5, 1.5, size=30), 7)
    widths = []
    for naming in ("better", "worse"):
        for name, factor in (("better", 1.0), ("worse", 1.1)):
            bits = factor * level
            write_run(
                tmp_path / naming / name,
                test={"bits_per_byte": {"value": float(bits.mean()), "low": 0.0, "high": 9.0}},
                header=("source", "row", "group", "bytes", "tokens", "nats"),
                rows=[
                    ("x.txt", i, i // 7 if name == naming else i, 10, 3, float(10 * bit * np.log(2)))
                    for i, bit in enumerate(bits)
                ],
                task="completion",
                file="test_bits.csv",
            )
        runs = [tmp_path / naming / name for name in ("better", "worse")]
        gap = compare_runs(runs, resampling=Resampling(400))["runs"][1]["against_best"]["difference"]
        widths.append(gap["high"] - gap["low"])
    assert widths[0] == pytest.approx(widths[1])
