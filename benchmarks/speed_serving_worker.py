"""A process that one side of `speed_serving.py` runs in: ours, or transformers' pipeline as it stands.

`predict`: loads, says so, then answers all texts once for every line on standard input. `serve`: the pipeline
behind a plain FastAPI route, until it is ended. Gptailor's own server is started by its own command.
The peer's side imports nothing of gptailor, so it can run in an environment of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

Answers = list[dict[str, float]]


def ours(model: str, setting: dict[str, Any]) -> Callable[[list[str]], Answers]:
    import gptailor

    run = gptailor.load(model, precision=setting["precision"])

    def answer(texts: list[str]) -> Answers:
        return [dict(found.probabilities) for found in run.predict(texts)]

    return answer


def load_pipeline(model: str, setting: dict[str, Any]) -> Any:
    import torch
    import transformers

    if setting.get("threads"):
        torch.set_num_threads(setting["threads"])
    transformers.logging.set_verbosity_error()
    dtype = torch.bfloat16 if setting["precision"] == "bf16" else torch.float32
    pipe = transformers.pipeline("text-classification", model=model, dtype=dtype, device="cpu")
    if setting.get("compile"):
        # Not the model itself: the pipeline would no longer see that forward takes `use_cache`.
        pipe.model.forward = torch.compile(pipe.model.forward, dynamic=True)
    return pipe


def peer(model: str, setting: dict[str, Any]) -> Callable[[list[str]], Answers]:
    pipe = load_pipeline(model, setting)

    def answer(texts: list[str]) -> Answers:
        order = list(range(len(texts)))
        if setting.get("sorted"):
            lengths = [len(ids) for ids in pipe.tokenizer(texts)["input_ids"]]
            order.sort(key=lambda place: lengths[place])
        found = pipe(
            [texts[place] for place in order],
            batch_size=setting.get("batch_size", 1),
            truncation=True,
            top_k=None,
        )
        answers: Answers = [{}] * len(texts)
        for place, scores in zip(order, found, strict=True):
            answers[place] = {score["label"]: score["score"] for score in scores}
        return answers

    return answer


def predict(side: str, model: str, setting: dict[str, Any], file: Path) -> None:
    texts = json.loads(file.read_text(encoding="utf-8"))
    with contextlib.redirect_stdout(sys.stderr):
        answer = (ours if side == "ours" else peer)(model, setting)
        answers = answer(texts)  # warm; compiles whatever is compiled
        answer(texts[: len(texts) // 2])
    print(json.dumps({"answers": answers}), flush=True)
    for _ in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(sys.stderr):
            answer(texts)
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak}), flush=True)


def build_app() -> Any:
    """The pipeline behind a route as tutorials write it; settings come by the environment."""
    import anyio.to_thread
    from fastapi import FastAPI
    from pydantic import BaseModel

    setting = json.loads(os.environ["PEER_SETTING"])
    pipe = load_pipeline(os.environ["PEER_MODEL"], setting)

    @contextlib.asynccontextmanager
    async def limit(_: FastAPI) -> AsyncIterator[None]:
        if setting.get("at_once"):
            anyio.to_thread.current_default_thread_limiter().total_tokens = setting["at_once"]
        yield

    app = FastAPI(lifespan=limit)

    class Asked(BaseModel):
        input: str

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    def classify(asked: Asked) -> Any:
        return pipe(asked.input, top_k=None)

    classify.__annotations__["asked"] = Asked  # a local class, and annotations are texts here
    app.post("/classify")(classify)
    return app


def serve(model: str, setting: dict[str, Any], port: int) -> None:
    import uvicorn

    os.environ["PEER_SETTING"], os.environ["PEER_MODEL"] = json.dumps(setting), model
    sys.path.insert(0, str(Path(__file__).parent))
    uvicorn.run(
        "speed_serving_worker:build_app",
        factory=True,
        port=port,
        workers=setting.get("workers", 1),
        log_level="warning",
        access_log=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("ours", "peer", "serve"))
    parser.add_argument("model")
    parser.add_argument("setting", type=json.loads)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--port", type=int)
    given = parser.parse_args()
    if given.side == "serve":
        serve(given.model, given.setting, given.port)
    else:
        predict(given.side, given.model, given.setting, given.texts)


if __name__ == "__main__":
    main()
