"""What the page shows of a model that writes: samples beside the true text, and what surprises it most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptailor.report.facts import (
    clip,
    finite,
    inside,
    mapping,
    measured,
    primary,
    primary_metric,
    rows_of,
    score_text,
)
from gptailor.report.tables import pieces

Values = Mapping[str, Any]
Section = dict[str, Any] | None

LONGEST = 700  # characters of a sample that the page holds
_VOICES = (
    ("before", "Before training", ""),
    ("baseline", "", ""),  # named by the sample
    ("after", "This model", "own"),
    ("reference", "How the text really goes on", ""),
)
_GOES_ON = "How it goes on from stretches of text that training never saw. "
_ANSWERS = "What it answers to prompts that training never saw. "
_READ = "Read these for the manner; the scores above are the measure."


def samples_section(report: Values, details: Values) -> Section:
    """Prompts from held-out text, each with what others wrote, what the model wrote, and the true text."""
    goes_on = report.get("task") == "language"
    shown = []
    for one in map(mapping, rows_of(details.get("samples"))):
        voices = [
            {
                "title": title if goes_on or key != "reference" else "The expected answer",
                "look": look,
                "text": _continuation(str(one[key])) if goes_on else clip(str(one[key]).strip(), LONGEST),
            }
            for key, title, look in _named(one)
            if one.get(key) is not None
        ]
        if voices:
            shown.append({"prompt": clip(str(one.get("prompt") or "").strip(), LONGEST), "voices": voices})
    if not shown:
        return None
    lead = (_GOES_ON if goes_on else _ANSWERS) + _READ
    return {"pieces": pieces(shown, shown=3, most=12), "lead": lead}


def _named(sample: Values) -> list[tuple[str, str, str]]:
    return [(key, title or str(sample.get("baseline_name") or ""), look) for key, title, look in _VOICES]


def _continuation(text: str) -> str:
    """Behind an ellipsis: what begins without a blank goes on with the prompt's last word."""
    return clip(f"…{text.rstrip()}", LONGEST) if text.strip() else ""


def hardest_section(report: Values, details: Values) -> Section:
    """The held-out pieces that cost the model the most."""
    key, metric = primary_metric(report), primary(report)
    usual = measured(mapping(report.get("test")).get(key))
    shown = []
    for one in map(mapping, rows_of(details.get("hardest"))):
        value = finite(one.get(key))
        told = [f"{score_text(value)} {inside(metric.title)}" if value is not None else ""]
        if value is not None and usual and usual.value > 0:
            told.append(f"{value / usual.value:.1f} times the average")
        told.append(clip(one.get("where") or "", 80))
        if one.get("text") is not None:
            shown.append({"text": str(one["text"]).strip(), "told": [part for part in told if part]})
    return {"pieces": pieces(shown, shown=5, most=40)} if shown else None
