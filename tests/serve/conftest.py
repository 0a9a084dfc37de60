"""One browser for the tests of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import browser
import pytest
from browser import Page


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
