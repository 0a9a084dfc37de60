"""Which task a file is for: as named, or plain from its columns; a label column isn't an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny_texts as texts
from gptailor.errors import DataError, RecipeError
from gptailor.pipeline.task import (
    IDLE,
    OF_A_FILE,
    READ_BY,
    first_rows,
    idle_in_words,
    named_task,
    passed_over_by_frozen,
    settle_task,
)
from gptailor.recipe import Recipe, build_recipe, dump_recipe

LABELS = ["good", "bad"]


def recipe_for(path: Path | str, task: str | None = None, **data: Any) -> Recipe:
    return build_recipe({"task": task, "data": {"train": str(path), **data}})


def settled(path: Path | str, **data: Any) -> str | None:
    return settle_task(recipe_for(path, **data)).task


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    if path.suffix == ".csv":
        return texts.write_csv(path, rows)
    return texts.write_jsonl(path, rows)


def answered(name: str, answer: str, count: int = 40) -> list[dict[str, str]]:
    return [{name: texts.words(n), answer: texts.words(n + 500, 4)} for n in range(count)]


def labelled(name: str, label: str, count: int = 40) -> list[dict[str, str]]:
    return [{name: texts.words(n), label: LABELS[n % 2]} for n in range(count)]


@pytest.mark.parametrize(
    ("data", "task"),
    [
        ({"label": "x"}, "classification"),
        ({"chosen": "x"}, "preference"),
        ({"rejected": "x"}, "preference"),
        ({"separator": "***"}, "language"),
        ({"target": "x"}, "completion"),
        ({"preset": "translation"}, "completion"),
        ({"prompt": "x"}, "completion"),
        ({"completion": "x"}, "completion"),
        ({"text": "x"}, None),
        ({}, None),
    ],
)
def test_a_named_column_names_the_task(data: dict[str, str], task: str | None) -> None:
    assert named_task(recipe_for("nowhere.csv", **data)) == task
    if task is not None:
        assert settled("nowhere.csv", **data) == task, "without looking into the file"


def test_a_named_task_wins(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", answered("prompt", "completion"))
    assert settle_task(recipe_for(path, task="chat")).task == "chat"
    assert settle_task(recipe_for("nowhere", task="language", text="x")).task == "language"


def test_columns_of_two_tasks_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"data\.prompt: is for completion, chat, preference"):
        settle_task(recipe_for("nowhere.csv", label="x", prompt="y"))


@pytest.mark.parametrize(
    ("rows", "task"),
    [
        (labelled("text", "label"), "classification"),
        (labelled("headline", "topic"), "classification"),
        (answered("prompt", "completion"), "completion"),
        (answered("question", "answer"), "completion"),
        (answered("document", "summary"), "completion"),
        (answered("instruction", "output"), "completion"),
        (answered("source", "target"), "completion"),
        (answered("mr", "ref"), "completion"),
        ([{"text": texts.words(n)} for n in range(30)], "classification"),
        (texts.chats(20), "chat"),
        ([{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 9, "chat"),
        (texts.preferences(20), "preference"),
        ([{**row, "label": "x"} for row in texts.preferences(20)], "preference"),
        (
            [
                {
                    "input": {"messages": [{"role": "user", "content": "a"}]},
                    "preferred_output": [{"role": "assistant", "content": "b"}],
                    "non_preferred_output": [{"role": "assistant", "content": "c"}],
                }
            ],
            "preference",
        ),
        (
            [{"chosen": texts.chat("a", "b")["messages"], "rejected": texts.chat("a", "c")["messages"]}],
            "preference",
        ),
    ],
)
def test_the_task_of_a_layout(tmp_path: Path, rows: list[dict[str, Any]], task: str) -> None:
    assert settled(write(tmp_path / "f.jsonl", rows)) == task


@pytest.mark.parametrize("labels", [("true", "false"), (True, False)])
def test_thumbs_up_and_down_are_no_classes_of_prompts(tmp_path: Path, labels: tuple[Any, Any]) -> None:
    rows = [{**row, "label": labels[n % 2]} for n, row in enumerate(answered("prompt", "completion"))]
    path = write(tmp_path / "f.jsonl", rows)
    with pytest.raises(DataError, match="thumb up or down"):
        settled(path)
    assert settled(path, label="label") == "classification", "whoever asks for it gets it"


def test_a_squad_file_is_for_completion(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(texts.squad(3)), encoding="utf-8")
    assert settled(path) == "completion"


@pytest.mark.parametrize("few", [False, True])
def test_what_comes_again_and_again_is_a_label_and_what_doesnt_is_an_answer(
    tmp_path: Path, few: bool
) -> None:
    """`target` is custom for both; `output` is no label's name; only their values tell."""
    rows, task = (labelled, "classification") if few else (answered, "completion")
    assert settled(write(tmp_path / "target.csv", rows("source", "target"))) == task
    assert settled(write(tmp_path / "output.csv", rows("input", "output"))) == task


def test_a_label_beside_a_question_and_its_answer_is_what_is_learned(tmp_path: Path) -> None:
    """Two texts and a label, as in entailment: the label is named for what it is."""
    rows = [{**row, "label": LABELS[n % 2]} for n, row in enumerate(answered("question", "answer"))]
    assert settled(write(tmp_path / "pairs.csv", rows)) == "classification"
    numbered = [{**row, "label": str(n)} for n, row in enumerate(answered("question", "answer"))]
    assert settled(write(tmp_path / "numbers.csv", numbered)) == "completion"


@pytest.mark.parametrize("names", [("instruction", "response"), ("question", "answer"), ("prompt", "reply")])
def test_a_category_beside_a_reply_is_not_what_is_learned(tmp_path: Path, names: tuple[str, str]) -> None:
    """As in Dolly. A class by name is, a target that comes again, and a category beside bare texts."""
    rows = [{**row, "context": "", "category": LABELS[n % 2]} for n, row in enumerate(answered(*names))]
    assert settled(write(tmp_path / "dolly.jsonl", rows)) == "completion"
    named = [{**row, "class": row["category"]} for row in rows]
    assert settled(write(tmp_path / "class.jsonl", named)) == "classification"
    again = [{**row, "category": "x"} for row in labelled("input", "target")]
    assert settled(write(tmp_path / "again.jsonl", again)) == "classification"
    news = [{**row, "category": LABELS[n % 2]} for n, row in enumerate(answered("text", "headline"))]
    assert settled(write(tmp_path / "news.jsonl", news)) == "classification"


def test_a_named_text_column_is_not_for_completion(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", answered("prompt", "completion"))
    assert settled(path, text="prompt") == "classification"


@pytest.mark.parametrize("name", ["book.txt", "book.md", "BOOK.TXT", "book.txt.gz"])
def test_prose_is_for_language(tmp_path: Path, name: str) -> None:
    import gzip

    data = "\n".join(texts.words(n) for n in range(50)).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert settled(path) == "language"
    assert settled(path, columns="label,text") == "classification", "somebody says it is a table"


@pytest.mark.parametrize("name", ["-", "nowhere.csv", "broken.json"])
def test_what_cannot_be_looked_at_is_left_to_whoever_reads_it_for_good(tmp_path: Path, name: str) -> None:
    path = name if name == "-" else str(tmp_path / name)
    if name == "broken.json":
        (tmp_path / name).write_text("{]")
    assert first_rows(path, None) == ([], [])
    assert settled(path) == "classification"


def test_only_the_first_rows_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptailor.pipeline import task

    monkeypatch.setattr(task, "LOOKED_AT", 5)
    rows = [{"a": "1"}] * 5 + [{"a": "1", "b": "2"}] * 5
    columns, found = first_rows(str(write(tmp_path / "f.jsonl", rows)), None)
    assert columns == ["a"]
    assert len(found) == 5


UNREAD: dict[str, Any] = {
    "task_answer": "score",
    "data.label": "topic",
    "data.fix": "suspects.csv",
    "data.label_separator": ";",
    "data.label_names": {"0": "World"},
    "data.test_label_names": {"0": "World"},
    "data.prompt": "question",
    "data.completion": "answer",
    "data.preset": "translation",
    "data.target": "train.de",
    "data.validation_target": "val.de",
    "data.test_target": "test.de",
    "data.chosen": "good",
    "data.rejected": "bad",
    "data.separator": "---",
    "data.text": "body",
    "data.too_long": "drop",
    "data.max_new_tokens": 7,
    "data.teach_names": False,
    "data.clean.merge_labels": False,
    "data.clean.drop_conflicts": False,
    "data.clean.minimum_class_size": 3,
    "approach.vocabulary": 1000,
    "preference.loss": "ipo",
    "preference.beta": 0.3,
    "preference.margin": 0.5,
    "train.refit": False,
    "train.head_learning_rate": 0.01,
    "train.class_weights": "balanced",
    "train.label_smoothing": 0.1,
    "evaluate.slices": ["language"],
    "evaluate.metrics": ["chrf"],
    "evaluate.generated_rows": 30,
    "evaluate.prompted_rows": 30,
}


def test_what_could_be_several_answers_is_not_taken_for_labels(tmp_path: Path) -> None:
    """The question is asked as of a completion; labels beside the columns in question still decide."""
    two = [{"en": texts.words(n), "de": texts.words(n + 500)} for n in range(40)]
    both = [
        {"context": texts.words(n), "question": "Who?", "answer": LABELS[n % 2], "answer_text": LABELS[n % 2]}
        for n in range(40)
    ]
    labels = [{**row, "sentiment": LABELS[n % 2]} for n, row in enumerate(two)]
    assert settled(write(tmp_path / "two.csv", two)) == "completion"
    assert settled(write(tmp_path / "both.csv", both)) == "completion"
    assert settled(write(tmp_path / "labels.csv", labels)) == "classification"
    stances = [{"id": str(n), "en": texts.words(n), "stance": LABELS[n % 2]} for n in range(40)]
    assert settled(write(tmp_path / "stances.csv", stances)) == "classification", "id is Indonesian, too"


def test_every_setting_of_some_tasks_is_tried_below() -> None:
    assert set(UNREAD) == set(READ_BY)


@pytest.mark.parametrize("path", UNREAD)
@pytest.mark.parametrize("task", ["classification", "completion", "chat", "preference", "language"])
def test_a_setting_that_the_task_does_not_read_is_refused_and_one_it_reads_is_not(
    path: str, task: Any
) -> None:
    values: dict[str, Any] = {"task": task, "data": {"train": "rows.csv"}}
    if path.startswith("approach."):
        values["approach"] = {"kind": "scratch"}
    for part in ("test", "validation"):
        if path.startswith(f"data.{part}_"):
            values["data"][part] = f"{part}.csv"
    recipe = with_setting(values, path, UNREAD[path])
    if task in READ_BY[path]:
        assert settle_task(recipe).task == task
        return
    with pytest.raises(RecipeError) as caught:
        settle_task(recipe)
    assert caught.value.where == path
    assert task in str(caught.value)
    assert READ_BY[path][0] in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "others"),
    [
        ("data.split.test", 0.3, {"data.test": "test.csv"}),
        ("data.split.validation", 0.3, {"data.validation": "dev.csv"}),
        ("data.test_label_names", {"0": "no"}, {"task_answer": "score", "data.test": "test.csv"}),
        ("data.label_names", {"0": "no"}, {"task_answer": "score"}),
        ("train.decay", 0.4, {"train.schedule": "linear"}),
        ("preference.margin", 3.0, {"task": "preference", "preference.loss": "dpo"}),
        ("evaluate.prompted_rows", 11, {"evaluate.baselines": "none"}),
        ("data.columns", "a,b", {"task": "completion", "data.target": "rows.de"}),
        (
            "data.test_columns",
            "a,b",
            {"task": "completion", "data.target": "rows.de", "data.test": "test.en"},
        ),
        ("revision", "abc", {"base": "starter"}),
    ],
)
def test_a_setting_that_another_leaves_without_effect_is_told(
    path: str, value: Any, others: dict[str, Any]
) -> None:
    values: dict[str, Any] = {"task": "classification", "data": {"train": "rows.csv"}}
    for other, setting in others.items():
        with_setting(values, other, setting)
    recipe = settle_task(with_setting(values, path, value))
    (told,) = idle_in_words(recipe)
    assert told.startswith(f"{path} changes nothing: ")
    assert idle_in_words(build_recipe({"data": {"train": "rows.csv"}})) == []


def test_every_such_setting_is_tried_above() -> None:
    [marks] = [
        mark
        for mark in test_a_setting_that_another_leaves_without_effect_is_told.pytestmark
        if mark.name == "parametrize"
    ]
    assert {path for path, _, _ in IDLE} == {path for path, _, _ in marks.args[1]}


@pytest.mark.parametrize(
    ("part", "path"), [(part, path) for part, paths in OF_A_FILE.items() for path in paths]
)
def test_what_is_of_a_given_file_needs_one(part: str, path: str) -> None:
    value: Any = {"0": "no"} if path.endswith("names") else "text,label"
    task = "completion" if path.endswith("target") else "classification"
    with pytest.raises(RecipeError, match=f"is for a {part} file") as caught:
        settle_task(with_setting({"task": task, "data": {"train": "rows.csv"}}, path, value))
    assert caught.value.where == path


def test_what_a_frozen_head_passes_over_is_told() -> None:
    values: dict[str, Any] = {"data": {"train": "rows.csv"}, "train": {"length": "3 epochs", "refit": False}}
    frozen = build_recipe({**values, "approach": "frozen"})
    assert passed_over_by_frozen(frozen) == ["frozen features are not trained: train.length changes nothing"]
    assert passed_over_by_frozen(build_recipe({**values, "approach": "full"})) == []
    narrow = {**values, "train": {"precision": "fp32"}}
    assert passed_over_by_frozen(build_recipe({**narrow, "approach": "frozen"})) == [], "it makes features"
    assert passed_over_by_frozen(build_recipe({"data": values["data"], "approach": "frozen"})) == []


def with_setting(values: dict[str, Any], path: str, value: Any) -> Recipe:
    *parents, name = path.split(".")
    inner = values
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[name] = value
    return build_recipe(values)


def test_preferences_have_no_dropout_unless_it_is_asked_for() -> None:
    """An answer's likelihood under dropout is tens of nats lower, and the reference's isn't."""
    recipe = {"data": {"train": "pairs.jsonl"}, "task": "preference"}
    assert settle_task(build_recipe(recipe)).train.dropout == 0
    assert settle_task(build_recipe({**recipe, "train": {"dropout": 0.1}})).train.dropout == 0.1
    assert settle_task(build_recipe({**recipe, "task": "chat"})).train.dropout == 0.1
    again = build_recipe(yaml.safe_load(dump_recipe(settle_task(build_recipe(recipe)))))
    assert settle_task(again).train.dropout == 0
