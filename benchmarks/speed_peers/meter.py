"""What one run of speed.py measures, the same way on both sides: time, tokens, compiling, memory.

Runs in our environment and in the peer's, so it needs nothing but PyTorch.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

BEGAN = "SPEED_BEGAN"  # seconds since the epoch at which the process was started
PACKAGES = ("gptailor", "torch", "transformers", "tokenizers", "peft", "trl", "accelerate", "scikit-learn")


@dataclass
class Meter:
    """One entry per optimizer step: wall seconds since the step before, real tokens, loss, compiling."""

    steps: list[dict[str, float]] = field(default_factory=list)
    startup_seconds: float = 0.0
    peak_memory_bytes: int = 0
    validation_loss: float | None = None
    extra: dict[str, float] = field(default_factory=dict)
    last: float = 0.0
    compiled: float = 0.0

    def begin(self) -> None:
        """Everything is loaded; the first step comes next."""
        self.last, self.compiled = time.perf_counter(), compile_seconds()
        self.startup_seconds = time.time() - float(os.environ.get(BEGAN, time.time()))

    def step(self, *, tokens: int, loss: float) -> None:
        """An optimizer step has ended. Loading its batch and writing logs are in its seconds, too."""
        now, compiled = time.perf_counter(), compile_seconds()
        self.steps.append(
            {
                "seconds": now - self.last,
                "compile_seconds": compiled - self.compiled,
                "tokens": tokens,
                "loss": loss,
            }
        )
        self.last, self.compiled = now, compiled

    def end(self) -> None:
        """The last step has ended; what follows (saving, validation) is not measured."""
        self.peak_memory_bytes = peak_memory()

    def write(self, path: Path) -> None:
        found: dict[str, Any] = {key: value for key, value in asdict(self).items() if key != "last"}
        found["compile_seconds"] = found.pop("compiled")
        path.write_text(json.dumps({**found, "versions": versions()}), encoding="utf-8")


def compile_seconds() -> float:
    """Seconds that this process has spent compiling, forward and backward graphs together."""
    utils = sys.modules.get("torch._dynamo.utils")
    return 0.0 if utils is None else float(utils.calculate_time_spent()["total_wall_time"])


def peak_memory() -> int:
    """The most memory the process held: of the GPU where one is used, else of the machine."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:  # VmHWM begins anew with the program; getrusage also remembers the parent's size
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
