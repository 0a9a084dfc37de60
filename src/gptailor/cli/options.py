"""Options of the verbs, each written once, and the recipe they stand for."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

# Options that are settings of the same name under `data`.
DATA_OPTIONS = (
    *("text", "label", "fix", "prompt", "completion", "preset", "columns"),
    *("test", "test_target", "test_columns", "validation", "validation_target"),
)


class Rank(enum.StrEnum):
    """By what `predict` orders rows."""

    uncertain = "uncertain"


Data = Annotated[
    str, typer.Argument(help="CSV, TSV, JSON, JSONL, Parquet or text file, a folder, or hub:owner/name")
]
DataOrRecipe = Annotated[
    str, typer.Argument(help="a data file or folder, or a RECIPE.yaml", show_default=False)
]
RunFolder = Annotated[Path, typer.Argument(help="a run folder made by fit")]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task", help="classification, completion, chat, preference or language (default: by the columns)"
    ),
]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", help='column of the prompt, or a template: "Title: {title}"')
]
CompletionOption = Annotated[
    str | None, typer.Option("--completion", help="column of the answer, or a template")
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", help="translation, summarization, question_answering, data_to_text, ..."),
]
SourceOption = Annotated[
    str | None,
    typer.Option("--source", help="translation: file (instead of DATA) or column to translate from"),
]
TargetOption = Annotated[
    str | None, typer.Option("--target", help="translation: its other side, line by line")
]
TestTargetOption = Annotated[str | None, typer.Option("--test-target", help="the other side of --test")]
ValidationTargetOption = Annotated[
    str | None, typer.Option("--validation-target", help="the other side of --validation")
]
TextOption = Annotated[str | None, typer.Option("--text", help="column of the text; a+b joins two")]
LabelOption = Annotated[str | None, typer.Option("--label", help="column of the label")]
FixOption = Annotated[
    str | None, typer.Option("--fix", help="suspects.csv with its column `correction` filled in")
]
ColumnsOption = Annotated[
    str | None, typer.Option("--columns", help="names for a headerless file: label,text+text")
]
NamesOption = Annotated[
    str | None, typer.Option("--label-names", help="names for bare labels: 0=World,1=Sports")
]
TestOption = Annotated[str | None, typer.Option("--test", help="test on this file instead of a share")]
TestColumnsOption = Annotated[str | None, typer.Option("--test-columns", help="--columns for the test file")]
TestNamesOption = Annotated[
    str | None, typer.Option("--test-label-names", help="--label-names for the test file")
]
ValidationOption = Annotated[
    str | None, typer.Option("--validation", help="validate on this file instead of a share")
]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="starter, a folder, a run, or a hub name such as gpt2")
]
ApproachOption = Annotated[str | None, typer.Option("--approach", help="auto, full, lora, frozen or scratch")]
OutOption = Annotated[str | None, typer.Option("--out", help="run folder (default: runs/<file stem>)")]
DemoOutOption = Annotated[str | None, typer.Option("--out", help="run folder (default: runs/demo)")]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="of everything random (default: 0)")]
MinutesOption = Annotated[
    float | None, typer.Option("--minutes", help="train at most about so long; steps are measured once")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="any setting: key.path=value; may be repeated")
]
BaselinesOption = Annotated[str | None, typer.Option("--baselines", help="quick, all or none")]
SliceOption = Annotated[
    list[str] | None, typer.Option("--slice", help="column to score the test by; may be repeated")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="move an old run aside and begin anew")]
PrecisionOption = Annotated[
    Literal["fp32", "bf16"],
    typer.Option("--precision", help="classifiers: bf16 is faster and rounds the probabilities a little"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="the result as one JSON object on standard output")]


class BudgetOptions:
    """What `tune` has beside everything that `fit` has."""

    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, help="how many settings to try (default: 20, or what fits --time)"),
    ] = None
    time: Annotated[str | None, typer.Option("--time", help="about how long to search, such as 30m")] = None
    storage: Annotated[
        str | None, typer.Option("--storage", help="database of the trials (default: in the run folder)")
    ] = None


def recipe_from(data: str, options: Mapping[str, Any]) -> Any:
    """The recipe of a file and options."""
    from gptailor.pipeline.folder import next_to, run_of
    from gptailor.recipe import load_recipe, with_changes

    data, given = _with_sides(data, options, _values(options))
    run: Path | None = None
    pinned: dict[str, Any] = {}
    if data.endswith((".yaml", ".yml")):
        path = Path(data)
        values = load_recipe(path).model_dump(mode="json", exclude_unset=True)
        if given.get("approach") == values.get("approach", {}).get("kind"):
            given.pop("approach", None)  # the recipe says more of it
        pinned = {key: values[key] for key in ("base", "revision") if key in values}
        if (run := run_of(path)) is not None:
            values.pop("out", None)
        for key, value in given.items():
            parts = key in ("data", "train", "tune", "evaluate")
            values[key] = {**values.get(key, {}), **value} if parts else value
    else:
        values = given
        values["data"] = {"train": data, **values.get("data", {})}
    values = with_changes(values, options.get("settings") or [])
    if values.get("base") != pinned.get("base") and values.get("revision") == pinned.get("revision"):
        values.pop("revision", None)  # of the other base
    recipe = recipe_of(values)
    if run is not None and recipe.out is None:
        beside = next_to(run, recipe, search="trials" in options)
        recipe = recipe.model_copy(update={"out": str(beside)})
    return recipe


COMPLETION_FLAGS = {"prompt": "--prompt", "completion": "--completion", "preset": "--preset"}


def _with_sides(data: str, options: Mapping[str, Any], values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """DATA and the settings with `--source` and `--target`: two files, or two columns of DATA."""
    source, target = options.get("source"), options.get("target")
    if not data and not (source and target):
        raise typer.BadParameter("give a data file, a folder or a recipe, or --source FILE --target FILE")
    sides = {"target": target} if target else {}
    if data and source:
        if doubled := [flag for key, flag in COMPLETION_FLAGS.items() if options.get(key)]:
            twice = " and ".join(doubled)
            raise typer.BadParameter(f"--source says what {twice} would: leave one of them out")
        sides = {"prompt": source, "preset": "translation", **({"completion": target} if target else {})}
    if sides:
        values["data"] = {**values.get("data", {}), **sides}
    return data or str(source), values


def recipe_of(values: Mapping[str, Any]) -> Any:
    """The recipe of nested settings; what is wrong with them is told as of the command line."""
    from gptailor.recipe import build_recipe

    return build_recipe(values, where="the options")


def _values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were given, as the nested settings they stand for."""
    data = {key: options.get(key) for key in DATA_OPTIONS if options.get(key) is not None}
    for key, flag in (("label_names", "--label-names"), ("test_label_names", "--test-label-names")):
        if options.get(key):
            data[key] = pairs_in(options[key], flag)
    values: dict[str, Any] = {"data": data} if data else {}
    for key in ("task", "base", "approach", "seed", "out"):
        if options.get(key) is not None:
            values[key] = options[key]
    if options.get("minutes") is not None:
        values["train"] = {"minutes": options["minutes"]}
    budget = {key: options[key] for key in ("trials", "time", "storage") if options.get(key) is not None}
    if budget:
        values["tune"] = budget
    evaluate = {key: options[key] for key in ("baselines", "slices") if options.get(key)}
    if evaluate:
        values["evaluate"] = evaluate
    return values


def refuse_given(options: Mapping[str, Any], why: str) -> None:
    """Refuses options that would be passed over."""
    flags = {"settings": "set", "slices": "slice"}
    told = {name: flags.get(name, name.replace("_", "-")) for name in options}
    if given := [f"--{told[name]}" for name, value in options.items() if value is not None]:
        raise typer.BadParameter(f"{', '.join(given)} can't be used here: {why}")


def pairs_in(text: str | None, flag: str) -> dict[str, str]:
    """`0=World,1=Sports` to a mapping."""
    from gptailor.errors import RecipeError

    pairs: dict[str, str] = {}
    for part in (text or "").split(","):
        bare, equals, name = part.partition("=")
        if part.strip() and not (equals and name.strip()):
            raise RecipeError(f"{part!r} is not a pair.", where=flag, fix=f"Write {flag} 0=World,1=Sports.")
        if bare.strip() in pairs:
            raise RecipeError(f"{bare.strip()!r} is named twice.", where=flag, fix="Name each label once.")
        if part.strip():
            pairs[bare.strip()] = name.strip()
    return pairs


def with_columns(recipe: Any, chosen: Mapping[str, str]) -> Any:
    """The recipe with the columns a person chose."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=dict(chosen))})
