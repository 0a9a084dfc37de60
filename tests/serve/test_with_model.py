"""A real, tiny model behind the server: what it answers is bit for bit what `predict` answers."""

from __future__ import annotations

import csv
import json
import random
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from safetensors.torch import load_file, save_file

import tiny
from gptailor.cli import verbs
from gptailor.data.read import read_rows
from gptailor.errors import ModelError
from gptailor.models import forward
from gptailor.models.packed import PackedGPT2
from gptailor.models.predictor import Answer, load_predictor
from gptailor.pipeline import fit as fitting
from gptailor.pipeline.answers import predict_to
from gptailor.pipeline.keep import PROBES
from gptailor.pipeline.run import Run
from gptailor.recipe import build_recipe
from gptailor.serve.app import build_app
from gptailor.serve.run import listen, server_config
from gptailor.types import TokenizedExample

Sequences = list[tuple[int, ...]]
# Rows that cleaning changes, that hold a control token's name, or that don't fit the model.
MESSY = [
    ("AT&amp;T  shares fall , the bank said\u00a0again", "business"),
    ("the cafÃ© by the goal, extra\ttime", "sports"),
    ("doctors <|endoftext|> and the flu <s> in town", "health"),
    ('she said: "the rate", twice', "business"),
    ("the cup final\nwent to extra time 🏆", "sports"),
    ("a vaccine trial in the hospital, " * 20 + "and the flu", "health"),
    ("=the rate + this quarter", "business"),
]


@dataclass(frozen=True)
class Served:
    """A finished run, the tokens it was trained on, and the server that answers for it."""

    run: Run
    data: Path
    trained: dict[int, list[TokenizedExample]]  # by row of the data file
    computed: set[tuple[int, ...]]  # sequences that went through the body while it was fitted
    client: httpx.Client

    def send(self, given: str | list[str], client: httpx.Client | None = None) -> httpx.Response:
        body = {"input": given, "model": self.run.folder.name}
        return (client or self.client).post("/classify", json=body)

    def post(self, given: str | list[str], client: httpx.Client | None = None) -> Any:
        response = self.send(given, client)
        assert response.status_code == 200, response.text
        return response.json()["data"]


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def seen(patch: pytest.MonkeyPatch) -> Sequences:
    """Every sequence that goes through a body, in training and in serving."""
    sequences: Sequences = []
    original = forward.hidden_at_end

    def watched(model: Any, given: Sequence[Sequence[int]], *rest: Any, **named: Any) -> Any:
        sequences.extend(tuple(sequence) for sequence in given)
        return original(model, given, *rest, **named)

    def watched_packed(compute: Any) -> Any:
        def run(model: PackedGPT2, given: Sequence[Sequence[int]]) -> Any:
            sequences.extend(tuple(sequence) for sequence in given)
            return compute(model, given)

        return run

    patch.setattr(forward, "hidden_at_end", watched)
    patch.setattr(PackedGPT2, "logits", watched_packed(PackedGPT2.logits))
    patch.setattr(PackedGPT2, "features", watched_packed(PackedGPT2.features))
    return sequences


@pytest.fixture(scope="module")
def fitted(
    tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch, seen: Sequences
) -> dict[str, tuple[Run, Path, dict[int, list[TokenizedExample]], set[tuple[int, ...]]]]:
    """One run that cuts long texts and, of another family, one that reads them in windows."""
    folder = tmp_path_factory.mktemp("served")
    patch.setenv("GPTAILOR_CACHE", str(folder / "cache"))
    data = tiny.write_news(folder / "news.csv")
    with data.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(MESSY)
    found = {}
    for too_long, family in (("cut", "gpt2"), ("window", "llama")):
        shops: list[Any] = []
        original = fitting.run_candidates

        def spying(shop: Any, *rest: Any, original: Any = original, shops: Any = shops) -> Any:
            shops.append(shop)
            return original(shop, *rest)

        patch.setattr(fitting, "run_candidates", spying)
        del seen[:]
        recipe = {
            "data": {"train": str(data), "too_long": too_long, "clean": {"near_duplicates": False}},
            "base": str(tiny.build_base(folder / family, family)),
            "approach": "frozen",
            "evaluate": {"baselines": "none", "resamples": 100},
            "out": str(folder / f"news-{too_long}"),
        }
        run = fitting.fit_recipe(build_recipe(recipe))
        trained: dict[int, list[TokenizedExample]] = {}
        for row in shops[0].tokens.rows["train"]:
            trained.setdefault(row.row, []).append(row)
        found[too_long] = (run, data, trained, set(seen))
    return found


@pytest.fixture(scope="module")
def client(fitted: dict[str, Any]) -> Iterator[httpx.Client]:
    """A server with both models, each loaded anew from its folder as `gptailor serve` loads it."""
    app = build_app([load_predictor(run.folder) for run, *_ in fitted.values()])
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    with connect(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
        yield client
    server.should_exit = True
    thread.join(20)
    listener.close()


@pytest.fixture(scope="module", params=["cut", "window"])
def served(request: pytest.FixtureRequest, fitted: dict[str, Any], client: httpx.Client) -> Served:
    return Served(*fitted[request.param], client)


def connect(url: httpx.URL | str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=30, verify=False)  # reading certificates takes its time


def texts_of_many_lengths(count: int, seed: int) -> list[str]:
    """From one word to far over what the model reads at once."""
    draw = random.Random(seed)
    words = [*tiny.WORDS.split(), "Ünïcode", "東京", "🏆", "&lt;b&gt;", "<|endoftext|>", "</s>", "1e5"]
    return [" ".join(draw.choices(words, k=draw.choice((1, 2, 5, 9, 17, 30, 60, 150)))) for _ in range(count)]


def check(item: dict[str, Any], answer: Answer | None) -> None:
    """Equality of floats, no tolerance."""
    assert answer is not None
    assert item["label_probs"] == answer.probabilities
    assert item["probs"] == list(answer.probabilities.values())
    assert item["label"] == answer.label
    assert max(item["probs"]) == answer.probability
    assert (item["abstained"], item["truncated"]) == (answer.abstained, answer.truncated)


def test_the_server_answers_every_bit_of_what_predict_answers(served: Served) -> None:
    texts = [*texts_of_many_lengths(40, seed=1), *(text for text, _ in MESSY)]
    alone = [served.run.predict([text])[0] for text in texts]
    assert served.run.predict(texts) == alone
    assert served.run.predict(texts[::-1]) == alone[::-1]
    for text, answer in zip(texts, alone, strict=True):
        check(served.post(text)[0], answer)
    for item, answer in zip(served.post(texts), alone, strict=True):
        check(item, answer)
    assert any(item["truncated"] for item in served.post(texts)) == served.run.folder.name.endswith("cut")
    assert len({answer.label for answer in alone if answer is not None}) > 1


def test_the_servers_json_holds_the_very_digits_of_predicts_csv(served: Served, tmp_path: Path) -> None:
    texts = [text for text in texts_of_many_lengths(30, seed=2) if text.strip()]
    source, out = tmp_path / "texts.csv", tmp_path / "answers.csv"
    with source.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    predict_to(served.run.folder, str(source), out=out, text="text", columns=None, to_stdout=False)
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    items = json.loads(served.send(texts).text, parse_float=str)["data"]  # the digits as they were sent
    assert len(rows) == len(items) == len(texts)
    for row, item in zip(rows, items, strict=True):
        assert {f"p({name})": digits for name, digits in item["label_probs"].items()} == {
            key: value for key, value in row.items() if key.startswith("p(")
        }
        assert row["label"] == item["label"]


def test_64_clients_at_once_get_every_bit_of_what_each_would_get_alone(served: Served) -> None:
    texts = texts_of_many_lengths(96, seed=3)
    alone = {text: served.run.predict([text])[0] for text in texts}
    together = threading.Barrier(64)

    def ask(number: int) -> None:
        draw = random.Random(number)
        with connect(served.client.base_url) as connection:
            together.wait(30)
            for count in (1, 3, 1, 7):
                asked = draw.choices(texts, k=count)
                items = served.post(asked if count > 1 else asked[0], connection)
                assert [item["index"] for item in items] == list(range(count))
                for text, item in zip(asked, items, strict=True):
                    check(item, alone[text])

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(ask, range(64)))


def test_what_predict_leaves_unanswered_the_server_refuses(served: Served) -> None:
    for text in ("\x00\x01", "\u200b", " \n", "\ufeff"):
        assert served.run.predict([text]) == [None]
        assert served.send(text).status_code == 422


def test_the_server_feeds_the_model_the_tokens_of_training(served: Served, seen: Sequences) -> None:
    rows = {row.row: row.fields["text"] for row in read_rows(str(served.data)).rows}
    assert {text for text, _ in MESSY} & {rows[row] for row in served.trained}, "no messy row is in train"
    many = max(map(len, served.trained.values()))
    assert (many > 1) == served.run.folder.name.endswith("window")
    for row, examples in served.trained.items():
        expected = sorted(tuple(example.token_ids.tolist()) for example in examples)
        assert set(expected) <= served.computed
        del seen[:]
        served.post(rows[row])  # as it stands in the file, before any cleaning
        assert sorted(seen) == expected


def probes_of(run: Run) -> list[dict[str, Any]]:
    return list(json.loads((run.folder / "model" / "gptailor.json").read_text(encoding="utf-8"))["probes"])


@pytest.fixture
def copied(fitted: dict[str, Any], tmp_path: Path) -> Path:
    """A copy of a run's model folder, to be tampered with."""
    shutil.copytree(fitted["cut"][0].folder / "model", tmp_path / "model")
    return tmp_path


def tamper(run: Path, key: str, value: Any, *, probe: int) -> None:
    path = run / "model" / "gptailor.json"
    bundle = json.loads(path.read_text(encoding="utf-8"))
    bundle["probes"][probe][key] = value
    path.write_text(json.dumps(bundle), encoding="utf-8")


def test_the_stored_probes_are_replayed_at_the_start(
    copied: Path, seen: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[list[Any]] = []
    monkeypatch.setattr("gptailor.serve.run.serve", lambda models, **_: served.append(models))
    probes = probes_of(Run(copied))
    assert len(probes) == PROBES
    del seen[:]
    verbs.serve([copied])
    assert len(served) == 1
    assert {tuple(ids) for probe in probes for ids in probe["token_ids"]} <= set(seen)


@pytest.mark.parametrize("probe", range(PROBES))
def test_a_model_that_answers_a_probe_otherwise_is_not_served(
    copied: Path, probe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptailor.serve.run.serve", lambda *_, **__: pytest.fail("it was served"))
    logits = probes_of(Run(copied))[probe]["logits"]
    tamper(copied, "logits", [logits[0] + 0.01, *logits[1:]], probe=probe)
    with pytest.raises(ModelError, match="answered differently") as caught:
        verbs.serve([copied])
    assert caught.value.fix
    tamper(copied, "logits", [float("nan"), *logits[1:]], probe=probe)
    with pytest.raises(ModelError):
        verbs.serve([copied])


def test_a_model_that_tokenizes_a_probe_otherwise_is_not_served(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptailor.serve.run.serve", lambda *_, **__: pytest.fail("it was served"))
    ids = probes_of(Run(copied))[0]["token_ids"]
    tamper(copied, "token_ids", [[*ids[0], 5]], probe=0)
    with pytest.raises(ModelError, match="tokenized differently"):
        verbs.serve([copied])


def test_changed_weights_are_not_served(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptailor.serve.run.serve", lambda *_, **__: pytest.fail("it was served"))
    path = copied / "model" / "model.safetensors"
    weights = load_file(path)
    weights["score.weight"] = weights["score.weight"].flip(0).contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="answered differently"):
        verbs.serve([copied])
