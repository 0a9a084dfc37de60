"""The page's sections of slices and of the learning curve: shown, lenient, safe."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from gptailor.report.page import render_page
from gptailor.report.terminal import print_curve, print_slices

SHARE = {"value": 0.71, "low": 0.62, "high": 0.79}
DE = {"slice": "<b>de</b>", "rows": 120, "accuracy": SHARE, "rest": 0.88, "p": 0.0003, "much_worse": True}
EN = {"slice": "en", "rows": 480, "accuracy": {"value": 0.88, "low": 0.85, "high": 0.91}, "rest": 0.71}
SLICES = {
    "score": "accuracy",
    "test": "Fisher's exact test",
    "by": {"language": [DE, EN]},
    "worst": {"by": "language", **DE},
    "warnings": ["language '<b>de</b>' is much worse than the rest."],
}
CURVE = {
    "metric": "accuracy",
    "held_out": 640,
    "points": [{"rows": 125 * 2**n, "score": 0.7 + 0.03 * n} for n in range(4)],
    "forecasts": [
        {
            "more": 1000,
            "rows": 2000,
            "score": {"value": 0.81, "low": 0.8, "high": 0.82},
            "on_new_rows": {"value": 0.81, "low": 0.77, "high": 0.85},
        }
    ],
    "band": [{"rows": 2000, "value": 0.81, "low": 0.8, "high": 0.82}],
    "says": "With 1,000 more rows about 81.0 %.",
}


def page_of(**report: Any) -> str:
    return render_page({"task": "classification", **report}, {})


def test_slices_and_curve_stand_on_the_page() -> None:
    page = page_of(slices=SLICES, curve=CURVE)
    assert "Worst slice: language &#39;&lt;b&gt;de&lt;/b&gt;&#39;, accuracy 0.710 (0.620 to 0.790)" in page
    assert "<b>de" not in page
    assert "Much worse than the rest" in page
    assert 'class="band"' in page
    assert "With 1,000 more rows about 81.0 %." in page
    assert "0.770 to 0.850" in page
    assert 'href="#slices"' in page
    assert 'href="#curve"' in page


def test_without_them_the_sections_are_left_out() -> None:
    page = page_of()
    assert 'id="slices"' not in page
    assert 'id="curve"' not in page


@pytest.mark.parametrize("odd", [None, "odd", 3, [], {}, {"by": 3, "points": "x"}, {"by": {"a": [None, 1]}}])
def test_odd_values_leave_a_gap_and_no_error(odd: Any) -> None:
    page_of(slices=odd, curve=odd)
    page_of(slices={**SLICES, "worst": odd, "by": odd}, curve={**CURVE, "points": odd})
    page_of(slices={**SLICES, "score": odd}, curve={**CURVE, "band": odd, "forecasts": odd, "metric": "f"})


def test_the_terminal_tells_them() -> None:
    console = Console(record=True, width=120)
    print_slices(console, {"slices": SLICES})
    print_curve(console, CURVE)
    told = console.export_text()
    assert "Worst slice: language '<b>de</b>'" in told
    assert "Warning: language" in told
    assert "measured" in told
    assert "0.800 to 0.820" in told
    assert "on 640 held-out rows" in told
