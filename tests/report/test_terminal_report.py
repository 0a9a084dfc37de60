"""What is printed: the summary of a run, the lines while it trains, and what a check found."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pytest
from rich.console import Console

from gptailor.report.checked import print_check, print_estimate
from gptailor.report.terminal import Narrator, next_command, print_summary


@dataclass(frozen=True)
class Beginning:
    where: str
    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Row(Beginning):
    label: str


def console(width: int = 120, **settings: Any) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False, **settings)


def printed(made: Console) -> str:
    assert isinstance(made.file, io.StringIO)
    return " ".join(made.file.getvalue().split())


def summary_of(report: Any, width: int = 120) -> str:
    made = console(width)
    print_summary(made, report, folder="runs/x")
    return printed(made)


@pytest.mark.parametrize(
    ("worth", "report", "command"),
    [
        (True, {}, "gptailor serve runs/x"),
        (None, {}, "gptailor serve runs/x"),  # there was no baseline to be worse than
        (False, {"answer": "single"}, "gptailor curve runs/x"),
        (False, {"answer": "score"}, None),  # numbers have no curve
        (False, {"task": "completion"}, None),
    ],
)
def test_what_a_cheaper_answer_beats_is_not_for_serving(
    worth: bool | None, report: dict[str, Any], command: str | None
) -> None:
    told = {"task": "classification", "verdict": {"worth_it": worth}, **report}
    assert next_command(told, folder="runs/x") == command


def test_the_summary_of_a_language_model(language_report: Any) -> None:
    said = summary_of(language_report)
    for expected in (
        "runs/x language, base starter, approach full, seed 0",
        "1,310 documents read = 1,012 train + 127 validation + 127 test + 44 dropped (duplicate 38",
        "3.4 MB train + 421.3 kB validation + 418.9 kB test; trained on 871,204 tokens",
        "on the sealed test set (less is better) bits per byte (95 % interval) perplexity",
        "token frequencies 2.604 (2.590 to 2.618) 1,189",
        "xz, a compressor 2.187 (2.167 to 2.207) –",
        "the base as it came 1.741",
        "this model (full) 1.382 (1.361 to 1.403) 42.7",
        "The weights of step 512 were kept",
        "worth it.",
    ):
        assert expected in said, expected
    for foreign in ("macro", "accuracy", "rows", "label"):
        assert foreign not in said


def test_the_summary_of_divided_documents_adds_nothing_up(language_report: Any) -> None:
    language_report["data"] |= {"divided": True, "read": 3, "dropped": {}}
    said = summary_of(language_report)
    assert "3 documents read, each divided into parts; 0 dropped" in said


def test_the_summary_of_a_classifier(report: Any) -> None:
    report["test"]["at_threshold"] = {
        "threshold": 0.62,
        "coverage": {"value": 0.85},
        "accuracy": {"value": 0.95},
    }
    report["test"]["rows"] = 240
    said = summary_of(report)
    for expected in (
        "2,460 rows read = 1,920 train + 240 validation + 240 test + 60 dropped (duplicate 41, conflict 6",
        "on the sealed test set macro-F1 (95 % interval) accuracy",
        "most frequent answer 0.100 (0.099 to 0.101) 0.250",
        "zero-shot 0.512 (0.462 to 0.562) on 150 rows",
        "this model (full) 0.884 (0.863 to 0.905) 0.891",
        "at least 62.0 % sure: 85.0 % of the rows, 95.0 % of them right",
        "beats frozen features",
    ):
        assert expected in said, expected
    report["test"]["at_threshold"] |= {"threshold": 0.0, "coverage": {"value": 1.0}}
    assert "sure:" not in summary_of(report), "of all answers the table tells as much"


@pytest.mark.parametrize("odd", [None, "x", 3, float("nan"), [None], {"a": [None]}])
def test_odd_values_leave_gaps_in_the_summary(language_report: Any, report: Any, odd: Any) -> None:
    for made in (language_report, report):
        for key in made:
            summary_of(made | {key: odd})
    summary_of({})
    summary_of(report | {"baselines": {"[bold]": {"skipped": odd}, "tfidf": {"macro_f1": odd}}})


def test_names_in_brackets_are_not_markup(report: Any) -> None:
    said = summary_of(report | {"baselines": {"[red]mine[/red]": {"macro_f1": {"value": 0.5}}}})
    assert "[red]mine[/red] 0.500" in said


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({"macro_f1": 0.5}, "step 1,200: validation loss 3.710, macro-F1 0.500"),
        ({"bits_per_byte": 1.367}, "step 1,200: validation loss 3.710, bits per byte 1.367"),
    ],
)
def test_a_validation_is_told_in_the_tasks_scores(shown: dict[str, float], expected: str) -> None:
    made = console()
    Narrator(made).show({"kind": "validation", "step": 1200, "loss": 3.71, **shown})
    assert printed(made) == expected


def language_check(details: Any) -> dict[str, Any]:
    return {
        "task": "language",
        "read": 1310,
        "dropped": {"duplicate": 38, "no_text": 4},
        "train": 1014,
        "validation": 127,
        "test": 127,
        "text": "body",
        "notes": ["JSON lines"],
        "bytes": {"train": 3_412_870, "validation": 421_300, "test": 418_922},
        "tokens": {"train": 871_204, "validation": 107_400, "test": 106_810},
        "blocks": {"train": 1702, "validation": 210, "test": 209},
        "block_tokens": 512,
        "bytes_per_token": 3.917,
        "lengths": details["lengths"],
    }


BEGINNING = Beginning("lh.jsonl:3", (("The", True), (" keeper", True), ("\n", True), ("\x1b[31m", True)))
ESTIMATE = {
    "approach": "full",
    "seconds": 500,
    "steps": 640,
    "batch_size": 16,
    "memory_bytes": 1.2e9,
    "memory_spare_bytes": 7.8e9,
    "trainings": 2,
}


def check_of(summary: Any, rendered: Any = (), estimate: Any = None, **settings: Any) -> str:
    made = console(**settings)
    print_check(made, summary, rendered=rendered)
    if estimate is not None:
        print_estimate(made, summary, estimate)
    return printed(made)


def test_a_check_of_documents(language_details: Any) -> None:
    said = check_of(language_check(language_details), [BEGINNING] * 3, ESTIMATE)
    for expected in (
        "documents JSON lines text: body 1,310 read 1,014 train",
        "38 dropped: duplicate of an earlier document",
        "4,253,092 bytes of text: 3,412,870 train, 421,300 validation, 418,922 test",
        "1,085,414 tokens: 871,204 train",
        "2,121 blocks of 512 tokens: 1,702 train",
        "3.917 bytes in a token",
        "the model learns in blocks of 512 tokens: nothing is cut",
        "lh.jsonl:3 The keeper⏎[U+001B][31m",
        "for 2 trainings of 640 steps of 16 blocks",
        "1.2 GB of memory, 7.8 GB to spare",
    ):
        assert expected in said, expected
    for foreign in ("label", "rows", "→"):
        assert foreign not in said


def test_amounts_may_be_single_numbers_and_the_task_unsaid(language_details: Any) -> None:
    summary = language_check(language_details) | {"tokens": 1_085_414, "bytes": None, "divided": True}
    del summary["task"]
    said = check_of(summary)
    assert "1,085,414 tokens 2,121 blocks" in said
    assert "each is divided" in said


def test_neighbouring_tokens_can_be_told_apart(language_details: Any) -> None:
    said = check_of(
        language_check(language_details), [BEGINNING], color_system="standard", force_terminal=True
    )
    assert "\x1b[1;32mThe\x1b[0m\x1b[36m keeper\x1b[0m" in said


def test_a_check_of_rows_has_labels(language_details: Any) -> None:
    summary = {
        "read": 9,
        "dropped": {"rare_label": 1},
        "train": 6,
        "validation": 1,
        "test": 1,
        "text": "text",
        "label": "topic",
        "labels": {"sports": {"train": 6, "validation": 1, "test": 1}},
        "label_merges": {"Sports": "sports"},
        "label_suspicions": [["sport", "sports"]],
        "repaired": 1,
        "suspects": 2,
        "lengths": language_details["lengths"] | {"cut_rows": 2, "cut_tokens": 40},
        "notes": [],
    }
    said = check_of(summary, [Row("a.csv:2", (("cup", False), (" final", True)), "sports")])
    for expected in (
        "rows text: text label: topic 9 read",
        "1 dropped: label too rare to learn",
        "2 rows whose label others contradict",
        "sports 6 1 1",
        "'Sports' → 'sports'",
        "'sport' and 'sports'",
        "the model reads up to 512: 2 texts are longer and lose 40 tokens",
        "cup final → sports",
    ):
        assert expected in said, expected


def test_a_check_survives_what_is_missing_or_odd(language_details: Any) -> None:
    check_of({})
    summary = language_check(language_details)
    for key in summary:
        for odd in (None, "x", 3, float("nan"), [None], {"a": [None]}):
            check_of(summary | {key: odd}, [BEGINNING], {"approach": "full", "seconds": odd})
