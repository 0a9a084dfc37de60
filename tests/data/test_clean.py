from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import ftfy
import pytest
from ftfy.badness import is_bad
from hypothesis import given, settings
from hypothesis import strategies as st

from gptailor.data.clean import CleanResult, _drop_repeats, clean_rows
from gptailor.data.repair import MOJIBAKE, MOJIBAKE_SUSPECT, _mend_mojibake, repair
from gptailor.data.spellings import merge_labels
from gptailor.recipe import CleanSettings
from gptailor.types import RawExample, RejectedRow

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"

# Pieces from which broken text is made: text alone rarely hits the interesting combinations.
PIECES = [
    "&", "amp;", "#39;", " #39;", " quot;", "&lt;", "&#38;", "&#x26;", "nbsp;", ";", "#", "&nbsp", "lt",
    "Ã©", "â€™", "\x92", "é", "e\u0301", "\u200b", "\u200d", "\u200c", "\ufeff", "\xa0", "\x00", "\x1b[31m",
    "\r\n", "\n", "\r", "\x85", "\u2028", " ", "  ", "\t", "\ud83d", "\ude00", "👩", "\ufe0f", "ر", "\u3000",
    "\U000e0061", "\U0001f3f4", "\U000e007f", "a", "1", "ﬁ", "Ａ", "\uffff", "\x89ÛÒ",
]  # fmt: skip
BROKEN = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=14).map("".join)

ENGLAND = "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"  # a flag spelled in tags


def rows_of(*rows: tuple[str, str], source: str = "a.csv") -> list[RawExample]:
    return [
        RawExample(fields={"text": text, "label": label}, source=source, row=i)
        for i, (text, label) in enumerate(rows, start=1)
    ]


def clean(*rows: tuple[str, str], **changes: object) -> CleanResult:
    return clean_rows(rows_of(*rows), settings=CleanSettings(**{"minimum_class_size": 1, **changes}))


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("plain text; nothing to do & fine", "plain text; nothing to do & fine"),
        ("It was the cafÃ© on the corner", "It was the café on the corner"),
        ("don\x92t", "don’t"),
        ("“curly” quotes stay", "“curly” quotes stay"),
        ("Ｆｕｌｌ ﬁne ２", "Ｆｕｌｌ ﬁne ２"),
        ("e\u0301", "é"),
        ("Tom &amp; Jerry &lt;b&gt;", "Tom & Jerry <b>"),
        ("twice &amp;amp;lt; escaped", "twice < escaped"),
        ("caf&eacute; &#233; &#xe9;", "café é é"),
        ("no semicolon: rock &amp roll", "no semicolon: rock & roll"),
        ("http://a.b/?x=1&section=2&copy=3&lt=4", "http://a.b/?x=1&section=2&copy=3&lt=4"),
        ("&notanentity; &notit;", "&notanentity; &notit;"),
        ("Messier #39;s lawyer", "Messier's lawyer"),
        ("he said.  quot;I am, quot; he", 'he said. "I am," he'),
        ("for the  #36;10 million prize", "for the $10 million prize"),
        ("Barnes  amp; Noble and AT amp;T", "Barnes & Noble and AT&T"),
        ("a guitar amp; loud", "a guitar amp; loud"),
        (" lt;b gt;... lt;/b gt;", "<b>...</b>"),
        ("issue #12; fixed", "issue #12; fixed"),
        ("a\x00b\x07c\x7f", "abc"),
        ("\ufeffa\u200bb\u200dc\xadd", "abcd"),
        ("👩\u200d👧 and می\u200cخواهم", "👩\u200d👧 and می\u200cخواهم"),
        ("x \U000e0061\U000e0062 y", "x y"),
        (ENGLAND, ENGLAND),
        ("  a \t b\xa0\u3000c  ", "a b c"),
        ("a \r\n b\r\rc\n\n\n\nd\n", "a\nb\n\nc\n\nd"),
        ("\ud83d\ude00 \ud83d", "😀 \ufffd"),
        ("", ""),
    ],
)  # fmt: skip
def test_repair_mends_damage_and_nothing_else(broken: str, mended: str) -> None:
    assert repair(broken) == mended


@given(BROKEN)
@settings(max_examples=400, deadline=None)
def test_repair_twice_is_repair_once(text: str) -> None:
    once = repair(text)
    assert repair(once) == once
    once.encode("utf-8")  # no surrogate is left


@given(BROKEN, st.lists(st.booleans(), min_size=4, max_size=4))
@settings(max_examples=200, deadline=None)
def test_repair_twice_is_repair_once_whatever_is_switched_off(text: str, flags: list[bool]) -> None:
    names = ("repair_text", "unescape_entities", "drop_control", "squeeze_space")
    wanted = dict(zip(names, flags, strict=True))
    once = repair(text, **wanted)
    assert repair(once, **wanted) == once


@given(st.text(alphabet=st.characters(categories=["L", "N"]), max_size=30))
@settings(deadline=None)
def test_every_step_can_be_switched_off(text: str) -> None:
    broken = f" &amp;\x07 {text}  é\ud800"
    off = repair(broken, repair_text=False, unescape_entities=False, drop_control=False, squeeze_space=False)
    assert off == broken.replace("\ud800", "\ufffd")


def test_hostile_text_is_repaired_in_linear_time() -> None:
    for bad in (
        "&" + "amp;" * 200_000,
        "&" * 50_000 + "&#8203;" + "amp;#8203;" * 50_000,
        " nbsp;" * 100_000,
        "a" + "\u0301\u0323" * 200_000,  # marks that have to be put in order
        "&#" + "0" * 5000 + "38; &#x" + "0" * 5000 + "26;",  # a number of more digits than Python reads
    ):
        start = time.thread_time()
        repair(bad)
        assert time.thread_time() - start < 10


def test_row_that_comes_in_goes_out_or_is_rejected_with_its_reason() -> None:
    result = clean(("one", "a"), ("", "a"), (" \x00 ", "b"), ("two", " "), ("three", "b"), ("one", "a"))
    assert [row.row for row in result.rows] == [1, 5]
    assert [(r.row, r.reason) for r in result.rejected] == [
        (2, "no_text"),
        (3, "no_text"),
        (4, "no_label"),
        (6, "duplicate"),
    ]
    assert result.rejected[-1].detail == "same text and label as row 1"


def test_texts_are_compared_as_repaired_and_with_their_case() -> None:
    result = clean(("a  &amp; b", "x"), ("a & b", "x"), ("A & b", "x"))
    assert [row.fields["text"] for row in result.rows] == ["a & b", "A & b"]


def test_conflicting_rows_all_go_and_name_one_another() -> None:
    result = clean(("same", "yes"), ("other", "yes"), ("same", "no"), ("same", "yes"))
    assert [row.row for row in result.rows] == [2]
    assert {r.reason for r in result.rejected} == {"conflict"}
    assert result.rejected[0].detail == 'same text as row 3, row 4, but the labels are "yes", "no"'


class Counted(list[RawExample]):
    """Rows that count how often one was looked at."""

    looks = 0

    def __getitem__(self, place: Any) -> Any:
        self.looks += 1
        return super().__getitem__(place)


def test_a_conflict_of_many_rows_looks_at_each_a_few_times() -> None:
    rows = Counted(rows_of(*[("good", str(row)) for row in range(300)]))
    fates: dict[int, RejectedRow] = {}
    labels = [row.fields["label"] for row in rows]
    _drop_repeats(rows, [1] * 300, labels, fates, CleanSettings(), ("text",))
    assert len(fates) == 300
    assert "row 2, row 3, row 4, row 5, row 6 and more" in fates[0].detail
    assert '"3", "4" and more' in fates[0].detail
    assert rows.looks <= 10 * 300


def test_conflict_that_is_only_spelling_is_a_duplicate() -> None:
    result = clean(("same", "Yes"), ("same", "yes "), ("z", "Yes"))
    assert [r.reason for r in result.rejected] == ["duplicate"]


def test_conflicts_and_duplicates_can_be_kept() -> None:
    rows = (("same", "yes"), ("same", "no"), ("same", "yes"))
    assert [r.row for r in clean(*rows, drop_conflicts=False).rejected] == [3]
    assert not clean(*rows, drop_conflicts=False, drop_duplicates=False).rejected


def test_rare_labels_go_after_duplicates_are_gone() -> None:
    rows = [(f"text {i}", "many") for i in range(9)] + [("r", "rare"), ("s", "rare"), ("s", "rare")]
    result = clean(*rows, minimum_class_size=3)
    assert [(r.row, r.reason) for r in result.rejected] == [
        (10, "rare_label"),
        (11, "rare_label"),
        (12, "duplicate"),
    ]
    assert result.rejected[0].detail == 'label "rare" has 2 rows; 3 are needed'


def test_given_test_file_is_repaired_but_keeps_its_rows() -> None:
    rows = rows_of(("a &amp; b", "World"), ("a & b", "sports"), ("a & b", "sports"), ("", "World"))
    result = clean_rows(rows, settings=CleanSettings(), protected=True)
    assert [row.fields["text"] for row in result.rows] == ["a & b"] * 3
    assert [r.reason for r in result.rejected] == ["no_text"]


def test_given_test_file_spells_labels_as_training_does() -> None:
    train = clean(*[(f"t{i}", "Sports") for i in range(200)], ("x", "Sprots"), ("y", "World"))
    rows = rows_of(("a", "sports"), ("b", "Sprots"), ("c", "World"), ("d", "Tech"))
    result = clean_rows(rows, settings=CleanSettings(), protected=True, known=train)
    assert [row.fields["label"] for row in result.rows] == ["Sports", "Sports", "World", "Tech"]


def test_other_roles_and_untouched_rows_stay_as_they_are() -> None:
    row = RawExample(fields={"text": "plain", "label": "a", "group": " 7 &amp; "}, source="f", row=3)
    result = clean_rows([row], settings=CleanSettings(minimum_class_size=1))
    assert result.rows[0] is row
    assert result.repaired == 0


def test_rows_without_labels_are_compared_by_all_their_texts() -> None:
    rows = [
        RawExample(fields={"prompt": prompt, "completion": completion}, source="f", row=i)
        for i, (prompt, completion) in enumerate([("a", "b"), ("a", "c"), ("a ", "b"), ("", "d"), ("", "")])
    ]
    result = clean_rows(rows, settings=CleanSettings(), label_role=None, text_roles=("prompt", "completion"))
    assert [row.row for row in result.rows] == [0, 1, 3]
    assert [(r.row, r.reason) for r in result.rejected] == [(2, "duplicate"), (4, "no_text")]


def test_changes_are_counted_and_shown_by_kind() -> None:
    result = clean(("cafÃ© &amp; bar", "a"), ("x\x07y", "a"), *[(f"two  blanks {i}", "a") for i in range(9)])
    assert result.repaired == 11
    assert result.examples["mojibake"] == [("cafÃ© &amp; bar", "café &amp; bar")]
    assert result.examples["entities"] == [("café &amp; bar", "café & bar")]
    assert result.examples["control"] == [("x\x07y", "xy")]
    assert len(result.examples["space"]) == 5


def test_labels_merge_over_case_and_space_into_the_commonest() -> None:
    merges, suspicions = merge_labels(
        {"World": 9, "world": 10, " WORLD ": 1, "sci  tech": 1, "Sci Tech": 2, "v1": 1, "V1": 2}
    )
    assert merges == {"World": "world", " WORLD ": "world", "sci  tech": "Sci Tech", "v1": "V1"}
    assert suspicions == []


@pytest.mark.parametrize("typo", ["sportss", "sorts", "spxrts", "psorts", "sprots", "xsports", "Sport"])
def test_one_typo_merges_where_it_is_rare(typo: str) -> None:
    assert merge_labels({"sports": 100, typo: 1}) == ({typo: "sports"}, [])
    merges, suspicions = merge_labels({"sports": 99, typo: 1})
    assert merges == {}
    assert suspicions == [(typo, "sports")]


@pytest.mark.parametrize(
    ("common", "rare"),
    [
        ("good", "god"),
        ("class1", "class2"),
        ("sports1", "sports"),
        ("sports", "sprtos"),
        ("typical", "atypical"),
        ("Hepatitis B", "Hepatitis C"),
        ("Stage II", "Stage III"),
        ("grade A", "grade F"),
        ("Group A+", "Group A-"),
        ("language C", "language C#"),
        ("高中一年级", "高中二年级"),
    ],
)
def test_short_numbered_or_other_labels_never_merge(common: str, rare: str) -> None:
    assert merge_labels({common: 10_000, rare: 1})[0] == {}


@pytest.mark.parametrize(
    ("common", "rare"),
    [("card arrival", "card arival"), ("card_arrival", "card_arrivla"), ("email query", "e-mail query")],
)
def test_a_typo_in_one_word_of_several_merges(common: str, rare: str) -> None:
    assert merge_labels({common: 10_000, rare: 1})[0] == {rare: common}


def test_typo_of_two_labels_is_a_guess_and_only_reported() -> None:
    merges, suspicions = merge_labels({"cooker": 900, "cooler": 1000, "cooter": 2})
    assert merges == {}
    assert ("cooter", "cooler") in suspicions
    assert ("cooter", "cooker") in suspicions


def test_labels_of_a_letter_or_with_numbers_are_not_reported() -> None:
    assert merge_labels({"a": 5, "b": 6, "no": 5, "go": 1, "type 1": 2, "type 2": 3}) == ({}, [])


def test_labels_equal_but_for_signs_are_reported() -> None:
    assert merge_labels({"sci/tech": 5, "sci-tech": 6}) == ({}, [("sci/tech", "sci-tech")])


def test_merging_labels_can_be_switched_off_and_then_reports() -> None:
    result = clean(("a", "Yes"), ("b", "yes"), ("c", "yes"), merge_labels=False)
    assert {row.fields["label"] for row in result.rows} == {"Yes", "yes"}
    assert result.label_suspicions == [("Yes", "yes")]


@given(st.dictionaries(st.text("abAB 1é", min_size=1, max_size=7), st.integers(1, 300), max_size=12))
@settings(deadline=None)
def test_merging_labels_twice_is_merging_once(counts: dict[str, int]) -> None:
    merges, _ = merge_labels(counts)
    after: dict[str, int] = {}
    for label, count in counts.items():
        after[merges.get(label, label)] = after.get(merges.get(label, label), 0) + count
    assert set(merge_labels(after)[0].values()) <= set(after)
    assert not set(merges) & set(merges.values())


def test_many_different_labels_take_no_time() -> None:
    start = time.thread_time()
    merge_labels(
        {f"{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)} label": 1 for i in range(2000)}
    )
    assert time.thread_time() - start < 10


@pytest.mark.real_data
def test_messy_tweets_lose_their_entities_and_conflicts() -> None:
    path = SHARED / "messy" / "disaster_tweets.csv"
    if not path.exists():
        pytest.skip("the development data is not beside the checkout")
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            RawExample(fields={"text": row["text"], "label": row["target"]}, source="t", row=i)
            for i, row in enumerate(csv.DictReader(file), start=1)
        ]
    result = clean_rows(rows, settings=CleanSettings())
    assert len(rows) == len(result.rows) + len(result.rejected)
    assert not any("&amp;" in row.fields["text"] or "\x89" in row.fields["text"] for row in result.rows)
    assert sum(r.reason == "conflict" for r in result.rejected) >= 50
    assert sum(r.reason == "duplicate" for r in result.rejected) >= 50


# --- sets of labels, and numbers --------------------------------------------------------------------


def clean_sets(*rows: tuple[str, str], **changes: object) -> CleanResult:
    settings = CleanSettings(**{"minimum_class_size": 1, **changes})
    return clean_rows(rows_of(*rows), settings=settings, kind="multiple")


def cells(result: CleanResult) -> list[str]:
    return [row.fields["label"] for row in result.rows]


def test_equal_sets_are_duplicates_and_different_ones_conflict() -> None:
    result = clean_sets(
        ("one", '["b", "a"]'), ("one", '["a", "b"]'), ("two", '["a"]'), ("two", '["a", "b"]'), ("three", "[]")
    )
    assert [(row.row, row.reason) for row in result.rejected] == [
        (2, "duplicate"),
        (3, "conflict"),
        (4, "conflict"),
    ]
    assert cells(result) == ['["a", "b"]', "[]"]


def test_no_label_at_all_is_an_answer_and_an_empty_cell_is_none() -> None:
    result = clean_sets(("one", "[]"), ("two", ""))
    assert cells(result) == ["[]"]
    assert [row.reason for row in result.rejected] == ["no_label"]


def test_spellings_merge_label_by_label() -> None:
    rows = [(f"text {i}", '["Wheat", "corn"]') for i in range(9)]
    result = clean_sets(*rows, ("other", '[" wheat", "oil &amp; gas", "corn"]'))
    assert cells(result)[-1] == '["Wheat", "corn", "oil & gas"]'
    assert result.label_merges == {"wheat": "Wheat"}


def test_a_rare_label_leaves_the_set_and_takes_the_row_only_where_it_stood_alone() -> None:
    rows = [(f"text {i}", '["a"]') for i in range(3)]
    result = clean_sets(*rows, ("both", '["a", "rare"]'), ("alone", '["rare"]'), minimum_class_size=3)
    assert cells(result) == ['["a"]'] * 4
    assert result.rare_labels == {"rare": 2}
    assert [(row.row, row.reason) for row in result.rejected] == [(5, "rare_label")]
    held_out = clean_rows(
        rows_of(("x", '["rare"]'), ("y", '["RARE", "a"]'), ("z", '["new"]'), ("x", '["a"]')),
        settings=CleanSettings(),
        protected=True,
        known=result,
        kind="multiple",
    )
    assert cells(held_out) == ['["a"]', '["new"]', '["a"]']
    assert [row.reason for row in held_out.rejected] == ["rare_label"]


def test_numbers_are_neither_merged_nor_rare() -> None:
    rows = rows_of(("one", "1.0"), ("two", "2.0"), ("two", "2.5"), ("one", "1.0"))
    result = clean_rows(rows, settings=CleanSettings(), kind="score")
    assert cells(result) == ["1.0"]
    assert [row.reason for row in result.rejected] == ["conflict", "conflict", "duplicate"]


odd_letters = st.characters(min_codepoint=128, max_codepoint=0x24FF) | st.sampled_from(
    "ÂÃŒœâ€™éèüß–“\u0301\x1b"
)


@given(st.lists(st.tuples(st.text(st.characters(max_codepoint=127), max_size=3), odd_letters), max_size=8))
@settings(max_examples=300, deadline=None)
def test_text_that_is_not_looked_at_would_not_have_changed(pieces: list[tuple[str, str]]) -> None:
    text = "".join(plain + odd for plain, odd in pieces)
    assert _mend_mojibake(text) == ftfy.fix_text(text, MOJIBAKE)


def test_no_lone_letter_is_mojibake_that_is_not_looked_at() -> None:
    around = ("", "a", "Z ", "?")
    for code in range(0x80, 0x2200):
        letter = chr(code)
        if not MOJIBAKE_SUSPECT.search(letter):
            texts = [before + letter + after for before in around for after in ("", "a", " ")]
            assert not any(map(is_bad, texts)), hex(code)
