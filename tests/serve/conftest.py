"""One browser for the tests of a file; tiny runs that write, fitted once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
import texts
from browser import Page

from gptailor.models.answerer import Answerer, load_answerer


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for option in (*browser.OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.binary_location = browser.BROWSER
    service = webdriver.ChromeService(executable_path=browser.DRIVER)
    running = webdriver.Chrome(options=options, service=service)
    yield running
    running.quit()


@pytest.fixture
def open_page(driver: Any) -> Callable[[str], Page]:
    def open_it(url: str) -> Page:
        driver.get(url)
        driver.get_log("browser")
        return Page(driver)

    return open_it


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return texts.fit_runs(tmp_path_factory.mktemp("writers"))


@pytest.fixture(scope="session")
def answerers(runs: dict[str, Path]) -> dict[str, Answerer]:
    """Loaded once more, to compare with."""
    return {name: load_answerer(run) for name, run in runs.items()}
