"""Trial after trial, until the budget is spent: drawn, rehearsed, given up where they lag behind."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gptailor.errors import NonFiniteError, RunError
from gptailor.pipeline.fit import LONGEST_AUTO_SECONDS
from gptailor.pipeline.rehearse import Rehearsal, Settled
from gptailor.recipe import Recipe, TuneSettings, seconds_of
from gptailor.report.facts import inside, metric_of, seconds_text
from gptailor.search.finalists import choose_finalists, num_going_on
from gptailor.search.space import Dimension, Value, as_taken, in_words, place_of, recipe_of
from gptailor.search.study import Running, Study, TakenOverError, Tried, has_own

USUAL_TRIALS = 20
REPEATED = 10  # draws in a row that are known already: the space holds little else
POLLING_SECONDS = 2.0
TRAINED_BY_AUTO = "full"


@dataclass(frozen=True, slots=True)
class Search:
    """What all trials have in common."""

    recipe: Recipe
    space: Sequence[Dimension]
    rehearsal: Rehearsal
    study: Study
    say: Callable[[str], None]
    began: float = field(default_factory=time.monotonic)
    decided: Callable[[], bool] = lambda: False  # whether the winner is chosen: then no trial begins
    drop: Callable[[Recipe], None] = lambda _: None  # what a trial of a recipe has trained

    @property
    def most_trials(self) -> float:
        """How many trials there may be; where only time is given, any number."""
        return trials_asked(self.recipe.tune)

    def seconds_left(self, trials: Sequence[Tried]) -> float:
        """What the time allows for trials, less what the finalists and the last fits will need."""
        allowed = self.recipe.tune.time
        if allowed is None:
            return math.inf
        return seconds_of(allowed) - (time.monotonic() - self.began) - closing_seconds(self, trials)

    def taken(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Settings that were drawn, as a recipe takes them."""
        known = {dimension.name: dimension for dimension in self.space}
        return {name: as_taken(known[name], value) for name, value in values.items()}

    def recipe_of(self, trial: Tried) -> Recipe:
        """The recipe that a trial tried."""
        return self.recipe if trial.own else recipe_of(self.recipe, self.space, self.taken(trial.values))


def trials_asked(settings: TuneSettings) -> float:
    """The budget in trials."""
    if settings.trials is not None:
        return settings.trials
    return USUAL_TRIALS if settings.time is None else math.inf


def run_trials(search: Search) -> list[Tried]:
    """Runs trials until the budget is spent, by this process and by others; returns all of them.

    Raises:
        RunError: the recipe's own settings can't be trained, so there is nothing to compare with.
    """
    told = False
    while not search.decided():
        for number in search.study.repeat_left_behind():
            search.say(f"trial {number} was left undone (its process is gone): its settings are tried again")
        trials = search.study.trials()
        if not has_own(trials) or _may_begin(search, trials):
            run_trial(search, search.study.begin(used_up(search, trials)))
        elif any(one.state == "running" for one in trials):
            if not told:
                search.say("waiting for trials that other processes are working on")
            told = True
            time.sleep(POLLING_SECONDS)
        else:
            break
    trials = search.study.trials()
    if not any(one.own and one.state == "complete" for one in trials):
        raise RunError(
            "the recipe's own settings were not tried to the end.",
            where="tune",
            fix="Run the same command again: it goes on from here.",
        )
    return trials


def used_up(search: Search, trials: Sequence[Tried]) -> dict[str, set[Value]]:
    """Approaches of which everything was tried: a head on the frozen body has little else to draw."""
    approach = next((dimension for dimension in search.space if dimension.path == "approach"), None)
    if approach is None:
        return {}
    ended = [search.taken(one.place or one.values) for one in trials if one.state in ("complete", "pruned")]
    gone: set[Value] = set()
    for kind in approach.choices:
        read = [one for one in search.space if one is not approach and one.belongs_to(str(kind))]
        names = [one.name for one in read]
        tried = {
            tuple(place[name] for name in names)
            for place in ended
            if place.get(approach.name) == kind and place.keys() >= set(names)
        }
        if all(one.choices for one in read) and len(tried) >= math.prod(len(one.choices) for one in read):
            gone.add(kind)
    return {approach.name: gone}


def used_up_whole(trials: Sequence[Tried]) -> bool:
    """Whether the last draws were all known already."""
    last = [one for one in trials if one.state in ("complete", "pruned")][-REPEATED:]
    return len(last) == REPEATED and all(one.same_as is not None for one in last)


def counted(trials: Sequence[Tried]) -> list[Tried]:
    """The trials that cost the budget something: those that ran or are running."""
    return [one for one in trials if one.state in ("complete", "pruned", "running") and one.same_as is None]


def run_trial(search: Search, running: Running) -> None:
    """Draws settings, rehearses them and writes down what came of it."""
    try:
        _run(search, running)
    except TakenOverError:
        search.say(f"trial {running.number} is tried again by another process, which took this one for dead")
    except Exception:
        running.drop()
        raise
    except BaseException:  # stopped by the person: in a notebook the process goes on living
        running.leave()
        raise


def _run(search: Search, running: Running) -> None:
    values: dict[str, Value] = {} if running.own else _draw(search, running)
    recipe = search.recipe if running.own else recipe_of(search.recipe, search.space, values)
    earlier = _same(search, recipe, values, running)
    if earlier is not None:
        running.finish(
            earlier.score,
            pruned=earlier.state == "pruned",
            same_as=earlier.number,
            settled=earlier.settled,
        )
        return
    began = time.monotonic()
    seen = _rehearse(search, running, recipe)
    place, centre = _places(search, recipe, seen) if running.own else (None, None)
    running.finish(
        seen.score,
        pruned=seen.pruned,
        note=seen.note,
        settled=None if seen.settled is None else dataclasses.asdict(seen.settled),
        place=place,
        centre=centre,
    )
    drop_beaten(search)
    told = search.rehearsal.told(seen.score)
    name = inside(metric_of(search.rehearsal.metric).title)
    came = seen.note or f"{name} {told:.4f}"
    if seen.pruned and not seen.note:
        came = f"given up after {seen.looks} validations at {told:.4f}"
    settings = "the recipe's own settings" if running.own else in_words(values)
    _tell(search, running.number, f"{settings}: {came}, {seconds_text(time.monotonic() - began)}")


@dataclass(slots=True)
class _Seen:
    """What came of a trial."""

    score: float = -math.inf  # of the last look
    looks: int = 0
    rate: float = 0.0  # that training settled on; 0 where none did
    settled: Settled | None = None
    pruned: bool = False
    note: str = ""  # why it was given up, where another score was not the reason


def _rehearse(search: Search, running: Running, recipe: Recipe) -> _Seen:
    """Trains until the end, or until going on isn't worth it. The recipe's own is never given up."""
    seen = _Seen()
    end = time.monotonic() + search.seconds_left(search.study.trials())
    # As a fit leaves a training out that has a frozen head beside it.
    has_frozen = search.recipe.approach.kind == "auto" and "frozen" in search.rehearsal.approaches
    longest = LONGEST_AUTO_SECONDS if has_frozen else math.inf

    def too_long(forecast: float) -> str:
        if forecast > longest:
            return f"left out: it would take up to {seconds_text(forecast)}"
        return "given up: the time is spent" if time.monotonic() > end else ""

    try:
        with running.signed():
            for look in search.rehearsal.trial(recipe):
                seen.score, seen.looks = look.result, look.number
                seen.settled, seen.rate = look.settled or seen.settled, look.learning_rate or seen.rate
                lags = look.number > 0 and running.report(look.number, look.score)
                if look.last or running.own:
                    continue
                seen.note = "" if lags else too_long(look.forecast)
                if lags or seen.note:
                    seen.pruned = True
                    break
    except NonFiniteError as error:
        if running.own:
            raise
        seen.pruned, seen.note = True, f"diverged: {error.what}"
    return seen


def _places(search: Search, recipe: Recipe, seen: _Seen) -> tuple[dict[str, Value] | None, ...]:
    """Where the recipe's own settings lie in the space: what they came to, and around what to draw."""
    approach, rate = search.rehearsal.own_approach, seen.rate
    centre = None
    if seen.settled is not None:
        if seen.settled.approach == "frozen" and rate:
            centre = place_of(recipe, search.space, approach=TRAINED_BY_AUTO, rate=rate)
        approach, rate = seen.settled.approach, seen.settled.learning_rate
    return place_of(recipe, search.space, approach=approach, rate=rate) if approach else None, centre


def drop_beaten(search: Search) -> None:
    """Forgets what was trained by trials that are no finalists any more: the last fit is none of theirs."""
    trials = search.study.trials()
    if not any(one.own and one.state == "complete" for one in trials):
        return
    finalists = choose_finalists(trials, search.recipe_of, most=search.recipe.tune.finalists)
    kept = [search.recipe, *(finalist.recipe for finalist in finalists)]
    for one in trials:
        if one.state == "complete" and (recipe := search.recipe_of(one)) not in kept:
            search.drop(recipe)


def forecast(search: Search, trials: Sequence[Tried]) -> float:
    """Seconds that the trials still to come will take, as those before them did."""
    done = [one for one in counted(trials) if one.state != "running"]
    if not done:
        return 0.0
    others = [one.seconds for one in done if not one.own] or [one.seconds for one in done]
    needed = (search.most_trials - len(counted(trials))) * sum(others) / len(others)
    return max(0.0, min(needed, search.seconds_left(trials)))


def closing_seconds(search: Search, trials: Sequence[Tried]) -> float:
    """Seconds that the finalists and the last fits will take, by the mean trial that ran to its end.

    Finalists are those of the trials so far, and one of those to come. After each repeat half of them go on;
    the winner and the recipe's own are fitted.
    """
    whole = [one.seconds for one in trials if one.state == "complete" and one.same_as is None]
    settings = search.recipe.tune
    repeats, running = 0, settings.finalists
    if any(one.own and one.state == "complete" for one in trials):
        found = choose_finalists(trials, search.recipe_of, most=settings.finalists)
        running = min(running, len(found) + 1)
    for _ in range(settings.seeds):
        repeats, running = repeats + 1 + running, num_going_on(running)
    return (
        (repeats / search.rehearsal.trainings + 2 * search.rehearsal.last_fit)
        * sum(whole)
        / max(1, len(whole))
    )


def _may_begin(search: Search, trials: Sequence[Tried]) -> bool:
    if len(counted(trials)) >= search.most_trials:
        return False
    if counted(trials) and search.seconds_left(trials) <= 0:
        if not any(one.state == "running" for one in trials):  # others end theirs: it was said before
            search.say(f"the time is spent ({search.recipe.tune.time}, with what the finalists need)")
        return False
    if used_up_whole(trials):
        search.say(f"the last {REPEATED} draws were known already: the space is used up")
        return False
    return True


def _draw(search: Search, running: Running) -> dict[str, Value]:
    values: dict[str, Value] = {}
    approach: str = search.recipe.approach.kind
    for dimension in search.space:
        if dimension.belongs_to(approach):
            values[dimension.name] = as_taken(dimension, running.draw(dimension))
        if dimension.path == "approach":
            approach = str(values[dimension.name])
    return values


def _same(search: Search, recipe: Recipe, values: Mapping[str, Value], running: Running) -> Tried | None:
    """An earlier finished trial of the same recipe, or of what the recipe's own settings came to.

    The recipe's own is never given up.
    """
    states = ("complete",) if running.own else ("complete", "pruned")
    for one in search.study.trials():
        if one.number == running.number or one.state not in states or one.same_as is not None:
            continue
        if search.recipe_of(one) == recipe or (one.place and search.taken(one.place) == values):
            return one
    return None


def _tell(search: Search, number: int, came: str) -> None:
    trials = search.study.trials()
    done = [one.score for one in trials if one.state == "complete" and one.score is not None]
    best = f"best {search.rehearsal.told(max(done)):.4f}; " if done else ""
    left = seconds_text(forecast(search, trials))
    closing = seconds_text(closing_seconds(search, trials))
    finished = sum(one.state != "running" for one in counted(trials))
    of = f" of {search.most_trials}" if math.isfinite(search.most_trials) else ""
    search.say(
        f"trial {number} ({finished}{of}), {came}; {best}"
        f"about {left} of trials left, then about {closing} to compare and fit"
    )
