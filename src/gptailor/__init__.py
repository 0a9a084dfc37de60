"""Gptailor: a GPT fine-tuned to your own text, with numbers you can trust.

The public names. Heavy libraries are imported when a name is first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptailor.api import GPTClassifier, fit
    from gptailor.errors import GptailorError
    from gptailor.models.predictor import Answer, Predictor
    from gptailor.pipeline.run import Run, load
    from gptailor.recipe import Recipe, build_recipe, load_recipe

__version__ = "0.1.0"

# GNU OpenMP's threads spin for milliseconds where they wait, which takes the cores away from who works: two
# fits side by side took twice as long. It reads this once, when torch is imported; what a person set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_HOMES = {
    "Answer": "gptailor.models.predictor",
    "GPTClassifier": "gptailor.api",
    "GptailorError": "gptailor.errors",
    "Predictor": "gptailor.models.predictor",
    "Recipe": "gptailor.recipe",
    "Run": "gptailor.pipeline.run",
    "build_recipe": "gptailor.recipe",
    "fit": "gptailor.api",
    "load": "gptailor.pipeline.run",
    "load_recipe": "gptailor.recipe",
}

__all__ = [
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


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gptailor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
