"""What people read while they wait, and when it is done. Everything goes to standard error."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from gptailor.report.facts import (
    bytes_text,
    count_text,
    counted,
    finite,
    inside,
    interval_text,
    mapping,
    measured,
    metric_of,
    primary_metric,
    rows_of,
    score_text,
    seconds_text,
    share_text,
    slices_by_column,
    task_name,
    task_of,
    tested_on,
    visible,
    worst_slice_text,
)
from gptailor.report.words import BASELINES, METRICS, Baseline, Task

QUIET_SECONDS = 15.0  # between lines, where there is no terminal to draw a bar on


class Narrator:
    """Tells how a run goes: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self._progress: Progress | None = None
        self._bar: Any = None
        self._total = 0
        self._seen = 0
        self._began = 0.0
        self._last_line = 0.0

    def say(self, line: str) -> None:
        """A step of the road, in words."""
        self.close()
        if not self.quiet:
            # Unbroken lines: a path that wraps can't be copied.
            self.console.print(Text("· ", style="dim") + Text(line), soft_wrap=True)

    def show(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, or the plan of a training run."""
        if self.quiet:
            return
        if line["kind"] == "plan":
            self._open(line)
        elif line["kind"] == "step":
            self._step(line)
        elif line["kind"] == "validation":
            known = [key for key in dict.fromkeys(("loss", *METRICS)) if key in line]
            told = [f"{inside(metric_of(key).title)} {score_text(line[key])}" for key in known]
            target = self._progress.console if self._progress else self.console
            target.print(Text(f"  step {line['step']:,}: validation {', '.join(told)}", style="dim"))

    def close(self) -> None:
        """Takes the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _open(self, plan: Mapping[str, Any]) -> None:
        self._total, self._began, self._seen = int(plan["steps"]), time.monotonic(), 0
        if not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
        )
        self._bar = self._progress.add_task(
            "training", total=self._total, completed=int(plan["first"]), loss="–", speed=""
        )
        self._progress.start()

    def _step(self, line: Mapping[str, Any]) -> None:
        self._seen += 1
        speed = f"{line['num_tokens'] / max(line['seconds'], 1e-9):,.0f} tokens/s"
        if self._progress is not None:
            self._progress.update(self._bar, completed=line["step"], loss=f"{line['loss']:.3f}", speed=speed)
            return
        now = time.monotonic()
        if now - self._last_line >= QUIET_SECONDS:
            self._last_line = now
            left = (now - self._began) / self._seen * (self._total - line["step"])
            self.console.print(
                f"  step {line['step']:,} of {self._total:,}: loss {line['loss']:.3f}, {speed}, "
                f"{seconds_text(left)} left"
            )


def score_with_interval(score: Any) -> str:
    """`0.843 (0.812 to 0.871)`."""
    found = measured(score)
    if found is None:
        return "–"
    between = interval_text(found)
    return score_text(found.value) + (f" ({between})" if between else "")


def print_summary(console: Console, report: Mapping[str, Any], *, folder: str) -> None:
    """The numbers of a finished run, the verdict, and where the rest lies."""
    whence = "shape of" if report.get("approach") == "scratch" else "base"
    told = [task_name(report), f"{whence} {report.get('base')}", f"approach {report.get('approach')}"]
    console.print()
    console.print(
        Text(folder, style="bold") + Text(f"  {', '.join(told)}, seed {report.get('seed')}"), soft_wrap=True
    )
    for line in _data_lines(mapping(report.get("data")), task_of(report)):
        console.print(Text(line))
    console.print(_score_table(report))
    if overfitting := mapping(report.get("training")).get("overfitting"):
        console.print(Text(str(overfitting), style="dim"))
    sure = mapping(mapping(report.get("test")).get("at_threshold"))
    threshold, covered = finite(sure.get("threshold")), measured(sure.get("coverage"))
    right = measured(sure.get("accuracy"))
    if threshold and covered and right:  # at 0 all answers are sure, and the table has told that
        least, share, exact = map(share_text, (threshold, covered.value, right.value))
        answers = f"Answers that are at least {least} sure: {share} of the rows, {exact} of them right."
        console.print(Text(answers, style="dim"))
    if mapping(report.get("data")).get("taught_before"):
        console.print(Text(tested_on(report), style="bold yellow"))
    print_slices(console, report)
    if says := mapping(report.get("curve")).get("says"):
        console.print(Text(str(says), style="dim"))
    verdict = mapping(report.get("verdict"))
    if verdict.get("says"):
        good = verdict.get("worth_it") is True
        console.print(Text(str(verdict["says"]), style="bold green" if good else "bold yellow"))


def next_command(report: Mapping[str, Any], *, folder: str) -> str | None:
    """What to run next: what a cheaper answer beats isn't for serving, but more rows may change that."""
    if mapping(report.get("verdict")).get("worth_it") is not False:
        return shlex.join(["gptailor", "serve", folder])
    has_labels = report.get("task") == "classification" and report.get("answer") != "score"
    return shlex.join(["gptailor", "curve", folder]) if has_labels else None


def print_slices(console: Console, report: Mapping[str, Any]) -> None:
    """Each column that was asked for, the worst slice, and a warning for each much worse than the rest."""
    slices = mapping(report.get("slices"))
    for line in slices_by_column(slices):
        console.print(Text(visible(line), style="dim"), soft_wrap=True)
    if told := worst_slice_text(slices):
        console.print(Text(told, style="dim"), soft_wrap=True)
    for warning in rows_of(slices.get("warnings")):
        console.print(Text("Warning: ", style="bold yellow") + Text(visible(str(warning))), soft_wrap=True)


def _data_lines(data: Mapping[str, Any], task: Task) -> Iterator[str]:
    """Where the rows or documents went, and what they hold where it was counted."""
    parts = {part: finite(data.get(part)) or 0.0 for part in ("train", "validation", "test")}
    lost = {str(why): count for why, raw in mapping(data.get("dropped")).items() if (count := finite(raw))}
    reasons = ", ".join(f"{why} {count:,.0f}" for why, count in lost.items())
    dropped = f"{sum(lost.values()):,.0f} dropped" + (f" ({reasons})" if reasons else "")
    dealt = " + ".join(f"{count:,.0f} {part}" for part, count in parts.items())
    told = f" = {dealt} + {dropped}"
    if data.get("divided") is True:
        told = f", each divided into parts; {dropped}"
    yield f"{counted(data.get('read'), task.one, task.many)} read{told}"
    sizes = mapping(data.get("bytes"))
    held = [f"{bytes_text(size)} {part}" for part in parts if (size := finite(sizes.get(part)))]
    if held:
        trained = finite(mapping(data.get("tokens")).get("trained"))
        yield " + ".join(held) + (f"; trained on {counted(trained, 'token', 'tokens')}" if trained else "")


def _score_table(report: Mapping[str, Any]) -> Table:
    """The baselines and, last, the model, on the task's first two scores."""
    task, test = task_of(report), mapping(report.get("test"))
    keys = list(dict.fromkeys([primary_metric(report), *task.keys, *task.metrics]))[:2]
    table = Table(box=None, pad_edge=False, header_style="dim")
    order = "" if metric_of(keys[0]).higher_is_better else " (less is better)"
    table.add_column(f"on the sealed test set{order}")
    for key, note in zip(keys, (" (95 % interval)", ""), strict=True):
        table.add_column(inside(metric_of(key).title) + note)
    for name, raw in mapping(report.get("baselines")).items():
        found = mapping(raw)
        label = Text(BASELINES.get(name, Baseline(str(name), str(name))).short)
        if "skipped" in found:
            table.add_row(label, Text(f"not run: {found['skipped']}", style="dim"), "")
            continue
        rows = found.get("rows")
        asked = f"  on {rows} rows" if rows and rows != test.get("rows") else ""
        first, *others = (score_with_interval(found.get(key)) for key in keys)
        table.add_row(label, first + asked, *others)
    title = Text(f"this model ({report.get('approach')})", style="bold")
    table.add_row(title, *(Text(score_with_interval(test.get(key)), style="bold") for key in keys))
    return table


def print_curve(console: Console, curve: Mapping[str, Any]) -> None:
    """The measured points, the forecasts with their intervals, and what they say."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("training rows", inside(metric_of(str(curve.get("metric"))).title), "95 % interval"):
        table.add_column(head)
    for point in map(mapping, rows_of(curve.get("points"))):
        table.add_row(count_text(point.get("rows")), score_text(point.get("score")), Text("measured", "dim"))
    for one in map(mapping, rows_of(curve.get("forecasts"))):
        score = measured(one.get("score"))
        table.add_row(
            *(
                Text(cell, "bold")
                for cell in (
                    count_text(one.get("rows")),
                    score_text(score.value if score else None),
                    interval_text(score),
                )
            )
        )
    console.print(table)
    console.print(Text(f"on {counted(curve.get('held_out'), 'held-out row', 'held-out rows')}", style="dim"))
    console.print(Text(str(curve.get("says", "")), style="bold"))


def print_table(console: Console, title: str, rows: Sequence[tuple[str, object]]) -> None:
    """Two columns under a title."""
    console.print(Text(title, style="bold"))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows:
        table.add_row(Text(name), Text(str(value)))
    console.print(table)
