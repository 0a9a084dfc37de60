"""`tune.html`: what a search tried, what mattered, and whether the winner is better than the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptailor import __version__
from gptailor.report.facts import (
    counted,
    interval_text,
    measured,
    metric_of,
    score_text,
    seconds_text,
    share_text,
)
from gptailor.report.page import render_template
from gptailor.report.plots import bar, difference
from gptailor.report.tables import table
from gptailor.report.tune_plots import history, parallel_coordinates, setting_name, value_of
from gptailor.report.view import tile
from gptailor.report.words import HELD_OUT

LISTED = 10  # settings in the list of what mattered


def render_tune(result: Mapping[str, Any]) -> str:
    """The page from `tune.json`: one self-contained file."""
    trials, metric = result["trials"], metric_of(result["metric"]).title
    won = any(one["won"] for one in result["finalists"])
    names = list(dict.fromkeys(name for one in trials for name in one["settings"]))
    weighed = sum(
        one["state"] in ("complete", "pruned")
        and bool(one["settings"])
        and one["same_as"] is None
        and one["score"] is not None
        for one in trials
    )
    by_importance = sorted(names, key=lambda name: -result["importance"].get(name, 0.0))
    values = {
        "title": Path(result["data"]).name,
        "subtitle": [
            str(result["task"]),
            counted(len(trials), "trial", "trials"),
            seconds_text(result["seconds"]),
        ],
        "headline": _headline(result, won=won),
        "tone": "good" if won and not _lost_the_test(result) and not _is_unclear(result) else "unclear",
        "says": result["says"],
        "apart": _apart(result, won=won),
        "keys": _keys(result, metric),
        "lead": _lead(trials),
        "charts": _charts(result, metric),
        "importance": _importance(result["importance"]),
        "importance_trials": weighed,
        "unweighed": _unweighed(weighed, names) if not result["importance"] else "",
        "parallel": _parallel(result, by_importance, metric),
        "finalists": _finalists(result, metric),
        "repeated": _repeated(result["judged_on"]),
        "trials": _trials(trials, names, metric),
        "footer": f"Written by Gptailor {__version__}. Numbers: tune.json; trials: trials.csv.",
    }
    return render_template("tune.html.jinja", values)


def _lead(trials: Sequence[Mapping[str, Any]]) -> str:
    pruned = sum(one["state"] == "pruned" for one in trials)
    same = sum(one["same_as"] is not None for one in trials)
    parts = [f"{counted(len(trials), 'trial', 'trials')}, {pruned} given up early"]
    if same:
        parts.append(f"{same} the same as an earlier one and not run again")
    return "; ".join(parts) + ". Scores are of the validation rows; no trial has seen a test row."


def _repeated(judged_on: str) -> tuple[str, str]:
    """What the finalists were asked: a title and a sentence."""
    if judged_on == HELD_OUT:
        return "Fitted again, elsewhere", (
            "The best trials and the default, fitted again on other splits with other seeds. The score is of "
            "rows that chose nothing: not the weights, not the settings, not the number of steps."
        )
    return "Fitted again, with other seeds", (
        "The best trials and the default, fitted again with other seeds on the same split. The score is of "
        "the validation rows, which chose these trials, too: the interval holds the luck of seeds alone."
    )


def _headline(result: Mapping[str, Any], *, won: bool) -> str:
    if not won:
        return "The default stays"
    if _lost_the_test(result):
        return "Ahead in the search, behind on the test set"
    if _is_unclear(result):
        return "Ahead in the search; the test set can't tell"
    if _ahead(result) is None:  # too few test rows for an interval
        return "Ahead in the search"
    return "Better settings found"


def _lost_the_test(result: Mapping[str, Any]) -> bool:
    """Whether the default was surely better on the sealed test set."""
    ahead = _ahead(result)
    return ahead is not None and ahead[2] < 0


def _is_unclear(result: Mapping[str, Any]) -> bool:
    """Whether the sealed test set was asked and leaves open who is ahead."""
    ahead = _ahead(result)
    return ahead is not None and ahead[1] <= 0 <= ahead[2]


def _ahead(result: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """How far the winner is ahead of the default on the sealed test set, and its interval."""
    found = measured((result["test"] or {}).get("difference"))
    if found is None or found.low is None or found.high is None:
        return None
    if result["higher_is_better"]:
        return found.value, found.low, found.high
    return -found.value, -found.high, -found.low


def _apart(result: Mapping[str, Any], *, won: bool) -> Any:
    ahead = _ahead(result)
    if not won or ahead is None:
        return None
    return difference(*ahead, tone="a", label="winner against default on the sealed test set")


def _keys(result: Mapping[str, Any], metric: str) -> list[dict[str, str]]:
    """Tiles: the winner's and the default's scores; one of each where the default stays."""
    keys = []
    test, shown = result["test"] or {}, ["winner", "default"]
    if result["winner"]["trial"] == result["default"]["trial"]:
        shown = ["default"]
    for title in shown:
        found = measured(test.get(title))
        if found is not None:
            keys.append(
                tile(f"{metric}, {title}", score_text(found.value), interval_text(found), "sealed test set")
            )
    for title in shown:
        validation = score_text(result[title]["validation"])
        keys.append(tile(f"Validation, {title}", validation, "", f"trial {result[title]['trial']}"))
    return keys


def _charts(result: Mapping[str, Any], metric: str) -> list[dict[str, Any]]:
    drawn = history(result["trials"], metric=metric, higher_is_better=result["higher_is_better"])
    legend = [
        {"tone": "a", "name": "finished; the line is the best so far", "amount": ""},
        {"tone": "b", "name": "given up early", "amount": ""},
    ]
    return [{"title": "Trial by trial", "svg": drawn, "legend": legend, "note": ""}] if drawn else []


def _unweighed(weighed: int, names: Sequence[str]) -> str:
    """Why nothing is said of what mattered."""
    if not names or weighed < 2:
        return ""
    return (
        f"Which settings mattered can't be said: {counted(weighed, 'trial has', 'trials have')} a score, and "
        "they are too few or too much alike."
    )


def _importance(found: Mapping[str, float]) -> list[dict[str, Any]]:
    ordered = sorted(found.items(), key=lambda pair: -pair[1])[:LISTED]
    top = ordered[0][1] if ordered else 0.0
    return [
        {"name": setting_name(name), "value": share_text(value), "bar": bar(value, top=top, tone="a")}
        for name, value in ordered
    ]


def _parallel(result: Mapping[str, Any], names: Sequence[str], metric: str) -> dict[str, Any] | None:
    drawn = parallel_coordinates(result["trials"], names, metric=metric, winner=result["winner"]["trial"])
    if not drawn:
        return None
    note = "One line per finished trial, the winner's thick. A setting that a trial hasn't is skipped."
    return {"title": "Settings side by side", "svg": drawn, "legend": [], "note": note}


def _finalists(result: Mapping[str, Any], metric: str) -> dict[str, Any] | None:
    if not result["finalists"]:
        return None
    own = result["default"]["repeats"]
    rows = [["default", _scores(own), "", ""]]
    for one in result["finalists"]:
        ahead = measured(one["ahead"])
        rows.append(
            [
                f"trial {one['trial']}",
                _scores(one["repeats"]),
                "" if ahead is None else f"{score_text(ahead.value)} ({interval_text(ahead)})",
                "wins" if one["won"] else "",
            ]
        )
    heads = ["settings", f"{metric} by repeat", "ahead of the default", ""]
    return table("finalists and default", heads, rows)


def _trials(trials: Sequence[Mapping[str, Any]], names: Sequence[str], metric: str) -> dict[str, Any] | None:
    rows = []
    for one in trials:
        settings = ["default" if one["own"] and place == 0 else "" for place in range(len(names))]
        if one["settings"]:
            settings = [_cell(value_of(one, name)) for name in names]
        told = one["note"] or (f"same as {one['same_as']}" if one["same_as"] is not None else one["state"])
        rows.append(
            [str(one["trial"]), told, score_text(one["score"]), seconds_text(one["seconds"]), *settings]
        )
    shown = [setting_name(name) for name in names]
    return table("every trial", ["trial", "state", metric, "time", *shown], rows, right=(2, 3))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _scores(scores: Sequence[float]) -> str:
    return ", ".join(score_text(score) for score in scores)
