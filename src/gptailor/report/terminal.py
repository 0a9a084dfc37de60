"""What people read while they wait, and when it is done. Everything goes to standard error."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

RUNG_NAMES = {
    "majority": "majority class",
    "tfidf": "TF-IDF + logistic regression",
    "frozen": "frozen features",
    "zero_shot": "zero-shot",
    "few_shot": "few-shot",
}
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
            text = (
                f"step {line['step']:,}: validation loss {line['loss']:.3f}, macro-F1 {line['macro_f1']:.3f}"
            )
            target = self._progress.console if self._progress else self.console
            target.print(Text("  " + text, style="dim"))

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
                f"{duration_text(left)} left"
            )


def duration_text(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def bytes_text(count: float) -> str:
    """`3.2 MB`, `1.4 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def score_text(score: Mapping[str, float] | None) -> str:
    """`0.843 (0.812 to 0.871)`."""
    if not score:
        return "–"
    return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


def print_summary(console: Console, report: Mapping[str, Any], *, folder: str) -> None:
    """The numbers of a finished run, the verdict, and where the rest lies."""
    data = report["data"]
    dropped = sum(data["dropped"].values())
    console.print()
    console.print(
        Text(folder, style="bold")
        + Text(
            f"  {report['task']}, base {report['base']}, approach {report['approach']}, seed {report['seed']}"
        ),
        soft_wrap=True,
    )
    console.print(
        f"{data['read']:,} rows read = {data['train']:,} train + {data['validation']:,} validation + "
        f"{data['test']:,} test + {dropped:,} dropped"
        + (
            f" ({', '.join(f'{reason} {count}' for reason, count in data['dropped'].items())})"
            if dropped
            else ""
        )
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("on the sealed test set")
    table.add_column("macro-F1 (95 % interval)")
    table.add_column("accuracy")
    for name, scores in report["baselines"].items():
        label = RUNG_NAMES.get(name, name)
        if "skipped" in scores:
            table.add_row(label, Text(scores["skipped"], style="dim"), "")
            continue
        rows = "" if scores["rows"] == report["test"]["rows"] else f"  on {scores['rows']} rows"
        table.add_row(label, score_text(scores["macro_f1"]) + rows, score_text(scores["accuracy"]))
    table.add_row(
        Text(f"this model ({report['approach']})", style="bold"),
        Text(score_text(report["test"]["macro_f1"]), style="bold"),
        Text(score_text(report["test"]["accuracy"]), style="bold"),
    )
    console.print(table)
    overfitting = report["training"].get("overfitting")
    if overfitting:
        console.print(Text(overfitting, style="dim"))
    sure = report["test"].get("at_threshold") or {}
    if sure.get("threshold") is not None and sure.get("accuracy"):
        console.print(
            Text(
                f"Answers that are at least {sure['threshold']:.0%} sure: {sure['coverage']['value']:.0%} of "
                f"the rows, {sure['accuracy']['value']:.0%} of them right.",
                style="dim",
            )
        )
    verdict = report["verdict"]
    if verdict is not None:
        console.print(Text(verdict["says"], style="bold green" if verdict["worth_it"] else "bold yellow"))


def print_table(console: Console, title: str, rows: Sequence[tuple[str, object]]) -> None:
    """Two columns under a title."""
    console.print(Text(title, style="bold"))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows:
        table.add_row(name, Text(str(value)))
    console.print(table)
