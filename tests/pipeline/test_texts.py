"""Completion, chat and preference from rows to a finished run: all told, the test honest, resume exact."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import crashed
import tiny
import tiny_texts as texts
from crashed import Crash, alike, metrics_of
from gptailor import cli
from gptailor.data.ledger import LedgerLine, read_ledger
from gptailor.errors import DataError, GptailorError, InputError, ModelError, RecipeError, RunError
from gptailor.evaluate.language import PieceNats, num_units, text_scores
from gptailor.evaluate.preference import share_difference
from gptailor.evaluate.resampling import Resampling
from gptailor.evaluate.text_metrics import TextAnswers, text_answer_scores
from gptailor.models.answerer import load_answerer
from gptailor.models.generate import generate
from gptailor.models.sampling import Sampling
from gptailor.pipeline import causal
from gptailor.pipeline.answers import predict_inputs, predict_to
from gptailor.pipeline.causal import adapt_causal
from gptailor.pipeline.check import check_recipe
from gptailor.pipeline.compare import compare_runs
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.place import Listener
from gptailor.pipeline.run import Run
from gptailor.pipeline.text_rehearsal import rehearse_texts
from gptailor.pipeline.texts import answers, judge, new, objective, shop, story
from gptailor.pipeline.texts.tokens import TokenizedRow, ledger_lines, tokenize_texts
from gptailor.recipe import FullApproach, load_recipe
from gptailor.tasks.rendering import PLAIN
from gptailor.train import checkpoint
from gptailor.types import Example, RawExample, Segment, TokenizedExample

PARTS = ("train", "validation", "test")
UNLIKE = (*crashed.UNLIKE, "today")  # a template may write the date
LORA = {"kind": "lora", "rank": 2, "dropout": 0.1}
SCRATCH = {"kind": "scratch", "layers": 1}
Place = texts.Place

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_bases: dict[str, Path]) -> Place:
    return Place(tmp_path_factory.mktemp("texts"), tiny_bases)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """No waiting for the disk, which is half the time of a tiny fit."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def odd_files(place: Place) -> dict[str, Path]:
    """Sixty good rows and one of every other kind, beside a test file."""
    held_out = texts.pairs(12, first=500)
    good = texts.pairs(60)
    near = held_out[1]["prompt"] + " soon"
    odd = [
        good[0],
        {**good[1], "completion": "another answer"},
        {"prompt": "", "completion": "nobody asked"},
        {"prompt": "nobody answered", "completion": " "},
        {"prompt": held_out[0]["prompt"], "completion": "a leak"},
        {"prompt": near, "completion": "nearly a leak"},
    ]
    train = texts.write_csv(place.folder / "odd.csv", [*good, *odd])
    return {"train": train, "test": texts.write_csv(place.folder / "held-out.csv", held_out)}


@pytest.fixture(scope="module")
def completion(place: Place, odd_files: dict[str, Path]) -> Run:
    """All baselines; one epoch of 50 rows is four steps of 16 at most."""
    return place.fit(place.recipe("completion", data=odd_files, baselines="quick", dropout=0.0))


@pytest.fixture(scope="module")
def squad_file(place: Place) -> Path:
    path = place.folder / "squad.json"
    path.write_text(json.dumps(texts.squad(24)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def questions(place: Place, squad_file: Path) -> Run:
    """Contexts of some thirty tokens where twenty fit."""
    return place.fit(place.recipe("questions", data={"train": squad_file, "max_tokens": 56}))


@pytest.fixture(scope="module")
def chat_file(place: Place) -> Path:
    faulty = [
        {"messages": [{"role": "user", "content": "and then"}]},
        {"messages": [{"role": "usr", "content": "hm"}, {"role": "assistant", "content": "yes"}]},
        {"messages": []},
        {
            "messages": [
                {"role": "user", "content": "so"},
                {"role": "assistant", "content": "no", "weight": 0},
            ]
        },
    ]
    path = texts.write_jsonl(place.folder / "chats.jsonl", [*texts.chats(40), *faulty])
    with path.open("a") as file:
        file.write('{"messages": [\n')
    return path


@pytest.fixture(scope="module")
def chat(place: Place, chat_file: Path) -> Run:
    return place.fit(place.recipe("chat", data={"train": chat_file}, baselines="quick"))


@pytest.fixture(scope="module")
def preference_file(place: Place) -> Path:
    good = texts.preferences(40)
    swapped = {**good[0], "chosen": good[0]["rejected"], "rejected": good[0]["chosen"]}
    tie = {"prompt": "which one", "chosen": "this", "rejected": "this "}
    return texts.write_jsonl(place.folder / "preferences.jsonl", [*good, swapped, good[1], tie])


@pytest.fixture(scope="module")
def preference(place: Place, preference_file: Path) -> Run:
    """Long enough that the preferred answers get ahead."""
    data = {"train": preference_file}
    more: dict[str, Any] = {
        "length": "20 steps",
        "save_every": "20 steps",
        "learning_rate": 3e-3,
    }
    return place.fit(place.recipe("preference", data=data, baselines="quick", **more))


def ledger_of(run: Run) -> list[LedgerLine]:
    return list(read_ledger(run.folder / "data" / "ledger.jsonl"))


def details_of(run: Run) -> Any:
    return json.loads((run.folder / "details.json").read_text(encoding="utf-8"))


def steps_of(run: Run) -> list[dict[str, Any]]:
    return [line for line in metrics_of(run.folder) if line["kind"] == "step"]


def predictions_of(run: Run) -> list[dict[str, str]]:
    with (run.folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def results(run: Run) -> dict[str, Any]:
    """All that must be equal, bit for bit."""
    newest, _ = checkpoint.newest_verified(run.folder / "checkpoints")
    assert newest is not None
    return {
        "model": checkpoint.file_hash(run.folder / "model" / "model.safetensors"),
        "optimizer": checkpoint.file_hash(newest.path / "optimizer.safetensors"),
        "ledger": (run.folder / "data" / "ledger.jsonl").read_text(encoding="utf-8"),
        "predictions": (run.folder / "predictions.csv").read_text(encoding="utf-8"),
        "report": alike(run.report, unlike=UNLIKE),
        "metrics": alike(metrics_of(run.folder), unlike=UNLIKE),
        "samples": details_of(run)["samples"],
    }


# What lies in the folder.


@pytest.mark.parametrize("name", ["completion", "questions", "chat", "preference"])
def test_a_run_folder_holds_what_the_contract_says(name: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(name)
    report = run.report
    assert {"version", "task", "base", "approach", "seed", "data", "test", "validation"} <= report.keys()
    assert {"baselines", "verdict", "training", "environment"} <= report.keys()
    assert report["version"] == 1
    assert report["task"] == ("completion" if name == "questions" else name), "by the columns"
    assert {"best_baseline", "difference", "worth_it", "says"} <= report["verdict"].keys()
    assert {"steps", "best_step", "seconds", "tokens_per_second", "peak_memory_bytes", "stopped"} <= set(
        report["training"]
    )
    assert set(report["data"]["tokens"]) == {"trained", "context", "padding", "cut"}
    scores = {key: value for key, value in report["test"].items() if isinstance(value, dict)}
    assert {"bits_per_byte", "perplexity"} <= scores.keys()
    for score in [*scores.values(), *report["validation"].values()]:
        if isinstance(score, dict):
            assert score["low"] <= score["value"] <= score["high"]
    for file in ("recipe.yaml", "environment.json", "metrics.jsonl", "report.html", "README.md"):
        assert (run.folder / file).stat().st_size > 0
    assert "NaN" not in (run.folder / "report.json").read_text()
    (opening,) = (run.folder / "openings.jsonl").read_text().splitlines()
    assert json.loads(opening)["command"] == "fit"
    AutoModelForCausalLM.from_pretrained(run.folder / "model")
    assert details_of(run)["parity"]["reload"] < 1e-5


@pytest.mark.parametrize("name", ["completion", "questions", "chat", "preference"])
def test_the_ledger_comes_out(name: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(name)
    data, lines = run.report["data"], ledger_of(run)
    assert data["read"] == len(lines) == sum(data[part] for part in PARTS) + sum(data["dropped"].values())
    for part in PARTS:
        used = [line for line in lines if line.part == part]
        assert len(used) == data[part] > 0
        assert all(bool(line.trained) is (part == "train") for line in used)
    for name_, value in (("trained", "trained"), ("context", "context"), ("cut", "cut")):
        assert sum(getattr(line, value) for line in lines) == data["tokens"][name_]
    assert len({(line.source, line.row) for line in lines}) == len(lines)


def test_every_learned_token_is_learned_once_an_epoch(completion: Run) -> None:
    data = completion.report["data"]
    assert -(-data["train"] // 16) == texts.STEPS, "one epoch"
    assert sum(step["num_targets"] for step in steps_of(completion)) == data["tokens"]["trained"]


# Which rows are used, and where.


def test_odd_rows_are_dropped_for_their_reason(completion: Run) -> None:
    told = {
        line.row: (line.reason, line.detail) for line in ledger_of(completion) if line.outcome == "dropped"
    }
    # The header is line 1, so the first odd row stands in line 62.
    assert told[62] == ("duplicate", "the same as row 2")
    assert told[64] == ("no_text", "there is no text in prompt")
    assert told[65] == ("nothing_to_learn", "there is no answer in completion")
    assert told[66][0] == "leak_exact"
    assert "held-out.csv row 2" in told[66][1]
    assert told[67][0] == "leak_near"
    assert set(told) == {62, 64, 65, 66, 67}, "another answer to a question is welcome"
    assert completion.report["data"]["test"] == 12


def test_equal_questions_stay_in_one_part_and_share_their_references(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[TextAnswers] = []

    def listening(answers: TextAnswers, **settings: Any) -> Any:
        if settings["resampling"].resamples > 1:  # not what is only asked of validation
            scored.append(answers)
        return text_answer_scores(answers, **settings)

    monkeypatch.setattr(judge, "text_answer_scores", listening)
    rows = [{**row, "completion": f"{row['completion']} {n}"} for row in texts.pairs(40) for n in range(3)]
    run = place.fit(
        place.recipe("several", data={"train": texts.write_csv(place.folder / "several.csv", rows)})
    )
    parts: dict[str, set[Any]] = {}
    for line in ledger_of(run):
        parts.setdefault(rows[line.row - 2]["prompt"], set()).add(line.part)
    assert all(len(found) == 1 for found in parts.values())
    asked = [line["prompt"] for line in predictions_of(run)]
    assert len(asked) == len(set(asked)) == run.report["test"]["answers"]
    assert run.report["test"]["rows"] == 3 * len({p for p, found in parts.items() if found == {"test"}})
    ours, *_ = scored
    for prompt, references in zip(asked, ours.references, strict=True):
        assert set(references) == {row["completion"] for row in rows if row["prompt"] + "\n" == prompt}


def test_a_named_group_stays_in_one_part(place: Place) -> None:
    rows = [{**row, "author": f"a{n % 12}"} for n, row in enumerate(texts.pairs(60))]
    path = texts.write_csv(place.folder / "authors.csv", rows)
    run = place.fit(place.recipe("authors", data={"train": path, "split": {"group": "author"}}))
    parts: dict[str, set[Any]] = {}
    for line in ledger_of(run):
        parts.setdefault(rows[line.row - 2]["author"], set()).add(line.part)
    assert all(len(found) == 1 for found in parts.values())
    assert set.union(*parts.values()) == set(PARTS)


def test_the_newest_rows_test_where_a_time_is_named(place: Place) -> None:
    rows = [
        {**row, "day": f"2024-01-{59 - n:02d}" if n > 28 else f"2024-02-{29 - n:02d}"}
        for n, row in enumerate(texts.pairs(58))
    ]
    path = texts.write_csv(place.folder / "days.csv", rows)
    run = place.fit(place.recipe("days", data={"train": path, "split": {"time": "day"}}))
    days = {part: [rows[x.row - 2]["day"] for x in ledger_of(run) if x.part == part] for part in PARTS}
    assert max(days["train"]) <= min(days["validation"]) <= max(days["validation"]) <= min(days["test"])


def test_questions_about_one_context_stay_together_though_windows_differ(questions: Run) -> None:
    """Three questions to a context, each of which may be shown another window of it."""
    lines = ledger_of(questions)
    parts = [{line.part for line in lines[start : start + 3]} for start in range(0, len(lines), 3)]
    assert len(lines) == 72
    assert all(len(found) == 1 for found in parts)
    notes = " ".join(details_of(questions)["notes"])
    assert "72 contexts were cut to the part the question is most likely about" in notes
    assert "don't hold the answer" in notes
    assert questions.report["data"]["tokens"]["cut"] == sum(line.cut for line in lines) > 72
    lengths = details_of(questions)["lengths"]
    assert (lengths["cut_rows"], lengths["cut_tokens"]) == (72, questions.report["data"]["tokens"]["cut"])
    assert lengths["longest"] > 56


def test_faulty_conversations_are_left_out_with_all_their_faults(chat: Run) -> None:
    told = {line.row: line for line in ledger_of(chat) if line.outcome == "dropped"}
    assert sorted(told) == [41, 42, 43, 44, 45]
    assert "no assistant turn" in told[41].detail
    assert "'usr'" in told[42].detail
    assert (told[43].reason, told[43].detail) == ("no_text", "messages is empty")
    assert (told[44].reason, "weight 0" in told[44].detail) == ("nothing_to_learn", True)
    assert told[45].reason == "unreadable"


def test_torn_and_tied_preferences_are_left_out(preference: Run) -> None:
    told = {line.row: (line.reason, line.detail) for line in ledger_of(preference) if line.reason}
    both = "the same two answers, preferred the other way round elsewhere"
    assert told[1] == told[41] == ("conflict", both), "nobody knows which of the two is right"
    assert told[42] == ("duplicate", "the same as row 2")
    assert told[43][0] == "conflict"
    assert set(told) == {1, 41, 42, 43}


def test_two_files_keep_step_and_so_do_their_test_files(place: Place) -> None:
    def two(name: str, first: int, count: int) -> tuple[Path, Path]:
        left = [texts.words(seed, 6) for seed in range(first, first + count)]
        right = [texts.words(seed + 50, 4) for seed in range(first, first + count)]
        return (
            texts.write_lines(place.folder / f"{name}.one", left),
            texts.write_lines(place.folder / f"{name}.two", right),
        )

    train, target = two("parallel", 0, 40)
    test, test_target = two("parallel-test", 700, 10)
    data = {"train": train, "target": target, "test": test, "test_target": test_target}
    run = place.fit(place.recipe("parallel", data=data))
    assert run.report["task"] == "completion"
    assert list(run.report["test"])[2:4] == ["bleu", "chrf"]
    assert run.report["data"]["test"] == 10
    sources, targets = test.read_text().splitlines(), test_target.read_text().splitlines()
    for line in predictions_of(run):
        assert sources[int(line["row"]) - 1] in line["prompt"]
        assert line["reference"] == targets[int(line["row"]) - 1]
    target.write_text(target.read_text().upper())
    with pytest.raises(RunError, match="data files changed"):
        place.fit(place.recipe("parallel", data=data))


def test_texts_from_nothing_are_compared_by_their_likelihood(place: Place) -> None:
    path = texts.write_jsonl(place.folder / "poems.jsonl", [{"text": texts.words(n)} for n in range(120)])
    data = {"train": path, "preset": "generation"}
    run = place.fit(place.recipe("poems", data=data, baselines="quick", learning_rate=3e-3))
    assert set(run.report["baselines"]) == {"base"}
    verdict, test = run.report["verdict"], run.report["test"]
    assert (verdict["metric"], verdict["best_baseline"]) == ("bits_per_byte", "base")
    gained = run.report["baselines"]["base"]["bits_per_byte"]["value"] - test["bits_per_byte"]["value"]
    assert verdict["difference"]["value"] == pytest.approx(-gained, abs=2e-6)
    assert verdict["worth_it"] is True
    told = predictions_of(run)
    assert {line["prompt"] for line in told} == {""}
    written = [line["answer"] for line in told]
    assert len(set(written)) == len(written) == test["answers"] > 5, "not one greedy text again and again"
    assert any("drawn at temperature 1" in note for note in details_of(run)["notes"])
    found = Run(run.folder).evaluate(str(path))
    assert found["answers"] == 120
    assert found["scores"]["distinct_2"]["value"] > 0.2, "of one text, hardly any"
    assert run.evaluate(str(path))["scores"] == found["scores"]


@pytest.mark.parametrize(("rows", "worth_it"), [(1, False), (9, False), (10, True)])
def test_a_handful_of_texts_is_too_few_to_tell(rows: int, worth_it: bool) -> None:
    """One text has an interval without a width."""
    sizes = np.full(rows, 10)
    ours, base = (PieceNats(np.full(rows, nats), sizes, sizes, np.arange(rows)) for nats in (10.0, 20.0))
    verdict = judge._verdict_by_bits(ours, base, Resampling(50))
    assert verdict["worth_it"] is worth_it
    told = f"on {rows} test row{'s' if rows > 1 else ''}: too few to tell"
    assert (told in verdict["says"]) is not worth_it


@pytest.mark.parametrize(("saved", "worth_it"), [(0.02, True), (0.001, False)])
def test_a_sure_saving_that_nobody_notices_is_hardly_worth_it(saved: float, worth_it: bool) -> None:
    sizes = np.full(100, 10)
    ours, base = (
        PieceNats(np.full(100, nats), sizes, sizes, np.arange(100)) for nats in (10 - 10 * saved, 10.0)
    )
    verdict = judge._verdict_by_bits(ours, base, Resampling(50))
    assert verdict["worth_it"] is worth_it
    assert ("under 0.5% of its 1.443: hardly worth it" in verdict["says"]) is not worth_it


def test_a_long_summary_source_is_cut_and_said_so_without_talk_of_questions(place: Place) -> None:
    rows = [{"document": texts.words(n, 70), "summary": texts.words(n, 4)} for n in range(40)]
    path = texts.write_csv(place.folder / "documents.csv", rows)
    run = place.fit(place.recipe("documents", data={"train": path}))
    notes = " ".join(details_of(run)["notes"])
    assert "40 long texts were cut to what the model can read" in notes
    assert "question" not in notes.replace("test questions", "")


def test_conversations_without_room_for_an_answer_are_scored_by_likelihood_alone(place: Place) -> None:
    """The longest sequence is 64 tokens, of which eight are kept free."""
    tokenizer = tiny.build_tokenizer("llama")
    asked = [texts.words(seed, count) for seed in range(60) for count in range(20, 60)]
    sizes = [
        len(tokenizer(f"user:\n{text}</s>assistant:\n", add_special_tokens=False).input_ids) for text in asked
    ]
    rows = [texts.chat(text, "yes") for text, size in zip(asked, sizes, strict=True) if size == 58]
    path = texts.write_jsonl(place.folder / "long-chats.jsonl", rows)
    run = place.fit(place.recipe("long-chats", data={"train": path}, base="llama", baselines="quick"))
    report = run.report
    assert report["test"]["answers"] == 0
    assert set(report["baselines"]) == {"base"}
    assert report["verdict"]["metric"] == "bits_per_byte"
    assert predictions_of(run) == []
    (note,) = [note for note in details_of(run)["notes"] if "longer than 56 tokens" in note]
    assert note.startswith(f"{report['data']['test']} test conversations")


def test_an_answer_that_lies_behind_the_cut_is_counted_and_drops_its_row_where_asked(
    place: Place, chat_file: Path
) -> None:
    """Some chat templates write a conversation anew for each of its answers: one sequence each."""
    folder = place.folder / "behind-work"
    folder.mkdir()
    recipe = place.recipe("behind", task="chat", data={"train": chat_file})
    work = shop.open_text_shop(recipe, folder, Listener())
    row = work.prepared.parts["train"][0]
    short = Example((Segment("one ", learn=False), Segment("two", learn=True)), row.source, row.row)
    long = Example((Segment("one " * 90, learn=False), Segment("two", learn=True)), row.source, row.row)
    parts = {part: [replace(row, sequences=(short, long))] for part in PARTS}
    prepared = replace(work.prepared, parts=parts, rejected=[])
    found = tokenize_texts(prepared, work.feeder, recipe.data)
    (size,) = {size for size in found.lengths if size > 64}
    for part in PARTS:
        (one,) = found.rows[part]
        assert (len(one.sequences), one.cut) == (1, size)
    assert [line.cut for line in ledger_lines(prepared, found)] == [size] * 3
    strict = recipe.data.model_copy(update={"too_long": "drop"})
    with pytest.raises(DataError, match="no row is left for train"):
        tokenize_texts(prepared, work.feeder, strict)


# What is measured.


def test_the_answers_told_are_those_the_saved_model_gives(
    completion: Run, odd_files: dict[str, Path]
) -> None:
    answerer = load_answerer(completion.folder)
    with odd_files["test"].open(newline="") as file:
        rows = {n: RawExample(row, "", n) for n, row in enumerate(csv.DictReader(file), start=2)}
    told = predictions_of(completion)
    assert len(told) == completion.report["test"]["answers"] == 10
    prompts = [answerer.feed_row(rows[int(line["row"])]) for line in told]
    answers = answerer.answer(prompts)  # type: ignore[arg-type]  # none is rejected
    assert [one.text.strip() for one in answers] == [line["answer"].removeprefix("'") for line in told]
    for line in told:
        assert line["reference"] == rows[int(line["row"])].fields["completion"]


def test_scores_are_those_of_the_predictions_and_the_verdict_a_difference(completion: Run) -> None:
    told = predictions_of(completion)
    answers = TextAnswers(
        tuple(line["answer"].removeprefix("'") for line in told),
        tuple((line["reference"],) for line in told),
        tuple(line["ended"] == "True" for line in told),
    )
    found = text_answer_scores(answers, metrics=["chrf", "stop_rate"], resampling=Resampling(100, 0))
    report = completion.report
    for name, score in found.items():
        for side in ("value", "low", "high"):
            assert report["test"][name][side] == pytest.approx(getattr(score, side), abs=1e-6)
    assert set(report["baselines"]) == {"copy", "lead", "nearest", "zero_shot", "few_shot"}
    verdict = report["verdict"]
    theirs = report["baselines"][verdict["best_baseline"]]["chrf"]["value"]
    assert verdict["difference"]["value"] == pytest.approx(found["chrf"].value - theirs, abs=2e-6)
    assert verdict["worth_it"] is (verdict["difference"]["low"] > 0) is False
    samples = details_of(completion)["samples"]
    assert [one["after"] for one in samples] == list(answers.predictions)
    assert {one["baseline_name"] for one in samples} == {"The prompt, copied"}


def test_the_best_baseline_is_chosen_on_the_rows_that_all_of_them_answered() -> None:
    """The copy is right on four easy rows at the end, which the base wasn't asked."""
    sample: Any = answers.Sample((None,) * 8, (("yes",),) * 8)  # type: ignore[arg-type]

    def written(right: str) -> answers.Written:
        return answers.Written(tuple("yes" if one == "1" else "no" for one in right), (True,) * len(right))

    rungs = {
        "copy": answers.Rung(written("10001111"), written("10001111")),
        "zero_shot": answers.Rung(written("1100"), written("1100")),
        "few_shot": answers.Rung(skipped="skipped"),
    }
    verdict = judge._verdict(
        "exact_match",
        rungs,
        written("11111111"),
        {"validation": sample, "test": sample},
        Resampling(10),
    )
    assert verdict["best_baseline"] == "zero_shot"
    assert verdict["says"].endswith("on 4 test rows: too few to tell.")


def test_without_baselines_nothing_is_compared(
    place: Place, odd_files: dict[str, Path], chat_file: Path
) -> None:
    for name, data in (("none", odd_files), ("none-chat", {"train": chat_file})):
        run = place.fit(place.recipe(name, data=data))
        assert run.report["baselines"] == {}
        assert run.report["verdict"]["best_baseline"] is None
        assert run.report["verdict"]["says"] == "No baseline was run."


def test_intervals_of_bits_take_rows_with_one_prompt_as_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three answers to each of forty prompts are forty things that can be drawn, not 120; and so are those
    to a prompt that is nearly one of them."""
    units: list[PieceNats] = []

    def listening(pieces: PieceNats, **settings: Any) -> Any:
        units.append(pieces)
        return text_scores(pieces, **settings)

    test = [{**row, "completion": f"{row['completion']} {n}"} for row in texts.pairs(40) for n in range(3)]
    test[1]["prompt"] += " please"
    train = texts.write_csv(place.folder / "for-thrice.csv", texts.pairs(40, first=300))
    data = {"train": train, "test": texts.write_csv(place.folder / "thrice.csv", test)}
    monkeypatch.setattr(story, "text_scores", listening)
    run = place.fit(place.recipe("thrice", data=data))
    (tested,) = [one for one in units if len(one.nats) == 120]
    monkeypatch.setattr(new, "text_scores", listening)
    found = Run(run.folder).evaluate(str(data["test"]))
    for one in (tested, units[-1]):
        assert one.documents.tolist() == [number // 3 for number in range(120)]
        assert num_units(one) == 40
    assert found["scores"]["bits_per_byte"]["value"] == run.report["test"]["bits_per_byte"]["value"]


def test_validation_is_logged_and_the_best_step_kept(completion: Run) -> None:
    validations = [line for line in metrics_of(completion.folder) if line["kind"] == "validation"]
    best = min(validations, key=lambda line: line["loss"])
    assert completion.report["training"]["best_step"] == best["step"]
    assert completion.report["validation"]["loss"]["value"] == pytest.approx(best["loss"], rel=1e-4)


def test_preferences_are_learned(preference: Run) -> None:
    report, steps = preference.report, steps_of(preference)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6), "a mean over pairs, none moved yet"
    assert steps[-1]["loss"] < 0.6
    assert report["test"]["preference_accuracy"]["value"] == 1
    assert set(report["baselines"]) == {"longer", "shorter", "tfidf", "base"}
    shorter = report["baselines"]["shorter"]["preference_accuracy"]["value"]
    assert shorter == 1 - report["baselines"]["longer"]["preference_accuracy"]["value"] == 1
    assert report["verdict"]["best_baseline"] == "shorter"
    assert report["verdict"]["worth_it"] is False, "length alone tells these answers apart"
    assert all(float(line["margin"]) > 0 for line in predictions_of(preference))


@pytest.mark.parametrize(
    ("free", "held", "expected"),
    [
        ((1.0, "right"), (1.0, "right"), 0),  # not asked at all
        ((0.5, "wrong"), (1.0, "right"), 3),
        ((0.5, "right"), (1.0, "right"), 3),
        ((0.5, "right"), (1.0, "wrong"), 0),  # fewer right answers
        ((0.5, "wrong"), (0.5, "right"), 0),  # no more of them stop
    ],
)
def test_repeats_are_forbidden_where_validation_gains_by_it(
    free: tuple[float, str], held: tuple[float, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample: Any = answers.Sample((None,) * 4, (("right words",),) * 4)  # type: ignore[arg-type]
    asked: list[int] = []

    def write(*_: Any, no_repeat: int = 0) -> answers.Written:
        asked.append(no_repeat)
        share, text = held if no_repeat else free
        return answers.Written((f"{text} words",) * 4, tuple(place < 4 * share for place in range(4)))

    monkeypatch.setattr(judge, "choose_sample", lambda *_: sample)
    monkeypatch.setattr(judge, "metric_names", lambda *_: ("rouge_l", "stop_rate"))
    monkeypatch.setattr(judge, "_write", write)
    shop: Any = SimpleNamespace(recipe=SimpleNamespace(evaluate=SimpleNamespace(generated_rows=200)))
    told: list[str] = []
    assert judge.settle_no_repeat(shop, None, told.append) == expected  # type: ignore[arg-type]
    assert asked == ([0] if free[0] == 1 else [0, 3])
    assert bool(told) == bool(expected)


def test_other_tools_stop_where_an_answer_ends(chat: Run) -> None:
    """generation_config.json names every token that ends a turn, not only the base's own end."""
    saved = json.loads((chat.folder / "model" / "generation_config.json").read_text(encoding="utf-8"))
    bundle = json.loads((chat.folder / "model" / "gptailor.json").read_text(encoding="utf-8"))
    assert saved["eos_token_id"] == bundle["form"]["end_ids"]


def test_what_a_base_draws_with_is_not_passed_on(place: Place, tmp_path: Path) -> None:
    """A penalty was no part of what was measured, and transformers doesn't save what is at odds."""
    base = tiny.build_base(tmp_path / "base", "llama")
    path = base / "generation_config.json"
    odd = {"temperature": 0.9, "top_p": 0.6, "repetition_penalty": 1.1, "eos_token_id": 2}
    path.write_text(json.dumps({**json.loads(path.read_text()), **odd}))
    data = {"train": texts.write_csv(tmp_path / "pairs.csv", texts.pairs(40))}
    run = place.fit(place.recipe("drawing", data=data, base=str(base)))
    saved = json.loads((run.folder / "model" / "generation_config.json").read_text())
    assert not {"temperature", "top_p", "repetition_penalty", "do_sample"} & saved.keys()
    assert (
        saved["eos_token_id"]
        == json.loads((run.folder / "model" / "gptailor.json").read_text())["form"]["end_ids"]
    )


def test_what_was_settled_is_kept_and_used_everywhere(
    place: Place, odd_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def listening(model: Any, prompts: Any, sampling: Sampling, **more: Any) -> Any:
        asked.append(sampling.no_repeat)
        return generate(model, prompts, sampling, **more)

    monkeypatch.setattr(story, "settle_no_repeat", lambda *_: 2)
    monkeypatch.setattr(answers, "generate", listening)
    recipe = place.recipe("no-repeats", data=odd_files, baselines="quick", dropout=0.0, learning_rate=5e-4)
    run = place.fit(recipe)
    assert asked == [2] * 4, "the base without and with examples, on validation and on test"
    answerer = load_answerer(run.folder)
    assert answerer.usual == Sampling(max_new_tokens=answerer.max_new_tokens, no_repeat=2)
    rows = predictions_of(run)
    prompts = [answerer.feed_text(row["prompt"]) for row in rows]
    written = [one.text.strip() for one in answerer.answer(prompts)]
    assert [row["answer"] for row in rows] == written
    assert written != [one.text.strip() for one in answerer.answer(prompts, Sampling(max_new_tokens=128))]
    told = predict_inputs(run.folder, [rows[0]["prompt"]], sampling={})
    assert told[0]["answer"] == written[0]
    answerer.context = len(prompts[0]) + 1  # a base may read far more than memory holds
    assert answerer.answer(prompts[:1])[0].reason == "context", "as the server's decoder ends"
    assert any("no run of 2 tokens twice" in note for note in details_of(run)["notes"])


def test_the_recipe_that_is_kept_names_the_strength_that_was_used(preference: Run, completion: Run) -> None:
    kept = load_recipe(preference.folder / "recipe.yaml").preference
    assert kept.beta == 0.1
    assert load_recipe(completion.folder / "recipe.yaml").preference.beta is None


def test_new_preferences_are_scored_as_in_the_report(preference: Run, preference_file: Path) -> None:
    found = Run(preference.folder).evaluate(str(preference_file))
    right = sum(float(line["margin"]) > 0 for line in predictions_of(preference))
    assert found["scores"]["preference_accuracy"]["value"] * found["rows"] >= right
    assert found["scores"]["preference_accuracy"]["value"] > 0.9
    assert found["rows"] + found["left_out"] == found["read"]
    grown = preference_file.with_name("grown-preferences.jsonl")
    grown.write_text(preference_file.read_text() + json.dumps(texts.preferences(1, first=900)[0]) + "\n")
    assert "rows taught this run" in Run(preference.folder).evaluate(str(grown))["note"]


def test_likelihoods_of_a_preference_run_are_those_of_the_chosen_answers(preference: Run) -> None:
    """Rejected answers get unlikelier on purpose; as bits they would look like damage."""
    path = preference.folder / "data" / "ledger.jsonl"
    lines = [line for line in read_ledger(path) if line.part == "test"]
    rows = texts.preferences(40)
    said = sum(len(rows[line.row - 1]["chosen"]) for line in lines)
    assert preference.report["test"]["bits_per_byte"]["value"] > 0
    loss, bits = (preference.report["test"][name]["value"] for name in ("loss", "bits_per_byte"))
    tokens = bits * said * math.log(2) / loss
    assert tokens == pytest.approx(round(tokens), abs=1e-3)
    trained = load_answerer(preference.folder)
    expected = sum(trained.count_text(rows[line.row - 1]["chosen"]) + 1 for line in lines)
    assert round(tokens) == expected


@pytest.mark.parametrize(
    ("loss", "first"),
    [("dpo", math.log(2)), ("ipo", 25.0), ("simpo", None)],
)
def test_every_preference_loss(
    place: Place, preference_file: Path, loss: str, first: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested: list[tuple[str, bool, list[float]]] = []

    def listening(kind: str, ours: Any, theirs: Any, rows: Any) -> Any:
        found = objective.margins_as_trained(kind, ours, theirs, rows)
        tested.append((kind, theirs is not None, found.tolist()))
        return found

    monkeypatch.setattr(judge, "margins_as_trained", listening)
    recipe = place.recipe(
        f"by-{loss}",
        data={"train": preference_file},
        preference={"loss": loss},
        dropout=0.0,
        length="2 steps",
    )
    run = place.fit(recipe)
    assert tested == [(loss, True, [float(line["margin"]) for line in predictions_of(run)])]
    step = steps_of(run)[0]
    if first is None:  # margin 1: the chosen isn't yet ahead by that much
        assert step["loss"] > math.log(2)
    else:
        assert step["loss"] == pytest.approx(first, rel=1e-5)
    reference = run.folder / "data" / "reference"
    assert reference.exists() is (loss != "simpo")
    if loss != "simpo":
        kept = np.load(reference / "train.fp32.npy")
        assert kept.shape == (run.report["data"]["train"], 2)
        assert (kept < 0).all()


@pytest.mark.parametrize(("loss", "ahead"), [("dpo", 4.0), ("ipo", -1.0), ("simpo", -3.0)])
def test_pairs_are_ranked_in_the_test_as_the_loss_compares_them(loss: str, ahead: float) -> None:
    """The chosen answer has eight tokens and gained 8 nats, the rejected one has two and gained 4."""
    sizes, ours, theirs = (8, 2), np.array([[-32.0, -2.0]]), np.array([[-40.0, -6.0]])
    sequences = tuple(
        TokenizedExample(np.zeros(size + 1, np.int32), np.arange(size + 1) > 0, "", 1) for size in sizes
    )
    rows = [TokenizedRow(None, sequences, None)]  # type: ignore[arg-type]
    assert objective.margins_as_trained(loss, ours, theirs, rows).tolist() == [ahead]
    assert objective.margins_as_trained(loss, ours, None, rows).tolist() == [-3.0], "no reference"


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo"])
def test_validation_and_test_rank_by_the_same_margins(
    loss: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(objective, "ranking_score", lambda margins: seen.append(margins) or 0.0)
    pairs = texts.preferences(40)
    for number, row in enumerate(pairs):
        row["rejected"] += f" {texts.words(number, number % 7)}"
    path = texts.write_jsonl(place.folder / f"uneven-{loss}.jsonl", pairs)
    recipe = place.recipe(f"uneven-{loss}", data={"train": path}, preference={"loss": loss}, dropout=0.0)
    listener, folder = Listener(), place.folder / f"uneven-{loss}-work"
    folder.mkdir()
    work = shop.open_text_shop(recipe, folder, listener)
    adapted = adapt_causal(recipe, work.base, work.text.tokenizer, FullApproach(), device="cpu")
    rows = work.tokens.rows["validation"]
    found = objective.preference_objective(work, adapted, folder)
    theirs = objective.log_likelihoods(adapted, rows)
    with torch.no_grad():
        for weight in adapted.trained.parameters():
            weight.mul_(1.05)
    found.validate("fp32")
    ours = objective.log_likelihoods(adapted, rows)
    np.testing.assert_allclose(seen[0], objective.margins_as_trained(loss, ours, theirs, rows), atol=1e-4)


def test_trials_of_preferences_are_compared_without_the_scale_of_their_loss(
    place: Place, preference_file: Path
) -> None:
    """Of IPO with nearly no rate, the loss is 1 / (4 beta²): the largest beta would win untrained."""
    data = {"train": preference_file}
    recipe = place.recipe(
        "trials", task="preference", data=data, dropout=0.0, length="2 steps", learning_rate=1e-9
    )
    folder = place.folder / "trials-work"
    folder.mkdir()
    rehearsal = rehearse_texts(recipe, folder, Listener())
    assert rehearsal.metric == "preference_accuracy"
    scores = []
    for beta in (0.03, 3.0):
        tried = recipe.preference.model_copy(update={"loss": "ipo", "beta": beta})
        *_, last = rehearsal.trial(recipe.model_copy(update={"preference": tried}))
        scores.append(last.result)
        assert 0 <= rehearsal.told(last.result) <= 1
    assert abs(scores[0] - scores[1]) <= 1, "the losses are 278 and 0.03"


def test_the_reference_of_another_base_is_never_reused(place: Place, preference_file: Path) -> None:
    """A run that never got to a checkpoint may be begun anew with other settings in the same folder."""
    data = {"train": preference_file}
    expected = results(place.fit(place.recipe("anew-alone", data=data, base="qwen2")))
    with pytest.raises(Crash):
        place.fit(place.recipe("anew", data=data, base="gpt2"), crash_at=1)
    assert (place.folder / "anew" / "data" / "reference" / "train.fp32.npy").exists()
    assert results(place.fit(place.recipe("anew", data=data, base="qwen2"))) == expected


# Which weights move.


def test_full_moves_every_weight(completion: Run, place: Place) -> None:
    before = load_file(place.bases["gpt2"] / "model.safetensors")
    after = load_file(completion.folder / "model" / "model.safetensors")
    for name, weight in before.items():
        assert not torch.equal(weight, after[name][: len(weight)]), name


@pytest.mark.parametrize("task", ["chat", "preference"])
def test_lora_saves_the_adapter_and_merges_it(
    place: Place, chat_file: Path, preference_file: Path, task: str
) -> None:
    data = {"train": chat_file if task == "chat" else preference_file}
    run = place.fit(place.recipe(f"lora-{task}", data=data, approach=LORA, learning_rate=1e-2))
    assert run.report["approach"] == "lora"
    merged: Any = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    base: Any = AutoModelForCausalLM.from_pretrained(place.bases["gpt2"])
    base.resize_token_embeddings(merged.config.vocab_size, mean_resizing=False)
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        untrained = base(ids).logits[..., :400]
        apart = PeftModel.from_pretrained(base, run.folder / "adapter")(ids).logits[..., :400]
        together = merged(ids).logits[..., :400]
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-5)
    assert (together - untrained).abs().max() > 1e-4


def test_scratch_has_no_base_to_compare_with(place: Place, odd_files: dict[str, Path]) -> None:
    run = place.fit(place.recipe("scratch", data=odd_files, approach=SCRATCH, baselines="quick"))
    assert run.report["approach"] == "scratch"
    assert AutoModelForCausalLM.from_pretrained(run.folder / "model").config.n_layer == 1
    for name in ("zero_shot", "few_shot"):
        assert run.report["baselines"][name] == {"skipped": "trained from scratch"}
    assert run.report["verdict"]["best_baseline"] in ("copy", "lead", "nearest")


# Interrupted, repeated.


CASES: dict[str, tuple[str, Any]] = {
    "completion": ("odd.csv", "full"),
    "completion-scratch": ("odd.csv", SCRATCH),
    "chat": ("chats.jsonl", LORA),
    "preference": ("preferences.jsonl", "full"),
    "preference-lora": ("preferences.jsonl", LORA),
}


@pytest.fixture
def case(
    request: pytest.FixtureRequest,
    place: Place,
    odd_files: object,
    chat_file: object,
    preference_file: object,
) -> tuple[str, dict[str, Any]]:
    file, approach = CASES[request.param]
    settings = {"data": {"train": place.folder / file}, "approach": approach, "dropout": 0.1}
    return request.param, settings


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_a_run_that_crashed_ends_as_if_it_had_not_and_its_recipe_repeats_it(
    place: Place, case: tuple[str, dict[str, Any]]
) -> None:
    name, settings = case
    alone = place.fit(place.recipe(f"{name}-alone", **settings))
    expected = results(alone)
    recipe = place.recipe(f"{name}-crashed", **settings)
    for where in ({"crash_at": 1}, {"crash_at": 3}, {"crash_on": "opening the sealed test"}):
        with pytest.raises(Crash):
            place.fit(recipe, **where)  # type: ignore[arg-type]
    assert "going on after step 2" in place.said
    assert not (place.folder / f"{name}-crashed" / "report.json").exists()
    assert results(place.fit(recipe)) == expected
    assert "it was trained to its end before" in place.said

    again = load_recipe(alone.folder / "recipe.yaml")
    assert again.task == name.partition("-")[0]
    assert again.data.max_tokens == 64
    out = str(place.folder / f"{name}-again")
    assert results(fit_recipe(again.model_copy(update={"out": out}))) == expected


def test_a_run_that_goes_on_tomorrow_writes_the_day_it_began(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some chat templates write the date into every conversation."""
    base = place.folder / "dated"
    shutil.copytree(place.bases["qwen2"], base)
    (base / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }} " + PLAIN, encoding="utf-8")
    path = texts.write_jsonl(place.folder / "dated.jsonl", texts.chats(30))
    recipe = place.recipe("dated-run", data={"train": path}, base=base)
    with pytest.raises(Crash):
        place.fit(recipe, crash_at=2)
    began = json.loads((place.folder / "dated-run" / "environment.json").read_text())["today"]

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=1)

    monkeypatch.setattr(shop, "datetime", Tomorrow)
    run = place.fit(recipe)
    assert run.report["environment"]["today"] == began
    answerer = load_answerer(run.folder)
    day = datetime.fromisoformat(began).strftime("%d %b %Y ")
    assert answerer.decode(answerer.feed_text("the cup")).startswith(day)


def test_another_seed_ends_differently(place: Place, completion: Run, odd_files: dict[str, Path]) -> None:
    other = place.fit(place.recipe("seed", data=odd_files, dropout=0.0, seed=1))
    mine, theirs = results(completion), results(other)
    assert mine["model"] != theirs["model"]
    assert mine["ledger"] != theirs["ledger"]


def test_a_finished_run_trains_nothing_again_and_other_data_is_refused(place: Place) -> None:
    path = texts.write_csv(place.folder / "changing.csv", texts.pairs(40))
    recipe = place.recipe("changing", data={"train": path}, length="1 steps")
    before = results(place.fit(recipe))
    assert results(place.fit(recipe)) == before
    assert any("is finished" in words for words in place.said)
    texts.write_csv(path, texts.pairs(41))
    with pytest.raises(RunError, match="data files changed"):
        place.fit(recipe)


# What is refused, in words.


def refusal(place: Place, name: str, **settings: Any) -> GptailorError:
    with pytest.raises(GptailorError) as caught:
        place.fit(place.recipe(f"refused-{name}", **settings))
    assert caught.value.exit_code == 1
    assert caught.value.fix
    assert not (place.folder / f"refused-{name}" / "checkpoints").exists()
    return caught.value


@pytest.mark.parametrize(
    ("data", "says", "fix"),
    [
        (
            {"prompt": "promt", "completion": "completion"},
            "there is no column 'promt'",
            "Columns are: prompt",
        ),
        ({"prompt": "Say {promt}"}, "names a column 'promt', which isn't there", "prompt, completion"),
        ({"prompt": "{prompt"}, "has a brace without its partner", "{{ or }}"),
        ({"preset": "sumarization"}, "there is no preset 'sumarization'", "summarization"),
        ({"split": {"group": "writer"}}, "there is no column 'writer' to group by", "data.split.group"),
        ({"split": {"time": "day"}}, "there is no column 'day' to order by", "data.split.time"),
        ({"too_long": "window"}, "window can't be used where the answer is text", "cut or drop"),
        ({"max_tokens": 65}, "the base reads at most 64 tokens", "64 or less"),
        ({"target": "nowhere.txt"}, "there is no such file", "Check the path"),
    ],
)
def test_what_cannot_be_used_is_refused_before_training(
    place: Place, odd_files: dict[str, Path], data: dict[str, Any], says: str, fix: str
) -> None:
    error = refusal(place, "data", task="completion", data={"train": odd_files["train"], **data})
    assert says in str(error.what)
    assert fix in str(error.fix)


def test_a_time_that_cannot_be_ordered_is_named_by_its_own_row(place: Place) -> None:
    rows = [{**row, "day": "2024-01-01"} for row in texts.pairs(40)]
    rows[20:20] = rows[:10]  # repeats, which are dropped before rows are divided
    rows[34]["day"] = "31/12/2023"
    path = texts.write_jsonl(place.folder / "times.jsonl", rows)
    data = {"train": path, "split": {"time": "day"}}
    assert refusal(place, "times", task="completion", data=data).where == f"{path} row 35"


def test_frozen_is_refused_before_anything_is_read(place: Place, odd_files: dict[str, Path]) -> None:
    error = refusal(place, "frozen", data=odd_files, task="completion", approach="frozen")
    assert isinstance(error, RecipeError)
    assert "frozen has nothing to learn" in error.what
    assert not any("reading" in words for words in place.said)


def test_a_file_of_mostly_faulty_rows_is_refused_with_the_first_faults(place: Place) -> None:
    bad = [{"messages": [{"role": "user", "content": texts.words(seed)}]} for seed in range(30)]
    path = texts.write_jsonl(place.folder / "bad.jsonl", [*texts.chats(20), *bad])
    error = refusal(place, "bad", data={"train": path})
    assert "30 of 50 rows can't be used" in error.what
    assert error.what.count("row ") == 5
    assert "row 21: there is no assistant turn" in error.what
    assert error.where == str(path)


def test_a_test_file_without_the_columns_is_refused(place: Place, odd_files: dict[str, Path]) -> None:
    rows = [{"question": "a", "reply": "b"}] * 3
    test = texts.write_csv(place.folder / "other-columns.csv", rows)
    error = refusal(place, "columns", data={"train": odd_files["train"], "test": test})
    assert "has no column 'prompt', which the prompt is made of" in error.what
    assert error.where == str(test)


def test_the_training_file_as_test_file_is_refused(place: Place, odd_files: dict[str, Path]) -> None:
    with pytest.raises(DataError):
        place.fit(place.recipe("same", data={"train": odd_files["train"], "test": odd_files["train"]}))


def test_answers_that_never_begin_are_refused(place: Place) -> None:
    rows = [texts.chat(texts.words(seed, 90), "yes") for seed in range(30)]
    path = texts.write_jsonl(place.folder / "too-long.jsonl", rows)
    error = refusal(place, "too-long", data={"train": path})
    assert "no answer fits into 64 tokens" in error.what
    assert "data.max_tokens" in str(error.fix)


def test_a_rejected_answer_alone_is_no_preference(place: Place) -> None:
    rows = [{"prompt": row["prompt"], "rejected": row["rejected"]} for row in texts.preferences(30)]
    path = texts.write_jsonl(place.folder / "half.jsonl", rows)
    error = refusal(place, "half", task="preference", data={"train": path})
    assert "no column is named for the chosen answer" in error.what


# What is done with a run.


def test_evaluate_gives_the_reports_numbers_on_its_test_file(
    completion: Run, odd_files: dict[str, Path]
) -> None:
    found = Run(completion.folder).evaluate(str(odd_files["test"]))
    assert (found["read"], found["rows"], found["left_out"], found["answers"]) == (12, 12, 0, 12)
    for name in ("bits_per_byte", "perplexity", "loss"):
        assert found["scores"][name]["value"] == completion.report["test"][name]["value"]
    assert {"chrf", "rouge_l", "exact_match", "stop_rate"} <= found["scores"].keys()


def test_evaluate_counts_what_it_leaves_out_and_refuses_a_file_without_answers(
    chat: Run, place: Place
) -> None:
    rows = [*texts.chats(5, first=900), {"messages": []}]
    path = texts.write_jsonl(place.folder / "new-chats.jsonl", rows)
    found = Run(chat.folder).evaluate(str(path))
    assert (found["read"], found["rows"], found["left_out"], found["answers"]) == (6, 5, 1, 5)
    asked = [texts.chat(texts.words(seed)) for seed in range(5)]
    with pytest.raises(DataError, match="has no row with a prompt and an answer") as caught:
        chat.evaluate(str(texts.write_jsonl(place.folder / "unanswered.jsonl", asked)))
    assert "the last turn is the user's" in caught.value.what or "no assistant turn" in caught.value.what


def test_conversations_that_were_learned_are_known_again_among_others(chat: Run, place: Place) -> None:
    rows = [*texts.chats(3), *texts.chats(2, first=900)]
    found = chat.evaluate(str(texts.write_jsonl(place.folder / "grown-chats.jsonl", rows)))
    known = sum(line.part != "test" for line in ledger_of(chat)[:3])
    assert f"{known} of 5 rows taught this run" in found["note"]


def test_what_is_asked_and_not_read_whole_is_marked(
    completion: Run, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a file, alone, from Python, and where answers are scored."""
    rows = [*texts.pairs(3, first=900), {"prompt": texts.words(7, 90), "completion": "a cup"}]
    path = texts.write_csv(place.folder / "long.csv", rows)
    asked: dict[str, Any] = {"text": None, "columns": None}
    out = place.folder / "marked.csv"
    counts = predict_to(completion.folder, str(path), out=out, to_stdout=False, **asked)
    assert (counts["answered"], counts["truncated"]) == (4, 1)
    with out.open(newline="") as file:
        assert [line["truncated"] for line in csv.DictReader(file)] == ["false"] * 3 + ["true"]
    shown = predict_to(completion.folder, str(path), out=None, to_stdout=False, **asked)["answers"]
    alone = predict_inputs(completion.folder, [row["prompt"] for row in rows])
    written = completion.answer([row["prompt"] for row in rows])
    expected = [False] * 3 + [True]
    assert [row["truncated"] for row in shown] == [row["truncated"] for row in alone] == expected
    assert [one.truncated for one in written] == expected
    found = completion.evaluate(str(path))
    assert found["truncated"] == 1
    assert "1 row is longer than the model reads: part wasn't read." in found["note"]
    words = ["gptailor", "predict", str(completion.folder), "--input", rows[3]["prompt"]]
    monkeypatch.setattr(sys, "argv", words)
    with suppress(SystemExit):
        cli.main()
    assert "--input 1: longer than the model reads" in " ".join(capsys.readouterr().err.split())


def test_predict_answers_each_row_of_a_file_as_it_answers_it_alone(
    completion: Run, place: Place, odd_files: dict[str, Path]
) -> None:
    """One output row for each input row, in order, also for those that ask nothing."""
    asked = [row["prompt"] for row in texts.pairs(5, first=900)]
    asked.insert(2, " ")
    path = texts.write_csv(place.folder / "asked.csv", [{"prompt": text} for text in asked])
    out = place.folder / "answers.csv"
    counts = predict_to(completion.folder, str(path), out=out, text=None, columns=None, to_stdout=False)
    assert (counts["rows"], counts["answered"], counts["rejected"]) == (6, 5, 1)
    with out.open(newline="") as file:
        told = list(csv.DictReader(file))
    assert [int(line["row"]) for line in told] == [2, 3, 4, 5, 6, 7]
    assert told[2]["rejected"] == "there is no text in prompt"
    alone = predict_inputs(completion.folder, [text for text in asked if text.strip()])
    written = [line["answer"].removeprefix("'") for line in told if not line["rejected"]]
    assert written == [one["answer"] for one in alone]


def test_what_is_drawn_is_drawn_apart_for_each_row(completion: Run, place: Place) -> None:
    path = texts.write_csv(place.folder / "same.csv", [{"prompt": p} for p in ("a b", " ", "a b", "a b")])
    drawn = {"temperature": 5.0, "seed": 3}
    found = predict_to(
        completion.folder, str(path), out=None, text=None, columns=None, to_stdout=False, sampling=drawn
    )
    answers = [one["answer"] for one in found["answers"] if not one["rejected"]]
    assert len(set(answers)) == 3
    seeds = [{"temperature": 5.0, "seed": 3 + row} for row in (0, 2, 3)]
    assert answers == [predict_inputs(completion.folder, ["a b"], sampling=s)[0]["answer"] for s in seeds]
    assert completion.answer("a b")[0].text == completion.answer(["a b"])[0].text


def test_values_that_are_missing_are_told(completion: Run) -> None:
    for missing in (None, float("nan")):
        with pytest.raises(InputError, match="there is no text"):
            completion.answer([{"prompt": missing}])  # type: ignore[dict-item]
    with pytest.raises(InputError, match="text 1: is of type int"):
        completion.answer([{"prompt": 7}])  # type: ignore[dict-item]


@pytest.mark.parametrize("name", ["completion", "chat", "preference"])
def test_predict_takes_the_column_that_is_named(
    name: str, place: Place, request: pytest.FixtureRequest
) -> None:
    run: Run = request.getfixturevalue(name)
    asked = [texts.words(seed, 6) for seed in range(950, 953)]
    path = texts.write_csv(place.folder / "named.csv", [{"id": "1", "query": text} for text in asked])
    found = predict_to(run.folder, str(path), out=None, text="query", columns=None, to_stdout=False)
    alone = predict_inputs(run.folder, asked)
    assert [one["answer"] for one in found["answers"]] == [one["answer"] for one in alone]
    assert [one["rejected"] for one in found["answers"]] == [""] * 3


def test_a_column_of_the_prompt_that_is_missing_is_not_filled_with_nothing(
    completion: Run, place: Place
) -> None:
    path = texts.write_csv(place.folder / "renamed.csv", [{"promt": "a", "completion": "b"}] * 3)
    for use in (
        lambda: completion.evaluate(str(path)),
        lambda: predict_to(completion.folder, str(path), out=None, text=None, columns=None, to_stdout=False),
    ):
        with pytest.raises(DataError, match=r"has no column 'prompt'.*Did you mean 'promt'"):
            use()


def test_a_mistyped_column_is_told_once_and_not_row_by_row(completion: Run, place: Place) -> None:
    path = texts.write_csv(place.folder / "typed.csv", [{"query": "a", "more": "b"}] * 3)

    def predict(text: str) -> list[dict[str, Any]]:
        found = predict_to(completion.folder, str(path), out=None, text=text, columns=None, to_stdout=False)
        return list(found["answers"])

    with pytest.raises(DataError, match=r"no column 'qury'"):
        predict("qury")
    (alone,) = predict_inputs(completion.folder, ["a b"])
    assert [one["answer"] for one in predict("query+more")] == [alone["answer"]] * 3


def test_a_file_whose_answers_lie_behind_the_cut_is_told(place: Place, chat: Run) -> None:
    rows = [texts.chat(texts.words(n, 300), "yes") for n in range(3)]
    path = texts.write_jsonl(place.folder / "behind.jsonl", rows)
    with pytest.raises(DataError, match="no answer begins within"):
        chat.evaluate(str(path))


def test_what_each_test_row_cost_adds_up_to_the_score(completion: Run) -> None:
    """`compare` reads it."""
    with (completion.folder / "test_bits.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    nats, size = (sum(float(line[name]) for line in lines) for name in ("nats", "bytes"))
    assert nats / size / math.log(2) == pytest.approx(
        completion.report["test"]["bits_per_byte"]["value"], abs=1e-5
    )
    best = compare_runs([completion.folder])
    assert best["runs"][0]["scores"]["bits_per_byte"] == completion.report["test"]["bits_per_byte"]


def test_a_verdict_needs_six_rows_that_tell_the_two_apart() -> None:
    ours, theirs = np.ones(100), np.ones(100)
    for differing in (5, 6):
        theirs[:differing] = 0
        gap = share_difference(ours, theirs, resampling=Resampling(300))
        said = judge._verdict_of("preference_accuracy", "shorter", gap, telling=ours != theirs)
        assert gap.low > 0
        assert said["worth_it"] is (differing == 6)
        assert ("only 5 of 100 test rows tell the two apart" in said["says"]) is (differing == 5)


def test_costs_of_few_groups_are_too_few_to_tell() -> None:
    sizes, authors = np.full(100, 10), np.arange(100) % 5
    ours, base = (PieceNats(np.full(100, nats), sizes, sizes, authors) for nats in (10.0, 20.0))
    said = judge._verdict_by_bits(ours, base, Resampling(50))
    assert said["too_few"]
    assert "on 5 groups of test rows: too few to tell" in said["says"]


def test_near_duplicates_are_drawn_together(place: Place) -> None:
    """Twenty questions, each four times with another last word."""
    rows = [
        {"prompt": f"{texts.words(seed, 12)} {end}", "completion": f"{texts.words(seed + 500, 2)} {end}"}
        for seed in range(20)
        for end in ("one", "two", "three", "four")
    ]
    path = texts.write_csv(place.folder / "patterns.csv", rows)
    run = place.fit(place.recipe("patterns", data={"train": path}))
    with (run.folder / "test_bits.csv").open(newline="") as file:
        tested = [(line["group"], (int(line["row"]) - 2) // 4) for line in csv.DictReader(file)]
    patterns = {seed for _, seed in tested}
    assert len(set(tested)) == len({group for group, _ in tested}) == len(patterns) < len(tested)


def test_a_base_that_changed_is_no_reference(preference: Run, preference_file: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(preference.folder, tmp_path / "run")
    path = folder / "model" / "gptailor.json"
    bundle = json.loads(path.read_text())
    path.write_text(json.dumps({**bundle, "base_revision": "another"}))
    with pytest.raises(ModelError, match="has changed since the run began"):
        Run(folder).evaluate(str(preference_file))


def test_a_base_is_found_from_any_folder(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given by a path from the folder where the run was made."""
    (tmp_path / "bases").mkdir()
    shutil.copytree(place.bases["gpt2"], tmp_path / "bases" / "mine")
    monkeypatch.chdir(tmp_path)
    path = texts.write_jsonl(tmp_path / "pairs.jsonl", texts.preferences(40))
    run = place.fit(place.recipe("from-elsewhere", data={"train": path}, base="bases/mine"))
    monkeypatch.chdir(tmp_path / "bases")
    assert Run(run.folder).evaluate(str(path))["rows"] == 40


def test_new_preferences_are_drawn_by_the_groups_of_training(place: Place) -> None:
    rows = [{**row, "writer": f"w{number % 12}"} for number, row in enumerate(texts.preferences(60))]
    path = texts.write_jsonl(place.folder / "writers.jsonl", rows)
    data = {"train": path, "test": texts.write_jsonl(place.folder / "writers-test.jsonl", rows[:48])}
    data["train"] = texts.write_jsonl(
        place.folder / "writers.jsonl",
        [{**row, "writer": f"v{number % 9}"} for number, row in enumerate(texts.preferences(40, first=100))],
    )
    run = place.fit(place.recipe("writers", data={**data, "split": {"group": "writer"}}))
    told = run.report["test"]["preference_accuracy"]
    assert Run(run.folder).evaluate(str(data["test"]))["scores"]["preference_accuracy"] == told
    assert len({line["group"] for line in predictions_of(run)}) == 12


def test_the_reference_rounds_as_training_does(
    place: Place, preference_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 logits far from zero are off by tenths of nats a token, which must cancel."""
    asked: list[str] = []
    original = objective.log_likelihoods

    def listening(*given: Any, precision: str = "fp32") -> Any:
        asked.append(precision)
        return original(*given, precision=precision)  # type: ignore[arg-type]

    monkeypatch.setattr(objective, "log_likelihoods", listening)
    run = place.fit(place.recipe("narrow", data={"train": preference_file}, precision="bf16"))
    assert asked == ["bf16", "bf16"]
    assert steps_of(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_the_card_begins_as_training_did_and_says_how_many_answers_were_written(completion: Run) -> None:
    card = (completion.folder / "README.md").read_text()
    prefix = load_answerer(completion.folder).bundle.form["prefix"]
    assert f"begin = {prefix}  #" in card
    assert f"Answers were written to {completion.report['test']['answers']} of them." in card


def test_a_window_is_told_before_anything_is_trained(place: Place, squad_file: Path) -> None:
    found = check_recipe(place.recipe("told", data={"train": squad_file, "max_tokens": 56}), estimate=False)
    assert found.summary["lengths"]["cut_rows"] == len(found.summary["cut"]) == 72
    assert any("72 contexts were cut" in note for note in found.summary["notes"])


def test_questions_without_an_answer_are_no_fault_of_the_file(place: Place) -> None:
    """As in SQuAD 2.0, where they are half of all; a file that answers nothing is refused."""
    found = texts.squad(24)
    answers = [one for text in found["data"] for part in text["paragraphs"] for one in part["qas"]]
    for number, one in enumerate(answers):
        one["answers"] = one["answers"] if number % 5 < 2 else []
    path = place.folder / "squad2.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    summary = check_recipe(place.recipe("squad2", data={"train": path}), estimate=False).summary
    assert summary["dropped"]["nothing_to_learn"] > summary["read"] / 2
    for one in answers:
        one["answers"] = []
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(DataError, match="rows can't be used"):
        check_recipe(place.recipe("squad2", data={"train": path}), estimate=False)


def test_lines_of_standard_input_are_asked_as_texts_are(
    completion: Run, chat: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["the cup is red", "who won"]
    for run in (completion, chat):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("\n".join(asked).encode())))
        found = predict_to(run.folder, "-", out=None, text=None, columns=None, to_stdout=False)
        told = predict_inputs(run.folder, asked)
        assert [line["answer"] for line in found["answers"]] == [line["answer"] for line in told]


def test_a_file_of_answers_is_refused_where_it_is_not_read(preference: Run, preference_file: Path) -> None:
    with pytest.raises(InputError, match="completion and chat"):
        preference.evaluate(str(preference_file), target="answers.txt")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_whose_merging_changes_the_model_are_refused(
    place: Place, chat_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The saved model would be proven to be what was merged, and not what was trained."""
    merge = causal.merge_lora

    def disturbed(adapted: Any) -> Any:
        model = merge(adapted)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(1.5)
        return model

    monkeypatch.setattr(causal, "merge_lora", disturbed)
    with pytest.raises(ModelError, match="adapter merged differ"):
        place.fit(place.recipe("disturbed", data={"train": chat_file}, approach={"kind": "lora", "rank": 2}))


@pytest.mark.parametrize("left", [b"", b"\x93NUMPY"])
def test_a_reference_that_a_power_cut_left_short_is_made_again(
    place: Place, preference_file: Path, left: bytes
) -> None:
    data, name = {"train": preference_file}, f"cut-{len(left)}"
    expected = results(place.fit(place.recipe(f"{name}-alone", data=data)))
    with pytest.raises(Crash):
        place.fit(place.recipe(name, data=data), crash_at=1)
    (place.folder / name / "data" / "reference" / "train.fp32.npy").write_bytes(left)
    assert results(place.fit(place.recipe(name, data=data))) == expected
