"""A person's corrections: what they change, what is refused, and what is said of it."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptailor.data.ledger import write_csv_safely
from gptailor.errors import DataError
from gptailor.pipeline import fix_effect
from gptailor.pipeline.fixes import Fixes, apply_fixes, read_fixes, refuse_faults, refuse_to_lose_corrections
from gptailor.pipeline.kinds import kind_of
from gptailor.pipeline.suspects import HEADER, Suspect, merge_suspects, write_suspects
from gptailor.types import AnswerForm, RawExample

ROWS = [
    RawExample({"text": f"the {word} in town", "label": label}, "data/news.csv", number)
    for number, (word, label) in enumerate(
        [("cup", "sports"), ("bank", "Sports"), ("flu", "health"), ("=vaccine", "health")], 2
    )
]
SINGLE = AnswerForm()


def corrected(folder: Path, *cells: tuple[object, ...], source: str = "data/news.csv") -> str:
    """A file of corrections from (row, text, correction), written as suspects.csv is."""
    path = folder / "corrected.csv"
    lines = [[source, row, "", "", "", correction, "", text] for row, text, correction in cells]
    write_csv_safely(path, HEADER, lines)
    return str(path)


def test_labels_change_rows_drop_and_the_rest_stays(tmp_path: Path) -> None:
    cells = [
        (2, "the cup in town", ""),
        (3, "the bank in town", " HEALTH "),
        (4, "the flu in town", "Drop"),
        (5, "the =vaccine in town", "health"),
    ]
    fixes = read_fixes(corrected(tmp_path, *cells))
    kept, rejected = apply_fixes(ROWS, fixes, SINGLE, keep_before=True)
    refuse_faults(fixes)
    assert [(row.row, row.fields["label"]) for row in kept] == [(2, "sports"), (3, "health"), (5, "health")]
    assert [(row.row, row.reason) for row in rejected] == [(4, "reviewed")]
    assert fixes.relabelled == {("data/news.csv", 3): ("Sports", "health")}
    assert fixes.dropped == {("data/news.csv", 4): "health"}
    assert fixes.unchanged == {("data/news.csv", 5)}
    assert fixes.before == ROWS
    assert "'Sports' to 'health'" in fixes.detail("data/news.csv", 3)
    assert fixes.detail("data/news.csv", 2) == ""


def test_without_corrections_the_rows_stay_where_they_are(tmp_path: Path) -> None:
    """Many lie in a file, and a list of them would bring all back into memory."""
    assert apply_fixes(ROWS, Fixes(), SINGLE, keep_before=True)[0] is ROWS


def test_the_same_file_from_another_folder_is_known(tmp_path: Path) -> None:
    fixes = read_fixes(corrected(tmp_path, (3, "the bank in town", "health"), source="/elsewhere/news.csv"))
    kept, _ = apply_fixes(ROWS, fixes, SINGLE)
    refuse_faults(fixes)
    assert kept[1].fields["label"] == "health"


def test_a_file_that_is_read_too_is_no_other_folder(tmp_path: Path) -> None:
    """Two files of one name: what was corrected in one says nothing of the other."""
    cells = (3, "the bank in town", "health")
    fixes = read_fixes(corrected(tmp_path, cells, source="data/validation/news.csv"))
    fixes = replace(fixes, locations=("data/news.csv", "data/validation"))
    kept, _ = apply_fixes(ROWS, fixes, SINGLE)
    assert kept == ROWS
    validation = [replace(row, source="data/validation/news.csv") for row in ROWS]
    kept, _ = apply_fixes(validation, fixes, SINGLE)
    assert kept[1].fields["label"] == "health"


def test_blanks_and_marks_may_change_on_the_way_but_no_word(tmp_path: Path) -> None:
    fixes = read_fixes(corrected(tmp_path, (3, "'The bank\r\nin  town", "health")))
    assert apply_fixes(ROWS, fixes, SINGLE)[0][1].fields["label"] == "health"
    moved = read_fixes(corrected(tmp_path, (3, "the flu in town", "health")))
    apply_fixes(ROWS, moved, SINGLE)
    with pytest.raises(DataError, match=r"row 2: data/news\.csv row 3 has another text now"):
        refuse_faults(moved)


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    cells = [(3, "the bank in town", "helth"), (4, "the cup in town", "sports"), (99, "a cup", "sports")]
    fixes = read_fixes(corrected(tmp_path, *cells))
    kept, rejected = apply_fixes(ROWS, fixes, SINGLE)
    assert (kept, rejected) == (ROWS, [])
    with pytest.raises(DataError, match="no label of the file") as caught:
        refuse_faults(fixes)
    assert "health" in caught.value.what, "did you mean"
    assert "row 4 has another text" in caught.value.what
    assert "row 99 is not in the training" in caught.value.what


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ([(3, "x", "health"), (3, "x", "sports")], "corrects the same to 'health'"),
        ([("three", "x", "health")], "'three' is not the number of a row"),
    ],
)
def test_files_that_contradict_themselves_are_refused(
    cells: list[tuple[object, ...]], told: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=told):
        read_fixes(corrected(tmp_path, *cells))


def test_a_file_without_corrections_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("text,label\na cup,sports\na bank,health\n")
    with pytest.raises(DataError, match="'correction'"):
        read_fixes(str(path))


def test_rows_that_are_not_there_are_refused(tmp_path: Path) -> None:
    fixes = read_fixes(corrected(tmp_path, (99, "the bank in town", "health")))
    apply_fixes(ROWS, fixes, SINGLE)
    with pytest.raises(DataError, match="row 99 is not in the training or validation data"):
        refuse_faults(fixes)


def test_a_label_called_drop_is_a_label(tmp_path: Path) -> None:
    rows = [*ROWS, RawExample({"text": "a leaf", "label": "drop"}, "data/news.csv", 6)]
    fixes = read_fixes(corrected(tmp_path, (3, "the bank in town", "drop")))
    kept, rejected = apply_fixes(rows, fixes, SINGLE)
    assert (kept[1].fields["label"], rejected) == ("drop", [])


def test_sets_and_numbers_are_corrected_as_they_are_written(tmp_path: Path) -> None:
    sets = [
        RawExample({"text": "a", "label": '["cup", "town"]'}, "n.csv", 2),
        RawExample({"text": "b", "label": '["bank"]'}, "n.csv", 3),
    ]
    fixes = read_fixes(corrected(tmp_path, (3, "b", "town; bank"), source="n.csv"))
    assert apply_fixes(sets, fixes, AnswerForm("multiple", ";"))[0][1].fields["label"] == '["bank", "town"]'
    numbers = [RawExample({"text": "a", "label": "1.0"}, "n.csv", 2)]
    fixes = read_fixes(corrected(tmp_path, (2, "a", "2.5"), source="n.csv"))
    assert apply_fixes(numbers, fixes, AnswerForm("score"))[0][0].fields["label"] == "2.5"


def test_nothing_happens_without_a_file() -> None:
    fixes = read_fixes(None)
    assert fixes == Fixes()
    assert apply_fixes(ROWS, fixes, SINGLE, keep_before=True) == (ROWS, [])
    assert not fixes.before


def test_a_person_s_work_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "suspects.csv"
    refuse_to_lose_corrections(path)
    suspect = Suspect("n.csv", 2, "a", "x", "y", "why", 0.5)
    write_suspects(path, [suspect])
    refuse_to_lose_corrections(path)  # nothing filled in: may be made anew
    corrected_file = Path(corrected(tmp_path, (2, "a", "y")))
    with pytest.raises(DataError, match="holds corrections"):
        refuse_to_lose_corrections(corrected_file)
    data = tmp_path / "data.csv"
    data.write_text("text,label\na,b\n")
    with pytest.raises(DataError, match="isn't a file of suspects"):
        refuse_to_lose_corrections(data)


def test_a_row_stands_once_with_all_its_reasons(tmp_path: Path) -> None:
    near = Suspect("n.csv", 7, "a", "x", "", "nearly the same")
    ranked = [
        Suspect("n.csv", 3, "b", "x", "y", "models", 0.9),
        Suspect("n.csv", 7, "a", "x", "y", "models", 0.4),
    ]
    merged = merge_suspects([near, *ranked])
    assert [one.row for one in merged] == [7, 3]
    assert (merged[0].reason, merged[0].suggestion, merged[0].score) == ("nearly the same; models", "y", 0.4)
    write_suspects(tmp_path / "s.csv", merged)
    with (tmp_path / "s.csv").open(newline="") as file:
        assert [(line["row"], line["correction"]) for line in csv.DictReader(file)] == [("7", ""), ("3", "")]


@pytest.mark.parametrize(
    ("low", "high", "word"), [(-0.3, -0.1, "better"), (0.1, 0.3, "worse"), (-0.1, 0.1, "no clear")]
)
def test_less_error_is_better(low: float, high: float, word: str) -> None:
    """Of numbers the difference is an error's: below zero is better, and an error is never negative."""
    kind = kind_of(AnswerForm("score"))
    effect = {
        "relabelled": 3,
        "dropped": 0,
        "relabelled_in_test": 0,
        "without": {"rmse": {"value": 1.2}},
        "with": {"rmse": {"value": 1.1}},
        "difference": {"value": (low + high) / 2, "low": low, "high": high},
    }
    said = fix_effect._says(effect, SimpleNamespace(kind=kind))  # type: ignore[arg-type]
    assert "from 1.200 to 1.100" in said
    assert f"rows, {word}" in said


def test_a_label_that_only_the_training_file_has_corrects_the_validation_file(tmp_path: Path) -> None:
    rows = [RawExample({"text": "a court rules", "label": "sports"}, "data/v.csv", 2)]
    fixes = read_fixes(corrected(tmp_path, (2, "a court rules", "health"), source="data/v.csv"))
    apply_fixes(ROWS, fixes, SINGLE, keep_before=True)
    kept, _ = apply_fixes(rows, fixes, SINGLE)
    refuse_faults(fixes)
    assert kept[0].fields["label"] == "health"


def test_a_label_is_known_as_the_list_of_suspects_shows_it(tmp_path: Path) -> None:
    """The file spells it `R&amp;D`; the list, like every page, `R&D`."""
    rows = [
        RawExample({"text": "a lab opens", "label": "R&amp;D"}, "data/news.csv", 2),
        RawExample({"text": "a bank closes", "label": "money"}, "data/news.csv", 3),
    ]
    fixes = read_fixes(corrected(tmp_path, (3, "a bank closes", "R&D")))
    kept, _ = apply_fixes(rows, fixes, SINGLE)
    refuse_faults(fixes)
    assert kept[1].fields["label"] == "R&amp;D"


def test_a_file_named_like_a_formula_is_known_again(tmp_path: Path) -> None:
    """Its name was defused where it was written for spreadsheets."""
    rows = [RawExample({"text": "a text", "label": "x"}, "@news.csv", 2)]
    fixes = read_fixes(corrected(tmp_path, (2, "a text", "drop"), source="@news.csv"))
    kept, rejected = apply_fixes(rows, fixes, SINGLE)
    refuse_faults(fixes)
    assert (list(kept), len(rejected)) == ([], 1)
