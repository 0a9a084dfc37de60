"""How fast training is: the product beside transformers' Trainer, peft and TRL on this machine.

    python benchmarks/speed.py [--quick] [--pairs 5] [--works "classification full"]

Every work is run by us and by the peer in turn, each in a process of its own: the same rows in the same
number of steps, GPT-2 small's shape with random weights, the peer's dropout on both sides and none. The
peer's packages go into an environment of their own, made once from benchmarks/peers.txt (or --peer-python).
The data are not part of this project: see --data.

A round (ours, the peer's usual setting, its best) is kept in the work folder under a key of the settings, the
versions and the product's sources; the benchmark goes on where it stopped. Prints the tables and writes
benchmarks/results/DATE-speed.md and .json. Then speed_serving.py and speed_reading.py have their turn.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import start_record, write_record
from speed_bench import Bench, peer_environment
from speed_setup import make_base
from speed_table import (
    BARS,
    Line,
    first_steps_differ,
    judge,
    make_line,
    make_share_line,
    rate,
    results_text,
    tables,
)
from speed_works import CANDIDATES, DECIDING_DROPOUT, SHAPES, WORKS, Work

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data"
QUICK = ("classification full", "share of the machine")  # and of the peers only their best
STEPS, QUICK_STEPS = 20, 6  # an epoch; where a quick run stops
FEWEST_STEPS = 13  # under 200 rows the product trains by folds


def works_of(wanted: argparse.Namespace) -> list[Work]:
    """What is to be measured."""
    works = [work for work in WORKS if work.name in wanted.works]
    if not wanted.quick:
        return works
    best = [{name: peer for name, peer in work.peers.items() if name == "best"} for work in works]
    return [dataclasses.replace(work, peers=peers) for work, peers in zip(works, best, strict=True)]


def measure_all(bench: Bench, wanted: argparse.Namespace, failed: list[str]) -> None:
    """Checks first, then round after round over all works, so that every stop leaves a table."""
    works = works_of(wanted)

    def tell(work: Work, what: str, measure: Any) -> None:
        """Runs, and says how long it took; what fails is told, left out, and counted."""
        began = time.perf_counter()
        try:
            measure()
        except RuntimeError as error:
            print(f"{work.name}, {what}: {error}", file=sys.stderr, flush=True)
            failed.append(f"{work.name}, {what}")
            return
        print(f"{work.name}, {what}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)

    for work in works:
        compared = work.peers and work.approach != "frozen"
        if compared and not wanted.quick and (bench.again or bench.find(work, 0.0, "check") is None):
            tell(work, "check", lambda work=work: bench.check(work))
    for number in range(1, wanted.pairs + 1):
        for work in works:
            for dropout in (value for value in work.dropouts if value in wanted.dropouts):
                if bench.again or bench.find(work, dropout, number) is None:
                    what = f"dropout {dropout:g}, round {number}"
                    tell(work, what, lambda w=work, d=dropout, n=number: bench.measure(w, d, n))


def try_candidates(bench: Bench, wanted: argparse.Namespace, begun: dict[str, Any]) -> None:
    """What could be a peer's best, each run once at the deciding dropout; written down after each."""
    tried: list[dict[str, Any]] = []
    for work in works_of(wanted):
        rows = bench.rows(work)
        for name, peer in CANDIDATES.get(work.name, {}).items():
            one: dict[str, Any] = {"work": work.name, "candidate": name, "load_before": os.getloadavg()[0]}
            try:
                found = bench.peer(work, rows, peer, DECIDING_DROPOUT[work.name])
                speed, memory = rate(found), found["peak_memory_bytes"] / 1e9
                compiling = found["compile_seconds"]
                one |= {"tokens_per_second": speed, "peak_memory_gb": memory, "compile_seconds": compiling}
                told = f"{speed:,.0f} tokens/s, {memory:.1f} GB, {compiling:.0f} s compiling"
            except RuntimeError as error:
                one["error"] = told = str(error)
            print(f"{work.name}, {name}: {told}", flush=True)
            tried.append(one)
            write_record(wanted.results, "speed-candidates", {**begun, "tried": tried})


def circumstances(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """When rounds were taken, and how busy the machine was before each."""
    return {
        "first": min(one["when"] for one in rounds),
        "last": max(one["when"] for one in rounds),
        "load_before": [round(one["load_before"], 1) for one in rounds],
    }


def collect(
    bench: Bench, wanted: argparse.Namespace
) -> tuple[list[Line], dict[str, float], dict[str, str], dict[str, Any]]:
    """Lines, checks, the peers' versions and the rounds' circumstances, as the work folder holds them."""
    config = json.loads((bench.base / "config.json").read_text(encoding="utf-8"))
    lines, checks, versions, every = [], {}, {}, []
    for work in works_of(wanted):
        if (check := bench.find(work, 0.0, "check")) is not None:
            checks[work.name] = first_steps_differ(check["ours"], check["peer"])
        for dropout in work.dropouts:
            numbers = range(1, wanted.pairs + 1)
            rounds = [one for n in numbers if (one := bench.find(work, dropout, n)) is not None]
            if not rounds:
                continue
            every += rounds
            for against, peer in work.peers.items():
                lines.append(make_line(work.name, dropout, against, rounds, epochs=peer.epochs))
                versions.update(rounds[-1][against]["versions"])
            if not work.peers:
                shape = {"layers": config["n_layer"], "width": config["n_embd"]}
                lines.append(make_share_line(work.name, dropout, rounds, **shape))
    return lines, checks, versions, circumstances(every) if every else {}


def run_others(data: Path, peer_python: Path) -> list[str]:
    """Serving and reading: each prints its table and writes its results itself. Returns what failed."""
    given = ["--data", str(data)]
    commands = {
        "speed_serving.py": [*given, "--peer-python", str(peer_python)],
        "speed_reading.py": [*given, "--peer-python", str(peer_python), "--memory"],
    }
    ended = {
        name: subprocess.run([sys.executable, str(HERE / name), *arguments], check=False).returncode
        for name, arguments in commands.items()
    }
    return [name for name, code in ended.items() if code]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    names = [work.name for work in WORKS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--quick", action="store_true", help="one pair of two works, a few steps each, training alone"
    )
    parser.add_argument("--pairs", type=int, default=5, help="rounds of every work")
    parser.add_argument("--works", nargs="+", choices=names, default=names, metavar="WORK")
    parser.add_argument("--dropouts", nargs="+", type=float, choices=(0.1, 0.0), default=[0.1, 0.0])
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of an epoch, {FEWEST_STEPS} or more")
    parser.add_argument("--stop-after", type=int, default=0, help="steps; losses are then not compared")
    parser.add_argument("--shape", choices=SHAPES, default="gpt2", help="tiny tries the benchmark itself")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--peer-python", type=Path, help="Python of an environment that has the peers")
    parser.add_argument(
        "--work", type=Path, default=HERE / "work" / "speed", help="folder of rounds and runs"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the two files")
    parser.add_argument("--again", action="store_true", help="measure rounds that are there once more")
    told = "run what could be a peer's best once each, print its speed, and stop"
    parser.add_argument("--candidates", action="store_true", help=told)
    parser.add_argument("--only-training", action="store_true", help="leave serving and reading out")
    wanted = parser.parse_args(arguments)
    if wanted.quick:
        wanted.works = [name for name in QUICK if name in wanted.works]
        wanted.pairs, wanted.dropouts = 1, [0.1]
        wanted.stop_after = wanted.stop_after or QUICK_STEPS
        wanted.steps = FEWEST_STEPS
    if wanted.steps < FEWEST_STEPS:
        parser.error(f"--steps must be {FEWEST_STEPS} or more")
    return wanted


def open_bench(wanted: argparse.Namespace, device: str) -> Bench:
    absent = [name for name in ("gpt2_bpe", "ag_news", "e2e_nlg") if not (wanted.data / name).is_dir()]
    if absent:
        raise SystemExit(f"{', '.join(absent)}: not in {wanted.data}. Say where the data are with --data.")
    return Bench(
        work=wanted.work,
        data=wanted.data,
        base=make_base(wanted.work / "bases" / wanted.shape, wanted.shape, wanted.data),
        shape=wanted.shape,
        peer_python=wanted.peer_python or peer_environment(wanted.work / "peers"),
        steps=wanted.steps,
        stop_after=wanted.stop_after,
        device=device,
        again=wanted.again,
    )


def summarize(
    bench: Bench, wanted: argparse.Namespace, begun: dict[str, Any]
) -> tuple[dict[str, Any], list[Line]]:
    """Everything that stands in the two files, and its lines.

    Raises:
        SystemExit: nothing is measured yet.
    """
    lines, checks, versions, rounds = collect(bench, wanted)
    if not lines:
        raise SystemExit("nothing is measured yet.")
    found = {
        **begun,
        "quick": wanted.quick,
        "shape": bench.shape,
        "steps": bench.steps,
        "device": bench.device,
        "peer_versions": versions,
        "checks": checks,
        "rounds": rounds,
        "lines": [dataclasses.asdict(line) for line in lines],
        "bars": [judge(bar, lines, dropout=DECIDING_DROPOUT[bar.work], checks=checks) for bar in BARS],
    }
    return found, lines


def name_of(wanted: argparse.Namespace, bench: Bench) -> str:
    """Of the two files: a part, another shape or another device takes no table's place."""
    part = "quick" if wanted.quick else "" if len(wanted.works) == len(WORKS) else "part"
    shape = "" if bench.shape == "gpt2" else bench.shape
    device = "" if bench.device == "cpu" else bench.device
    return "-".join(["speed", *(name for name in (part, shape, device) if name)])


def main() -> None:
    """Measures what is missing, prints the tables, and writes them."""
    wanted = parse_arguments()
    begun = start_record()
    bench = open_bench(wanted, begun["machine"]["device"] if wanted.device == "auto" else wanted.device)
    if wanted.candidates:
        try_candidates(bench, wanted, begun)
        return
    failed: list[str] = []
    with contextlib.suppress(KeyboardInterrupt):  # what was measured so far is told
        measure_all(bench, wanted, failed)
    found, lines = summarize(bench, wanted, begun)
    path = write_record(wanted.results, name_of(wanted, bench), found, results_text(found, lines))
    print(tables(found, lines))
    print(f"\nwritten to {path.name} and {path.with_suffix('.md').name}", file=sys.stderr)
    alone = wanted.only_training or wanted.quick
    failed += [] if alone else run_others(bench.data, bench.peer_python)
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
