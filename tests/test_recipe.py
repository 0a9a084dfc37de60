"""Settings: closed at every level, told together, and the same after a round trip."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import gptailor
from gptailor.errors import RecipeError
from gptailor.plain_yaml import dump_yaml, load_yaml
from gptailor.recipe import (
    APPROACHES,
    LoraApproach,
    Recipe,
    Settings,
    build_recipe,
    describe_settings,
    differences,
    dump_recipe,
    duration,
    load_recipe,
    with_changes,
)


def values(**more: Any) -> dict[str, Any]:
    return {"data": {"train": "news.csv"}, **more}


def faults_of(given_values: dict[str, Any]) -> list[str]:
    """The lines of the one error that these settings raise."""
    with pytest.raises(RecipeError) as caught:
        build_recipe(given_values)
    head, *lines = caught.value.what.splitlines()
    assert head == "these settings can't be used:"
    assert caught.value.fix
    return [line.removeprefix("  ") for line in lines]


def branches(
    branch: type[BaseModel] = Recipe, path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], Any]]:
    """Every closed branch of the tree, by its path; the approaches under `approach[kind]`."""
    found: list[tuple[tuple[str, ...], Any]] = [(path, branch)]
    for name, field in branch.model_fields.items():
        if name == "approach":
            found += [((f"approach[{kind}]",), chosen) for kind, chosen in APPROACHES.items()]
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            found += branches(field.annotation, (*path, name))
    return found


BRANCHES = branches()


def nested(path: tuple[str, ...], inside: dict[str, Any]) -> dict[str, Any]:
    """Settings in which a branch holds something."""
    result = values()
    place = result
    for step in path:
        if step.startswith("approach["):
            place = result["approach"] = {"kind": step[9:-1]}
        else:
            place = place.setdefault(step, {})
    place.update(inside)
    return result


@pytest.mark.parametrize(("path", "branch"), BRANCHES, ids=[".".join(path) or "top" for path, _ in BRANCHES])
def test_unknown_key_is_refused_at_every_level_with_the_nearest_one(
    path: tuple[str, ...], branch: Any
) -> None:
    for name in branch.model_fields:
        typo = name[:-1] + name[-1] * 2
        prefix = ".".join(step.split("[")[0] for step in path)
        (line,) = faults_of(nested(path, {typo: 1}))
        assert (
            line == f"{prefix}{'.' if prefix else ''}{typo}: there is no such setting. Did you mean {name!r}?"
        )
    (line,) = faults_of(nested(path, {"qqqqqqqq": 1}))
    assert line.endswith("qqqqqqqq: there is no such setting.")


@pytest.mark.parametrize("key", ["auto", "full", "lora", "frozen", "scratch", "kind", "x]", "[key]"])
def test_key_that_is_spelled_like_a_kind_is_refused_like_any_other(key: str) -> None:
    """Each once crashed or lost its name, because kinds stand in the library's own locations."""
    (line,) = faults_of(values(**{key: {"rank": 8}}))
    assert "there is no such setting" in line
    if "[" not in key:
        assert line.startswith(f"{key}: ")
        assert faults_of(nested(("train",), {key: True}))[0].startswith(f"train.{key}: ")
        if key != "kind":
            assert faults_of(nested(("approach[lora]",), {key: 1}))[0].startswith(f"approach.{key}: ")


def test_settings_of_one_approach_are_refused_by_another() -> None:
    assert faults_of(values(approach={"kind": "full", "rank": 8})) == [
        "approach.rank: there is no such setting."
    ]
    for kind, chosen in APPROACHES.items():
        for other in APPROACHES.values():
            for name in other.model_fields.keys() - chosen.model_fields.keys():
                lines = faults_of(values(approach={"kind": kind, name: 1}))
                assert lines[0].startswith(f"approach.{name}: there is no such setting.")


def test_approach_by_name_stands_for_its_defaults() -> None:
    for kind, chosen in APPROACHES.items():
        assert build_recipe(values(approach=kind)).approach == chosen()
    assert build_recipe(values()).approach == APPROACHES["auto"]()


def test_approach_that_is_none_of_ours_is_told_with_ours() -> None:
    (line,) = faults_of(values(approach="loar"))
    assert line == ("approach: 'loar' is none of auto, full, lora, frozen, scratch. Did you mean 'lora'?")
    (line,) = faults_of(values(approach={"rank": 8}))
    assert line == "approach: has no kind; write one of auto, full, lora, frozen, scratch"


def test_all_faults_are_told_at_once_with_their_values() -> None:
    lines = faults_of(
        {
            "data": {"text": "body"},
            "approach": {"kind": "lora", "rank": 0},
            "train": {"warmup": 2, "lenght": "3 epochs", "class_weights": {"sports": -1}},
            "seed": -1,
        }
    )
    text = "\n".join(lines)
    assert "data.train: is missing" in lines
    assert "approach.rank: Input should be greater than or equal to 1 (is 0)" in lines
    assert "train.warmup: Input should be less than or equal to 1 (is 2)" in lines
    assert "train.lenght: there is no such setting. Did you mean 'length'?" in lines
    assert "train.class_weights.sports: Input should be greater than 0 (is -1)" in lines
    assert "seed: " in text
    assert "pydantic" not in text
    assert "dict[" not in text


@pytest.mark.parametrize(
    "key", ["learning_rate", "head_learning_rate", "weight_decay", "clip", "warmup", "dropout"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5])
def test_numbers_that_are_none_are_refused(key: str, value: float) -> None:
    (line,) = faults_of(values(train={key: value}))
    assert line.startswith(f"train.{key}: ")


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "one"])
def test_seed_is_one_that_every_library_takes(seed: Any) -> None:
    assert faults_of(values(seed=seed))[0].startswith("seed: ")
    assert build_recipe(values(seed=2**32 - 1)).seed == 2**32 - 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 epochs", (3.0, "epochs")),
        ("1 epoch", (1.0, "epochs")),
        ("0.5 epochs", (0.5, "epochs")),
        ("500 steps", (500.0, "steps")),
        ("1 step", (1.0, "steps")),
        ("  20   steps ", (20.0, "steps")),
        ("20steps", (20.0, "steps")),
    ],
)
def test_lengths_are_written_as_people_say_them(text: str, expected: tuple[float, str]) -> None:
    assert duration(text) == expected
    assert build_recipe(values(train={"length": text})).train.length == text


@pytest.mark.parametrize(
    "text", ["", "3", "epochs", "-3 epochs", "3 days", "3 epochs 2 steps", "1e3 steps", "∞ steps"]
)
def test_what_is_no_length_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(RecipeError, match='Write it like "3 epochs"'):
        duration(text)
    for key in ("length", "save_every"):
        (line,) = faults_of(values(train={key: text}))
        assert line.startswith(f"train.{key}: {text!r} is not a length; write it like")


def test_labels_that_are_numbers_in_yaml_are_taken_as_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data:\n  train: news.csv\n  label_names: {0: World, 1: Sports}\n  test_label_names: {1: World}\n"
        "train:\n  class_weights: {0: 2.5, Sports: 1}\n"
    )
    recipe = load_recipe(path)
    assert recipe.data.label_names == {"0": "World", "1": "Sports"}
    assert recipe.data.test_label_names == {"1": "World"}
    assert recipe.train.class_weights == {"0": 2.5, "Sports": 1}


@pytest.mark.parametrize(
    "word", ["yes", "no", "on", "off", "y", "n", "null", "1e-3", "007", "2024-01-01", "12:30"]
)
def test_labels_are_the_text_that_stands_there(word: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"data:\n  train: news.csv\n  label_names: {{{word}: Word}}\n")
    assert load_recipe(path).data.label_names == {word: "Word"}


def test_a_choice_that_yaml_would_take_for_a_truth_value(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data: {train: news.csv, text: on, label: no}\ntrain: {compile: off, learning_rate: 1e-3}\n"
    )
    recipe = load_recipe(path)
    assert (recipe.data.text, recipe.data.label, recipe.train.compile) == ("on", "no", "off")
    assert recipe.train.learning_rate == 1e-3
    assert load_yaml(dump_recipe(recipe)) == yaml.safe_load(dump_recipe(recipe))
    assert with_changes({}, ["train.compile=off"]) == {"train": {"compile": "off"}}
    for typed in ("---", "|", "#", "###", "a # b", ">", "-", "::", "== #1", "!", "&x y", "%"):
        assert with_changes({}, [f"data.separator={typed}"])["data"]["separator"] == typed.strip(), typed
    quoted = {'" "': " ", "'#'": "#", "": None, "~": None, "null": None, "[a, b]": ["a", "b"], "3": 3}
    quoted |= {"0.5": 0.5, "true": True, "{low: 1}": {"low": 1}, "1e-3": 1e-3}
    for typed, value in quoted.items():
        assert with_changes({}, [f"x.y={typed}"])["x"]["y"] == value, typed


def test_a_setting_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {train: news.csv}\ntrain: {clip: 2}\ntrain: {batch_size: 8}\n")
    with pytest.raises(RecipeError, match=r"'train' stands there twice(.|\n)*line 3"):
        load_recipe(path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
        lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=6), below, max_size=3),
        max_leaves=8,
    )
)
@settings(deadline=None)
def test_yaml_that_was_written_is_read_as_it_was(value: object) -> None:
    assert load_yaml(dump_yaml(value)) == value


def test_an_approach_and_its_settings_may_be_given_one_by_one() -> None:
    changed = with_changes({}, ["approach=lora", "approach.rank=4"])
    assert changed == {"approach": {"kind": "lora", "rank": 4}}


def test_recipe_is_frozen() -> None:
    recipe = build_recipe(values())
    with pytest.raises(ValidationError):
        recipe.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        recipe.train.batch_size = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no settings"),
        (b"- a\n- b\n", "holds no settings"),
        (b"data: {train: [", "can't be read"),
        (b"\xff\xfe\x00", "can't be read"),
        (b"data: {train: x}\nevil: !!python/object/apply:os.getcwd []\n", "can't be read"),
        (b"data: {train: x}\nsed: 3\n", "Did you mean 'seed'?"),
    ],
)
def test_file_that_is_no_recipe_is_told_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert words in caught.value.what
    assert caught.value.where == str(path)
    with pytest.raises(RecipeError, match=r"nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")


# Whatever a column, label or file may be called; YAML's own words and numbers are the tricky ones.
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.sampled_from(
    [
        "no",
        "null",
        "0x1F",
        "1e3",
        "007",
        "2020-01-01",
        "~",
        "- a",
        "a: b",
        "#x",
        " pad ",
        "é👍",
        "\u2028",
        "\x85",
        "\x07",
    ]
)
rates = st.floats(1e-8, 1e3)
approaches = st.one_of(
    st.just({"kind": "auto"}),
    st.just({"kind": "full"}),
    st.fixed_dictionaries(
        {"kind": st.just("lora")},
        optional={"rank": st.integers(1, 99), "alpha": rates, "targets": st.lists(names)},
    ),
    st.fixed_dictionaries(
        {"kind": st.just("frozen")}, optional={"strengths": st.lists(rates, min_size=1, max_size=3)}
    ),
    st.fixed_dictionaries({"kind": st.just("scratch")}, optional={"layers": st.none() | st.integers(1, 9)}),
)
recipes = st.fixed_dictionaries(
    {
        "data": st.fixed_dictionaries(
            {"train": names},
            optional={
                "text": st.none() | names,
                "label_names": st.dictionaries(names, names, max_size=3),
                "clean": st.fixed_dictionaries({}, optional={"repair_text": st.booleans()}),
                "split": st.fixed_dictionaries({}, optional={"test": st.none() | st.floats(0, 1)}),
            },
        )
    },
    optional={
        "approach": approaches,
        "train": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": st.none() | rates,
                "length": st.sampled_from(["3 epochs", "0.5 epochs", "20 steps"]),
                "class_weights": st.sampled_from(["none", "balanced"])
                | st.dictionaries(names, rates, max_size=3),
            },
        ),
        "seed": st.integers(0, 2**32 - 1),
        "out": st.none() | names,
    },
).map(build_recipe)


@given(recipes)
@settings(deadline=None)
def test_recipe_that_was_written_is_read_as_it_was(recipe: Recipe) -> None:
    text = dump_recipe(recipe)
    for load in (load_yaml, yaml.safe_load):  # other tools read YAML 1.1
        assert build_recipe(load(text)) == recipe
        assert dump_recipe(build_recipe(load(text))) == text
        assert differences(recipe, build_recipe(load(text))) == []


def test_a_written_recipe_holds_no_password() -> None:
    recipe = build_recipe(values(tune={"storage": "postgresql://me:planted@host/trials"}))
    assert load_yaml(dump_recipe(recipe))["tune"]["storage"] == "postgresql://me@host/trials"


def test_recipe_survives_a_file(tmp_path: Path) -> None:
    recipe = build_recipe(
        values(approach={"kind": "lora", "targets": ["q_proj"]}, train={"learning_rate": 1e-5})
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert written["train"]["batch_size"] == 16  # defaults are written out, so that they can't change later


@given(recipes, recipes)
@settings(deadline=None)
def test_differences_are_none_only_between_equals(one: Recipe, other: Recipe) -> None:
    assert differences(one, one) == []
    same = one.model_copy(update={"out": None}) == other.model_copy(update={"out": None})
    assert (differences(one, other) == []) == same


def test_differences_name_the_setting_and_both_values() -> None:
    one = build_recipe(values(seed=1, out="runs/a", data={"train": "a.csv", "label_names": {"0": "World"}}))
    other = build_recipe(values(seed=2, out="runs/b", approach="lora", data={"train": "a.csv"}))
    found = differences(one, other)
    assert "seed: 1, now 2" in found
    assert "approach.kind: 'auto', now 'lora'" in found
    assert "approach.rank: None, now 8" in found
    assert any(line.startswith("data.label_names") for line in found)
    assert not any(line.startswith("out") for line in found)  # a run may be moved


def test_changes_are_yaml_values_at_a_path() -> None:
    before = values(train={"batch_size": 8})
    changed = with_changes(
        before,
        [
            "train.length=3 epochs",
            "train.learning_rate=1e-5",
            "data.split.test=0.3",
            "data.text=",
            "data.label_names={0: World}",
            "approach.kind=lora",
            "approach.rank=4",
            " seed = 7",
            "seed=8",
        ],
    )
    recipe = build_recipe(changed)
    assert (recipe.train.batch_size, recipe.train.length, recipe.train.learning_rate) == (8, "3 epochs", 1e-5)
    assert recipe.data.split.test == 0.3
    assert recipe.data.text is None
    assert recipe.data.label_names == {"0": "World"}
    assert recipe.approach == LoraApproach(rank=4)
    assert recipe.seed == 8
    assert before == values(train={"batch_size": 8})


def test_change_under_an_approach_that_was_given_by_name() -> None:
    """`--approach lora --set approach.rank=4`."""
    assert build_recipe(with_changes(values(approach="lora"), ["approach.rank=4"])).approach == LoraApproach(
        rank=4
    )
    assert faults_of(with_changes(values(approach="full"), ["approach.rank=4"]))
    replaced = with_changes(values(approach={"kind": "lora", "rank": 4}), ["approach=full"])
    assert build_recipe(replaced).approach == APPROACHES["full"]()


@pytest.mark.parametrize("change", ["train.length", "", "=3", "  =3"])
def test_change_that_sets_nothing_is_refused(change: str) -> None:
    with pytest.raises(RecipeError, match="is not a setting"):
        with_changes(values(), [change])


@pytest.mark.parametrize(
    "change", ["train.lenght=3 epochs", "trian.length=3 epochs", "data.split.tset=1", "seed.x=1", ".a=1"]
)
def test_change_of_an_unknown_setting_is_refused(change: str) -> None:
    faults_of(with_changes(values(), [change]))


def leaves(branch: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, field in branch.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += leaves(field.annotation, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", field))
    return found


def test_every_setting_has_one_line_of_help_and_its_default() -> None:
    described = {key: (default, help_line) for key, default, help_line in describe_settings()}
    assert len(described) == len(list(describe_settings()))
    expected = dict(leaves(Recipe)) | {
        f"approach[{kind}].{name}": field
        for kind, chosen in APPROACHES.items()
        for name, field in leaves(chosen)
        if name != "kind"
    }
    assert described.keys() == expected.keys()
    for key, field in expected.items():
        default, help_line = described[key]
        assert 8 <= len(help_line) <= 100, key
        assert "\n" not in help_line
        if field.is_required():
            assert default == "(required)"
        elif key != "approach":
            assert yaml.safe_load(default) == field.default
    assert [branch for _, branch in BRANCHES if not branch.__doc__] == []


def test_every_setting_is_read_somewhere() -> None:
    """A setting that nothing reads would be a silent lie (an attribute of its name, outside this module)."""
    root = Path(gptailor.__file__).parent
    code = "\n".join(
        path.read_text(encoding="utf-8") for path in root.rglob("*.py") if path.name != "recipe.py"
    )
    unread = [
        key
        for key, _, _ in describe_settings()
        if not re.search(rf"\.{re.escape(key.split('.')[-1])}\b", code)
    ]
    assert unread == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": {"epochs": 3}}, "train.epochs: there is no such setting. It is called 'length' here."),
        ({"train": {"lr": 1e-4}}, "It is called 'learning_rate' here."),
        ({"approach": {"kind": "lora", "r": 8}}, "It is called 'rank' here."),
        ({"train": {"length": "0 epochs"}}, "not a length"),
        ({"train": {"length": 3}}, 'write it like "3 epochs"'),
        ({"data": "news.csv"}, "data: holds settings of its own, such as data.train"),
    ],
)
def test_what_people_bring_from_elsewhere_is_answered(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build_recipe({"data": {"train": "x.csv"}, **change})
    assert words in str(caught.value)
