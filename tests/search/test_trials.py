"""Trials: the first is the recipe's own, laggards are given up, the dead are repeated, processes share."""

from __future__ import annotations

import dataclasses
import math
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from optuna.trial import TrialState

from fake_search import recipe_with, rehearsal_of
from gptailor.errors import NonFiniteError, RunError
from gptailor.pipeline.rehearse import Look, Rehearsal, Settled
from gptailor.recipe import Recipe, TuneSettings
from gptailor.search.finalists import choose_finalists, own_trial
from gptailor.search.space import build_space, place_of
from gptailor.search.study import Running, Study, weighed_by_importance
from gptailor.search.trials import (
    Search,
    closing_seconds,
    counted,
    forecast,
    run_trial,
    run_trials,
    trials_asked,
)

DEAD = {"host": socket.gethostname(), "pid": 2**22 + 1, "begun": 0.0, "seen": 0.0}  # a process that isn't
DROPOUT = {"train.dropout": {"low": 0.0, "high": 0.9}}


def score_of(recipe: Recipe) -> float:
    """Best at a dropout of 0.6; the recipe's own has 0.1."""
    return 1.0 - abs(recipe.train.dropout - 0.6)


def search_in(folder: Path, *, said: list[str] | None = None, rehearsal: Any = None, **tune: Any) -> Search:
    recipe = recipe_with(tune={"space": DROPOUT, "trials": 9, **tune})
    rehearsal = rehearsal or rehearsal_of(score_of)
    settings = recipe.tune
    study = Study(f"sqlite:///{folder / 'trials.sqlite3'}", name="test", pruner=settings.pruner, seed=0)
    say = (lambda _: None) if said is None else said.append
    return Search(recipe, build_space(recipe, rehearsal), rehearsal, study, say)


def test_trial_0_is_the_recipes_own_and_better_ones_are_found(tmp_path: Path) -> None:
    ran: list[Recipe] = []
    search = search_in(tmp_path, rehearsal=rehearsal_of(score_of, ran=ran), trials=14, pruner="none")
    trials = run_trials(search)
    assert ran[0] == search.recipe
    assert [one.own for one in trials] == [True] + [False] * 13
    assert trials[0].score == pytest.approx(0.5)
    assert max(one.score or 0 for one in trials) > 0.8
    assert all(search.recipe_of(one) == recipe for one, recipe in zip(trials, ran, strict=True))


@pytest.mark.parametrize("pruner", ["median", "hyperband", "halving"])
def test_laggards_are_given_up_and_the_recipes_own_is_not(tmp_path: Path, pruner: str) -> None:
    trials = run_trials(
        search_in(tmp_path, rehearsal=rehearsal_of(score_of, looks=12), pruner=pruner, trials=13)
    )
    pruned = [one for one in trials if one.state == "pruned"]
    assert pruned
    assert all(0 < len(one.looks) < 12 for one in pruned)
    assert trials[0].state == "complete"


def test_without_a_pruner_nobody_is_given_up(tmp_path: Path) -> None:
    assert {one.state for one in run_trials(search_in(tmp_path, pruner="none"))} == {"complete"}


def test_the_same_settings_give_the_same_draws(tmp_path: Path) -> None:
    found = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        found.append([one.values for one in run_trials(search_in(tmp_path / name))])
    assert found[0] == found[1]


def test_most_trials_change_little_of_the_best_so_far(tmp_path: Path) -> None:
    """Ten settings, of which each is best as the recipe has it: who draws all at once hardly reaches it."""

    def score(recipe: Recipe) -> float:
        train = recipe.train
        own = (train.batch_size == 16, train.warmup == 0.06, train.schedule == "cosine", train.dropout == 0.1)
        return 0.5 + 0.1 * sum(own) - abs(train.weight_decay - 0.01)

    space = {
        "train.batch_size": [8, 16, 32],
        "train.warmup": [0.0, 0.06, 0.15],
        "train.schedule": ["cosine", "linear", "constant"],
        "train.dropout": [0.0, 0.1, 0.2],
        "train.weight_decay": [0.0, 0.01, 0.1],
    }
    search = search_in(tmp_path, rehearsal=rehearsal_of(score), space=space, trials=25, pruner="none")
    trials = run_trials(search)
    (own,) = [one for one in trials if one.own]
    place = place_of(search.recipe, search.space, approach="full", rate=3e-4)
    changed = {
        one.number: sum(one.values[name] != value for name, value in place.items())
        for one in trials
        if not one.own
    }
    near = [count for number, count in changed.items() if number % 3]
    far = [count for number, count in changed.items() if not number % 3]
    assert np.mean(near) < 1.8 < 2.4 < np.mean(far)
    assert own.score == pytest.approx(max(one.score or 0.0 for one in trials))


def frozen_is_best(recipe: Recipe) -> float:
    """Of the usual space: full trains best near its own settings, and a frozen head is better still."""
    if recipe.approach.kind == "frozen":
        return 0.9
    near = (recipe.train.batch_size == 16, recipe.train.warmup == 0.06, recipe.train.dropout == 0.1)
    return 0.4 * (recipe.approach.kind == "full") + 0.1 * sum(near)


def rehearsal_with_frozen(seconds: float = 0.0) -> Rehearsal:
    """As classification has it: `auto` trains fully, and settles on the head that was better."""
    usual = rehearsal_of(frozen_is_best, seconds=seconds)

    def trial(recipe: Recipe) -> Iterator[Look]:
        if recipe.approach.kind == "frozen":
            yield Look(0, -math.inf, fallback=0.9, settled=Settled("frozen"))
            return
        auto = recipe.approach.kind == "auto"
        for look in usual.trial(recipe):
            settled = Settled("frozen") if auto and look.last else look.settled
            fallback, score = (0.9, 0.7) if auto else (-math.inf, look.score)
            yield dataclasses.replace(
                look, score=score, fallback=fallback, settled=settled, learning_rate=3e-4
            )

    return dataclasses.replace(usual, trial=trial)


@pytest.mark.parametrize("seed", range(2))
def test_where_a_frozen_head_is_best_it_is_drawn_once_and_others_draw_near_the_training(
    tmp_path: Path, seed: int
) -> None:
    """It has no other settings: near it there is nothing to draw, and it would be drawn again and again."""
    recipe = recipe_with(tune={"trials": 25, "pruner": "none"})
    rehearsal = rehearsal_with_frozen()
    study = Study(f"sqlite:///{tmp_path / 'trials.sqlite3'}", name="test", pruner="none", seed=seed)
    search = Search(recipe, build_space(recipe, rehearsal), rehearsal, study, lambda _: None)
    trials = run_trials(search)
    assert len(counted(trials)) == 25
    frozen = [one for one in trials if one.values.get("approach") == "frozen"]
    assert len(frozen) <= 6, "with class weights, without them, and while that wasn't known"
    (own,) = [one for one in trials if one.own]
    assert own.place == {"approach": "frozen", "train.class_weights": "none"}
    assert own.centre is not None
    near = [one for one in trials if one.number % 3 and one.values and one not in frozen]
    kept = [own.centre["train.batch_size"] == one.values["train.batch_size"] for one in near]
    assert np.mean(kept) > 0.5, "by chance a third"


def test_a_trial_that_auto_would_leave_out_is_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    usual = rehearsal_with_frozen()

    def trial(recipe: Recipe) -> Iterator[Look]:
        hours = 36_000.0 if recipe.approach.kind == "full" else 60.0
        return (dataclasses.replace(look, forecast=hours) for look in usual.trial(recipe))

    recipe = recipe_with(tune={"trials": 12, "pruner": "none"})
    rehearsal = dataclasses.replace(usual, trial=trial)
    study = Study(f"sqlite:///{tmp_path / 'trials.sqlite3'}", name="test", pruner="none", seed=0)
    trials = run_trials(Search(recipe, build_space(recipe, rehearsal), rehearsal, study, said.append))
    full = [one for one in trials if one.values.get("approach") == "full" and one.same_as is None]
    assert full
    assert {(one.state, len(one.looks), one.note) for one in full} == {
        ("pruned", 1, "left out: it would take up to 10 h 0 min")
    }
    assert any("left out: it would take up to 10 h" in line for line in said)


def test_where_nothing_is_left_out_no_trial_is_for_its_length(tmp_path: Path) -> None:
    """Text tasks have no frozen head to fall back on: there a fit may take hours."""
    usual = rehearsal_of(score_of)

    def trial(recipe: Recipe) -> Iterator[Look]:
        return (dataclasses.replace(look, forecast=36_000.0) for look in usual.trial(recipe))

    rehearsal = dataclasses.replace(usual, trial=trial, approaches=("full", "lora"))
    trials = run_trials(search_in(tmp_path, rehearsal=rehearsal, trials=3, pruner="none"))
    assert {one.state for one in trials} == {"complete"}


def test_a_trial_ends_with_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_in(tmp_path, rehearsal=rehearsal_of(score_of), time="1h", pruner="none")
    run_trial(search, search.study.begin())
    monkeypatch.setattr(Search, "seconds_left", lambda *_: 0.0)
    run_trial(search, search.study.begin())
    last = search.study.trials()[-1]
    assert (last.state, len(last.looks), last.note) == ("pruned", 1, "given up: the time is spent")


def test_what_mattered_is_told_of_different_trials_alone(tmp_path: Path) -> None:
    """Copies of one trial would make its settings look all-important."""
    search = search_in(tmp_path, trials=9, pruner="median", rehearsal=rehearsal_of(score_of, looks=12))
    trials = run_trials(search)
    weighed = weighed_by_importance(trials)
    assert {one.state for one in weighed} == {"complete", "pruned"}
    assert search.study.importance(trials) == {"train.dropout": 1.0}
    copies = [dataclasses.replace(one, same_as=0) for one in trials[2:]]
    assert weighed_by_importance(copies) == []
    assert search.study.importance([*trials[:2], *copies]) == {}


def test_known_settings_are_not_run_again_and_cost_no_budget(tmp_path: Path) -> None:
    ran: list[Recipe] = []
    said: list[str] = []
    space = {"train.dropout": [0.2, 0.3]}
    search = search_in(tmp_path, said=said, rehearsal=rehearsal_of(score_of, ran=ran), space=space)
    trials = run_trials(search)
    assert len(ran) == len(counted(trials)) == 3  # the recipe's own and both choices
    assert all(one.score == trials[one.same_as].score for one in trials if one.same_as is not None)
    assert any("used up" in line for line in said)


def test_what_the_recipes_own_came_to_is_not_run_again_by_its_name(tmp_path: Path) -> None:
    """Without an approach or a rate in the recipe, a draw may be what these were settled to."""
    ran: list[Recipe] = []
    space = {"approach": ["full", "lora"], "train.learning_rate[full]": [3e-4]}
    search = search_in(tmp_path, rehearsal=rehearsal_of(score_of, ran=ran), space=space, trials=9)
    trials = run_trials(search)
    named = [one for one in trials if one.values.get("approach") == "full"]
    assert named
    assert all(one.same_as == 0 for one in named)
    assert len(ran) == len(counted(trials)) == 2  # the recipe's own, and lora


def test_the_recipes_own_may_equal_a_trial_and_is_told_all_it_settled(tmp_path: Path) -> None:
    """Its process was killed, and another's trial with the same settings had come to its end by then."""
    ran: list[Recipe] = []
    space = {"train.dropout": [0.1, 0.3]}
    search = search_in(tmp_path, rehearsal=rehearsal_of(score_of, ran=ran), space=space, trials=3)
    left = search.study.begin()
    while not any(one.values.get("train.dropout") == 0.1 for one in search.study.trials()):
        run_trial(search, search.study.begin())
    left.leave()
    trials = run_trials(search)
    own = own_trial(trials)
    assert own.same_as is not None
    assert own.settled == trials[own.same_as].settled != None  # noqa: E711
    assert ran.count(search.recipe) == 1
    finalists = choose_finalists(trials, search.recipe_of, most=9)
    assert own.same_as not in {one.trial.number for one in finalists}


def test_a_trial_that_diverges_is_marked_and_the_search_goes_on(tmp_path: Path) -> None:
    def score(recipe: Recipe) -> float:
        if recipe.train.dropout > 0.5:
            raise NonFiniteError("the loss became nan at step 3.")
        return 0.5

    trials = run_trials(search_in(tmp_path, rehearsal=rehearsal_of(score), trials=8))
    diverged = [one for one in trials if "diverged" in one.note]
    assert diverged
    assert {one.state for one in diverged} == {"pruned"}
    assert len(counted(trials)) == 8


def test_a_default_that_diverges_is_an_error(tmp_path: Path) -> None:
    def score(recipe: Recipe) -> float:
        raise NonFiniteError("the loss became nan at step 3.")

    with pytest.raises(NonFiniteError):
        run_trials(search_in(tmp_path, rehearsal=rehearsal_of(score)))


def test_a_larger_budget_goes_on_where_the_smaller_ended(tmp_path: Path) -> None:
    first = run_trials(search_in(tmp_path, trials=4))
    second = run_trials(search_in(tmp_path, trials=7))
    assert [one.score for one in second[:4]] == [one.score for one in first]
    assert len(second) == 7


def test_time_is_a_budget_too(tmp_path: Path) -> None:
    said: list[str] = []
    search = search_in(
        tmp_path, said=said, rehearsal=rehearsal_of(score_of, seconds=0.02), trials=500, time="2s"
    )
    began = time.monotonic()
    trials = run_trials(search)
    assert time.monotonic() - began < 15
    assert 1 <= len(trials) < 100
    assert any("time is spent" in line for line in said)


@pytest.mark.parametrize(
    ("settings", "asked"), [({}, 20), ({"time": "8h"}, math.inf), ({"time": "8h", "trials": 5}, 5)]
)
def test_who_gives_time_alone_gets_all_that_fits_it(settings: dict[str, Any], asked: float) -> None:
    assert trials_asked(TuneSettings(**settings)) == asked


def test_no_forecast_is_longer_than_the_time_allows(tmp_path: Path) -> None:
    search = search_in(tmp_path, rehearsal=rehearsal_of(score_of, seconds=0.05), trials=10_000, time="60s")
    for _ in range(2):
        run_trial(search, search.study.begin())
    trials = search.study.trials()
    left = forecast(search, trials) + closing_seconds(search, trials)
    assert 0 < left <= 60
    late = dataclasses.replace(search, began=search.began - 61)
    assert forecast(late, trials) == 0


def test_no_more_finalists_are_forecast_than_there_can_be(tmp_path: Path) -> None:
    """After the recipe's own trial one other may come; so two are fitted three times, not five."""
    search = search_in(tmp_path, rehearsal=rehearsal_of(score_of, seconds=0.05), trials=9)
    run_trial(search, search.study.begin())
    trials = search.study.trials()
    (own,) = [one.seconds for one in trials]
    whole = 6 / search.rehearsal.trainings + 2 * search.rehearsal.last_fit
    assert closing_seconds(search, trials) == pytest.approx(whole * own)


def test_a_forecast_is_told_after_every_trial(tmp_path: Path) -> None:
    said: list[str] = []
    run_trials(search_in(tmp_path, said=said, trials=3))
    told = [line for line in said if line.startswith("trial")]
    assert len(told) == 3
    assert all("of trials left" in line for line in told)
    assert "the recipe's own settings" in told[0]
    assert "dropout" in told[1]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # threads share the filters
def test_several_processes_share_a_study(tmp_path: Path) -> None:
    """Two at once: together they run the budget, and one trial is the recipe's own."""
    results: list[int] = []

    def work() -> None:
        results.append(len(run_trials(search_in(tmp_path, rehearsal=rehearsal_of(score_of, seconds=0.01)))))

    search_in(tmp_path)  # makes the tables
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = search_in(tmp_path).study.trials()
    assert 9 <= len(counted(trials)) <= 10  # the last two may begin at the same moment
    assert [one.number for one in trials if one.own] == [0]


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {tests!r} + "/search"]
from fake_search import rehearsal_of
from test_trials import score_of, search_in, run_trials
run_trials(search_in(Path({folder!r}), rehearsal=rehearsal_of(score_of, seconds=0.05)))
"""


def finished_in(database: Path) -> int:
    if not database.exists():
        return 0
    with sqlite3.connect(database, timeout=30) as connection:
        try:
            (count,) = connection.execute(
                "select count(*) from trials where state in ('COMPLETE', 'PRUNED')"
            ).fetchone()
        except sqlite3.OperationalError:
            return 0
    return int(count)


def test_killed_twice_no_finished_trial_is_lost(tmp_path: Path) -> None:
    code = KILLED.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path))
    known: dict[int, Any] = {}
    for kill in (2, 5):
        process = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 120
        while finished_in(tmp_path / "trials.sqlite3") < kill and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        trials = search_in(tmp_path).study.trials()
        finished = {one.number: one.score for one in trials if one.state in ("complete", "pruned")}
        assert len(finished) >= kill
        assert known.items() <= finished.items()
        known = finished
    trials = run_trials(search_in(tmp_path))
    assert known.items() <= {one.number: one.score for one in trials}.items()
    assert len(counted(trials)) == 9
    left = [one for one in trials if one.state == "failed"]
    assert len(left) <= 2
    tried = [one.values for one in trials if one.state in ("complete", "pruned")]
    assert all(one.values in tried for one in left if one.values)  # those settings were tried again


def test_a_trial_left_undone_is_marked_and_tried_again(tmp_path: Path) -> None:
    said: list[str] = []
    search = search_in(tmp_path, said=said, trials=3)
    run_trial(search, search.study.begin())
    running = search.study.begin()
    drawn = running.draw(search.space[0])
    running._trial.set_user_attr("owner", DEAD)
    trials = run_trials(search)
    assert [one.state for one in trials] == ["complete", "failed", "complete", "complete"]
    assert trials[2].values == {"train.dropout": drawn}
    assert any("trial 1 was left undone" in line for line in said)


def test_a_default_left_undone_is_the_default_again(tmp_path: Path) -> None:
    search = search_in(tmp_path)
    running = search.study.begin()
    assert running.own
    running._trial.set_user_attr("owner", DEAD)
    trials = run_trials(search)
    assert [one.number for one in trials if one.own and one.state == "complete"] == [1]


def test_a_default_that_failed_is_tried_again_whatever_the_budget(tmp_path: Path) -> None:
    """A full disk ends the first start; there is nothing to compare with until the default was tried."""
    full = [True]

    def score(recipe: Recipe) -> float:
        if full and recipe.train.dropout == 0.1:
            raise RunError("the disk is full.")
        return score_of(recipe)

    search = search_in(tmp_path, rehearsal=rehearsal_of(score), trials=3)
    with pytest.raises(RunError, match="full"):
        run_trials(search)
    full.clear()
    trials = run_trials(search)
    assert [one.number for one in trials if one.own and one.state == "complete"] == [1]
    assert len(counted(trials)) == 3


def test_a_trial_taken_for_dead_is_left_to_who_took_it(tmp_path: Path) -> None:
    """A laptop slept: another process has ended the trial and tries its settings again."""
    said: list[str] = []

    def score(recipe: Recipe) -> float:
        if recipe.train.dropout != 0.1:
            other.study._study.tell(1, state=TrialState.FAIL)
        return score_of(recipe)

    search, other = search_in(tmp_path, said=said, rehearsal=rehearsal_of(score)), search_in(tmp_path)
    run_trial(search, search.study.begin())
    running = search.study.begin()
    run_trial(search, running)
    assert search.study.trials()[1].state == "failed"
    assert any("took this one for dead" in line for line in said)
    running.finish(0.5, note="late")
    running.drop()
    assert search.study.trials()[1].state == "failed"


def test_a_trial_stopped_by_the_person_can_go_on_in_the_same_process(tmp_path: Path) -> None:
    """In a notebook the process lives on, so nobody would take the trial for dead."""
    pressed = [True]

    def score(recipe: Recipe) -> float:
        if pressed and recipe.train.dropout != 0.1:
            raise KeyboardInterrupt
        return score_of(recipe)

    search = search_in(tmp_path, rehearsal=rehearsal_of(score), trials=3)
    with pytest.raises(KeyboardInterrupt):
        run_trials(search)
    pressed.clear()
    trials = run_trials(search)
    assert [one.state for one in trials] == ["complete", "failed", "complete", "complete"]
    assert trials[2].values == trials[1].values


@pytest.mark.parametrize("moment", ["draw", "finish"])
def test_a_stop_at_any_moment_of_a_trial_leaves_it_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    search = search_in(tmp_path, trials=3)
    usual = getattr(Running, moment)
    pressed = [True]

    def stopped(running: Running, *given: Any, **named: Any) -> Any:
        if pressed and running.number == 1:
            raise KeyboardInterrupt
        return usual(running, *given, **named)

    monkeypatch.setattr(Running, moment, stopped)
    with pytest.raises(KeyboardInterrupt):
        run_trials(search)
    assert search.study.trials()[1].state == "failed"
    pressed.clear()
    assert [one.state for one in run_trials(search)] == ["complete", "failed", "complete", "complete"]


def test_once_the_winner_is_decided_no_trial_begins(tmp_path: Path) -> None:
    search = search_in(tmp_path, trials=3)
    assert len(run_trials(search)) == 3
    more = dataclasses.replace(search_in(tmp_path, trials=9), decided=lambda: True)
    assert len(run_trials(more)) == 3


def test_a_sign_of_life_comes_without_a_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptailor.search.study.SIGN_SECONDS", 0.01)
    search = search_in(tmp_path)
    running = search.study.begin()
    running._trial.set_user_attr("owner", DEAD)
    with running.signed():
        deadline = time.monotonic() + 30
        while running._trial.user_attrs["owner"] == DEAD and time.monotonic() < deadline:
            time.sleep(0.01)
    assert search.study.repeat_left_behind() == []


@pytest.mark.parametrize(
    "address", ["trials.sqlite3", "nosuch://host/name", "sqlite:////nowhere/at/all/trials.sqlite3"]
)
def test_a_database_that_cannot_be_opened_is_told_in_words(address: str) -> None:
    with pytest.raises(RunError):
        Study(address, name="test", pruner="none", seed=0)


def test_time_that_was_spent_before_counts(tmp_path: Path) -> None:
    """A search that was stopped again and again would never come to its end."""
    search = search_in(tmp_path, rehearsal=rehearsal_of(score_of), trials=500, time="60s")
    spent = dataclasses.replace(search, began=time.monotonic() - 120)
    assert len(run_trials(spent)) == 1, "the recipe's own, whatever it takes"


@pytest.mark.skipif(not psutil.LINUX, reason="only there the machine's start is added")
def test_a_clock_that_is_set_does_not_kill_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_in(tmp_path)
    search.study.begin()
    began, started = psutil.Process.create_time, psutil.boot_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: began(self) + 3600)
    monkeypatch.setattr(psutil, "boot_time", lambda: started + 3600)
    assert search.study.repeat_left_behind() == []
