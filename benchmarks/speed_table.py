"""From the runs of speed.py to rates, ratios, bars and texts. Nothing here touches a model."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

WARM_UP = 3  # steps left out on both sides
PAIRS = 5  # fewer settle nothing
LOSSES_WITHIN = 0.02  # after the same number of steps
FIRST_STEPS_WITHIN = 1e-3  # of the check: fp32, no dropout, same rows in the same order

Run = Mapping[str, Any]
Measure = Literal["speed", "memory", "share"]


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of some pairs."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One work at one dropout against one setting of the peer; `share` has no peer."""

    work: str
    dropout: float
    against: str
    pairs: int
    speed: Spread | None = None  # our rate over theirs
    memory: Spread | None = None  # our peak over theirs
    share: Spread | None = None  # of the machine's matrix-product rate
    loss_difference: float | None = None  # relative, after the same rows
    ours: dict[str, float] = field(default_factory=dict)
    theirs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bar:
    """What a line must reach and what it aims for; of memory less is better."""

    work: str
    against: str
    measure: Measure
    must: float
    aim: float | None = None

    @property
    def says(self) -> str:
        unit = "" if self.measure == "share" else " x"
        told = [f"{value:.0%}" if self.measure == "share" else f"{value:g}{unit}" for value in self.values]
        return " / ".join(told)

    @property
    def values(self) -> list[float]:
        return [self.must] if self.aim is None else [self.must, self.aim]


BARS = (
    Bar("classification full", "usual", "speed", 5, 6),
    Bar("classification full", "best", "speed", 2.5, 3),
    Bar("classification lora", "usual", "speed", 5, 6),
    Bar("classification lora", "best", "speed", 2.5, 3),
    Bar("classification frozen", "usual", "speed", 25, 40),
    Bar("classification frozen", "best", "speed", 10, 15),
    Bar("classification frozen", "features", "speed", 2),
    Bar("completion full", "usual", "speed", 7, 8),
    Bar("completion full", "best", "speed", 4, 5),
    *(
        Bar(work, against, "memory", must, aim)
        for work in ("classification full", "completion full")
        for against, must, aim in (("usual", 0.7, 0.6), ("best", 0.8, 0.7))
    ),
    Bar("share of the machine", "machine", "share", 0.35, 0.5),
)


# Arithmetic.


def rate(run: Run, *, epochs: int = 1) -> float:
    """Real tokens a second after the warm-up, compiling left out; of `epochs` passes only one counts."""
    steps = run["steps"][WARM_UP:] or run["steps"]
    seconds = sum(step["seconds"] - step["compile_seconds"] for step in steps)
    return float(sum(step["tokens"] for step in steps) / seconds / epochs)


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def training_operations(layers: int, width: int) -> int:
    """Of a token through the blocks' matrices, forward and backward: six per weight (two per multiply-add,
    three products). Attention's own products and the embeddings are not counted.
    """
    return 6 * 12 * layers * width**2


def needed_operations(layers: int, width: int) -> int:
    """Those that a classifier needs: of the last block's output only one token a row is ever looked at."""
    return training_operations(layers, width) - 6 * 9 * width**2


def make_line(
    work: str, dropout: float, against: str, rounds: Sequence[Mapping[str, Run]], *, epochs: int = 1
) -> Line:
    """Ratios within each round, where the two ran one after the other; the rest are medians."""
    ours, theirs = [one["ours"] for one in rounds], [one[against] for one in rounds]
    pairs = list(zip(ours, theirs, strict=True))
    losses = [(one["validation_loss"], other["validation_loss"]) for one, other in pairs]
    compared = [abs(one / other - 1) for one, other in losses if one is not None and other is not None]
    return Line(
        work,
        dropout,
        against,
        len(rounds),
        speed=spread([rate(one) / rate(other, epochs=epochs) for one, other in pairs]),
        memory=spread([one["peak_memory_bytes"] / other["peak_memory_bytes"] for one, other in pairs]),
        loss_difference=max(compared) if len(compared) == len(pairs) else None,
        ours=medians(ours),
        theirs=medians(theirs),
    )


def make_share_line(
    work: str, dropout: float, rounds: Sequence[Mapping[str, Run]], *, layers: int, width: int
) -> Line:
    """How much of the matrix-product rate, measured just before each run, went into the blocks' products."""
    needed = needed_operations(layers, width)
    shares = [rate(one["ours"]) * needed / one["machine"]["operations_per_second"] for one in rounds]
    line = Line(work, dropout, "machine", len(rounds), share=spread(shares))
    line.ours.update(medians([one["ours"] for one in rounds]))
    line.theirs["operations_per_second"] = statistics.median(
        one["machine"]["operations_per_second"] for one in rounds
    )
    return line


def medians(runs: Sequence[Run]) -> dict[str, float]:
    """What stands beside a ratio. Compiling is the most that a run needed, and the least: later runs find it
    cached.
    """
    return {
        "tokens_per_second": statistics.median(rate(run) for run in runs),
        "peak_memory_gb": statistics.median(run["peak_memory_bytes"] / 1e9 for run in runs),
        "startup_seconds": statistics.median(run["startup_seconds"] for run in runs),
        "first_step_seconds": statistics.median(run["steps"][0]["seconds"] for run in runs),
        "compile_seconds": max(run["compile_seconds"] for run in runs),
        "cached_compile_seconds": min(run["compile_seconds"] for run in runs),
    }


def first_steps_differ(ours: Run, theirs: Run) -> float:
    """The largest relative difference of the losses of the steps that both have."""
    pairs = zip(ours["steps"], theirs["steps"], strict=False)
    return max(abs(float(one["loss"]) / float(other["loss"]) - 1) for one, other in pairs)


def judge(
    bar: Bar, lines: Sequence[Line], *, dropout: float, checks: Mapping[str, float], pairs: int = PAIRS
) -> dict[str, Any]:
    """What of a bar is reached: aim, must, nothing; None where it was not measured.

    `settled` is false, with the reason, while there are too few pairs or the losses don't agree.
    """
    keys = (bar.work, bar.against, dropout)
    line = next((one for one in lines if (one.work, one.against, one.dropout) == keys), None)
    found: Spread | None = getattr(line, bar.measure) if line else None
    told = {"work": bar.work, "against": bar.against, "dropout": dropout}
    told |= {"measure": bar.measure, "bar": bar.says}
    if line is None or found is None:
        return {**told, "value": None, "reached": None, "settled": False, "why": "not measured"}
    names = [
        name
        for name, value in zip(("must", "aim"), bar.values, strict=False)
        if (found.median <= value if bar.measure == "memory" else found.median >= value)
    ]
    reached = names[-1] if names else "nothing"
    why = doubts(line, checks.get(bar.work), pairs=pairs)
    return {**told, "value": round(found.median, 4), "reached": reached, "settled": not why, "why": why}


def doubts(line: Line, check: float | None, *, pairs: int) -> str:
    """Why a line settles nothing; empty where it does."""
    found = []
    if line.pairs < pairs:
        found.append(f"{line.pairs} of {pairs} pairs")
    if "frozen" not in line.work and line.against != "machine":  # those have no loss in common
        absent = {"after training": line.loss_difference is None, "of the first steps": check is None}
        if missing := [when for when, is_absent in absent.items() if is_absent]:
            found.append(f"losses {' and '.join(missing)} not compared")
    if line.loss_difference is not None and line.loss_difference > LOSSES_WITHIN:
        found.append(f"losses differ by {line.loss_difference:.1%}")
    if check is not None and check > FIRST_STEPS_WITHIN:
        found.append(f"first steps differ by {check:.1e}")
    return ", ".join(found)


# Texts.


def table(lines: Sequence[Line], bars: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: ratios with their spread and bars, then what stands behind them."""
    rows = [
        "| work | dropout | against | ratio (lowest to highest) | must / aim | reached | pairs "
        "| tokens/s | compiling | cached | before the first step | first step | losses |",
        "|---|---:|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for line in (one for one in lines if one.speed is not None):
        cells = [
            *judged_cells(line, "speed", bars),
            str(line.pairs),
            both(line, "tokens_per_second", "{:,.0f}"),
            both(line, "compile_seconds", "{:.0f} s"),
            both(line, "cached_compile_seconds", "{:.0f} s"),
            both(line, "startup_seconds", "{:.0f} s"),
            both(line, "first_step_seconds", "{:.1f} s"),
            "–" if line.loss_difference is None else f"{line.loss_difference:.2%} apart",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def judged_cells(
    line: Line, ratio: Literal["speed", "memory"], bars: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What both tables begin with: the work, its ratio, and its bar."""
    bar = bar_of(line, ratio, bars)
    return [
        line.work,
        f"{line.dropout:g}",
        line.against,
        spread_text(getattr(line, ratio), "{:.2f}"),
        bar.get("bar", "–"),
        reached_text(bar),
    ]


def memory_table(lines: Sequence[Line], bars: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: peak memory, ours over theirs."""
    rows = [
        "| peak memory | dropout | against | ratio (lowest to highest) | must / aim | reached "
        "| ours / theirs |",
        "|---|---:|---|---:|---:|---|---:|",
    ]
    for line in (one for one in lines if one.memory is not None):
        cells = [*judged_cells(line, "memory", bars), both(line, "peak_memory_gb", "{:.1f} GB")]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def share_text(lines: Sequence[Line], bars: Sequence[Mapping[str, Any]]) -> str:
    """One sentence per dropout."""
    told = []
    for line in (one for one in lines if one.share is not None):
        bar = bar_of(line, "share", bars)
        judged = f"; must / aim {bar['bar']}: {reached_text(bar)}" if bar else ""
        told.append(
            f"- full classification in batches of 2,048 tokens, dropout {line.dropout:g}: "
            f"{spread_text(line.share, '{:.1%}')} of the bf16 matrix-product rate at these shapes "
            f"({line.theirs['operations_per_second'] / 1e12:.2f} TFLOP/s), "
            f"{line.ours['tokens_per_second']:,.0f} tokens/s{judged}"
        )
    return "\n".join(told)


def unmeasured_text(bars: Sequence[Mapping[str, Any]]) -> str:
    """The bars that no line here says anything about."""
    open_ones = [
        f"{bar['work']}, {bar['measure']} against {bar['against']}" for bar in bars if bar["reached"] is None
    ]
    return f"Not measured here: {'; '.join(open_ones)}." if open_ones else ""


def checks_text(checks: Mapping[str, float]) -> str:
    """How far the losses of the first steps are apart."""
    told = [f"{work} {value:.1e}" for work, value in checks.items()]
    limit = f"{FIRST_STEPS_WITHIN:g}"
    return (
        f"First steps in fp32, without dropout, same rows in the same order: losses within {limit} of each "
        f"other are asked for; largest difference: {', '.join(told)}."
        if told
        else "The losses of the first steps were not compared."
    )


def bar_of(line: Line, measure: Measure, bars: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The judged bar of a line; empty where it has none, as at a dropout that doesn't decide."""
    keys = (line.work, line.against, line.dropout, measure)
    return next((b for b in bars if (b["work"], b["against"], b["dropout"], b["measure"]) == keys), {})


def reached_text(bar: Mapping[str, Any]) -> str:
    if not bar:
        return "–"
    words = {"aim": "aim", "must": "must", "nothing": "**no**", None: "not measured"}
    told = words[bar["reached"]]
    return f"{told} ({bar['why']})" if bar["why"] and bar["reached"] is not None else told


def spread_text(found: Spread | None, form: str) -> str:
    if found is None:
        return "–"
    if found.low == found.high:
        return form.format(found.median)
    return f"{form} ({form} to {form})".format(found.median, found.low, found.high)


def both(line: Line, key: str, form: str) -> str:
    """Ours / theirs."""
    return " / ".join(form.format(side[key]) if key in side else "–" for side in (line.ours, line.theirs))


def tables(found: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """What is printed, and stands on the page."""
    bars = found["bars"]
    parts = [
        table(lines, bars),
        memory_table(lines, bars),
        share_text(lines, bars),
        unmeasured_text(bars),
        checks_text(found["checks"]),
    ]
    return "\n\n".join(part for part in parts if part)


def results_text(found: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """The Markdown page."""
    host = found["machine"]
    sides = {"ours": host["versions"], "the peers'": found["peer_versions"]}
    packages = "; ".join(
        f"{side} {', '.join(f'{package} {version}' for package, version in versions.items())}"
        for side, versions in sides.items()
    )
    notes = [
        f"Shape: {found['shape']} (random weights), GPT-2's tokenizer. Ours over theirs, in real tokens "
        "(no padding) a second, within rounds in which one ran after the other, each in a process of its "
        f"own. The first {WARM_UP} steps warm up on both sides; compiling is left out and shown.",
        "Their usual setting and their best are in benchmarks/speed_works.py. A frozen body takes the "
        "Trainer five epochs and us one pass: five times the steps that were timed count. `features`: "
        "in batches of 32, then a logistic regression.",
        "Losses: on the validation rows after the same rows, relative.",
    ]
    rounds = found["rounds"]
    rates = "".join(f", {rate} GFLOP/s in {kind}" for kind, rate in host.get("gflops", {}).items())
    taken = f"Rounds: {rounds['first'][:16]} to {rounds['last'][:16]} (UTC), load of the machine before each "
    parts = [
        f"# Speed, {found['when'][:10]}",
        tables(found, lines),
        *notes,
        f"{taken}{min(rounds['load_before'])} to {max(rounds['load_before'])}; who begins takes turns.",
        f"{host['cores']} cores of {host['processor']}, {host['memory_gb']} GB, {found['device']}, "
        f"{host['threads']} threads{rates}; load before the start {host['load_before']}. Python "
        f"{host['python']}. "
        f"Packages: {packages}. Written by `python benchmarks/speed.py` of commit {found['commit'] or '?'}: "
        f"{found['steps']} steps a run, the first {WARM_UP} left out.",
    ]
    return "\n\n".join(part for part in parts if part)
