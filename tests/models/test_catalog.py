"""The list of bases: what lies here is read from its files, what doesn't fit is told, nothing is fetched."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from gptailor.models import catalog
from gptailor.models.catalog import (
    COMMON,
    CatalogEntry,
    in_words,
    license_of,
    parameters_text,
    read_catalog,
    shortest_name,
)
from gptailor.models.names import STARTER, read_config_file, resolve_base

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def place(tiny_bases: dict[str, Path], tmp_path: Path) -> Path:
    """A hub cache with a GPT-2 under the hub's name, and a finished run."""
    put(tmp_path / "hub", "openai-community/gpt2", tiny_bases["gpt2"])
    finish(tmp_path / "runs" / "news", tiny_bases["gpt2"], base="starter")
    return tmp_path


def put(cache: Path, name: str, folder: Path, *, commit: str = COMMIT, main: bool = True) -> Path:
    """Lays a model folder into a cache as huggingface_hub does."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    shutil.copytree(folder, snapshot)
    if main:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    return snapshot


def finish(run: Path, folder: Path, *, base: str, approach: str = "full") -> Path:
    shutil.copytree(folder, run / "model")
    told = {"version": 1, "task": "classification", "approach": approach, "base": base}
    (run / "model" / "gptailor.json").write_text(json.dumps(told))
    return run


def look(place: Path) -> catalog.Catalog:
    return read_catalog(runs=place / "runs", hub_cache=place / "hub")


def by_name(entries: list[CatalogEntry]) -> dict[str, CatalogEntry]:
    return {entry.name: entry for entry in entries}


def test_starter_is_read_from_its_files(place: Path) -> None:
    entry = by_name(look(place).offline)["starter"]
    config = read_config_file(STARTER)
    model = AutoModelForCausalLM.from_pretrained(STARTER)
    assert entry.parameters == sum(weight.numel() for weight in model.parameters())
    assert entry.context == config["n_positions"]
    assert entry.license.startswith("CC BY-SA")
    assert entry.stored_bytes is not None
    assert entry.stored_bytes > (STARTER / "model.safetensors").stat().st_size


def test_runs_are_named_as_base_takes_them(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "runs" / "unfinished" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(place)
    found = read_catalog(hub_cache=place / "hub")
    assert [entry.name for entry in found.offline if entry.source == "run"] == ["runs/news"]
    assert by_name(found.offline)["runs/news"].license == by_name(found.offline)["starter"].license
    assert "full on starter" in in_words(by_name(found.offline)["runs/news"])
    assert not [entry for entry in found.left_out if "unfinished" in entry.name]


def test_a_licence_goes_along_from_run_to_run(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    """What was fine-tuned from a base carries its licence on; weights from nothing have none to carry."""

    def licence(name: str, *, base: str, approach: str = "full", told: str | None = None) -> str | None:
        run = finish(tmp_path / name, tiny_bases["gpt2"], base=base, approach=approach)
        (run / "details.json").write_text(json.dumps({"base_details": {"license": told} if told else {}}))
        return license_of(resolve_base(str(run)))

    first = licence("first", base="starter")
    assert first == license_of(resolve_base("starter"))
    assert licence("second", base=str(tmp_path / "first"), told=first) == first
    assert licence("unknown", base="somebody/story") is None
    assert licence("hub", base="gpt2") == "MIT"
    assert "yours to choose" in str(licence("scratch", base="starter", approach="scratch"))


def test_cached_bases_are_measured_and_marked_in_the_hub_list(
    place: Path, tiny_bases: dict[str, Path]
) -> None:
    put(place / "hub", "somebody/story", tiny_bases["llama"])
    [weights] = (place / "hub").glob("*somebody--story/snapshots/*/model.safetensors")
    shutil.copy(weights, weights.with_name("consolidated.safetensors"))  # the same weights again
    found = look(place)
    cached = {entry.name: entry for entry in found.offline if entry.source == "cache"}
    assert set(cached) == {"openai-community/gpt2", "somebody/story"}
    model = AutoModelForCausalLM.from_pretrained(tiny_bases["llama"])
    assert cached["somebody/story"].parameters == sum(weight.numel() for weight in model.parameters())
    assert cached["somebody/story"].context == 64
    assert cached["openai-community/gpt2"].license == "MIT"
    assert [entry.name for entry in found.hub if entry.stored_bytes] == ["openai-community/gpt2"]
    assert "already here" in in_words(by_name(found.hub)["openai-community/gpt2"])


def test_short_name_in_the_cache_is_the_same_base(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    put(tmp_path / "hub", "gpt2", tiny_bases["gpt2"])
    found = look(tmp_path)
    assert by_name(found.offline)["gpt2"].license == "MIT"
    assert by_name(found.hub)["openai-community/gpt2"].stored_bytes


def test_attention_masks_in_old_files_are_no_parameters(tmp_path: Path) -> None:
    weights = {
        "h.0.attn.bias": np.zeros((1, 1, 8, 8), np.float32),
        "h.0.attn.masked_bias": np.zeros((), np.float32),
        "h.0.attn.c_attn.weight": np.zeros((4, 12), np.float32),
        "h.0.attn.c_attn.bias": np.zeros(12, np.float32),
    }
    save_file(weights, tmp_path / "model.safetensors")
    assert catalog.count_parameters(tmp_path / "model.safetensors") == 60


def test_a_revision_that_only_its_commit_names_says_so(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    put(tmp_path / "hub", "somebody/story", tiny_bases["gpt2"], commit=OTHER, main=False)
    assert f"revision={OTHER}" in in_words(by_name(look(tmp_path).offline)["somebody/story"])


def test_what_cannot_be_a_base_is_told_with_its_reason(place: Path, tiny_bases: dict[str, Path]) -> None:
    hub = place / "hub"
    pickled = put(hub, "a/pickled", tiny_bases["gpt2"])
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    encoder = put(hub, "b/encoder", tiny_bases["gpt2"])
    change(encoder / "config.json", architectures=["BertModel"])
    (put(hub, "c/bare", tiny_bases["gpt2"]) / "config.json").unlink()
    (put(hub, "d/torn", tiny_bases["gpt2"]) / "model.safetensors").write_bytes(b"half a file")
    (put(hub, "e/odd", tiny_bases["gpt2"]) / "config.json").write_text("{")
    (hub / "models--f--begun").mkdir()
    finish(place / "runs" / "broken", tiny_bases["gpt2"], base="starter")
    (place / "runs" / "broken" / "model" / "gptailor.json").write_text("[]")
    found = look(place)
    reasons = {entry.name.rpartition("/")[2]: entry.reason for entry in found.left_out}
    assert set(reasons) == {"pickled", "encoder", "bare", "torn", "odd", "begun", "broken"}
    for name, words in {
        "pickled": "safetensors",
        "encoder": "BertModel",
        "bare": "config.json",
        "torn": "weights",
        "odd": "config.json",
        "begun": "fetched",
        "broken": "gptailor.json",
    }.items():
        assert words in reasons[name], reasons[name]
    assert {entry.source for entry in found.offline} == {"starter", "run", "cache"}


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_folders_that_are_not_there_are_no_error(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert [entry.name for entry in found.offline] == ["starter"]
    assert found.left_out == []


def test_common_names_are_complete_and_distinct() -> None:
    names = [name for entry in COMMON for name in (entry.name, entry.also) if name]
    assert len(names) == len(set(names))
    for entry in COMMON:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.name)
        assert entry.source == "hub"
        assert entry.license
        assert 10**6 < entry.parameters < 10**10
        assert entry.context >= 1024
        assert entry.gated == entry.name.startswith(("meta-llama/", "google/"))


@pytest.mark.parametrize(
    ("name", "layers", "width"),
    [("gpt2", 12, 768), ("gpt2-medium", 24, 1024), ("gpt2-large", 36, 1280), ("gpt2-xl", 48, 1600)],
)
def test_sizes_of_gpt2_follow_from_its_shape(name: str, layers: int, width: int) -> None:
    entry = next(entry for entry in COMMON if entry.also == name)
    block = 12 * width**2 + 13 * width
    assert entry.parameters == (50257 + 1024) * width + layers * block + 2 * width


@pytest.mark.parametrize(
    ("count", "words"),
    [(1_380_000, "1.4 M"), (124_439_808, "124 M"), (999_885_952, "1.00 B"), (1_235_814_400, "1.24 B")],
)
def test_parameters_in_words(count: int, words: str) -> None:
    assert parameters_text(count) == words


def test_gated_and_shorter_names_are_told() -> None:
    told = {entry.name: in_words(entry) for entry in COMMON}
    assert "gated" in told["google/gemma-3-270m"]
    assert "gated" not in told["Qwen/Qwen3-0.6B-Base"]
    assert {"gpt2", "distilgpt2", "google/gemma-3-270m"} <= {shortest_name(entry) for entry in COMMON}


def test_nothing_is_asked_of_a_network(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert look(place).offline


VERB = """
import sys
from gptailor.cli import main
sys.argv = ["gptailor", "bases", *sys.argv[1:]]
try:
    main()
except SystemExit as left:
    assert not left.code, left.code
assert not {"torch", "transformers"} & set(sys.modules)
"""


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["table", "json"])
def test_verb_lists_without_torch(words: tuple[str, ...], place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", VERB, *words],
        cwd=place,
        env={"HF_HUB_CACHE": str(place / "hub"), "COLUMNS": "100", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if words:
        found = json.loads(done.stdout)
        assert set(found) == {"offline", "hub", "left_out"}
        assert {entry["name"] for entry in found["offline"]} == {
            "starter",
            "runs/news",
            "openai-community/gpt2",
        }
    else:
        assert done.stdout == ""
        for name in ("starter", "runs/news", "openai-community/gpt2", "gpt2-xl", "gemma-3-270m", "gated"):
            assert name in done.stderr
