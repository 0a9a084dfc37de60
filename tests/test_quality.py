"""benchmarks/quality.py: samples, keys, the choice on validation, intervals, bars; one small run of it."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import quality
import quality_data
import quality_peers
import quality_table
import record
from quality_data import Dataset, make_split, sample
from quality_table import BARS, Bar, Cell, Line, choose_best, judge, macro_f1, make_line

import tiny
from gptailor.errors import RecipeError
from gptailor.models.names import Base, resolve_base

POOL = [(f"text {number}", "ab"[number % 2]) for number in range(50)]


def cell(
    what: str, predictions: str, *, answers: str = "ab", seed: int = 0, score: float | None = None
) -> Cell:
    judged = quality_table.judged_answers(list(predictions), list(answers))
    return Cell("toy", "200", seed, what, seconds=1.0, validation_macro_f1=score, **judged)


# Samples.


def test_samples_are_the_first_rows_of_a_seeded_shuffle() -> None:
    few, more = sample(POOL, "10", 0), sample(POOL, "20", 0)
    assert few == more[:10] == sample(POOL, "10", 0)
    assert sample(POOL, "10", 1) != few
    assert sample(POOL, "all", 0) == sample(POOL, "all", 1) == POOL
    assert sample(POOL, "1000", 0) != POOL
    assert sorted(sample(POOL, "1000", 0)) == sorted(POOL)


def test_the_public_files_are_read_as_they_are(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in quality_data.DATASETS}
    for folder in folders.values():
        folder.mkdir()
    news = folders["ag_news"]
    (news / "noisyag_val10000.csv").write_text('label,gt,text,group\n2,0,"A war, again",5\n')
    (news / "test.csv").write_text('"1","War","It goes on"\n"4","Chips","They shrink"\n')
    (folders["sst2"] / "train.tsv").write_text("good film\t1\n")
    (folders["sst2"] / "dev.tsv").write_text("bad film\t0\n")
    for part in ("train", "test"):
        (folders["banking77"] / f"{part}.csv").write_text("text,category\nwhere is my card?,card_arrival\n")
    tweets = folders["emotion"]
    (tweets / "mapping.txt").write_text("0\tanger\n1\tjoy\n")
    for part in ("train", "val", "test"):
        (tweets / f"{part}_text.txt").write_text("one\u2028line\ntwo \n", newline="")
        (tweets / f"{part}_labels.txt").write_text("1\n0\n")
    read = {name: quality_data.DATASETS[name](folder) for name, folder in folders.items()}
    assert read["ag_news"] == (
        [("A war, again", "World")],
        [("War . It goes on", "World"), ("Chips . They shrink", "Sci/Tech")],
    )
    assert read["sst2"] == ([("good film", "positive")], [("bad film", "negative")])
    assert read["banking77"][1] == [("where is my card?", "card_arrival")]
    assert len(read["emotion"][0]) == 4
    assert read["emotion"][1][0] == ("one\u2028line", "joy")


def test_test_rows_of_classes_without_a_row_are_set_aside(tmp_path: Path) -> None:
    train = [(f"word{n} here and word{n} there", "ab"[n % 2]) for n in range(40)]
    train.append(("the only row of its class", "c"))
    test = [("one more a", "a"), ("the only row of its class", "c"), ("one more b", "b"), ("nobody", "d")]
    split = make_split(Dataset("toy", train, test), "all", 0, work=tmp_path)
    assert list(split.kept) == [0, 2]  # the row of c stands in the test file: it can't be learned from
    assert list(split.unseen) == ["c", "d"]
    assert [json.loads(line)["label"] for line in split.test.read_text().splitlines()] == ["a", "b"]
    assert len(split.train.read_text().splitlines()) == 41


# Keys and settings.


def test_settings_can_be_for_one_approach_and_peers_take_those_of_the_data() -> None:
    given = ["train.batch_size=8", "full:train.length=3 epochs", "data.max_tokens=64"]
    assert quality.settings_for("full", given) == ["train.batch_size=8", "train.length=3 epochs", given[2]]
    assert quality.settings_for("lora", given) == ["train.batch_size=8", "data.max_tokens=64"]
    assert quality.settings_for("tfidf", given) == ["data.max_tokens=64"]


@pytest.fixture
def split(tmp_path: Path) -> quality_data.Split:
    rows = [(f"word{number} and more", "ab"[number % 2]) for number in range(40)]
    return make_split(Dataset("toy", rows, [("a text", "a"), ("b text", "b")]), "all", 0, work=tmp_path)


def test_a_cell_is_named_by_weights_settings_rows_and_seed(split: quality_data.Split, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    base = Base("starter", tmp_path, "1" * 64, "starter")
    others = Base("starter", tmp_path, "2" * 64, "starter")

    def name(what: str, *, base: Base = base, settings: tuple[str, ...] = (), **changes: Any) -> str:
        return quality.Bench(base, tmp_path, settings).name(replace(split, **changes), what)

    for what in ("frozen", "lora", "full"):
        assert name(what, base=others) != name(what)
    for what in ("scratch", "tfidf", "minilm", "minilm_names"):  # they don't see the base's weights
        assert name(what, base=others) == name(what)
    assert name("full", settings=("train.length=3 epochs",)) != name("full")
    assert name("full", settings=("lora:train.length=3 epochs",)) == name("full")
    assert name("tfidf", settings=("train.length=3 epochs",)) == name("tfidf")
    assert name("tfidf", settings=("data.clean.drop_conflicts=false",)) != name("tfidf")
    assert name("full", key="another") != name("full")
    assert name("full", seed=1) != name("full")
    assert name("full", train=tmp_path / "elsewhere.jsonl") == name("full")
    (tmp_path / "config.json").write_text('{"n_layer": 3}')
    before = name("scratch")
    (tmp_path / "config.json").write_text('{"n_layer": 4}')
    assert name("scratch") != before


def test_a_setting_that_does_not_exist_is_refused(split: quality_data.Split, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="lenght"):
        quality.Bench(resolve_base("starter"), tmp_path, ["train.lenght=3"]).name(split, "full")


# The table.


def test_best_is_chosen_on_validation_among_the_pretrained() -> None:
    cells = {
        "frozen": cell("frozen", "aa", score=0.7),
        "lora": cell("lora", "ab", score=0.8),
        "full": cell("full", "ab", score=0.8),
        "scratch": cell("scratch", "aa", score=0.9),
    }
    every = ("frozen", "lora", "full", "scratch")
    best = choose_best(cells, every)
    assert best is not None
    assert best.what == "lora"
    assert choose_best({k: v for k, v in cells.items() if k != "full"}, every) is None
    narrowed = choose_best({"frozen": cells["frozen"]}, ("frozen", "tfidf"))
    assert narrowed is cells["frozen"]
    assert choose_best({}, ("tfidf",)) is None


def test_macro_f1_counts_rows_that_were_not_asked_as_wrong() -> None:
    from sklearn.metrics import f1_score

    answers, guesses = list("aabbc"), list("abbba")
    assert macro_f1(answers, guesses) == pytest.approx(f1_score(answers, guesses, average="macro"))
    assert macro_f1(["a", "b"], ["a", None]) == pytest.approx(0.5)


@hypothesis.given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_a_record_gives_back_which_rows_were_right(flags: list[bool]) -> None:
    assert quality_table.unpack(quality_table.pack(flags), len(flags)).tolist() == flags


def test_a_line_holds_means_over_the_seeds_and_paired_intervals() -> None:
    answers, wrong = "ab" * 100, "a" * 200
    by_seed = {}
    for seed, guesses in enumerate((answers, wrong)):
        best = cell("frozen", guesses, answers=answers, seed=seed, score=0.5)
        peer = cell("tfidf", wrong, answers=answers, seed=seed)
        by_seed[seed] = {"frozen": best, "tfidf": peer, "best": best}
    line = make_line("toy", "200", by_seed, train_rows=200, test_rows=200)
    assert line.columns["frozen"]["accuracy"]["value"] == pytest.approx(0.75)
    assert line.columns["tfidf"]["macro_f1"] == pytest.approx(1 / 3, abs=1e-6)
    assert line.columns["best"]["seeds"] == 2
    assert line.chosen == {"0": "frozen", "1": "frozen"}
    difference = line.differences["tfidf"]
    assert difference["value"] == pytest.approx(0.25)
    # Each row differs by one half or by nothing: the interval is that of 200 such rows, not of 400.
    per_row = 1.96 * 0.25 / np.sqrt(200)
    assert difference["low"] == pytest.approx(0.25 - per_row, abs=0.01)
    assert difference["high"] == pytest.approx(0.25 + per_row, abs=0.01)
    assert "minilm" not in line.differences


def test_a_difference_takes_only_the_seeds_that_both_have() -> None:
    best = [cell("frozen", text, seed=seed, score=1) for seed, text in enumerate(("ab", "bb"))]
    by_seed = {0: {"best": best[0], "frozen": best[0]}, 1: {"best": best[1], "tfidf": cell("tfidf", "bb")}}
    line = make_line("toy", "200", by_seed, train_rows=200, test_rows=2)
    assert line.differences["tfidf"]["value"] == 0
    assert line.differences["tfidf"]["seeds"] == 1


def test_scratch_is_compared_with_one_fit_and_not_with_the_best_of_three() -> None:
    cells = {
        "frozen": cell("frozen", "ab", score=1),
        "full": cell("full", "aa"),
        "scratch": cell("scratch", "bb"),
    }
    line = make_line("toy", "200", {0: {**cells, "best": cells["frozen"]}}, train_rows=200, test_rows=2)
    assert line.differences["scratch"]["value"] == 0


def test_the_page_says_who_learned_from_fewer_rows() -> None:
    fits = [
        replace(cell("full", "ab" * 3, answers="ab" * 3, seed=seed), refitted=seed == 1) for seed in (0, 1)
    ]
    by_seed = {seed: {"full": fits[seed]} for seed in (0, 1)}
    told = make_line("toy", "all", by_seed, train_rows=5000, test_rows=6)
    assert told.not_refitted == {"full": 1}
    measured = {"days": ["2026-11-22"], "code": ["abc", "def"]}
    found = {
        **record.start_record(),
        "base": {"name": "toy", "revision": "0" * 40},
        "settings": [],
        "best_of": ["full"],
        "bars": [],
        "measured": measured,
    }
    page = quality_table.results_text(found, [told])
    assert "Not fitted on the validation rows: full on toy, all (5,000) (1 of 2 seeds)." in page
    assert "| toy | all (5,000) |" in page
    assert "2 seeds" in page
    assert "with code abc, def" in page


def line(dataset: str, rows: str, value: float, low: float, *, seeds: int = 3) -> Line:
    found = {"value": value, "low": low, "high": value + 0.01, "seeds": seeds}
    return Line(dataset, rows, 200, 10, differences={"tfidf": found})


@pytest.mark.parametrize(
    ("bar", "value", "low", "holds"),
    [
        (Bar("tfidf", (("toy", "200"),), "clear"), 0.02, 0.001, True),
        (Bar("tfidf", (("toy", "200"),), "clear"), 0.02, 0.0, False),
        (Bar("tfidf", (("toy", "200"),), "mean", 0.05), 0.05, 0.0, True),
        (Bar("tfidf", (("toy", "200"),), "mean", 0.05), 0.049, 0.04, False),
        (Bar("tfidf", (("toy", "200"),), "mean"), 0.0, 0.0, False),
        (Bar("tfidf", (("toy", "200"),), "mean"), 0.001, -0.01, True),
        (Bar("tfidf", (("toy", "200"),), "mean", -0.03), -0.03, -0.1, True),
        (Bar("tfidf", (("toy", "200"),), "mean", -0.03), -0.031, -0.1, False),
    ],
)
def test_bars_hold_where_they_should(bar: Bar, value: float, low: float, holds: bool) -> None:
    assert judge(bar, [line("toy", "200", value, low)])["holds"] is holds


def test_bars_average_over_their_lines_and_need_every_seed() -> None:
    bar = Bar("tfidf", (("one", "200"), ("two", "200")), "mean", -0.03)
    assert judge(bar, [line("one", "200", 0.02, 0), line("two", "200", -0.06, 0)])["difference"] == -0.02
    assert judge(bar, [line("one", "200", 0.02, 0)])["holds"] is None
    few = [line("one", "200", 0.02, 0), line("two", "200", 0.02, 0, seeds=2)]
    assert judge(bar, few) == {"bar": bar.says, "holds": None, "difference": None}


def test_the_bars_are_those_that_were_set() -> None:
    clear = {bar.lines[0] for bar in BARS if bar.kind == "clear"}
    assert clear == {
        ("ag_news", "200"),
        *((name, rows) for name in ("ag_news", "sst2", "banking77") for rows in ("1000", "all")),
    }
    assert "5 points" in next(bar for bar in BARS if bar.least == 0.05).says
    within = [bar for bar in BARS if bar.least == -0.03]
    assert [(bar.against, {rows for _, rows in bar.lines}) for bar in within] == [
        ("minilm", {"200"}),
        ("minilm", {"1000"}),
    ], "what is short at one size can't hide in the other"


# The peer.


def test_the_peer_is_judged_as_the_approaches_are() -> None:
    labels = np.arange(400) % 2
    rows = quality_peers.judged_parts(labels, held=60, seed=0)
    assert rows.tolist() == [-1] * 340 + [0] * 60
    few = quality_peers.judged_parts(labels[:200], held=30, seed=0)
    assert sorted(set(few.tolist())) == [0, 1, 2, 3, 4]
    for part in range(5):
        assert np.bincount(labels[:200][few == part]).tolist() == [20, 20]


def test_the_peer_takes_the_strength_that_does_best() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 2
    features = rng.normal(size=(300, 5)) + labels[:, None] * np.array([3, 0, 0, 0, 0])
    strength, score = quality_peers.choose_strength(
        features, labels, quality_peers.judged_parts(labels, held=45, seed=0)
    )
    assert strength in quality_peers.MINILM_STRENGTHS
    assert score > 0.8


def test_texts_are_embedded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def embed(texts: list[str]) -> Any:
        asked.extend(texts)
        return np.array([[float(len(text)), 0.0] for text in texts], np.float32)

    monkeypatch.setattr(quality_peers, "embed", embed)
    monkeypatch.setattr(quality_peers, "EMBEDDED_AT_ONCE", 2)
    found = quality_peers.embed_all(tmp_path, ["a", "bb", "ccc", "a"])
    assert {text: vector.tolist() for text, vector in found.items()} == {
        "a": [1, 0],
        "bb": [2, 0],
        "ccc": [3, 0],
    }
    again = quality_peers.embed_all(tmp_path, ["ccc", "dddd"])
    assert again["ccc"].tolist() == [3, 0]
    assert asked == ["a", "bb", "ccc", "dddd"]


# The whole of it, small.


def write_toy(folder: Path) -> Path:
    """Intents that are easy to tell apart, and a test row of a class that no training row has."""
    (folder / "banking77").mkdir(parents=True)
    words = {"sports": "the cup final and the goal", "business": "the bank and its rate"}
    for part, first, count in (("train", 0, 60), ("test", 100, 10)):
        lines = ["text,category"]
        lines += [
            f"{number} in town and {number * 7} more: {words[label]},{label}"
            for number in range(first, first + count)
            for label in words
        ]
        if part == "test":
            lines.insert(1, "nobody knows this one,health")
        (folder / "banking77" / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_small_run_keeps_its_cells_and_aligns_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.build_base(tmp_path / "base")
    words = [
        "quality.py",
        *("--data", str(write_toy(tmp_path / "data")), "--base", str(tmp_path / "base")),
        *("--datasets", "banking77", "--rows", "200", "--seeds", "0"),
        *("--approaches", "tfidf", "frozen", "--set", "frozen:approach.strengths=[1,100]"),
        *("--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")),
    ]
    monkeypatch.setenv("GPTAILOR_CACHE", "")  # put back afterwards: main sets it
    monkeypatch.setattr(sys, "argv", words)
    quality.main()
    out = capsys.readouterr()
    assert "| banking77 | 200 |" in out.out
    assert "not measured" in out.out
    assert "seed 0, frozen: accuracy" in out.err
    found = json.loads(next((tmp_path / "results").glob("*-quality-part.json")).read_text())
    (told,) = found["lines"]
    assert told["test_rows"] == 21
    assert told["unseen"] == {"0": 1}
    for column in ("tfidf", "frozen", "best"):
        assert told["columns"][column]["accuracy"]["value"] == pytest.approx(20 / 21, abs=1e-6), column
    page = next((tmp_path / "results").glob("*-quality-part.md")).read_text()
    assert "count as wrong for everybody" in page
    (cell_file,) = (tmp_path / "work" / "cells").glob("*-frozen-*.json")
    right = json.loads(cell_file.read_text())["right"]
    assert quality_table.unpack(right, 21).tolist() == [0.0] + [1.0] * 20
    assert not list((tmp_path / "work" / "runs").glob("*/model"))

    def refuse(*_: object) -> None:
        raise AssertionError("a cell was measured twice")

    monkeypatch.setattr(quality.Bench, "measure", refuse)
    quality.main()
    assert "| banking77 | 200 |" in capsys.readouterr().out

    # The record alone is enough: another machine goes on from it.
    (record_file,) = (tmp_path / "results").glob("*.json")
    kept = record_file.rename(tmp_path / "earlier.json")
    elsewhere = [*words, "--work", str(tmp_path / "elsewhere"), "--from", str(kept)]
    monkeypatch.setattr(sys, "argv", elsewhere)
    quality.main()
    again = json.loads(record_file.read_text())
    assert (again["lines"], again["cells"]) == (found["lines"], found["cells"])
    kept.write_text("{}")
    with pytest.raises(SystemExit, match=r"earlier\.json: no record with cells"):
        quality.main()


def test_no_time_means_only_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quality.py", "--data", str(write_toy(tmp_path / "data")), "--datasets", "banking77"]
    words += ["--minutes", "0", "--rows", "200", "--approaches", "tfidf", "--work", str(tmp_path / "work")]
    monkeypatch.setenv("GPTAILOR_CACHE", "")
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="nothing is measured"):
        quality.main()
    monkeypatch.setattr(sys, "argv", [*words, "--data", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="--data"):
        quality.main()


def test_every_column_and_difference_has_its_place_in_the_tables() -> None:
    told = quality_table.accuracy_table([line("toy", "200", 0.1, 0.05)])
    assert all(row.count("|") == told.splitlines()[0].count("|") for row in told.splitlines())
    told = quality_table.difference_table([line("toy", "200", 0.1, 0.05)])
    assert "+10.0 (+5.0 to +11.0)" in told


@pytest.mark.parametrize(
    "name",
    [
        "active_choice",
        "bits_per_byte",
        "kills",
        "label_errors",
        "learning_curve",
        "text_tasks",
        "times",
        "tuning",
    ],
)
def test_a_benchmark_that_runs_for_hours_can_at_least_begin(name: str) -> None:
    assert callable(importlib.import_module(name).main)


@pytest.mark.parametrize("interval", [(1.4, 1.6), (None, None)])
def test_a_text_without_an_interval_has_its_row_all_the_same(interval: tuple[Any, Any]) -> None:
    low, high = interval
    scores = {"bits_per_byte": {"value": 1.5, "low": low, "high": high}, "perplexity": {"value": 44.0}}
    told = importlib.import_module("bits_per_byte").row(
        {"text": "short", "rows": 1, "bytes": 9000, "scores": scores}
    )
    assert "| 1.500 |" in told or "| 1.500 (1.400 to 1.600) |" in told
    assert ("to" in told) is (low is not None)
