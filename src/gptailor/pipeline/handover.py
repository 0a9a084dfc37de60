"""What trials trained, handed over to the last fit of a search, which needn't train it once more."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptailor.cache import content_key
from gptailor.launch import write_atomically
from gptailor.models.approach import Adapted
from gptailor.pipeline.place import LOG, Progress
from gptailor.recipe import Recipe, TuneSettings, identity_of
from gptailor.train.checkpoint import clear_errors, save_checkpoint

TRAININGS = "trainings"  # in the folder of a search
CHECKPOINTS, ENVIRONMENT = "checkpoints", "environment.json"


@dataclass(frozen=True, slots=True)
class Ended:
    """A training that came to its end; the model beside it holds the best weights."""

    progress: Progress
    lines: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    choices: Mapping[str, Any]  # what was measured on this machine


@dataclass(frozen=True, slots=True)
class Handover:
    """Trainings that wait in a search's folder for a fit of the same recipe, and look as that fit's own."""

    search: Path

    def leave(self, recipe: Recipe, environment: Mapping[str, Any], adapted: Adapted, ended: Ended) -> None:
        """Keeps a training; whole, or not at all.

        Raises:
            CheckpointError: the disk is full or failing.
            NonFiniteError: a weight is not a number.
        """
        final = self._place_of(recipe)
        partial = final.with_name(f".{final.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        text = "".join(json.dumps(line) + "\n" for line in ended.lines)
        progress = dataclasses.replace(ended.progress, log_bytes=len(text.encode()))
        environment = {**environment, **ended.choices}
        try:
            with clear_errors(self.search, needed=len(text)):
                (partial / CHECKPOINTS).mkdir(parents=True)
            write_atomically(partial / ENVIRONMENT, json.dumps(environment, indent=1))
            write_atomically(partial / LOG, text)
            save_checkpoint(
                partial / CHECKPOINTS,
                step=progress.best_step,
                model=adapted.trained,
                optimizer=None,
                state={
                    "progress": dataclasses.asdict(progress),
                    "score": progress.score,
                    "best_step": progress.best_step,
                },
                environment=environment,
            )
            with clear_errors(self.search, needed=0):
                shutil.rmtree(final, ignore_errors=True)  # of a trial that was killed after it
                partial.replace(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def take(self, recipe: Recipe, run: Path) -> None:
        """Moves the recipe's training, if it waits, into the folder of a run that has trained nothing yet.

        The checkpoint goes last: killed in between, the rest follows at the next start.
        """
        place = self._place_of(recipe)
        if (run / CHECKPOINTS).exists() or not (place / CHECKPOINTS).exists():
            return
        for name in (ENVIRONMENT, LOG, CHECKPOINTS):
            with clear_errors(run, needed=0), suppress(FileNotFoundError):
                (place / name).replace(run / name)

    def drop(self, recipe: Recipe) -> None:
        """Forgets a training that no fit will ask for."""
        shutil.rmtree(self._place_of(recipe), ignore_errors=True)

    def clear(self) -> None:
        """Forgets all that wait."""
        shutil.rmtree(self.search / TRAININGS, ignore_errors=True)

    def _place_of(self, recipe: Recipe) -> Path:
        return self.search / TRAININGS / key_of(recipe)


def key_of(recipe: Recipe) -> str:
    """The same for recipes that train the same; where the run lies and what was searched don't matter."""
    fitted = recipe.model_copy(update={"tune": TuneSettings(), "out": None})
    return content_key(identity_of(fitted))[:16]
