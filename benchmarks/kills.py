"""Kills and interrupts fits at random moments, lets them go on, and compares with a fit left alone.

    python benchmarks/kills.py --kills 100 --signals 20

A child per attempt runs the command line as a person would. It is forked from a parent that has imported
the heavy libraries, so an attempt costs a second. Every third run has so few rows that it trains by folds.
Prints a table and writes benchmarks/results/DATE-kills.json.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from record import RESULTS, start_record, write_record

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import transformers.models.gpt2.modeling_gpt2  # noqa: E402, F401  (imported before the forks)

import gptailor.pipeline.fit  # noqa: E402, F401
import tiny  # noqa: E402
from gptailor import cli  # noqa: E402
from gptailor.train import checkpoint  # noqa: E402

JOBS = {"whole": (300, "60 steps"), "folds": (60, "12 steps")}  # rows, length
SETTINGS = ("train.save_every=3 steps", "train.patience=0", "evaluate.resamples=100")
KILLS_PER_RUN = 6
PATIENCE_SECONDS = 120
# What may differ between two runs of the same recipe: the clock's numbers and the machine's memory.
UNLIKE = (
    *("seconds", "total_seconds", "tokens_per_second", "peak_memory_bytes", "forecast_seconds"),
    *("memory_bytes", "memory_spare_bytes"),
)


class Ground:
    """A folder with a tiny base and tiny data, and the fits made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = tiny.build_base(folder / "base")
        self.data = {job: tiny.write_news(folder / f"{job}.csv", rows) for job, (rows, _) in JOBS.items()}
        self.alone: dict[str, tuple[dict[str, str], float]] = {}
        os.environ["GPTAILOR_CACHE"] = str(folder / "cache")

    def start(
        self,
        name: str,
        *,
        job: str = "whole",
        seed: int = 0,
        prepare: Callable[[], None] = lambda: None,
    ) -> tuple[int, Path]:
        """Forks a child that fits into the folder `name`; returns its process id and the run."""
        run = self.folder / name
        words = ["gptailor", "fit", str(self.data[job]), "--base", str(self.base), "--approach", "full"]
        words += ["--baselines", "none", "--out", str(run), "--seed", str(seed)]
        for setting in (*SETTINGS, f"train.length={JOBS[job][1]}"):
            words += ["--set", setting]
        child = os.fork()
        if child == 0:
            _become(words, self.folder / f"{name}.log", prepare)
        return child, run

    def finish(self, name: str, *, job: str = "whole", seed: int = 0) -> dict[str, str]:
        """Lets a fit run to its end; returns what came out."""
        child, run = self.start(name, job=job, seed=seed)
        code = wait(child)
        if code != 0:
            raise SystemExit(f"{name} left with {code}:\n{(self.folder / f'{name}.log').read_text()}")
        return fingerprint(run)

    def expected(self, job: str = "whole") -> tuple[dict[str, str], float]:
        """What comes out of a fit that is left alone, and the seconds it takes."""
        if job not in self.alone:
            began = time.perf_counter()
            found = self.finish(f"alone-{job}", job=job)
            self.alone[job] = found, time.perf_counter() - began
        return self.alone[job]


def _become(words: list[str], log: Path, prepare: Callable[[], None]) -> None:
    """The child: the command line, then the end of the process."""
    code = 3
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = words
        prepare()
        cli.main()
        code = 0
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """The exit code of a child; minus the signal's number if one killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def until(condition: Callable[[], bool], child: int) -> bool:
    """Waits for a condition; False if the child ended before."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        if condition():
            return True
        time.sleep(0.0003)
    raise SystemExit("the child neither ended nor got there")


def fingerprint(run: Path) -> dict[str, str]:
    """Hashes of everything a finished run holds that must not depend on how often it was stopped."""
    newest, _ = checkpoint.newest_verified(run / "checkpoints")
    assert newest is not None
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "model": checkpoint.file_hash(run / "model" / "model.safetensors"),
        "predictions": checkpoint.file_hash(run / "predictions.csv"),
        "weights": checkpoint.file_hash(newest.path / "weights.safetensors"),
        "optimizer": checkpoint.file_hash(newest.path / "optimizer.safetensors"),
        "report": _hash(json.loads((run / "report.json").read_text(encoding="utf-8"))),
        "metrics": _hash([json.loads(line) for line in lines]),
    }


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(_alike(values), sort_keys=True).encode()).hexdigest()


def _alike(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _alike(value) for key, value in values.items() if key not in UNLIKE}
    return [_alike(value) for value in values] if isinstance(values, list) else values


def torn(run: Path) -> int:
    """How many checkpoints can be seen that aren't whole."""
    return sum(bool(checkpoint.faults(path)) for path in (run / "checkpoints").rglob("step-*"))


def being_written(run: Path) -> bool:
    """Whether a checkpoint is half written, now or since a kill."""
    places = [run / "checkpoints"]
    for place in places:
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(place):  # noqa: PTH208  (asked a thousand times a second)
                if name.startswith(f"{checkpoint.TEMPORARY}0"):
                    return True
                if name.startswith("fold-"):
                    places.append(place / name)
    return False


def logged(run: Path) -> int:
    """How many steps metrics.jsonl holds."""
    with contextlib.suppress(FileNotFoundError):
        return (run / "metrics.jsonl").read_text(encoding="utf-8").count('{"kind": "step"')
    return 0


def kill(child: int, run: Path, dice: random.Random, *, aimed: bool, seconds: float) -> bool:
    """Kills a child inside a checkpoint's write, or anywhere; False if it ended before."""
    if aimed:
        skipped = dice.randrange(20)  # not always the first write
        alive = all(
            until(lambda: being_written(run), child) and until(lambda: not being_written(run), child)
            for _ in range(skipped)
        ) and until(lambda: being_written(run), child)
        time.sleep(dice.uniform(0, 0.01))
    else:
        end = time.monotonic() + dice.uniform(0, 0.6 * seconds)  # what is left gets shorter
        alive = until(lambda: time.monotonic() >= end, child)
    if alive:
        os.kill(child, signal.SIGKILL)
    return wait(child) == -signal.SIGKILL


def kill_often(ground: Ground, *, kills: int, inside: int, seed: int) -> dict[str, int]:
    """Runs with SIGKILLs until there were enough of both kinds; each run is finished and compared."""
    dice = random.Random(seed)
    found = {"kills": 0, "inside_a_write": 0, "torn": 0, "runs": 0, "identical": 0}

    def enough() -> bool:
        return found["kills"] >= kills and found["inside_a_write"] >= inside

    while not enough() and found["runs"] < kills + 20:
        job = "folds" if found["runs"] % 3 == 1 else "whole"
        expected, seconds = ground.expected(job)
        name = f"killed-{found['runs']}"
        for _ in range(KILLS_PER_RUN):
            child, run = ground.start(name, job=job)
            aimed = found["inside_a_write"] * kills < inside * (found["kills"] + 1)
            if not kill(child, run, dice, aimed=aimed, seconds=seconds):
                break
            found["kills"] += 1
            found["inside_a_write"] += being_written(run)
            found["torn"] += torn(run)
            if enough():
                break
        found["runs"] += 1
        found["identical"] += ground.finish(name, job=job) == expected
    return found


def control(ground: Ground, *, seed: int) -> dict[str, int]:
    """The harness itself: it must see a writer that tears, and the numbers of another seed."""
    dice = random.Random(seed)
    tears = 0
    for attempt in range(20):
        child, run = ground.start(f"naive-{attempt}", prepare=_write_naively)
        kill(child, run, dice, aimed=True, seconds=0)
        tears += torn(run)
        if tears:
            break
    expected, _ = ground.expected()
    other = ground.finish("other-seed", seed=1)
    return {"control_torn": tears, "control_same": sum(other[key] == expected[key] for key in expected)}


def _write_naively() -> None:
    """What many do: the folder gets its name first and its content after."""
    whole = checkpoint.commit_folder

    def commit(temporary: Path, final: Path, *, extra: Mapping[str, Any]) -> None:
        temporary.rename(final)
        time.sleep(0.02)
        final.rename(temporary)
        whole(temporary, final, extra=extra)

    checkpoint.commit_folder = commit


def _sync_slowly() -> None:
    """A disk that takes its time, so that a second signal surely meets a write."""
    quick = os.fsync

    def fsync(descriptor: int) -> None:
        time.sleep(0.2)
        quick(descriptor)

    os.fsync = fsync  # type: ignore[assignment]


def interrupt_often(ground: Ground, *, signals: int, seed: int) -> dict[str, float]:
    """Sends SIGTERM and SIGINT while training; every other pair meets a slow disk and a second signal."""
    dice = random.Random(seed)
    found = {"signals": 0, "left_with_130": 0, "saved": 0, "torn": 0, "identical": 0, "second_signals": 0}
    slowest = {False: 0.0, True: 0.0}
    for number in range(signals):
        twice, sent = number % 4 >= 2, (signal.SIGTERM, signal.SIGINT)[number % 2]
        child, run = ground.start(f"signal-{number}", prepare=_sync_slowly if twice else lambda: None)
        steps = dice.randrange(1, 5 if twice else 50)
        took = _interrupt(child, run, sent, steps=steps, twice=twice)
        found["left_with_130"] += wait(child) == 130
        found["signals"] += 1
        found["second_signals"] += twice
        found["torn"] += torn(run)
        newest, _ = checkpoint.newest_verified(run / "checkpoints")
        found["saved"] += newest is not None and newest.step == logged(run)
        found["identical"] += ground.finish(f"signal-{number}") == ground.expected()[0]
        slowest[twice] = max(slowest[twice], took)
    names = ("seconds_to_leave", "seconds_to_leave_at_once")
    return {**found, **dict(zip(names, (round(took, 3) for took in slowest.values()), strict=True))}


def _interrupt(child: int, run: Path, sent: signal.Signals, *, steps: int, twice: bool) -> float:
    """Signals a child that has done some steps; returns the seconds from the last signal to its end."""
    if not until(lambda: logged(run) >= steps, child):
        return 0.0
    os.kill(child, sent)
    if twice and until(lambda: being_written(run), child):
        os.kill(child, sent)
    began = time.monotonic()
    until(lambda: False, child)
    return time.monotonic() - began


def main() -> None:
    """Reads the command line, kills, interrupts, and tells."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=30, help="SIGKILLs in all (default: 30)")
    parser.add_argument("--inside", type=int, help="of them inside a write (default: 3 in 10)")
    parser.add_argument("--signals", type=int, default=0, help="SIGTERMs and SIGINTs (default: 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    wanted = parser.parse_args()
    inside = -(-3 * wanted.kills // 10) if wanted.inside is None else wanted.inside
    began = time.perf_counter()
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # a fork finds none of its threads
        found = apart.submit(start_record).result()
    with tempfile.TemporaryDirectory(prefix="gptailor-kills-") as folder:
        ground = Ground(Path(folder))
        if wanted.kills:
            found |= kill_often(ground, kills=wanted.kills, inside=inside, seed=wanted.seed)
            found |= control(ground, seed=wanted.seed)
        if wanted.signals:
            found["interrupts"] = interrupt_often(ground, signals=wanted.signals, seed=wanted.seed)
    found["total_seconds"] = round(time.perf_counter() - began)
    path = write_record(wanted.results, "kills", found)
    tell(found)
    print(f"\nwritten to {path.name}")


def tell(found: Mapping[str, Any]) -> None:
    """The table."""
    if "kills" in found:
        print("| kills | inside a write | torn | runs | bit-identical | torn by a naive writer |")
        print("|---|---|---|---|---|---|")
        row = "| {kills} | {inside_a_write} | {torn} | {runs} | {identical} | {control_torn} |"
        print(row.format(**found))
    if "interrupts" in found:
        print("\n| signals | left with 130 | slowest, s | second, s | torn | bit-identical |")
        print("|---|---|---|---|---|---|")
        row = "| {signals} | {left_with_130} | {seconds_to_leave} | {seconds_to_leave_at_once} "
        print((row + "| {torn} | {identical} |").format(**found["interrupts"]))


if __name__ == "__main__":
    main()
