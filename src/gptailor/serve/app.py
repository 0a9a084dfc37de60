"""The routes, and the app around them.

A request meets, in this order: `Gate` (host, API key, shutdown, size), the route, a helper thread that
parses and tokenizes, the batcher. Every refusal has one shape, `{"error": {"message", "type", "code"}}`,
and 429 and 503 say when to come back.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client import generate_latest as render_metrics
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gptailor.errors import GptailorError
from gptailor.models.readout import read_answer
from gptailor.serve.batcher import Draining, Encoded, ServablePredictor
from gptailor.serve.limits import Gate, json_response, refusal_for
from gptailor.serve.listing import models, one_model
from gptailor.serve.openai import CHAT, COMPLETION, schema
from gptailor.serve.own_page import load_page
from gptailor.serve.requests import ClassifyRequest, read_body, read_request, shortened, unless_left
from gptailor.serve.service import Limits, Service
from gptailor.serve.texts import chat_completions, completions
from gptailor.serve.writing import ServableAnswerer
from gptailor.types import FloatArray

LARGE = 4096  # probabilities of one answer: writing more takes so long that it is done beside the others


class ErrorDetail(BaseModel):
    """What went wrong: a sentence, its kind, and a word for programs."""

    message: str
    type: str
    code: str


class ErrorAnswer(BaseModel):
    """The body of every answer that isn't a success."""

    error: ErrorDetail


class ClassifyItem(BaseModel):
    """The answer to one text. `probs` are in the order of `label_probs`; both are empty for a number."""

    index: int
    label: str = Field(description="several labels stand joined; a number is written out")
    labels: list[str] = Field(description="the same one by one; empty where no label fits")
    value: float | None = Field(description="the number, where the model gives one")
    probs: list[float]
    num_classes: int
    label_probs: dict[str, float]
    abstained: bool = Field(description="the top probability is under the model's threshold")
    truncated: bool = Field(description="the end of the text did not fit the model")


class Usage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class ClassifyAnswer(BaseModel):
    """vLLM's shape, with `version`, the hash of the model that answered."""

    id: str
    object: str
    created: int
    model: str
    version: str
    data: list[ClassifyItem]
    usage: Usage


async def classify(request: Request) -> Response:
    """Labels with calibrated probabilities for one text or a list of texts."""
    service: Service = request.app.state.service
    with service.answering():
        body = await read_body(request)
        end = time.monotonic() + service.limits.deadline_seconds
        batcher, encoded = await anyio.to_thread.run_sync(
            read_request, body, service, limiter=service.parsing
        )
        work = batcher.submit(
            encoded, deadline_seconds=end - time.monotonic(), request_id=request.state.request_id
        )
        probabilities = await unless_left(request, work)
    request_id = request.state.request_id

    def answer() -> Response:
        return json_response(_answer(batcher.predictor, encoded, probabilities, request_id=request_id))

    return await anyio.to_thread.run_sync(answer) if probabilities.size > LARGE else answer()


def _answer(
    predictor: ServablePredictor, encoded: Sequence[Encoded], probabilities: FloatArray, *, request_id: str
) -> dict[str, Any]:
    data = []
    for index, (item, row) in enumerate(zip(encoded, probabilities, strict=True)):
        answer = read_answer(
            row,
            predictor.label_names,
            predictor.form,
            threshold=predictor.threshold,
            truncated=item.truncated,
        )
        data.append(
            {
                "index": index,
                "label": answer.label,
                "labels": list(answer.labels),
                "value": answer.value,
                "probs": list(answer.probabilities.values()),
                "num_classes": len(predictor.label_names),
                "label_probs": answer.probabilities,
                "abstained": answer.abstained,
                "truncated": answer.truncated,
            }
        )
    tokens = sum(item.num_tokens for item in encoded)
    return {
        "id": f"classify-{request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": predictor.name,
        "version": predictor.version,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def health() -> Response:
    """Whether the process lives."""
    return json_response({"status": "alive"})


async def ready(request: Request) -> Response:
    """Whether new requests are welcome; 503 while the server drains."""
    if request.app.state.service.draining:
        raise Draining("The server is shutting down.")
    return json_response({"status": "ready"})


async def metrics(request: Request) -> Response:
    """Counters in Prometheus' text format."""
    content = render_metrics(request.app.state.service.metrics.registry)
    return Response(content, headers={"content-type": CONTENT_TYPE_LATEST})


async def page(request: Request) -> Response:
    """The page to try a model in a browser."""
    html, policy = request.app.state.page
    return Response(html, headers={"content-security-policy": policy}, media_type="text/html")


async def _refuse_route(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such route, wrong method) in our shape."""
    refusal = refusal_for(error, request_id=request.state.request_id)
    if refusal.status in (404, 405):
        there = f"There is no {request.method} {shortened(request.url.path)}."
        refusal.message = (
            f"{there} The routes are POST /classify, /v1/completions and /v1/chat/completions, "
            "GET /v1/models, /health, /ready, /metrics and /."
        )
    return refusal.response()


def build_app(
    predictors: Sequence[ServablePredictor],
    *,
    answerers: Sequence[ServableAnswerer] = (),
    api_key: str | None = None,
    queue_items: int = 512,
    deadline_seconds: float = 10.0,
    begin_seconds: float = 60.0,
    max_body_bytes: int = 1_000_000,
    max_inputs: int = 256,
    allowed_hosts: Sequence[str] | None = None,
) -> FastAPI:
    """The server as an ASGI app; `app.state.service` can drain and stop it.

    Args:
        predictors: The models that classify; the first answers where a request names none.
        answerers: The models that write, likewise.
        api_key: Guards all but the page itself, `/health` and `/ready`.
        queue_items: Texts that may wait for each model, or be written by it; more are refused with 429.
        deadline_seconds: A text to classify that hasn't started by then is answered with 503.
        begin_seconds: The same for texts to be written.
        max_body_bytes: Larger bodies are refused with 413, counted while they come in.
        max_inputs: Texts in one request.
        allowed_hosts: Names the Host header may hold; None: any.

    Raises:
        GptailorError: No model, two of the same name, or an empty API key.
    """
    if api_key is not None and not (api_key := api_key.strip()):  # a file's line end is no part of a key
        raise GptailorError("The API key is empty.", fix="Give a key of some length, or none at all.")
    limits = Limits(deadline_seconds, max_body_bytes, max_inputs, begin_seconds)
    service = Service(predictors, answerers, queue_items=queue_items, limits=limits)
    for answerer in answerers:
        _ = answerer.version  # which reads all of the model's files: now, not while requests wait

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.stop()

    app = FastAPI(
        title="Gptailor", docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan
    )  # the usual documentation pages load scripts from elsewhere
    app.state.service, app.state.page = service, load_page("page.html")
    app.add_middleware(Gate, service=service, api_key=api_key, allowed_hosts=allowed_hosts)
    app.add_exception_handler(HTTPException, _refuse_route)
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer} for status in (400, 401, 404, 408, 413, 415, 421, 422, 429, 500, 503)
    }
    answered: dict[int | str, dict[str, Any]] = {200: {"model": ClassifyAnswer}}
    posts: tuple[tuple[str, Any, dict[str, Any], dict[int | str, dict[str, Any]]], ...] = (
        ("/classify", classify, ClassifyRequest.model_json_schema(), answered),
        ("/v1/completions", completions, schema(COMPLETION), {}),
        ("/v1/chat/completions", chat_completions, schema(CHAT), {}),
    )
    for path, route, body, answers in posts:
        content = {"content": {"application/json": {"schema": body}}, "required": True}
        app.add_api_route(
            path,
            route,
            methods=["POST"],
            response_model=None,
            responses={**answers, **refusals},
            openapi_extra={"requestBody": content},
        )
    for path, route in (
        ("/v1/models", models),
        ("/v1/models/{name}", one_model),
        ("/health", health),
        ("/ready", ready),
        ("/metrics", metrics),
    ):
        app.add_api_route(path, route, methods=["GET"], response_model=None, responses=refusals)
    app.add_api_route("/", page, methods=["GET"], response_model=None, include_in_schema=False)
