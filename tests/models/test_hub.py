"""Bases from a stand-in of the Hugging Face hub on loopback: what is fetched, pinned, kept and refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import gptailor
import tiny
from gptailor.errors import Interrupted, ModelError
from gptailor.models.names import resolve_base
from gptailor.pipeline.place import Listener

FIRST, SECOND = "1" * 40, "2" * 40  # commits
ASK = """
import json, sys, time
time.sleep = lambda _: None  # no waiting between tries
from gptailor.errors import GptailorError
from gptailor.models.names import resolve_base

for name, revision in json.loads(sys.argv[1]):
    try:
        base = resolve_base(name, revision=revision)
        print(json.dumps({"path": str(base.path), "revision": base.revision, "kind": base.kind}))
    except GptailorError as error:
        print(json.dumps({"error": str(error)}))
"""


class Hub(ThreadingHTTPServer):
    """The routes that a snapshot download asks for, and a note of everything that was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}  # name, commit, path: content
        self.main: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []
        self.cut = False  # whether weights break off half-way

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def push(self, name: str, commit: str, files: dict[str, bytes]) -> None:
        self.repositories.setdefault(name, {})[commit] = files
        self.main[name] = commit

    def fetched(self) -> set[str]:
        """The files whose content was asked for."""
        return {path.split("/resolve/")[1][41:] for verb, path in self.asked if "/resolve/" in path}


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path))
        kind, *rest = path.strip("/").split("/")
        if kind == "api" and len(rest) >= 5:
            self.describe("/".join(rest[1:3]), rest[3], rest[4])
        elif "/resolve/" in path:
            owner, name, _, commit, *parts = path.strip("/").split("/")
            self.file(f"{owner}/{name}", commit, "/".join(parts))
        else:
            self.refuse(404, "EntryNotFound")

    do_HEAD = do_GET  # noqa: N815

    def describe(self, name: str, what: str, revision: str) -> None:
        commits = self.server.repositories.get(name)
        if name == "owner/gated":
            return self.refuse(403, "GatedRepo")
        if commits is None:
            return self.refuse(404, "RepoNotFound")
        commit = self.server.main[name] if revision == "main" else revision
        if commit not in commits:
            return self.refuse(404, "RevisionNotFound")
        if what == "revision":
            siblings = [{"rfilename": path} for path in commits[commit]]
            return self.send_json({"id": name, "modelId": name, "sha": commit, "siblings": siblings})
        return self.send_json(
            [
                {"type": "file", "path": path, "size": len(content), "oid": etag(content)}
                for path, content in commits[commit].items()
            ]
        )

    def file(self, name: str, commit: str, path: str) -> None:
        content = self.server.repositories[name][commit].get(path)
        if content is None:
            return self.refuse(404, "EntryNotFound")
        self.send_response(200)
        self.send_header("ETag", f'"{etag(content)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            cut = self.server.cut and path.endswith(".safetensors")
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = cut
        return None

    def send_json(self, values: Any) -> None:
        body = json.dumps(values).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    hub = Hub()
    for commit, seed in ((FIRST, 0), (SECOND, 1)):
        base = tiny.build_base(folder / commit, "llama", seed=seed)
        files = {path.name: path.read_bytes() for path in base.iterdir()}
        files |= {
            "merges.txt": b"#version: 0.2\n",
            "pytorch_model.bin": b"a pickle",
            "training_args.bin": b"a pickle",
            "modeling_tiny.py": b"raise SystemExit('code of a base ran')",
            "README.md": b"# tiny",
            ".gitattributes": b"",
            "onnx/model.onnx": b"elsewhere",
            "onnx/config.json": b"{}",
            "original/model.safetensors": b"the same weights for other tools",
            "consolidated.safetensors": b"the same weights for other tools",
        }
        hub.push("owner/tiny", commit, files)
    hub.main["owner/tiny"] = FIRST
    pickled = {name: content for name, content in files.items() if not name.endswith(".safetensors")}
    hub.push("owner/pickled", FIRST, pickled)
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


Ask = Callable[..., list[dict[str, str]]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine's folder of what came from the hub."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def ask(hub: Hub, home: Path) -> Ask:
    """Resolves (name, revision) pairs in a fresh process: huggingface_hub reads its settings on import."""

    def resolve(
        *bases: tuple[str, str | None], home: Path = home, url: str = hub.url
    ) -> list[dict[str, str]]:
        hub.asked.clear()
        environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", ASK, json.dumps(bases)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return resolve


def test_only_weights_without_code_are_fetched_and_the_commit_is_pinned(hub: Hub, ask: Ask) -> None:
    [found] = ask(("owner/tiny", None))
    assert (found["revision"], found["kind"]) == (FIRST, "hub")
    wanted = {"config.json", "generation_config.json", "merges.txt", "model.safetensors"}
    wanted |= {"tokenizer.json", "tokenizer_config.json"}
    assert hub.fetched() == wanted
    assert {path.name for path in Path(found["path"]).iterdir()} == wanted
    for name in wanted:
        assert (Path(found["path"]) / name).read_bytes() == hub.repositories["owner/tiny"][FIRST][name]
    ours = ("/api/models/owner/tiny/revision/", "/api/models/owner/tiny/tree/", "/owner/tiny/resolve/")
    assert [path for _, path in hub.asked if not path.startswith(ours)] == [], "something else was asked"


def test_a_name_follows_the_newest_commit_and_a_revision_stays(hub: Hub, ask: Ask) -> None:
    hub.main["owner/tiny"] = SECOND
    try:
        newest, pinned = ask(("owner/tiny", None), ("owner/tiny", FIRST))
    finally:
        hub.main["owner/tiny"] = FIRST
    assert (newest["revision"], pinned["revision"]) == (SECOND, FIRST)
    files = hub.repositories["owner/tiny"]
    for found in (newest, pinned):
        weights = Path(found["path"]) / "model.safetensors"
        assert weights.read_bytes() == files[found["revision"]]["model.safetensors"]


def test_a_run_records_the_commit_and_needs_no_network(
    hub: Hub, ask: Ask, home: Path, news_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(("owner/tiny", None))
    assert constants.HF_HUB_OFFLINE, "this process must be offline"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    hub.asked.clear()
    settings = {
        "base": "owner/tiny",
        "approach": "frozen",
        "evaluate": {"baselines": "none", "resamples": 100},
        "out": str(tmp_path / "run"),
    }
    run = gptailor.fit(news_csv, settings=settings)
    assert run.report["base"] == "owner/tiny"
    bundle = json.loads((run.folder / "model" / "gptailor.json").read_text())
    assert (bundle["base"], bundle["base_revision"]) == ("owner/tiny", FIRST)
    assert gptailor.load_recipe(run.folder / "recipe.yaml").revision == FIRST
    assert run.predict(["the bank"])[0] is not None
    assert hub.asked == []


def test_a_run_goes_on_with_the_commit_it_was_begun_with(
    hub: Hub, ask: Ask, home: Path, news_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    ask(("owner/tiny", None))
    settings = {"base": "owner/tiny", "approach": "full", "train": {"length": "6 steps"}}
    settings |= {"evaluate": {"baselines": "none", "resamples": 100}, "out": str(tmp_path / "run")}

    def interrupt(line: Any) -> None:
        if line["kind"] == "step":
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        gptailor.fit(news_csv, settings=settings, listener=Listener(show=interrupt))
    hub.main["owner/tiny"] = SECOND
    try:
        [newest] = ask(("owner/tiny", None))
    finally:
        hub.main["owner/tiny"] = FIRST
    assert newest["revision"] == SECOND
    run = gptailor.fit(news_csv, settings=settings)
    assert gptailor.load_recipe(run.folder / "recipe.yaml").revision == FIRST


def test_without_a_network_what_was_fetched_is_used_and_the_rest_refused(ask: Ask, tmp_path: Path) -> None:
    ask(("owner/tiny", None))
    dead = "http://127.0.0.1:9"  # the discard port: nobody listens
    newest, pinned, other = ask(("owner/tiny", None), ("owner/tiny", FIRST), ("owner/other", None), url=dead)
    assert newest["revision"] == pinned["revision"] == FIRST
    assert "base 'owner/other': can't be had from the Hugging Face hub" in other["error"]
    assert "--base starter" in other["error"]


def test_pickled_weights_are_neither_fetched_nor_used(hub: Hub, ask: Ask) -> None:
    [found] = ask(("owner/pickled", None))
    assert "base 'owner/pickled': has no safetensors weights" in found["error"]
    assert "pickled weights are not loaded" in found["error"]
    assert "pytorch_model.bin" not in hub.fetched()


def test_what_the_hub_refuses_is_said_plainly(hub: Hub, ask: Ask) -> None:
    missing, gated, revision = ask(("owner/missing", None), ("owner/gated", None), ("owner/tiny", "v9"))
    for found, name in ((missing, "owner/missing"), (gated, "owner/gated"), (revision, "owner/tiny")):
        first, fix = found["error"].splitlines()
        assert first.startswith(f"base '{name}': ")
        assert hub.url not in first, "an address helps nobody"
        assert fix
    assert "no such repository" in missing["error"]
    assert "gated" in gated["error"]
    assert "no revision 'v9'" in revision["error"]


def test_a_download_that_breaks_off_leaves_no_half_base(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    hub.cut = True
    try:
        [broken] = ask(("owner/tiny", None), home=tmp_path)
    finally:
        hub.cut = False
    assert "can't be had from the Hugging Face hub" in broken["error"]
    [whole] = ask(("owner/tiny", None), home=tmp_path)
    weights = Path(whole["path"]) / "model.safetensors"
    assert weights.read_bytes() == hub.repositories["owner/tiny"][FIRST]["model.safetensors"]


def test_offline_an_unknown_name_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    with pytest.raises(ModelError, match="can't be had from the Hugging Face hub"):
        resolve_base("owner/never-heard-of")
