"""What a benchmark leaves behind: its numbers and its page, dated, with the machine they were taken on."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

import gptailor
from gptailor.launch import describe_machine, write_atomically

RESULTS = Path(__file__).resolve().parent / "results"


def start_record() -> dict[str, Any]:
    """When it began, and where: what `write_record` begins with. Asked before the machine is busy."""
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"when": when, "commit": commit(), "machine": machine()}


def commit() -> str:
    """The commit that is measured, with `+` where files differ from it; "" outside a clone."""
    here = Path(__file__).resolve().parent

    def asked(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return asked("rev-parse", "--short=12", "HEAD") + ("+" if asked("status", "--porcelain") else "")
    except FileNotFoundError:  # no git here
        return ""


def sources_digest(*beside: Path) -> str:
    """The product's code, and files of the benchmark's own: what was measured with other code is another."""
    digest = hashlib.sha256()
    for path in [*sorted(Path(gptailor.__file__).parent.rglob("*.py")), *sorted(beside)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def machine() -> dict[str, Any]:
    """What the times depend on, without a path or a name of the machine."""
    told = describe_machine()
    return {
        "processor": told["processor"] + generation(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "gflops": matrix_rates(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "device": told["device"],
        "threads": told["threads"],
        "system": platform.system(),
        "python": told["python"],
        "versions": told["versions"],
    }


def generation() -> str:
    """What tells processors of one name apart, where Linux tells it: bf16 is twice as fast on some."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    known = [f"{key} {told[key]}" for key in ("cpu family", "model") if key in told]
    return f" ({', '.join(known)})" if known else ""


def matrix_rates() -> dict[str, int]:
    """Best rates of products of 1024 x 1024 matrices: a shared machine isn't as fast every day."""
    rates = {}
    for kind in (torch.float32, torch.bfloat16):
        one, other = torch.randn(2, 1024, 1024).to(kind)
        seconds = []
        for _ in range(20):
            began = time.perf_counter()
            one @ other
            seconds.append(time.perf_counter() - began)
        rates[str(kind).removeprefix("torch.")] = round(2 * 1024**3 / min(seconds) / 1e9)
    return rates


def judged(ratio: float, must: float, aim: float, *, doubt: str = "") -> str:
    """What of a bar a ratio reaches, in words; with a doubt nothing is settled."""
    reached = "aim reached" if ratio >= aim else "must reached" if ratio >= must else "missed"
    told = f"{ratio:.2f} x of {must:g} x / {aim:g} x: {reached}"
    return f"{told} (not settled: {doubt})" if doubt else told


def write_record(folder: Path, name: str, found: Mapping[str, Any], page: str = "") -> Path:
    """DATE-NAME.json and, where there is a page, DATE-NAME.md; a second run of a day replaces the first.

    Args:
        folder: Made where it isn't.
        name: Of the benchmark.
        found: The numbers, with what `start_record` gave.
        page: Markdown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['when'][:10]}-{name}.json"
    write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if page:
        write_atomically(path.with_suffix(".md"), page.rstrip("\n") + "\n")
    return path


def read_record(path: Path, key: str) -> Any:
    """What an earlier record holds under a key, so that a benchmark of hours goes on from it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path}: no record with {key} ({error!r})") from None
