"""How fast training is: the product beside transformers' Trainer, peft and TRL on this machine.

    python benchmarks/speed.py [--quick] [--pairs 5] [--works "classification full"]

Every work is run by us and by the peer in turn, each in a process of its own: the same rows in the same
number of steps, GPT-2 small's shape with random weights, the peer's dropout on both sides and none. The
peer's packages go into an environment of their own, made once from benchmarks/peers.txt (or --peer-python).
The data are not part of this project: see --data.

A round (ours, the peer's usual setting, its best) is kept in the work folder under a key of the settings, the
versions and the product's sources; the benchmark goes on where it stopped. Prints the tables and writes
benchmarks/results/speed-DATE.md and .json. Then speed_serving.py and speed_reading.py have their turn.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import speed_setup
from speed_setup import LEARNING_RATE, Rows, make_base, make_rows, recipe_for
from speed_table import (
    BARS,
    Line,
    checks_text,
    first_steps_differ,
    judge,
    make_line,
    make_share_line,
    memory_table,
    rate,
    results_text,
    share_text,
    table,
)
from speed_works import CANDIDATES, DECIDING_DROPOUT, LORA, LORA_TARGETS, SHAPES, WORKS, Peer, Work
from times import machine

import gptailor
from gptailor.launch import write_atomically
from gptailor.recipe import dump_recipe

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data"
QUICK = ("classification full", "classification frozen", "share of the machine")
STEPS, QUICK_STEPS = 20, 6  # an epoch; where a quick run stops
FEWEST_STEPS = 13  # under 200 rows the product trains by folds
CHECKED_STEPS = 3
ROUND_VERSION = 1  # raise it when rounds mean something else
BEGAN = "SPEED_BEGAN"


@dataclass(frozen=True)
class Bench:
    """What rounds are made with, and where they are kept."""

    work: Path
    data: Path
    base: Path
    shape: str
    peer_python: Path
    steps: int
    stop_after: int  # 0: at the end of the epoch
    device: str
    again: bool = False

    def rows(self, work: Work) -> Rows:
        name = f"{work.task}-{work.batch_size}-{self.steps * work.epochs_of_rows}"
        return make_rows(
            self.work / "rows" / f"{self.shape}-{name}",
            work,
            base=self.base,
            data=self.data,
            steps=self.steps * work.epochs_of_rows,
        )

    def path(self, work: Work, dropout: float, number: int | str) -> Path:
        """The file of a round, named by a hash of everything that it depends on but the machine."""
        stop_after = CHECKED_STEPS if number == "check" else self.stop_after
        about = [ROUND_VERSION, dataclasses.asdict(work), self.shape, self.steps, stop_after]
        about += [self.device, sources_digest(), peers_text()]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
        return self.work / "rounds" / f"{work.name.replace(' ', '-')}-{dropout:g}-{number}-{digest}.json"

    def find(self, work: Work, dropout: float, number: int | str) -> dict[str, Any] | None:
        """A round that was measured before."""
        path = self.path(work, dropout, number)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def measure(self, work: Work, dropout: float, number: int) -> None:
        """One round, kept when it is whole: its pairs must have run one after the other."""
        rows = self.rows(work)
        found = {}
        if not work.peers:
            found["machine"] = self.products(work)
        found["ours"] = self.ours(work, rows, dropout)
        for against, peer in work.peers.items():
            found[against] = self.peer(work, rows, peer, dropout)
        refuse_other_tokens(work, found)
        self.keep(work, dropout, number, found)

    def check(self, work: Work) -> None:
        """The first steps of both sides in fp32, without dropout, on the same rows in the same order."""
        rows, stop = self.rows(work), CHECKED_STEPS
        plain = {"bf16": False, "train_sampling_strategy": "sequential"}
        if work.task == "completion":
            plain["gradient_checkpointing"] = False
        script = next(iter(work.peers.values())).script
        found = {
            "ours": self.ours(work, rows, 0.0, stop_after=stop, precision="fp32"),
            "peer": self.peer(work, rows, Peer(script, plain), 0.0, stop_after=stop),
        }
        self.keep(work, 0.0, "check", found)

    def keep(self, work: Work, dropout: float, number: int | str, found: Mapping[str, Any]) -> None:
        path = self.path(work, dropout, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_atomically(path, json.dumps({"when": when, "load": os.getloadavg()[0], **found}))

    def ours(
        self,
        work: Work,
        rows: Rows,
        dropout: float,
        *,
        stop_after: int | None = None,
        precision: str = "auto",
    ) -> dict[str, Any]:
        """The product on its recipe."""
        folder = self.fresh("ours")
        stop = self.stop_after if stop_after is None else stop_after
        recipe = recipe_for(work, rows, dropout=dropout, out=folder / "run", precision=precision)
        (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        job = {
            "recipe": str(folder / "recipe.yaml"),
            "steps": stop or self.steps,
            "validate": not stop,
        }
        return self.run([sys.executable, str(HERE / "speed_ours.py")], job, folder, work)

    def peer(
        self, work: Work, rows: Rows, peer: Peer, dropout: float, *, stop_after: int | None = None
    ) -> dict[str, Any]:
        """The peer on the same token ids."""
        folder = self.fresh("peer")
        stop = self.stop_after if stop_after is None else stop_after
        if work.approach == "frozen" and peer.script == "classify":
            stop = stop or self.steps  # one epoch is timed, of rows that are several times as many
        job = {
            "model": str(rows.model),
            "rows": str(rows.tokens),
            "validation": str(rows.validation_tokens),
            "validation_rows": speed_setup.HELD_OUT["validation"],
            "validate": not stop,
            "approach": work.approach,
            "lora": {**LORA, "target_modules": LORA_TARGETS},
            "dropout": dropout,
            "batch_size": work.batch_size,
            "learning_rate": LEARNING_RATE,
            "stop_after": stop,
            "pad_all": peer.pad_all,
            "arguments": dict(peer.arguments),
            "device": self.device,
            "folder": str(folder),
        }
        return self.run([str(self.peer_python), str(HERE / "speed_peers" / f"{peer.script}.py")], job, folder)

    def products(self, work: Work) -> dict[str, Any]:
        """The machine's rate of matrix products, for as many tokens as a step has."""
        folder = self.fresh("machine")
        config = json.loads((self.base / "config.json").read_text(encoding="utf-8"))
        tokens = self.rows(work).tokens_of_steps(work.batch_size)
        size = str(round(sum(tokens) / len(tokens)))
        result = folder / "result.json"
        script = str(HERE / "speed_matmul.py")
        call([sys.executable, script, str(result), str(config["n_embd"]), size], self.environment(folder))
        return json.loads(result.read_text(encoding="utf-8"))

    def run(
        self, command: list[str], job: Mapping[str, Any], folder: Path, work: Work | None = None
    ) -> dict[str, Any]:
        """A process of its own; returns what its meter saw."""
        result = folder / "result.json"
        path = folder / "job.json"
        path.write_text(json.dumps({**job, "result": str(result)}), encoding="utf-8")
        environment = self.environment(folder if work and work.approach == "frozen" else self.work)
        call([*command, str(path)], environment)
        return json.loads(result.read_text(encoding="utf-8"))

    def environment(self, cache: Path) -> dict[str, str]:
        """Compiled code is kept between runs, each side's in its own place; frozen features are not."""
        own = {
            "GPTAILOR_CACHE": str(cache / "cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "compiled"),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            BEGAN: repr(time.time()),
        }
        if self.device == "cpu":
            own["CUDA_VISIBLE_DEVICES"] = ""
        return {**os.environ, **own}

    def fresh(self, name: str) -> Path:
        folder = self.work / "running" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


def call(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Runs a process; the end of what it said is shown where it failed."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[1]).name} failed:\n{done.stderr[-3000:]}")


def refuse_other_tokens(work: Work, found: Mapping[str, Any]) -> None:
    """Raises RuntimeError where a peer that went through the same rows counted other tokens."""
    if work.approach == "frozen":
        return
    counts = {who: sum(s["tokens"] for s in run["steps"]) for who, run in found.items() if "steps" in run}
    complete = all(run.get("validation_loss") is not None for run in found.values() if "steps" in run)
    if complete and len(set(counts.values())) > 1:
        raise RuntimeError(f"{work.name}: the sides trained on different tokens: {counts}")


def sources_digest() -> str:
    """The product's code."""
    folder = Path(gptailor.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def peers_text() -> str:
    return (HERE / "peers.txt").read_text(encoding="utf-8")


def peer_environment(folder: Path) -> Path:
    """The Python of the peers' environment; made where it is missing or was made for other versions."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / "peers.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == peers_text():
        return python
    print("making the peers' environment ...", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "-r", str(HERE / "peers.txt")], check=True)
    stamp.write_text(peers_text(), encoding="utf-8")
    return python


def measure_all(bench: Bench, wanted: argparse.Namespace) -> None:
    """Checks first, then round after round over all works, so that every stop leaves a table."""
    works = [work for work in WORKS if work.name in wanted.works]
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


def try_candidates(bench: Bench, wanted: argparse.Namespace) -> None:
    """What could be a peer's best, each run once at the deciding dropout."""
    for work in (work for work in WORKS if work.name in wanted.works):
        rows = bench.rows(work)
        for name, peer in CANDIDATES.get(work.name, {}).items():
            try:
                found = bench.peer(work, rows, peer, DECIDING_DROPOUT[work.name])
            except RuntimeError as error:
                print(f"{work.name}, {name}: {error}", flush=True)
                continue
            told = f"{rate(found):,.0f} tokens/s, {found['peak_memory_bytes'] / 1e9:.1f} GB"
            print(f"{work.name}, {name}: {told}, {found['compile_seconds']:.0f} s compiling", flush=True)


def tell(work: Work, what: str, measure: Any) -> None:
    """Runs, and says how long it took; what fails is told and left out."""
    began = time.perf_counter()
    try:
        measure()
    except RuntimeError as error:
        print(f"{work.name}, {what}: {error}", file=sys.stderr, flush=True)
        return
    print(f"{work.name}, {what}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def collect(bench: Bench, wanted: argparse.Namespace) -> tuple[list[Line], dict[str, float], dict[str, str]]:
    """Lines, checks and the peers' versions of what the work folder holds by now."""
    config = json.loads((bench.base / "config.json").read_text(encoding="utf-8"))
    lines, checks, versions = [], {}, {}
    for work in (work for work in WORKS if work.name in wanted.works):
        if (check := bench.find(work, 0.0, "check")) is not None:
            checks[work.name] = first_steps_differ(check["ours"], check["peer"])
        for dropout in work.dropouts:
            numbers = range(1, wanted.pairs + 1)
            rounds = [one for n in numbers if (one := bench.find(work, dropout, n)) is not None]
            if not rounds:
                continue
            for against, peer in work.peers.items():
                lines.append(make_line(work.name, dropout, against, rounds, epochs=peer.epochs))
                versions.update(rounds[-1][against]["versions"])
            if not work.peers:
                shape = {"layers": config["n_layer"], "width": config["n_embd"]}
                lines.append(make_share_line(work.name, dropout, rounds, **shape))
    return lines, checks, versions


def run_others(data: Path, peer_python: Path) -> None:
    """Serving and reading: each prints its table and writes its results itself."""
    given = ["--data", str(data)]
    commands = {
        "speed_serving.py": [*given, "--peer-python", str(peer_python)],
        "speed_reading.py": [*given, "--peer", str(peer_python), "--memory"],
    }
    for name, arguments in commands.items():
        if (HERE / name).exists():
            subprocess.run([sys.executable, str(HERE / name), *arguments], check=False)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    names = [work.name for work in WORKS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--quick", action="store_true", help="one pair of three works, a few steps each, training alone"
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


def main() -> None:
    """Measures what is missing, prints the tables, and writes them."""
    wanted = parse_arguments()
    host = machine()
    device = host["device"] if wanted.device == "auto" else wanted.device
    bench = open_bench(wanted, device)
    if wanted.candidates:
        try_candidates(bench, wanted)
        return
    with contextlib.suppress(KeyboardInterrupt):  # what was measured so far is told
        measure_all(bench, wanted)
    lines, checks, versions = collect(bench, wanted)
    if not lines:
        raise SystemExit("nothing is measured yet.")
    bars = [judge(bar, lines, dropout=DECIDING_DROPOUT[bar.work], checks=checks) for bar in BARS]
    found = {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": wanted.quick,
        "shape": wanted.shape,
        "steps": wanted.steps,
        "device": device,
        "machine": host,
        "peer_versions": versions,
        "checks": checks,
        "lines": [dataclasses.asdict(line) for line in lines],
        "bars": bars,
    }
    wanted.results.mkdir(parents=True, exist_ok=True)
    path = wanted.results / f"speed-{found['when'][:10]}{'-quick' if wanted.quick else ''}.md"
    write_atomically(path, results_text(found, lines) + "\n")
    write_atomically(path.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    shown = (table(lines, bars), memory_table(lines, bars), share_text(lines, bars), checks_text(checks))
    print("\n\n".join(part for part in shown if part))
    print(f"\nwritten to {path.name} and {path.with_suffix('.json').name}", file=sys.stderr)
    if not (wanted.only_training or wanted.quick):
        run_others(bench.data, bench.peer_python)


if __name__ == "__main__":
    main()
