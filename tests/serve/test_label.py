"""The labelling page: every answer is saved at once, taken back, gone on with; nobody else can write."""

from __future__ import annotations

import csv
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from gptailor.data.read import read_rows
from gptailor.errors import InputError, RunError
from gptailor.serve import label as page
from gptailor.serve.label import build_label_app, label_file
from gptailor.serve.label_file import LabelFile, LabelRow, Stale

HOST = "http://127.0.0.1"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("text,when\n" + "".join(f"text {row},{row}\n" for row in range(1, 6)))
    return path


@pytest.fixture
def file(source: Path) -> LabelFile:
    return label_file(str(source), labels=["yes", "no"], text="text")


@pytest.fixture
def client(file: LabelFile) -> Iterator[TestClient]:
    with TestClient(build_label_app(file), base_url=HOST) as opened:
        yield opened


def written(file: LabelFile) -> list[tuple[str, str]]:
    with file.out.open(newline="") as opened:
        return [(line["text"], line["label"]) for line in csv.DictReader(opened)]


def test_each_answer_is_saved_at_once(client: TestClient, file: LabelFile) -> None:
    state = client.get("/state").json()
    assert (state["row"]["text"], state["done"], state["total"]) == ("text 1", 0, 5)
    assert [(one["name"], one["key"]) for one in state["labels"]] == [("yes", "1"), ("no", "2")]
    assert not file.out.exists()
    state = client.post("/label", json={"place": 0, "label": "no"}).json()
    assert written(file) == [("text 1", "no")]
    assert (state["row"]["text"], state["done"], state["last"]["label"]) == ("text 2", 1, "no")
    client.post("/label", json={"place": 1, "label": "yes"})
    assert written(file) == [("text 1", "no"), ("text 2", "yes")]
    assert file.out.name == "rows.labels.csv"


def test_undo_takes_back_answers_and_skips_in_turn(client: TestClient, file: LabelFile) -> None:
    client.post("/label", json={"place": 0, "label": "no"})
    state = client.post("/skip", json={"place": 1}).json()
    assert (state["row"]["text"], state["last"]["what"]) == ("text 3", "skip")
    assert client.post("/undo").status_code == 403  # without JSON
    state = client.post("/undo", json={}).json()
    assert (state["row"]["text"], state["last"]["label"]) == ("text 2", "no")
    state = client.post("/undo", json={}).json()
    assert (state["row"]["text"], state["done"], written(file)) == ("text 1", 0, [])
    assert client.post("/undo", json={}).json() == state


def test_a_skipped_row_comes_at_the_end(client: TestClient) -> None:
    client.post("/skip", json={"place": 0})
    for place in (1, 2, 3, 4):
        client.post("/label", json={"place": place, "label": "yes"})
    state = client.get("/state").json()
    assert state["row"]["text"] == "text 1"
    state = client.post("/label", json={"place": 0, "label": "yes"}).json()
    assert (state["row"], state["done"]) == (None, 5)


def test_it_goes_on_where_it_stopped_and_can_take_back_what_was_before(source: Path, file: LabelFile) -> None:
    file.label(0, "no")
    file.label(1, "maybe") if "maybe" in file.labels else file.label(1, "yes")
    again = label_file(str(source), text="text")  # the labels stand in the file
    assert again.labels == ["yes", "no"]
    assert again.current == 2
    again.undo()
    assert again.current == 1
    assert written(again) == [("text 1", "no")]


def test_a_key_means_the_same_label_in_every_sitting(source: Path) -> None:
    def keys(*labels: str) -> list[str]:
        return [one["name"] for one in label_file(str(source), labels=labels, text="text").state()["labels"]]

    first = label_file(str(source), labels=["World", "Sports", "Business"], text="text")
    first.label(0, "Business")
    assert keys() == ["World", "Sports", "Business"]
    assert keys("Business", "Sports", "World", "Health") == ["World", "Sports", "Business", "Health"]
    assert keys("Sports") == ["Sports", "Business"]  # what was a mistake and no answer can be taken out
    first.undo()
    assert keys() == ["World", "Sports", "Business"]
    first.out.with_name("rows.labels.keys.json").write_text("{")
    with pytest.raises(InputError, match="can't be read"):
        keys()


def test_rows_may_be_added_but_not_changed(source: Path, file: LabelFile) -> None:
    file.label(0, "no")
    source.write_text(source.read_text() + "text 6,6\n")
    assert len(label_file(str(source), text="text").rows) == 6
    source.write_text(source.read_text().replace("text 1", "other"))
    with pytest.raises(InputError, match=r"row 2 of .*rows.csv isn't what it was"):
        label_file(str(source), text="text")


def test_the_same_file_spelled_otherwise_goes_on(
    source: Path, file: LabelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.label(0, "yes")
    monkeypatch.chdir(source.parent)
    again = label_file("./rows.csv", labels=["yes", "no"], text="text")
    assert again.out.samefile(file.out)
    assert again.answers == {0: "yes"}
    again.label(1, "no")
    assert written(file) == [("text 1", "yes"), ("text 2", "no")]


def test_two_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    first = [LabelRow("a/rows.csv", 2, "one"), LabelRow("b/rows.csv", 2, "two")]
    LabelFile(first, tmp_path / "out.csv", ["yes"]).label(0, "yes")
    moved = [LabelRow("c/rows.csv", 2, "one"), LabelRow("d/rows.csv", 2, "one more")]
    with pytest.raises(InputError, match=r"row 2 of a/rows.csv isn't what it was"):
        LabelFile(moved, tmp_path / "out.csv", ["yes"])


def test_what_another_program_wrote_is_not_written_over(client: TestClient, file: LabelFile) -> None:
    client.post("/label", json={"place": 0, "label": "no"})
    file.out.write_text(file.out.read_text() + "\n\n")
    answer = client.post("/label", json={"place": 1, "label": "no"})
    assert answer.status_code == 400
    assert "changed by another program" in answer.json()["error"]["message"]
    assert (file.current, len(file.answers)) == (1, 1)
    with pytest.raises(RunError):
        file.undo()
    assert len(file.answers) == 1


def test_a_write_that_fails_leaves_the_old_file_and_the_question(
    file: LabelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.label(0, "no")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gptailor.data.ledger.os.fsync", full)
        with pytest.raises(RunError, match="No space"):
            file.label(1, "yes")
    assert written(file) == [("text 1", "no")]
    assert [path.name for path in file.out.parent.iterdir() if path.name.startswith(".")] == []
    file.label(1, "yes")
    assert len(written(file)) == 2


def test_a_page_open_twice_cannot_answer_a_row_it_does_not_show(client: TestClient, file: LabelFile) -> None:
    client.post("/label", json={"place": 0, "label": "no"})
    answer = client.post("/label", json={"place": 0, "label": "yes"})
    assert answer.status_code == 409
    assert answer.json()["state"]["row"]["text"] == "text 2"
    assert written(file) == [("text 1", "no")]
    with pytest.raises(Stale):
        file.skip(0)
    for body in ({"label": "no"}, {"place": "1", "label": "no"}, [1]):
        assert client.post("/label", json=body).status_code == 409
    assert client.post("/label", json={"place": 1, "label": "other"}).status_code == 400


def test_only_its_own_page_may_write(client: TestClient, file: LabelFile) -> None:
    body = {"place": 0, "label": "no"}
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"content-type": "text/plain"},
        {"host": "evil.example"},
        {"content-length": "200000"},
    ):
        assert client.post("/label", json=body, headers=headers).status_code == 403, headers
    assert client.get("/state", headers={"host": "evil.example:80"}).status_code == 403
    assert not file.answers
    own = {"origin": HOST, "sec-fetch-site": "same-origin"}
    assert client.post("/label", json=body, headers=own).status_code == 200


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert len(re.findall("sha256-", policy)) == 3  # two styles, one script
    assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", "")
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cache-control"] == "no-store"


def test_texts_come_back_as_they_are(tmp_path: Path) -> None:
    """Formulas are defused in the file, and line ends, quotes and odd characters survive a second day."""
    texts = ["=1+1", 'he said "no",\r\nthen left', "ünï \u202e x", "'quoted'", "half \ud83d"]
    rows = [LabelRow("-a.csv", number, text) for number, text in enumerate(texts)]
    file = LabelFile(rows, tmp_path / "out.csv", ["a", "b"])
    for place in range(len(texts)):
        file.label(place, "ab"[place % 2])
    assert "'=1+1" in file.out.read_text()
    again = LabelFile(rows, tmp_path / "out.csv", [])
    assert (again.current, list(again.answers.values())) == (None, ["a", "b", "a", "b", "a"])


@pytest.mark.parametrize("names", [("-1", "+1"), ("@spam", "ham"), ("-", "+"), ("=)", "=("), ("'@a", "b")])
def test_labels_come_back_as_they_are(tmp_path: Path, names: tuple[str, str]) -> None:
    rows = [LabelRow("a.csv", number, text) for number, text in enumerate(["=1+1", "'quoted'", "plain"])]
    file = LabelFile(rows, tmp_path / "out.csv", names)
    file.label(0, names[0])
    file.label(1, names[1])
    again = LabelFile(rows, tmp_path / "out.csv", names)
    assert (again.labels, list(again.answers.values())) == ([*names], [*names])
    again.label(2, names[0])
    if names[0] != "'@a":  # only who has the names can tell that from a defused one
        read = read_rows(str(file.out))
        assert [row.fields["label"] for row in read.rows] == [*names, names[0]]
        assert [row.fields["text"] for row in read.rows] == ["=1+1", "'quoted'", "plain"]


def test_apostrophes_of_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("source,row,text,label\na.csv,1,'=1+1,'@spam\na.csv,2,x,ham\n")
    fields = read_rows(str(tmp_path / "own.csv")).rows[0].fields
    assert (fields["text"], fields["label"]) == ("'=1+1", "'@spam")


def test_a_file_that_excel_saved_goes_on(tmp_path: Path) -> None:
    rows, out = [LabelRow("a.csv", 1, "x"), LabelRow("a.csv", 2, "y")], tmp_path / "out.csv"
    out.write_text("source,row,text,label\na.csv,1,x,spam\n", encoding="utf-8-sig")
    assert LabelFile(rows, out, ["spam", "ham"]).answers == {0: "spam"}
    out.write_text("source,row,text,label\r\na.csv,1,'@you there,spam\r\n", encoding="utf-8-sig", newline="")
    assert read_rows(str(out)).rows[0].fields["text"] == "@you there"
    out.write_text("source;row;text;label\na.csv;1;x;spam\n")
    with pytest.raises(InputError, match="source;row;text;label") as caught:
        LabelFile(rows, out, ["spam", "ham"])
    assert "with commas" in str(caught.value.fix)


def test_what_would_be_lost_by_writing_is_refused(tmp_path: Path) -> None:
    rows, out = [LabelRow("a.csv", 1, "x"), LabelRow("a.csv", 2, "y")], tmp_path / "out.csv"
    out.write_text("source,row,text,label,comment\na.csv,1,x,spam,surely?\n")
    with pytest.raises(InputError, match=r"more columns .*comment"):
        LabelFile(rows, out, ["spam", "ham"])
    out.write_text("source,row,text,label\na.csv,1,x,spam\na.csv,1,x,ham\n")
    with pytest.raises(InputError, match="two labels, 'spam' and 'ham'"):
        LabelFile(rows, out, ["spam", "ham"])
    out.write_text("source,row,text,label\na.csv,1,x,spam\na.csv,1,x,spam\n")
    assert LabelFile(rows, out, ["spam", "ham"]).answers == {0: "spam"}


def test_mistakes_are_said_in_words(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no labels to choose from"):
        label_file(str(source), text="text")
    with pytest.raises(InputError, match="isn't a file of labels"):
        label_file(str(source), labels=["a"], text="text", out=source)
    (tmp_path / "empty.csv").write_text("text,when\n ,1\n ,2\n")
    with pytest.raises(InputError, match="no row with a text"):
        label_file(str(tmp_path / "empty.csv"), labels=["a"], text="text")


def test_equal_texts_are_asked_once(tmp_path: Path) -> None:
    rows = [LabelRow("a.csv", number, text) for number, text in enumerate(["x", "y", "x"])]
    file = LabelFile(rows, tmp_path / "out.csv", ["a"])
    assert (len(file.rows), file.repeated) == (2, 1)


def test_rows_in_another_order_go_on_with_what_was_labelled(tmp_path: Path) -> None:
    """Of equal texts another one comes first then; with a run the order is the run's."""
    rows = [LabelRow("a.csv", number, text) for number, text in ((6, "one"), (9, "two"), (5, "two"))]
    file = LabelFile(rows, tmp_path / "out.csv", ["a", "b"])
    file.label(0, "a")
    file.label(1, "b")
    again = LabelFile(sorted(rows, key=lambda row: row.row), tmp_path / "out.csv", ["a", "b"])
    assert [(again.rows[place].text, label) for place, label in again.answers.items()] == [
        ("one", "a"),
        ("two", "b"),
    ]


def test_rows_that_are_not_asked_are_counted(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('text,when\none,1\ntwo,2,3\n" ",3\nthree,4\n')
    said: list[str] = []
    file = label_file(str(tmp_path / "rows.csv"), labels=["a"], text="text", say=said.append)
    assert [row.text for row in file.rows] == ["one", "three"]
    assert any(f"1 row can't be read, the first at {tmp_path / 'rows.csv'}:3" in line for line in said)
    assert "1 row left out, without a text" in said


def test_keys_never_meet_those_of_the_page(tmp_path: Path) -> None:
    names = [f"label {number}" for number in range(50)]
    labels = LabelFile([LabelRow("a", 1, "x")], tmp_path / "o.csv", names).state()["labels"]
    keys = [one["key"] for one in labels if one["key"]]
    assert len(keys) == len(set(keys)) == 34
    assert not {"s", "u", "/"} & set(keys)


def test_the_server_ends_in_an_ordinary_way(file: LabelFile) -> None:
    said: list[str] = []
    servers: list[Any] = []
    real = page._Server

    def remember(config: Any) -> Any:
        servers.append(real(config))
        return servers[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "_Server", remember)
        thread = threading.Thread(
            target=page.serve_label_page, args=(file,), kwargs={"announce": said.append}
        )
        thread.start()
        end = time.monotonic() + 30
        while not (servers and servers[0].started) and time.monotonic() < end:
            time.sleep(0.02)
        servers[0].handle_exit(2, None)
        thread.join(30)
    assert not thread.is_alive()
    assert re.fullmatch(r"5 rows to label at http://127\.0\.0\.1:\d+ \(Ctrl\+C ends it\)", said[0])
