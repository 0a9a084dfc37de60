"""benchmarks/tuning.py: what it concludes from searches, and how it goes on from a record."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import quality_data
import tuning

EVERY = [(name, seed) for name in tuning.SETS for seed in tuning.SEEDS]


def made(dataset: str, seed: int, *, points: float = 0.0, minutes: float = 10.0) -> dict[str, Any]:
    words = {"search": f"{dataset}-{seed}", "won": points != 0, "says": ""}
    return {**words, "dataset": dataset, "seed": seed, "points": points, "minutes": minutes}


def asked(**changes: Any) -> Namespace:
    values = {"datasets": list(tuning.SETS), "seeds": list(tuning.SEEDS), "trials": 25, "rows": "1000"}
    return Namespace(**{**values, **changes})


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "the bars do not hold"),  # a mean of zero is not above zero
        ({("sst2", 1): {"points": 0.5}}, "the bars hold"),
        ({("sst2", 1): {"points": 9.0}, ("emotion", 0): {"points": -3.3}}, "the bars do not hold"),
        ({("sst2", 1): {"points": 9.0}, ("emotion", 0): {"points": -3.0}}, "the bars hold"),
        ({("ag_news", 1): {"points": 0.5, "minutes": 15.0}}, "the bars do not hold"),
        ({("sst2", 1): {"points": 0.5, "minutes": 15.0}}, "the bars hold"),  # the time is asked of AG News
    ],
)
def test_the_bars_are_those_that_were_set(changed: dict[Any, Any], verdict: str) -> None:
    found = [made(*place, **changed.get(place, {})) for place in EVERY]
    told = tuning.judge(found, asked())
    assert (told["verdict"], told["whole"]) == (verdict, True)


def test_a_part_settles_nothing() -> None:
    found = [made(*place, points=1.0) for place in EVERY]
    assert tuning.judge(found[:-1], asked())["verdict"].startswith("no bar")
    assert tuning.judge(found, asked(trials=5))["verdict"].startswith("no bar")
    assert tuning.judge(found[:4], asked())["means"] == {"ag_news": 1.0, "sst2": 1.0}


def test_it_goes_on_from_a_record_of_the_same_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"word{number} and more", "ab"[number % 2]) for number in range(40)]
    (tmp_path / "toy").mkdir()
    monkeypatch.setattr(tuning, "DATASETS", {"toy": lambda _: (rows, [("a text", "a"), ("b text", "b")])})
    searched: list[int] = []

    def search(split: quality_data.Split, name: str, wanted: Namespace) -> dict[str, Any]:
        searched.append(split.seed)
        if split.seed == 1 and len(searched) == 2:
            raise KeyboardInterrupt
        return {**made("toy", split.seed, points=0.5), "search": name}

    monkeypatch.setattr(tuning, "search", search)
    words = ["tuning.py", "--datasets", "toy", "--rows", "all", "--data", str(tmp_path)]
    words += ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(KeyboardInterrupt):
        tuning.main()
    (record,) = (tmp_path / "results").glob("*-tuning-part.json")
    assert len(json.loads(record.read_text())["searches"]) == 1

    earlier = record.rename(tmp_path / "earlier.json")
    monkeypatch.setattr(sys, "argv", [*words, "--from", str(earlier)])
    tuning.main()
    assert searched == [0, 1, 1, 2]
    assert len(json.loads(record.read_text())["searches"]) == 3
    assert "toy: +0.50 points" in capsys.readouterr().out

    monkeypatch.setattr(tuning, "sources_digest", lambda: "other code")
    tuning.main()
    assert searched == [0, 1, 1, 2, 0, 1, 2]

    earlier.write_text("[]")
    with pytest.raises(SystemExit, match=r"earlier\.json: no record with searches"):
        tuning.main()
