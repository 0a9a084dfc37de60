"""Settings: one typed, closed tree; one line of help and one default each.

A recipe is what a person may decide. Unknown keys are refused with a suggestion. Values that are
`None` or "auto" are decided from the data and the base, and the run's own `recipe.yaml` holds what
was decided.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from gptailor.errors import RecipeError, did_you_mean, without_passwords
from gptailor.plain_yaml import dump_yaml, load_yaml
from gptailor.types import Task

Share = Annotated[float, Field(ge=0, le=1)]
Dropped = Annotated[float, Field(ge=0, lt=1)]  # of all nothing would be left
Positive = Annotated[float, Field(gt=0)]
Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio"]
# A discriminated union names its member in the place of a fault; ours begin with # and aren't shown.
LearningRate = Annotated[
    Annotated[Positive, Tag("#rate")]
    | Annotated[Literal["find"], Tag("#find")]
    | Annotated[None, Tag("#none")],
    Discriminator(lambda value: "#none" if value is None else "#find" if value == "find" else "#rate"),
]


def _with_text_keys(value: Any) -> Any:
    """YAML reads the 0 of `0: World` as a number; as a label it is text."""
    if not isinstance(value, Mapping):
        return value
    return {str(key) if type(key) is int else key: item for key, item in value.items()}


LabelNames = Annotated[dict[str, str], BeforeValidator(_with_text_keys)]
LabelWeights = Annotated[dict[str, Positive], BeforeValidator(_with_text_keys)]


class Settings(BaseModel):
    """A closed, frozen branch of the tree."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CleanSettings(Settings):
    """What cleaning may do. Every step is counted, and each can be switched off."""

    repair_text: bool = Field(True, description="mend mojibake and broken Unicode (ftfy)")
    unescape_entities: bool = Field(True, description="turn HTML entities such as &amp; into characters")
    drop_control: bool = Field(True, description="remove control characters")
    squeeze_space: bool = Field(True, description="squeeze runs of blanks and trim the ends")
    drop_duplicates: bool = Field(True, description="keep the first of rows with equal text and label")
    drop_conflicts: bool = Field(True, description="drop equal texts that carry different labels")
    merge_labels: bool = Field(True, description="merge labels that differ by case, space or one typo")
    near_duplicates: bool = Field(
        True, description="find near-duplicates; each group stays in one part, and intervals draw it as one"
    )
    minimum_class_size: int = Field(5, ge=1, description="drop classes with fewer rows than this")


class SplitSettings(Settings):
    """Shares of the rows; null means 70/15/15 under 2,000 rows, else 80/10/10 with at most 5,000 each."""

    validation: Share | None = Field(None, description="share of the rows that validates")
    test: Share | None = Field(None, description="share of the rows that is sealed for the end")
    group: str | None = Field(None, description="column whose equal values stay in one part")
    time: str | None = Field(None, description="column to order by: train on the past, test on the newest")


class DataSettings(Settings):
    """Where the rows are and what their columns mean."""

    train: str = Field(description="file, folder or hub:owner/name")
    validation: str | None = Field(None, description="file that validates, instead of a share of train")
    test: str | None = Field(None, description="file that tests, instead of a share of train")
    text: str | None = Field(None, description="column of the text; a+b joins two with a space")
    label: str | None = Field(None, description="column of the label")
    fix: str | None = Field(
        None, description="suspects.csv with its column `correction` filled in (classification)"
    )
    label_separator: str | None = Field(
        None,
        min_length=1,
        description="what divides the labels of one cell, such as ; (several labels a row)",
    )
    columns: str | None = Field(None, description="names for a headerless file, such as label,text+text")
    test_columns: str | None = Field(None, description="the same for the test file")
    label_names: LabelNames = Field({}, description="names for bare labels, such as 0: World")
    test_label_names: LabelNames = Field({}, description="the same for the test file's labels")
    teach_names: bool = Field(
        True, description="the labels' names teach, too, as one more text each (one label a row)"
    )
    prompt: str | None = Field(
        None, description="column of the prompt, or a template over columns (completion)"
    )
    completion: str | None = Field(None, description="column of the answer, or a template over columns")
    preset: str | None = Field(
        None, description="use of completion, such as translation; null: by the columns"
    )
    chosen: str | None = Field(None, description="column of the preferred answer (preference)")
    rejected: str | None = Field(None, description="column of the other answer (preference)")
    target: str | None = Field(None, description="file whose lines answer those of train, line by line")
    validation_target: str | None = Field(None, description="the same for validation")
    test_target: str | None = Field(None, description="the same for test")
    max_new_tokens: int | None = Field(None, ge=1, description="longest answer; null: by the preset")
    separator: str | None = Field(
        None, description="line that divides a text file into documents, such as <|endoftext|> (language)"
    )
    max_tokens: int | None = Field(
        None,
        ge=8,
        description="longest sequence; null: the longest text (language: any), up to 512 and the context",
    )
    too_long: Literal["cut", "drop", "window"] = Field("cut", description="what happens to longer texts")
    clean: CleanSettings = Field(CleanSettings(), description="cleaning steps")
    split: SplitSettings = Field(SplitSettings(), description="how rows become parts")


class AutoApproach(Settings):
    """Frozen and full; the better on validation stays."""

    kind: Literal["auto"] = "auto"


class FullApproach(Settings):
    """Every weight may change."""

    kind: Literal["full"] = "full"


class LoraApproach(Settings):
    """Low-rank adapters on every linear layer; merged at the end."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="rank of the adapters")
    alpha: Positive = Field(16, description="scale of the adapters (alpha / rank)")
    dropout: Dropped = Field(0.0, description="dropout before the adapters")
    targets: list[str] = Field([], description="layers to adapt; empty: all linear and Conv1D layers")


class FrozenApproach(Settings):
    """The body stays; a logistic head is fitted on its features, which are computed once."""

    kind: Literal["frozen"] = "frozen"
    strengths: list[Positive] = Field(
        [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000],
        min_length=1,
        description="inverse regularization strengths to choose from on validation",
    )


class ScratchApproach(Settings):
    """The base's architecture with random weights, or a size given."""

    kind: Literal["scratch"] = "scratch"
    layers: int | None = Field(None, ge=1, description="number of layers; null: the base's")
    width: int | None = Field(None, ge=8, description="hidden size; null: the base's")
    heads: int | None = Field(None, ge=1, description="attention heads; null: the base's")
    vocabulary: int | None = Field(
        None,
        ge=512,
        description="tokens of a byte-level BPE trained on the data (language); null: by its size",
    )


Approach = Annotated[
    AutoApproach | FullApproach | LoraApproach | FrozenApproach | ScratchApproach, Field(discriminator="kind")
]
APPROACHES: dict[str, type[Settings]] = {
    "auto": AutoApproach,
    "full": FullApproach,
    "lora": LoraApproach,
    "frozen": FrozenApproach,
    "scratch": ScratchApproach,
}

UNION_MEMBER = re.compile(
    r"(literal|dict|function-before)?\[.*\]|#\w+|float|bool|int|str"
)  # as pydantic names it in a fault's location
TIME = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(s|m|h)\s*$")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
LENGTH = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(epochs?|steps?)\s*$")


class TrainSettings(Settings):
    """The optimizer's road."""

    length: str | None = Field(None, description='"5 epochs" or "500 steps"; null: 5 to 15 epochs')
    minutes: Positive | None = Field(
        None, description="train at most about so long here; the steps that fit are measured once"
    )
    learning_rate: LearningRate = Field(
        None, description="peak rate; find: by a range test before step 1; null: by approach and size"
    )
    head_learning_rate: Positive | None = Field(
        None, description="rate of the new head; null: 1e-3, or that of the rest if higher"
    )
    schedule: Literal["constant", "linear", "cosine", "warmup-stable-decay"] = Field(
        "cosine", description="how the rate falls after warm-up"
    )
    warmup: Share = Field(0.06, description="share of the steps that warm up; step 1 already moves")
    decay: Share = Field(0.2, description="share of the steps that decay (warmup-stable-decay)")
    batch_size: int = Field(16, ge=1, description="rows per optimizer step, whatever fits memory at once")
    micro_batch_size: int | None = Field(None, ge=1, description="rows at once; null: what fits memory")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="AdamW's, on matrices only")
    clip: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0: no clipping")
    dropout: Dropped = Field(0.1, description="dropout on embeddings and residuals; 0 for preferences")
    attention_dropout: Dropped = Field(0.0, description="dropout on the attention's weights")
    label_smoothing: Share = Field(0.0, description="share of the target spread over all classes")
    class_weights: Literal["none", "balanced"] | LabelWeights = Field(
        "none", description="none, balanced, or a weight per label"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="arithmetic of the matrix products"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="compile GPT-2's blocks where there is a C++ compiler; auto: where it pays"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, slower")
    validations_per_epoch: int | None = Field(
        None, ge=1, description="how often validation looks; null: 5 times, at most 25 times in all"
    )
    patience: int = Field(5, ge=0, description="validations without gain before stopping; 0: never")
    refit: bool = Field(
        True,
        description="classification: train anew with the validation rows, too, where that is worth its time",
    )
    save_every: str | None = Field(None, description='"200 steps"; null: at every validation')

    @field_validator("length", "save_every", mode="before")
    @classmethod
    def _is_duration(cls, value: object) -> object:
        found = LENGTH.match(value) if isinstance(value, str) else None
        if value is not None and (found is None or float(found[1]) == 0):
            raise ValueError(f'{value!r} is not a length; write it like "3 epochs" or "500 steps"')
        return value


WrittenScore = Literal["bleu", "chrf", "rouge_1", "rouge_2", "rouge_l", "exact_match", "f1"]


class EvaluateSettings(Settings):
    """What the result is measured against."""

    baselines: Literal["quick", "all", "none"] = Field(
        "quick", description="simpler means to compare with; quick: prompts answer a sample of the rows"
    )
    resamples: int = Field(2000, ge=100, description="bootstrap resamples of every interval")
    slices: list[str] = Field(
        [],
        description="columns of the tested file to score by (of labels and written answers)",
    )
    metrics: list[WrittenScore] = Field([], description="scores, the first decides; []: by preset")
    prompted_rows: int = Field(
        300,
        ge=10,
        description="test rows for zero- and few-shot (quick), at most: fewer where they would take too long",
    )
    generated_rows: int = Field(
        200, ge=10, description="test rows whose answers are written out (text tasks)"
    )


class PreferenceSettings(Settings):
    """How one of two answers is made likelier."""

    loss: Literal["dpo", "ipo", "simpo"] = Field("dpo", description="dpo, ipo, or simpo (no reference)")
    beta: Positive | None = Field(None, description="how strongly preferences pull; null: 0.1 (simpo: 2)")
    margin: Annotated[float, Field(ge=0)] = Field(
        1.0, description="how far ahead the chosen should be (simpo)"
    )


class SearchRange(Settings):
    """Numbers to search between."""

    low: int | float = Field(description="the smallest")
    high: int | float = Field(description="the largest")
    log: bool = Field(False, description="search the logarithm: for rates and other scales")
    step: Positive | None = Field(None, description="distance of neighbors; null: any number between")

    @model_validator(mode="after")
    def _is_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be under high ({self.high})")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a range on a logarithm begins above 0 and has no step")
        steps = 1.0 if self.step is None else (self.high - self.low) / self.step
        if abs(steps - round(steps)) > 1e-6:
            raise ValueError(f"steps of {self.step} don't lead from {self.low} to {self.high}")
        return self


SearchChoices = Annotated[list[bool | int | float | str | None], Field(min_length=1)]
SearchEntry = Annotated[
    Annotated[SearchChoices, Tag("#choices")] | Annotated[SearchRange, Tag("#range")],
    Discriminator(lambda value: "#range" if isinstance(value, Mapping | SearchRange) else "#choices"),
]


class TuneSettings(Settings):
    """What `gptailor tune` tries, and how long."""

    space: dict[str, SearchEntry] = Field(
        {},
        description="what to try, by setting: [choices], or {low, high, log, step}; empty: by the task",
    )
    trials: int | None = Field(
        None,
        ge=1,
        description="how many settings to try, the recipe's own first; null: 20, or what the time allows",
    )
    time: str | None = Field(None, description='about how long to search, such as "30m" or "2h"; null: any')
    finalists: int = Field(4, ge=1, description="how many of the best are compared with the recipe's own")
    seeds: int = Field(
        3, ge=1, description="how often the best is fitted again, on other splits and seeds; others less"
    )
    pruner: Literal["median", "hyperband", "halving", "none"] = Field(
        "median", description="how a trial that lags behind is given up"
    )
    storage: str | None = Field(
        None, description="database of the trials, as Optuna writes it; null: a file in the run folder"
    )

    @field_validator("time")
    @classmethod
    def _is_time(cls, value: str | None) -> str | None:
        if value is not None and not TIME.match(value):
            raise ValueError(f'{value!r} is not a time; write it like "90s", "30m" or "2h"')
        return value


class Recipe(Settings):
    """Everything `gptailor fit` needs to know."""

    task: Task | None = Field(None, description="what a row means; null: by the columns")
    task_answer: Literal["auto", "single", "multiple", "score"] = Field(
        "auto",
        description="what a label is (classification); auto takes no number",
    )
    data: DataSettings = Field(description="rows and columns")
    base: str = Field("starter", description="starter, a folder, a run, or a name on the Hugging Face hub")
    revision: str | None = Field(None, description="commit of a hub base; null: the newest, then pinned")
    approach: Approach = Field(AutoApproach(), description="which weights may change")
    train: TrainSettings = Field(TrainSettings(), description="the optimizer's road")
    preference: PreferenceSettings = Field(PreferenceSettings(), description="learning from preferences")
    evaluate: EvaluateSettings = Field(EvaluateSettings(), description="baselines and intervals")
    tune: TuneSettings = Field(TuneSettings(), description="what `gptailor tune` tries, and how long")
    seed: int = Field(0, ge=0, lt=2**32, description="of the split, the order, dropout and new weights")
    out: str | None = Field(None, description="run folder; null: runs/<file stem>")
    trackers: list[Tracker] = Field(
        [], description="who else gets the log: tensorboard, mlflow, wandb, trackio (docs/compare.md)"
    )


BESIDE = {"out", "trackers"}  # settings that a run's numbers don't depend on


def build_recipe(values: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """Checks a nested mapping and returns the recipe, or raises one RecipeError that lists every fault."""
    try:
        return Recipe.model_validate(_with_approach_kind(values))
    except ValidationError as error:
        lines = [f"  {_describe(fault)}" for fault in error.errors()]
        raise RecipeError(
            "\n".join(["these settings can't be used:", *lines]),
            where=where,
            fix="`gptailor help-settings` and docs/recipe.md list every setting.",
        ) from None


def load_recipe(path: Path) -> Recipe:
    """Reads a YAML recipe."""
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"can't be read: {error}", where=str(path), fix="Mend the file's YAML.") from None
    if not isinstance(values, dict):
        raise RecipeError("holds no settings.", where=str(path), fix="Write `data: {train: FILE}` at least.")
    return build_recipe(values, where=str(path))


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every setting written out; a run folder may be shared, so it holds no password."""
    values = recipe.model_dump(mode="json")
    values["tune"]["storage"] = recipe.tune.storage and without_passwords(recipe.tune.storage)
    return dump_yaml(values)


def describe_settings() -> Iterator[tuple[str, str, str]]:
    """Every setting as (dotted key, default as YAML, one line of help)."""

    def walk(branch: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
        for name, field in branch.model_fields.items():
            key = f"{prefix}{name}"
            if name == "approach":
                yield key, "auto", "one of " + ", ".join(APPROACHES)
                for kind, settings in APPROACHES.items():
                    yield from (
                        entry for entry in walk(settings, f"{key}[{kind}].") if ".kind" not in entry[0]
                    )
            elif isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
                yield from walk(field.annotation, f"{key}.")
            else:
                default = "(required)" if field.is_required() else json.dumps(field.default)
                words, values = field.description or "", named_values(field.annotation)
                if not all(re.search(rf"\b{value}\b", words) for value in values):
                    words += f" ({', '.join(values)})"
                yield key, default, words

    yield from walk(Recipe, "")


def named_values(annotation: Any) -> list[str]:
    """The words that a setting takes, by its type; none where it takes any."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [value for part in get_args(annotation) for value in named_values(part)]


def with_changes(values: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Applies `key.path=value` settings (values are YAML) to a nested mapping of settings."""
    values = _with_approach_kind(values)
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals or not path.strip():
            raise RecipeError(
                f"{change!r} is not a setting.", fix="Write it as --set train.length='3 epochs'."
            )
        value = _typed_value(text)
        *branches, leaf = path.strip().split(".")
        place = result
        for branch in branches:
            below = place.get(branch)
            below = {"kind": below} if branch == "approach" and isinstance(below, str) else below
            place[branch] = dict(below) if isinstance(below, Mapping) else {}
            place = place[branch]
        place[leaf] = value
    return result


def _typed_value(text: str) -> Any:
    """What stands behind the equals sign: a number, truth value, list or mapping as in YAML, else the text.

    YAML's signs mean nothing in a text that isn't quoted: `---`, `#` and `|` are separators to people.
    """
    typed = text.strip()
    try:
        value = load_yaml(text)
    except yaml.YAMLError:
        return text
    if typed[:1] in ('"', "'", "[", "{") or typed.lower() in ("", "~", "null"):
        return value
    signs_alone = isinstance(value, (list, dict)) and not any(map(str.isalnum, typed))
    return typed if value is None or isinstance(value, str) or signs_alone else value


def differences(one: Recipe, other: Recipe) -> list[str]:
    """The settings in which two recipes differ, as `key: this, that`, but for those beside the numbers."""
    left, right = (dict(leaves(r.model_dump(mode="json", exclude=BESIDE))) for r in (one, other))
    return [
        f"{key}: {left.get(key)!r}, now {right.get(key)!r}"
        for key in dict.fromkeys([*left, *right])
        if left.get(key) != right.get(key)
    ]


def identity_of(recipe: Recipe) -> str:
    """What a run's numbers depend on, as text. Defaults are left out: new settings change nothing."""
    values = recipe.model_dump(mode="json", exclude=BESIDE, exclude_defaults=True)
    values["approach"] = {**values.get("approach", {}), "kind": recipe.approach.kind}
    return json.dumps(values, sort_keys=True)


def duration(text: str) -> tuple[float, Literal["epochs", "steps"]]:
    """`"3 epochs"` to (3.0, "epochs")."""
    match = LENGTH.match(text)
    if match is None:
        raise RecipeError(f"{text!r} is not a length.", fix='Write it like "3 epochs" or "500 steps".')
    return float(match[1]), "epochs" if match[2].startswith("epoch") else "steps"


def seconds_of(text: str) -> float:
    """`"30m"` to 1800."""
    match = TIME.match(text)
    if match is None:
        raise RecipeError(f"{text!r} is not a time.", fix='Write it like "90s", "30m" or "2h".')
    return float(match[1]) * SECONDS[match[2]]


def _with_approach_kind(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lets `approach: lora` stand for `approach: {kind: lora}`."""
    values = dict(values)
    if isinstance(values.get("approach"), str):
        values["approach"] = {"kind": values["approach"]}
    return values


# What other tools call our settings.
ELSEWHERE = {
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs", "max_steps"), "length"),
    **dict.fromkeys(("lr", "learning_rate_multiplier"), "learning_rate"),
    **dict.fromkeys(("r", "lora_r", "lora_rank"), "rank"),
    "lora_alpha": "alpha",
    "per_device_train_batch_size": "batch_size",
    "warmup_ratio": "warmup",
    "lr_scheduler_type": "schedule",
}


def _describe(fault: Any) -> str:
    path = _path(fault["loc"])
    key = ".".join(path) or "recipe"
    if fault["type"] == "extra_forbidden":
        known, name = [*_known_keys(path[:-1], fault["loc"])], str(fault["loc"][-1])
        usual = ELSEWHERE.get(name)
        hint = f" It is called {usual!r} here." if usual in known else did_you_mean(name, known)
        return f"{key}: there is no such setting.{hint}"
    if fault["type"] == "missing":
        return f"{key}: is missing"
    if fault["type"] == "union_tag_invalid":
        kind = str(fault["ctx"]["tag"])
        return f"{key}: {kind!r} is none of {', '.join(APPROACHES)}.{did_you_mean(kind, APPROACHES)}"
    if fault["type"] == "union_tag_not_found":
        return f"{key}: has no kind; write one of {', '.join(APPROACHES)}"
    if fault["type"] == "model_type":
        return f"{key}: holds settings of its own, such as {key}.{next(_known_keys(path, fault['loc']), '')}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{key}: {message} (is {reprlib.repr(fault['input'])})"


def _path(location: tuple[Any, ...]) -> list[str]:
    """The keys a person wrote, without the union members that pydantic puts between them."""
    tagged = len(location) > 1 and location[0] == "approach" and location[1] in APPROACHES
    steps = location[:1] + location[2:] if tagged else location
    return [str(step) for step in steps if not UNION_MEMBER.fullmatch(str(step))]


def _known_keys(path: Sequence[str], location: Sequence[Any]) -> Iterator[str]:
    branch: type[BaseModel] | None = SearchRange if "#range" in location else Recipe
    for step in path if branch is Recipe else ():
        if step == "approach":
            kind = next((s for s in location if s in APPROACHES), "auto")
            branch = APPROACHES[kind]
            continue
        annotation = branch.model_fields[step].annotation if branch and step in branch.model_fields else None
        branch = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    yield from (branch.model_fields if branch else ())


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as (dotted key, value)."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
