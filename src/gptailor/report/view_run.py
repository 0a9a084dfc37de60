"""What the page shows of how the result came about: training, the sealed test set, the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gptailor.report import plots
from gptailor.report.facts import (
    bytes_text,
    clip,
    count_text,
    finite,
    inside,
    mapping,
    primary,
    primary_metric,
    rows_of,
    score_text,
    scores_told,
    seconds_text,
    task_of,
)
from gptailor.report.svg import axis_text
from gptailor.report.tables import table
from gptailor.report.words import APPROACHES

Values = Mapping[str, Any]
Section = dict[str, Any] | None

_CURVE_POINTS = 240  # more can't be told apart on a screen
_STOPPED = {
    "length": "ran its full length",
    "early": "stopped early, validation no longer gained",
    "time": "stopped by the time limit",
}


def training_section(report: Values, details: Values) -> Section:
    """Curves, what was tried, and the run's plain facts."""
    training = mapping(report.get("training"))
    charts = [c for c in (*_curves(report, details), _strengths(report, details)) if c]
    candidates = _candidates(report, details)
    facts = [
        (name, text)
        for name, text in (
            ("Steps", _count(training.get("steps"))),
            ("Best step", _count(training.get("best_step"))),
            ("Refit with validation rows", _steps(training.get("refit_steps"))),
            ("Ended", _STOPPED.get(str(training.get("stopped")), "")),
            ("Time", _said(training.get("seconds"), seconds_text)),
            (
                "Speed",
                _said(
                    training.get("tokens_per_second"), lambda value: f"{count_text(value)} tokens a second"
                ),
            ),
            ("Peak memory", _said(training.get("peak_memory_bytes"), bytes_text)),
        )
        if text
    ]
    if not (charts or candidates or facts):
        return None
    lead = str(training.get("overfitting") or "")
    return {"lead": clip(lead, 500), "charts": charts, "candidates": candidates, "facts": facts}


def openings_section(details: Values) -> Section:
    """Each look at the test set."""
    rows = [
        {
            "when": str(one.get("when", "")),
            "command": str(one.get("command", "")),
            "scores": scores_told(one),
        }
        for one in map(mapping, rows_of(details.get("openings")))
    ]
    if not rows:
        return None
    once = "It was opened once" if len(rows) == 1 else f"It was opened {len(rows)} times"
    lead = f"{once}. Every look makes its score a little less of a surprise, so each is written down."
    return {"rows": rows, "lead": lead}


def run_section(report: Values, details: Values) -> Section:
    """What somebody needs to repeat the run."""
    base, tokenizer = mapping(details.get("base_details")), mapping(details.get("tokenizer"))
    parameters, block = finite(base.get("parameters")), details.get("block_tokens")
    base_facts = [
        (name, str(value))
        for name, value in (
            ("Name", base.get("name") or report.get("base")),
            ("Revision", base.get("revision")),
            ("Parameters", f"{parameters / 1e6:,.1f} million" if parameters else None),
            ("Licence", base.get("license")),
            ("Vocabulary", _said(tokenizer.get("vocabulary"), lambda n: f"{count_text(n)} tokens")),
            ("A token holds", _said(tokenizer.get("bytes_per_token"), lambda n: f"{finite(n):.2f} bytes")),
            ("A block holds", _said(block, lambda n: f"{count_text(n)} tokens")),
            ("Seed", report.get("seed")),
        )
        if value not in (None, "")
    ]
    section = {
        "command": str(details.get("command") or ""),
        "base": base_facts,
        "environment": list(_flat(mapping(report.get("environment")))),
        "parity": list(_flat(mapping(details.get("parity")))),
        "notes": [str(note) for note in rows_of(details.get("notes"))],
        "recipe": str(details.get("recipe") or "").rstrip(),
    }
    return section if any(section.values()) else None


def _curves(report: Values, details: Values) -> Iterator[Section]:
    score, metric = f"validation_{primary_metric(report)}", primary(report)
    best = finite(mapping(report.get("training")).get("best_step"))
    refitted = finite(mapping(report.get("training")).get("refit_steps"))  # then other weights were kept
    mark = None if best is None else (best, "best" if refitted else "kept")
    ends = [finite(mapping(one).get("step")) or 0.0 for one in rows_of(details.get("curves"))]
    last = max(ends, default=0.0)
    wanted = (
        (
            "Loss",
            task_of(report).loss_unit,
            (("train_loss", "training", "b"), ("validation_loss", "validation", "a")),
        ),
        (f"Validation {inside(metric.title)}", "", ((score, metric.title, "a"),)),
        ("Learning rate", "", (("learning_rate", "learning rate", "c"),)),
    )
    for title, unit, lines in wanted:
        series = [
            plots.Series(name, _curve(details, key), tone, "validation" in key) for key, name, tone in lines
        ]
        kept = [one for one in series if one.points]
        if kept:
            drawing = plots.line_chart(
                kept,
                label=f"{title} over steps",
                x_title="step",
                y_title=unit,
                x_range=(0, last) if last > 0 else None,
                mark=mark if title != "Learning rate" else None,
            )
            legend = [{"tone": s.tone, "name": s.name, "amount": ""} for s in kept] if len(kept) > 1 else None
            yield {"title": title, "svg": drawing, "legend": legend, "note": ""}


def _curve(details: Values, key: str) -> list[tuple[float, float]]:
    """The points of one curve; long ones are averaged in equal stretches."""
    rows = [mapping(one) for one in rows_of(details.get("curves"))]
    pairs = ((finite(one.get("step")), finite(one.get(key))) for one in rows)
    points = [(x, y) for x, y in pairs if x is not None and y is not None]
    stretch = -(-len(points) // _CURVE_POINTS)
    if stretch <= 1:
        return points
    cut = [points[start : start + stretch] for start in range(0, len(points), stretch)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in cut]


def _strengths(report: Values, details: Values) -> Section:
    key, metric = f"validation_{primary_metric(report)}", primary(report)
    rows = [mapping(one) for one in rows_of(details.get("strengths"))]
    pairs = ((finite(one.get("strength")), finite(one.get(key))) for one in rows)
    points = sorted((x, y) for x, y in pairs if x is not None and y is not None and x > 0)
    if not points:
        return None
    best = (max if metric.higher_is_better else min)(points, key=lambda point: point[1])
    drawing = plots.line_chart(
        [plots.Series(metric.title, points, "a", dots=True)],
        label=f"validation {inside(metric.title)} over regularization strength",
        x_title="strength of the head (C)",
        log_x=True,
        mark=(best[0], f"best {axis_text(best[0])}"),
    )
    note = "To the left the head is held back more; to the right it follows the training rows more."
    return {"title": "Strength of the frozen head", "svg": drawing, "legend": None, "note": note}


def _candidates(report: Values, details: Values) -> Section:
    key, rows = f"validation_{primary_metric(report)}", []
    for one in map(mapping, rows_of(details.get("candidates"))):
        name = str(one.get("approach", ""))
        name = APPROACHES.get(name, name) + (" (chosen)" if one.get("chosen") is True else "")
        rows.append([name, score_text(one.get(key)), seconds_text(one.get("seconds"))])
    if len(rows) < 2:  # nothing to choose from
        return None
    heads = ["Approach", f"Validation {inside(primary(report).title)}", "Time"]
    return table("What was tried", heads, rows, right=(1, 2))


def _flat(tree: Values, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as lines of words."""
    for key, value in tree.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif value is not None:
            number = None if isinstance(value, bool | str) else finite(value)
            yes_no = {True: "yes", False: "no"}.get(value) if isinstance(value, bool) else None
            yield name, yes_no or (f"{number:,g}" if number is not None else clip(value, 200))


def _count(value: Any) -> str:
    return _said(value, count_text)


def _steps(value: Any) -> str:
    return f"{count_text(value)} steps" if finite(value) else ""


def _said(value: Any, say: Callable[[Any], str]) -> str:
    return "" if finite(value) is None else say(value)
