"""The page in a real browser, by keyboard only. Needs Chromium, its driver and selenium."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import browser
import numpy as np
import pytest
from browser import Page, served, until

from gptailor.types import AnswerForm, FloatArray

pytestmark = browser.NEEDED

FETCH = """
fetch("/classify", {
  method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({input: arguments[0]}),
})
"""
ROWS = {"sure": [0.0625, 0.875, 0.0625], "unsure": [0.375, 0.25, 0.375], "other": [0.9375, 0.03125, 0.03125]}


@dataclass(frozen=True)
class FakeEncoded:
    text: str
    num_tokens: int
    truncated: bool
    shape: tuple[int, int]
    rows: int = 1


class FakePredictor:
    """Answers by the first word; a text of over ten words is cut."""

    form = AnswerForm()
    version, label_names, threshold, max_characters = (
        "1",
        ("World", "Sports & <b>games</b>", "Business"),
        0.5,
        500,
    )

    def __init__(self, name: str = "news") -> None:
        self.name = name
        self.gate = threading.Event()
        self.gate.set()

    def encode(self, text: str) -> FakeEncoded:
        words = text.split()
        return FakeEncoded(text, len(words), len(words) > 10, (4, 8))

    def run(self, batch: Sequence[Any]) -> FloatArray:
        assert self.gate.wait(20)
        return np.array([ROWS.get(item.text.split()[0], ROWS["other"]) for item in batch])


def test_the_answer_follows_the_typing_and_abstaining_is_shown(open_page: Callable[[str], Page]) -> None:
    with served(FakePredictor()) as url:
        page = open_page(url)
        page.sees("empty", "The model knows 3 labels: World, Sports & <b>games</b>, Business.")
        assert page.focus() == "text"
        page.press("sure thing")  # no key but the letters: the answer is live
        page.sees("label", "Sports & <b>games</b>")
        page.sees("top", "87.5 %")
        page.sees("spoken", "Sports & <b>games</b>, 87.5 %")
        page.sees("bars", "Sports & <b>games</b>\n87.5 %\nWorld\n6.3 %\nBusiness\n6.3 %")
        page.type("unsure\n")  # Enter: at once
        page.sees("label", "Not sure")
        page.sees("unsure", "The best guess is World, at 37.5 %. This model needs 50.0 % to be sure.")
        page.sees("spoken", "Not sure")
        page.type("other " * 12)
        page.sees("label", "World")
        page.sees("cut", "Only the beginning")
        page.type("\ue017")  # delete
        page.sees("empty", "The model knows 3 labels")
        assert page.complaints() == []


def test_earlier_answers_come_back_by_keyboard(open_page: Callable[[str], Page]) -> None:
    with served(FakePredictor()) as url:
        page = open_page(url)
        page.sees("empty", "3 labels")
        for text in ("sure one", "unsure two"):
            page.type(text + "\n")
            page.sees("past", text)
        page.press("\ue004")  # tab: the button, then the newest earlier answer, then the one before
        page.press("\ue004")
        page.press("\ue004")
        assert page.driver.execute_script("return document.activeElement.matches(':focus-visible')")
        page.press("\n")
        page.sees("label", "Sports")
        assert page.focus() == "text"
        assert page.driver.find_element("id", "text").get_attribute("value") == "sure one"


def test_the_page_asks_for_the_key(open_page: Callable[[str], Page]) -> None:
    with served(FakePredictor(), api_key="schl\u00fcssel") as url:
        page = open_page(url)
        until(lambda: page.focus() == "key")
        page.press("wrong\n")
        page.sees("notice", "That key isn't right.")
        page.press("schl\u00fcssel\n")
        until(lambda: page.focus() == "text")
        page.press("sure thing\n")
        page.sees("top", "87.5 %")
        assert page.complaints() == []


def test_a_busy_server_is_waited_for(open_page: Callable[[str], Page]) -> None:
    predictor = FakePredictor()
    with served(predictor, queue_items=1) as url:
        page = open_page(url)
        page.sees("empty", "3 labels")
        predictor.gate.clear()
        for text in ("runs", "fills the queue"):
            page.driver.execute_script(FETCH, text)
            time.sleep(0.25)
        page.press("sure thing\n")
        page.sees("notice", "The server is busy. Trying again in 1 s.")
        predictor.gate.set()
        page.sees("top", "87.5 %")
        assert page.text("notice") == ""


def test_a_lost_connection_is_said_and_mended(open_page: Callable[[str], Page]) -> None:
    with served(FakePredictor()) as url:
        page = open_page(url)
        page.sees("empty", "3 labels")
        network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        page.driver.execute_cdp_cmd("Network.enable", {})
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": True, **network})
        page.press("sure thing\n")
        page.sees("notice", "Can't reach the server.")
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": False, **network})
        page.sees("top", "87.5 %")


def test_several_models_can_be_picked_and_a_refusal_is_told(open_page: Callable[[str], Page]) -> None:
    with served(FakePredictor("news"), FakePredictor("mails")) as url:
        page = open_page(url)
        page.sees("empty", "3 labels")
        page.press("sure thing\n")
        page.sees("past", "sure thing")
        page.driver.find_element("id", "model").send_keys("mails")
        page.sees("label", "Sports")
        page.press("\ue004")  # tab: from the picker to the text
        page.type("long " * 101 + "\n")
        page.sees("notice", "input has 505 characters; 500 are allowed.")


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (1200, "dark")])
def test_nothing_overflows_and_everything_is_named(
    open_page: Callable[[str], Page], width: int, scheme: str
) -> None:
    with served(FakePredictor("news"), FakePredictor("a model with quite a long name " * 3)) as url:
        page = open_page(url)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        metrics = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": width < 500}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        page.sees("empty", "3 labels")
        page.press("sure" + " longwordwithoutend" * 9 + "\n")
        page.sees("past", "sure")
        over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.driver.execute_script(over) <= 0
        for name in ("text", "model"):
            assert page.driver.find_element("id", name).accessible_name
        ground = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) < 384) == (scheme == "dark")
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
