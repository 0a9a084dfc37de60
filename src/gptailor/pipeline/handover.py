"""What trials trained, handed over to the last fit of a search, which needn't train it once more."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from gptailor.cache import content_key
from gptailor.errors import CheckpointError
from gptailor.models.approach import Adapted
from gptailor.pipeline.folder import (
    CHECKPOINTS,
    DATA_HASH,
    ENVIRONMENT,
    LOG,
    REFERENCE,
    as_fitted,
    holds_work,
)
from gptailor.pipeline.place import Progress
from gptailor.recipe import Recipe, identity_of
from gptailor.train.checkpoint import clear_errors, save_checkpoint

TRAININGS = "trainings"  # in the folder of a search


@dataclass(frozen=True, slots=True)
class Ended:
    """A training that came to its end; the model beside it holds the best weights."""

    progress: Progress
    lines: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    choices: Mapping[str, Any]  # what was measured on this machine


Leave = Callable[[Recipe, Adapted, Ended], None]  # keeps it for the last fit


@dataclass(frozen=True, slots=True)
class Handover:
    """Trainings that wait in a search's folder for a fit of the same recipe, and look as that fit's own."""

    search: Path

    def leave(
        self,
        environment: Mapping[str, Any],
        data_hash: str,
        say: Callable[[str], None],
        recipe: Recipe,
        adapted: Adapted,
        ended: Ended,
    ) -> None:
        """Keeps a training, whole or not at all: where the disk is full, the fit has to train once more.

        Raises:
            NonFiniteError: a weight is not a number.
        """
        final = self._place_of(recipe)
        partial = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            self._write(partial, {**environment, **ended.choices, DATA_HASH: data_hash}, adapted, ended)
            with clear_errors(self.search, needed=0):
                _discard(final)  # of a trial that was killed after it
                partial.replace(final)
        except CheckpointError as error:
            say(f"what this trial trained isn't kept for the last fit: {error.where}: {error.what}")
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write(self, folder: Path, environment: Mapping[str, Any], adapted: Adapted, ended: Ended) -> None:
        text = "".join(json.dumps(line) + "\n" for line in ended.lines)
        progress = dataclasses.replace(ended.progress, log_bytes=len(text.encode()))
        with clear_errors(self.search, needed=len(text)):
            shutil.rmtree(folder, ignore_errors=True)
            (folder / CHECKPOINTS).mkdir(parents=True)
            (folder / ENVIRONMENT).write_text(json.dumps(environment, indent=1), encoding="utf-8")
            (folder / LOG).write_text(text, encoding="utf-8", newline="\n")
        save_checkpoint(
            folder / CHECKPOINTS,
            step=progress.best_step,
            model=adapted.trained,
            optimizer=None,
            state=progress.state,
            environment=environment,
        )

    def take(self, recipe: Recipe, run: Path) -> None:
        """Moves the recipe's training, if it waits, into the folder of a run that has trained nothing yet.

        The checkpoint goes last: killed in between, the rest follows at the next start. What the base gave
        the answers of preferences goes with it.
        """
        place = self._place_of(recipe)
        if holds_work(run) or not (place / CHECKPOINTS).exists():
            return
        with clear_errors(run, needed=0):
            shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)  # of a fit that was killed before it had one
            if (self.search / REFERENCE).exists():
                shutil.copytree(self.search / REFERENCE, run / REFERENCE, dirs_exist_ok=True)
            for name in (ENVIRONMENT, LOG, CHECKPOINTS):
                with suppress(FileNotFoundError):  # moved before
                    (place / name).replace(run / name)

    def drop(self, recipe: Recipe) -> None:
        """Forgets a training that no fit will ask for."""
        _discard(self._place_of(recipe))

    def clear(self, but: Collection[Recipe] = ()) -> None:
        """Forgets all trainings that wait, but those of some recipes."""
        kept = {key_of(recipe) for recipe in but}
        for path in self._waiting():
            if path.name not in kept:
                _discard(path)
        with suppress(OSError):
            (self.search / TRAININGS).rmdir()

    def sweep(self) -> None:
        """Removes what killed processes left half written."""
        for path in self._waiting():
            process = path.name.rpartition(".")[2]
            if path.name.startswith(".") and not (process.isdecimal() and psutil.pid_exists(int(process))):
                shutil.rmtree(path, ignore_errors=True)

    def _waiting(self) -> list[Path]:
        folder = self.search / TRAININGS
        return list(folder.iterdir()) if folder.exists() else []

    def _place_of(self, recipe: Recipe) -> Path:
        return self.search / TRAININGS / key_of(recipe)


def key_of(recipe: Recipe) -> str:
    """The same for recipes that train the same; where the run lies and what was searched don't matter."""
    return content_key(identity_of(as_fitted(recipe)))[:16]


def _discard(folder: Path) -> None:
    """Makes a training invisible in one rename before its files go, so that none is ever found half."""
    hidden = folder.with_name(f".gone-{folder.name}.{os.getpid()}")
    shutil.rmtree(hidden, ignore_errors=True)
    with suppress(OSError):
        folder.replace(hidden)
    shutil.rmtree(hidden, ignore_errors=True)
