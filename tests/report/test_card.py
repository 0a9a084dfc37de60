"""The model card: front matter that parses, numbers with intervals, and nothing a person's text can break."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
import yaml

from gptailor.report.card import render_card

HOSTILE = "<script>x</script> [a](http://b.example) | `c` \u202e *d*\n# heading"


def front_matter(card: str) -> dict[str, Any]:
    start, matter, _ = card.split("---\n", 2)
    assert start == ""
    values = yaml.safe_load(matter)
    assert isinstance(values, dict)
    return values


def body(card: str) -> str:
    return card.split("---\n", 2)[2]


def test_front_matter_is_what_the_hub_reads(report: Any, details: Any) -> None:
    card = render_card(report, details)
    values = front_matter(card)
    assert values["library_name"] == "transformers"
    assert values["pipeline_tag"] == "text-classification"
    assert "base_model" not in values, "the hub knows no starter of ours"
    assert "gptailor" in values["tags"]
    assert values["metrics"] == ["f1", "accuracy", "precision", "recall"]
    (result,) = values["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "f1", "name": "Macro-F1", "value": 0.884}
    assert result["dataset"]["type"]


def test_the_licence_is_left_to_the_person(report: Any, details: Any) -> None:
    card = render_card(report, details)
    assert "license" not in front_matter(card)
    assert "# license: choose one" in card
    assert "CC BY-SA 4.0" in body(card)


def test_an_unknown_base_licence_is_said(report: Any, details: Any) -> None:
    del details["base_details"]["license"]
    assert "licence isn't known" in render_card(report, details)


def test_it_tells_scores_baselines_calibration_data_limits_and_openings(report: Any, details: Any) -> None:
    card = body(render_card(report, details))
    for expected in (
        "| Macro-F1 | 0.884 | 0.863 to 0.905 | 0.893 |",
        "TF-IDF + logistic regression | 0.842 | 0.817 to 0.867",
        "would take more than 20 %",
        "Difference to the best baseline on the same test rows: 0.023 (95 % interval 0.004 to 0.041)",
        "Temperature 1.31",
        "Threshold 0.62",
        "| read | 2,460 |",
        "dropped: same text, different labels | 6 |",
        "81,234 trained on",
        "Weakest on: World",
        "Opened once",
        "| 2026-11-21 10:12 | gptailor fit headlines.csv | Macro-F1 0.884 |",
        "revision a1b2c3d4, 9.8 million parameters",
    ):
        assert expected in card, expected


def test_the_code_it_shows_is_python_and_carries_the_runs_settings(report: Any, details: Any) -> None:
    card = render_card(report, details)
    snippets = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        ast.parse(snippet)
    assert "AutoModelForSequenceClassification" in snippets[1]
    assert "truncation=True, max_length=96" in snippets[1]
    assert "logits / 1.31" in snippets[1]


def test_a_text_task_loads_a_language_model() -> None:
    card = render_card(
        {"task": "completion", "test": {"bleu": {"value": 31.0, "low": 30.0, "high": 32.0}}}, {}
    )
    assert front_matter(card)["pipeline_tag"] == "text-generation"
    for snippet in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        ast.parse(snippet)
    assert "AutoModelForCausalLM" in card
    assert "| BLEU | 31.0 |" in card


def test_hostile_text_becomes_neither_markup_nor_yaml(report: Any, details: Any) -> None:
    report["test"]["per_class"][HOSTILE] = report["test"]["per_class"].pop("World")
    report["data"]["dropped"][HOSTILE] = 1
    report["verdict"]["says"] = HOSTILE
    report["base"] = "x\nlicense: mit"
    details |= {"title": HOSTILE, "label_names": [HOSTILE], "command": HOSTILE}
    report["training"]["overfitting"] = HOSTILE
    details["openings"] = [{"when": HOSTILE, "command": HOSTILE, "scores": {}}]
    details["base_details"] = {"name": "x\n---\nlicense: mit", "license": HOSTILE}
    card = render_card(report, details)
    assert "license" not in front_matter(card)
    text = body(card)
    assert "<script" not in text
    assert not re.search(r"(?<!\\)\[a", text)
    assert not re.search(r"(?<!\\)`c", text)
    assert "\u202e" not in card
    assert "\n# heading" not in text
    assert "http:" not in text
    widths = [
        len(re.findall(r"(?<!\\)\|", row)) for row in text.splitlines() if row.startswith("| &lt;script")
    ]
    assert set(widths) <= {3, 4, 6}  # an escaped bar makes no new column


def test_folders_of_the_persons_machine_stay_out(report: Any, details: Any) -> None:
    report["base"] = "/home/ann/models/mine"
    details["base_details"]["name"] = "/home/ann/models/mine"
    details["command"] = "gptailor fit /home/ann/secret/news.csv --out=~/runs/news"
    details["openings"][0]["command"] = "gptailor evaluate 'C:\\Users\\ann\\run' data/new.csv"
    card = render_card(report, details)
    assert "ann" not in card
    assert "news.csv" in card
    assert "data/new.csv" in card
    assert "base_model" not in front_matter(card), "mine may be a stranger's on the hub"


@pytest.mark.parametrize(
    ("kind", "told"), [("hub", "EleutherAI/pythia-70m"), ("folder", None), ("run", None)]
)
def test_only_a_base_of_the_hub_is_named_to_the_hub(kind: str, told: str | None, report: Any) -> None:
    base = {"name": "EleutherAI/pythia-70m", "kind": kind}
    card = render_card(report | {"base": base["name"]}, {"base_details": base})
    assert front_matter(card).get("base_model") == told


def test_missing_or_odd_keys_are_survived(report: Any, details: Any) -> None:
    front_matter(render_card({}, {}))
    for key in report:
        for odd in (None, [], {}, "x", 3, float("nan")):
            front_matter(render_card(report | {key: odd}, details))
    for key in details:
        for odd in (None, [], {}, "x", 3, float("nan"), [None, 3, {}, [], "x"], {"a": [None]}):
            front_matter(render_card(report, details | {key: odd}))


def test_sections_without_data_are_left_out() -> None:
    card = render_card({"task": "classification"}, {})
    for title in ("## Scores", "## Baselines", "## Calibration", "## The sealed test set"):
        assert title not in card


def test_windows_are_said_where_texts_are_read_in_windows(report: Any, details: Any) -> None:
    head = body(render_card(report, details))
    assert "what comes after is not seen" in head
    windows = body(render_card(report, {**details, "too_long": "window"}))
    assert "what comes after is not seen" not in windows
    assert "in windows of" in windows
    (code,) = [one for one in re.findall(r"```python\n(.*?)```", windows, re.S) if "transformers" in one]
    ast.parse(code)
    assert "Gptailor reads all of it, in windows" in code


def test_a_prompt_of_several_columns_is_asked_by_name(report: Any, details: Any) -> None:
    """One text alone is refused there, so it isn't what the card shows."""
    report |= {"task": "completion", "answer": None}
    details |= {"columns": ["context", "question"], "context_column": "context", "begin_ids": []}
    card = body(render_card(report, details))
    assert "--input" not in card
    assert "gptailor predict . rows.csv" in card
    assert '"values": {"context": "...", "question": "..."}' in card
    assert "of a longer `context` the sentences are read" in card


def test_columns_of_any_name_are_names_on_the_card(report: Any, details: Any) -> None:
    report |= {"task": "completion", "answer": None}
    details |= {"columns": ["pro`mpt\n# Heading\n<script>", 'a "quoted" one'], "begin_ids": []}
    card = body(render_card(report, details))
    assert "\n# Heading" not in card
    assert "`pro'mpt # Heading <script>`" in card
    assert '{"pro`mpt\\n# Heading\\n<script>": "...", "a \\"quoted\\" one": "..."}' in card


def test_the_best_step_is_told_where_steps_were_compared(report: Any, details: Any) -> None:
    assert "Steps: 600, the best at 408." in body(render_card(report, details))
    assert "Steps: 600." in body(render_card(report, {**details, "curves": []}))


def test_code_on_the_card_has_every_digit_of_its_numbers(report: Any, details: Any) -> None:
    """Six digits of a mean in the millions would be off by more than the model is."""
    numbers = {"mean": 1234567.891, "deviation": 0.12345678901}
    card = body(render_card({**report, "answer": "score"}, {**details, **numbers}))
    assert "1234567.891 + 0.12345678901 * float(logits[0, 0])" in card
