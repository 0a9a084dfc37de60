"""The page: whole, safe, small, and never stopped by what is missing."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor.report import plots
from gptailor.report.facts import Measured, ladder, score_text, share_text, verdict_tone, visible
from gptailor.report.page import render_page
from gptailor.report.svg import nice_ticks

VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}
HOSTILE = "<script>alert('x')</script> \"quoted\" & \u202egnp.exe\u2066 \x07 \ud800 {{ 7 * 7 }}"


class Reader(HTMLParser):
    """Checks that every tag is closed in order, and remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    return reader


def words_of(page: str) -> str:
    return re.sub(r"\s+", " ", "".join(read(page).words))


def test_a_full_report_is_well_formed_and_says_what_matters(report: Any, details: Any) -> None:
    page = render_page(report, details)
    words = words_of(page)
    for expected in (
        "Worth it",
        "beats frozen features by 0.023",
        "0.884",
        "0.863 to 0.905",
        "TF-IDF + logistic regression",
        "would take more than 20 %",
        "Sports taken for World",
        "The surest mistakes",
        "headlines.csv:31",
        "threshold 0.62",
        "nats per target",
        "the weights of that step were kept",
        "81,234",
        "duplicate of an earlier row",
        "café prices",
        "Buisness",
        "It was opened once",
        "gptailor fit headlines.csv --label topic",
        "CC BY-SA 4.0",
    ):
        assert expected in words, expected
    for section in ("ladder", "classes", "mistakes", "probabilities", "training", "data", "sealed", "run"):
        assert f'href="#{section}"' in page
        assert section in read(page).ids


def test_nothing_is_loaded_from_elsewhere(report: Any, details: Any) -> None:
    page = render_page(report, details)
    reader = read(page)
    loading = {"src", "href", "srcset", "data", "poster", "action", "xlink:href"}
    loaded = [value for _, name, value in reader.attributes if name in loading]
    assert all(value.startswith("#") or value == "data:," for value in loaded)
    assert "url(" not in page
    assert "@import" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_the_policy_allows_exactly_the_pages_own_style_and_script(report: Any, details: Any) -> None:
    page = render_page(report, details)
    policy = next(
        dict(re.findall(r"([\w-]+) ([^;]+)", value))
        for tag, name, value in read(page).attributes
        if tag == "meta" and name == "content" and "default-src" in value
    )
    assert policy["default-src"] == "'none'"
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    # What the policy would block must not be there: style attributes and inline handlers.
    assert not [name for _, name, _ in read(page).attributes if name == "style" or name.startswith("on")]


def test_hostile_text_is_shown_and_never_run(report: Any, details: Any) -> None:
    page = render_page(poison(report), poison(details))
    reader = read(page)
    assert reader.tags.count("script") == 1
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "{{ 7 * 7 }}" in page
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\ud800-\udfff]", page)
    assert "[U+202E]" in page
    page.encode("utf-8")


def poison(value: Any) -> Any:
    """The same structure with every text, and every key a person could have written, made hostile."""
    if isinstance(value, str):
        return HOSTILE if value not in ("worth_it", "full", "classification") else value
    if isinstance(value, list):
        return [poison(one) for one in value]
    if isinstance(value, dict):
        free = {"Sports", "SPORTS", "mojibake", "duplicate", "torch"}
        return {(HOSTILE + key if key in free else key): poison(one) for key, one in value.items()}
    return value


def test_an_empty_report_still_gives_a_page() -> None:
    words = words_of(render_page({}, {}))
    assert "No verdict" in words
    assert "Against the baselines" not in words


def test_any_single_missing_or_odd_key_is_survived(report: Any, details: Any) -> None:
    details |= {"curves": details["curves"][::100], "mistakes": details["mistakes"][:2], "duplicates": []}
    for key in report:
        for odd in ("x", [3], float("nan")):
            render_page(report | {key: odd}, details)
    for key in details:
        for odd in (None, "x", 3, float("nan"), [None, 3, {}, [], "x"], {"a": [None]}):
            read(render_page({}, {"label_names": ["a", "b"], key: odd}))
        render_page(report, {k: v for k, v in details.items() if k != key})


def test_a_section_without_data_is_left_out_of_page_and_contents(report: Any, details: Any) -> None:
    page = render_page(report, {k: v for k, v in details.items() if k not in ("mistakes", "openings")})
    assert 'href="#mistakes"' not in page
    assert 'id="mistakes"' not in page
    assert 'id="sealed"' not in page


def test_numbers_that_are_not_finite_never_reach_a_plot(report: Any, details: Any) -> None:
    for row in details["curves"][::7]:
        row["train_loss"] = float("nan")
    details["curves"][30]["train_loss"] = float("inf")
    details["curves"][47]["validation_loss"] = float("nan")
    details["confusion"][1][2] = float("nan")
    details["lengths"]["counts"][2] = float("inf")
    details["coverage"][3]["accuracy"] = float("nan")
    details["reliability"]["after"][1]["accuracy"] = None
    report["test"]["per_class"]["World"]["f1"]["high"] = float("nan")
    page = render_page(report, details)
    read(page)
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert not re.search(r"\bnan\b|\binf\b|NaN|Infinity|None", svg)


def test_77_classes_stay_small_and_keep_their_names(many_report: Any, many_details: Any) -> None:
    page = render_page(many_report, many_details)
    read(page)
    assert len(page.encode()) < 1_000_000
    words = words_of(page)
    assert "intent_number_76" in words
    assert "intent_number_03 taken for" in words
    assert "Show 57 more" in words  # 20 of the 77 classes in sight


def test_long_lists_are_cut_and_the_rest_counted(report: Any, details: Any) -> None:
    details["mistakes"] = details["mistakes"] * 500
    details["duplicates"] = details["duplicates"] * 500
    details["mistakes"][0]["text"] = "very " * 100_000
    page = render_page(report, details)
    assert len(page.encode()) < 1_000_000
    assert "8,940 more mistakes are in predictions.csv" in words_of(page)


def test_what_was_found_is_counted_and_not_what_is_shown(report: Any, details: Any) -> None:
    details["duplicates"] = [{"kept": "a:1", "dropped": f"a:{n}", "text": "same"} for n in range(2, 14)]
    details["found"] = {"duplicates": 500}
    words = words_of(render_page(report, details))
    assert "Duplicates 500" in words
    assert "488 more are in data/ledger.jsonl" in words


def test_a_page_of_the_curve_alone_asks_its_question() -> None:
    page = render_page({"task": "classification", "curve": {"says": "With 2,000 more rows about 86 %."}}, {})
    assert "How many more labels?" in words_of(page)
    assert "With 2,000 more rows about 86 %." in words_of(page)
    assert "no verdict" not in page.lower()


def test_long_curves_keep_their_ends_and_level(report: Any, details: Any) -> None:
    details["curves"] = [{"step": s, "train_loss": 2.0} for s in range(1, 20_001)]
    page = render_page(report, details)
    assert len(page.encode()) < 300_000
    lines = re.findall(r'<path d="(M[^"]+)" class="line line-b"', page[page.index('id="training"') :])
    heights = {point.split()[1] for point in lines[0][1:].split("L")}
    assert len(heights) == 1


@pytest.mark.parametrize(
    ("interval", "tone", "headline"),
    [
        ((0.05, 0.2), "good", "Worth it"),
        ((-0.1, 0.1), "unclear", "No clear difference"),
        ((-0.3, -0.1), "worse", "Worse than the baseline"),
    ],
)
def test_the_verdict_has_its_color_and_words(
    report: Any, details: Any, interval: tuple[float, float], tone: str, headline: str
) -> None:
    low, high = interval
    verdict = {"worth_it": low > 0, "difference": {"value": (low + high) / 2, "low": low, "high": high}}
    page = render_page(report | {"verdict": verdict}, details)
    assert verdict_tone({"verdict": verdict}) == tone
    assert f"tone-{tone}" in page
    assert headline in words_of(page)
    told = {**verdict, "says": f"{headline}: the rest of the sentence."}
    assert '<p class="says">The rest of the sentence.' in render_page(report | {"verdict": told}, details)
    little = render_page(report | {"verdict": {**verdict, "worth_it": False}}, details)
    assert (">Hardly a difference<" in little) is (low > 0)
    few = {**verdict, "worth_it": False, "too_few": True}
    assert verdict_tone({"verdict": few}) == "unclear", "a handful of rows tells nothing"


def test_the_ladder_ranks_by_the_primary_metric_and_ends_with_the_skipped(report: Any, details: Any) -> None:
    rungs = ladder(report, details)
    assert [r.key for r in rungs] == ["own", "frozen", "tfidf", "zero_shot", "majority", "few_shot"]
    assert rungs[1].best_baseline
    assert rungs[-1].measured is None
    assert rungs[3].note == "on 150 of the test rows"


def test_the_ladder_of_a_frozen_model_does_not_list_it_twice(report: Any, details: Any) -> None:
    assert "frozen" not in [r.key for r in ladder(report | {"approach": "frozen"}, details)]


def test_a_text_task_is_ranked_by_its_own_metric(details: Any) -> None:
    score = {"value": 3.1, "low": 3.0, "high": 3.2}
    worse = {"value": 4.1, "low": 4.0, "high": 4.2}
    report = {
        "task": "language",
        "approach": "full",
        "test": {"perplexity": score},
        "baselines": {"base": {"perplexity": worse}},
    }
    rungs = ladder(report, {})
    assert [r.key for r in rungs] == ["own", "base"]  # lower is better
    words = words_of(render_page(report, {}))
    assert "Perplexity" in words
    assert "shorter is better" in words


def test_dark_colors_come_by_wish_and_by_button(report: Any, details: Any) -> None:
    page = render_page(report, details)
    by_wish = re.search(
        r'prefers-color-scheme: dark\) \{\s*:root:not\(\[data-theme="light"\]\) \{(.*?)\}', page, re.S
    )
    by_button = re.search(r':root\[data-theme="dark"\] \{(.*?)\}', page, re.S)
    assert by_wish
    assert by_button
    assert by_wish[1].split() == by_button[1].split()
    assert "--page: #121417" in by_wish[1]


def test_every_color_of_the_page_is_defined_for_light_and_dark(report: Any, details: Any) -> None:
    style = re.findall(r"<style>(.*?)</style>", render_page(report, details), flags=re.S)[0]
    used = set(re.findall(r"var\((--[\w-]+)\)", style)) - {"--tone", "--tint", "--swatch"}
    light = style[style.index(":root {") : style.index("@media")]
    dark = style[style.index(':root[data-theme="dark"]') :]
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark


def test_a_whisker_is_drawn_at_its_interval() -> None:
    drawn = plots.bar(0.5, 0.4, 0.6, top=1.0, tone="a")
    assert 'width="50.00%"' in drawn
    assert re.search(r'x1="40.00%" x2="60.00%".*class="whisker"', drawn)


def test_shares_of_a_strip_fill_it() -> None:
    drawn = plots.strip([("a", 3, "a"), ("b", 0, "b"), ("c", 1, "c")], label="x")
    assert [float(w) for w in re.findall(r'<rect x="[\d.]+%" width="([\d.]+)%"', drawn)] == [75, 25]


def test_a_small_confusion_has_numbers_and_a_large_one_has_shades() -> None:
    small = plots.heat_map([[5, 1], [0, 7]], ["no", "yes"], label="x")
    assert ">7</text>" in small
    assert "<title>no, taken for yes: 1" in small
    size = 40
    large = plots.heat_map([[1.0] * size] * size, [f"n{i}" for i in range(size)], label="x")
    assert "</text>" not in large
    assert len(large) < 120_000


def test_plots_of_nothing_are_empty() -> None:
    assert plots.line_chart([], label="x", x_title="x") == ""
    assert plots.line_chart([plots.Series("a", [(1, math.nan)])], label="x", x_title="x") == ""
    assert plots.histogram([], [], label="x", x_title="x") == ""
    assert plots.heat_map([], [], label="x") == ""


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_cover_their_range_and_are_few(low: float, width: float) -> None:
    ticks = nice_ticks(low, low + width)
    slack = 1e-6 * max(1.0, abs(low), width)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + width - slack
    assert ticks == sorted(ticks)
    assert 2 <= len(ticks) <= 8


@given(st.text())
def test_visible_text_can_be_written_and_cannot_turn_around(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", shown)


@given(
    st.lists(st.tuples(st.floats(allow_nan=True), st.floats(allow_nan=True)), max_size=8),
    st.booleans(),
)
def test_a_line_chart_survives_any_numbers(points: list[tuple[float, float]], log_x: bool) -> None:
    points = [(x, y) for x, y in points if not (abs(x) > 1e100 or abs(y) > 1e100)]
    drawn = plots.line_chart([plots.Series("a", points)], label="x", x_title="x", log_x=log_x)
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_numbers_in_words() -> None:
    assert score_text(0.71249) == "0.712"
    assert score_text(-0.02) == "−0.020"
    assert score_text(float("nan")) == "–"
    assert share_text(0.0004) == "< 0.1\u00a0%"
    assert share_text(0.9999) == "> 99.9\u00a0%"
    assert Measured(1.0).low is None


def test_the_mark_tells_whether_the_best_weights_were_kept(report: Any, details: Any) -> None:
    """After a refit on all rows, others were."""
    assert ">kept<" in render_page(report, details)
    report["training"]["refit_steps"] = 300
    page = render_page(report, details)
    assert ">best<" in page
    assert ">kept<" not in page
