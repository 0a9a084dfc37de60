"""The labels' names teach beside the rows, wherever rows do, and are nowhere counted or judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from gptailor.api import fit
from gptailor.data.tokenize import encode_texts
from gptailor.pipeline import ladder
from gptailor.pipeline.fit import open_workshop
from gptailor.pipeline.place import Listener
from gptailor.pipeline.prepare import prepare
from gptailor.pipeline.trained import adapt, objective_of
from gptailor.pipeline.workshop import Workshop, pool_of, taught
from gptailor.recipe import FullApproach, build_recipe

LABELS = ["business", "health", "sports"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("names")
    tiny.build_base(folder / "base")
    tiny.write_news(folder / "news.csv", rows=120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTAILOR_CACHE", str(folder / "cache"))
        yield folder


def shop_of(
    place: Path, folder: Path, *, train: str = "news.csv", task_answer: str = "auto", **data: Any
) -> Workshop:
    values = {"data": {"train": str(place / train), **data}, "base": str(place / "base")}
    recipe = build_recipe({**values, "approach": "full", "task_answer": task_answer})
    return open_workshop(recipe, prepare(recipe), folder, Listener())


def test_names_are_texts_of_their_labels(place: Path, tmp_path: Path) -> None:
    shop = shop_of(place, tmp_path)
    assert shop.label_names == LABELS
    names = shop.tokens.names
    assert [row.label for row in names] == [0, 1, 2]
    inside = [
        row.token_ids[len(shop.encoder.prefix) : len(row.token_ids) - len(shop.encoder.suffix)]
        for row in names
    ]
    assert [ids.tolist() for ids in inside] == encode_texts(shop.encoder, LABELS)
    assert all(row.learn.nonzero()[0].tolist() == [len(row.token_ids) - 1] for row in names)
    assert all(row.source != "label names" for rows in shop.tokens.rows.values() for row in rows)


def test_training_sees_each_name_once_an_epoch_and_validation_never(place: Path, tmp_path: Path) -> None:
    shop = shop_of(place, tmp_path)
    rows = shop.tokens.rows
    objective = objective_of(shop, adapt(shop, FullApproach()), rows["train"], rows["validation"])
    assert len(objective.lengths) == len(rows["train"]) + 3
    batch = objective.batch(range(len(rows["train"]), len(objective.lengths)))
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2]
    assert len(taught(shop, pool_of(shop))) == len(pool_of(shop)) + 3
    told = {int(token) for row in shop.tokens.names for token in row.token_ids}
    assert told <= set(np.asarray(objective.used).tolist()), "a token of a name would keep its first weights"


@pytest.mark.parametrize("kind", ["off", "numbers", "sets", "score"])
def test_where_no_names_teach(kind: str, place: Path, tmp_path: Path) -> None:
    """Off, or where they say nothing; of several labels a row a name would deny all others."""
    lines = (place / "news.csv").read_text(encoding="utf-8")
    for place_of, label in enumerate(LABELS):
        lines = lines.replace(f",{label}\n", f",{place_of}\n")
    (place / "numbered.csv").write_text(lines, encoding="utf-8")
    tiny.write_topics(place / "topics.jsonl", rows=150)
    tiny.write_ratings(place / "ratings.csv", rows=150)
    files = {"numbers": "numbered.csv", "sets": "topics.jsonl", "score": "ratings.csv"}
    data: dict[str, Any] = {"teach_names": False} if kind == "off" else {}
    answer = "score" if kind == "score" else "auto"
    shop = shop_of(place, tmp_path, train=files.get(kind, "news.csv"), task_answer=answer, **data)
    assert len(shop.tokens.names) == 0
    assert taught(shop, shop.tokens.rows["train"]) is shop.tokens.rows["train"]
    assert not any("names teach" in note for note in prepare(shop.recipe).notes)


def test_the_n_gram_baseline_is_taught_the_same_names(place: Path, tmp_path: Path) -> None:
    notes = {
        teach: [one.note for one in ladder.cheap_rungs(shop_of(place, tmp_path, teach_names=teach))]
        for teach in (True, False)
    }
    assert ["names taught" in note for note in notes[True]] == [False, True], "the majority counts rows"
    assert not any("names taught" in note for note in notes[False])


def test_a_fit_says_so_and_counts_its_rows_alone(place: Path, tmp_path: Path) -> None:
    run = fit(
        place / "news.csv",
        settings={
            "base": str(place / "base"),
            "approach": {"kind": "frozen", "strengths": [1]},
            "evaluate": {"baselines": "none", "resamples": 100},
            "out": str(tmp_path / "run"),
        },
    )
    data = run.report["data"]
    assert data["read"] == 120
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "names teach, too" in page
    ledger = (run.folder / "data" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(ledger) == 120
    assert not any("label names" in json.loads(line)["source"] for line in ledger)
