"""What the page shows: the report and its details as the template's plain values and drawn plots.

This file holds the result (verdict, ladder, classes, mistakes, probabilities); `view_text` holds what a
model of text writes and misses, `view_data` the data, `view_run` the training, the test set, the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptailor.report import plots
from gptailor.report.facts import (
    counted,
    finite,
    gain,
    inside,
    interval_text,
    ladder,
    mapping,
    measured,
    primary,
    primary_metric,
    score_text,
    scores,
    share_text,
    short_seconds,
    task_name,
    task_of,
    tested_on,
    verdict_tone,
)
from gptailor.report.svg import axis_text, nice_ticks
from gptailor.report.tables import table
from gptailor.report.view_curve import curve_section, slices_section
from gptailor.report.view_data import data_section
from gptailor.report.view_labels import label_sections
from gptailor.report.view_run import openings_section, run_section, training_section
from gptailor.report.view_text import hardest_section, samples_section
from gptailor.report.words import APPROACHES, HARDLY, HEADLINES

Values = Mapping[str, Any]

_CONTENTS = {
    "ladder": ("ladder", "Baselines"),
    "samples": ("samples", "Samples"),
    "hardest": ("hardest", "Hardest"),
    "classes": ("classes", "Classes"),
    "confusion": ("classes", "Classes"),
    "missed": ("classes", "Classes"),
    "numbers": ("numbers", "Numbers"),
    "mistakes": ("mistakes", "Mistakes"),
    "probabilities": ("probabilities", "Probabilities"),
    "slices": ("slices", "Slices"),
    "curve": ("curve", "More labels"),
    "training": ("training", "Training"),
    "data": ("data", "Data"),
    "openings": ("sealed", "Test set"),
    "run": ("run", "Repeat it"),
}


def view(report: Values, details: Values) -> dict[str, Any]:
    """Every value the page's template names; a section that is None or empty is left out."""
    sections = {
        "ladder": _ladder(report, details),
        "samples": samples_section(report, details),
        "hardest": hardest_section(report, details),
        **label_sections(report, details),
        "slices": slices_section(report),
        "curve": curve_section(report),
        "training": training_section(report, details),
        "data": data_section(report, details),
        "openings": openings_section(details),
        "run": run_section(report, details),
    }
    words = [task_name(report), report.get("base"), APPROACHES.get(str(report.get("approach")))]
    made = [
        f"Gptailor {details['version']}" if details.get("version") else "Gptailor",
        details.get("created"),
    ]
    return sections | {
        "title": str(details.get("title") or "Report"),
        "subtitle": [str(word) for word in words if word],
        "verdict": _verdict(report),
        "keys": _keys(report, details),
        "tested_on": tested_on(report),
        "scores": _scores(report),
        "contents": list(dict.fromkeys(place for key, place in _CONTENTS.items() if sections[key])),
        "footer": " · ".join(str(part) for part in made if part),
    }


def _verdict(report: Values) -> dict[str, Any]:
    verdict, tone = mapping(report.get("verdict")), verdict_tone(report)
    gap = measured(verdict.get("difference"))
    gained = gain(report, gap) if gap else None
    drawing = None
    if gap and gained and gained.low is not None and gained.high is not None:
        said = f"difference in {inside(primary(report).title)} {score_text(gap.value)}, interval "
        said += f"{interval_text(gap)}; drawn so that right of zero is better"
        drawing = plots.difference(gained.value, gained.low, gained.high, tone="tone", label=said)
    headline, says = HEADLINES[tone], str(verdict.get("says") or "")
    if not verdict and report.get("curve"):  # a page of the curve alone
        headline, says = "How many more labels?", str(mapping(report["curve"]).get("says") or "")
    if tone == "unclear" and gained and (gained.low or 0) > 0 and not verdict.get("too_few"):
        headline = HARDLY
    if says.startswith(f"{headline}: "):  # said once is enough
        says = says[len(headline) + 2 :]
        says = says[:1].upper() + says[1:]
    return {
        "tone": tone,
        "headline": headline,
        "says": says,
        "drawing": drawing,
    }


def _keys(report: Values, details: Values) -> list[dict[str, str]]:
    """Four or five numbers a person asks for first."""
    found = {key: (metric, score) for key, metric, score in scores(report.get("test"))}
    first, task = primary_metric(report), task_of(report)
    wanted = [k for k in dict.fromkeys([first, *task.keys, *found]) if k in found]
    threshold = finite(details.get("threshold"))
    coverage = measured(mapping(details.get("at_threshold")).get("coverage"))
    automatic = threshold is not None and coverage is not None
    keys = []
    for key in wanted[: 3 if automatic or "calibration_error" in found else 4]:
        metric, score = found[key]
        explains = metric.explains + ("" if metric.higher_is_better else ", less is better")
        keys.append(tile(metric.title, score_text(score.value), interval_text(score), explains))
    if automatic and coverage is not None:
        right = measured(mapping(details.get("at_threshold")).get("accuracy"))
        explains = f"of the {task.many} get an answer at least {threshold:.2f} sure"
        explains += f"; {share_text(right.value)} of these are right" if right else ""
        between = (
            f"{share_text(coverage.low)} to {share_text(coverage.high)}" if coverage.low is not None else ""
        )
        keys.append(tile("Sure enough", share_text(coverage.value), between, explains))
    training, rows = mapping(report.get("training")), finite(mapping(report.get("data")).get("train"))
    seconds = finite(training.get("seconds"))
    if seconds is not None:
        on = f"to train on {counted(rows, task.one, task.many)}" if rows else "to train"
        keys.append(tile("Training time", short_seconds(seconds), "", on))
    return keys


def tile(title: str, value: str, between: str, explains: str) -> dict[str, str]:
    """A number at the head of a page: what it is, its interval, and what it means."""
    return {"title": title, "value": value, "between": between, "explains": explains}


def _ladder(report: Values, details: Values) -> dict[str, Any] | None:
    rungs = ladder(report, details)
    known = [r for r in rungs if r.measured]
    if not known:
        return None
    metric = primary(report)
    top = (
        metric.top or nice_ticks(0, max(r.measured.high or r.measured.value for r in known if r.measured))[-1]
    )
    shown = [
        {
            "title": r.title,
            "own": r.own,
            "best": r.best_baseline,
            "value": score_text(r.measured.value),
            "between": interval_text(r.measured),
            "note": r.note,
            "bar": plots.score_bar(r.measured, top=top, tone="a" if r.own else "rest"),
        }
        for r in known
        if r.measured
    ]
    order = "longer is better" if metric.higher_is_better else "shorter is better"
    return {
        "lead": f"{metric.title}: {metric.explains}; {order}. A model earns its keep above what is simpler.",
        "rungs": shown,
        "ticks": [axis_text(top * share) for share in (0, 0.25, 0.5, 0.75, 1)],
        "skipped": [(r.title, r.note or "no reason was told") for r in rungs if r.measured is None],
    }


def _scores(report: Values) -> dict[str, Any] | None:
    """The model's scores on test, with validation beside them where it was scored."""
    validation = {key: score for key, _, score in scores(report.get("validation"))}
    rows = []
    for key, metric, score in scores(report.get("test")):
        beside = score_text(validation[key].value) if key in validation else "–"
        rows.append([metric.title, score_text(score.value), interval_text(score) or "–", beside])
    if not validation:
        return table("Every score", ["", "Test", "95 % interval"], [row[:3] for row in rows], right=(1, 2))
    return table("Every score", ["", "Test", "95 % interval", "Validation"], rows, right=(1, 2, 3))
