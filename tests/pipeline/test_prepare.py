"""From files to parts: leaks, labels, groups, times, given test files, and a ledger whose sums come out."""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import tiny
from gptailor.data import store
from gptailor.data.ledger import LedgerLine, summarize
from gptailor.data.tokenize import Encoder, build_encoder
from gptailor.errors import DataError, GptailorError
from gptailor.pipeline.columns import joined
from gptailor.pipeline.prepare import Prepared, prepare
from gptailor.pipeline.tokens import choose_max_tokens, ledger_lines, tokenize_parts
from gptailor.recipe import build_recipe
from gptailor.tasks.classification import collect_labels
from gptailor.types import PARTS, RawExample

TOPICS = {"sports": "cup final race goal", "business": "bank rate shares quarter", "health": "flu vaccine"}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder(tiny.build_tokenizer("gpt2").backend_tokenizer, pad_id=0)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if header:
            writer.writerow(header)
        writer.writerows(rows)
    return str(path)


def easy_rows(count: int, *, start: int = 0, word: str = "town") -> list[tuple[str, str]]:
    """Texts that are no near-duplicates of each other."""
    labels = list(TOPICS)
    return [
        (f"{word} {n} {word}{n * n} {TOPICS[labels[n % 3]]} {word[::-1]}{n * 7} end{n}", labels[n % 3])
        for n in range(start, start + count)
    ]


def prepare_with(train: str, *, task: str = "classification", seed: int = 0, **data: Any) -> Prepared:
    recipe = build_recipe({"task": task, "data": {"train": train, **data}, "seed": seed})
    return prepare(recipe)


def texts_of(prepared: Prepared, part: Any) -> list[str]:
    return [example.text for example in prepared.parts[part]]


def reasons_of(prepared: Prepared) -> dict[str, int]:
    return dict(Counter(row.reason for row in prepared.rejected))


@pytest.mark.parametrize("too_long", ["cut", "drop", "window"])
def test_many_rows_take_the_same_road_as_few(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, too_long: str
) -> None:
    """Rows on the disk, looked at through views: the same parts, tokens and ledger as from lists."""
    rows = [*easy_rows(90), *easy_rows(8), ("", "sports"), ("a  b &amp; caf\u00e9", "sports")]
    rows += [(f"{text} more", label) for text, label in easy_rows(9)]
    rows += [(f"{'long ' * 30}{text}", label) for text, label in easy_rows(6, start=300)]
    train = write_csv(tmp_path / "train.csv", ["text", "label"], [*rows, ("a", "b", "c")])
    held = [*easy_rows(12, start=500, word="village"), rows[40], ("", "sports")]
    test = write_csv(tmp_path / "test.csv", ["text", "label"], held)
    names = {"sports": "Sport", "business": "Business", "health": "Health"}
    data = {"train": train, "test": test, "max_tokens": 40, "too_long": too_long, "label_names": names}
    data["test_label_names"] = names
    recipe = build_recipe({"data": data})

    def walked() -> tuple[list[Any], type]:
        prepared = prepare(recipe)
        tokens = tokenize_parts(prepared, encoder, recipe.data, context=64)
        found: list[Any] = [list(ledger_lines(prepared, tokens)), prepared.rejected, prepared.rejected_rows]
        found += [prepared.near_groups, prepared.leaks, prepared.label_names, tokens.lengths.tolist()]
        for part in PARTS:
            sequences = [(row.row, row.label, row.cut, row.token_ids.tolist()) for row in tokens.rows[part]]
            found += [list(prepared.parts[part]), list(tokens.examples[part]), sequences]
        return found, type(prepared.parts["train"])

    few, kind = walked()
    monkeypatch.setattr(store, "MANY_ROWS", 3)
    many, other_kind = walked()
    assert (kind is list, other_kind is list) == (True, False)
    assert many == few


# A given test file.


def test_training_rows_that_stand_in_the_test_file_are_taken_out_and_said(tmp_path: Path) -> None:
    rows = easy_rows(60)
    held = easy_rows(12, start=500, word="village")
    exact = (held[0][0].upper() + " !", held[0][1])  # the same letters and digits
    near = (held[1][0] + " again", held[1][1])
    train = write_csv(tmp_path / "train.csv", ["text", "label"], [*rows, exact, near])
    test = write_csv(tmp_path / "test.csv", ["text", "label"], held)
    prepared = prepare_with(train, test=test)
    assert reasons_of(prepared) == {"leak_exact": 1, "leak_near": 1}
    assert texts_of(prepared, "test") == [text for text, _ in held]
    assert {exact[0], near[0]}.isdisjoint(texts_of(prepared, "train") + texts_of(prepared, "validation"))
    said = {row.row: row.detail for row in prepared.rejected}
    assert said == {62: f"the same text as {test} row 2", 63: f"nearly the same text as {test} row 3"}
    assert [(leak.row.row, leak.held_out.row) for leak in prepared.leaks] == [(62, 2), (63, 3)]
    assert prepared.read == 62 + 12


def test_validation_rows_that_stand_in_the_test_file_choose_nothing(tmp_path: Path) -> None:
    rows = easy_rows(120)
    train = write_csv(tmp_path / "train.csv", ["text", "label"], rows[:60])
    validation = write_csv(tmp_path / "validation.csv", ["text", "label"], rows[60:100])
    test = write_csv(tmp_path / "test.csv", ["text", "label"], rows[75:120])
    prepared = prepare_with(train, validation=validation, test=test)
    assert texts_of(prepared, "validation") == [text for text, _ in rows[60:75]]
    assert len(texts_of(prepared, "test")) == 45
    assert reasons_of(prepared) == {"leak_exact": 25}
    assert {row.source for row in prepared.rejected} == {validation}
    copied = write_csv(tmp_path / "copied.csv", ["text", "label"], rows[80:90])
    with pytest.raises(DataError, match="has no row of its own"):
        prepare_with(train, validation=copied, test=test)


def test_groups_of_a_given_file_are_taken_out_of_the_others(tmp_path: Path) -> None:
    rows = [(text, label, f"p{n % 12}") for n, (text, label) in enumerate(easy_rows(160))]
    header = ["text", "label", "patient"]
    train = write_csv(tmp_path / "train.csv", header, rows[:120])
    test = write_csv(tmp_path / "test.csv", header, [row for row in rows[120:] if row[2] in ("p1", "p2", "")])
    prepared = prepare_with(train, test=test, split={"group": "patient"})
    assert reasons_of(prepared) == {"leak_group": 20}
    assert {row.detail[:17] for row in prepared.rejected} == {"of the group 'p1'", "of the group 'p2'"}
    assert any("'patient' stay together." in note for note in prepared.notes), "two groups can't be drawn"
    bare = write_csv(tmp_path / "bare.csv", ["text", "label"], [row[:2] for row in rows[120:]])
    prepared = prepare_with(train, test=bare, split={"group": "patient"})
    assert reasons_of(prepared) == {}
    assert any("no column 'patient'" in note for note in prepared.notes)


@pytest.mark.parametrize("columns", ["title+body", "title +body", " title + body "])
def test_columns_with_blanks_around_the_plus_are_all_read(columns: str, tmp_path: Path) -> None:
    rows = [(f"title{n}", text, label) for n, (text, label) in enumerate(easy_rows(40))]
    train = write_csv(tmp_path / "train.csv", ["title", "body", "label"], rows)
    prepared = prepare_with(train, text=columns)
    assert prepared.roles.text == "title+body"
    assert all(example.text.startswith("title") for part in PARTS for example in prepared.parts[part])


def test_columns_that_nobody_reads_are_named(tmp_path: Path) -> None:
    header = "id,title,body,label,who,when,language\n"
    rows = [f"{n},title {n},body {n} of it,{'ab'[n % 2]},w{n % 9},{2000 + n},x\n" for n in range(60)]
    (tmp_path / "rows.csv").write_text(header + "".join(rows))
    data = {"train": str(tmp_path / "rows.csv"), "text": "title+body", "split": {"group": "who"}}
    values = {"data": data, "evaluate": {"slices": ["language"]}, "task": "classification"}
    said: list[str] = []
    prepared = prepare(build_recipe(values), said.append)
    assert "not read: id, when" in prepared.notes
    assert "not read: id, when" in said
    data |= {"text": "body"}
    assert "not read: id, title, when" in prepare(build_recipe(values)).notes


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "2", "1"], ["1", "2", "10"]),
        (["1.0", "1", "2"], ["1", "1.0", "2"]),
        (["2.0", "nan", "1.0"], ["1.0", "2.0", "nan"]),
        (["b", "1"], ["1", "b"]),
    ],
)
def test_classes_have_one_order(labels: list[str], expected: list[str]) -> None:
    """A set has another order in every process, and a class is a row of the head."""
    for turned in (labels, labels[::-1]):
        assert collect_labels([(label,) for label in turned * 10]) == expected
    assert collect_labels([(label,) for label in labels * 10]) == expected


def test_a_test_file_loses_no_row_that_has_text_and_label(tmp_path: Path, encoder: Encoder) -> None:
    held = easy_rows(3, start=900, word="hamlet")
    doubled, contradicted, long = held[0], (held[0][0], "health"), ("word " * 400, "sports")
    given = [*held, doubled, contradicted, long, ("", "sports"), ("orphan text here", "")]
    train = write_csv(tmp_path / "train.csv", ["text", "label"], easy_rows(90))
    test = write_csv(tmp_path / "test.csv", ["text", "label"], given)
    recipe = build_recipe({"data": {"train": train, "test": test, "max_tokens": 64, "too_long": "drop"}})
    prepared = prepare(recipe)
    tokens = tokenize_parts(prepared, encoder, recipe.data, context=64)
    lines = [line for line in ledger_lines(prepared, tokens) if line.source == test]
    assert [line.part for line in lines] == ["test"] * 6 + [None, None]
    assert [line.reason for line in lines[6:]] == ["no_text", "no_label"]
    assert lines[5].cut > 300, "the long row is read, and what was cut of it is counted"


def test_a_given_validation_file_validates_and_only_a_test_share_is_taken(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", ["text", "label"], easy_rows(100))
    held = easy_rows(9, start=300, word="village")
    validation = write_csv(tmp_path / "validation.csv", ["text", "label"], held)
    prepared = prepare_with(train, validation=validation)
    assert texts_of(prepared, "validation") == [text for text, _ in held]
    assert len(prepared.parts["test"]) == 15
    assert len(prepared.parts["train"]) == 85


@pytest.mark.parametrize("part", ["test", "validation"])
def test_labels_that_training_does_not_know_are_refused_with_both_sets(tmp_path: Path, part: str) -> None:
    train = write_csv(tmp_path / "train.csv", ["text", "label"], easy_rows(60))
    held = [(text, str(1 + n % 3)) for n, (text, _) in enumerate(easy_rows(9, start=300, word="village"))]
    file = write_csv(tmp_path / "held.csv", ["text", "label"], held)
    with pytest.raises(DataError) as caught:
        prepare_with(train, **{part: file})
    for word in ("'business'", "'health'", "'sports'", "'1'", "'2'", "'3'", "3 rows", file):
        assert word in caught.value.what
    flag = "--test-label-names" if part == "test" else "--label-names"
    assert f"{flag} 1=" in str(caught.value.fix)


def test_a_label_that_cleaning_took_is_not_called_another_spelling(tmp_path: Path) -> None:
    """Whoever is told to say which label it is would train and test with wrong labels."""
    few = [(f"please give {n} back {n * n} coins", "refund") for n in range(4)]
    train = write_csv(tmp_path / "train.csv", ["text", "label"], [*easy_rows(60), *few])
    held = [*easy_rows(6, start=200), ("give me my money back", "refund"), ("what is this", "martian")]
    test = write_csv(tmp_path / "test.csv", ["text", "label"], held)
    with pytest.raises(DataError) as caught:
        prepare_with(train, test=test)
    told = str(caught.value)
    assert "'refund': in 1 row; training's 4 rows of it went: label too rare to learn (4)" in told
    assert "'martian': in 1 row\n" in told + "\n"
    assert "martian=NAME" in str(caught.value.fix)
    assert "refund=" not in str(caught.value.fix)


def test_texts_taken_for_labels_are_told_in_short(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", ["text", "label"], easy_rows(60))
    swapped = [(label, "word " * 40) for _, label in easy_rows(6, start=200)]
    test = write_csv(tmp_path / "test.csv", ["text", "label"], swapped)
    with pytest.raises(DataError) as caught:
        prepare_with(train, test=test)
    assert max(map(len, str(caught.value).splitlines())) < 200


def test_another_column_is_never_taken_for_a_label_that_was_named(tmp_path: Path) -> None:
    """Any number, or any 0 and 1, would do, and the sealed test would be scored by it."""
    train = write_csv(
        tmp_path / "train.csv", ["text", "stars"], [(t, i % 2) for i, (t, _) in enumerate(easy_rows(60))]
    )
    held = [(text, number % 2) for number, (text, _) in enumerate(easy_rows(9, start=200))]
    test = write_csv(tmp_path / "test.csv", ["text", "year"], held)
    with pytest.raises(DataError, match="no column 'stars'") as caught:
        prepare_with(train, label="stars", test=test)
    assert "--test-columns" in str(caught.value.fix)
    bare = write_csv(tmp_path / "bare.csv", [], [("0", "words and more words"), ("1", "other words")] * 3)
    named = prepare_with(train, label="stars", test=bare, test_columns="label,text")
    assert len(named.parts["test"]) == 6
    said: list[str] = []
    mine = write_csv(tmp_path / "mine.csv", ["text", "target"], held)
    prepare(build_recipe({"data": {"train": train, "test": mine}}), said.append)
    assert any("label is 'target'" in line for line in said)


def test_label_names_map_a_test_file_of_another_make(tmp_path: Path) -> None:
    """Headerless, the label first, two text columns, labels as numbers from 1: as AG News comes."""
    names = {str(place): name for place, name in enumerate(TOPICS, 1)}
    back = {name: bare for bare, name in names.items()}
    train = write_csv(tmp_path / "train.csv", ["headline", "topic"], easy_rows(60))
    held = easy_rows(9, start=300, word="village")
    test = write_csv(tmp_path / "test.csv", [], [(back[label], text, "and more") for text, label in held])
    prepared = prepare_with(train, test=test, test_columns="label,text+text", test_label_names=names)
    assert texts_of(prepared, "test") == [f"{text} and more" for text, _ in held]
    answers = [prepared.label_names[example.label or 0] for example in prepared.parts["test"]]
    assert answers == [label for _, label in held]


def test_test_labels_match_over_case_and_space_and_take_the_training_merges(tmp_path: Path) -> None:
    rows = [*easy_rows(330), (easy_rows(1, start=400)[0][0], "busines")]
    train = write_csv(tmp_path / "train.csv", ["text", "label"], rows)
    texts = [text for text, _ in easy_rows(3, start=500, word="village")]
    test = write_csv(
        tmp_path / "test.csv", ["text", "label"], zip(texts, [" SPORTS ", "Busines", "health"], strict=True)
    )
    prepared = prepare_with(train, test=test)
    answers = [prepared.label_names[example.label or 0] for example in prepared.parts["test"]]
    assert answers == ["sports", "business", "health"]


@pytest.mark.parametrize("twice", [("train", "test"), ("train", "validation"), ("validation", "test")])
def test_one_file_in_two_places_is_refused(tmp_path: Path, twice: tuple[str, str]) -> None:
    places = {
        part: write_csv(tmp_path / f"{part}.csv", ["text", "label"], easy_rows(60, word=part))
        for part in PARTS
    }
    places[twice[1]] = str(tmp_path / "." / f"{twice[0]}.csv")
    with pytest.raises(DataError, match="given twice"):
        prepare_with(places["train"], validation=places["validation"], test=places["test"])


def test_an_unclear_test_file_is_named_with_the_option_that_helps(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", ["text", "label"], easy_rows(60))
    rows = [(f"one two three {n}", f"four five six {n}", "ab"[n % 2]) for n in range(20)]
    test = write_csv(tmp_path / "test.csv", ["left", "right", "kind"], rows)
    with pytest.raises(DataError, match="could be the text") as caught:
        prepare_with(train, test=test)
    assert caught.value.where == test
    assert "--test-columns" in str(caught.value.fix)


def test_near_duplicates_in_a_given_file_are_drawn_as_one_with_what_the_person_groups(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", ["text", "label", "who"], [(*row, "") for row in easy_rows(60)])
    held = [(*row, "") for row in easy_rows(12, start=500, word="village")]
    again = [(f"{held[n][0]} again", held[n][1], "") for n in (0, 1)]
    ours = [(*row, "ann") for row in easy_rows(2, start=700, word="hamlet")]
    tied = (f"{ours[0][0]} again", ours[0][1], "")  # near one of ann's
    rows = [*held, *again, *ours, tied]
    test = write_csv(tmp_path / "test.csv", ["text", "label", "who"], rows)
    groups = [row.group for row in prepare_with(train, test=test, split={"group": "who"}).parts["test"]]
    assert groups == [f"~{test}:2", f"~{test}:3", *[""] * 10, f"~{test}:2", f"~{test}:3", *["ann"] * 3]
    apart = prepare_with(train, test=test, split={"group": "who"}, clean={"near_duplicates": False})
    assert [row.group for row in apart.parts["test"]] == [*[""] * 14, "ann", "ann", ""]


# Groups and times.


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_never_cut_even_by_near_duplicates_that_tie_it_to_others(
    tmp_path: Path, seed: int
) -> None:
    rows = [(text, label, f"author {n % 17}") for n, (text, label) in enumerate(easy_rows(120))]
    rows += [(f"{text} again", label, "") for text, label, _ in rows[:20]]
    train = write_csv(tmp_path / "train.csv", ["text", "label", "author"], rows)
    prepared = prepare_with(train, seed=seed, split={"group": "author"})
    part_of: dict[str, set[str]] = {}
    for part in PARTS:
        for example in prepared.parts[part]:
            text = example.text.removesuffix(" again")
            part_of.setdefault(text, set()).add(part)
            if example.group:
                part_of.setdefault(example.group, set()).add(part)
    assert all(len(parts) == 1 for parts in part_of.values())
    assert len(prepared.near_groups) == 20
    assert all(prepared.parts.values())


def test_groups_of_a_given_file_are_no_numbers_of_groups_of_the_others(tmp_path: Path) -> None:
    """Where both are dealt out together, customer 3 of the one isn't the fourth customer of the other."""
    rows = [(text, label, f"customer {n % 9}") for n, (text, label) in enumerate(easy_rows(90))]
    train = write_csv(tmp_path / "train.csv", ["text", "label", "who"], rows)
    others = [(text, label, str(n % 5)) for n, (text, label) in enumerate(easy_rows(30, start=300))]
    given = write_csv(tmp_path / "dev.csv", ["text", "label", "who"], others)
    parts = prepare_with(train, validation=given, split={"group": "who"}).parts
    groups = [{example.group for example in parts[part]} for part in PARTS]
    assert [len(found) for found in groups[1:2]] == [5]
    assert not groups[0] & groups[1]


def test_time_trains_on_the_past_and_tests_on_the_newest(tmp_path: Path) -> None:
    rows = [
        (text, label, f"2024-{1 + n // 28:02}-{1 + n % 28:02}")
        for n, (text, label) in enumerate(easy_rows(100))
    ]
    train = write_csv(tmp_path / "train.csv", ["text", "label", "day"], rows[::-1])
    prepared = prepare_with(train, split={"time": "day"})
    days = [[example.time for example in prepared.parts[part]] for part in PARTS]
    assert [len(part) for part in days] == [70, 15, 15]
    assert max(days[0]) < min(days[1])
    assert max(days[1]) < min(days[2])


def test_a_time_that_cannot_be_ordered_is_named_by_its_own_row(tmp_path: Path) -> None:
    rows = [(text, label, "2024-01-01") for text, label in easy_rows(40)]
    rows[20:20] = rows[:10]  # repeats, which are dropped before rows are divided
    rows[34] = (*rows[34][:2], "31/12/2023")
    train = write_csv(tmp_path / "train.csv", ["text", "label", "day"], rows)
    with pytest.raises(DataError, match="begin with the year") as caught:
        prepare_with(train, split={"time": "day"})
    assert caught.value.where == f"{train} row 36"


@pytest.mark.parametrize("role", ["group", "time"])
def test_an_unknown_group_or_time_column_is_named_with_a_suggestion(tmp_path: Path, role: str) -> None:
    rows = [(text, label, "x") for text, label in easy_rows(30)]
    train = write_csv(tmp_path / "train.csv", ["text", "label", "author"], rows)
    with pytest.raises(DataError, match="Did you mean 'author'") as caught:
        prepare_with(train, split={role: "auther"})
    assert f"data.split.{role}=" in str(caught.value.fix)


# What is refused.


def test_dropping_long_texts_until_one_label_is_left_is_refused(tmp_path: Path, encoder: Encoder) -> None:
    rows = [(text if label == "sports" else text + " word" * 90, label) for text, label in easy_rows(60)]
    train = write_csv(tmp_path / "train.csv", ["text", "label"], rows)
    recipe = build_recipe({"data": {"train": train, "max_tokens": 100, "too_long": "drop"}})
    with pytest.raises(DataError, match="one label"):
        tokenize_parts(prepare(recipe), encoder, recipe.data, context=128)


def test_dropping_every_text_is_refused(tmp_path: Path, encoder: Encoder) -> None:
    train = write_csv(tmp_path / "train.csv", ["text", "label"], easy_rows(60))
    recipe = build_recipe({"data": {"train": train, "max_tokens": 8, "too_long": "drop"}})
    with pytest.raises(DataError, match="no row is left for train"):
        tokenize_parts(prepare(recipe), encoder, recipe.data, context=64)


def test_the_longest_sequence_fits_the_base(tmp_path: Path) -> None:
    lengths = np.array([5, 40, 900])
    assert choose_max_tokens(lengths, None, context=64) == 64
    assert choose_max_tokens(lengths, None, context=2048) == 512
    assert choose_max_tokens(lengths[:2], None, context=64) == 40
    assert choose_max_tokens(lengths, 700, context=1024) == 700
    with pytest.raises(DataError, match="at most 64"):
        choose_max_tokens(lengths, 65, context=64)


def test_columns_are_joined_with_one_space_and_empty_ones_leave_none() -> None:
    row = RawExample({"title": "Cup", "body": "", "note": "final", "a+b": "whole"}, "file", 1)
    assert joined(row, "title+body+note") == "Cup final"
    assert joined(row, "a+b") == "whole"


# The sums, whatever the table.

WORDS = st.sampled_from(["cup final", "the bank", "flu", "a rate of 5", "final", "again", "town", "NA", "é"])
TEXTS = st.one_of(st.just(""), st.lists(WORDS, min_size=1, max_size=12).map(" ".join))
LABELS = st.sampled_from(["sports", "Sports ", "business", "busines", "health", "", "rare"])
TABLES = st.lists(st.tuples(TEXTS, LABELS, st.sampled_from("abcde"), st.integers(0, 30)), max_size=25)
TROUBLE = st.tuples(TABLES, st.none() | TABLES, st.none() | TABLES)
CHOICES = st.fixed_dictionaries(
    {
        "too_long": st.sampled_from(["cut", "drop", "window"]),
        "max_tokens": st.sampled_from([None, 8, 20]),
        "clean": st.fixed_dictionaries(
            {
                "drop_duplicates": st.booleans(),
                "drop_conflicts": st.booleans(),
                "merge_labels": st.booleans(),
                "near_duplicates": st.booleans(),
                "minimum_class_size": st.sampled_from([1, 5]),
            }
        ),
        "split": st.sampled_from([{}, {"group": "who"}, {"time": "when"}, {"group": "who", "time": "when"}]),
    }
)


def check_lines(lines: Sequence[LedgerLine], prepared: Prepared, sizes: dict[str, int]) -> None:
    """Every row of every file has one line; a given file's rows go nowhere but to their part."""
    places = [(line.source, line.row) for line in lines]
    assert sorted(places) == sorted((file, row) for file, size in sizes.items() for row in range(2, size + 2))
    for line in lines:
        held = Path(line.source).stem
        if held != "train":
            leaks = {"leak_exact", "leak_near", "leak_group"} if held == "validation" else set()
            assert line.part == held or line.reason in {"no_text", "no_label", *leaks}
    assert summarize(lines, read=prepared.read)["read"] == sum(sizes.values())


@given(TROUBLE, CHOICES, st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_the_ledger_comes_out_on_every_path(
    encoder: Encoder, tables: tuple[Any, Any, Any], choices: dict[str, Any], seed: int
) -> None:
    base = [(text, label, "abcde"[n % 5], n) for n, (text, label) in enumerate(easy_rows(30))]
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for part, table in zip(("train", "validation", "test"), tables, strict=True):
            if table is not None:
                rows = [*base, *table] if part == "train" else [("village news", "health", "a", 1), *table]
                rows = [row for row in rows if part == "train" or row[1] not in {"rare", "busines"}]
                files[part] = write_csv(Path(folder) / f"{part}.csv", ["text", "label", "who", "when"], rows)
                sizes[files[part]] = len(rows)
        recipe = build_recipe({"data": {**files, **choices, "label": "label"}, "seed": seed})
        try:
            prepared = prepare(recipe)
            tokens = tokenize_parts(prepared, encoder, recipe.data, context=64)
        except GptailorError:
            reject()  # hypothesis complains where most tables are refused
        check_lines(ledger_lines(prepared, tokens), prepared, sizes)
        if choices["split"].get("group"):
            parts = {
                (example.group, part) for part in PARTS for example in prepared.parts[part] if example.group
            }
            assert len(parts) == len({group for group, _ in parts})


@pytest.mark.parametrize(("raw", "asked"), [("R&amp;D", "R&D"), ("R&D", "r&d"), ("r&amp;d", "R&D")])
def test_a_label_that_went_is_known_however_it_was_written(tmp_path: Path, raw: str, asked: str) -> None:
    rows = [*easy_rows(60), ("a rare thing to say once", raw)]
    train = write_csv(tmp_path / "train.csv", ["text", "label"], rows)
    tested = [*easy_rows(6, start=100), ("another rare thing to say", asked)]
    test = write_csv(tmp_path / "test.csv", ["text", "label"], tested)
    with pytest.raises(DataError) as caught:
        prepare_with(train, test=test)
    assert "training's 1 row of it went: label too rare" in str(caught.value)
    assert "--test-label-names" not in str(caught.value)


def test_only_strange_labels_of_a_test_file_need_names(tmp_path: Path) -> None:
    """As the message says that tells of them: --test-label-names martian=NAME, a known one."""
    train = write_csv(tmp_path / "train.csv", ["text", "label"], easy_rows(60))
    tested = [(text, "martian" if label == "business" else label) for text, label in easy_rows(9, start=100)]
    test = write_csv(tmp_path / "test.csv", ["text", "label"], tested)
    with pytest.raises(DataError, match="--test-label-names martian=NAME"):
        prepare_with(train, test=test)
    prepared = prepare_with(train, test=test, test_label_names={"martian": "business"})
    assert len(prepared.parts["test"]) == 9


def test_labels_that_hold_labels_are_told_and_not_divided(tmp_path: Path) -> None:
    cells = ["sports;business", "chess;yoga"]  # half of them known: too few to take the sign for granted
    rows = [(text, cells[n % 2]) for n, (text, _) in enumerate(easy_rows(12, start=300))]
    path = write_csv(tmp_path / "train.csv", ["text", "label"], [*easy_rows(90), *rows])
    prepared = prepare_with(path)
    assert cells[0] in prepared.label_names
    assert any("--set 'data.label_separator=;' reads several" in note for note in prepared.notes)
    others = [(text, "Sports; Games & Fun") for text, _ in easy_rows(8, start=300)]
    path = write_csv(tmp_path / "named.csv", ["text", "label"], [*easy_rows(90), *others])
    assert not any("label_separator" in note for note in prepare_with(path).notes), "a name with a sign in it"


def test_labels_that_read_as_if_there_were_none_are_told(tmp_path: Path) -> None:
    rows = [(f"{text} once", "nan") for text, _ in easy_rows(6)]
    path = write_csv(tmp_path / "train.csv", ["text", "label"], [*easy_rows(60), *rows])
    notes = prepare_with(path).notes
    assert any("'nan' (6 rows); where that is so, leave the cells empty" in note for note in notes)


def test_where_nothing_is_left_it_says_where_the_rows_went(tmp_path: Path) -> None:
    """Text and label mixed up: every row is dropped, and `check` has nothing else to show."""
    rows = [("", label) for _, label in easy_rows(30)]
    train = write_csv(tmp_path / "train.csv", ["text", "label"], [*rows, *easy_rows(5)])
    with pytest.raises(DataError, match=r"only .* usable rows? .*Dropped: .*no text.* \(30\)") as caught:
        prepare_with(train, text="text", label="label")
    assert "gptailor check" not in str(caught.value)
