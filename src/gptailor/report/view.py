"""What the page shows: the report and its details as the template's plain values and drawn plots.

This file holds the result (verdict, ladder, classes, mistakes, probabilities); `view_run` holds how
it came about (training, data, the test set, the machine).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from gptailor.report import plots
from gptailor.report.facts import (
    APPROACHES,
    HEADLINES,
    METRICS,
    Measured,
    clip,
    count_text,
    finite,
    interval_text,
    ladder,
    mapping,
    measured,
    primary_metric,
    rows_of,
    score_text,
    scores,
    share_text,
    short_seconds,
    verdict_tone,
)
from gptailor.report.svg import axis_text, nice_ticks
from gptailor.report.tables import pieces, table
from gptailor.report.view_run import data_section, openings_section, run_section, training_section

Values = Mapping[str, Any]

_CONTENTS = {
    "ladder": ("ladder", "Baselines"),
    "classes": ("classes", "Classes"),
    "confusion": ("classes", "Classes"),
    "mistakes": ("mistakes", "Mistakes"),
    "probabilities": ("probabilities", "Probabilities"),
    "training": ("training", "Training"),
    "data": ("data", "Data"),
    "openings": ("sealed", "Test set"),
    "run": ("run", "Repeat it"),
}
_BEFORE_AFTER = (
    {"tone": "b", "name": "before calibration", "amount": ""},
    {"tone": "a", "name": "after calibration", "amount": ""},
)


def view(report: Values, details: Values) -> dict[str, Any]:
    """Every value the page's template names; a section that is None or empty is left out."""
    sections = {
        "ladder": _ladder(report, details),
        "classes": _classes(report),
        "confusion": _confusion(details),
        "confused": _confused(details),
        "mistakes": _mistakes(details),
        "probabilities": _probabilities(report, details),
        "training": training_section(report, details),
        "data": data_section(report, details),
        "openings": openings_section(details),
        "run": run_section(report, details),
    }
    words = [report.get("task"), report.get("base"), APPROACHES.get(str(report.get("approach")))]
    made = [
        f"Gptailor {details['version']}" if details.get("version") else "Gptailor",
        details.get("created"),
    ]
    return sections | {
        "title": str(details.get("title") or "Report"),
        "subtitle": [str(word) for word in words if word],
        "verdict": _verdict(report),
        "keys": _keys(report, details),
        "intervals_note": _intervals_note(report),
        "scores": _scores(report),
        "contents": list(dict.fromkeys(place for key, place in _CONTENTS.items() if sections[key])),
        "footer": " · ".join(str(part) for part in made if part),
    }


def _verdict(report: Values) -> dict[str, Any]:
    verdict, tone = mapping(report.get("verdict")), verdict_tone(report)
    gap = measured(verdict.get("difference"))
    drawing = None
    if gap and gap.low is not None and gap.high is not None:
        said = f"difference {score_text(gap.value)}, between {interval_text(gap)}; right of zero is better"
        drawing = plots.difference(gap.value, gap.low, gap.high, tone="tone", label=said)
    return {
        "tone": tone,
        "headline": HEADLINES[tone],
        "says": str(verdict.get("says") or ""),
        "drawing": drawing,
    }


def _keys(report: Values, details: Values) -> list[dict[str, str]]:
    """Four or five numbers a person asks for first."""
    found = {key: (metric, score) for key, metric, score in scores(report.get("test"))}
    first = primary_metric(report)
    wanted = [k for k in dict.fromkeys([first, "accuracy", "calibration_error", *found]) if k in found]
    threshold = finite(details.get("threshold"))
    coverage = measured(mapping(details.get("at_threshold")).get("coverage"))
    automatic = threshold is not None and coverage is not None
    keys = []
    for key in wanted[: 3 if automatic or "calibration_error" in found else 4]:
        metric, score = found[key]
        keys.append(_key(metric.title, score_text(score.value), interval_text(score), metric.explains))
    if automatic and coverage is not None:
        right = measured(mapping(details.get("at_threshold")).get("accuracy"))
        explains = f"of the rows get an answer at least {threshold:.2f} sure"
        explains += f"; {share_text(right.value)} of these are right" if right else ""
        between = (
            f"{share_text(coverage.low)} to {share_text(coverage.high)}" if coverage.low is not None else ""
        )
        keys.append(_key("Sure enough", share_text(coverage.value), between, explains))
    training, rows = mapping(report.get("training")), finite(mapping(report.get("data")).get("train"))
    seconds = finite(training.get("seconds"))
    if seconds is not None:
        on = f"to train on {count_text(rows)} rows" if rows else "to train"
        keys.append(_key("Training time", short_seconds(seconds), "", on))
    return keys


def _key(title: str, value: str, between: str, explains: str) -> dict[str, str]:
    return {"title": title, "value": value, "between": between, "explains": explains}


def _intervals_note(report: Values) -> str:
    rows = finite(mapping(report.get("data")).get("test"))
    if not rows:
        return ""
    return f"Measured on {count_text(rows)} test rows that training never saw. Ranges are 95 % intervals."


def _ladder(report: Values, details: Values) -> dict[str, Any] | None:
    rungs = ladder(report, details)
    known = [r for r in rungs if r.measured]
    if not known:
        return None
    metric = METRICS.get(primary_metric(report), METRICS["macro_f1"])
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
            "bar": _bar(r.measured, top=top, tone="a" if r.own else "rest"),
        }
        for r in known
        if r.measured
    ]
    order = "longer is better" if metric.higher_is_better else "shorter is better"
    return {
        "lead": f"{metric.title}: {metric.explains}; {order}. A model earns its keep above what is simpler.",
        "rungs": shown,
        "ticks": [axis_text(top * share) for share in (0, 0.25, 0.5, 0.75, 1)],
        "skipped": [(r.title, r.note or "not run") for r in rungs if r.measured is None],
    }


def _bar(score: Measured, *, top: float, tone: str) -> Markup:
    return plots.bar(score.value, score.low, score.high, top=top, tone=tone)


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


def _classes(report: Values) -> dict[str, Any] | None:
    """F1 per class, the weakest first."""
    found = []
    for name, raw in mapping(mapping(report.get("test")).get("per_class")).items():
        one = mapping(raw)
        f1 = measured(one.get("f1") if one else raw)
        if f1 is not None:
            found.append((f1.value, str(name), f1, one))
    if not found:
        return None
    shown = [
        {
            "name": name,
            "f1": score_text(f1.value),
            "told": _class_told(one),
            "bar": _bar(f1, top=1.0, tone="a"),
        }
        for _, name, f1, one in sorted(found, key=lambda entry: entry[:2])
    ]
    many = len(shown) > plots.NUMBERED_CLASSES
    note = "Whiskers are 95 % intervals: the fewer test rows a class has, the wider."
    note += " P is precision, R is recall." if any(one["told"] for one in shown) else ""
    return {"pieces": pieces(shown, shown=20 if many else 12, most=400), "two": len(shown) > 4, "note": note}


def _class_told(one: Values) -> str:
    precision, recall = measured(one.get("precision")), measured(one.get("recall"))
    rows = next((finite(one[key]) for key in ("support", "rows", "count", "n") if key in one), None)
    told = [f"P {precision.value:.2f}" if precision else "", f"R {recall.value:.2f}" if recall else ""]
    return " · ".join(
        part for part in [*told, f"{count_text(rows)} rows" if rows is not None else ""] if part
    )


def _confusion(details: Values) -> dict[str, Any] | None:
    matrix = [[finite(v) or 0.0 for v in rows_of(row)] for row in rows_of(details.get("confusion"))]
    names = [str(name) for name in rows_of(details.get("label_names"))]
    drawing = plots.heat_map(matrix, names, label=f"confusion matrix of {len(names)} classes")
    if not drawing:
        return None
    note = "A line is a label, a column what the model said; on the diagonal it was right."
    if len(names) > plots.NUMBERED_CLASSES:
        note += " The darker, the larger the share of the label's rows. Point at a cell to see its names."
    return {"title": "Labels and answers", "svg": drawing, "legend": None, "note": note}


def _confused(details: Values) -> list[dict[str, str]]:
    return [
        {
            "answer": str(one.get("answer", "")),
            "prediction": str(one.get("prediction", "")),
            "count": count_text(one.get("count")),
        }
        for one in map(mapping, rows_of(details.get("confused"))[:12])
    ]


def _mistakes(details: Values) -> Any:
    shown = [
        {
            "text": str(one.get("text", "")),
            "answer": str(one.get("answer", "")),
            "prediction": str(one.get("prediction", "")),
            "sure": share_text(sure) if (sure := finite(one.get("probability"))) is not None else "",
            "where": str(one.get("where") or ""),
        }
        for one in map(mapping, rows_of(details.get("mistakes")))
    ]
    return pieces(shown, shown=10, most=60) if shown else None


def _probabilities(report: Values, details: Values) -> dict[str, Any] | None:
    charts = [chart for chart in (_reliability(details), _coverage(details)) if chart]
    if not charts:
        return None
    error = measured(mapping(report.get("test")).get("calibration_error"))
    lead = "A calibrated model that says 80 % is right eight times in ten."
    if error:
        lead += f" This one is off by {share_text(error.value)} on average."
    temperature = finite(details.get("temperature"))
    if temperature is not None:
        lead += f" Temperature {temperature:.2f}, fitted on validation."
    return {"lead": lead, "charts": charts}


def _reliability(details: Values) -> dict[str, Any] | None:
    raw = mapping(details.get("reliability"))
    before, after = (_bins(raw.get(when)) for when in ("before", "after"))
    if not before and not after:
        return None
    drawing = plots.reliability_diagram(before, after, label="share right over probability given")
    note = "On the dashed line, probabilities are right; below it, the model is too sure. "
    note += "Larger circles hold more rows."
    legend = [one for one, bins in zip(_BEFORE_AFTER, (before, after), strict=True) if bins]
    return {"title": "Reliability", "svg": drawing, "legend": legend, "note": note}


def _bins(raw: Any) -> list[tuple[float, float, float]]:
    found = []
    for one in map(mapping, rows_of(raw)):
        confidence, accuracy, count = (finite(one.get(key)) for key in ("confidence", "accuracy", "count"))
        if confidence is not None and accuracy is not None and count:
            found.append((confidence, accuracy, count))
    return sorted(found)


def _coverage(details: Values) -> dict[str, Any] | None:
    lines: Sequence[plots.Series] = [
        plots.Series(name, _points(details.get("coverage"), "threshold", key), tone)
        for key, name, tone in (("coverage", "rows answered", "b"), ("accuracy", "of those, right", "a"))
    ]
    threshold = finite(details.get("threshold"))
    drawing = plots.line_chart(
        lines,
        label="share answered and share right over the threshold",
        x_title="least probability to answer",
        height=332,
        mark=None if threshold is None else (threshold, f"threshold {threshold:.2f}"),
        x_range=(0, 1),
        y_range=(0, 1),
        y_title="share",
    )
    if not drawing:
        return None
    note = (
        "No threshold reaches 95 % accuracy on validation, so none is set."
        if threshold is None and "threshold" in details
        else "Under the threshold the model abstains. It is the lowest with 95 % accuracy on validation."
    )
    legend = [{"tone": line.tone, "name": clip(line.name), "amount": ""} for line in lines]
    return {"title": "Leave the unsure ones to a person", "svg": drawing, "legend": legend, "note": note}


def _points(raw: Any, x: str, y: str) -> list[tuple[float, float]]:
    pairs = ((finite(one.get(x)), finite(one.get(y))) for one in map(mapping, rows_of(raw)))
    return sorted((a, b) for a, b in pairs if a is not None and b is not None)
