"""What the page shows of the scores by slice, and of the score over the number of training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptailor.report import plots
from gptailor.report.facts import (
    count_text,
    counted,
    finite,
    inside,
    interval_text,
    mapping,
    measured,
    metric_of,
    rows_of,
    score_text,
    worst_slice_text,
)
from gptailor.report.svg import nice_ticks
from gptailor.report.tables import table

Values = Mapping[str, Any]


def slices_section(report: Values) -> dict[str, Any] | None:
    """Every slice of every column, with the worst in words."""
    slices = mapping(report.get("slices"))
    key = str(slices.get("score"))
    metric = metric_of(key)
    columns = []
    for name, raw in mapping(slices.get("by")).items():
        found = [(one, score) for one in map(mapping, rows_of(raw)) if (score := measured(one.get(key)))]
        highest = max((score.high or score.value for _, score in found), default=1.0)
        top = metric.top or nice_ticks(0, highest)[-1]
        rows = [
            {
                "name": str(one.get("slice", "")),
                "value": score_text(score.value),
                "told": " · ".join(
                    part for part in (interval_text(score), counted(one.get("rows"), "row", "rows")) if part
                ),
                "bar": plots.score_bar(score, top=top, tone="warn" if one.get("much_worse") is True else "a"),
            }
            for one, score in found
        ]
        if rows:
            columns.append({"name": str(name), "rows": rows})
    if not columns:
        return None
    none = f"{metric.title} by slice; none of twenty rows or more is worse than the rest."
    return {
        "lead": worst_slice_text(slices) or none,
        "columns": columns,
        "warnings": [str(warning) for warning in rows_of(slices.get("warnings"))],
        "note": f"Bars are {inside(metric.title)}: {metric.explains}. Whiskers are 95 % intervals. "
        f"{slices.get('test', '')}.",
    }


def curve_section(report: Values) -> dict[str, Any] | None:
    """The measured points, the forecast with its band, and what it says."""
    curve = mapping(report.get("curve"))
    metric = metric_of(str(curve.get("metric")))
    points = [
        (rows, score)
        for one in map(mapping, rows_of(curve.get("points")))
        if (rows := finite(one.get("rows"))) and (score := finite(one.get("score"))) is not None
    ]
    ahead = [
        (size, reach)
        for one in map(mapping, rows_of(curve.get("band")))
        if (size := finite(one.get("rows"))) and (reach := measured(one))
    ]
    if not points:
        return None
    drawing = plots.line_chart(
        [
            plots.Series("measured", points, "a", dots=True),
            plots.Series("forecast", [points[-1], *((size, reach.value) for size, reach in ahead)], "b"),
        ],
        label=f"{inside(metric.title)} over the number of training rows",
        x_title="training rows",
        y_title=inside(metric.title),
        height=332,
        mark=(points[-1][0], "now"),
        log_x=True,
        band=[(points[-1][0], points[-1][1], points[-1][1])]
        + [(r, s.low, s.high) for r, s in ahead if s.low is not None and s.high is not None],
    )
    forecasts = []
    for one in map(mapping, rows_of(curve.get("forecasts"))):
        found, fresh = measured(one.get("score")), measured(one.get("on_new_rows"))
        value = score_text(found.value if found else None)
        forecasts.append([count_text(one.get("more")), value, interval_text(found), interval_text(fresh)])
    held_out = counted(curve.get("held_out"), "held-out row", "held-out rows")
    return {
        "lead": str(curve.get("says") or ""),
        "chart": {
            "title": f"{metric.title} over training rows",
            "svg": drawing,
            "legend": [
                {"tone": "a", "name": "measured", "amount": ""},
                {"tone": "b", "name": "forecast, with its 95 % interval", "amount": ""},
            ],
            "note": f"Heads on frozen features, fitted on more and more rows, judged on {held_out}.",
        },
        "table": table(
            "Forecasts",
            ["More rows", metric.title, "On these held-out rows", "On rows nobody has seen"],
            forecasts,
            right=(0, 1, 2, 3),
        ),
        "note": "Ranges are 95 % intervals. The wider one also holds that the held-out rows are a sample.",
    }
