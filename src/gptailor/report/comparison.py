"""A comparison of runs for people: in the terminal, and as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptailor.report import plots
from gptailor.report.facts import (
    Measured,
    clip,
    count_text,
    inside,
    interval_text,
    mapping,
    measured,
    metric_of,
    score_text,
    seconds_text,
)
from gptailor.report.page import render_template
from gptailor.report.tables import table
from gptailor.report.terminal import score_with_interval

SHOWN_SCORES = 2  # columns of scores in the terminal
PAGE_SCORES = 8
NO_VALUE = "–"


def print_comparison(console: Console, found: Mapping[str, Any]) -> None:
    """The leaderboard, what the tests say, and the settings that differ."""
    runs, metric = found["runs"], found["metric"]
    order = "" if found["higher_is_better"] else ", less is better"
    board = Table(box=None, pad_edge=False, header_style="dim")
    board.add_column(f"on the sealed test set{order}", overflow="fold")
    names = list(runs[0]["scores"])[:SHOWN_SCORES]
    for name in names:
        board.add_column(inside(metric_of(name).title) + (" (95 % interval)" if name == metric else ""))
    board.add_column("training", justify="right")
    for place, run in enumerate(runs):
        cells = [score_with_interval(run["scores"].get(name)) for name in names]
        name = Text(run["run"], style="bold" if place == 0 else "")
        board.add_row(name, *cells, seconds_text(run["training_seconds"]))
    console.print(board)
    for run in runs[1:]:
        line = Text(f"{run['run']}: ", style="dim") + Text(run["against_best"]["says"])
        console.print(line, soft_wrap=True)
    if found["settings"]:
        console.print(Text("\nsettings that differ", style="bold"))
        settings = Table(box=None, pad_edge=False, header_style="dim")
        for head in ("", *(run["run"] for run in runs)):
            settings.add_column(Text(head), overflow="fold")
        for entry in found["settings"]:
            settings.add_row(Text(entry["key"]), *(Text(_value_text(entry, run["run"])) for run in runs))
        console.print(settings)
    console.print(Text(f"\n{found['says']}", style="bold"), soft_wrap=True)
    for note in found["notes"]:
        console.print(Text(note, style="dim"))


def render_comparison(found: Mapping[str, Any]) -> str:
    """The page: leaderboard, tests, every score, settings. All that came from a person is escaped."""
    runs, metric = found["runs"], found["metric"]
    title = inside(metric_of(metric).title)
    names = list(dict.fromkeys(name for run in runs for name in run["scores"]))[:PAGE_SCORES]
    values = {
        "title": f"{len(runs)} runs compared",
        "subtitle": found["task"],
        "says": found["says"],
        "lead": f"On the sealed test set, by {title}"
        + ("" if found["higher_is_better"] else "; less is better")
        + ". The line across a bar is the 95 % interval.",
        "rungs": _rungs(runs, metric),
        "tests": _tests(runs, higher_is_better=found["higher_is_better"]),
        "tests_lead": f"The difference in {title} to {found['best']}, on the same test rows: a paired "
        "bootstrap with a 95 % interval. The p-values are corrected for all pairs of the runs (Holm).",
        "scores": table(
            "Every score",
            ["run", *(metric_of(name).title for name in names), "training rows", "training"],
            [
                [
                    run["run"],
                    *(score_text(mapping(run["scores"].get(name)).get("value")) for name in names),
                    count_text(run["training_rows"]),
                    seconds_text(run["training_seconds"]),
                ]
                for run in runs
            ],
            right=range(1, len(names) + 3),
        ),
        "settings": table(
            "Settings that differ",
            ["setting", *(run["run"] for run in runs)],
            [
                [entry["key"], *(clip(_value_text(entry, run["run"]), 120) for run in runs)]
                for entry in found["settings"]
            ],
        ),
        "notes": found["notes"],
    }
    return render_template("comparison.html.jinja", values)


def _rungs(runs: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """One bar for each run, all on one scale from zero."""
    found = [measured(run["scores"][metric]) or Measured(0.0) for run in runs]
    end = metric_of(metric).top
    top = end if end is not None else 1.05 * max([one.high or one.value for one in found] + [1e-9])
    return [
        {
            "title": run["run"],
            "value": score_text(one.value),
            "between": interval_text(one),
            "told": ", ".join(
                str(part)
                for part in (run["approach"], run["base"], seconds_text(run["training_seconds"]))
                if part and part != NO_VALUE
            ),
            "best": place == 0,
            "bar": plots.score_bar(one, top=top, tone="a" if place == 0 else "rest"),
        }
        for place, (run, one) in enumerate(zip(runs, found, strict=True))
    ]


def _tests(runs: Sequence[Mapping[str, Any]], *, higher_is_better: bool) -> list[dict[str, Any]]:
    """What the test of each other run says; drawn so that left is worse, all on one scale."""
    sign = 1.0 if higher_is_better else -1.0
    turned: dict[str, tuple[float, float, float]] = {}
    for run in runs[1:]:
        gap = measured(mapping(run["against_best"]).get("difference"))
        if gap is not None and gap.low is not None and gap.high is not None:
            low, high = sorted((sign * gap.low, sign * gap.high))
            turned[run["run"]] = (sign * gap.value, low, high)
    reach = max((abs(end) for gap in turned.values() for end in gap), default=0.0)
    found = []
    for run in runs[1:]:
        test, name = mapping(run["against_best"]), run["run"]
        drawn = None
        if name in turned:
            drawn = plots.difference(*turned[name], tone="tone", label=str(test["says"]), reach=reach)
        tone = "worse" if test.get("clear") else "unclear"
        found.append({"title": name, "says": test.get("says", ""), "drawing": drawn, "tone": tone})
    return found


def _value_text(entry: Mapping[str, Any], run: str) -> str:
    value = mapping(entry["values"]).get(run)
    if value is None:
        return NO_VALUE
    return str(value).lower() if isinstance(value, bool) else str(value)
