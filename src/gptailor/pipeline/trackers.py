"""Experiment trackers: they receive what metrics.jsonl receives, the recipe, and at the end the scores.

Each library is imported in one function. All write to this machine unless the person points them
elsewhere by the library's own environment variables. Training never depends on one: a tracker that
fails is told of once and left out from there on.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from gptailor.errors import MissingExtraError
from gptailor.launch import write_atomically
from gptailor.pipeline.folder import LOG
from gptailor.recipe import Recipe, dump_recipe, leaves
from gptailor.report.facts import clip, mapping, scores

PROJECT = "gptailor"
IDS = "trackers.json"  # in the run folder: which run of a tracker this is, so that it is gone on with
CLOSED = "closed at step"  # beside the names: all that was logged went out by then
PARAMETER_CHARACTERS = 500  # MLflow refuses longer ones on older servers
MLFLOW_LINES = 50  # sent together: a server far away is asked rarely

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told of a run when it opens it; `id` is empty the first time."""

    folder: Path
    recipe: Recipe
    id: str

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that is set, by its dotted key."""
        values = self.recipe.model_dump(mode="json", exclude={"trackers", "tune"})
        return {key: value for key, value in leaves(values) if value is not None}


@dataclass(frozen=True, slots=True)
class Tracker:
    """An open run of a tracker: numbers by name at a step, and the last ones."""

    id: str
    log: Callable[[Mapping[str, float], int, float], None]  # at a step, at a time
    close: Callable[[Mapping[str, float]], None]
    holds: bool = False  # numbers back as it likes: it gets them at validations, and sends them then


@dataclass(slots=True)
class Trackers:
    """The open trackers of a run. Takes the lines of metrics.jsonl."""

    say: Callable[[str], None]
    open: dict[str, Tracker] = field(default_factory=dict)
    sent: dict[str, dict[str, int]] = field(default_factory=dict)  # to whom, of each kind the last step
    waiting: dict[str, list[tuple[float, Line]]] = field(default_factory=dict)  # for who holds numbers back

    def log(self, line: Line) -> None:
        """Takes one line; those that a resumed run repeats were taken before and stay away."""
        for name in list(self.open):
            if int(line["step"]) <= self.sent.get(name, {}).get(str(line["kind"]), 0):
                continue
            self.waiting.setdefault(name, []).append((time.time(), line))
            if not self.open[name].holds or line["kind"] == "validation":
                self.flush(name)

    def flush(self, name: str) -> None:
        """Sends one tracker what waits for it."""
        for at, line in self.waiting.pop(name, []):
            self.send(name, line, at)

    def send(self, name: str, line: Line, at: float) -> None:
        """Sends one line, logged at a time, to one tracker."""
        group = "train" if line["kind"] == "step" else line["kind"]
        numbers = {
            f"{group}/{key}": float(value)
            for key, value in line.items()
            if key not in ("kind", "step") and isinstance(value, int | float)
        }
        self._try(name, lambda tracker: tracker.log(numbers, int(line["step"]), at))

    def close(self, report: Line | None) -> None:
        """Sends the scores of a finished run and closes."""
        for name in list(self.open):
            self.flush(name)
            self._try(name, lambda tracker: tracker.close(final_scores(report or {})))
        self.open.clear()

    def _try(self, name: str, do: Callable[[Tracker], None]) -> None:
        if name not in self.open:
            return
        try:
            do(self.open[name])
        except Exception as error:
            del self.open[name]
            self.say(failure(name, error))


def failure(name: str, error: Exception) -> str:
    """One line on a tracker that failed."""
    what = clip(" ".join(str(error).split()) or type(error).__name__, 200)
    return f"warning: the tracker {name} failed ({what}); the run goes on without it"


def refuse_missing_trackers(names: Sequence[str]) -> None:
    """Looks, without importing, whether the libraries are there.

    Raises:
        MissingExtraError: one of them isn't.
    """
    for name in names:
        if find_spec(name) is None:
            raise MissingExtraError(name, name)


def last_steps(lines: Sequence[Line]) -> dict[str, int]:
    """The last step of each kind in the log."""
    return {str(line["kind"]): int(line["step"]) for line in lines}


@contextmanager
def tracked(recipe: Recipe, folder: Path, say: Callable[[str], None]) -> Iterator[Callable[[Line], None]]:
    """Opens the recipe's trackers, gives what takes the lines of metrics.jsonl, and sends the scores."""
    if not recipe.trackers:
        yield lambda _: None
        return
    before, ids = _read_lines(folder / LOG), _read_ids(folder / IDS)
    last = last_steps(before)
    # What comes after it waited where the run was killed.
    whole = max(last.get("validation", 0), int(ids.get(CLOSED, 0)))
    trackers, now = Trackers(say), time.time()
    for name in dict.fromkeys(recipe.trackers):
        try:
            opened = OPENERS[name](TrackedRun(folder, recipe, ids.get(name, "")))
        except Exception as error:
            say(failure(name, error))
            continue
        trackers.open[name] = opened
        if name not in ids:  # it came later than the run: it gets what it missed
            trackers.waiting[name] = [(now, line) for line in before]
            trackers.flush(name)
        elif opened.holds:
            trackers.waiting[name] = [(now, line) for line in before if int(line["step"]) > whole]
        trackers.sent[name] = last
    ids |= {name: tracker.id for name, tracker in trackers.open.items()}
    write_atomically(folder / IDS, json.dumps(ids, indent=1))
    try:
        yield trackers.log
    except BaseException:
        trackers.close(None)
        ended = max(last_steps(_read_lines(folder / LOG)).values(), default=0)
        with suppress(OSError):  # it would hide what went wrong
            write_atomically(folder / IDS, json.dumps({**ids, CLOSED: str(ended)}, indent=1))
        raise
    trackers.close(json.loads((folder / "report.json").read_text(encoding="utf-8")))


def final_scores(report: Line) -> dict[str, float]:
    """The test scores with the ends of their intervals, and the seconds of training."""
    found: dict[str, float] = {}
    for name, _, score in scores(report.get("test")):
        ends = {"": score.value, "_low": score.low, "_high": score.high}
        found |= {f"test/{name}{end}": value for end, value in ends.items() if value is not None}
    seconds = mapping(report.get("training")).get("seconds")
    return found | ({"training_seconds": float(seconds)} if seconds is not None else {})


def open_tensorboard(run: TrackedRun) -> Tracker:
    """Event files under RUN/tracking/tensorboard."""
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(run.folder / "tracking" / "tensorboard"))
    last = 0
    if not run.id:
        indented = "".join(f"    {line}\n" for line in dump_recipe(run.recipe).splitlines())
        writer.add_text("recipe", indented)  # it reads Markdown, where this is text as it stands

    def log(numbers: Mapping[str, float], step: int, at: float) -> None:
        nonlocal last
        last = step
        for name, value in numbers.items():
            writer.add_scalar(name, value, step, walltime=at)
        if any(name.startswith("validation/") for name in numbers):
            writer.flush()  # what stands before a checkpoint outlives a kill

    def close(numbers: Mapping[str, float]) -> None:
        log(numbers, last, time.time())
        writer.close()

    return Tracker("open", log, close, holds=True)


def open_mlflow(run: TrackedRun) -> Tracker:
    """MLflow's own store: MLFLOW_TRACKING_URI, else a database beside where the command was given."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow
    from mlflow.entities import Metric, Param

    client = mlflow.MlflowClient()
    run_id = run.id
    if not run_id:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name)
        run_id = client.create_run(experiment, run_name=run.folder.name).info.run_id
        cells = {key: clip(value, PARAMETER_CHARACTERS) for key, value in run.settings.items()}
        parameters = [Param(key, value) for key, value in cells.items()]
        for start in range(0, len(parameters), 100):  # as many as one call takes
            client.log_batch(run_id, params=parameters[start : start + 100])
    else:
        client.update_run(run_id, status="RUNNING")
    held: list[Any] = []
    last = 0

    def send() -> None:
        if held:
            client.log_batch(run_id, metrics=held.copy())  # it may send them later
            held.clear()

    def log(numbers: Mapping[str, float], step: int, at: float) -> None:
        nonlocal last
        last = step
        held.extend(Metric(name, value, int(1000 * at), step) for name, value in numbers.items())
        if len(held) >= 6 * MLFLOW_LINES or any(name.startswith("validation/") for name in numbers):
            send()

    def close(numbers: Mapping[str, float]) -> None:
        log(numbers, last, time.time())
        send()
        client.set_terminated(run_id, "FINISHED" if numbers else "KILLED")

    return Tracker(run_id, log, close, holds=True)


def open_wandb(run: TrackedRun) -> Tracker:
    """Weights & Biases, offline under RUN/tracking unless WANDB_MODE says otherwise."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    place, mode = run.folder / "tracking", os.environ.get("WANDB_MODE", "offline")
    place.mkdir(exist_ok=True)
    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=run.id or secrets.token_hex(4),
        name=run.folder.name,
        config=run.settings,
        dir=str(place),
        mode=cast("Any", mode),
        resume="allow" if run.id else None,
        settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
    )

    def close(numbers: Mapping[str, float]) -> None:
        opened.summary.update(dict(numbers))
        opened.finish(exit_code=0 if numbers else 1)

    return Tracker(opened.id, lambda numbers, step, _: opened.log(dict(numbers), step=step), close)


def open_trackio(run: TrackedRun) -> Tracker:
    """Trackio's own local store, unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names another."""
    import trackio

    name = run.id or f"{run.folder.name}-{secrets.token_hex(3)}"
    with redirect_stdout(sys.stderr):  # it prints; standard output belongs to --json
        opened = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=name,
            config=run.settings,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    last = 0

    def log(numbers: Mapping[str, float], step: int, _: float) -> None:
        nonlocal last
        last = step
        opened.log(dict(numbers), step=step)

    def close(numbers: Mapping[str, float]) -> None:
        if numbers:
            log(numbers, last, time.time())
        with redirect_stdout(sys.stderr):
            opened.finish()

    return Tracker(name, log, close)


OPENERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": open_tensorboard,
    "mlflow": open_mlflow,
    "wandb": open_wandb,
    "trackio": open_trackio,
}


def _read_lines(log: Path) -> list[Line]:
    """What a log holds so far; each line stood there before it went to a tracker."""
    if not log.exists():
        return []
    found = []
    for text in log.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # a killed writer's last line
            found.append(json.loads(text))
    return found


def _read_ids(path: Path) -> dict[str, str]:
    try:
        return {str(name): str(value) for name, value in json.loads(path.read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        return {}
