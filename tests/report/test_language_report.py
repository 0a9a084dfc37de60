"""The page and the card of a language model: lower is better, documents and not rows, no labels."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
import yaml
from test_page import HOSTILE, read, words_of

from gptailor.report.card import render_card
from gptailor.report.facts import gain, ladder, measured, primary_metric, verdict_tone
from gptailor.report.page import render_page
from gptailor.report.words import METRICS, TASKS

FOREIGN = ("label", "confus", "calibrat", "threshold", "macro", "temperature", "class", "abstain", " row")


def judged(report: Any, low: float, high: float) -> Any:
    gap = {"value": (low + high) / 2, "low": low, "high": high}
    return report | {"verdict": {"best_baseline": "base", "worth_it": high < 0, "difference": gap}}


def test_the_page_says_what_matters(language_report: Any, language_details: Any) -> None:
    page = render_page(language_report, language_details)
    words = words_of(page)
    for expected in (
        "Worth it",
        "needs 0.359 bits per byte less",
        "1.382",
        "1.361 to 1.403",
        "42.7",
        "shorter is better",
        "Base model, as it came",
        "xz, a compressor",
        "after it has read the training text",
        "Measured on 127 test documents that neither training nor the settings' choice saw",
        "to train on 1,012 documents",
        "Every document and every token is accounted for",
        "1,310 documents read",
        "duplicate of an earlier document",
        "871,204",
        "held out 214,210",
        "3.4 MB",
        "nats per token",
        "Validation bits per byte",
        "The weights of step 512 were kept",
        "block 512",
        "None was cut",
        "8,192 tokens",
        "3.92 bytes",
        "4.930 bits per byte",
        "3.6 times the average",
        "lh.jsonl:9",
        "Bits per byte 1.382, Perplexity 42.7",
    ):
        assert expected in words, expected
    for section in ("ladder", "samples", "hardest", "training", "data", "sealed", "run"):
        assert f'href="#{section}"' in page
        assert section in read(page).ids


def test_nothing_of_classification_shows(language_report: Any, language_details: Any) -> None:
    words = words_of(render_page(language_report, language_details)).lower()
    words = words[words.index("gptailor report") :]  # behind the style
    card = render_card(language_report, language_details).lower()
    for word in FOREIGN:
        assert word not in words, word
        assert word not in card, word


def test_the_ladder_has_the_lowest_on_top_and_its_bars_grow(
    language_report: Any, language_details: Any
) -> None:
    assert [r.key for r in ladder(language_report, {})] == ["own", "base", "xz", "unigram"]
    page = render_page(language_report, language_details)
    rungs = page[page.index('class="rungs"') : page.index("</ol>", page.index('class="rungs"'))]
    widths = [float(w) for w in re.findall(r'width="([\d.]+)%" height="12" rx="3" class="fill', rungs)]
    assert len(widths) == 4
    assert widths == sorted(widths)


def test_a_skipped_baseline_is_told(language_report: Any, language_details: Any) -> None:
    language_report["baselines"]["base"] = {"skipped": "trained from scratch"}
    assert ladder(language_report, {})[-1].measured is None
    words = words_of(render_page(language_report, language_details))
    assert "Base model, as it came, not run: trained from scratch" in words


@pytest.mark.parametrize(
    ("interval", "tone"), [((-0.3, -0.1), "good"), ((-0.1, 0.1), "unclear"), ((0.1, 0.3), "worse")]
)
def test_fewer_bits_than_the_baseline_are_good(
    language_report: Any, interval: tuple[float, float], tone: str
) -> None:
    report = judged(language_report, *interval)
    assert verdict_tone(report) == tone
    assert f"tone-{tone}" in render_page(report, {})


def test_the_difference_is_drawn_with_the_better_side_right(language_report: Any) -> None:
    for interval, side in (((-0.3, -0.1), "right"), ((0.1, 0.3), "left")):
        page = render_page(judged(language_report, *interval), {})
        drawn = re.search(r"<svg[^>]*difference in bits per byte.*?</svg>", page, re.S)
        assert drawn
        at = float(re.findall(r'<circle cx="([\d.]+)%"', drawn[0])[0])
        assert (at > 50) == (side == "right")
    gap = measured({"value": -0.2, "low": -0.3, "high": -0.1})
    assert gap is not None
    turned = gain(language_report, gap)
    assert (turned.value, turned.low, turned.high) == (0.2, 0.1, 0.3)


def test_samples_stand_side_by_side(language_report: Any, language_details: Any) -> None:
    page = render_page(language_report, language_details)
    words = words_of(page)
    for expected in (
        "Letters came on Thursdays,",
        "… if they came at all, and the postman",
        "… tied with the same green string",
        "…s of the house",  # what goes on with the prompt's last word
        "nothing: the text ends here",
        "Show 3 more",
    ):
        assert expected in words, expected
    assert page.count("Before training") == 6


def test_from_scratch_there_is_no_before(language_report: Any, language_details: Any) -> None:
    for one in language_details["samples"]:
        one["before"] = None
    report = language_report | {"approach": "scratch"}
    assert "Before training" not in render_page(report, language_details)
    card = render_card(report, language_details)
    assert "trained from random weights" in card
    assert "base_model" not in card.split("---\n")[1]
    assert "this model has none of its weights" in card
    assert "CC BY-SA" not in card


def test_divided_documents_are_not_added_up(language_report: Any, language_details: Any) -> None:
    data = {"divided": True, "read": 1, "train": 1, "validation": 1, "test": 1, "dropped": {}}
    report = language_report | {"data": language_report["data"] | data}
    words = words_of(render_page(report, language_details))
    assert "Where the documents went" not in words
    assert "1 document read. With so few, each is divided between the parts." in words
    assert "Measured on the test part of 1 document, which neither training" in words
    assert "So few documents are divided" in render_card(report, language_details)


def test_the_card_tells_what_it_is_for_and_its_numbers(language_report: Any, language_details: Any) -> None:
    card = render_card(language_report, language_details)
    values = yaml.safe_load(card.split("---\n")[1])
    assert values["pipeline_tag"] == "text-generation"
    assert values["metrics"] == ["perplexity"]
    for expected in (
        "A language model: fine-tuned from the base model **starter**",
        "It continues a text in the manner of the documents",
        "| Bits per byte | 1.382 | 1.361 to 1.403 | 1.377 |",
        "Bits per byte, lower is better",
        "Measured on 127 test documents that neither",
        "−0.359 (95 % interval −0.372 to −0.345) bits per byte; below zero is better",
        "| dropped: duplicate of an earlier document | 38 |",
        "3.4 MB trained on, 421.3 kB validation, 418.9 kB test",
        "214,210 held out",
        "The weights of step 512 were kept",
        "blocks of 512 tokens",
        "gptailor predict . --input",
    ):
        assert expected in card, expected
    snippets = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    for snippet in snippets:
        ast.parse(snippet)
    assert "AutoModelForCausalLM" in snippets[1]
    assert "{" not in "".join(snippets)


def test_no_text_of_the_person_goes_into_the_card(language_report: Any, language_details: Any) -> None:
    card = render_card(language_report, language_details)
    for one in (*language_details["samples"], *language_details["hardest"]):
        assert str(one.get("prompt") or one.get("text")) not in card


def test_hostile_text_is_shown_and_never_run(language_report: Any, language_details: Any) -> None:
    voices = dict.fromkeys(("prompt", "before", "after", "reference"), HOSTILE)
    details = language_details | {
        "samples": [voices],
        "hardest": [{"text": HOSTILE, "bits_per_byte": 3.0, "where": HOSTILE}],
    }
    page = render_page(language_report, details)
    assert read(page).tags.count("script") == 1
    assert page.count("&lt;script&gt;alert") == 6
    assert "[U+202E]" in page
    page.encode("utf-8")


def test_long_samples_are_cut(language_report: Any, language_details: Any) -> None:
    details = language_details | {"samples": [{"prompt": "a" * 9_000, "after": "b" * 100_000}] * 400}
    page = render_page(language_report, details)
    assert len(page.encode()) < 200_000
    assert "388 more samples" in words_of(page)


def test_any_single_missing_or_odd_key_is_survived(language_report: Any, language_details: Any) -> None:
    details = language_details | {"curves": language_details["curves"][::100]}
    odd_values = (None, "x", 3, float("nan"), [None, 3, {}, [], "x"], {"a": [None]})
    for odd in odd_values:
        for key in language_report:
            if key != "task":
                render_page(language_report | {key: odd}, details)
                render_card(language_report | {key: odd}, details)
        for key in ("dropped", "bytes", "tokens", "divided", "read", "train", "test"):
            report = language_report | {"data": language_report["data"] | {key: odd}}
            render_page(report, details)
            render_card(report, details)
        for key in ("samples", "hardest", "tokenizer", "block_tokens", "lengths", "candidates"):
            render_page(language_report, details | {key: odd})
    for key in ("prompt", "before", "after", "reference", "text", "bits_per_byte", "where"):
        for odd in odd_values:
            render_page(language_report, {"samples": [{key: odd}], "hardest": [{"text": "a", key: odd}]})


def test_every_task_is_about_known_scores() -> None:
    for task in TASKS.values():
        assert {*task.metrics, *task.keys} <= METRICS.keys()
    assert primary_metric({"task": "language"}) == "bits_per_byte"
    assert primary_metric({}) == "macro_f1"
