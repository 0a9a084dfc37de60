"""What `gptailor check` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptailor.report.facts import (
    bytes_text,
    count_text,
    finite,
    longest_sequence,
    mapping,
    reason_text,
    rows_of,
    score_text,
    seconds_text,
    task_of,
    visible,
)
from gptailor.report.words import Task
from gptailor.types import PARTS

BLOCKS = " ▁▂▃▄▅▆▇█"
FAULTS = 8  # rows that are told with their fault
SHADES = ("bold green", "cyan")  # of learned tokens, in turn


class Rendered(Protocol):
    """A row or the beginning of a document as the model will read it; a row's has a `label`."""

    @property
    def where(self) -> str: ...
    @property
    def pieces(self) -> Sequence[tuple[str, bool]]: ...


def print_check(console: Console, summary: Mapping[str, Any], *, rendered: Sequence[Rendered]) -> None:
    """Rows or documents and what is dropped, labels, lengths, three examples."""
    task = _task(summary)
    console.print()
    console.print(Text(task.many, style="bold"))
    for note in rows_of(summary.get("notes")):
        console.print(Text(f"  {note}", style="dim"))
    columns = [f"{role}: {summary[role]}" for role in ("text", "label") if summary.get(role)]
    if columns:
        console.print(Text(f"  {'   '.join(columns)}"))
    _print_rows(console, summary, task)
    _print_faults(console, summary)
    _print_labels(console, summary)
    _print_lengths(console, summary, task)
    _print_examples(console, rendered, task)


def _task(summary: Mapping[str, Any]) -> Task:
    given = summary.get("task") or ("classification" if "labels" in summary else "language")
    return task_of({"task": given, "answer": summary.get("answer")})


def _print_rows(console: Console, summary: Mapping[str, Any], task: Task) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(justify="right")
    table.add_column()
    table.add_row(f"  {count_text(summary.get('read'))}", "read")
    if summary.get("divided") is True:
        table.add_row("", "so few that each is divided: a part counts those with text in it")
    for part in PARTS:
        table.add_row(count_text(summary.get(part)), part)
    dropped = {why: count for why, raw in mapping(summary.get("dropped")).items() if (count := finite(raw))}
    for reason, count in sorted(dropped.items(), key=lambda item: -item[1]):
        table.add_row(count_text(count), Text(f"dropped: {reason_text(reason, task)}", style="yellow"))
    for amount, what in (*_text_amounts(summary), *_found_amounts(summary)):
        table.add_row(amount, what)
    console.print(table)


def _print_faults(console: Console, summary: Mapping[str, Any]) -> None:
    """The first rows that can't be used, each with its fault, and how many more there are."""
    faults = rows_of(summary.get("faults"))
    for fault in faults[:FAULTS]:
        console.print(Text(f"  {visible(str(fault))}", style="yellow"), soft_wrap=True)
    if len(faults) > FAULTS:
        more = f"  … and {len(faults) - FAULTS:,} more (--json tells all)"
        console.print(Text(more, style="yellow"))


def _text_amounts(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Bytes, tokens and blocks, where they were counted: as one number or for each part."""
    block = longest_sequence(summary)
    blocks = f"blocks of {count_text(block)} tokens" if block else "blocks"
    for key, name in (
        ("bytes", "bytes of text"),
        ("tokens", "tokens"),
        ("learned_tokens", "learned tokens"),
        ("blocks", blocks),
    ):
        by_part = mapping(summary.get(key))
        counts = {part: count for part in PARTS if (count := finite(by_part.get(part))) is not None}
        whole = sum(counts.values()) if counts else finite(summary.get(key))
        if whole is not None:
            told = ", ".join(f"{count_text(count)} {part}" for part, count in counts.items())
            yield count_text(whole), name + (f": {told}" if told else "")
    if (held := finite(summary.get("bytes_per_token"))) is not None:
        yield score_text(held), "bytes in a token: the more, the better the tokenizer fits the text"


def _found_amounts(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, what in (
        ("repaired", "texts mended (mojibake, entities, control characters, blanks)"),
        ("suspects", "rows whose label others contradict (`gptailor suspects` asks models, too)"),
        ("near_duplicate_groups", "groups of near-duplicates, each kept in one part"),
        ("without_room", "conversations that leave no room for an answer: learned from, never asked"),
    ):
        if count := finite(summary.get(key)):
            yield count_text(count), what


def _print_labels(console: Console, summary: Mapping[str, Any]) -> None:
    labels = mapping(summary.get("labels"))
    if not labels:
        return
    console.print(Text("\nlabels", style="bold"))
    most = max((counts["train"] for counts in labels.values()), default=1) or 1
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    for column in ("  label", "train", "validation", "test", ""):
        table.add_column(column, justify="left" if column in ("  label", "") else "right")
    shown = sorted(labels.items(), key=lambda item: -item[1]["train"])
    for name, counts in shown[:20]:
        bar = "█" * max(1, round(20 * counts["train"] / most))
        table.add_row(
            Text(f"  {name}"),
            *(f"{counts[part]:,}" for part in PARTS),
            Text(bar, style="blue"),
        )
    console.print(table)
    if len(shown) > 20:
        console.print(f"  … and {len(shown) - 20} more")
    merged = mapping(summary.get("label_merges"))
    merges = ", ".join(f"{spelling!r} → {kept!r}" for spelling, kept in merged.items())
    if merges:
        console.print(Text(f"  merged spellings: {merges}", style="yellow"))
    suspects = ", ".join(f"{one!r} and {other!r}" for one, other in rows_of(summary.get("label_suspicions")))
    if suspects:
        console.print(
            Text(f"  alike but kept apart (merge them yourself if they are one): {suspects}", style="yellow")
        )


def _print_lengths(console: Console, summary: Mapping[str, Any], task: Task) -> None:
    lengths = mapping(summary.get("lengths"))
    counts = [finite(count) or 0.0 for count in rows_of(lengths.get("counts"))]
    if not counts:
        return
    most = max(counts) or 1
    bars = "".join(BLOCKS[max(1 if count else 0, round(8 * count / most))] for count in counts)
    cut = "nothing is cut"
    if finite(lengths.get("cut_rows")):
        longer, lost = count_text(lengths["cut_rows"]), count_text(lengths.get("cut_tokens"))
        which = [str(place) for place in rows_of(summary.get("cut"))]
        told = f" ({', '.join(which[:3])}{', …' if len(which) > 3 else ''})" if which else ""
        verbs = ("text is", "loses") if longer == "1" else ("texts are", "lose")
        cut = f"{longer} {verbs[0]} longer and {verbs[1]} {lost} tokens{told}"
    limit = longest_sequence(summary)
    console.print(Text("\nlengths in tokens", style="bold"))
    console.print(f"  0 {bars} {count_text(lengths.get('longest'))}")
    console.print(f"  {task.window.replace('{limit}', count_text(limit))}: {cut}" if limit else f"  {cut}")


def _print_examples(console: Console, rendered: Sequence[Rendered], task: Task) -> None:
    if rendered:
        console.print(Text(f"\nwhat the model reads ({task.learned})", style="bold"))
    for example in rendered:
        line = Text().append(f"  {example.where}  ", style="dim")
        pieces = list(example.pieces)
        pieces = _shortened(pieces)
        learned_so_far = 0
        for piece, learned in pieces:
            shade = SHADES[learned_so_far % len(SHADES)] if learned else "default"
            line.append(visible(piece).replace("\n", "⏎"), style=shade)
            learned_so_far += learned
        if label := getattr(example, "label", ""):
            line.append(f" → {label}", style="bold")
        console.print(line, soft_wrap=True)


def _shortened(pieces: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Both ends of a long example, and where learning begins."""
    if len(pieces) <= 60:
        return pieces
    first = next((place for place, (_, learned) in enumerate(pieces) if learned), 0)
    gap = (" … ", False)
    begin = [gap, *pieces[first - 8 : first + 20]] if first > 30 else pieces[20:40]
    return [*pieces[:20], *begin, *([gap, *pieces[-6:]] if first + 26 < len(pieces) else [])]


def print_estimate(console: Console, summary: Mapping[str, Any], estimate: Mapping[str, Any]) -> None:
    """What a fit would cost."""
    task = _task(summary)
    console.print(Text("\nwhat a fit would cost here (one real step, measured)", style="bold"))
    told = []
    if (seconds := finite(estimate.get("seconds"))) is not None:
        told.append(f"about {seconds_text(seconds)} at most")
    if (steps := finite(estimate.get("steps"))) and told:
        several = finite(estimate.get("trainings")) or 1
        times = "" if several == 1 else f"{several:.0f} trainings of "
        told[0] += f" for {times}{steps:,.0f} steps of {estimate.get('batch_size')} {task.batch_of}"
    memory, spare = finite(estimate.get("memory_bytes")), finite(estimate.get("memory_spare_bytes"))
    if memory is not None and spare is not None:
        told.append(f"about {bytes_text(memory)} of memory, {bytes_text(spare)} to spare")
    console.print(f"  {estimate.get('approach')}: {'; '.join(told)}")
