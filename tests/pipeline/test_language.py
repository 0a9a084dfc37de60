"""`--task language` from documents to a finished run: every token told, the test honest, resume exact."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from crashed import Crash, alike, metrics_of
from gptailor import cli
from gptailor.data.blocks import TokenStore, open_store
from gptailor.data.ledger import LedgerLine, read_ledger
from gptailor.data.overlap import build_ngram_set, shares_a_run
from gptailor.errors import DataError, InputError, ModelError, RecipeError, RunError
from gptailor.evaluate.resampling import FEWEST_UNITS, Resampling
from gptailor.models.predictor import load_predictor
from gptailor.pipeline import causal, language
from gptailor.pipeline.answers import predict_inputs
from gptailor.pipeline.check import check_recipe
from gptailor.pipeline.compare import compare_runs
from gptailor.pipeline.documents import PreparedDocuments, prepare_documents
from gptailor.pipeline.documents_split import _divide_each
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.language_new import evaluate_language
from gptailor.pipeline.place import Listener
from gptailor.pipeline.run import Run
from gptailor.recipe import Recipe, build_recipe, load_recipe
from gptailor.train import checkpoint

STEPS = 6
WORDS = tiny.WORDS.split()
PARTS = ("train", "validation", "test")


def prose(seed: int, words: int) -> str:
    rng = random.Random(seed)
    return "".join(" ".join(rng.choices(WORDS, k=12)) + ".\n" for _ in range(-(-words // 12)))


def write_rows(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


class Place:
    """Tiny bases, texts, and runs made of them."""

    def __init__(self, folder: Path, bases: dict[str, Path]) -> None:
        self.folder, self.bases = folder, bases
        self.book = folder / "book.txt"
        self.book.write_text(prose(0, 9000))
        self.stories = write_rows(folder / "stories.jsonl", [prose(seed, 150) for seed in range(1, 61)])
        self.held_out = write_rows(folder / "held_out.jsonl", [prose(s, 90) for s in range(100, 130)])
        self.said: list[str] = []

    def recipe(
        self,
        name: str,
        *,
        data: Mapping[str, Any] | None = None,
        base: str | Path = "gpt2",
        approach: Any = "full",
        seed: int = 0,
        baselines: str = "none",
        **train: Any,
    ) -> Recipe:
        return build_recipe(
            {
                "task": "language",
                "data": {"train": str(self.book), **(data or {})},
                "base": str(self.bases.get(str(base), base)),
                "approach": approach,
                "train": {"length": f"{STEPS} steps", "save_every": "2 steps", **train},
                "evaluate": {"baselines": baselines, "resamples": 100},
                "seed": seed,
                "out": str(self.folder / name),
            }
        )

    def fit(self, recipe: Recipe, *, crash_at: int | None = None, crash_on: str | None = None) -> Run:
        """Fits; it ends right after a step was logged, or where something was said."""

        def show(line: Mapping[str, Any]) -> None:
            if line["kind"] == "step" and line["step"] == crash_at:
                raise Crash

        def say(words: str) -> None:
            self.said.append(words)
            if crash_on is not None and crash_on in words:
                raise Crash

        self.said = []
        return fit_recipe(recipe, listener=Listener(say=say, show=show))

    def crash(self, recipe: Recipe, **where: Any) -> None:
        with pytest.raises(Crash):
            self.fit(recipe, **where)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_bases: dict[str, Path]) -> Place:
    return Place(tmp_path_factory.mktemp("language"), tiny_bases)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Short samples; and no waiting for the disk, which is half the time of a tiny fit."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "SAMPLE_TOKENS", 6)
        patch.setattr(os, "fsync", lambda _: None)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def full(place: Place) -> Run:
    """One book, divided; all baselines."""
    return place.fit(place.recipe("full", baselines="quick", learning_rate=3e-3))


@pytest.fixture(scope="module")
def many(place: Place) -> Run:
    """Sixty stories, each whole in one part, and a test file of thirty others."""
    data = {"train": str(place.stories), "test": str(place.held_out)}
    return place.fit(place.recipe("many", data=data))


def stores_of(run: Run) -> dict[str, TokenStore]:
    return {part: open_store(run.folder / "data" / "tokens" / part) for part in PARTS}


def ledger_of(run: Run) -> list[LedgerLine]:
    return list(read_ledger(run.folder / "data" / "ledger.jsonl"))


def details_of(run: Run) -> Any:
    return json.loads((run.folder / "details.json").read_text(encoding="utf-8"))


def decoded(run: Run, store: TokenStore) -> str:
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "model")
    return str(tokenizer.decode(store.tokens.tolist(), skip_special_tokens=True))


def results(run: Run) -> dict[str, Any]:
    """All that must be equal, bit for bit."""
    newest, _ = checkpoint.newest_verified(run.folder / "checkpoints")
    assert newest is not None
    return {
        "model": checkpoint.file_hash(run.folder / "model" / "model.safetensors"),
        "tokenizer": checkpoint.file_hash(run.folder / "model" / "tokenizer.json"),
        "optimizer": checkpoint.file_hash(newest.path / "optimizer.safetensors"),
        "ledger": (run.folder / "data" / "ledger.jsonl").read_text(encoding="utf-8"),
        "report": alike(run.report),
        "metrics": alike(metrics_of(run.folder)),
        "samples": details_of(run)["samples"],
    }


# The way to the end, and what lies there.


def test_a_run_folder_holds_what_the_contract_says(full: Run) -> None:
    report = full.report
    assert {"version", "task", "base", "approach", "seed", "data", "test", "validation"} <= report.keys()
    assert {"baselines", "verdict", "training", "environment"} <= report.keys()
    assert (report["version"], report["task"], report["approach"]) == (1, "language", "full")
    assert {"read", "dropped", *PARTS, "tokens"} <= report["data"].keys()
    assert set(report["data"]["tokens"]) == {"trained", "context", "padding", "cut"}
    for part in ("test", "validation"):
        for name in ("bits_per_byte", "perplexity", "loss"):
            assert set(report[part][name]) == {"value", "low", "high"}
        assert report[part]["perplexity"]["value"] == pytest.approx(
            math.exp(report[part]["loss"]["value"]), rel=1e-5
        )
    assert set(report["baselines"]) == {"base", "unigram", "xz"}
    assert {"steps", "best_step", "seconds", "tokens_per_second", "peak_memory_bytes", "stopped"} <= set(
        report["training"]
    )
    for name in ("recipe.yaml", "environment.json", "metrics.jsonl", "openings.jsonl", "report.html"):
        assert (full.folder / name).stat().st_size > 0
    assert "NaN" not in (full.folder / "report.json").read_text()
    (opening,) = (full.folder / "openings.jsonl").read_text().splitlines()
    assert json.loads(opening)["scores"]["bits_per_byte"] == report["test"]["bits_per_byte"]


def test_training_helps_and_the_verdict_is_the_difference_to_the_best_baseline(full: Run) -> None:
    report = full.report
    value = {name: scores["bits_per_byte"]["value"] for name, scores in report["baselines"].items()}
    ours = report["test"]["bits_per_byte"]["value"]
    assert ours < value["base"] - 0.05, "six steps at this rate move a random base"
    verdict = report["verdict"]
    assert verdict["best_baseline"] == min(value, key=lambda name: value[name])
    gap = verdict["difference"]
    assert gap["value"] == pytest.approx(ours - value[verdict["best_baseline"]], abs=1e-5)
    assert (gap["low"], gap["high"]) == (None, None), "of the few pieces that a tenth of the book has"
    assert (verdict["worth_it"], verdict["too_few"]) == (False, True)
    assert "on too little held-out text to tell" in verdict["says"]


def test_validation_is_logged_and_the_best_step_kept(full: Run) -> None:
    validations = [line for line in metrics_of(full.folder) if line["kind"] == "validation"]
    steps = [line["step"] for line in metrics_of(full.folder) if line["kind"] == "step"]
    assert steps == list(range(1, STEPS + 1))
    assert validations[-1]["step"] == STEPS
    best = min(validations, key=lambda line: line["loss"])
    assert full.report["training"]["best_step"] == best["step"]
    assert full.report["validation"]["loss"]["value"] == pytest.approx(best["loss"], rel=1e-4)
    assert full.report["validation"]["bits_per_byte"]["value"] == pytest.approx(
        best["bits_per_byte"], rel=1e-4
    )


def test_the_best_weights_are_kept_and_not_the_last(place: Place) -> None:
    run = place.fit(place.recipe("wild", learning_rate=3.0, patience=0, schedule="constant"))
    validations = {
        line["step"]: line["loss"] for line in metrics_of(run.folder) if line["kind"] == "validation"
    }
    best = min(validations, key=lambda step: validations[step])
    assert best < STEPS
    assert run.report["training"]["best_step"] == best
    assert run.report["validation"]["loss"]["value"] == pytest.approx(validations[best], rel=1e-4)
    assert run.report["test"]["loss"]["value"] < validations[STEPS]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_any_tool_loads_the_model_and_measures_the_same(place: Place, family: str) -> None:
    """One short held-out text: its loss by transformers, with the tokens that training put around it."""
    text = prose(7, 24)
    test = write_rows(place.folder / f"one-{family}.jsonl", [text])
    run = place.fit(place.recipe(f"family-{family}", base=family, data={"test": str(test)}))
    tokenizer: Any = AutoTokenizer.from_pretrained(run.folder / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = [begin, *tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    assert len(ids) < 64
    with torch.no_grad():
        loss = float(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss)
    assert run.report["test"]["tokens"] == len(ids) - 1
    assert run.report["test"]["bytes"] == len(text.encode())
    assert run.report["test"]["loss"]["value"] == pytest.approx(loss, abs=2e-5)
    bits = loss * (len(ids) - 1) / len(text.encode()) / math.log(2)
    assert run.report["test"]["bits_per_byte"]["value"] == pytest.approx(bits, abs=2e-5)
    assert details_of(run)["parity"]["reload"] < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_base_without_a_pad_token_is_measured_as_it_came(place: Place, family: str) -> None:
    """The token that is added takes no probability from the others, though GPT-2's logits are far below 0."""
    model: Any = AutoModelForCausalLM.from_pretrained(place.bases[family])
    tokenizer: Any = AutoTokenizer.from_pretrained(place.bases[family])
    assert tokenizer.pad_token_id is None
    norm = model.transformer.ln_f if family == "gpt2" else model.model.norm
    with torch.no_grad():
        if family == "gpt2":
            norm.bias += 5
            model.lm_head.weight -= 0.5
        else:
            norm.weight *= 100
    low = place.folder / f"low-{family}"
    model.save_pretrained(low)
    tokenizer.save_pretrained(low)
    text = prose(7, 24)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    begin, end = (0, 0) if family == "gpt2" else (0, 1)
    inputs = torch.tensor([[begin, *ids, end]])
    with torch.no_grad():
        found = model(inputs, labels=inputs)
    if family == "gpt2":
        assert found.logits.max() < -20
    test = write_rows(place.folder / f"low-{family}.jsonl", [text])
    recipe = place.recipe(
        f"low-{family}-run", base=low, data={"test": str(test)}, baselines="quick", length="1 steps"
    )
    loss = place.fit(recipe).report["baselines"]["base"]["loss"]["value"]
    assert loss == pytest.approx(float(found.loss), abs=1.1 / 400)


def test_full_moves_every_weight(full: Run, place: Place) -> None:
    before = load_file(place.bases["gpt2"] / "model.safetensors")
    after = load_file(full.folder / "model" / "model.safetensors")
    for name, weight in before.items():
        assert not torch.equal(weight, after[name][: len(weight)]), name


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by an old name
def test_lora_saves_the_adapter_and_merges_it_exactly(place: Place) -> None:
    approach = {"kind": "lora", "rank": 2, "dropout": 0.1}
    run = place.fit(place.recipe("lora", approach=approach, learning_rate=1e-2))
    assert run.report["approach"] == "lora"
    parity = details_of(run)["parity"]
    assert 0 < parity["merge"] < 1e-5
    assert parity["reload"] < 1e-6
    merged: Any = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    base: Any = AutoModelForCausalLM.from_pretrained(place.bases["gpt2"])
    base.resize_token_embeddings(merged.config.vocab_size, mean_resizing=False)
    ids = torch.tensor([stores_of(run)["test"].tokens[:40].tolist()])
    with torch.no_grad():
        untrained = base(ids).logits[..., :400]
        apart = PeftModel.from_pretrained(base, run.folder / "adapter")(ids).logits[..., :400]
        together = merged(ids).logits[..., :400]
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-5)
    assert (together - untrained).abs().max() > 1e-3
    embedding = "transformer.wte.weight"
    weights = [load_file(f / "model.safetensors") for f in (place.bases["gpt2"], run.folder / "model")]
    assert torch.equal(weights[0][embedding], weights[1][embedding][:400]), "only linear layers are adapted"


def test_scratch_brings_a_tokenizer_of_its_own(place: Place) -> None:
    """Of the size asked for, made of training text alone, and the model has as many rows."""
    rng = random.Random(0)
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprst", "aeiou")]
    lines = [" ".join("".join(rng.choices(syllables, k=2)) for _ in range(10)) for _ in range(900)]
    train = place.folder / "syllables.txt"
    train.write_text("\n".join([*lines, *["zyzzyva quux " * 4] * 100]))  # the end is held out
    approach = {"kind": "scratch", "vocabulary": 600, "layers": 1, "width": 24, "heads": 3}
    data = {"train": str(train)}
    run = place.fit(place.recipe("scratch", approach=approach, data=data, baselines="quick"))
    assert "zyzzyva" in decoded(run, stores_of(run)["validation"])
    tokenizer: Any = AutoTokenizer.from_pretrained(run.folder / "model")
    assert len(tokenizer) == 600
    model: Any = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    assert (model.config.vocab_size, model.config.n_layer, model.config.n_embd) == (600, 1, 24)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer(" zyzzyva", add_special_tokens=False).input_ids) > 5
    assert len(tokenizer(" bada", add_special_tokens=False).input_ids) < 5
    for text in ("Füße 東京 🏆\n\t x", "<|endoftext|> is text"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.eos_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert "skipped" in run.report["baselines"]["base"]
    assert run.report["verdict"]["best_baseline"] in ("unigram", "xz")
    assert details_of(run)["tokenizer"]["vocabulary"] == 600
    assert all(sample["before"] is None for sample in details_of(run)["samples"])


def test_scratch_without_a_size_of_vocabulary_chooses_one(place: Place) -> None:
    run = place.fit(place.recipe("scratch-auto", approach="scratch"))
    assert details_of(run)["tokenizer"]["vocabulary"] <= 512
    assert "training a tokenizer of 512 tokens" in place.said


def test_frozen_is_refused_before_anything_is_read(place: Place) -> None:
    with pytest.raises(RecipeError, match="frozen has nothing to learn") as caught:
        place.fit(place.recipe("frozen", approach="frozen"))
    assert "lora" in str(caught.value.fix)
    assert place.said == []
    with pytest.raises(RecipeError, match="frozen has nothing to learn"):
        check_recipe(place.recipe("frozen", approach="frozen"))
    assert place.fit(place.recipe("frozen")).report["approach"] == "full", "the folder can be used"


def test_auto_is_full_for_a_small_base(place: Place) -> None:
    run = place.fit(place.recipe("auto", approach="auto"))
    assert run.report["approach"] == "full"
    assert "kind: full" in (run.folder / "recipe.yaml").read_text()


def test_recomputed_activations_give_the_same_weights(
    place: Place, full: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputed: list[Any] = []
    recompute = causal.recompute_activations
    monkeypatch.setattr(
        causal, "recompute_activations", lambda model: (recompute(model), recomputed.append(model))
    )
    run = place.fit(place.recipe("recomputed", learning_rate=3e-3, gradient_checkpointing=True))
    assert recomputed
    expected = load_file(full.folder / "model" / "model.safetensors")
    for name, weight in load_file(run.folder / "model" / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-4)


# Where every document and every token went.


def test_one_document_is_divided_and_its_end_is_held_out(full: Run, place: Place) -> None:
    assert full.report["data"]["divided"] is True
    stores = stores_of(full)
    together = "".join(decoded(full, stores[part]) for part in PARTS)
    assert together == place.book.read_text(), "train, then validation, then test, and nothing between"
    sizes = {part: int(stores[part].piece_bytes.sum()) for part in PARTS}
    assert sum(sizes.values()) == place.book.stat().st_size
    assert sizes == full.report["data"]["bytes"]
    assert sizes["train"] > 0.7 * sum(sizes.values())


def test_nineteen_documents_are_divided_and_twenty_stay_whole(place: Place) -> None:
    texts = [prose(seed, 2500) for seed in range(20)]
    owners: dict[int, list[set[int]]] = {}
    for count in (19, 20):
        train = write_rows(place.folder / f"few-{count}.jsonl", texts[:count])
        run = place.fit(place.recipe(f"few-{count}", data={"train": str(train)}, length="1 steps"))
        stores = stores_of(run)
        owners[count] = [set(store.piece_documents.tolist()) for store in stores.values()]
        assert run.report["data"]["divided"] is (count == 19)
        assert any(line.detail for line in ledger_of(run)) is (count == 19)
        size = np.array([store.piece_bytes.sum() for store in stores.values()])
        assert (size / size.sum()).tolist() == pytest.approx([0.8, 0.1, 0.1], abs=0.08)
    train_documents, validation, test = owners[19]
    assert train_documents == set(range(19)), "of each the beginning trains"
    assert min(len(validation), len(test)) >= FEWEST_UNITS, "and the ends of as many as an interval needs"
    train_documents, validation, test = owners[20]
    assert train_documents | validation | test == set(range(20))
    assert not train_documents & validation
    assert not train_documents & test
    assert not validation & test


def test_a_few_short_documents_stay_whole_instead(place: Place) -> None:
    """None of them is long enough to be divided, and together they are plenty."""
    train = write_rows(place.folder / "short-few.jsonl", [prose(seed, 600) for seed in range(12)])
    run = place.fit(place.recipe("short-few", data={"train": str(train)}, length="1 steps"))
    data = run.report["data"]
    assert data["divided"] is False
    assert (data["train"], data["validation"], data["test"]) == (8, 2, 2)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_ledger_comes_out(place: Place, family: str) -> None:
    """Read is used and dropped; every token that is predicted is told, once."""
    texts = [prose(seed, 2500) for seed in range(6)]
    odd = [texts[0], "", " \n ", texts[1]]
    train = place.folder / f"odd-{family}.jsonl"
    write_rows(train, [*texts, *odd])
    with train.open("a") as file:
        file.write("{broken\n")
    run = place.fit(place.recipe(f"odd-{family}", base=family, data={"train": str(train)}))
    data, lines = run.report["data"], ledger_of(run)
    assert data["read"] == len(lines) == 11
    assert data["dropped"] == {"unreadable": 1, "no_text": 2, "duplicate": 2}
    assert [line.row for line in lines if line.outcome == "used"] == [1, 2, 3, 4, 5, 6]
    (twin,) = [line for line in lines if line.row == 7]
    assert "row 1" in twin.detail
    stores = stores_of(run)
    targets = {part: store.num_targets for part, store in stores.items()}
    assert sum(line.trained for line in lines) == data["tokens"]["trained"] == targets["train"]
    held_out = targets["validation"] + targets["test"]
    assert sum(line.context for line in lines) == data["tokens"]["context"] == held_out
    assert data["tokens"]["cut"] == 0
    assert run.report["test"]["tokens"] == targets["test"]
    assert run.report["validation"]["tokens"] == targets["validation"]
    blocks = -(-(len(stores["train"].tokens) - 1) // 64)
    assert data["tokens"]["padding"] == 64 * blocks - (len(stores["train"].tokens) - 1)


def test_whole_documents_and_a_given_test_file(many: Run, place: Place) -> None:
    data, lines = many.report["data"], ledger_of(many)
    assert data["read"] == len(lines) == 90
    assert data["divided"] is False
    assert data["train"] + data["validation"] == 60
    assert data["test"] == many.report["test"]["documents"] == 30
    assert data["dropped"] == {}
    assert sum(bool(line.trained) and bool(line.context) for line in lines) == 0
    test = "".join(json.loads(line)["text"] for line in place.held_out.read_text().splitlines())
    assert decoded(many, stores_of(many)["test"]) == test


def test_what_stands_in_the_test_file_is_left_out_of_training_and_told(place: Place) -> None:
    """Copies, quotes in short and long texts, and one that lies across two pieces of a text."""
    rng = random.Random(5)
    secrets = [[f"secret{rng.randrange(10**6)}" for _ in range(24)] for _ in range(6)]
    held_out = [" ".join(words) for words in secrets]
    test = write_rows(place.folder / "secret.jsonl", held_out)
    long = [prose(seed, 4000) for seed in range(200, 204)]
    first, second = " ".join(secrets[5][:12]), " ".join(secrets[5][12:])  # neither is a run of thirteen
    beginning = long[3][:4000].rpartition("\n")[0]
    quoting = [
        long[0][:3000] + held_out[0].upper() + long[0][3000:],
        long[1][:9000] + "\n" + held_out[1] + long[1][9000:],
        held_out[2],
        f"As they say: {held_out[3]}!",
        f"Only a few words: {' '.join(secrets[4][:12])}, no more.",
        f"{beginning}\n{first}\n{second}{long[3][4000:]}",
        long[2],
    ]
    train = write_rows(place.folder / "quoting.jsonl", quoting)
    run = place.fit(place.recipe("leaks", data={"train": str(train), "test": str(test)}, length="1 steps"))
    lines = [line for line in ledger_of(run) if line.source == str(train)]
    assert [line.reason for line in lines] == [None, None, "leak_exact", "leak_near", None, None, None]
    assert run.report["data"]["dropped"] == {"leak_exact": 1, "leak_near": 1}
    told = [line.detail.partition(" of its pieces are left out")[0][-1:] for line in lines]
    assert [told[place] for place in (0, 1, 5)] == ["1", "1", "2"]
    assert "left out" not in lines[4].detail + lines[6].detail
    text = "\n".join(decoded(run, stores_of(run)[part]) for part in ("train", "validation"))
    assert not shares_a_run(text, build_ngram_set(held_out))
    found = [[word in text.lower() for word in words] for words in secrets]
    assert sum(map(sum, found)) == 12
    assert sum(found[4]) == 12, "a few words are no leak"
    assert run.report["test"]["documents"] == 6
    (note,) = [note for note in details_of(run)["notes"] if "share a run of 13 words" in note]
    assert re.search(r"quoting\.jsonl: \d+ pieces \(.*B\) left out", note)
    assert note in place.said


def marked(place: Place, name: str, marks: Sequence[Mapping[str, str]]) -> Path:
    """A row for each, with a text of its own."""
    rows = [{"text": prose(400 + number, 24), **mark} for number, mark in enumerate(marks)]
    path = place.folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_by_part(prepared: PreparedDocuments) -> dict[str, set[int]]:
    """The rows of the training file, numbered from 0."""
    file = prepared.files[0]
    found: dict[str, set[int]] = {part: set() for part in PARTS}
    for document, part in zip(file.documents.piece_document, file.parts.tolist(), strict=True):
        if part >= 0:
            found[PARTS[part]].add(document)
    return found


@pytest.mark.parametrize("count", [12, 60])
def test_documents_of_a_group_stay_in_one_part(place: Place, count: int) -> None:
    """Also fewer than are otherwise divided; the largest group, half of everything, trains."""
    writers = [{"writer": f"w{n % 6}" if n % 2 else "most"} for n in range(count)]
    path = marked(place, f"writers-{count}.jsonl", writers)
    for seed in range(4):
        data = {"train": str(path), "split": {"group": "writer", "validation": 0.2, "test": 0.2}}
        prepared = prepare_documents(place.recipe("writers", data=data, seed=seed))
        parts = rows_by_part(prepared)
        assert all(parts.values())
        of = {part: {writers[row]["writer"] for row in rows} for part, rows in parts.items()}
        assert not of["train"] & of["test"] | of["train"] & of["validation"] | of["validation"] & of["test"]
        assert "most" in of["train"]
        assert sum(map(len, parts.values())) == count


@pytest.mark.parametrize("kept", [True, False])
def test_near_duplicates_stay_in_one_part(place: Place, kept: bool) -> None:
    """Thirty texts, each a second time with one word more: no copy tests what the other taught."""
    texts = [prose(seed, 60) for seed in range(700, 730)]
    path = write_rows(place.folder / "near.jsonl", [*texts, *(f"{text} again" for text in texts)])
    data = {"train": str(path), "clean": {"near_duplicates": kept}}
    apart = 0
    for seed in range(3):
        prepared = prepare_documents(place.recipe("near", data=data, seed=seed))
        parts = rows_by_part(prepared)
        assert all(parts.values())
        assert sum(map(len, parts.values())) == 60
        part_of = {row % 30: part for part, rows in parts.items() for row in rows if row < 30}
        apart += sum(part_of[row % 30] != part for part, rows in parts.items() for row in rows)
        assert prepared.files[0].near_groups == (30 if kept else 0)
    assert (apart == 0) == kept


def test_documents_that_are_all_alike_are_divided_and_told(place: Place) -> None:
    text = prose(800, 80)
    path = write_rows(place.folder / "alike.jsonl", [f"{text} {number}" for number in range(30)])
    said: list[str] = []
    prepared = prepare_documents(place.recipe("alike", data={"train": str(path)}), said.append)
    assert all(rows_by_part(prepared).values())
    assert any("near-duplicates of one another" in line for line in said)
    few = write_rows(place.folder / "few.jsonl", [prose(seed, 12) for seed in range(810, 813)])
    told: list[str] = []
    prepare_documents(place.recipe("few", data={"train": str(few)}), told.append)
    assert not any("near-duplicates" in line for line in told), "few and short, and none like another"


def test_a_divided_text_that_repeats_itself_is_told(place: Place) -> None:
    once = prose(7000, 3000)
    for name, text, told in (("once.txt", once, False), ("twice.txt", once + once, True)):
        (place.folder / name).write_text(text)
        data = {"train": str(place.folder / name)}
        notes = prepare_documents(place.recipe(name, data=data)).notes
        assert any("share a run of 13 words with what is held out" in note for note in notes) == told


def test_near_duplicates_of_a_given_file_are_drawn_as_one(place: Place) -> None:
    texts = [prose(seed, 60) for seed in range(740, 752)]
    rows = [f"{text} {word}" for text in texts for word in ("again", "indeed", "so")]
    test = write_rows(place.folder / "near-test.jsonl", rows)
    for kept, units in ((True, 12), (False, 36)):
        data = {"train": str(place.stories), "test": str(test), "clean": {"near_duplicates": kept}}
        file = prepare_documents(place.recipe("near-test", data=data)).files[-1]
        assert len(np.unique(file.together)) == units


def test_text_that_taught_the_base_is_known_again(place: Place, many: Run) -> None:
    """With another seed, what is held out now has taught the run that is the base."""
    recipe = load_recipe(many.folder / "recipe.yaml")
    data = {"train": recipe.data.train}
    run = place.fit(place.recipe("taught", data=data, base=many.folder, seed=5, length="1 steps"))
    assert any("taught the base" in words for words in place.said)
    told = json.loads((run.folder / "data" / "summary.json").read_text())["taught_before"]
    assert told["test"] > 0
    assert any("taught the base" in note for note in details_of(run)["notes"])


def test_the_newest_documents_test_and_the_oldest_train(place: Place) -> None:
    days = [{"day": f"2024-{1 + (7 * n) % 12:02d}-{1 + n % 28:02d}"} for n in range(40)]
    data = {"train": str(marked(place, "days.jsonl", days)), "split": {"time": "day"}}
    parts = rows_by_part(prepare_documents(place.recipe("days", data=data)))
    when = {part: [days[row]["day"] for row in rows] for part, rows in parts.items()}
    assert max(when["train"]) < min(when["validation"])
    assert max(when["validation"]) < min(when["test"])


def test_documents_without_a_time_are_counted_and_never_held_out(place: Place) -> None:
    def prepared(name: str, *, dated: int) -> PreparedDocuments:
        days = [{"day": f"2024-01-{1 + n % 28:02d}" if n < dated else ""} for n in range(40)]
        data = {"train": str(marked(place, f"{name}.jsonl", days)), "split": {"time": "day"}}
        return prepare_documents(place.recipe(name, data=data))

    some = prepared("some-days", dated=25)
    assert "no time stands in 15 of 40 documents: such documents count as the oldest." in some.notes
    assert {row for part in ("validation", "test") for row in rows_by_part(some)[part]} <= set(range(25))
    with pytest.raises(DataError, match="only 2 of 40 documents have a time: too few"):
        prepared("few-days", dated=2)


def test_short_documents_that_nearly_stand_in_a_held_out_file_are_left_out(place: Place) -> None:
    """Headlines have no run of thirteen words: they are compared whole, as rows of other tasks are."""
    lines = [prose(seed, 9).replace("\n", " ") for seed in range(700, 760)]
    others = [prose(seed, 9).replace("\n", " ") for seed in range(800, 803)]
    train = write_rows(place.folder / "headlines.jsonl", lines)
    test = write_rows(place.folder / "headlines-test.jsonl", [f"{lines[3]}!", lines[7].upper(), *others])
    validation = write_rows(place.folder / "headlines-validation.jsonl", [f"{others[0]} .", *lines[10:14]])
    data = {"train": str(train), "validation": str(validation), "test": str(test)}
    taught, chose, tested = prepare_documents(place.recipe("headlines", data=data)).files
    assert {row: reason for row, (reason, _) in taught.reasons.items()} == {
        **dict.fromkeys((3, 7), "leak_near"),
        **dict.fromkeys(range(10, 14), "leak_exact"),
    }
    assert taught.reasons[3][1] == f"nearly the same text as {test} row 1"
    assert {row: reason for row, (reason, _) in chose.reasons.items()} == {0: "leak_near"}
    assert tested.reasons == {}


def test_a_group_of_the_test_file_trains_nothing(place: Place) -> None:
    train = marked(place, "grouped.jsonl", [{"writer": f"w{n % 5}"} for n in range(30)])
    test = place.folder / "grouped-test.jsonl"
    test.write_text(json.dumps({"text": prose(950, 40), "writer": "w3 "}) + "\n", encoding="utf-8")
    data = {"train": str(train), "test": str(test), "split": {"group": "writer"}}
    prepared = prepare_documents(place.recipe("grouped", data=data))
    assert not any("nobody can tell" in note for note in prepared.notes)
    ungrouped = write_rows(place.folder / "ungrouped.jsonl", [prose(seed, 90) for seed in range(700, 720)])
    other = prepare_documents(place.recipe("ungrouped", data=data | {"test": str(ungrouped)}))
    assert any(f"{ungrouped} has no column 'writer'" in note for note in other.notes)
    reasons = prepared.files[0].reasons
    assert {row: reason for row, (reason, _) in reasons.items()} == dict.fromkeys(
        range(3, 30, 5), "leak_group"
    )


@pytest.mark.parametrize(("role", "word"), [("group", "group"), ("time", "order")])
def test_a_column_to_split_by_that_is_not_there_is_refused(place: Place, role: str, word: str) -> None:
    for path, told in ((place.book, "a plain text has none"), (place.stories, "it has text")):
        data = {"train": str(path), "split": {role: "writer"}}
        with pytest.raises(DataError) as caught:
            prepare_documents(place.recipe("unknown", data=data))
        assert f"there is no column 'writer' to {word} by; {told}" in str(caught.value)
        assert f"data.split.{role}" in str(caught.value)


def test_what_stands_in_the_test_file_does_not_validate(place: Place) -> None:
    texts = [prose(seed, 60) for seed in range(500, 506)]
    train = write_rows(place.folder / "fit.jsonl", [prose(seed, 60) for seed in range(600, 630)])
    test = write_rows(place.folder / "both-test.jsonl", texts[:3])
    validation = write_rows(place.folder / "both.jsonl", [texts[1], f"As they say: {texts[2]}", *texts[3:]])
    data = {"train": str(train), "validation": str(validation), "test": str(test)}
    prepared = prepare_documents(place.recipe("both", data=data))
    _, found, tested = prepared.files
    assert {row: reason for row, (reason, _) in found.reasons.items()} == {0: "leak_exact", 1: "leak_near"}
    assert tested.reasons == {}
    write_rows(validation, texts[:2])
    with pytest.raises(DataError, match="stands in the test file"):
        prepare_documents(place.recipe("both", data=data))


def test_a_test_file_that_is_the_training_file_is_refused(place: Place) -> None:
    with pytest.raises(DataError):
        place.fit(place.recipe("same", data={"test": str(place.book)}))


@pytest.mark.parametrize("text", ["Too short.\n", "word " * 1000])
def test_too_little_text_is_refused(place: Place, text: str) -> None:
    path = place.folder / "short.txt"
    path.write_text(text)
    recipe = place.recipe("short", data={"train": str(path)})
    with pytest.raises(DataError, match="too little text: nothing is left for") as caught:
        place.fit(recipe)
    assert caught.value.where == str(path)
    assert "--test" in str(caught.value.fix)


def test_text_that_cannot_be_read_is_named_where_nothing_else_is_left(place: Place) -> None:
    folder = place.folder / "not-utf8"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_bytes(b"good\n" * 9000 + b"\xff\n")
    with pytest.raises(DataError, match=r"Left out: .*\(2\)") as caught:
        prepare_documents(place.recipe("not-utf8", data={"train": str(folder)}))
    assert "a.txt:1: " in caught.value.what
    assert "line 9,001" in caught.value.what
    blank = write_rows(place.folder / "blank.jsonl", ["", "  "])
    with pytest.raises(DataError, match=r"nothing is left for test\.") as caught:
        prepare_documents(place.recipe("blank", data={"test": str(blank)}))
    assert caught.value.where == str(blank), "not the training file"


def test_check_names_the_documents_it_cannot_read(place: Place) -> None:
    path = place.folder / "one-bad.jsonl"
    write_rows(path, [prose(seed, 2500) for seed in range(4)])
    with path.open("a") as file:
        file.write("{broken\n")
    found = check_recipe(place.recipe("one-bad", data={"train": str(path)}), estimate=False)
    [fault] = found.summary["faults"]
    assert fault.startswith(f"{path}:5: ")


def test_data_that_grows_while_it_is_read_is_refused(place: Place) -> None:
    path = place.folder / "log.txt"
    path.write_text(prose(3, 9000))
    recipe = place.recipe("growing", data={"train": str(path)}, approach="scratch")
    prepared = prepare_documents(recipe)
    with path.open("a") as file:
        file.write(prose(4, 3000))
    with pytest.raises(DataError, match="changed while it was read"):
        list(language._training_texts(prepared, recipe))


@pytest.mark.parametrize(
    ("sizes", "shares", "held"),
    [
        ([[4000, 4000, 4800]] * 15, (0.1, 0.1), (0.1, 0.1)),
        ([[4000] * 375] * 30, (0.007, 0.007), (0.007, 0.007)),
        ([[4000] * 40], (0.15, 0.15), (0.15, 0.15)),
        ([[4000] * 3], (0.1, 0.1), (1 / 3, 1 / 3)),
        ([[4000] * 10, *([[4000]] * 8)], (0.1, 0.1), (0.1, 0.1)),
        ([[4000] * 6], (0.0, 0.1), (0.0, 0.1)),
    ],
)
def test_divided_documents_give_their_share_of_all_bytes(
    sizes: list[list[int]], shares: tuple[float, float], held: tuple[float, float]
) -> None:
    """However few pieces a document has, its beginning trains; behind it it validates, and its end tests."""
    size = np.array([piece for document in sizes for piece in document])
    owner = np.repeat(np.arange(len(sizes)), [len(document) for document in sizes])
    parts = np.zeros(len(size), np.int64)
    assert _divide_each(parts, owner, size, {"validation": shares[0], "test": shares[1]})
    assert [size[parts == part].sum() / size.sum() for part in (1, 2)] == pytest.approx(held, abs=0.07)
    for document in range(len(sizes)):
        own = parts[owner == document]
        assert own[0] == 0
        assert (np.diff(own) >= 0).all()


def test_two_pieces_are_too_few_for_three_parts() -> None:
    parts = np.zeros(2, np.int64)
    assert not _divide_each(parts, parts.copy(), parts + 4000, {"validation": 0.1, "test": 0.1})
    assert not parts.any()


def test_a_short_text_gives_as_many_pieces_as_an_interval_needs(place: Place) -> None:
    path = place.folder / "short-book.txt"
    path.write_text(prose(5, 27_000))  # some forty pieces
    for named, pieces in ((None, FEWEST_UNITS), (0.05, 2)):
        split = {} if named is None else {"test": named}
        prepared = prepare_documents(place.recipe("book", data={"train": str(path), "split": split}))
        [file] = prepared.files
        assert (file.parts == 2).sum() == pieces, len(file.parts)


def test_longer_blocks_than_the_base_reads_are_refused(place: Place) -> None:
    with pytest.raises(DataError, match="the base reads at most 64 tokens"):
        place.fit(place.recipe("long-blocks", data={"max_tokens": 65}))


def test_blocks_are_as_long_as_asked(place: Place) -> None:
    run = place.fit(place.recipe("short-blocks", data={"max_tokens": 16}))
    assert details_of(run)["block_tokens"] == 16
    assert json.loads((run.folder / "model" / "gptailor.json").read_text())["max_tokens"] == 16
    steps = [line for line in metrics_of(run.folder) if line["kind"] == "step"]
    assert {line["num_tokens"] for line in steps} == {16 * 16}


def test_separators_divide_a_file_into_documents_and_special_strings_are_text(place: Place) -> None:
    texts = [prose(seed, 120) + "He wrote <|endoftext|> there.\n" for seed in range(30)]
    path = place.folder / "divided.txt"
    path.write_text("<|endoftext|>\n".join(texts))
    run = place.fit(
        place.recipe("separator", data={"train": str(path), "separator": "<|endoftext|>"}, length="1 steps")
    )
    assert run.report["data"]["read"] == 30
    assert run.report["data"]["divided"] is False
    for part, store in stores_of(run).items():
        documents = run.report["data"][part]
        assert len(store.begins) == documents
        assert int((store.tokens == 0).sum()) == documents + 1, "only what begins and ends a document"
        assert decoded(run, store).count("<|endoftext|>") == documents


# Interrupted, repeated, begun anew.


SCRATCH = {"kind": "scratch", "vocabulary": 512, "layers": 1}


@pytest.mark.parametrize(
    "approach",
    ["full", {"kind": "lora", "rank": 2, "dropout": 0.1}, SCRATCH],
    ids=["full", "lora", "scratch"],
)
def test_a_run_that_crashed_ends_as_if_it_had_not(place: Place, approach: Any) -> None:
    """And as another run of the same seed, in another folder."""
    name = approach if isinstance(approach, str) else approach["kind"]
    settings: dict[str, Any] = {"approach": approach, "dropout": 0.1}
    expected = results(place.fit(place.recipe(f"{name}-alone", **settings)))
    recipe = place.recipe(f"{name}-crashed", **settings)
    place.crash(recipe, crash_at=1)
    place.crash(recipe, crash_at=3)
    place.crash(recipe, crash_on="opening the sealed test")
    assert "going on after step 2" in place.said
    assert not (place.folder / f"{name}-crashed" / "report.json").exists()
    assert results(place.fit(recipe)) == expected
    assert "it was trained to its end before" in place.said


def test_another_seed_ends_differently(place: Place, full: Run) -> None:
    other = results(place.fit(place.recipe("seed-1", seed=1, learning_rate=3e-3)))
    mine = results(full)
    assert other["model"] != mine["model"]
    assert other["ledger"] == mine["ledger"], "a divided document's end is held out, whatever the seed"


def test_a_finished_run_trains_nothing_again_and_other_data_is_refused(place: Place) -> None:
    path = place.folder / "changing.txt"
    path.write_text(prose(0, 6000))
    recipe = place.recipe("finished", data={"train": str(path)}, length="1 steps")
    before = results(place.fit(recipe))
    assert results(place.fit(recipe)) == before
    assert any("is finished" in words for words in place.said)
    path.write_text(prose(1, 6000))
    with pytest.raises(RunError, match="data files changed"):
        place.fit(recipe)


def test_data_that_changed_under_an_unfinished_run_is_refused(place: Place) -> None:
    path = place.folder / "changing-too.txt"
    path.write_text(prose(0, 6000))
    recipe = place.recipe("unfinished", data={"train": str(path)})
    place.crash(recipe, crash_at=3)
    path.write_text(prose(1, 6000))
    with pytest.raises(RunError, match="data files changed"):
        place.fit(recipe)


def test_no_token_of_another_base_is_ever_reused(place: Place) -> None:
    """A run that never got to a checkpoint may be begun anew with other settings in the same folder."""
    expected = results(place.fit(place.recipe("anew-alone", base="llama")))
    place.crash(place.recipe("anew", base="gpt2"), crash_at=1)
    assert results(place.fit(place.recipe("anew", base="llama"))) == expected


def test_no_token_of_other_data_is_ever_reused(place: Place) -> None:
    """Killed after tokenizing and before the ledger was written; then the file changes."""
    path = place.folder / "swapped.txt"
    path.write_text(prose(0, 6000))
    for approach in ("full", SCRATCH):
        name = approach if isinstance(approach, str) else "scratch"
        recipe = place.recipe(f"swapped-{name}", data={"train": str(path)}, approach=approach)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(language, "write_data", lambda *_, **__: (_ for _ in ()).throw(Crash))
            place.crash(recipe)
        path.write_text(prose(1, 6000).upper())
        run = place.fit(recipe)
        assert decoded(run, stores_of(run)["train"]).isupper()
        alone = place.recipe(f"unswapped-{name}", data={"train": str(path)}, approach=approach)
        assert results(run) == results(place.fit(alone))
        path.write_text(prose(0, 6000))


# What is done with a run.


def test_a_language_run_is_a_base_for_a_classifier(place: Place, full: Run) -> None:
    """Domain adaptation in two commands: the classifier reads with the body that was trained on text."""
    news = tiny.write_news(place.folder / "news.csv", rows=330)

    def classifier(base: Path, name: str) -> Run:
        return place.fit(
            build_recipe(
                {
                    "data": {"train": str(news)},
                    "base": str(base),
                    "approach": "frozen",
                    "evaluate": {"baselines": "none", "resamples": 100},
                    "out": str(place.folder / name),
                }
            )
        )

    adapted = classifier(full.folder, "news-adapted")
    assert f"base {full.folder} is a run: its body goes on" in place.said
    body = load_file(adapted.folder / "model" / "model.safetensors")
    trained = load_file(full.folder / "model" / "model.safetensors")
    for name, weight in trained.items():
        assert torch.equal(body[name], weight), name
    assert adapted.report["base"] == str(full.folder)
    assert adapted.predict(["the bank and its shares"])[0] is not None
    plain = classifier(place.bases["gpt2"], "news-plain")
    heads = [
        load_file(run.folder / "model" / "model.safetensors")["score.weight"] for run in (adapted, plain)
    ]
    assert not torch.equal(*heads)


def test_evaluate_on_the_held_out_text_gives_the_reports_numbers(many: Run, place: Place) -> None:
    found = Run(many.folder).evaluate(str(place.held_out))
    report = many.report["test"]
    for name in ("bits_per_byte", "perplexity", "loss"):
        assert found["scores"][name]["value"] == report[name]["value"]
    assert (found["tokens"], found["bytes"]) == (report["tokens"], report["bytes"])
    assert (found["read"], found["rows"], found["left_out"]) == (30, 30, 0)


def test_evaluate_divides_a_file_as_training_did(place: Place) -> None:
    texts = [prose(seed, 40) for seed in range(300, 325)]
    test = place.folder / "divided-test.txt"
    test.write_text("***\n".join(texts))
    data = {"test": str(test), "separator": "***"}
    run = place.fit(place.recipe("divided-test", data=data, length="1 steps"))
    found = run.evaluate(str(test))
    assert found["rows"] == run.report["test"]["documents"] == 25
    assert found["scores"]["bits_per_byte"]["value"] == run.report["test"]["bits_per_byte"]["value"]


def test_documents_that_taught_are_known_again_under_another_name(many: Run, place: Place) -> None:
    """Twelve of training's, in another order and each as long as several pieces; and its sealed test."""
    lines = place.stories.read_text(encoding="utf-8").splitlines()
    fresh = [json.dumps({"text": prose(seed, 40)}) for seed in range(9000, 9004)]
    grown = place.folder / "grown.jsonl"
    grown.write_text("\n".join([*fresh, *lines[:12][::-1]]) + "\n", encoding="utf-8")
    note = many.evaluate(str(grown))["note"]
    assert note.startswith("12 of 16 documents taught this run")
    renamed = place.folder / "another-name.jsonl"
    renamed.write_text(place.held_out.read_text(encoding="utf-8") + fresh[0] + "\n", encoding="utf-8")
    assert many.evaluate(str(renamed))["note"].startswith("Most of the sealed test set stands in this file.")
    assert "note" not in many.evaluate(str(write_rows(place.folder / "fresh.jsonl", [prose(9100, 50)])))


def test_a_divided_text_is_known_again_by_its_pieces(full: Run, place: Place) -> None:
    """As a file of a folder, and as the beginning of a longer text; and as a base it taught one document."""
    text = place.book.read_text(encoding="utf-8")
    folder = place.folder / "books"
    folder.mkdir()
    (folder / "book.txt").write_text(text, encoding="utf-8")
    (folder / "other.txt").write_text(prose(9300, 300), encoding="utf-8")
    note = full.evaluate(str(folder))["note"]
    assert "Most of the sealed test set" in note
    assert "1 of 2 documents taught this run" in note
    longer = place.folder / "longer.txt"
    longer.write_text(text + prose(9200, 3000), encoding="utf-8")
    assert "1 of 1 document taught this run" in full.evaluate(str(longer))["note"]
    run = place.fit(place.recipe("on-divided", base=full.folder, seed=5, length="1 steps"))
    assert run.report["data"]["divided"] is True
    told = json.loads((run.folder / "data" / "summary.json").read_text())["taught_before"]
    assert set(told.values()) <= {0, 1}, "documents, not pieces"


def test_evaluate_counts_what_it_leaves_out_and_refuses_an_empty_file(many: Run, place: Place) -> None:
    path = write_rows(place.folder / "blank.jsonl", ["some text here", "", "  "])
    with path.open("a") as file:
        file.write("{broken\n")
    found = many.evaluate(str(path))
    assert (found["read"], found["rows"], found["left_out"]) == (4, 1, 3)
    assert found["bytes"] == 14
    with pytest.raises(DataError, match="holds no text"):
        many.evaluate(str(write_rows(place.folder / "blanks.jsonl", ["", " "])))


def test_predict_goes_on_with_a_text(full: Run) -> None:
    run = Run(full.folder)
    text = "the bank raised its rate"
    once, again = run.write(text, max_new_tokens=12), run.write(text, max_new_tokens=12)
    assert once == again, "drawn from the seed"
    assert once
    assert run.write(text, max_new_tokens=12, seed=1) != once
    for asked in (text, prose(1, 300)):  # the second is longer than the model reads
        (answer,) = predict_inputs(full.folder, [asked])
        assert answer["text"] == asked
        assert answer["continuation"] == run.write(asked) == run.answer([asked])[0].text != ""


def test_the_likeliest_continuation_is_transformers_own(full: Run) -> None:
    run = Run(full.folder)
    text = "a vaccine trial begins in"
    tokenizer: Any = AutoTokenizer.from_pretrained(full.folder / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(full.folder / "model")
    ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    with torch.no_grad():
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    made = ids[-8:]
    made = made[: made.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in made else made
    assert run.write(text, max_new_tokens=8, temperature=0) == tokenizer.decode(made)


def test_a_continuation_depends_on_its_text_however_little_the_model_reads(full: Run) -> None:
    """The context is 64 tokens, and 128 new ones are usual: at least the text's end is read."""
    run = Run(full.folder)
    short, long = "the cup final went to extra time", prose(1, 300)
    expected = [
        run.language_model.encoder.backend.encode(text, add_special_tokens=False).ids
        for text in (short, long)
    ]
    assert list(run.answerer.feed_text(short)) == [run.language_model.begin, *expected[0]]
    begin, *read = run.answerer.feed_text(long)
    assert begin == run.language_model.begin
    assert 16 <= len(read) < 64
    assert read == expected[1][-len(read) :]


def test_samples_show_how_held_out_texts_really_go_on(many: Run, place: Place) -> None:
    samples = details_of(many)["samples"]
    assert len(samples) == 4
    lines = [line for line in ledger_of(many) if line.part == "validation"]
    texts = [json.loads(line)["text"] for line in place.stories.read_text().splitlines()]
    held_out = [texts[line.row - 1] for line in lines]
    for sample in samples:
        assert sample["prompt"]
        assert sample["reference"]
        assert any(text.startswith(sample["prompt"] + sample["reference"]) for text in held_out)
        assert isinstance(sample["before"], str)
        assert isinstance(sample["after"], str)


def test_the_hardest_pieces_are_of_the_test_file_and_where_they_say(many: Run, place: Place) -> None:
    texts = [json.loads(line)["text"] for line in place.held_out.read_text().splitlines()]
    hardest = details_of(many)["hardest"]
    assert [item["bits_per_byte"] for item in hardest] == sorted(
        (item["bits_per_byte"] for item in hardest), reverse=True
    )
    for item in hardest:
        source, _, row = item["where"].rpartition(":")
        assert source == str(place.held_out)
        assert texts[int(row) - 1].startswith(item["text"][:300])


def test_a_language_run_is_no_classifier(full: Run) -> None:
    with pytest.raises(ModelError, match="is a language model; it has no labels") as caught:
        load_predictor(full.folder)
    assert "predict RUN --input" in str(caught.value.fix)


Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Runs the command line in this process: exit code, standard output, standard error in one line."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gptailor", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        written = capsys.readouterr()
        assert "Traceback" not in written.err
        return int(left.value.code or 0), written.out, " ".join(written.err.split())

    return run


def test_the_command_line_fits_and_uses_a_language_model(place: Place, invoke: Invoke) -> None:
    run = place.folder / "by-hand"
    common = ["--task", "language", "--base", place.bases["gpt2"], "--out", run, "--json"]
    settings = ["--set", "train.length=2 steps", "--set", "evaluate.resamples=100"]
    code, out, err = invoke("fit", place.stories, *common, *settings)
    assert code == 0, err
    assert json.loads(out)["task"] == "language"
    code, out, _ = invoke("predict", run, "--input", "the film wins")
    assert code == 0
    assert out.startswith("the film wins")
    code, out, _ = invoke("evaluate", run, place.held_out, "--json")
    assert code == 0
    assert json.loads(out)["scores"]["bits_per_byte"]["value"] > 0
    beginnings = place.folder / "beginnings.csv"
    beginnings.write_text("text\nthe film wins\n\nthe cup final\n", encoding="utf-8")
    code, out, _ = invoke("predict", run, beginnings, "--max-new-tokens", 3, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["rows"] == found["answered"] == 2
    assert [row["prompt"] for row in found["answers"]] == ["the film wins", "the cup final"]


def test_standard_input_is_refused_because_it_is_read_twice(place: Place, invoke: Invoke) -> None:
    run = place.folder / "from-stdin"
    code, _, err = invoke("fit", "-", "--task", "language", "--base", place.bases["gpt2"], "--out", run)
    assert code == 1
    assert "standard input" in err


def test_what_each_test_row_cost_adds_up_to_the_score(full: Run) -> None:
    """`compare` reads it."""
    with (full.folder / "test_bits.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    nats, size = (sum(float(line[name]) for line in lines) for name in ("nats", "bytes"))
    assert nats / size / math.log(2) == pytest.approx(full.report["test"]["bits_per_byte"]["value"], abs=1e-5)
    best = compare_runs([full.folder])
    assert best["runs"][0]["scores"]["bits_per_byte"] == full.report["test"]["bits_per_byte"]


def test_predict_reads_the_text_and_not_the_first_column(full: Run, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"id": f"{n}", "content": f"once upon a time {n}"}) for n in range(5))
    )
    rows = full.answer_file(str(tmp_path / "rows.jsonl"))
    assert [prompt.strip() for _, prompt, _ in rows] == [f"once upon a time {n}" for n in range(5)]


def test_a_row_that_can_not_be_asked_keeps_its_columns(full: Run, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,content\nk1,once upon a time\nk2,\n")
    kept = [row.fields["id"] for row, _, _ in full.answer_file(str(tmp_path / "rows.csv"), needed=["id"])]
    assert kept == ["k1", "k2"]


def test_options_that_draw_mean_the_same_for_a_text_and_a_file(full: Run) -> None:
    with pytest.raises(InputError, match="nothing to draw from") as caught:
        predict_inputs(full.folder, ["once"], sampling={"temperature": 0, "top_p": 0.5})
    assert "--top-p" in str(caught.value)
    (found,) = predict_inputs(full.folder, ["once"], sampling={"num_beams": 2, "max_new_tokens": 3})
    assert found["continuation"]


def test_a_document_larger_than_all_others_together_is_divided(place: Place) -> None:
    """It would be held out whole, or nothing would be."""
    path = write_rows(
        place.folder / "giant.jsonl", [*(prose(seed, 25) for seed in range(900, 930)), prose(930, 9000)]
    )
    for seed in range(3):
        prepared = prepare_documents(place.recipe("giant", data={"train": str(path)}, seed=seed))
        file = prepared.files[0]
        size = np.array(file.documents.piece_bytes)
        shares = [size[file.parts == number].sum() / size.sum() for number in range(3)]
        assert file.divided
        assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.08)


@pytest.mark.parametrize("split", [{}, {"group": "writer"}, {"time": "day"}], ids=str)
def test_what_is_larger_than_a_part_trains(place: Place, split: dict[str, str]) -> None:
    """Also the newest of all."""
    lengths = [120] * 60 + [1800]
    path = place.folder / f"large-{'-'.join(split)}.jsonl"
    path.write_text(
        "".join(
            json.dumps({"text": prose(1000 + n, words), "writer": f"w{n}", "day": n}) + "\n"
            for n, words in enumerate(lengths)
        )
    )
    for seed in range(4):
        data = {"train": str(path), "split": split}
        prepared = prepare_documents(place.recipe("large", data=data, seed=seed))
        assert any("trains whatever its time" in note for note in prepared.notes) == ("time" in split)
        parts = rows_by_part(prepared)
        assert 60 in parts["train"]
        assert len(parts["validation"]) > 3
        assert len(parts["test"]) > 3
        assert not prepared.files[0].divided


def test_many_small_documents_stay_whole_however_much_is_held_out(place: Place) -> None:
    data = {"train": str(place.stories), "split": {"validation": 0.2, "test": 0.35}}
    file = prepare_documents(place.recipe("much", data=data)).files[0]
    assert not file.divided
    size = np.array(file.documents.piece_bytes)
    assert [size[file.parts == n].sum() / size.sum() for n in range(3)] == pytest.approx(
        [0.45, 0.2, 0.35], abs=0.05
    )


def test_shares_that_leave_nothing_to_train_on_are_refused(place: Place) -> None:
    for train in (place.book, place.stories):
        data = {"train": str(train), "split": {"validation": 0.5, "test": 0.5}}
        with pytest.raises(RecipeError, match="no text to train on"):
            prepare_documents(place.recipe("shares", data=data))


def test_documents_of_a_group_count_once(place: Place) -> None:
    """Intervals, and what `compare` reads, are over what was drawn together."""
    writers = [{"writer": f"w{n % 12}"} for n in range(48)]
    path = marked(place, "writers-48.jsonl", writers)
    data = {"train": str(path), "split": {"group": "writer", "validation": 0.2, "test": 0.3}}
    run = place.fit(place.recipe("writers-48", data=data, length="1 steps", baselines="quick"))
    with (run.folder / "test_bits.csv").open() as file:
        rows = list(csv.DictReader(file))
    of = {(row["group"], writers[int(row["row"]) - 1]["writer"]) for row in rows}
    assert len(of) == len({group for group, _ in of}) == len({writer for _, writer in of}) >= 3
    assert run.report["test"]["documents"] == 4 * len(of)
    assert "only: the interval is of these" in run.report["verdict"]["says"]
    test = marked(place, "writers-test.jsonl", [{"writer": f"w{12 + n % 11}"} for n in range(22)])
    data = {"train": str(path), "test": str(test), "split": {"group": "writer"}}
    given = place.fit(place.recipe("writers-given", data=data, length="1 steps"))
    resampling = Resampling(100, given.report["seed"])
    again = evaluate_language(given.language_model, str(test), group="writer", resampling=resampling)
    for end in ("value", "low", "high"):
        assert again["scores"]["bits_per_byte"][end] == given.report["test"]["bits_per_byte"][end]


def test_evaluate_reads_the_column_and_the_lines_that_were_learned(place: Place) -> None:
    rows = [{"text": prose(n, 30), "notes": prose(n + 50, 30)} for n in range(1100, 1125)]
    train, test = place.folder / "notes.jsonl", place.folder / "notes-test.jsonl"
    for path, held in ((train, rows), (test, rows[:5])):
        path.write_text(
            "".join(json.dumps({k: f"{v} {path.stem}" for k, v in row.items()}) + "\n" for row in held)
        )
    data = {"train": str(train), "test": str(test), "text": "notes"}
    run = place.fit(place.recipe("notes", data=data, length="1 steps"))
    value = run.evaluate(str(test))["scores"]["bits_per_byte"]["value"]
    assert value == run.report["test"]["bits_per_byte"]["value"]

    lines, held_out = place.folder / "lines.txt", place.folder / "lines-test.txt"
    lines.write_text("\n".join(prose(n, 30) for n in range(1200, 1225)))
    held_out.write_text("\n".join(prose(n, 30) for n in range(1300, 1306)))
    data = {"train": str(lines), "test": str(held_out), "columns": "text", "test_columns": "text"}
    by_line = place.fit(place.recipe("lines", data=data, length="1 steps"))
    found = by_line.evaluate(str(held_out))
    assert found["rows"] == by_line.report["test"]["documents"] == 18
    value = found["scores"]["bits_per_byte"]["value"]
    assert value == by_line.report["test"]["bits_per_byte"]["value"]
