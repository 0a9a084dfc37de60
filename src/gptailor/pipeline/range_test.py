"""A learning-rate range test: which rate makes the loss fall fastest, and at which it diverges.

Rates rise exponentially, one step each (Smith 2017, "Cyclical learning rates", section 3.3); the loss is
smoothed; proposed is the rate of the steepest fall, or a tenth of the rate at which the loss turns for good,
whichever is lower.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptailor.errors import NonFiniteError
from gptailor.models.approach import Adapted, put_weights, weights_of
from gptailor.pipeline.objective import Objective
from gptailor.pipeline.plan import Plan
from gptailor.pipeline.training import optimizer_of, steps_of
from gptailor.recipe import TrainSettings

LOWEST, HIGHEST = 1e-6, 1.0
STEPS = 80
SMOOTHING = 0.9  # share of the past in the smoothed loss
DIVERGED = 1.5  # times the lowest smoothed loss: it won't come back from there
BORDER = 4  # points at either end where the smoothed slope means little
SAFETY = 10.0  # below the rate at which the loss turned


@dataclass(frozen=True, slots=True)
class RatePoint:
    """One step of the test."""

    rate: float
    loss: float  # smoothed, nats per target


def range_test(
    adapted: Adapted, objective: Objective, plan: Plan, *, settings: TrainSettings, seed: int
) -> list[RatePoint]:
    """The smoothed loss at rising rates, up to where it diverges. The weights are put back."""
    before = weights_of(adapted)
    growth = (HIGHEST / LOWEST) ** (1 / (STEPS - 1))
    rising = dataclasses.replace(plan, learning_rate=LOWEST, head_learning_rate=LOWEST, steps=STEPS)
    constant = settings.model_copy(update={"schedule": "constant", "warmup": 0.0, "head_learning_rate": None})
    optimizer = optimizer_of(adapted, objective, plan=rising, settings=constant)
    steps = steps_of(
        adapted,
        objective,
        optimizer,
        plan=rising,
        settings=constant,
        seed=seed,
        steps=range(1, STEPS + 1),
    )
    curve: list[RatePoint] = []
    average, rate = 0.0, LOWEST
    try:
        for result in steps:
            average = SMOOTHING * average + (1 - SMOOTHING) * result.loss
            curve.append(RatePoint(rate, average / (1 - SMOOTHING**result.step)))
            if curve[-1].loss > DIVERGED * min(point.loss for point in curve):
                break
            rate *= growth
            for group in optimizer.param_groups:  # `set_rates` starts each step from the peak
                group["peak"] = rate
    except NonFiniteError:
        pass  # diverged for good: the curve ends before it
    finally:
        steps.close()
        put_weights(adapted, before)
        optimizer.zero_grad(set_to_none=True)
    return curve


def propose_rate(curve: Sequence[RatePoint]) -> float | None:
    """A peak rate, rounded to two digits; None where the curve is too short to say."""
    if len(curve) < 3 * BORDER:
        return None
    losses = np.array([point.loss for point in curve])
    slopes = np.gradient(losses)[BORDER:-BORDER]
    steepest = curve[int(slopes.argmin()) + BORDER].rate
    if slopes.min() >= 0:
        return None  # it never fell
    turned = curve[int(losses.argmin())].rate
    return float(f"{min(steepest, turned / SAFETY) if len(curve) < STEPS else steepest:.1e}")


def curve_in_words(curve: Sequence[RatePoint], rate: float | None, *, usual: float) -> str:
    """The curve, one value per decade, and what is made of it."""
    decades: dict[int, RatePoint] = {}
    for point in curve:
        decades.setdefault(math.floor(math.log10(point.rate) + 1e-9), point)
    told = ", ".join(f"{10.0**decade:g}: {point.loss:.3f}" for decade, point in sorted(decades.items()))
    ended = f"diverges at {curve[-1].rate:.1e}" if 0 < len(curve) < STEPS else "does not diverge"
    taken = f"taken: {rate:g}" if rate is not None else "it never fell steadily"
    return f"learning rate: {taken} (usual: {usual:g}); loss by rate: {told}; {ended}"
