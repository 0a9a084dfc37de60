"""What a benchmark leaves behind: its numbers and its page, dated, with the machine they were taken on."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from gptailor.launch import describe_machine, write_atomically

RESULTS = Path(__file__).resolve().parent / "results"


def start_record() -> dict[str, Any]:
    """When it began, and where: what `write_record` begins with. Asked before the machine is busy."""
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"when": when, "machine": machine()}


def machine() -> dict[str, Any]:
    """What the times depend on, without a path or a name of the machine."""
    told = describe_machine()
    return {
        "processor": told["processor"],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "device": told["device"],
        "threads": told["threads"],
        "system": platform.system(),
        "python": told["python"],
        "versions": told["versions"],
    }


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
