"""The public surface: sorted, exact, importable, and nothing beside it."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

import gptailor

NAMES = [
    "Answer",
    "GPTClassifier",
    "GptailorError",
    "Predictor",
    "Recipe",
    "Run",
    "build_recipe",
    "fit",
    "load",
    "load_recipe",
]


def test_names_are_exactly_these_and_sorted() -> None:
    assert gptailor.__all__ == NAMES == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_name_is_the_thing_at_its_home(name: str) -> None:
    thing = getattr(gptailor, name)
    assert inspect.isclass(thing) or inspect.isfunction(thing)
    assert thing.__name__ == name
    assert thing.__module__.startswith("gptailor.")
    assert getattr(importlib.import_module(thing.__module__), name) is thing
    assert inspect.getdoc(thing), "a public name says what it is"


def test_star_import_gives_the_names_and_nothing_else() -> None:
    space: dict[str, object] = {}
    exec("from gptailor import *", space)
    assert sorted(space.keys() - {"__builtins__"}) == NAMES


def test_dir_agrees() -> None:
    assert sorted(dir(gptailor)) == sorted([*NAMES, "__version__"])


def test_unknown_name_is_told_as_python_tells_it() -> None:
    with pytest.raises(AttributeError, match="module 'gptailor' has no attribute 'fitt'"):
        gptailor.fitt  # noqa: B018
    with pytest.raises(ImportError, match="fitt"):
        exec("from gptailor import fitt")


def test_version_is_the_installed_one() -> None:
    assert gptailor.__version__ == version("gptailor")


def test_every_error_is_caught_by_the_one_public_name() -> None:
    errors = importlib.import_module("gptailor.errors")
    found = [
        thing for _, thing in inspect.getmembers(errors, inspect.isclass) if issubclass(thing, Exception)
    ]
    assert len(found) > 8
    assert all(issubclass(thing, gptailor.GptailorError) for thing in found)


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
    ],
)
def test_waiting_threads_leave_the_cores_to_others_unless_a_person_says_otherwise(
    given: dict[str, str], spins: str
) -> None:
    """Set before torch is imported: GNU OpenMP reads it then, and never again."""
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ask = "import sys, os, gptailor; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    told = subprocess.run(
        [sys.executable, "-c", ask], env={**clean, **given}, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["False", spins]
