"""The straight line of `gptailor tune`: trials, finalists, one last fit, one opening of the test set."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gptailor.cache import content_key
from gptailor.data.source import is_stream
from gptailor.errors import FolderBusyError, InputError, RecipeError, RunError, number_of
from gptailor.launch import catch_signals, in_use, one_writer, write_atomically
from gptailor.pipeline.finished import REQUEST, SEARCH
from gptailor.pipeline.fit import fit_recipe, fit_sealed
from gptailor.pipeline.folder import ENVIRONMENT, FILES, as_searched, claim_folder, hash_files, refuse_fitted
from gptailor.pipeline.handover import TRAININGS, Handover
from gptailor.pipeline.place import Listener
from gptailor.pipeline.rehearsal import rehearse_classification
from gptailor.pipeline.rehearse import Rehearsal
from gptailor.pipeline.run import Run
from gptailor.pipeline.task import settle_task
from gptailor.pipeline.text_rehearsal import rehearse_language, rehearse_texts
from gptailor.pipeline.trackers import refuse_missing_trackers
from gptailor.recipe import Recipe, TuneSettings, differences, dump_recipe, identity_of, load_recipe
from gptailor.search.finalists import (
    Final,
    Finalist,
    choose_finalists,
    compare_finalists,
    nothing_else,
    own_trial,
)
from gptailor.search.outcome import RESULT, read_result, result_of, write_result
from gptailor.search.space import Dimension, build_space
from gptailor.search.study import Study, Tried
from gptailor.search.trials import Search, run_trials, trials_asked, used_up_whole

HASH, SECONDS = "data.sha256", "seconds.txt"
SPACE = "space.json"
DECIDED = "decided.json"  # the trials among which the winner was chosen; then no other begins
VERSION = "4"  # of what a trial leaves for its repeats
WAITING_SECONDS = 0.5

REHEARSALS: dict[str, Callable[[Recipe, Path, Listener], Rehearsal]] = {
    "classification": rehearse_classification,
    "language": rehearse_language,
    "completion": rehearse_texts,
    "chat": rehearse_texts,
    "preference": rehearse_texts,
}


@dataclass(frozen=True, slots=True)
class Tuned:
    """How a search ended: the run that was fitted with what it found, and tune.json."""

    run: Run
    result: dict[str, Any]


def tune_recipe(recipe: Recipe, *, overwrite: bool = False, listener: Listener | None = None) -> Tuned:
    """Searches for better settings than the recipe's own, then fits the winner; goes on where it stopped.

    Several processes may run the same command: they share the trials, and the last one fits.

    Raises:
        GptailorError: something the person can mend; the message says what.
    """
    listener = listener or Listener()
    recipe = settle_task(recipe)
    refuse_missing_trackers(recipe.trackers)
    refuse_streams(recipe)
    folder = claim_folder(recipe, overwrite=overwrite)
    refuse_fitted(folder)
    work = folder / SEARCH
    refuse_more_trials(folder, recipe)
    if (folder / RESULT).exists():
        refuse_other_request(work, recipe)
        listener.say(f"{folder} is finished; nothing to do")
        return Tuned(Run(folder), read_result(folder))
    with in_use(work):  # nobody moves it away under the trials
        clock = _Clock(work / SECONDS)
        listener = clock.saying(listener)
        with catch_signals():
            search = open_search(recipe, work, listener, before=clock.seconds)
            trials = run_trials(search)
        with alone(work, "another process compares the best and fits the winner: waiting for it", listener):
            if (folder / RESULT).exists():
                Handover(work).clear()  # of a trial that ended since
                return Tuned(Run(folder), read_result(folder))
            trials = decided_among(trials, work)
            with catch_signals():
                final = settle(search, trials, work)
            keep_decision(trials, recipe, work)
            run = fit_winner(recipe, final, folder, listener)
            result = result_of(search, trials, final, run.report, seconds=clock.seconds)
            write_result(folder, result)
    return Tuned(run, result)


def refuse_streams(recipe: Recipe) -> None:
    """Raises InputError for rows that can be read once only: trials read them, and so does the last fit."""
    for role in FILES:
        place = getattr(recipe.data, role)
        if place is not None and is_stream(place):
            raise InputError(
                "can be read once only, and a search reads its data again at the end.",
                where=f"data.{role}: {place}",
                fix="Save it as a file.",
            )


class _Clock:
    """Seconds that a search took, in this process and in those before it that were stopped or killed."""

    def __init__(self, path: Path) -> None:
        self._path, self._began = path, time.perf_counter()
        self._before = float(path.read_text(encoding="utf-8")) if path.exists() else 0.0

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._began

    def saying(self, listener: Listener) -> Listener:
        """The listener, whose every line is a moment to write the time down."""

        def say(line: str) -> None:
            write_atomically(self._path, f"{self.seconds:.1f}")
            listener.say(line)

        return dataclasses.replace(listener, say=say)


def open_search(recipe: Recipe, work: Path, listener: Listener, *, before: float = 0.0) -> Search:
    """Reads the data, builds the space and opens the trials; `before`: seconds that it took already."""
    began = time.monotonic() - before
    with alone(work, "another process reads the data, or compares the best: waiting for it", listener):
        begun = (work / REQUEST).exists()
        if begun:
            refuse_other_request(work, recipe)
        else:
            forget_refused(work)
        Handover(work).sweep()
        assert recipe.task is not None  # settled
        rehearsal = REHEARSALS[recipe.task](recipe, work, listener)
        if recipe.tune.seeds < rehearsal.fewest_repeats:
            raise RecipeError(
                f"one repeat can't win: for {recipe.task} repeats differ by their seed alone, and one says "
                "nothing of luck.",
                where="tune.seeds",
                fix=f"Set it to {rehearsal.fewest_repeats} or more.",
            )
        space = build_space(recipe, rehearsal)
        if begun:
            refuse_other_space(work, space)
        settings = recipe.tune
        study = Study(
            settings.storage or f"sqlite:///{quote(str((work / 'trials.sqlite3').resolve()))}",
            name=study_name(recipe),
            pruner=settings.pruner,
            seed=recipe.seed,
        )
        if not begun:
            keep_request(work, recipe, space)
    most = trials_asked(settings)
    budget = ", ".join(
        [
            *([number_of(int(most), "trial")] if math.isfinite(most) else []),
            *([f"about {settings.time}"] if settings.time else []),
        ]
    )
    listener.say(f"searching: {budget}; {', '.join(dimension.name for dimension in space)}")
    decided = (work / DECIDED).exists
    return Search(recipe, space, rehearsal, study, listener.say, began, decided, Handover(work).drop)


def forget_refused(work: Path) -> None:
    """Takes away what a start left that was refused, perhaps for other settings than today's."""
    for name in ("data", TRAININGS):
        shutil.rmtree(work / name, ignore_errors=True)
    (work / ENVIRONMENT).unlink(missing_ok=True)


def keep_decision(trials: Sequence[Tried], recipe: Recipe, work: Path) -> None:
    """Writes down which trials the winner was chosen among: a later start goes on with them alone."""
    if (work / DECIDED).exists():
        return
    ended = [one.number for one in trials if one.state not in ("running", "waiting")]
    told = {"asked": trials_asked(recipe.tune), "trials": ended}
    write_atomically(work / DECIDED, json.dumps(told))


def decided_among(trials: list[Tried], work: Path) -> list[Tried]:
    """The trials that count: all, or those of an earlier start that was stopped at the last fit."""
    if not (work / DECIDED).exists():
        return trials
    numbers = set(json.loads((work / DECIDED).read_text(encoding="utf-8"))["trials"])
    return [one for one in trials if one.number in numbers]


def settle(search: Search, trials: list[Tried], work: Path) -> Final:
    """Compares the best trials with the recipe's own settings once more, elsewhere."""
    settings = search.recipe.tune
    finalists = choose_finalists(trials, search.recipe_of, most=settings.finalists)
    if not finalists:
        told = "no trial reached what the recipe's own settings reached: they stay"
        if nothing_else(trials):
            told = "nothing else was tried: the recipe's own settings stay"
            told += "" if used_up_whole(trials) else "; give more trials or time"
        search.say(told)
        return Final([], [], None)
    final = compare_finalists(
        search.rehearsal,
        Finalist(own_trial(trials), search.recipe),
        finalists,
        repeats=settings.seeds,
        folder=work / "repeats",
        say=search.say,
    )
    if final.winner is None:
        search.say("no trial was far enough ahead of the recipe's own settings: they stay")
    else:
        search.say(f"trial {final.winner.trial.number} wins")
    return final


def fit_winner(recipe: Recipe, final: Final, folder: Path, listener: Listener) -> Run:
    """The last fit, from what a trial trained; where it won, the recipe's own answer the test rows beside."""
    work = folder / SEARCH
    own = recipe.model_copy(update={"tune": TuneSettings(), "out": str(work / "own")})
    best = recipe if final.winner is None else final.winner.recipe
    best = best.model_copy(update={"tune": TuneSettings(), "out": str(folder)})
    handover, rival = Handover(work), None
    handover.clear(but=[own, best])  # the fits need the room
    if final.winner is not None and not Run(folder).is_finished:
        listener.say("fitting the recipe's own settings, to compare")
        rival = fit_sealed(own, listener, search=work)
    listener.say("fitting the winner" if final.winner else "fitting the recipe's own settings")
    run = fit_recipe(best, listener=listener, rival=rival, search=work)
    handover.clear()
    return run


def study_name(recipe: Recipe) -> str:
    """The name of a search in a shared database: the same for the same recipe and data."""
    key = content_key(VERSION, identity_of(as_searched(recipe)), hash_files(recipe) or "")
    return f"gptailor-{Path(recipe.data.train).stem}-{key[:16]}"


def refuse_more_trials(folder: Path, recipe: Recipe) -> None:
    """Raises RunError where more trials are asked for than those whose winner is fitted, or being fitted."""
    decided = folder / SEARCH / DECIDED
    if not decided.exists():
        return
    had = json.loads(decided.read_text(encoding="utf-8"))["asked"]
    if trials_asked(recipe.tune) > had:
        raise RunError(
            f"is finished with {number_of(int(had), 'trial')}: the winner is fitted, or being fitted.",
            where=str(folder),
            fix=f"Ask for {int(had)}, choose another folder with --out, or --overwrite (this one is moved "
            "aside).",
        )


def refuse_other_request(work: Path, recipe: Recipe) -> None:
    """Raises RunError where the folder holds a search for something else."""
    differing = differences(load_recipe(work / REQUEST), as_searched(recipe))
    if (work / HASH).read_text(encoding="utf-8") != (hash_files(recipe) or ""):
        differing.append("the data files changed")
    if differing:
        raise RunError(
            "\n  ".join(["holds a search with other settings:", *differing]),
            where=str(work),
            fix="Choose another folder with --out, or --overwrite (the old run is moved aside).",
        )


def refuse_other_space(work: Path, space: Sequence[Dimension]) -> None:
    """Raises RunError where the search was begun with another space."""
    if (work / SPACE).read_text(encoding="utf-8") != _space_text(space):
        raise RunError(
            "holds a search of another version of Gptailor, which tries other settings.",
            where=str(work),
            fix="Choose another folder with --out, or --overwrite (the old one is moved aside).",
        )


def keep_request(work: Path, recipe: Recipe, space: Sequence[Dimension]) -> None:
    """Writes down what is searched for, once nothing stands against it; the request last."""
    write_atomically(work / SPACE, _space_text(space))
    write_atomically(work / HASH, hash_files(recipe) or "")
    write_atomically(work / REQUEST, dump_recipe(as_searched(recipe)))


def _space_text(space: Sequence[Dimension]) -> str:
    dimensions = [dataclasses.asdict(dimension) for dimension in space]
    return json.dumps({"version": VERSION, "dimensions": dimensions})


@contextlib.contextmanager
def alone(folder: Path, words: str, listener: Listener) -> Iterator[None]:
    """Holds the folder's lock; waits where another process has it, and says so."""
    with contextlib.ExitStack() as stack:
        told = False
        while True:
            try:
                stack.enter_context(one_writer(folder))
                break
            except FolderBusyError:
                if not told:
                    listener.say(words)
                told = True
                time.sleep(WAITING_SECONDS)
        yield
