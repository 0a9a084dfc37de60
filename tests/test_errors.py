"""Errors speak to a person, leave with the right code, and are told together."""

from __future__ import annotations

import errno
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptailor import cli, errors
from gptailor.errors import (
    DataError,
    GptailorError,
    Interrupted,
    MissingExtraError,
    Problem,
    RecipeError,
    did_you_mean,
    number_of,
    raise_together,
    without_passwords,
)

ERRORS = [
    thing
    for _, thing in inspect.getmembers(errors, inspect.isclass)
    if issubclass(thing, GptailorError) and thing is not MissingExtraError
]


@pytest.mark.parametrize("error", ERRORS)
def test_message_says_what_where_and_what_to_do(error: type[GptailorError]) -> None:
    raised = error("row 3 has no label.", where="news.csv:3", fix="Add one, or drop the row.")
    assert str(raised) == "news.csv:3: row 3 has no label.\nAdd one, or drop the row."
    assert (raised.what, raised.where, raised.fix) == (
        "row 3 has no label.",
        "news.csv:3",
        "Add one, or drop the row.",
    )
    assert str(error("It broke.")) == "It broke."
    assert str(error("It broke.", fix="Mend it.")) == "It broke.\nMend it."


@pytest.mark.parametrize("error", ERRORS)
def test_a_persons_mistake_leaves_with_1_and_an_interruption_with_130(error: type[GptailorError]) -> None:
    assert error.exit_code == (130 if error is Interrupted else 1)


def test_missing_library_names_the_command_that_brings_it() -> None:
    raised = MissingExtraError("datasets", "hub")
    assert "'datasets'" in raised.what
    assert raised.fix == "Install it with: pip install 'gptailor[hub]'"
    assert raised.exit_code == 1


def test_no_problem_raises_nothing() -> None:
    raise_together([], error=DataError, summary="never seen", fix="")


def test_problems_are_told_together() -> None:
    problems = [Problem("news.csv:3", "no label"), Problem("news.csv:9", "no text")]
    with pytest.raises(DataError) as caught:
        raise_together(problems, error=DataError, summary="2 rows can't be used:", fix="Mend them.")
    assert caught.value.what == ("2 rows can't be used:\n  news.csv:3: no label\n  news.csv:9: no text")
    assert caught.value.fix == "Mend them."
    assert str(caught.value).endswith("no text\nMend them.")


@pytest.mark.parametrize(("count", "shown"), [(10, 10), (11, 10), (500, 10), (3, 2), (2, 2)])
def test_many_problems_are_counted_not_listed(count: int, shown: int) -> None:
    problems = [Problem(f"news.csv:{row}", "no label") for row in range(count)]
    with pytest.raises(RecipeError) as caught:
        raise_together(problems, error=RecipeError, summary="Rows:", fix="Mend them.", shown=shown)
    lines = caught.value.what.splitlines()
    listed = [line for line in lines if line.startswith("  news.csv:")]
    assert listed == [f"  news.csv:{row}: no label" for row in range(min(count, shown))]
    if count > shown:
        assert lines[-1] == f"  ... and {count - shown} more"
    else:
        assert "more" not in lines[-1]


def test_hints_are_given_only_where_something_is_near() -> None:
    assert did_you_mean("lable", ["text", "label"]) == " Did you mean 'label'?"
    assert did_you_mean("zzz", ["text", "label"]) == ""
    assert did_you_mean("anything", iter(())) == ""


def test_counts_are_spelled_as_people_do() -> None:
    assert number_of(1, "row") == "1 row"
    assert number_of(0, "row") == "0 rows"
    assert number_of(2310, "row") == "2,310 rows"
    assert number_of(2, "class", "classes") == "2 classes"


def leave_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code with which the command line leaves when this escapes from a verb."""

    def failing(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", failing)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert isinstance(left.value.code, int)
    return left.value.code


def test_command_line_leaves_with_the_errors_code_and_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GPTAILOR_TRACEBACK", raising=False)
    error = DataError("row 3 has no [label].", where="news.csv:3", fix="Add one.")
    assert leave_with(error, monkeypatch) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: news.csv:3: row 3 has no [label]." in err
    assert "Add one." in err
    assert "Traceback" not in err
    assert leave_with(Interrupted("stopped at step 3; the state is saved."), monkeypatch) == 130
    assert leave_with(KeyboardInterrupt(), monkeypatch) == 130


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@host/name", "postgresql://me@host/name"),
        ("postgresql://me:s@cret@host/name and on", "postgresql://me@host/name and on"),
        ("postgresql://me:sec/ret@host/name", "postgresql://me@host/name"),
        ("postgresql://me:sec?ret@host/name", "postgresql://me@host/name"),
        ("postgresql://me:12#3@host/name", "postgresql://me@host/name"),
        ("sqlite:///a.sqlite3", "sqlite:///a.sqlite3"),
        ("postgresql://db:5432/n?user=me@corp", "postgresql://db:5432/n?user=me@corp"),
        ("mysql://db/n?user=me&password=secret&a=b", "mysql://db/n?user=me&password=***&a=b"),
        ("http://localhost:8000 asks me@host", "http://localhost:8000 asks me@host"),
    ],
)
def test_no_password_is_shown(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_is_no_fault_of_ours(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave_with(OSError(number, os.strerror(number), "/disk/file"), monkeypatch) == 1
    told = capsys.readouterr().err
    assert os.strerror(number) in told
    assert "/disk/file" in told
    assert "Traceback" not in told


def test_what_is_sent_to_us_holds_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GPTAILOR_API_KEY", "planted-1")
    given = [
        "serve",
        "--api-key",
        "planted-2",
        "--api-key=planted-3",
        "--storage",
        "mysql://me:planted-4@host/n",
    ]
    monkeypatch.setattr("sys.argv", ["gptailor", *given])
    assert leave_with(ValueError("planted-1 mysql://me:planted-4@host/n"), monkeypatch) == 3
    (log,) = tmp_path.glob("gptailor-*.log")
    for shown in (log.read_text(encoding="utf-8"), capsys.readouterr().err):
        assert "planted" not in shown
        assert "mysql://me@host/n" in shown


def test_what_is_our_fault_leaves_with_3_and_something_to_send(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert leave_with(ZeroDivisionError("division by zero"), monkeypatch) == 3
    (log,) = tmp_path.glob("gptailor-*.log")
    err = capsys.readouterr().err
    assert "our fault" in err
    assert str(log) in err
    assert "Traceback" not in err
    assert "ZeroDivisionError: division by zero" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["check", "nowhere.csv", "--no-estimate"], 1, "nowhere.csv"),
        (["fly"], 2, "fly"),
        (["--help"], 0, ""),
    ],
)
def test_exit_codes_of_the_real_command(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gptailor", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) == (code == 0)
