"""A browser, a keyboard and a pair of eyes, for the tests of the page."""

from __future__ import annotations

import importlib.util
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from gptailor.serve.app import build_app
from gptailor.serve.run import listen

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
NEEDED = pytest.mark.skipif(
    not (BROWSER and DRIVER and importlib.util.find_spec("selenium")),
    reason="needs chromium, chromedriver and selenium",
)
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
]


@contextmanager
def served(*predictors: Any, **options: Any) -> Iterator[str]:
    with served_app(build_app(predictors, **options)) as address:
        yield address


@contextmanager
def served_app(app: Any) -> Iterator[str]:
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


class Page:
    """A keyboard and a pair of eyes in front of the browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def press(self, *keys: str) -> None:
        until(lambda: self.driver.execute_script("return document.body.ariaBusy") != "true")
        self.driver.switch_to.active_element.send_keys(*keys)

    def type(self, text: str) -> None:
        self.press("\ue009", "a")  # control and a: over what was there
        self.press(text)

    def text(self, name: str) -> str:
        return str(self.driver.find_element("id", name).text)

    def focus(self) -> str:
        return str(self.driver.switch_to.active_element.get_attribute("id"))

    def sees(self, name: str, words: str) -> None:
        until(lambda: words in self.text(name), lambda: f"{words!r} in {self.text(name)!r}")

    def complaints(self) -> list[str]:
        """What the browser reported: script errors, and what the content policy blocked."""
        found = [entry["message"] for entry in self.driver.get_log("browser")]
        return [line for line in found if "status of" not in line]


def until(condition: Callable[[], Any], told: Callable[[], str] = lambda: "") -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {told()}"
        time.sleep(0.02)
