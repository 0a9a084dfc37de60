"""The labelling page in a real browser, by keyboard and by click."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import browser
from browser import Page, served_app, until

from gptailor.serve.label import build_label_app
from gptailor.serve.label_file import LabelFile, LabelRow

pytestmark = browser.NEEDED


def file_of(folder: Path, names: list[str]) -> LabelFile:
    texts = ["one <b>bold</b>", "two", "three"]
    rows = [LabelRow("a.csv", number, text) for number, text in enumerate(texts, 2)]
    return LabelFile(rows, folder / "out.csv", names)


def test_rows_are_labelled_skipped_and_taken_back_by_keyboard(driver: Any, tmp_path: Path) -> None:
    file, page = file_of(tmp_path, ["yes", "no & never"]), Page(driver)
    with served_app(build_label_app(file)) as address:
        driver.get(address)
        page.sees("text", "one <b>bold</b>")  # as text, not as markup
        page.press("2")
        page.sees("text", "two")
        page.sees("last", "no & never")
        assert file.answers == {0: "no & never"}
        page.press("s")
        page.sees("text", "three")
        page.press("9")  # no label has this key
        page.press("u")
        page.sees("text", "two")
        page.press("\ue003")  # backspace
        page.sees("text", "one")
        assert file.answers == {}
        for place, expected in enumerate(("two", "three", "")):
            page.press("1")
            page.sees("text", expected)
            until(lambda: len(file.answers) == place + 1)  # noqa: B023 - asked at once
        page.sees("finished", "gptailor fit")
        page.sees("count", "3 of 3")
        assert page.complaints() == []
    assert (tmp_path / "out.csv").read_text().count("yes") == 3


def test_a_button_labels_and_many_labels_are_found_by_typing(driver: Any, tmp_path: Path) -> None:
    file, page = file_of(tmp_path, [f"label {number}" for number in range(30)]), Page(driver)
    with served_app(build_label_app(file)) as address:
        driver.get(address)
        page.sees("text", "one")
        driver.find_elements("css selector", "#labels button")[3].click()
        page.sees("text", "two")
        page.press("/")
        assert page.focus() == "filter"
        page.press("27")  # the digits are letters of the name here, no keys
        assert file.answers == {0: "label 3"}
        page.press("\ue007")
        page.sees("text", "three")
        assert file.answers == {0: "label 3", 1: "label 27"}
        assert page.complaints() == []


def test_a_second_press_does_not_answer_the_next_row(driver: Any, tmp_path: Path) -> None:
    file, page = file_of(tmp_path, ["yes", "no"]), Page(driver)
    with served_app(build_label_app(file)) as address:
        driver.get(address)
        page.sees("text", "one")
        twice = "const press = () => document.dispatchEvent(new KeyboardEvent('keydown', {key: '1'}));"
        driver.execute_script(f"{twice} press(); fetch('/state').then(() => setTimeout(press, 50));")
        page.sees("text", "two")
        page.press("2")
        page.sees("text", "three")
        assert file.answers == {0: "yes", 1: "no"}


def test_a_server_that_ended_is_told_and_its_answer_does_not_look_taken(driver: Any, tmp_path: Path) -> None:
    file, page = file_of(tmp_path, ["yes", "no"]), Page(driver)
    with served_app(build_label_app(file)) as address:
        driver.get(address)
        page.sees("text", "one")
    page.press("1")
    page.sees("notice", "are saved")
    assert page.text("text").startswith("one")
    assert driver.find_elements("css selector", "#labels .taken") == []
