"""One run of the product for speed.py, in a process of its own, with the peers' meter on it.

    python benchmarks/speed_ours.py JOB.json

Fits the recipe as `gptailor fit` does and leaves after the last step that is wanted: saving the model and the
sealed test are no part of the comparison, on neither side.
"""

# ruff: noqa: E402  (threads come with imports, and one heap before them)
from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptailor.launch import choose_heaps
from gptailor.recipe import load_recipe

JOB = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
RECIPE = load_recipe(Path(JOB["recipe"]))
choose_heaps(RECIPE.approach.kind)  # as the command line does, before anything is imported that has threads
sys.path.insert(0, str(Path(__file__).parent / "speed_peers"))

from meter import Meter

import gptailor.models.rows
import gptailor.pipeline.frozen
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.place import Listener


class Enough(Exception):
    """Everything wanted is measured."""


def watch(meter: Meter, *, steps: int, validate: bool) -> Listener:
    """Hears the lines of metrics.jsonl as they are written."""

    def show(line: Mapping[str, Any]) -> None:
        if line["kind"] == "plan":
            meter.begin()
        elif line["kind"] == "step":
            meter.step(tokens=line["num_tokens"], loss=line["loss"])
            if line["step"] == steps:
                meter.end()
                if not validate:
                    raise Enough
        elif line["kind"] == "validation":
            meter.validation_loss = line["loss"]
            raise Enough

    return Listener(show=show)


def watch_frozen(meter: Meter) -> None:
    """Times features, the choice of the strength, and the head; loading the model comes before."""
    module: Any = gptailor.pipeline.frozen
    fit = module.fit_frozen

    def timed(shop: Any, *arguments: Any) -> None:
        meter.begin()
        began = time.perf_counter()
        fit(shop, *arguments)
        rows = shop.tokens.rows["train"]  # validation takes time, too, but the peer has none
        meter.step(tokens=sum(len(row.token_ids) for row in rows), loss=0.0)
        meter.end()
        meter.extra["seconds"] = time.perf_counter() - began
        raise Enough

    module.fit_frozen = timed


def main() -> None:
    """Runs until there is enough, and writes what the meter saw."""
    # A few hundred rows use so little of the vocabulary that training it alone would flatter us.
    gptailor.models.rows.LARGEST_SHARE = 0.0
    meter = Meter()
    watch_frozen(meter)
    try:
        fit_recipe(RECIPE, listener=watch(meter, steps=JOB["steps"], validate=JOB["validate"]))
    except Enough:
        meter.write(Path(JOB["result"]))


if __name__ == "__main__":
    main()
