"""Tiny runs that write, and a real server on a free port in front of them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai

import gptailor
import tiny
from gptailor.models.answerer import Answerer, load_answerer
from gptailor.serve.app import build_app
from gptailor.serve.run import DrainingServer, listen, server_config

COMMON = {
    "train": {"length": "3 steps"},
    "evaluate": {"baselines": "none", "resamples": 100, "generated_rows": 10},
}


def fit_runs(folder: Path) -> dict[str, Path]:
    """One run of each kind: a prompt as it stands, two columns in a template, conversations."""
    base, other = (str(tiny.build_base(folder / family, family)) for family in ("gpt2", "qwen2"))
    rows = {
        "plain": ["prompt,completion", *(f"the race {n},rain delays the goal {n}" for n in range(40))],
        "columns": ["who,what,answer", *(f"the bank {n},its rate {n},goes up {n}" for n in range(40))],
        "chat": [
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"the race {n}"},
                        {"role": "assistant", "content": f"the goal {n}"},
                    ]
                }
            )
            for n in range(40)
        ],
    }
    columns = {"prompt": "{who} and {what}: ", "completion": "answer"}
    runs = {}
    for name, lines in rows.items():
        data = folder / (name + (".jsonl" if name == "chat" else ".csv"))
        data.write_text("\n".join(lines) + "\n", encoding="utf-8")
        settings: dict[str, Any] = {
            **COMMON,
            "base": other if name == "chat" else base,
            "task": "chat" if name == "chat" else "completion",
            "out": str(folder / f"run-{name}"),
            "data": columns if name == "columns" else {},
        }
        runs[name] = gptailor.fit(data, settings=settings).folder
    return runs


def alone(answerer: Answerer, prompt: tuple[int, ...], **sampling: Any) -> Any:
    [answer] = answerer.answer([prompt], replace(answerer.usual, **sampling))
    return answer


class Slow:
    """A decoder whose steps take their time."""

    def __init__(self, decoder: Any, seconds: float) -> None:
        self.decoder, self.seconds = decoder, seconds

    def step(self) -> Any:
        time.sleep(self.seconds)
        return self.decoder.step()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)


class SlowAnswerer(Answerer):
    """Every decoder of it is slow."""

    seconds = 0.02

    def decoder(self) -> Any:
        return Slow(super().decoder(), self.seconds)


def slowly(run: Path) -> SlowAnswerer:
    loaded = load_answerer(run)
    loaded.__class__ = SlowAnswerer
    assert isinstance(loaded, SlowAnswerer)
    return loaded


@dataclass
class Served:
    """A running server."""

    url: str
    service: Any
    server: DrainingServer
    thread: threading.Thread

    def client(self, **options: Any) -> openai.OpenAI:
        settings = {"api_key": "any", "max_retries": 0, "timeout": 30.0, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **settings)


@contextmanager
def serving(answerers: Sequence[Any], predictors: Sequence[Any] = (), **options: Any) -> Iterator[Served]:
    listener = listen("127.0.0.1", 0)
    app = build_app(predictors, answerers=answerers, **options)
    config = server_config(app)
    service = app.state.service
    server = DrainingServer(config, service=service, drain_seconds=10.0, started=lambda: None)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", service, server, thread)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
