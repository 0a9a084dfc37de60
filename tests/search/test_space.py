"""What a search may try, and what it refuses before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fake_search import recipe_with, rehearsal_of
from gptailor.errors import RecipeError
from gptailor.pipeline.rehearsal import are_uneven
from gptailor.pipeline.rehearse import Rehearsal
from gptailor.recipe import FullApproach, LoraApproach, build_recipe
from gptailor.search.space import Dimension, as_taken, build_space, in_words, place_of, recipe_of


@pytest.fixture
def rehearsal() -> Rehearsal:
    return rehearsal_of(lambda _: 0.5)


def space_of(rehearsal: Rehearsal, space: dict[str, Any], **values: Any) -> list[Dimension]:
    return build_space(recipe_with(tune={"space": space}, **values), rehearsal)


def test_the_usual_space_depends_on_the_approach(rehearsal: Rehearsal) -> None:
    whole = {d.name for d in build_space(recipe_with(), rehearsal)}
    assert {
        "approach",
        "train.learning_rate[full]",
        "train.learning_rate[lora]",
        "approach[lora].rank",
    } <= whole
    full = {d.name for d in build_space(recipe_with(approach="full"), rehearsal)}
    assert "train.learning_rate[full]" in full
    assert not {"approach", "approach[lora].rank", "train.learning_rate[lora]"} & full


def test_the_usual_rates_lie_around_those_of_the_approach(rehearsal: Rehearsal) -> None:
    space = {d.name: d for d in build_space(recipe_with(), rehearsal)}
    for kind, usual in (("full", 3e-4), ("lora", 1e-3)):
        rate = space[f"train.learning_rate[{kind}]"]
        assert rate.log
        assert rate.low < usual < rate.high


@pytest.mark.parametrize(
    ("rows", "values", "lengths"),
    [
        (850, {}, ("4 epochs", "9 epochs", None)),  # 15 is usual, and the most
        (16_000, {}, ("2 epochs", "3 epochs", "8 epochs", None)),  # 5
        (850, {"approach": "scratch"}, ("4 epochs", "9 epochs", None)),
        (850, {"train": {"length": "10 epochs"}}, ("3 epochs", "6 epochs", "16 epochs", "10 epochs")),
        (850, {"train": {"length": "540 steps"}}, ("3 epochs", "6 epochs", "16 epochs", "540 steps")),
        (40, {}, ("20 epochs", "40 epochs", None)),  # 200 steps are the fewest
    ],
)
def test_lengths_lie_around_the_recipes_own(
    rows: int, values: dict[str, Any], lengths: tuple[str | None, ...], rehearsal: Rehearsal
) -> None:
    import dataclasses

    space = build_space(recipe_with(**values), dataclasses.replace(rehearsal, num_rows=rows))
    assert next(one.choices for one in space if one.name == "train.length") == lengths


def test_class_settings_are_tried_only_where_rows_have_one_label(rehearsal: Rehearsal) -> None:
    import dataclasses

    several = dataclasses.replace(rehearsal, one_label=False, uneven=False)
    names = {d.name for d in build_space(recipe_with(), several)}
    assert not {"train.class_weights", "train.label_smoothing"} & names
    even = {d.name for d in build_space(recipe_with(), dataclasses.replace(rehearsal, uneven=False))}
    assert "train.label_smoothing" in even
    assert "train.class_weights" not in even


@pytest.mark.parametrize(
    ("labels", "uneven"), [([0, 0, 0, 1, 1], False), ([0, 0, 1, 3, 3, 3, 3], True), ([0, 0, 2, 2], False)]
)
def test_labels_are_uneven_by_those_that_have_rows(labels: list[int], uneven: bool) -> None:
    assert are_uneven(np.array(labels)) is uneven


@pytest.mark.parametrize(
    ("preference", "betas"),
    [
        ({}, (0.03, 0.1, 0.3)),
        ({"loss": "simpo"}, (0.6, 2.0, 6.0)),
        ({"loss": "ipo"}, (0.03, 0.1, 0.3)),
        ({"beta": 0.5}, (0.15, 0.5, 1.5)),
    ],
)
def test_the_strength_of_preferences_lies_around_what_is_usual_for_the_loss(
    rehearsal: Rehearsal, preference: dict[str, Any], betas: tuple[float, ...]
) -> None:
    recipe = recipe_with(task="preference", preference=preference)
    space = {d.name: d for d in build_space(recipe, rehearsal)}
    assert space["preference.beta"].choices == betas


@pytest.mark.parametrize("path", ["preference.beta", "train.class_weights"])
def test_a_setting_of_another_task_is_refused_before_the_first_trial(rehearsal: Rehearsal, path: str) -> None:
    recipe = recipe_with(task="completion", tune={"space": {path: [0.1, 0.3]}})
    with pytest.raises(RecipeError, match=f"{path} is for"):
        build_space(recipe, rehearsal)


def test_a_condition_binds_a_setting_to_its_approach(rehearsal: Rehearsal) -> None:
    space = {d.name: d for d in build_space(recipe_with(), rehearsal)}
    assert space["approach[lora].rank"].belongs_to("lora")
    assert not space["approach[lora].rank"].belongs_to("full")
    assert not space["train.dropout"].belongs_to("frozen")
    none = rehearsal_of(lambda _: 0.5, takes_dropout=False)  # as Llama
    assert "train.dropout" not in {one.name for one in build_space(recipe_with(), none)}
    compared = build_space(recipe_with(task="preference"), rehearsal)
    assert "train.dropout" not in {one.name for one in compared}, "it drowns what is compared"
    assert space["train.class_weights"].belongs_to("frozen")


def test_values_become_a_recipe(rehearsal: Rehearsal) -> None:
    recipe = recipe_with(approach={"kind": "lora", "alpha": 5})
    space = space_of(
        rehearsal,
        {
            "approach": ["full", "lora"],
            "approach[lora].rank": [2, 4],
            "train.dropout": {"low": 0, "high": 0.5},
        },
    )
    lora = recipe_of(recipe, space, {"approach": "lora", "approach[lora].rank": 2, "train.dropout": 0.25})
    assert lora.approach == LoraApproach(rank=2, alpha=5)  # the recipe's own settings of it stay
    assert lora.train.dropout == 0.25
    full = recipe_of(recipe, space, {"approach": "full", "train.dropout": 0.0})
    assert full.approach == FullApproach()
    assert full.data == recipe.data


def test_a_recipe_has_a_place_in_the_space(rehearsal: Rehearsal) -> None:
    """Its values by name, with what is usual where it leaves them open, and none that isn't tried."""
    recipe = recipe_with(approach={"kind": "auto"}, train={"batch_size": 64, "warmup": 0.15})
    space = build_space(recipe, rehearsal)
    place = place_of(recipe, space, approach="full", rate=3e-4)
    assert place["approach"] == "full"
    assert place["train.learning_rate[full]"] == 3e-4
    assert place["train.warmup"] == 0.15
    assert place["train.length"] is None
    assert {"train.batch_size", "train.learning_rate[lora]", "approach[lora].rank"}.isdisjoint(place)
    lora = place_of(recipe, space, approach="lora", rate=3e-4)
    assert lora["approach[lora].rank"] == LoraApproach().rank
    known = {dimension.name: dimension for dimension in space}
    assert all(known[name].holds(value) for name, value in {**place, **lora}.items())


def test_the_approach_is_drawn_first(rehearsal: Rehearsal) -> None:
    space = space_of(rehearsal, {"train.dropout": [0, 0.1], "approach": ["full", "lora"]})
    assert space[0].path == "approach"


def test_whole_numbers_stay_whole(rehearsal: Rehearsal) -> None:
    space = space_of(
        rehearsal,
        {"train.batch_size": {"low": 4, "high": 64, "log": True}, "train.warmup": {"low": 0, "high": 1}},
    )
    assert [d.whole for d in space] == [True, False]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"train.learningrate": [1e-3]}, "Did you mean 'train.learning_rate'"),
        ({"data.max_tokens": [64]}, "all trials share it"),
        ({"seed": [1, 2]}, "all trials share it"),
        ({"train.refit": [True, False]}, "which rows may choose"),
        ({"approach.rank": [4]}, "write approach[lora].rank"),
        ({"approach[lorra].rank": [4]}, "Did you mean 'lora'"),
        ({"approach": ["full", "loro"]}, "loro: choose from"),
        ({"train.dropout": [0.1, 1.5]}, "less than 1"),
        ({"train.dropout": {"low": 0, "high": 3}}, "less than 1"),
        ({"train.schedule": ["cosine", "sine"]}, "'sine'"),
        ({"train.length": ["five epochs"]}, "write it like"),
    ],
)
def test_a_wrong_space_is_told_before_anything_is_trained(
    rehearsal: Rehearsal, space: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        space_of(rehearsal, space)
    assert words in str(caught.value)
    assert f"tune.space.{next(iter(space))}" in str(caught.value)


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        ({"space": {"train.dropout": {"low": 1, "high": 0}}}, "must be under high"),
        ({"space": {"train.dropout": {"low": 0, "high": 1, "log": True}}}, "begins above 0"),
        ({"space": {"train.dropout": {"low": 0, "hihg": 1}}}, "Did you mean 'high'"),
        ({"space": {"train.dropout": []}}, "at least 1 item"),
        ({"space": {"train.dropout": 0.1}}, "valid list"),
        ({"time": "half an hour"}, 'write it like "90s"'),
        ({"trials": 0}, "greater than or equal to 1"),
        ({"pruner": "axe"}, "'axe'"),
    ],
)
def test_a_wrong_tune_section_is_told_in_words(tune: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build_recipe({"data": {"train": "x.csv"}, "tune": tune})
    assert words in str(caught.value)
    assert "#" not in str(caught.value)  # the names of pydantic's branches


def test_what_no_frozen_head_reads_is_not_searched(rehearsal: Rehearsal) -> None:
    """It would be announced and never drawn."""
    for space in ({}, {"train.learning_rate": [1e-4, 3e-4]}):
        with pytest.raises(RecipeError, match="frozen body"):
            space_of(replace(rehearsal, uneven=False), space, approach="frozen")
    both = {"approach": ["frozen", "full"], "train.learning_rate": [1e-4, 3e-4]}
    assert len(space_of(rehearsal, both)) == 2


@pytest.mark.parametrize("approach", ["auto", "full"])
def test_a_condition_that_no_trial_meets_is_refused(approach: str, rehearsal: Rehearsal) -> None:
    """Nothing would be tried, and the search would say that nothing was better."""
    space = {"approach[lora].rank": [4, 8]}
    with pytest.raises(RecipeError, match="no trial has approach lora"):
        space_of(rehearsal, space, approach=approach)
    assert space_of(rehearsal, {"approach": ["full", "lora"], **space}, approach=approach)
    assert space_of(rehearsal, space, approach="lora")


@pytest.mark.parametrize(
    "ends", [{"low": 8, "high": 32, "step": 0.5}, {"low": 8.5, "high": 32}, {"low": 8, "high": 32.5}]
)
def test_a_range_over_whole_numbers_has_whole_ends_and_steps(
    ends: dict[str, float], rehearsal: Rehearsal
) -> None:
    with pytest.raises(RecipeError, match="takes whole numbers"):
        space_of(rehearsal, {"train.batch_size": ends})


def test_a_rate_is_taken_with_two_digits_and_others_with_three() -> None:
    rate = Dimension("train.learning_rate", "train.learning_rate", low=1e-4, high=1e-2, log=True)
    assert as_taken(rate, 0.000412837) == 0.00041
    assert as_taken(Dimension("a", "a", low=0.0, high=0.3, step=0.1), 0.1 + 0.2) == 0.3
    assert as_taken(Dimension("a", "a", choices=(0.123456,)), 0.123456) == 0.123456


def test_settings_in_words() -> None:
    values = {
        "approach": "lora",
        "approach[lora].rank": 4,
        "train.learning_rate[lora]": 0.001,
        "train.length": None,
    }
    assert in_words(values) == "lora, rank 4, learning rate 0.001, the usual length"


@pytest.mark.parametrize("path", ["train.label_smoothing", "train.class_weights"])
def test_what_is_for_one_label_a_row_is_refused_for_sets_before_anything_is_trained(
    path: str, rehearsal: Rehearsal
) -> None:
    values = [0.0, 0.1] if path.endswith("smoothing") else ["none", "balanced"]
    space_of(rehearsal, {path: values})
    with pytest.raises(RecipeError, match="one label a row"):
        space_of(replace(rehearsal, one_label=False), {path: values})


def test_the_tokenizer_that_all_trials_share_is_not_searched(rehearsal: Rehearsal) -> None:
    with pytest.raises(RecipeError, match="all trials share it"):
        space_of(rehearsal, {"approach[scratch].vocabulary": [500, 1000]}, approach="scratch")
