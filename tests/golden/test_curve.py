"""A whole small run gives the curve it always gave: data, order, loss, optimizer and schedule together.

The numbers belong to the pinned torch; another processor may move their last digits, hence the tolerance.
Write them anew (and say why in the commit) with `python tests/golden/test_curve.py`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
GOLDEN = Path(__file__).with_name("curve.json")


def run_curve(folder: Path) -> dict[str, list[float]]:
    import gptailor
    import tiny

    base = tiny.build_base(folder / "base")
    data = tiny.write_news(folder / "news.csv", rows=400)
    settings = {
        "base": str(base),
        "approach": "full",
        "data": {"teach_names": False},
        "out": str(folder / "run"),
        "train": {"length": "12 steps", "dropout": 0.1},
        "evaluate": {"baselines": "none", "resamples": 100},
    }
    with pytest.MonkeyPatch.context() as patch:
        # Dropout's masks belong to the micro-batches, and there are as many as workers, so as cores.
        patch.setattr("gptailor.pipeline.plan.choose_workers", lambda *_: 2)
        gptailor.fit(data, settings=settings)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return {
        "train": [line["loss"] for line in lines if line["kind"] == "step"],
        "validation": [line["loss"] for line in lines if line["kind"] == "validation"],
    }


def test_the_curve_is_the_one_it_always_was(tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = run_curve(tmp_path)
    assert found["train"] == pytest.approx(expected["train"], rel=1e-4)
    assert found["validation"] == pytest.approx(expected["validation"], rel=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(json.dumps(run_curve(Path(scratch)), indent=1) + "\n", encoding="utf-8")
