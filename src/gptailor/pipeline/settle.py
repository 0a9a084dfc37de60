"""A plan settled on this machine: what is tried and timed before step 1."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptailor.launch import remember, write_atomically
from gptailor.models.approach import Adapted
from gptailor.models.lean import can_compile
from gptailor.models.load import takes_dropout
from gptailor.pipeline.folder import ENVIRONMENT
from gptailor.pipeline.measure import choose_compiled, measure_plan, memory_in_training, trained_bytes
from gptailor.pipeline.objective import Objective
from gptailor.pipeline.place import TrainingPlace
from gptailor.pipeline.plan import Plan, plan_for, shortened, steps_within, with_rate
from gptailor.pipeline.range_test import curve_in_words, propose_rate, range_test
from gptailor.recipe import TrainSettings
from gptailor.report.facts import bytes_text, seconds_text

Memory = tuple[int, int]  # bytes that training takes, and that stay free
# By what a step's cost depends on: the micro-batch that fits, the seconds of a token, and the memory.
Measured = dict[tuple[object, ...], tuple[int, float, Memory]]


def settle_plan(
    settings: TrainSettings,
    environment: dict[str, Any],
    adapted: Adapted,
    objective: Objective,
    approach: str,
    place: TrainingPlace,
    *,
    trainings: int = 1,
) -> Plan:
    """The plan with what is measured on this machine: once, before step 1; a resumed run reads it.

    `trainings` of this length share the minutes.
    """
    path = place.folder.parent / ENVIRONMENT
    plan = plan_for(settings, adapted, objective, approach)
    if "micro_batch_size" not in environment:
        if settings.dropout != TrainSettings().dropout and not takes_dropout(adapted.plain.config):
            place.say("this base has no dropout outside attention: train.dropout changes nothing")
        found, forecast, memory = measured_plan(
            settings,
            adapted,
            objective,
            approach=approach,
            seed=place.seed,
            say=place.say,
            trainings=trainings,
        )
        environment.update(remember(path, choices_of(settings, found, forecast, memory)))
    plan = with_rate(settings, plan, float(environment.get("learning_rate", plan.learning_rate)))
    return dataclasses.replace(
        shortened(plan, int(environment.get("steps", plan.steps))),
        micro_batch_size=min(environment["micro_batch_size"], plan.batch_size),
        precision=environment["precision"],
        workers=environment["workers"],
        compiled=_still_compiled(environment, path, place),
    )


def _still_compiled(environment: dict[str, Any], path: Path, place: TrainingPlace) -> bool:
    """Whether to compile, as the run did from its start; where that can't be any more, it is told."""
    if not environment["compiled"] or can_compile():
        return bool(environment["compiled"])
    change = "it was begun compiled, and there is no C++ compiler here"
    changed = list(dict.fromkeys([*environment.get("changed", []), change]))
    environment.update(changed=changed, bit_exact=False)
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        write_atomically(path, json.dumps({**kept, "bit_exact": False, "changed": changed}, indent=1))
    place.say(f"this machine differs from where the run began, so it is not bit-exact: {change}")
    return False


def choices_of(settings: TrainSettings, plan: Plan, forecast: float, memory: Memory) -> dict[str, Any]:
    """What environment.json keeps of a plan that was measured: it is measured once."""
    peak, spare = memory
    return {
        "micro_batch_size": plan.micro_batch_size,
        "precision": plan.precision,
        "workers": plan.workers,
        "compiled": plan.compiled,
        **({"learning_rate": plan.learning_rate} if settings.learning_rate == "find" else {}),
        **({"steps": plan.steps} if settings.minutes else {}),
        "forecast_seconds": round(forecast, 1),
        "memory_bytes": peak,
        "memory_spare_bytes": spare,
    }


def measured_plan(
    settings: TrainSettings,
    adapted: Adapted,
    objective: Objective,
    *,
    approach: str,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
    measured: Measured | None = None,
    trainings: int = 1,
) -> tuple[Plan, float, Memory]:
    """The plan with what is tried on this machine, and what its training will take at most: seconds, memory.

    What is in `measured` isn't measured again. `trainings` of this length share the minutes.
    """
    plan = plan_for(settings, adapted, objective, approach)
    plan, seconds, memory = timed_plan(settings, adapted, objective, plan, measured=measured)
    plan = found_plan(settings, adapted, objective, plan, seed=seed, say=say)
    steps = steps_within(settings.minutes, plan, seconds * trainings)
    return shortened(plan, steps), seconds * steps / plan.steps, memory


def timed_plan(
    settings: TrainSettings,
    adapted: Adapted,
    objective: Objective,
    plan: Plan,
    *,
    measured: Measured | None = None,
) -> tuple[Plan, float, Memory]:
    """The plan with a micro-batch that fits and blocks compiled where that pays; its seconds at most, and its
    memory.
    """
    known: Measured = {} if measured is None else measured
    tokens = plan.steps * plan.batch_size * float(objective.lengths.mean())
    sizes = (trained_bytes(adapted), plan.batch_size, plan.micro_batch_size, plan.precision)
    key = (*sizes, settings.dropout, settings.attention_dropout, settings.gradient_checkpointing)
    if key not in known:
        tried, seconds = measure_plan(adapted, objective, plan)
        known[key] = tried.micro_batch_size, seconds / tokens, memory_in_training(adapted)
    micro, seconds_of_token, memory = known[key]
    plan, seconds = dataclasses.replace(plan, micro_batch_size=micro), seconds_of_token * tokens
    plan, seconds = choose_compiled(
        adapted, objective, plan, seconds, wanted=settings.compile, minutes=settings.minutes
    )
    return plan, seconds, memory


def found_plan(
    settings: TrainSettings,
    adapted: Adapted,
    objective: Objective,
    plan: Plan,
    *,
    seed: int,
    say: Callable[[str], None],
) -> Plan:
    """The plan, with the learning rate of a range test where the recipe says `find`."""
    if settings.learning_rate != "find":
        return plan
    say("learning rate: looking for it (rates rise until the loss diverges)")
    curve = range_test(adapted, objective, plan, settings=settings, seed=seed)
    rate = propose_rate(curve)
    say(curve_in_words(curve, rate, usual=plan.learning_rate))
    return plan if rate is None else with_rate(settings, plan, rate)


def tell_cost(place: TrainingPlace, kind: str, environment: Mapping[str, Any], *, trainings: int = 1) -> None:
    """Says before step 1 what so many trainings cost, less the first where it came to its end before."""
    left = trainings - place.has_ended
    if left:
        place.say(cost_in_words(kind, environment, trainings=left))


def cost_in_words(kind: str, environment: Mapping[str, Any], *, trainings: int = 1) -> str:
    """What is said before step 1, of the step that was measured when the run began."""
    told = f"{kind}: training, about {seconds_text(environment['forecast_seconds'] * trainings)} at most"
    if "memory_bytes" not in environment:  # begun by an older version
        return told
    peak, spare = (bytes_text(environment[key]) for key in ("memory_bytes", "memory_spare_bytes"))
    return f"{told}, {peak} of memory ({spare} to spare)"
