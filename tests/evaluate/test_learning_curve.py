"""The forecast: exact where the curve is known, honest where it isn't; subsets nested and stratified."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gptailor.evaluate.learning_curve import (
    CurvePoint,
    draw_variance,
    forecast,
    nested_order,
    subset_sizes,
)


def points_of(
    score: Callable[[float], float], pool: int, *, draw: float = 0.0, subsets: int = 8, seed: int = 0
) -> list[CurvePoint]:
    """Scores of subsets as they overlap in a pool; the pool itself lies off the curve by its own draw."""
    rng = np.random.default_rng(seed)
    shift = rng.normal() * np.sqrt(draw / pool)
    points = []
    for size in subset_sizes(pool, smallest=20):
        count = subsets if size < pool else 1
        noise = rng.normal(size=(1, count)) * np.sqrt(draw / size * (1 - size / pool))
        points.append(CurvePoint(size, score(size) + shift + noise))
    return points


def power(rows: float) -> float:
    return 0.92 - 1.5 * rows**-0.5


def test_sizes_rise_by_the_root_of_two_to_all_rows() -> None:
    sizes = subset_sizes(800, smallest=20)
    assert sizes == [50, 71, 100, 141, 200, 283, 400, 566, 800]
    assert subset_sizes(30, smallest=20)[-1] == 30
    assert subset_sizes(10, smallest=20) == [10]


def test_every_prefix_is_stratified() -> None:
    strata = np.repeat([0, 1, 2], [600, 300, 100])
    order = nested_order(strata, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(1000))
    for size in (10, 50, 333, 700):
        counts = np.bincount(strata[order[:size]], minlength=3)
        assert np.abs(counts - size * np.array([0.6, 0.3, 0.1])).max() <= 1


def test_two_orders_differ() -> None:
    strata = np.zeros(100, np.int64)
    rng = np.random.default_rng(0)
    assert nested_order(strata, rng).tolist() != nested_order(strata, rng).tolist()


def test_the_draw_variance_undoes_the_overlap_of_subsets() -> None:
    found = np.mean([draw_variance(points_of(power, 1600, draw=0.2, seed=seed)) for seed in range(40)])
    assert found == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("times", [2, 5])
@pytest.mark.parametrize("exponent", [0, 0.1, 0.5])
def test_a_clean_curve_is_carried_on(times: int, exponent: float) -> None:
    """The log-odds of its error fall with a power of the rows, or with their logarithm."""

    def score(rows: float) -> float:
        fall = -np.log(rows / 1000) if exponent == 0 else ((rows / 1000) ** -exponent - 1) / exponent
        return float(1 / (1 + np.exp(-1.5 + 0.5 * fall)))

    (found,) = forecast(points_of(score, 1000), [1000 * times])
    assert found.value == pytest.approx(score(1000 * times), abs=0.004)
    assert found.low <= score(1000 * times) <= found.high


@pytest.mark.parametrize("times", [2, 5])
def test_a_clean_power_law_is_nearly_carried_on(times: int) -> None:
    """A power law of the error itself is none of the curves, and near enough to some of them."""
    (found,) = forecast(points_of(power, 1000), [1000 * times])
    assert found.value == pytest.approx(power(1000 * times), abs=0.003)
    assert abs(found.value - power(1000 * times)) < abs(power(1000) - power(1000 * times)) / 2


def test_a_flat_curve_stays() -> None:
    (found,) = forecast(points_of(lambda _: 0.8, 1000, draw=0.05), [5000])
    assert found.value == pytest.approx(0.8, abs=0.012)
    assert found.low < 0.8 < found.high


@pytest.mark.parametrize(
    "score",
    [
        power,
        lambda rows: 0.85 - 0.3 * np.exp(-rows / 900),
        lambda rows: 0.5 + 0.04 * np.log(rows),
        lambda rows: 1.02 - 1.3 / np.log(rows),
    ],
    ids=["power", "exponential", "logarithm", "inverse logarithm"],
)
def test_the_interval_holds_whatever_family_is_true(score: Callable[[float], float]) -> None:
    """A 95 % interval: at least 17 of 20 noisy pools, for every family."""
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(20):
        (found,) = forecast(points_of(score, 800, draw=0.15, seed=seed), [4000])
        truth = score(4000) + rng.normal() * np.sqrt(0.15 / 4000)
        inside += found.low <= truth <= found.high
    assert inside >= 17


def test_a_steep_curve_is_not_carried_on_to_perfection() -> None:
    """Many classes, few rows: each doubling still brings much, and nobody may promise that it goes on."""

    def score(rows: float) -> float:
        return float(1 / (1 + np.exp(4.6 - 0.82 * np.log(rows))))

    (found,) = forecast(points_of(score, 1400, draw=0.1), [7000])
    assert found.low <= score(7000) <= found.high
    assert found.high < 0.96
    assert found.high - found.low < 0.1


def test_noise_and_distance_widen_the_interval() -> None:
    def width(draw: float, rows: int) -> float:
        (found,) = forecast(points_of(power, 1000, draw=draw), [rows])
        return found.high - found.low

    assert width(0.3, 2000) > width(0.03, 2000)
    assert width(0.1, 8000) > width(0.1, 1500)


def test_scores_stay_between_0_and_1_and_the_seed_decides() -> None:
    near_top = points_of(lambda rows: 0.999 - 0.5 / rows, 400, draw=0.05)
    one, other = forecast(near_top, [4000], seed=3), forecast(near_top, [4000], seed=3)
    assert one == other
    assert 0 <= one[0].low <= one[0].value <= one[0].high <= 1
