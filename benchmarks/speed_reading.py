"""From a CSV file to tokens: rows a second and memory, by Gptailor and by `datasets` doing the same steps.

    python benchmarks/speed_reading.py --data FOLDER [--rows 1000000] [--pairs 5] [--setting usual best]

Reads, repairs, drops empty rows, exact duplicates and conflicts, groups near-duplicates, and tokenizes with
GPT-2's vocabulary. Ours also infers the columns, splits, and writes the ledger; the peer needn't. Both sides
run in turn, each time in a process of its own with an empty cache; before times are compared, the rows that
were kept and their token ids must be equal. `--memory` measures, in runs of their own, our peak memory and
the peer's at all rows and at a tenth. Writes benchmarks/results/DATE-speed-reading.json. The rows are made of
the real texts in FOLDER (see speed_reading_rows.py); `--peer-python PATH` names the Python of an environment
that has the peer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from speed_reading_rows import write_rows

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data"
OURS = "ours"
BARS = {"usual": (2.5, 3.0), "best": (1.3, 1.5)}  # must and aim, of rows a second
BAR_ROWS, BAR_PAIRS = 1_000_000, 5  # fewer settle nothing
FLAT = 1.3  # times the memory that ten times the rows may take
SAMPLED_EVERY = 0.1  # seconds


@dataclass(frozen=True)
class Reading:
    """One run of one side. Memory is of the process and its children, what they share counted once."""

    side: str
    rows: int
    seconds: float  # from the file to tokens, imports left out
    cpu_seconds: float  # of the process and its children, imports left out
    peak_bytes: int  # anonymous memory: what the system can't take back; 0 where it wasn't watched
    peak_resident_bytes: int  # mapped files, too, whose pages it can take back


@dataclass(frozen=True)
class Found:
    """What a side kept. Shapes: `rows` (N,), `ids` (all tokens,), `lengths` (N,); near ones in pairs."""

    rows: Any
    ids: Any
    lengths: Any
    near: frozenset[tuple[int, int]]


# One side, in a process of its own.


def read_ours(path: str, tokenizer_file: str, folder: Path) -> None:
    """Ours, called in a process of its own; writes result.npz and result.json as the peer does."""
    from tokenizers import Tokenizer

    from gptailor.data.ledger import summarize, write_ledger
    from gptailor.data.tokenize import build_encoder
    from gptailor.pipeline.prepare import prepare
    from gptailor.pipeline.tokens import ledger_lines, tokenize_parts
    from gptailor.recipe import Recipe
    from gptailor.types import PARTS

    began, cpu_began = time.perf_counter(), cpu_seconds()
    recipe = Recipe.model_validate({"task": "classification", "data": {"train": path}})
    prepared = prepare(recipe)
    encoder = build_encoder(Tokenizer.from_file(tokenizer_file), pad_id=0)
    tokens = tokenize_parts(prepared, encoder, recipe.data, context=1024)
    lines = ledger_lines(prepared, tokens)
    write_ledger(folder / "ledger.jsonl", lines)
    summarize(lines, read=prepared.read)
    times = {"seconds": time.perf_counter() - began, "cpu_seconds": cpu_seconds() - cpu_began}
    (folder / "result.json").write_text(json.dumps(times))
    found = [row for part in PARTS for row in tokens.rows[part]]
    np.savez(
        folder / "result.npz",
        rows=np.array([row.row - 2 for row in found]),  # row 0 stands on line 2
        lengths=np.array([len(row.token_ids) for row in found]),
        ids=np.concatenate([row.token_ids for row in found]),
        near=np.array([one.row - 2 for group in prepared.near_groups for one in group], np.int64),
        near_sizes=np.array([len(group) for group in prepared.near_groups], np.int64),
    )


def cpu_seconds() -> float:
    """Of this process and its children that have ended."""
    return sum(os.times()[:4])


def measure(
    side: str, path: Path, tokenizer_file: Path, *, rows: int, peer: str, watched: bool = False
) -> tuple[Reading, Found]:
    """Runs one side once: `ours`, or the peer's `usual` or `best` setting.

    `watched`: its memory is looked at all the time, which costs time, and more with more processes.
    """
    with tempfile.TemporaryDirectory() as name:
        script = [sys.executable, str(HERE / "speed_reading.py"), "--side"]
        if side != OURS:
            script = [peer, str(HERE / "speed_reading_peer.py")]
        quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        if side == "best":  # its processes are its threads
            quiet["TOKENIZERS_PARALLELISM"] = "false"
        process = subprocess.Popen(
            [*script, side, str(path), str(tokenizer_file), name], env={**os.environ, **quiet}
        )
        times = Path(name, "result.json")
        peak, peak_resident = _watch(process, until=times) if watched else (0, 0)
        if process.wait():
            raise SystemExit(f"{side} failed")
        found = _load(Path(name, "result.npz"))
        reading = Reading(
            side, rows, **json.loads(times.read_text()), peak_bytes=peak, peak_resident_bytes=peak_resident
        )
    return reading, found


def _watch(process: subprocess.Popen[bytes], *, until: Path) -> tuple[int, int]:
    """Peak memory of a process and its children until it has its result: (anonymous, resident) bytes."""
    peak = peak_resident = 0
    parent = psutil.Process(process.pid)
    while process.poll() is None and not until.exists():
        try:
            family = [parent, *parent.children(recursive=True)]
            sizes = [_memory(one.pid) for one in family]
        except (psutil.Error, OSError):
            continue
        peak = max(peak, sum(size for size, _ in sizes))
        peak_resident = max(peak_resident, sum(size for _, size in sizes))
        time.sleep(SAMPLED_EVERY)
    return peak, peak_resident


def _memory(pid: int) -> tuple[int, int]:
    """Proportional shares, so that what forked processes share counts once. Linux only."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()[1:]}
    return sizes["Pss_Anon"], sizes["Pss"]


def _load(path: Path) -> Found:
    with np.load(path) as found:
        order = np.argsort(found["rows"])
        starts = np.cumsum(found["lengths"]) - found["lengths"]
        lengths = found["lengths"][order]
        shifts = np.repeat(starts[order] - (np.cumsum(lengths) - lengths), lengths)
        near: set[tuple[int, int]] = set()
        for group in np.split(found["near"], np.cumsum(found["near_sizes"])[:-1]):
            first = int(group.min()) if group.size else 0
            near |= {(first, int(other)) for other in group if other != first}
        return Found(
            found["rows"][order], found["ids"][shifts + np.arange(len(shifts))], lengths, frozenset(near)
        )


# Both sides.


def compare(
    sides: Sequence[str], path: Path, tokenizer_file: Path, *, rows: int, pairs: int, peer: str
) -> tuple[list[Reading], list[str]]:
    """Runs ours and each setting of the peer in turn, `pairs` times; also what was found of their results."""
    readings: list[Reading] = []
    told: dict[str, str] = {}
    for number in range(pairs):
        for side in sides:
            ours, kept = measure(OURS, path, tokenizer_file, rows=rows, peer=peer)
            theirs, found = measure(side, path, tokenizer_file, rows=rows, peer=peer)
            readings += [ours, theirs]
            told[side] = agreement(side, kept, found)
            print(
                f"{number + 1}: ours {ours.seconds:.1f} s ({ours.cpu_seconds:.1f} of processor), {side} "
                f"{theirs.seconds:.1f} s ({theirs.cpu_seconds:.1f}): {theirs.seconds / ours.seconds:.2f} x",
                file=sys.stderr,
            )
    return readings, list(told.values())


def agreement(side: str, ours: Found, theirs: Found) -> str:
    """Says how far the results agree.

    Raises:
        SystemExit: the rows that were kept or their token ids differ.
    """
    if not np.array_equal(ours.rows, theirs.rows):
        apart = np.setxor1d(ours.rows, theirs.rows)
        raise SystemExit(f"{side}: {len(apart)} rows are kept by one side only, such as {apart[:5]}")
    if not (np.array_equal(ours.lengths, theirs.lengths) and np.array_equal(ours.ids, theirs.ids)):
        differs = ours.rows[ours.lengths != theirs.lengths]
        raise SystemExit(f"{side}: token ids differ, such as those of rows {differs[:5]}")
    both = len(ours.near & theirs.near)
    return (
        f"{side}: {len(ours.rows):,} rows kept by both, {len(ours.ids):,} token ids equal; near-duplicates: "
        f"{len(ours.near):,} rows by us (each proven), {len(theirs.near):,} by the peer (as proposed), "
        f"{both:,} by both"
    )


def ratios(readings: Sequence[Reading], side: str, what: str = "seconds") -> list[float]:
    """(pairs,) theirs over ours of each pair."""
    pairs = zip(readings[::2], readings[1::2], strict=True)
    return [getattr(theirs, what) / getattr(ours, what) for ours, theirs in pairs if theirs.side == side]


def table(readings: Sequence[Reading]) -> str:
    """What to read: the ratio of rows a second with its spread, and of processor time."""
    lines = [
        "| against | rows a second | spread | processor time |",
        "|---|---|---|---|",
    ]
    for side in dict.fromkeys(reading.side for reading in readings if reading.side != OURS):
        times, cpu = ratios(readings, side), ratios(readings, side, "cpu_seconds")
        lines.append(
            f"| {side} | {statistics.median(times):.2f} x | {min(times):.2f} to {max(times):.2f} "
            f"| {statistics.median(cpu):.2f} x |"
        )
    return "\n".join(lines)


def flatness(data: Path, folder: Path, tokenizer_file: Path, *, rows: int, peer: str) -> list[Reading]:
    """Ours and the peer's best at a tenth of the rows and at all of them."""
    readings = []
    for count in (rows // 10, rows):
        path = folder / f"rows-{count}.csv"
        write_rows(path, data, count=count)
        for side in (OURS, "best"):
            readings.append(measure(side, path, tokenizer_file, rows=count, peer=peer, watched=True)[0])
            print(memory_text(readings[-1]), file=sys.stderr)
    return readings


def memory_text(one: Reading) -> str:
    sizes = f"{one.peak_bytes / 1e6:.0f} MB, {one.peak_resident_bytes / 1e6:.0f} MB with mapped files"
    return f"{one.side}, {one.rows:,} rows: {sizes}"


def growth_text(small: Reading, large: Reading) -> str:
    """How memory grew with ten times the rows; ours is judged, mapped files included."""
    grows = large.peak_bytes / small.peak_bytes, large.peak_resident_bytes / small.peak_resident_bytes
    told = (
        f"memory at ten times the rows, {small.side}: {grows[0]:.2f} times, {grows[1]:.2f} with mapped files"
    )
    if small.side != OURS:
        return told
    return f"{told}; flat is at most {FLAT:g} times: {'reached' if max(grows) <= FLAT else 'missed'}"


def write_tokenizer(path: Path, data: Path) -> None:
    """GPT-2's own tokenizer as one file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = data / "gpt2_bpe"
    tokenizer = Tokenizer(
        models.BPE.from_file(str(vocabulary / "encoder.json"), str(vocabulary / "vocab.bpe"))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--setting", nargs="+", choices=["usual", "best"], default=["usual", "best"])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        _, path, tokenizer_file, folder = chosen.side
        read_ours(path, tokenizer_file, Path(folder))
        return
    from record import RESULTS, judged, start_record, write_record

    begun = start_record()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, tokenizer_file = folder / "rows.csv", folder / "tokenizer.json"
        write_tokenizer(tokenizer_file, chosen.data)
        write_rows(rows, chosen.data, count=chosen.rows)
        options: dict[str, Any] = {"rows": chosen.rows, "peer": chosen.peer_python}
        readings, told = compare(chosen.setting, rows, tokenizer_file, pairs=chosen.pairs, **options)
        grown = flatness(chosen.data, folder, tokenizer_file, **options) if chosen.memory else []
    doubts = [f"{chosen.rows:,} rows"] * (chosen.rows < BAR_ROWS) + ["few pairs"] * (chosen.pairs < BAR_PAIRS)
    bars = {
        side: judged(statistics.median(ratios(readings, side)), *BARS[side], doubt=", ".join(doubts))
        for side in chosen.setting
    }
    print(table(readings), *told, *(f"{side}: {bar}" for side, bar in bars.items()), sep="\n")
    growth = [growth_text(*pair) for pair in zip(grown[:2], grown[2:], strict=True)]
    print(*map(memory_text, grown), *growth, sep="\n")
    result = {
        **begun,
        "bars": bars,
        "readings": [asdict(reading) for reading in readings],
        "memory": [asdict(reading) for reading in grown],
        "growth": growth,
        "agreement": told,
    }
    write_record(
        RESULTS, "speed-reading" if chosen.rows == BAR_ROWS else f"speed-reading-{chosen.rows}", result
    )


if __name__ == "__main__":
    main()
