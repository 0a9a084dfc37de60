"""Kills and interrupts fits at random moments, lets them go on, and compares with a fit left alone.

    python benchmarks/kills.py --kills 100 --signals 20

A child per attempt runs the command line as a person would. It is forked from a parent that has imported
the heavy libraries, so an attempt costs a second. Prints a table and writes benchmarks/results/DATE-kills.json.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
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
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import tiny  # noqa: E402
import transformers.models.gpt2.modeling_gpt2  # noqa: E402, F401  (imported before the forks)

import gptailor.pipeline.fit  # noqa: E402, F401
from gptailor import cli  # noqa: E402
from gptailor.train import checkpoint  # noqa: E402

SETTINGS = ("train.length=60 steps", "train.save_every=3 steps", "train.patience=0", "evaluate.resamples=100")
KILLS_PER_RUN = 6
PATIENCE_SECONDS = 120
# What may differ between two runs of the same recipe: the clock's numbers and the machine's memory.
UNLIKE = ("seconds", "total_seconds", "tokens_per_second", "peak_memory_bytes")


class Ground:
    """A folder with a tiny base and tiny data, and the fits made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = tiny.build_base(folder / "base")
        self.data = tiny.write_news(folder / "news.csv")
        os.environ["GPTAILOR_CACHE"] = str(folder / "cache")

    def start(
        self, name: str, *, seed: int = 0, prepare: Callable[[], None] = lambda: None
    ) -> tuple[int, Path]:
        """Forks a child that runs `gptailor fit` into the folder `name`; returns its process id and the run."""
        run = self.folder / name
        words = ["gptailor", "fit", str(self.data), "--base", str(self.base), "--approach", "full"]
        words += ["--baselines", "none", "--out", str(run), "--seed", str(seed)]
        words += [word for setting in SETTINGS for word in ("--set", setting)]
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _become(words, self.folder / f"{name}.log", prepare)
        return child, run

    def finish(self, name: str, *, seed: int = 0) -> tuple[dict[str, str], float]:
        """Lets a fit run to its end; returns what came out and the seconds it took."""
        began = time.perf_counter()
        child, run = self.start(name, seed=seed)
        code = wait(child)
        if code != 0:
            raise SystemExit(f"{name} left with {code}:\n{(self.folder / f'{name}.log').read_text()}")
        return fingerprint(run), time.perf_counter() - began


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


def left(child: int) -> int | None:
    """The exit code of a child that has ended, else None."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def fingerprint(run: Path) -> dict[str, str]:
    """Hashes of everything a finished run holds that must not depend on how often it was stopped."""
    newest, _ = checkpoint.newest_verified(run / "checkpoints")
    assert newest is not None
    found = {
        "model": checkpoint.file_hash(run / "model" / "model.safetensors"),
        "predictions": checkpoint.file_hash(run / "predictions.csv"),
        "weights": checkpoint.file_hash(newest.path / "weights.safetensors"),
        "optimizer": checkpoint.file_hash(newest.path / "optimizer.safetensors"),
        "report": _hash(json.loads((run / "report.json").read_text(encoding="utf-8"))),
    }
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {**found, "metrics": _hash([json.loads(line) for line in lines])}


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(_alike(values), sort_keys=True).encode()).hexdigest()


def _alike(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _alike(value) for key, value in values.items() if key not in UNLIKE}
    return [_alike(value) for value in values] if isinstance(values, list) else values


def torn(run: Path) -> int:
    """How many checkpoints can be seen that aren't whole."""
    return sum(bool(checkpoint.faults(path)) for path in (run / "checkpoints").glob("step-*"))


def being_written(run: Path) -> bool:
    """Whether a checkpoint is half written, now or since a kill."""
    with contextlib.suppress(FileNotFoundError):
        names = os.listdir(run / "checkpoints")  # noqa: PTH208  (polled a thousand times a second)
        return any(name.startswith(f"{checkpoint.TEMPORARY}0") for name in names)
    return False


def until(condition: Callable[[], bool], child: int) -> int | None:
    """Waits for a condition; returns the child's exit code if it ended before."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        code = left(child)
        if code is not None or condition():
            return code
        time.sleep(0.0003)
    raise SystemExit("the child neither ended nor got there")


def kill(child: int, run: Path, dice: random.Random, *, aimed: bool, seconds: float) -> bool:
    """Kills a child inside a checkpoint's write, or anywhere; False if it ended before."""
    if aimed:
        for _ in range(dice.randrange(20)):  # not always the first write
            if until(lambda: being_written(run), child) is not None:
                return False
            if until(lambda: not being_written(run), child) is not None:
                return False
        code = until(lambda: being_written(run), child)
        time.sleep(dice.uniform(0, 0.01))
    else:
        end = time.monotonic() + dice.uniform(0, seconds)
        code = until(lambda: time.monotonic() >= end, child)
    if code is not None:
        return False
    os.kill(child, signal.SIGKILL)
    return wait(child) == -signal.SIGKILL


def kill_often(ground: Ground, *, kills: int, inside: int, seed: int) -> dict[str, int]:
    """Runs with SIGKILLs until there were enough of both kinds; each run is finished and compared."""
    expected, seconds = ground.finish("alone")
    dice = random.Random(seed)
    found = {"runs": 0, "kills": 0, "inside_a_write": 0, "torn": 0, "identical": 0}
    while found["kills"] < kills or found["inside_a_write"] < inside:
        name = f"killed-{found['runs']}"
        for _ in range(KILLS_PER_RUN):
            child, run = ground.start(name)
            aimed = found["inside_a_write"] * kills < inside * (found["kills"] + 1)
            if not kill(child, run, dice, aimed=aimed, seconds=seconds):
                break
            found["kills"] += 1
            found["inside_a_write"] += being_written(run)
            found["torn"] += torn(run)
            if found["kills"] >= kills and found["inside_a_write"] >= inside:
                break
        found["runs"] += 1
        found["identical"] += ground.finish(name)[0] == expected
    return found


def control(ground: Ground, *, seed: int) -> dict[str, int]:
    """The harness itself: it must see another seed's weights, and a writer that tears."""
    dice = random.Random(seed)
    child, run = 0, ground.folder
    tears = 0
    for attempt in range(20):
        child, run = ground.start(f"naive-{attempt}", prepare=_write_naively)
        kill(child, run, dice, aimed=True, seconds=0)
        tears += torn(run)
        if tears:
            break
    other, _ = ground.finish("other-seed", seed=1)
    same = sum(other[key] == value for key, value in fingerprint(ground.folder / "alone").items())
    return {"control_torn": tears, "control_same": same}


def _write_naively() -> None:
    """What many do: the folder gets its name first and its content after."""

    def commit(temporary: Path, final: Path, *, extra: Mapping[str, Any]) -> None:
        temporary.rename(final)
        time.sleep(0.02)
        whole(final, final.with_name(f"{final.name}-again"), extra=extra)
        final.with_name(f"{final.name}-again").rename(final)

    whole = checkpoint.commit_folder
    checkpoint.commit_folder = commit  # type: ignore[assignment]


def _sync_slowly() -> None:
    """A disk that takes its time, so that a second signal surely meets a write."""

    def fsync(descriptor: int) -> None:
        time.sleep(0.2)
        quick(descriptor)

    quick = os.fsync
    os.fsync = fsync  # type: ignore[assignment]


def interrupt_often(ground: Ground, *, signals: int, seed: int) -> dict[str, float]:
    """Sends SIGTERM and SIGINT while training; every other run gets a second one inside the write."""
    expected = fingerprint(ground.folder / "alone")
    dice = random.Random(seed)
    found = {"signals": 0, "left_with_130": 0, "saved": 0, "torn": 0, "identical": 0}
    slowest, slowest_second, seconds = 0.0, 0.0, 0
    for number in range(signals):
        name, twice = f"signal-{number}", number % 4 >= 2
        child, run = ground.start(name, prepare=_sync_slowly if twice else lambda: None)
        steps = dice.randrange(1, 6 if twice else 50)
        until(lambda run=run, steps=steps: logged(run) >= steps, child)  # type: ignore[misc]
        wanted = (signal.SIGTERM, signal.SIGINT)[number % 2]
        os.kill(child, wanted)
        began = time.monotonic()
        if twice:
            until(lambda run=run: being_written(run), child)  # type: ignore[misc]
            os.kill(child, wanted)
            began = time.monotonic()
        code = wait(child)
        took = time.monotonic() - began
        found["signals"] += 1
        found["left_with_130"] += code == 130
        found["torn"] += torn(run)
        if twice:
            seconds += 1
            slowest_second = max(slowest_second, took)
        else:
            slowest = max(slowest, took)
            newest, _ = checkpoint.newest_verified(run / "checkpoints")
            found["saved"] += newest is not None and newest.step == logged(run)
        found["identical"] += ground.finish(name)[0] == expected
    return {
        **found,
        "seconds_to_leave": round(slowest, 3),
        "second_signals": seconds,
        "seconds_to_leave_at_once": round(slowest_second, 3),
    }


def logged(run: Path) -> int:
    """The last step in metrics.jsonl."""
    with contextlib.suppress(FileNotFoundError):
        return (run / "metrics.jsonl").read_text(encoding="utf-8").count('{"kind": "step"')
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=30, help="SIGKILLs in all (default: 30)")
    parser.add_argument("--inside", type=int, help="of them inside a write (default: 3 in 10)")
    parser.add_argument("--signals", type=int, default=0, help="SIGTERMs and SIGINTs (default: 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the JSON file")
    wanted = parser.parse_args()
    inside = -(-3 * wanted.kills // 10) if wanted.inside is None else wanted.inside
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gptailor-kills-") as folder:
        ground = Ground(Path(folder))
        found: dict[str, Any] = kill_often(ground, kills=wanted.kills, inside=inside, seed=wanted.seed)
        found |= control(ground, seed=wanted.seed)
        if wanted.signals:
            found["interrupts"] = interrupt_often(ground, signals=wanted.signals, seed=wanted.seed)
    now = datetime.datetime.now(datetime.UTC)
    found |= {"when": now.isoformat(timespec="seconds"), "total_seconds": round(time.perf_counter() - began)}
    wanted.results.mkdir(parents=True, exist_ok=True)
    path = wanted.results / f"{now:%Y-%m-%d}-kills.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("| kills | inside a write | torn | runs | bit-identical |\n|---|---|---|---|---|")
    print("| {kills} | {inside_a_write} | {torn} | {runs} | {identical} |".format(**found))
    print(f"control: {found['control_torn']} torn by a naive writer; written to {path}")


if __name__ == "__main__":
    main()
