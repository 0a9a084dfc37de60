"""The page with models that write, in a real browser, by keyboard only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import browser
import pytest
from browser import Page, served, until

from gptailor.data.feeder import PromptIds
from gptailor.models.decode import Event, Generated, Request
from gptailor.models.sampling import Sampling

pytestmark = browser.NEEDED
TAB, ESCAPE = "\ue004", "\ue00c"


class FakeDecoder:
    """Writes what it was asked in capital letters, a letter a step, until max_new_tokens."""

    def __init__(self, owner: FakeWriter) -> None:
        self.owner = owner
        self.jobs: dict[int, list[int]] = {}
        self.left: dict[int, int] = {}
        self.waiting: set[int] = set()
        self.handles = self.drawn = 0

    @property
    def busy(self) -> bool:
        return bool(self.jobs)

    @property
    def free(self) -> int:
        return 1

    def add(self, request: Request) -> int:
        self.handles += 1
        self.jobs[self.handles] = list(request.prompt)
        self.left[self.handles] = request.sampling.max_new_tokens
        return self.handles

    def cancel(self, handle: int) -> None:
        self.jobs.pop(handle, None)
        self.owner.cancelled += 1

    def step(self) -> list[Event]:
        self.owner.pace.wait(0.02 if self.owner.pace.is_set() else 0.2)
        events = []
        for handle, letters in list(self.jobs.items()):
            self.left[handle] -= 1
            letter = chr(letters.pop(0)).upper()
            result = None
            if not letters or not self.left[handle]:
                result = Generated((), "", "length" if letters else "stop", "end_token", (), (), 7)
                del self.jobs[handle]
            events.append(Event(handle, letter, (), result))
        return events


class FakeWriter:
    """A model of one kind."""

    version, context, max_new_tokens, no_repeat, template = "1", 512, 64, 0, None
    max_characters, max_prompt_tokens = 100_000, 448

    def __init__(self, name: str, *, task: str = "chat", columns: Sequence[str] = ()) -> None:
        self.name, self.task, self.columns = name, task, columns
        self.is_chat = task == "chat"
        self.asked: list[Any] = []
        self.cancelled = 0
        self.pace = threading.Event()
        self.pace.set()

    def _fed(self, asked: Any, text: str) -> PromptIds:
        self.asked.append(asked)
        return PromptIds(map(ord, text), left_out=max(0, len(text) - self.max_prompt_tokens))

    def feed_text(self, text: str, *, whole: bool = False) -> PromptIds:  # noqa: ARG002
        return self._fed(text, text)

    def feed_values(self, values: Mapping[str, str], *, whole: bool = False) -> PromptIds:  # noqa: ARG002
        return self._fed(values, " ".join(values.values()))

    def feed_messages(self, messages: Sequence[Mapping[str, Any]]) -> PromptIds:
        return self._fed(messages, messages[-1]["content"])

    def request(self, prompt: Sequence[int], sampling: Sampling, *, top: int = 0) -> Request:
        return Request(tuple(prompt), sampling, top)

    def decoder(self) -> FakeDecoder:
        return FakeDecoder(self)


def test_a_conversation_by_keyboard(open_page: Callable[[str], Page]) -> None:
    chat = FakeWriter("friend")
    with served(answerers=[chat]) as url:
        page = open_page(url)
        page.sees("title", "Try friend")
        until(lambda: page.focus() == "text")
        page.press("hello\n")
        page.sees("turns", "HELLO")
        page.sees("spoken", "HELLO")
        assert page.focus() == "text"
        page.press("how are you\n")
        page.sees("turns", "HOW ARE YOU")
        roles = [(turn["role"], turn["content"]) for turn in chat.asked[-1]]
        assert roles == [("user", "hello"), ("assistant", "HELLO"), ("user", "how are you")]
        page.press(TAB)  # to the button that starts over
        page.press("\n")
        until(lambda: page.text("turns") == "")
        assert page.focus() == "text"
        page.press("new\n")
        page.sees("turns", "NEW")
        assert len(chat.asked[-1]) == 1
        assert page.complaints() == []


def test_an_answer_is_stopped_by_keyboard_and_stays_as_it_is(open_page: Callable[[str], Page]) -> None:
    chat = FakeWriter("friend")
    chat.pace.clear()
    with served(answerers=[chat]) as url:
        page = open_page(url)
        page.sees("go", "Send")
        page.press("abcdefghijklmnopqrstuvwxyz\n")
        page.sees("turns", "AB")
        assert page.text("go") == "Stop"
        page.press(ESCAPE)
        page.sees("turns", "You stopped it.")
        assert page.text("go") == "Send"
        until(lambda: chat.cancelled == 1)
        assert "XYZ" not in page.text("turns")


def test_a_prompt_its_settings_and_earlier_answers(open_page: Callable[[str], Page]) -> None:
    writer = FakeWriter("poet", task="language")
    with served(answerers=[writer]) as url:
        page = open_page(url)
        page.sees("unwritten", "Nothing written yet.")
        page.press("once upon a time\n")
        page.sees("prose", "once upon a timeONCE UPON A TIME")
        page.sees("past", "once upon a time")
        page.press(TAB, TAB)
        page.press("\n")  # opens the settings
        page.press(TAB, TAB)
        assert page.focus() == "length"
        page.type("5")
        page.driver.find_element("id", "text").send_keys("!\n")
        page.sees("ended", "Cut off after 7 tokens. Settings let it write more.")
        assert page.text("prose") == "once upon a time!ONCE "
        assert page.complaints() == []


def test_a_text_of_which_a_part_is_left_out_says_so(open_page: Callable[[str], Page]) -> None:
    writer = FakeWriter("short-sighted", task="completion")
    writer.max_prompt_tokens = 8
    with served(answerers=[writer]) as url:
        page = open_page(url)
        page.press("once upon\n")
        page.sees("ended", "Your text is longer than the model reads: part of it was left out.")
        assert page.complaints() == []


def test_columns_have_a_field_each_and_a_refusal_is_told(open_page: Callable[[str], Page]) -> None:
    writer = FakeWriter("adverts", task="completion", columns=("product", "tone"))
    with served(answerers=[writer]) as url:
        page = open_page(url)
        until(lambda: page.focus() == "column-product")
        page.press("lamp", TAB)
        page.press("kind\n")
        page.sees("prose", "LAMP KIND")
        assert writer.asked == [{"product": "lamp", "tone": "kind"}]
        page.driver.execute_script("document.getElementById('temperature').value = 9")
        page.press("er\n")
        page.sees("notice", "'temperature' must be a number from 0 to 2.")


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (1200, "dark")])
def test_nothing_overflows_and_everything_is_named(
    open_page: Callable[[str], Page], width: int, scheme: str
) -> None:
    models = [FakeWriter("friend"), FakeWriter("a model with quite a long name " * 3, task="language")]
    with served(answerers=models) as url:
        page = open_page(url)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        metrics = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": width < 500}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        page.sees("go", "Send")
        page.driver.execute_script("document.getElementById('settings').open = true")
        page.press("longwordwithoutend" * 4 + "\n")
        page.sees("turns", "LONGWORD")
        over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.driver.execute_script(over) <= 0
        for name in ("text", "model", "temperature", "length", "system"):
            assert page.driver.find_element("id", name).accessible_name
        page.driver.find_element("id", "model").send_keys("a model")
        page.sees("go", "Write")
        assert page.driver.execute_script(over) <= 0
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
