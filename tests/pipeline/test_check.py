"""`check`: what it finds is what `fit` does, and it refuses what `fit` would refuse."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import gptailor
import tiny
from gptailor.errors import DataError, GptailorError
from gptailor.pipeline import forecast, settle, trackers
from gptailor.pipeline.check import check_recipe
from gptailor.pipeline.fit import fit_recipe, open_workshop
from gptailor.pipeline.forecast import forecast_fit
from gptailor.pipeline.place import Listener
from gptailor.pipeline.prepare import prepare
from gptailor.pipeline.rendered import CheckReport
from gptailor.pipeline.suspects import suspects_in_data
from gptailor.pipeline.tokens import sequences_of
from gptailor.recipe import Recipe, build_recipe
from gptailor.report.checked import print_check, print_estimate
from gptailor.report.facts import seconds_text
from gptailor.train import checkpoint

FROZEN = {"kind": "frozen", "strengths": [1]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.build_base(tmp_path_factory.mktemp("check") / "base"))


def write_csv(path: Path, rows: Iterable[Sequence[str]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "label"], *rows])
    return str(path)


def messy_rows(folder: Path) -> list[tuple[str, str]]:
    """The easy rows and, after them, one of each fault."""
    lines = tiny.write_news(folder / "news.csv", rows=120).read_text().splitlines()[1:]
    rows = [(text, label) for text, label in (line.split(",") for line in lines)]
    first, second = rows[0], rows[1]
    return [
        *rows,
        first,  # 122: a duplicate
        (second[0], "sports"),  # 123: contradicts row 3
        ("", "sports"),  # 124
        ("a text without a label", ""),  # 125
        ("one of a kind", "gardening"),  # 126
        ("it&amp;s a caf\u00c3\u00a9 in the race", "Sports"),  # 127: mended, and its label merged
        ("word " * 90 + "the bank", "business"),  # 128: too long for the base
    ]


def recipe_for(base: str, file: str, **changes: Any) -> Recipe:
    return build_recipe({"data": {"train": file}, "base": base, "approach": FROZEN, **changes})


def printed(found: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100, highlight=False, color_system=None)
    print_check(console, found.summary, rendered=found.rendered)
    if found.estimate is not None:
        print_estimate(console, found.summary, found.estimate)
    return " ".join(out.getvalue().split())


def test_every_fault_is_counted_once_with_its_reason(base: str, tmp_path: Path) -> None:
    said: list[str] = []
    recipe = recipe_for(base, write_csv(tmp_path / "messy.csv", messy_rows(tmp_path)))
    found = check_recipe(recipe, estimate=False, say=said.append)
    summary = found.summary
    assert summary["read"] == 127
    assert summary["dropped"] == {
        "duplicate": 1,
        "conflict": 2,
        "no_text": 1,
        "no_label": 1,
        "rare_label": 1,
    }
    used = sum(summary[part] for part in ("train", "validation", "test"))
    assert used + sum(summary["dropped"].values()) == summary["read"]
    labels = summary["labels"]
    assert set(labels) == {"business", "health", "sports"}
    assert sum(sum(counts.values()) for counts in labels.values()) == used
    assert summary["repaired"] == 1
    assert summary["label_merges"] == {"Sports": "sports"}
    assert summary["suspects"] == 2
    assert (summary["text"], summary["label"]) == ("text", "label")
    lengths = summary["lengths"]
    assert (lengths["max_tokens"], lengths["cut_rows"]) == (64, 1)
    assert lengths["cut_tokens"] == lengths["longest"] - 64 > 0
    assert sum(lengths["counts"]) == used
    assert found.estimate is None
    names = next(note for note in summary["notes"] if "names teach" in note)
    assert "'business', 'health', 'sports'" in names
    rare = "1 label is too rare to learn and dropped with its rows: gardening (1)"
    assert said == [f"reading {recipe.data.train}", "cleaning", rare, names, "splitting", "tokenizing"]
    json.dumps(summary, allow_nan=False)


def test_fit_does_what_check_said(base: str, tmp_path: Path) -> None:
    train = write_csv(tmp_path / "messy.csv", messy_rows(tmp_path))
    evaluation = {"baselines": "none", "resamples": 100}
    recipe = recipe_for(base, train, evaluate=evaluation, out=str(tmp_path / "run"))
    found = check_recipe(recipe, estimate=False)
    data = gptailor.fit(recipe).report["data"]
    for key in ("read", "train", "validation", "test", "dropped"):
        assert data[key] == found.summary[key], key
    assert data["tokens"]["cut"] == found.summary["lengths"]["cut_tokens"]
    in_data = [row for row in suspects_in_data(found.prepared) if "another" not in row.reason]
    with (tmp_path / "run" / "data" / "suspects.csv").open(newline="", encoding="utf-8") as file:
        written = [(int(row["row"]), row["reason"]) for row in csv.DictReader(file)]
    assert written[: len(in_data)] == [(row.row, row.reason) for row in in_data]
    assert [row for row, _ in written[:2]] == [3, 123]


def test_the_rows_that_carry_another_label_are_named_and_no_others(base: str, tmp_path: Path) -> None:
    same = "the committee met on monday morning to discuss the new budget for the city library"
    rows = [(f"{same} {word}", "A") for word in ("today", "again", "twice", "once")] + [(f"{same} now", "B")]
    rows += [(f"number {n} and nothing else at all", "AB"[n % 2]) for n in range(40)]
    file = write_csv(tmp_path / "a.csv", rows)
    found = check_recipe(recipe_for(base, file), estimate=False)
    told = {row.row: row.reason for row in suspects_in_data(found.prepared) if row.row <= 6}
    nearly = "nearly the same text carries another label: "
    assert told == {
        **dict.fromkeys((2, 3, 4, 5), f"{nearly}{file} row 6"),
        6: nearly + ", ".join(f"{file} row {row}" for row in (2, 3, 4, 5)),
    }


def test_three_examples_are_rendered_with_their_learned_token(base: str, tmp_path: Path) -> None:
    news = tiny.write_news(tmp_path / "news.csv")
    found = check_recipe(recipe_for(base, str(news)), estimate=False)
    train = found.prepared.parts["train"]
    assert [example.where for example in found.rendered] == [f"{e.source}:{e.row}" for e in train[:3]]
    for example, row in zip(found.rendered, train, strict=False):
        assert "".join(piece for piece, _ in example.pieces) == row.text
        assert example.label == found.prepared.label_names[row.label or 0]
        assert [learned for _, learned in example.pieces] == [False] * (len(example.pieces) - 1) + [True]


def test_characters_of_several_tokens_are_rendered_whole(base: str, tmp_path: Path) -> None:
    rows = [(f"東京 🏆 naïve {row} {row * row} 映画", "ab"[row % 2]) for row in range(60)]
    found = check_recipe(recipe_for(base, write_csv(tmp_path / "rows.csv", rows)), estimate=False)
    for example, row in zip(found.rendered, found.prepared.parts["train"], strict=False):
        assert "".join(piece for piece, _ in example.pieces) == row.text
        assert not any("\ufffd" in piece for piece, _ in example.pieces)
        assert example.pieces[-1] == ("画", True)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_check_counts_the_tokens_that_fit_will_see(
    family: str, tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    """`check` reads tokenizer.json by itself, without transformers."""
    train = write_csv(tmp_path / "messy.csv", messy_rows(tmp_path))
    recipe = recipe_for(str(tiny_bases[family]), train)
    found = check_recipe(recipe, estimate=False)
    shop = open_workshop(recipe, prepare(recipe), tmp_path, Listener())
    assert shop.tokens.max_tokens == found.tokens.max_tokens
    for part, rows in shop.tokens.rows.items():
        assert sequences_of(rows) == sequences_of(found.tokens.rows[part])


def test_what_is_printed_holds_the_numbers(base: str, tmp_path: Path) -> None:
    train = write_csv(tmp_path / "messy.csv", messy_rows(tmp_path))
    found = check_recipe(recipe_for(base, train, approach="full"))
    words = printed(found)
    summary, estimate = found.summary, found.estimate
    assert estimate is not None
    for part in (
        "127 read",
        f"{summary['train']} train",
        "2 dropped: same text, different labels",
        "1 dropped: label too rare to learn",
        "1 texts mended",
        "'Sports' → 'sports'",
        f"the model reads up to 64: 1 text is longer and loses {summary['lengths']['cut_tokens']} tokens",
        f"for 6 trainings of {estimate['steps']} steps of 16 rows",
    ):
        assert part in words, part


def test_leaks_and_near_duplicates_are_counted(base: str, tmp_path: Path) -> None:
    news = tiny.write_news(tmp_path / "news.csv").read_text().splitlines()
    rows = [tuple(line.split(",")) for line in news[1:]]
    text = "a long story of the cup final and the race and the goal in extra time of the town"
    near = [(text, "sports"), (f"{text} again", "sports"), (f"{text} once", "health")]
    train = write_csv(tmp_path / "train.csv", [*rows, *near])
    test = write_csv(tmp_path / "test.csv", [rows[5], ("village news of the flu", "health")])
    summary = check_recipe(
        recipe_for(base, train, data={"train": train, "test": test}), estimate=False
    ).summary
    assert summary["leaks"] >= 1
    assert summary["dropped"]["leak_exact"] == 1
    assert summary["near_duplicate_groups"] >= 1
    assert summary["suspects"] >= 3, "near-duplicates with different labels"


# The estimate.


@pytest.mark.parametrize("approach", ["auto", "full", "lora", "scratch", FROZEN])
def test_the_estimate_is_measured_for_every_approach(approach: Any, base: str, tmp_path: Path) -> None:
    news = tiny.write_news(tmp_path / "news.csv")
    recipe = recipe_for(base, str(news), approach=approach)
    found = check_recipe(recipe, estimate=False)
    estimate = forecast_fit(recipe, found.prepared, found.tokens)
    named = approach if isinstance(approach, str) else "frozen"
    assert estimate["approach"] == ("full" if named == "auto" else named)
    assert 0 < estimate["seconds"] < 600
    assert estimate["memory_bytes"] > 0
    assert estimate["memory_spare_bytes"] > 0
    if named not in ("frozen",):
        assert estimate["steps"] == 200
        assert estimate["micro_batch_size"] <= estimate["batch_size"] == 16


@pytest.mark.parametrize(("rows", "trainings"), [(120, 6), (400, 2)])
def test_check_and_fit_expect_the_same(
    rows: int, trainings: int, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training is said to take 10 seconds; few rows take six of them, more rows a second one."""
    monkeypatch.setattr(settle, "measure_plan", lambda _adapted, _objective, plan: (plan, 10.0))
    monkeypatch.setattr(settle, "memory_in_training", lambda _: (3 * 10**9, 5 * 10**9))
    news = str(tiny.write_news(tmp_path / "news.csv", rows=rows))
    recipe = recipe_for(base, news, approach="full", train={"length": "2 steps"}, out=str(tmp_path / "run"))
    shown: list[CheckReport] = []
    found = check_recipe(recipe, show=shown.append)
    assert shown[0].estimate is None, "shown before the step is measured"
    assert found.estimate is not None
    assert found.estimate["trainings"] == trainings
    assert found.estimate["seconds"] == 10 * trainings
    said: list[str] = []
    fit_recipe(recipe, listener=Listener(say=said.append))
    (line,) = [line for line in said if "at most" in line]
    told = f"about {seconds_text(10 * trainings)} at most"
    assert line == f"full: training, {told}, 3.0 GB of memory (5.0 GB to spare)"
    with Console(width=200, record=True) as console:
        print_estimate(console, found.summary, found.estimate)
    assert f"{told} for {trainings} trainings of 2 steps" in (printed := console.export_text())
    assert "3.0 GB of memory, 5.0 GB to spare" in printed
    in_time = recipe.model_copy(update={"train": recipe.train.model_copy(update={"minutes": 0.1})})
    bounded = check_recipe(in_time).estimate
    assert bounded is not None
    assert (bounded["steps"], bounded["seconds"]) == (1, 5 * bounded["trainings"])
    assert bounded["trainings"] == (6 if trainings == 6 else 1), "no refit where the time is bounded"


def test_what_frozen_features_cost_is_measured_without_a_training(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients and moments of a base that is only read could be more than the machine has."""
    monkeypatch.setattr(forecast, "adapt", lambda *_: pytest.fail("nothing is trained"))
    recipe = recipe_for(base, str(tiny.write_news(tmp_path / "news.csv")), approach=FROZEN)
    found = check_recipe(recipe).estimate
    assert found is not None
    assert set(found) == {"approach", "seconds", "memory_bytes", "memory_spare_bytes", "disk_free_bytes"}


def test_a_disk_too_small_for_the_checkpoints_is_told(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: (asked.append(Path(path)), full)[1])
    news = str(tiny.write_news(tmp_path / "news.csv"))
    recipe = recipe_for(base, news, approach="full", out=str(tmp_path / "not" / "yet"))
    with pytest.raises(GptailorError, match="three checkpoints need"):
        check_recipe(recipe)
    assert asked == [tmp_path], "where the run will lie"


def test_rows_that_make_no_folds_are_refused_as_by_fit(base: str, tmp_path: Path) -> None:
    """All rows of one label are of one customer: no fold could learn both labels."""
    path = tmp_path / "customers.csv"
    with path.open("w", newline="") as file:
        rows = [(f"the cup final number {n}", "sports", f"c{n % 10}") for n in range(30)]
        rows += [(f"the bank and its rate {n}", "business", "one") for n in range(30)]
        csv.writer(file).writerows([["text", "label", "customer"], *rows])
    data = {"train": str(path), "split": {"group": "customer"}}
    recipe = recipe_for(base, str(path), approach=FROZEN, data=data, out=str(tmp_path / "run"))
    with pytest.raises(GptailorError) as checked:
        check_recipe(recipe)
    with pytest.raises(GptailorError) as fitted:
        gptailor.fit(recipe)
    assert str(checked.value) == str(fitted.value)


# What it refuses.


@pytest.mark.parametrize(
    "data",
    [
        {"max_tokens": 65},
        {"max_tokens": 8, "too_long": "drop"},
        {"split": {"validation": 0.5, "test": 0.5}},
        {"split": {"test": 0.0}},
        {"split": {"validation": 0.0}},
        {"text": "label+nothing"},
        {"label_names": {"0": "World"}},
        {"clean": {"minimum_class_size": 90}},
    ],
)
def test_check_refuses_what_fit_refuses_with_the_same_words(
    data: dict[str, Any], base: str, tmp_path: Path
) -> None:
    news = tiny.write_news(tmp_path / "news.csv")
    recipe = recipe_for(base, str(news), data={"train": str(news), **data}, out=str(tmp_path / "run"))
    with pytest.raises(GptailorError) as checked:
        check_recipe(recipe, estimate=False)
    with pytest.raises(GptailorError) as fitted:
        gptailor.fit(recipe)
    assert str(checked.value) == str(fitted.value)
    assert checked.value.fix


def test_a_base_without_a_tokenizer_is_refused(base: str, tmp_path: Path) -> None:
    news = tiny.write_news(tmp_path / "news.csv")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((Path(base) / name).read_bytes())
    with pytest.raises(GptailorError, match=r"no tokenizer\.json"):
        check_recipe(recipe_for(str(bare), str(news)), estimate=False)
    with pytest.raises(GptailorError, match=r"no tokenizer\.json"):
        gptailor.fit(recipe_for(str(bare), str(news), out=str(tmp_path / "run")))


def test_too_few_rows_are_refused(base: str, tmp_path: Path) -> None:
    news = tiny.write_news(tmp_path / "news.csv", rows=15)
    with pytest.raises(DataError, match="15 usable rows"):
        check_recipe(recipe_for(base, str(news)), estimate=False)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"trackers": ["wandb"]}, "wandb"),
        ({"train": {"class_weights": {"sprots": 2.0}}, "approach": "full"}, "sprots"),
    ],
)
def test_what_fit_refuses_is_refused_without_an_estimate_too(
    settings: dict[str, Any], told: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    data = {"train": str(tiny.write_news(tmp_path / "news.csv", rows=120))}
    recipe = build_recipe({"data": data, "base": base, **settings})
    with pytest.raises(GptailorError, match=told):
        check_recipe(recipe, estimate=False)
