"""What a search leaves: tune.json, trials.csv and the page tune.html."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptailor.data.ledger import write_csv_safely
from gptailor.errors import RunError, number_of
from gptailor.launch import write_atomically
from gptailor.pipeline.finished import FOUND
from gptailor.pipeline.rehearse import Gap
from gptailor.report.facts import inside, metric_of
from gptailor.report.tune_page import render_tune
from gptailor.search.finalists import Final, Finalist, nothing_else
from gptailor.search.space import in_words
from gptailor.search.study import Tried
from gptailor.search.trials import Search

RESULT, PAGE, TABLE = FOUND, "tune.html", "trials.csv"  # beside the run


def result_of(
    search: Search, trials: Sequence[Tried], final: Final, report: Mapping[str, Any], *, seconds: float
) -> dict[str, Any]:
    """Everything that is known of the search, as JSON."""
    told, winner = search.rehearsal.told, final.winner
    metric = search.rehearsal.metric
    test = _test(report, metric, won=winner is not None)
    settings = {} if winner is None else search.taken(winner.trial.values)
    own = next(one for one in trials if one.own and one.state == "complete")
    assert own.score is not None
    return {
        "version": 1,
        "task": report.get("task"),
        "metric": metric,
        "higher_is_better": told(1.0) > 0,
        "data": search.recipe.data.train,
        "seconds": round(seconds, 1),
        "trials": [_row(search, one) for one in trials if one.state in ("complete", "pruned", "failed")],
        "judged_on": search.rehearsal.judged_on,
        "importance": {name: round(value, 4) for name, value in search.study.importance(trials).items()},
        "default": {"trial": own.number, "validation": told(own.score), "repeats": final.own_scores},
        "finalists": [_finalist(search, one, winner) for one in final.finalists],
        "winner": {
            "trial": own.number if winner is None else winner.trial.number,
            "settings": settings,
            "validation": told(own.score if winner is None else winner.trial.score or 0.0),
        },
        "test": test,
        "says": says(
            final,
            metric,
            test,
            settings,
            judged_on=search.rehearsal.judged_on,
            alone=nothing_else(trials),
            higher_is_better=told(1.0) > 0,
        ),
    }


def says(
    final: Final,
    metric: str,
    test: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    *,
    judged_on: str,
    alone: bool = False,
    higher_is_better: bool = True,
) -> str:
    """Whether it was worth it, in one or two sentences.

    `settings` are the winner's, as its recipe has; `judged_on` says what judged the repeats, and `alone` that
    nothing but the recipe's own was tried.
    """
    name = inside(metric_of(metric).title)
    if final.winner is None:
        compared = (one for one in final.finalists if one.gap is not None)
        # Who went on furthest: one repeat by itself says little.
        best = max(compared, key=lambda finalist: (len(finalist.scores), finalist.lead), default=None)
        closest = "nothing else was tried" if alone else "no trial reached what they reached"
        if best is not None and best.gap is not None:
            closest = f"fitted again {judged_on}, the best, trial {best.trial.number}, was "
            closest += _apart(best.gap, name)
        return f"The recipe's own settings stay: {closest}."
    gap = final.winner.gap
    assert gap is not None  # it won
    line = (
        f"Trial {final.winner.trial.number} ({in_words(settings)}) wins: "
        f"fitted {number_of(len(final.winner.scores), 'time')} more {judged_on}, it was {_apart(gap, name)}."
    )
    difference = (test or {}).get("difference")
    if difference is not None:
        ends = (difference["low"], difference["high"])
        sign = 1 if higher_is_better else -1
        between = ""
        if None not in ends:  # of a handful of rows there is no interval
            low, high = sorted(sign * end for end in ends)
            between = f"{low:+.4f} to {high:+.4f}; "
        line += (
            f" On the sealed test set, opened once: {sign * difference['value']:+.4f} "
            f"({between}above zero is better)."
        )
    return line


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Writes the three files; tune.json last, because a folder with it is finished."""
    header = ["trial", "state", "score", "seconds", "validations", "same_as", "note"]
    names = list(dict.fromkeys(name for row in result["trials"] for name in row["settings"]))
    rows = [
        [row[key] if row[key] is not None else "" for key in header]
        + [row["settings"].get(name, "") for name in names]
        for row in result["trials"]
    ]
    write_csv_safely(folder / TABLE, [*header, *names], [[str(cell) for cell in row] for row in rows])
    write_atomically(folder / PAGE, render_tune(result))
    write_atomically(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False))


def read_result(folder: Path) -> dict[str, Any]:
    """tune.json.

    Raises:
        RunError: it is damaged.
    """
    path = folder / RESULT
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"is damaged: {error}.", where=str(path), fix="Tune again with --overwrite.") from None
    return result


def _row(search: Search, one: Tried) -> dict[str, Any]:
    told = search.rehearsal.told
    return {
        "trial": one.number,
        "state": one.state,
        "own": one.own,
        "settings": search.taken(one.values),
        "score": None if one.score is None else round(told(one.score), 6),
        "seconds": round(one.seconds, 2),
        "validations": len(one.looks),
        "curve": {str(look): round(told(score), 6) for look, score in one.looks.items()},
        "same_as": one.same_as,
        "note": one.note,
    }


def _finalist(search: Search, one: Finalist, winner: Finalist | None) -> dict[str, Any]:
    gap = one.gap
    return {
        "trial": one.trial.number,
        "settings": search.taken(one.trial.values),
        "repeats": one.scores,
        "ahead": None if gap is None else _as_json(gap),
        "won": one is winner,
    }


def _as_json(gap: Gap) -> dict[str, float | None]:
    """A gap; an interval that a single repeat can't have is null."""
    known = math.isfinite(gap.error)
    return {"value": gap.value, "low": gap.low if known else None, "high": gap.high if known else None}


def _test(report: Mapping[str, Any], metric: str, *, won: bool) -> dict[str, Any] | None:
    """The winner's and the default's score on the sealed test rows, where both answered them."""
    ours, theirs = report["test"].get(metric), report.get("default")
    if ours is None:
        return None
    if not won:
        return {"winner": ours, "default": ours, "difference": {"value": 0.0, "low": 0.0, "high": 0.0}}
    if theirs is None:
        return {"winner": ours, "default": None, "difference": None}
    return {"winner": ours, "default": theirs[metric], "difference": theirs["difference"]}


def _apart(gap: Gap, metric: str) -> str:
    ahead = "ahead" if gap.value >= 0 else "behind"
    interval = (
        f"95 % interval {gap.low:+.4f} to {gap.high:+.4f}" if math.isfinite(gap.error) else "one repeat"
    )
    return f"{abs(gap.value):.4f} {metric} {ahead} ({interval})"
