"""One run, one round, one check of speed.py: the processes, what they are told, and where rounds are kept."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from record import sources_digest as product_digest
from speed_setup import HELD_OUT, Rows, make_rows, recipe_for
from speed_works import LORA, LORA_TARGETS, RATES, Peer, Work

from gptailor.launch import write_atomically
from gptailor.recipe import dump_recipe

HERE = Path(__file__).resolve().parent
CHECKED_STEPS = 3
ROUND_VERSION = 1  # raise it when rounds mean something else
BEGAN = "SPEED_BEGAN"  # the meter reads it: when the process was started


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
        about += [self.device, sources_digest(), surroundings(), peers_text(), RATES]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
        return self.work / "rounds" / f"{work.name.replace(' ', '-')}-{dropout:g}-{number}-{digest}.json"

    def find(self, work: Work, dropout: float, number: int | str) -> dict[str, Any] | None:
        """A round that was measured before."""
        path = self.path(work, dropout, number)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def measure(self, work: Work, dropout: float, number: int) -> None:
        """One round, kept when it is whole: its pairs must have run one after the other.

        Who begins takes turns, so that a machine that gets faster or slower favors nobody.
        """
        rows = self.rows(work)
        load_before = os.getloadavg()[0]
        sides: dict[str, Callable[[], dict[str, Any]]] = {
            "ours": lambda: self.ours(work, rows, dropout),
            **{name: partial(self.peer, work, rows, peer, dropout) for name, peer in work.peers.items()},
        }
        found: dict[str, Any] = {}
        if not work.peers:
            found["machine"] = self.products(work)
        for name, run in list(sides.items())[:: 1 if number % 2 else -1]:
            found[name] = run()
        refuse_other_tokens(work, found)
        self.keep(work, dropout, number, {"load_before": load_before, **found})

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
            "validation_rows": HELD_OUT["validation"],
            "validate": not stop,
            "approach": work.approach,
            "lora": {**LORA, "target_modules": LORA_TARGETS},
            "dropout": dropout,
            "batch_size": work.batch_size,
            "learning_rate": RATES[work.approach],
            "stop_after": stop,
            "pad_all": peer.pad_all,
            "arguments": dict(peer.arguments),
            "device": self.device,
            "folder": str(folder),
        }
        script = str(HERE / "speed_peers" / f"{peer.script}.py")
        return self.run([str(self.peer_python), script], job, folder, more=peer.environment)

    def products(self, work: Work) -> dict[str, Any]:
        """The machine's rate of matrix products, for as many tokens as a step has."""
        folder = self.fresh("machine")
        config = json.loads((self.base / "config.json").read_text(encoding="utf-8"))
        tokens = self.rows(work).tokens_of_steps(work.batch_size)
        size = str(round(sum(tokens) / len(tokens)))
        result = folder / "result.json"
        script = str(HERE / "speed_matmul.py")
        call([sys.executable, script, str(result), str(config["n_embd"]), size], self.environment(folder))
        return read_object(result)

    def run(
        self,
        command: list[str],
        job: Mapping[str, Any],
        folder: Path,
        work: Work | None = None,
        more: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """A process of its own; returns what its meter saw."""
        result = folder / "result.json"
        path = folder / "job.json"
        path.write_text(json.dumps({**job, "result": str(result)}), encoding="utf-8")
        environment = self.environment(folder if work and work.approach == "frozen" else self.work)
        call([*command, str(path)], {**environment, **(more or {})})
        if not result.exists():
            raise RuntimeError(f"{Path(command[1]).name} ended without a result.")
        return read_object(result)

    def environment(self, cache: Path) -> dict[str, str]:
        """Compiled code is kept between runs, each side's in its own place; frozen features are not."""
        own = {
            "GPTAILOR_CACHE": str(cache / "cache"),
            # Empty in the first round of what is measured now.
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / f"compiled-{sources_digest()}"),
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
    """The product's code, and all that says how both sides run."""
    own = [*HERE.glob("speed*.py"), *(HERE / "speed_peers").glob("*.py")]
    return product_digest(*own)


def surroundings() -> list[str]:
    """What else rounds depend on, but for the machine: our PyTorch, and variables that steer both sides."""
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "LD_PRELOAD", "GLIBC_TUNABLES"]
    names += [name for name in sorted(os.environ) if name.startswith("MALLOC_")]
    return [version("torch"), *(f"{name}={os.environ[name]}" for name in names if name in os.environ)]


def read_object(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


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
