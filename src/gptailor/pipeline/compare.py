"""Finished runs side by side: a leaderboard, paired tests against the best, the settings that differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from gptailor.data.split import join_groups
from gptailor.errors import GptailorError, RunError, number_of
from gptailor.evaluate.metrics import as_json
from gptailor.evaluate.paired import corrected_for_all_pairs, difference_of, resampled_scores
from gptailor.evaluate.resampling import ROWS, Resampling
from gptailor.pipeline.finished import read_report
from gptailor.pipeline.modest import few_in_words
from gptailor.pipeline.scored_rows import ScoredRows, groups_in, read_scored_rows, road_of
from gptailor.recipe import APPROACHES, BESIDE, leaves, load_recipe
from gptailor.report.facts import (
    finite,
    inside,
    mapping,
    metric_of,
    primary_metric,
    score_text,
    scores,
    task_name,
)

CLEAR = 0.05  # a corrected p-value under this is a clear difference
RESAMPLES_PER_PAIR = 200  # no p-value is under 2 in all resamples, and each is corrected for all pairs
SAME_VALUE = 1e-4  # how far a score from the rows may be off the report's, in parts of it
ON_THE_TEST_SET = (
    "These are test scores. Choosing the best of several by them makes its own score a little too good; "
    "a file that no run has seen says how good it is (gptailor evaluate)."
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A run in the leaderboard."""

    folder: Path
    report: Mapping[str, Any]
    settings: Mapping[str, Any] | None  # by dotted key; None where recipe.yaml can't be read

    @property
    def name(self) -> str:
        return str(self.folder)


def compare_runs(folders: Sequence[Path], *, resampling: Resampling = ROWS) -> dict[str, Any]:
    """A leaderboard of finished runs, the best first, by the metric that decides.

    Each other run is tested against the best on the test rows, if both have the same ones, by a paired
    bootstrap; p-values are corrected by Holm's method for all pairs of runs.

    Raises:
        RunError: a run isn't finished, is named twice, or does another kind of job than the first.
    """
    entries = [_open(folder) for folder in folders]
    _refuse_unlike(entries)
    metric = _shared_metric(entries)
    higher = metric_of(metric).higher_is_better
    entries.sort(key=lambda entry: _value(entry, metric), reverse=higher)
    tests = _tests(entries, metric, resampling=resampling)
    return {
        "task": task_name(entries[0].report),
        "metric": metric,
        "higher_is_better": higher,
        "best": entries[0].name,
        "says": _says(entries, tests, metric),
        "runs": [_told(entry, metric, tests.get(entry.name)) for entry in entries],
        "settings": differing_settings(entries),
        "notes": [ON_THE_TEST_SET] if len(entries) > 1 else [],
    }


def differing_settings(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The settings in which the runs differ, each with its value by run; runs without a recipe stay out.

    What only some approaches have is told where it isn't as it comes.
    """
    known = {entry.name: entry.settings for entry in entries if entry.settings is not None}
    keys = dict.fromkeys(key for settings in known.values() for key in settings)
    found = []
    for key in keys:
        values = {name: settings.get(key) for name, settings in known.items()}
        there = [settings for settings in known.values() if key in settings]
        usual = len(there) < len(known) and all(_as_it_comes(key, settings) for settings in there)
        if not usual and any(value != next(iter(values.values())) for value in values.values()):
            found.append({"key": key, "values": values})
    return found


def _as_it_comes(key: str, settings: Mapping[str, Any]) -> bool:
    """Whether a setting of an approach has its default."""
    usual = APPROACHES[str(settings["approach.kind"])]().model_dump(mode="json")
    return bool(settings[key] == usual.get(key.removeprefix("approach.")))


def _open(folder: Path) -> Entry:
    report = read_report(folder)
    try:
        values = load_recipe(folder / "recipe.yaml").model_dump(mode="json", exclude=BESIDE)
    except GptailorError:
        return Entry(folder, report, None)
    return Entry(folder, report, dict(leaves(values)))


def _refuse_unlike(entries: Sequence[Entry]) -> None:
    twice = [
        name for name, times in Counter(entry.folder.resolve() for entry in entries).items() if times > 1
    ]
    if twice:
        raise RunError("is named twice.", where=str(twice[0]), fix="Name each run once.")
    first = entries[0]
    for entry in entries[1:]:
        if task_name(entry.report) != task_name(first.report):
            raise RunError(
                f"does {task_name(entry.report)}, and {first.name} {task_name(first.report)}: "
                "their scores mean different things.",
                where=entry.name,
                fix="Compare runs of one task.",
            )


def _shared_metric(entries: Sequence[Entry]) -> str:
    """The first run's deciding metric; where another run lacks it, the first score that all have."""
    kept = [{name for name, _, _ in scores(entry.report.get("test"))} for entry in entries]
    order = [primary_metric(entry.report) for entry in entries]
    order += [name for name, _, _ in scores(entries[0].report.get("test"))]
    found = next((name for name in order if all(name in own for own in kept)), None)
    if found is None:
        raise RunError(
            "has no test score in common with the others.",
            where=entries[-1].name,
            fix="Compare runs that were tested by the same scores.",
        )
    return found


def _value(entry: Entry, metric: str) -> float:
    return next(score.value for name, _, score in scores(entry.report.get("test")) if name == metric)


def _tests(entries: Sequence[Entry], metric: str, *, resampling: Resampling) -> dict[str, dict[str, Any]]:
    """By run: its difference to the best with interval and p-values, or in `says` why there is no test."""
    best, *others = entries
    road = road_of(best.report, metric)
    title = inside(metric_of(metric).title)
    if road is None:
        return {entry.name: {"says": f"no test: runs keep no {title} by row"} for entry in others}
    rows = {entry.name: read_scored_rows(entry.folder, road) for entry in entries}
    found: dict[str, dict[str, Any]] = {}
    same: dict[str, ScoredRows] = {}
    for entry in entries:
        own, first = rows[entry.name], rows[best.name]
        reason = _why_no_test(own, first, road.file, entry=entry, best=best)
        if reason:
            found[entry.name] = {"says": reason}
        elif own is not None:
            same[entry.name] = own
    first = rows[best.name]
    if first is not None and len(same) > 1:
        order = sorted(first.keys, key=repr)  # not by which run is the best, so that intervals stay
        lines = [own.in_order_of(order) for own in same.values()]
        sums, score = road.sums(lines, [own.form for own in same.values()], metric)
        enough = replace(
            resampling,
            resamples=max(resampling.resamples, RESAMPLES_PER_PAIR * math.comb(len(same), 2)),
            groups=reduce(join_groups, map(groups_in, lines)),  # what any of the runs drew together
        )
        rows_of = dict(zip(same, sums, strict=True))
        drawn = resampled_scores(rows_of, score, resampling=enough)
        corrected = corrected_for_all_pairs(drawn)
        for name in (name for name in drawn if name != best.name):
            gap, p = difference_of(drawn[name], drawn[best.name])
            holms = corrected[frozenset((name, best.name))]
            telling = (rows_of[name] != rows_of[best.name]).any(axis=1)
            decided = holms < CLEAR
            few = few_in_words(telling, enough, decided=decided)
            clear = decided and not few
            drift = _drift(entries, name, metric, float(drawn[name][0]))
            says = f"{_signed(gap.value)}{drift}, {few}"
            if not few:
                word = "clearly different" if clear else "no clear difference"
                between = f"95 % interval {score_text(gap.low)} to {score_text(gap.high)}"
                says = f"{word}: {_signed(gap.value)} ({between}, p = {_p_text(holms)}){drift}"
            found[name] = {
                "difference": as_json(gap),
                "p": round(p, 6),
                "p_holm": round(holms, 6),
                "clear": clear,
                "rows": len(first.keys),
                "says": says + enough.caveat(len(telling)),
            }
    found.pop(best.name, None)
    return found


def _why_no_test(
    own: ScoredRows | None, first: ScoredRows | None, file: str, *, entry: Entry, best: Entry
) -> str:
    """Empty where the rows are the same."""
    if own is None or first is None:
        lacking = entry if own is None else best
        return f"no test: {lacking.name} has no {file}"
    mine, theirs = set(own.keys), set(first.keys)
    if mine == theirs:
        return ""
    shared = len(mine & theirs)
    return (
        f"no test: other test rows ({shared:,} of {number_of(len(mine), 'row')} stand in the best run's "
        f"{len(theirs):,}); give all runs the same --test file, or the same file, seed and --fix"
    )


def _drift(entries: Sequence[Entry], name: str, metric: str, value: float) -> str:
    """A word where the score of the rows in the file isn't the report's: several references, a sample."""
    told = next(_value(entry, metric) for entry in entries if entry.name == name)
    if abs(told - value) <= SAME_VALUE * max(1.0, abs(told)):
        return ""
    return f"; by the one reference in predictions.csv its score is {score_text(value)}"


def _told(entry: Entry, metric: str, test: Mapping[str, Any] | None) -> dict[str, Any]:
    """A run as plain values, its deciding score first."""
    report = entry.report
    all_scores = {name: score for name, _, score in scores(report.get("test"))}
    order = dict.fromkeys([metric, *all_scores])
    return {
        "run": entry.name,
        "approach": report.get("approach"),
        "base": report.get("base"),
        "seed": report.get("seed"),
        "training_rows": finite(mapping(report.get("data")).get("train")),
        "training_seconds": finite(mapping(report.get("training")).get("seconds")),
        "scores": {
            name: {"value": own.value, "low": own.low, "high": own.high}
            for name in order
            if (own := all_scores[name])
        },
        "against_best": dict(test) if test is not None else None,
    }


def _says(entries: Sequence[Entry], tests: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    """One sentence on who is ahead."""
    best, title = entries[0], inside(metric_of(metric).title)
    ahead = f"{best.name} has the best {title}, {score_text(_value(best, metric))}"
    tested = [test for test in tests.values() if "clear" in test]
    if len(entries) == 1:
        return f"{ahead}: there is nothing to compare it with."
    untested = len(tests) - len(tested)
    aside = f" {number_of(untested, 'run')} could not be tested against it." if untested else ""
    if not tested:
        end = "highest" if metric_of(metric).higher_is_better else "lowest"
        return (
            f"{best.name} has the {end} {title}, {score_text(_value(best, metric))}, but no run could be "
            "tested against it on the same rows: none is known to be better."
        )
    unclear = sum(not test["clear"] for test in tested)
    if not unclear:
        beaten = "the other" if len(tested) == 1 else f"all {len(tested)} others"
        return f"{ahead}, clearly ahead of {beaten}.{aside}"
    others = "the other is" if len(tested) == 1 else f"{unclear} of {len(tested)} others are"
    return f"{ahead}, but {others} not clearly worse: prefer what is cheaper or simpler among these.{aside}"


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{score_text(value)}"


def _p_text(value: float) -> str:
    return "under 0.001" if value < 0.001 else f"{value:.3f}"
