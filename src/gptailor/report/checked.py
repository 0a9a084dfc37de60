"""What `gptailor check` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptailor.report.terminal import bytes_text, duration_text

REASONS = {
    "unreadable": "could not be read as a row",
    "no_text": "no text",
    "no_label": "no label",
    "duplicate": "same text and label as an earlier row",
    "conflict": "same text, different labels",
    "rare_label": "label too rare to learn",
    "leak_exact": "stands in the held-out file",
    "leak_near": "stands nearly so in the held-out file",
    "too_long": "longer than the limit",
    "nothing_to_learn": "no token to learn",
}
BLOCKS = " ▁▂▃▄▅▆▇█"


class Rendered(Protocol):
    """A row as the model will read it."""

    @property
    def where(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def pieces(self) -> Sequence[tuple[str, bool]]: ...


def print_check(
    console: Console,
    summary: Mapping[str, Any],
    *,
    rendered: Sequence[Rendered],
    estimate: Mapping[str, Any] | None,
) -> None:
    """Rows and what is dropped, labels, lengths, three examples, and what a fit would cost."""
    console.print()
    console.print(Text("rows", style="bold"))
    for note in summary["notes"]:
        console.print(Text(f"  {note}", style="dim"))
    console.print(Text(f"  text: {summary['text']}   label: {summary['label']}"))
    _print_rows(console, summary)
    _print_labels(console, summary)
    _print_lengths(console, summary["lengths"])
    console.print(Text("\nwhat the model reads (the learned position in green)", style="bold"))
    for example in rendered:
        line = Text(f"  {example.where}  ", style="dim")
        pieces = (
            example.pieces
            if len(example.pieces) <= 40
            else [*example.pieces[:30], (" … ", False), *example.pieces[-3:]]
        )
        for piece, learned in pieces:
            line.append(piece.replace("\n", "⏎"), style="bold green" if learned else "default")
        line.append(f" → {example.label}", style="bold")
        console.print(line, soft_wrap=True)
    if estimate is not None:
        _print_estimate(console, estimate)


def _print_rows(console: Console, summary: Mapping[str, Any]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(justify="right")
    table.add_column()
    table.add_row(f"  {summary['read']:,}", "read")
    for part in ("train", "validation", "test"):
        table.add_row(f"{summary[part]:,}", part)
    for reason, count in sorted(summary["dropped"].items(), key=lambda item: -item[1]):
        table.add_row(f"{count:,}", Text(f"dropped: {REASONS.get(reason, reason)}", style="yellow"))
    if summary["repaired"]:
        table.add_row(
            f"{summary['repaired']:,}", "texts mended (mojibake, entities, control characters, blanks)"
        )
    if summary["suspects"]:
        table.add_row(
            f"{summary['suspects']:,}",
            "rows whose label may be wrong (a run lists them in data/suspects.csv)",
        )
    if summary["near_duplicate_groups"]:
        table.add_row(
            f"{summary['near_duplicate_groups']:,}", "groups of near-duplicates, each kept in one part"
        )
    console.print(table)


def _print_labels(console: Console, summary: Mapping[str, Any]) -> None:
    console.print(Text("\nlabels", style="bold"))
    labels = summary["labels"]
    most = max((counts["train"] for counts in labels.values()), default=1) or 1
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    for column in ("  label", "train", "validation", "test", ""):
        table.add_column(column, justify="left" if column in ("  label", "") else "right")
    shown = sorted(labels.items(), key=lambda item: -item[1]["train"])
    for name, counts in shown[:20]:
        bar = "█" * max(1, round(20 * counts["train"] / most))
        table.add_row(
            Text(f"  {name}"),
            *(f"{counts[part]:,}" for part in ("train", "validation", "test")),
            Text(bar, style="blue"),
        )
    console.print(table)
    if len(shown) > 20:
        console.print(f"  … and {len(shown) - 20} more")
    merges = ", ".join(f"{spelling!r} → {kept!r}" for spelling, kept in summary["label_merges"].items())
    if merges:
        console.print(Text(f"  merged spellings: {merges}", style="yellow"))
    suspects = ", ".join(f"{one!r} and {other!r}" for one, other in summary["label_suspicions"])
    if suspects:
        console.print(
            Text(f"  alike but kept apart (merge them yourself if they are one): {suspects}", style="yellow")
        )


def _print_lengths(console: Console, lengths: Mapping[str, Any]) -> None:
    counts = lengths["counts"]
    most = max(counts) or 1
    bars = "".join(BLOCKS[max(1 if count else 0, round(8 * count / most))] for count in counts)
    cut = (
        f"{lengths['cut_rows']:,} texts are longer and lose {lengths['cut_tokens']:,} tokens at their end"
        if lengths["cut_rows"]
        else "nothing is cut"
    )
    console.print(Text("\nlengths in tokens", style="bold"))
    console.print(f"  0 {bars} {lengths['longest']}")
    console.print(f"  the model reads up to {lengths['max_tokens']}: {cut}")


def _print_estimate(console: Console, estimate: Mapping[str, Any]) -> None:
    console.print(Text("\nwhat a fit would cost here (one real step, measured)", style="bold"))
    margin = estimate["memory_free_bytes"] - estimate["memory_bytes"]
    console.print(
        f"  {estimate['approach']}: about {duration_text(estimate['seconds'])} at most"
        + (
            f" for {estimate['steps']:,} steps of {estimate['batch_size']} rows"
            if "steps" in estimate
            else ""
        )
        + f"; about {bytes_text(estimate['memory_bytes'])} of memory, {bytes_text(max(0, margin))} to spare"
    )
