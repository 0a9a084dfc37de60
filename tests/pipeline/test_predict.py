"""Predicting files: a row for a row, formulas defused, the very bits of `Run.predict`, long texts counted."""

from __future__ import annotations

import copy
import csv
import dataclasses
import gzip
import io
import json
import pickle
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gptailor
import tiny
from gptailor.data.ledger import read_ledger
from gptailor.errors import DataError, InputError, ModelError, RunError
from gptailor.models import predictor as predictor_module
from gptailor.pipeline import run as run_module
from gptailor.pipeline.answers import predict_inputs, predict_to
from gptailor.pipeline.run import Run
from gptailor.types import RawExample, RejectedRow

HEADER = ["source", "row", "text", "label", "probability", "abstained", "truncated", "rejected"]
LABELS = ["business", "health", "sports"]
COUNTS = {"rows": 12, "answered": 10, "rejected": 2, "truncated": 1}
TEXTS = [
    "the cup final in town 3",
    "",
    "=cmd()",
    "+1 for the bank",
    "@x and the flu",
    "-2+3",
    "\u200b \t",
    "東京 🏆 naïve",
    'a "quoted", comma',
    "<|endoftext|> the goal",
    "the bank " * 60,
    "the cup final in town 3",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    tiny.build_base(folder / "base")
    lines = tiny.write_news(folder / "news.csv", rows=90).read_text().splitlines()
    for row in range(3, 90, 9):  # longer than the 24 tokens that are read below
        text, label = lines[row].split(",")
        lines[row] = f"{text} {'and so on ' * 20},{label}"
    (folder / "news.csv").write_text("\n".join(lines) + "\n")
    return folder


def fit(place: Path, too_long: str) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTAILOR_CACHE", str(place / "cache"))
        settings = {
            "base": str(place / "base"),
            "approach": {"kind": "frozen", "strengths": [1, 100]},
            "data": {"max_tokens": 24, "too_long": too_long},
            "evaluate": {"baselines": "none", "resamples": 100},
            "out": str(place / too_long),
        }
        return gptailor.fit(place / "news.csv", settings=settings)


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    return fit(place, "cut")


def write_texts(path: Path, texts: Sequence[str] = TEXTS) -> Path:
    """The texts under `text` beside a column of numbers, in the format of the path's name."""
    rows = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, ["id", "text"], dialect="excel-tab" if ".tsv" in path.name else "excel")
        writer.writeheader()
        writer.writerows(rows)
        data = out.getvalue().encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def predict(run: Run, location: Path | str, out: Path | None, **options: Any) -> dict[str, Any]:
    return predict_to(
        run.folder, str(location), out=out, **{"text": None, "columns": None, "to_stdout": False, **options}
    )


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# A row for a row.


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet", "csv.gz"])
def test_every_input_row_has_its_row_in_order_with_the_bits_of_run_predict(
    kind: str, run: Run, tmp_path: Path
) -> None:
    source = write_texts(tmp_path / f"texts.{kind}")
    result = predict(run, source, tmp_path / "answers.csv")
    rows = read_csv(tmp_path / "answers.csv")
    assert result == {**COUNTS, "file": str(tmp_path / "answers.csv")}
    assert list(rows[0]) == [*HEADER, *(f"p({label})" for label in LABELS)]
    assert [int(row["row"]) for row in rows] == sorted(int(row["row"]) for row in rows)
    assert len({row["row"] for row in rows}) == len(TEXTS)
    assert [row["text"].removeprefix("'") for row in rows] == TEXTS
    for row, answer in zip(rows, run.predict(TEXTS), strict=True):
        assert row["source"] == str(source)
        if answer is None:
            assert row["rejected"] == "no text"
            assert [row[name] for name in (*HEADER[3:7], "p(sports)")] == [""] * 5
            continue
        assert (row["label"], row["rejected"]) == (answer.label, "")
        assert float(row["probability"]) == answer.probability
        assert {name: float(row[f"p({name})"]) for name in LABELS} == answer.probabilities
        assert row["abstained"] == str(answer.abstained).lower()
        assert row["truncated"] == str(answer.truncated).lower()
    assert [row["truncated"] for row in rows].count("true") == 1


def test_unreadable_rows_keep_their_place_with_the_reason(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "texts.csv"
    source.write_bytes(b"id,text\n1,the bank\n2\n3,the flu\n4,too,many,cells\n5,the \xff cup\n6,the goal\n")
    result = predict(run, source, tmp_path / "answers.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert result["rows"] == len(rows) == 6
    assert [row["row"] for row in rows] == [2, 3, 4, 5, 6, 7]
    rejected = [row for row in rows if row["rejected"]]
    assert result["rejected"] == len(rejected) >= 2
    assert all(row["label"] is None and row["text"] == "" for row in rejected)
    assert [row["label"] for row in rows if not row["rejected"]] == [
        answer.label for answer in run.predict([row["text"] for row in rows if not row["rejected"]]) if answer
    ]


def test_a_file_whose_beginning_is_unreadable_is_read_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text column isn't known before a row could be read; no row before it may decide it."""
    monkeypatch.setattr(run_module, "CHUNK", 4)
    lines = ["not json"] * 9 + [json.dumps({"headline": text}) for text in ("the bank", "the flu")]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n")
    found = list(run.predict_file(str(tmp_path / "texts.jsonl")))
    assert [answer is None for _, _, answer in found] == [True] * 9 + [False] * 2
    assert [text for _, text, _ in found[-2:]] == ["the bank", "the flu"]


def test_rows_are_read_as_they_are_answered_in_constant_memory(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0

    def endless(location: str, **_: Any) -> Iterator[RawExample | RejectedRow]:
        nonlocal taken
        while True:
            taken += 1
            yield RawExample({"text": f"the bank in town {taken}"}, location, taken)

    monkeypatch.setattr(run_module, "iterate_rows", endless)
    monkeypatch.setattr(run_module, "CHUNK", 16)
    answers = run.predict_file("endless.csv")
    for number in range(1, 41):
        row, text, answer = next(answers)
        assert (row.row, text) == (number, f"the bank in town {number}")
        assert answer is not None
        assert taken <= number + 16


# What is written.


def test_no_cell_of_the_csv_runs_as_a_formula_and_jsonl_holds_the_text_itself(
    run: Run, tmp_path: Path
) -> None:
    source = write_texts(tmp_path / "=1+1.csv")
    predict(run, source, tmp_path / "answers.csv")
    rows = read_csv(tmp_path / "answers.csv")
    told = [row["text"] for row in rows]
    assert told[2:6] == ["'=cmd()", "'+1 for the bank", "'@x and the flu", "'-2+3"]
    for row in rows:
        assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for cell in row.values())
    predict(run, source, tmp_path / "answers.jsonl")
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == TEXTS
    assert "東京 🏆" in lines[7], "people can read it"


def test_a_label_that_is_a_formula_is_defused(place: Path, tmp_path: Path) -> None:
    news = (place / "news.csv").read_text().replace(",sports", ",=sports()").replace(",health", ",@health")
    (tmp_path / "news.csv").write_text(news)
    settings = {
        "base": str(place / "base"),
        "approach": {"kind": "frozen", "strengths": [100]},
        "evaluate": {"baselines": "none", "resamples": 100},
        "out": str(tmp_path / "run"),
    }
    run = gptailor.fit(tmp_path / "news.csv", settings=settings)
    predict(run, tmp_path / "news.csv", tmp_path / "answers.csv")
    labels = {row["label"] for row in read_csv(tmp_path / "answers.csv")}
    assert labels == {"'=sports()", "'@health", "business"}
    assert {answer.label for answer in run.predict(["the cup final", "the flu"]) if answer} <= {
        "=sports()",
        "@health",
        "business",
    }


def test_standard_output_has_the_bytes_of_the_file(
    run: Run, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    source = write_texts(tmp_path / "texts.csv")
    predict(run, source, tmp_path / "answers.csv")
    assert predict(run, source, None, to_stdout=True) == COUNTS
    assert capsysbinary.readouterr().out == (tmp_path / "answers.csv").read_bytes()


def test_half_a_character_is_written_as_its_escape(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = RawExample({"text": "the bank \ud800"}, "half\udcff.jsonl", 1)
    monkeypatch.setattr(run_module, "iterate_rows", lambda *_, **__: iter([row]))
    predict(run, "half.jsonl", tmp_path / "answers.jsonl")
    (line,) = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["text"] == "the bank \ud800"
    predict(run, "half.jsonl", tmp_path / "answers.csv")
    assert read_csv(tmp_path / "answers.csv")[0]["label"] == json.loads(line)["label"]


def test_standard_input_is_a_text_a_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe:
        buffer = io.BytesIO("the bank\n\nthe flu, naïve\n=cmd()".encode())

    monkeypatch.setattr(sys, "stdin", Pipe())
    result = predict(run, "-", None)
    texts = ["the bank", "the flu, naïve", "=cmd()"]
    answered = [line for line in result["answers"] if line["label"] is not None]
    assert [line["text"] for line in answered] == texts
    assert result["rows"] == len(result["answers"]) == 4
    assert [line["row"] for line in answered] == [1, 3, 4], "a row is its line"
    assert [line["probability"] for line in answered] == [
        answer.probability for answer in run.predict(texts) if answer
    ]


def test_inputs_are_answered_as_they_are_written(run: Run) -> None:
    texts = ["the bank", "=cmd()", "  the flu "]
    answers = predict_inputs(run.folder, texts)
    assert [line["text"] for line in answers] == texts
    for line, answer in zip(answers, run.predict(texts), strict=True):
        assert answer is not None
        assert (line["label"], line["probability"]) == (answer.label, answer.probability)
        assert line["probabilities"] == answer.probabilities


def test_nothing_is_left_where_the_output_failed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(location: str, **_: Any) -> Iterator[RawExample]:
        yield RawExample({"text": "the bank"}, location, 1)
        raise DataError("can't be read.", where=location, fix="Mend it.")

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "answers.jsonl").write_text("old")
    monkeypatch.setattr(run_module, "iterate_rows", torn)
    for name in ("answers.jsonl", "answers.csv"):
        with pytest.raises(DataError):
            predict(run, "torn.csv", tmp_path / "out" / name)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["answers.jsonl"]
    assert (tmp_path / "out" / "answers.jsonl").read_text() == "old"


def test_outputs_that_can_not_be_are_refused_before_the_model_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptailor.pipeline.answers.load", lambda _: pytest.fail("the model was loaded"))
    source = write_texts(tmp_path / "texts.csv")
    (tmp_path / "linked.csv").hardlink_to(source)
    for out in ("answers.xlsx", "answers", "texts.csv", "linked.csv", "texts.csv/answers.csv"):
        with pytest.raises(RunError) as caught:
            predict(run, source, tmp_path / out)
        assert caught.value.where == str(tmp_path / out)


# Columns.


def test_the_text_column_is_the_named_one_else_that_of_training_else_the_plain_one(
    run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "texts.csv"
    file.write_text("note,text,headline\nthe note of it,the text of it,the headline of it\n")
    assert [text for _, text, _ in run.predict_file(str(file))] == ["the text of it"]
    assert [text for _, text, _ in run.predict_file(str(file), text="note")] == ["the note of it"]
    both = [text for _, text, _ in run.predict_file(str(file), text="note+headline")]
    assert both == ["the note of it the headline of it"]
    file.write_text("number,headline\n" + "".join(f"{n},the headline of {n}\n" for n in range(9)))
    said: list[str] = []
    assert next(run.predict_file(str(file), say=said.append))[1] == "the headline of 0"
    assert said == [f"{file}: columns: text is 'headline'; the training file has other names"]
    assert next(run.predict_file(str(file), text="headline", say=said.append))[1] == "the headline of 0"
    assert len(said) == 1, "what was named needn't be said"
    file.write_text("1,the first of them\n2,the second of them\n")
    assert next(run.predict_file(str(file), columns="id,text"))[1] == "the first of them"
    file.write_text("number,headline\n1,x\n")
    with pytest.raises(DataError, match="Did you mean 'headline'"):
        next(run.predict_file(str(file), text="hedline"))


def read_back(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return read_csv(path)


@pytest.mark.parametrize("out", ["answers.csv", "answers.jsonl"])
@pytest.mark.parametrize("rank", [False, True])
def test_columns_that_are_kept_stand_beside_their_answers(
    run: Run, tmp_path: Path, out: str, rank: bool
) -> None:
    (tmp_path / "texts.csv").write_text(
        "id,text,label\nk7,the bank and the price,=gold\nk8,,none\nk9,the cup final,sports\n"
    )
    result = predict(run, tmp_path / "texts.csv", tmp_path / out, keep=["id", "label"], rank=rank)
    assert result["rejected"] == 1
    rows = {row["id"]: row for row in read_back(tmp_path / out)}
    assert {key: row["text"] for key, row in rows.items()} == {
        "k7": "the bank and the price",
        "k8": "",
        "k9": "the cup final",
    }
    apostrophe = "'" if out.endswith("csv") else ""  # no spreadsheet runs it
    assert rows["k7"]["given(label)"] == f"{apostrophe}=gold"
    assert rows["k8"]["given(label)"] == "none"
    assert rows["k9"]["label"] in LABELS  # the answer's


def test_what_a_table_holds_where_there_is_no_text_has_no_answer(run: Run) -> None:
    found = run.predict(["the cup final", None, float("nan"), ""])  # type: ignore[list-item]
    assert [answer is None for answer in found] == [False, True, True, True]
    with pytest.raises(InputError, match="text 2: is of type int"):
        run.predict(["the cup final", 7])  # type: ignore[list-item]


def test_a_copied_or_pickled_model_reads_as_it_did(run: Run) -> None:
    text = "the <|endoftext|> cup final <|endoftext|>"
    (expected,) = run.predictor.predict([text])
    for again in (pickle.loads(pickle.dumps(run.predictor)), copy.deepcopy(run.predictor)):
        assert again.encode(text).sequences == run.predictor.encode(text).sequences
        assert list(again.predict([text])) == [expected]


def test_one_mapping_is_one_text_and_no_list_of_its_keys(run: Run) -> None:
    with pytest.raises(InputError, match="text 1: is of type dict"):
        run.predict({"text": "the cup final"})  # type: ignore[arg-type]


def test_other_tools_are_told_how_much_of_a_text_the_model_reads(run: Run) -> None:
    told = json.loads((run.folder / "model" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert told["model_max_length"] == run.predictor.bundle.max_tokens


def test_a_plain_text_is_said_to_be_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("the cup final\nthe bank and the price\n")
    said: list[str] = []
    predict(run, tmp_path / "lines.txt", tmp_path / "out.csv", say=said.append)
    assert any("is read as one text; with --columns text" in line for line in said)
    said.clear()
    assert (
        predict(run, tmp_path / "lines.txt", tmp_path / "out.csv", say=said.append, columns="text")["rows"]
        == 2
    )
    assert not said


def test_no_kept_column_takes_the_name_of_another(run: Run, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text,label,given(label)\nthe cup final,A,B\n")
    for keep in (["label", "given(label)"], ["given(label)", "label"]):
        predict(run, tmp_path / "texts.csv", tmp_path / "out.csv", keep=keep)
        (row,) = read_back(tmp_path / "out.csv")
        assert (row["given(given(label))"], row["given(label)"]) == ("A", "B")


def test_a_column_to_keep_that_is_not_there_is_refused_before_anything_is_written(
    run: Run, tmp_path: Path
) -> None:
    source = write_texts(tmp_path / "texts.csv")
    with pytest.raises(DataError, match="Did you mean 'id'") as caught:
        predict(run, source, tmp_path / "answers.csv", keep=["idd"])
    assert "--keep" in str(caught.value)
    assert not (tmp_path / "answers.csv").exists()


def test_a_copied_model_predicts_without_its_run(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder / "model", tmp_path / "model")
    copied = gptailor.load(tmp_path / "model")
    source = write_texts(tmp_path / "texts.csv")
    assert [a for _, _, a in copied.predict_file(str(source))] == run.predict(TEXTS)


def test_a_header_without_rows_gives_a_header_without_rows(run: Run, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("id,text\n")
    result = predict(run, tmp_path / "texts.csv", tmp_path / "answers.csv")
    assert (result["rows"], result["answered"]) == (0, 0)
    assert (tmp_path / "answers.csv").read_text().startswith('"source","row","text"')
    assert read_csv(tmp_path / "answers.csv") == []


# Long texts.


def long_lines(run: Run) -> dict[str, list[Any]]:
    """The ledger's lines of the rows that are longer than what is read, by outcome and part."""
    found: dict[str, list[Any]] = {}
    for line in read_ledger(run.folder / "data" / "ledger.jsonl"):
        if (line.row - 4) % 9 == 0:
            found.setdefault(line.part or str(line.reason), []).append(line)
    return found


def summary_of(run: Run) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run.folder / "data" / "summary.json").read_text())
    return summary


def test_cut_reads_the_head_and_counts_what_was_lost(run: Run) -> None:
    lines = [line for part in long_lines(run).values() for line in part]
    assert len(lines) == 10
    assert all(line.cut > 20 and line.trained + line.context == 24 for line in lines)
    assert summary_of(run)["tokens"]["cut"] == sum(line.cut for line in lines)
    head, more = run.predict(["the bank " * 60, "the bank " * 30])
    assert head is not None
    assert more is not None
    assert head.truncated
    assert head.probabilities == more.probabilities, "only the head is read"


def test_drop_drops_training_rows_alone_and_says_so(place: Path) -> None:
    run = fit(place, "drop")
    lines = long_lines(run)
    assert len(lines["too_long"]) == summary_of(run)["dropped"]["too_long"] > 0
    assert "train" not in lines
    held = [*lines.get("validation", []), *lines.get("test", [])]
    assert len(held) + len(lines["too_long"]) == 10
    assert all(line.cut > 20 for line in held), "held-out rows are read, not dropped"
    (answer,) = run.predict(["the bank " * 60])
    assert answer is not None
    assert answer.truncated


def test_window_reads_everything_and_averages(place: Path) -> None:
    run = fit(place, "window")
    lines = [line for part in long_lines(run).values() for line in part]
    assert len(lines) == 10
    assert all(line.cut == 0 and line.trained + line.context > 44 for line in lines)
    assert all(line.trained >= 2 for line in long_lines(run)["train"]), "one learned position a window"
    assert summary_of(run)["tokens"]["cut"] == 0
    (answer,) = run.predict(["the bank " * 60])
    assert answer is not None
    assert not answer.truncated
    encoded = run.predictor.encode("the bank " * 30 + "the flu " * 30)
    assert len(encoded.sequences) > 1
    apart = [dataclasses.replace(encoded, sequences=(ids,)) for ids in encoded.sequences]
    each = [run.predictor.logits([window])[0] for window in apart]
    assert run.predictor.logits([encoded])[0] == pytest.approx(sum(each) / len(each), abs=1e-12)


def test_window_and_cut_answer_short_texts_alike_but_long_ones_by_their_whole(place: Path, run: Run) -> None:
    window = fit(place, "window")
    start = "the bank " * 20
    assert run.predict([start + "the flu " * 40]) == run.predict([start + "the goal " * 40])
    assert window.predict([start + "the flu " * 40]) != window.predict([start + "the goal " * 40])


def test_bf16_is_chosen_by_name_is_near_and_has_a_version_of_its_own(run: Run, tmp_path: Path) -> None:
    faster = gptailor.load(run.folder, precision="bf16")
    text = "the bank and the flu in town 7"
    exact, near = (one.predict([text])[0].probabilities for one in (run, faster))
    off = max(abs(exact[label] - near[label]) for label in LABELS)
    assert 0 < off < 0.05
    assert 0 < faster.predictor.verify_probes() < 0.05
    assert run.predictor.verify_probes() == 0
    assert faster.predictor.version == f"{run.predictor.version}-bf16"
    (told,) = predict_inputs(run.folder, [text], precision="bf16")
    assert told["probabilities"] == near


def test_answers_that_are_no_numbers_are_no_proof(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = gptailor.load(run.folder, precision="bf16").predictor
    monkeypatch.setattr(predictor, "logits", lambda _: np.full((1, len(LABELS)), np.nan))
    with pytest.raises(ModelError, match="off by nan"):
        predictor.verify_probes()


def test_bf16_that_is_far_off_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "BF16_TOLERANCE", 1e-9)
    with pytest.raises(ModelError, match="in bf16 a stored probe's answer is off by"):
        _ = gptailor.load(run.folder, precision="bf16").predictor
    assert gptailor.load(run.folder).predictor.precision == "fp32"


def test_a_model_that_writes_has_one_precision(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder / "model", tmp_path / "model")
    path = tmp_path / "model" / "gptailor.json"
    path.write_text(path.read_text().replace('"task": "classification"', '"task": "completion"'))
    with pytest.raises(ModelError, match="can't be computed in 'bf16'"):
        gptailor.load(tmp_path, precision="bf16")
    with pytest.raises(ModelError, match="Precisions are fp32 and bf16"):
        gptailor.load(run.folder, precision="fp16")  # type: ignore[arg-type]


def test_a_first_row_that_may_be_none_is_said_aloud(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("ant,bee\ncow,dog\nelk,fox\ngnu,hen\n")
    for rank in (False, True):
        said: list[str] = []
        found = predict(run, path, None, text="ant", rank=rank, say=said.append)
        assert found["rows"] == 3
        assert [line.startswith(f"{path}: header: the first row is taken for names") for line in said] == [
            True
        ]


def test_another_threshold_is_another_version(run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "run")
    path = folder / "model" / "gptailor.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "threshold": 0.123}))
    assert Run(folder).predictor.version != run.predictor.version
