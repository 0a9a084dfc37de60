"""The trials, in a database that several processes share. The only file that knows Optuna."""

from __future__ import annotations

import contextlib
import math
import random
import socket
import threading
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from gptailor.errors import GptailorError, MissingExtraError, RunError, without_passwords
from gptailor.search.space import Dimension, Value

try:
    import optuna
    from optuna.trial import FrozenTrial, TrialState
except ImportError:
    raise MissingExtraError("optuna", "tune") from None

DRAWN_ANYWHERE = 3  # of so many trials one draws all its settings
KEPT = 0.75  # of the best trial's settings, by the others
DRAWN_FREELY = 8  # trials before the sampler believes what it has seen
NEVER_PRUNED = 2  # finished trials before any is given up
WARM = 4  # validations, about one epoch, before a trial can be told to lag behind
UNSIGNED_SECONDS = 20  # between the beginning of a trial and its process' name
SIGN_SECONDS = 60  # between signs of life
SILENT_SECONDS = 30 * 60  # a process on another machine that gave none for so long is taken for dead
CLOSED = (ValueError, RuntimeError)  # what Optuna raises where somebody has ended the trial already
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True, slots=True)
class Tried:
    """What is known of one trial."""

    number: int
    state: str  # complete, pruned, failed (its process died), running, waiting
    values: Mapping[str, Value]  # by dimension; none of the recipe's own
    score: float | None  # higher is better; of a pruned one its last
    seconds: float
    looks: Mapping[int, float]  # the best score so far by validation
    own: bool  # the recipe's own settings
    same_as: int | None  # an earlier trial with the same settings, which wasn't run again
    note: str = ""
    settled: Mapping[str, Any] | None = None  # what a repeat goes on from; see `Settled`
    place: Mapping[str, Value] | None = None  # of the recipe's own: the values that it came to
    centre: Mapping[str, Value] | None = None  # where it trained, if another approach was better there


class TakenOverError(Exception):
    """Another process took this one for dead (it slept, perhaps) and tries the settings again."""


class Running:
    """One trial that this process works on. State that outlives a call."""

    def __init__(self, study: optuna.Study, trial: optuna.Trial, *, own: bool) -> None:
        self._study, self._trial, self.own = study, trial, own
        self.number = trial.number
        self.values: dict[str, Value] = {}

    @contextlib.contextmanager
    def signed(self) -> Iterator[None]:
        """Gives a sign of life every minute, however long a validation is away."""
        over = threading.Event()

        def sign() -> None:
            while not over.wait(SIGN_SECONDS):
                with contextlib.suppress(Exception):  # a database away for a moment; or the trial was ended
                    self._trial.set_user_attr("owner", _own_process())

        thread = threading.Thread(target=sign, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def draw(self, dimension: Dimension) -> Value:
        """A value of the dimension, as the sampler thinks best."""
        name, low, high, step = dimension.name, dimension.low, dimension.high, dimension.step
        if dimension.choices:
            value: Value = self._trial.suggest_categorical(name, list(dimension.choices))
        elif dimension.whole:
            value = self._trial.suggest_int(name, int(low), int(high), log=dimension.log, step=int(step or 1))
        else:
            value = self._trial.suggest_float(name, low, high, log=dimension.log, step=step)
        self.values[name] = value
        return value

    def report(self, look: int, score: float) -> bool:
        """Writes a look down; whether the trial lags so far behind that it should be given up.

        Raises:
            TakenOverError: another process has ended the trial.
        """
        try:
            self._trial.report(score, look)
        except CLOSED:
            raise TakenOverError from None
        return bool(self._trial.should_prune()) and not self.own

    def finish(
        self,
        score: float | None,
        *,
        pruned: bool = False,
        same_as: int | None = None,
        note: str = "",
        settled: Mapping[str, Any] | None = None,
        place: Mapping[str, Value] | None = None,
        centre: Mapping[str, Value] | None = None,
    ) -> None:
        """Writes the result down for good; `place` is where the recipe's own settings lie in the space, and
        `centre` where what it trained lies, if that isn't what it came to.
        """
        with contextlib.suppress(*CLOSED):  # another process took us for dead; it repeats the settings
            if same_as is not None:
                self._trial.set_user_attr("same_as", same_as)
            if note:
                self._trial.set_user_attr("note", note)
            if place is not None:
                self._trial.set_user_attr("place", dict(place))
            if centre is not None:
                self._trial.set_user_attr("centre", dict(centre))
            if settled is not None:
                self._trial.set_user_attr("settled", dict(settled))
            if pruned:
                self._study.tell(self._trial, state=TrialState.PRUNED)
            else:
                self._study.tell(self._trial, score)

    def drop(self) -> None:
        """Marks the trial as failed: it is not a result of its settings."""
        with contextlib.suppress(*CLOSED):
            self._study.tell(self._trial, state=TrialState.FAIL)

    def leave(self) -> None:
        """Marks the trial as failed, and puts its settings in line: this process stops working on it."""
        with contextlib.suppress(*CLOSED):
            self._study.tell(self._trial, state=TrialState.FAIL)
            _enqueue(self._study, self._trial.params, own=self.own)


class Study:
    """All trials of one search. State that outlives a call and a process."""

    def __init__(self, url: str, *, name: str, pruner: str, seed: int) -> None:
        """Opens the study, or makes it.

        Raises:
            RunError: the database can't be opened.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._sampler = _NearTheBest(seed)
        try:
            self._study = optuna.create_study(
                storage=_open_storage(url),
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                sampler=self._sampler,
                pruner=_pruner(pruner),
            )
        except GptailorError:
            raise
        except Exception as error:  # SQLAlchemy and its drivers raise what they like
            raise RunError(
                f"the database of the trials can't be opened: {_first_line(error)}",
                where=without_passwords(url),
                fix="Check the address given as --storage (for instance sqlite:///trials.sqlite3).",
            ) from None

    def begin(self, used_up: Mapping[str, Collection[Value]] | None = None) -> Running:
        """A new trial, or one that a dead process left undone.

        It is the recipe's own settings where they were not tried to the end and nobody is at it. Values that
        are `used_up`, by dimension, are drawn only where no other is left.
        """
        self._sampler.used_up = used_up or {}
        trial = self._study.ask()
        repeated = trial.user_attrs.get("repeated", False)
        others = [one for one in self.trials() if one.number != trial.number]
        own = bool(trial.user_attrs["own"]) if repeated else not has_own(others)
        if own:
            trial.set_user_attr("own", True)
        trial.set_user_attr("owner", _own_process())
        return Running(self._study, trial, own=own)

    def trials(self) -> list[Tried]:
        """Every trial so far."""
        return [_tried(trial) for trial in self._study.get_trials(deepcopy=False)]

    def repeat_left_behind(self) -> list[int]:
        """Marks the trials whose process is gone as failed, and puts their settings in line again."""
        left = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _is_alive(trial.user_attrs, begun=trial.datetime_start):
                continue
            try:
                self._study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, RuntimeError):  # another process was faster
                continue
            _enqueue(self._study, trial.params, own=_tried(trial).own)
            left.append(trial.number)
        return left

    def importance(self, trials: Sequence[Tried]) -> dict[str, float]:
        """How much of the difference between good and bad trials each setting explains; may be empty."""
        weighed = weighed_by_importance(trials)
        if len(weighed) < DRAWN_FREELY:
            return {}
        known = {one.number: one for one in self._study.get_trials()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(direction="maximize")
            study.add_trials(
                [
                    optuna.trial.create_trial(
                        params=known[one.number].params,
                        distributions=known[one.number].distributions,
                        value=one.score,
                    )
                    for one in weighed
                ]
            )
            try:
                return dict(optuna.importance.get_param_importances(study))
            except (ValueError, RuntimeError):  # all settings alike, or too few trials of a branch
                return {}


def weighed_by_importance(trials: Sequence[Tried]) -> list[Tried]:
    """The trials that say which settings matter: each once, those that were given up by their last score."""
    return [
        one
        for one in trials
        if one.state in ("complete", "pruned")
        and one.values
        and one.same_as is None
        and one.score is not None
        and math.isfinite(one.score)
    ]


def has_own(trials: Sequence[Tried]) -> bool:
    """Whether the recipe's own settings are among the trials, tried to the end or not given up yet."""
    return any(one.own and one.state in ("complete", "running", "waiting") for one in trials)


def _open_storage(url: str) -> Any:
    if "://" not in url:
        raise RunError(
            f"{url!r} is not a database's address.",
            where="--storage",
            fix="Write for instance sqlite:///trials.sqlite3, or postgresql://user@host/name.",
        )
    # A database file that another process writes to is waited for.
    waiting = {"connect_args": {"timeout": 120}} if url.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(url, engine_kwargs=waiting)


class _NearTheBest(optuna.samplers.BaseSampler):
    """TPE; but two trials of three keep most settings of the best so far, and draw the others.

    A recipe's own settings are seldom bad, and a trial that changes ten at once seldom reaches them. Where a
    head on the frozen body is best, trials draw near the best training: such a head has no settings to keep.
    Draws follow from the seed, the trial's number and what is finished: so a search that was stopped goes on
    as it would have, and processes side by side draw differently.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._number, self._sampler = -1, optuna.samplers.TPESampler()
        self._kept: dict[str, Any] = {}
        self.used_up: Mapping[str, Collection[Value]] = {}  # by dimension: drawn again, they'd be known

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return self._of(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        found = self._of(study, trial).sample_relative(study, trial, search_space)
        return {
            name: self._kept.get(name, self._fresh(name, value, search_space[name]))
            for name, value in found.items()
        }

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        sampler = self._of(study, trial)
        if param_name in self._kept:
            return self._kept[param_name]
        value = sampler.sample_independent(study, trial, param_name, param_distribution)
        return self._fresh(param_name, value, param_distribution)

    def _fresh(self, name: str, value: Any, distribution: Any) -> Any:
        """The value, or one that isn't used up."""
        gone = self.used_up.get(name, ())
        left = [choice for choice in distribution.choices if choice not in gone] if value in gone else []
        return random.Random(f"{self._seed} {self._number} {name}").choice(left) if left else value

    def _of(self, study: optuna.Study, trial: FrozenTrial) -> optuna.samplers.TPESampler:
        if trial.number != self._number:
            self._kept = self._keep(study, trial.number)
            with warnings.catch_warnings():
                # `group` draws the settings of each approach together; Optuna calls it experimental.
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._number = trial.number
                self._sampler = optuna.samplers.TPESampler(
                    n_startup_trials=DRAWN_FREELY,
                    group=True,
                    seed=(self._seed * 10_007 + trial.number) % 2**32,
                )
        return self._sampler

    def _keep(self, study: optuna.Study, number: int) -> dict[str, Any]:
        """The settings that a trial takes over from the best so far; at least one is drawn."""
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        centres = [
            (score, -one.number, place)
            for one in finished
            for score, place in _centres(one)
            if not any(value in self.used_up.get(name, ()) for name, value in place.items())
        ]
        best = max(centres, key=lambda centre: centre[:2], default=(0.0, 0, None))[2]
        if best is None or number % DRAWN_ANYWHERE == 0:
            return {}
        dice = random.Random(f"{self._seed} {number}")
        names = sorted(best)
        kept = [name for name in names if dice.random() < KEPT]
        if len(kept) == len(names):
            kept.remove(dice.choice(names))
        return {name: best[name] for name in kept}


def _centres(one: FrozenTrial) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """Scores and places of a finished trial near which others may draw."""
    attributes = one.user_attrs
    if (centre := attributes.get("centre")) and one.intermediate_values:
        yield max(one.intermediate_values.values()), centre
    if place := attributes.get("place") or one.params:
        yield one.value or 0.0, place


def _enqueue(study: optuna.Study, values: Mapping[str, Any], *, own: bool) -> None:
    study.enqueue_trial(dict(values), user_attrs={"repeated": True, "own": own})


def _pruner(name: str) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=NEVER_PRUNED, n_warmup_steps=2, n_min_trials=NEVER_PRUNED
        )
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=WARM, reduction_factor=3)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=WARM, reduction_factor=3)
    return optuna.pruners.NopPruner()


def _own_process() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "begun": _begun(process),
        "seen": time.time(),
    }


def _begun(process: psutil.Process) -> float:
    """When a process began, on a clock that nobody sets: on Linux, psutil adds the machine's start to it,
    which moves when the time of day is set."""
    return float(process.create_time() - (psutil.boot_time() if psutil.LINUX else 0))


def _is_alive(attributes: Mapping[str, Any], *, begun: Any) -> bool:
    """Whether the process of a running trial still works on it, as far as can be told from here."""
    owner = attributes.get("owner")
    if owner is None:  # killed, or not yet come to writing its name down
        return begun is not None and time.time() - begun.timestamp() < UNSIGNED_SECONDS
    if owner["host"] != socket.gethostname():
        return bool(time.time() - owner["seen"] < SILENT_SECONDS)
    with contextlib.suppress(psutil.Error):
        return bool(abs(_begun(psutil.Process(owner["pid"])) - owner["begun"]) < 1)
    return False


def _tried(trial: FrozenTrial) -> Tried:
    attributes = trial.user_attrs
    looks = {step: value for step, value in trial.intermediate_values.items() if step > 0}
    score = trial.values[0] if trial.values else None
    if score is None and trial.intermediate_values:
        score = trial.intermediate_values[max(trial.intermediate_values)]
    return Tried(
        number=trial.number,
        state=STATES[trial.state],
        values=dict(trial.params),
        score=score,
        seconds=trial.duration.total_seconds() if trial.duration else 0.0,
        looks=looks,
        own=trial.number == 0 or bool(attributes.get("own")),
        same_as=attributes.get("same_as"),
        note=str(attributes.get("note", "")),
        settled=attributes.get("settled"),
        place=attributes.get("place"),
        centre=attributes.get("centre"),
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
