"""Where a training run writes: its checkpoints, its log, and what is known of its progress."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gptailor.errors import RunError
from gptailor.launch import StopRequest
from gptailor.pipeline.folder import CHECKPOINTS, LOG
from gptailor.train.checkpoint import (
    clear_errors,
    forget_after,
    load_optimizer,
    load_weights,
    newest_verified,
    prune,
    read_state,
    save_checkpoint,
)
from gptailor.types import StepResult


@dataclass(frozen=True, slots=True)
class Listener:
    """Who hears how a run goes. `say` takes a line of words, `show` a line of metrics.jsonl or of a fold's,
    `track` exactly the lines of metrics.jsonl.
    """

    say: Callable[[str], None] = lambda _: None
    show: Callable[[Mapping[str, Any]], None] = lambda _: None
    track: Callable[[Mapping[str, Any]], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Progress:
    """The part of the state that a checkpoint carries beside weights and optimizer."""

    best_step: int = 0
    score: float = -math.inf  # of the best; higher is better
    best_loss: float = math.inf  # lowest validation loss so far
    stale: int = 0  # validations without gain
    stopped: str = ""
    log_bytes: int = 0

    @property
    def state(self) -> dict[str, Any]:
        """As it stands in a checkpoint."""
        return {"progress": dataclasses.asdict(self), "score": self.score, "best_step": self.best_step}


@dataclass(frozen=True, slots=True)
class Trained:
    """How a training run ended; the model holds the best weights."""

    curves: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    best_step: int = 0
    stopped: str = "length"
    score: float = 0.0
    seconds: float = 0.0
    tokens: int = 0


@dataclass(slots=True)
class TrainingPlace:
    """Where a training run writes: its checkpoints and its log. State that outlives a call."""

    folder: Path  # of the checkpoints
    log: Path
    seed: int
    environment: Mapping[str, Any]
    stop: StopRequest
    show: Callable[[Mapping[str, Any]], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None
    track: Callable[[Mapping[str, Any]], None] = lambda _: None

    @classmethod
    def of_run(
        cls, run: Path, *, seed: int, environment: Mapping[str, Any], stop: StopRequest, listener: Listener
    ) -> TrainingPlace:
        """The place in a run's folder; the listener hears of it."""
        return cls(
            folder=run / CHECKPOINTS,
            log=run / LOG,
            seed=seed,
            environment=environment,
            stop=stop,
            show=listener.show,
            say=listener.say,
            track=listener.track,
        )

    def resume(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, Progress]:
        """The last committed step (0: none) and its progress; the log is cut back to that commit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        newest, passed_over = newest_verified(self.folder)
        for fault in passed_over:
            self.say(f"damaged checkpoint passed over: {fault}")
        forget_after(self.folder, 0 if newest is None else newest.step)
        if newest is None:
            self.log.write_bytes(b"")
            return 0, Progress()
        state = read_state(newest.path)
        progress = Progress(**state["progress"])
        if not self.log.exists() or self.log.stat().st_size < progress.log_bytes:
            raise RunError(
                f"is missing or shorter than it was at step {newest.step}.",
                where=str(self.log),
                fix="Put it back, or use --overwrite (the old run is moved aside).",
            )
        load_weights(newest.path, model)
        load_optimizer(newest.path, model, optimizer)
        with self.log.open("r+b") as log:
            log.truncate(progress.log_bytes)
        told = (
            "it was trained to its end before" if progress.stopped else f"going on after step {newest.step}"
        )
        self.say(told)
        return newest.step, progress

    @property
    def has_ended(self) -> bool:
        """Whether its training came to its end before: then there is nothing left to step."""
        newest, _ = newest_verified(self.folder)
        return newest is not None and bool(read_state(newest.path)["progress"]["stopped"])

    def inside(self, name: str) -> TrainingPlace:
        """A place of its own under this one, for one fold; its log lies with its checkpoints."""
        folder = self.folder / name
        return dataclasses.replace(self, folder=folder, log=folder / LOG, track=lambda _: None)

    def write(self, line: Mapping[str, float | str]) -> None:
        """Appends one line to the log."""
        text = json.dumps(line) + "\n"
        with clear_errors(self.log, needed=len(text)), self.log.open("a", encoding="utf-8") as log:
            log.write(text)
        self.show(line)
        self.track(line)

    def save(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, step: int, progress: Progress
    ) -> None:
        """Commits a checkpoint (the log before it), then removes those that aren't needed any more."""
        with clear_errors(self.log, needed=0), self.log.open("rb") as log:
            os.fsync(log.fileno())
        progress = dataclasses.replace(progress, log_bytes=self.log.stat().st_size)
        save_checkpoint(
            self.folder,
            step=step,
            model=model,
            optimizer=optimizer,
            state=progress.state,
            environment=self.environment,
        )
        prune(self.folder, keep={progress.best_step, step})

    def summary(self, progress: Progress) -> Trained:
        lines = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        steps = [line for line in lines if line["kind"] == "step"]
        return Trained(
            curves=curves_from(lines),
            steps=len(steps),
            best_step=progress.best_step,
            stopped=progress.stopped or "length",
            score=progress.score,
            seconds=sum(line["seconds"] for line in steps),
            tokens=sum(line["num_tokens"] for line in steps),
        )


def line_of(result: StepResult) -> dict[str, float | str]:
    """A step's line in metrics.jsonl."""
    return {"kind": "step", **dataclasses.asdict(result)}


def curves_from(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """One point per validation: the training loss is the mean over the steps since the last one."""
    curves, since = [], []
    for line in lines:
        if line["kind"] == "step":
            since.append(line)
            continue
        count = sum(step["num_targets"] for step in since) or 1
        curves.append(
            {
                "step": line["step"],
                "train_loss": sum(s["loss"] * s["num_targets"] for s in since) / count,
                **{f"validation_{key}": value for key, value in line.items() if key not in ("kind", "step")},
                "learning_rate": since[-1]["learning_rate"] if since else 0.0,
            }
        )
        since = []
    return curves
