"""What can be asked here: the models, and what each is for."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gptailor.serve.limits import Refusal, json_response
from gptailor.serve.requests import shortened
from gptailor.serve.service import Service


def _listed(service: Service) -> dict[str, dict[str, Any]]:
    """What `/v1/models` tells of each model, by name."""
    found: dict[str, dict[str, Any]] = {}
    for predictor in (batcher.predictor for batcher in service.batchers.values()):
        found[predictor.name] = {
            "version": predictor.version,
            "task": "classification",
            "answer": predictor.form.kind,
            "label_names": list(predictor.label_names),
            "threshold": predictor.threshold,
            "max_characters": predictor.max_characters,
        }
    for answerer in (worker.answerer for worker in service.workers.values()):
        found[answerer.name] = {
            "version": answerer.version,
            "task": answerer.task,
            "chat": answerer.is_chat,
            "columns": list(answerer.columns),
            "template": answerer.template,
            "context": answerer.context,
            "max_prompt_tokens": answerer.max_prompt_tokens,
            "max_characters": answerer.max_characters,
            "max_tokens": answerer.max_new_tokens,
        }
    common = {"object": "model", "created": service.started, "owned_by": "gptailor"}
    return {name: {"id": name, **common, **own} for name, own in found.items()}


async def models(request: Request) -> Response:
    """The models that answer; where a request names none, the first that fits it does."""
    return json_response({"object": "list", "data": list(_listed(request.app.state.service).values())})


async def one_model(request: Request) -> Response:
    """One of the models."""
    name = request.path_params["name"]
    found = _listed(request.app.state.service)
    if name not in found:
        raise Refusal(404, f"There is no model {shortened(name)}.", code="model_not_found", key="model")
    return json_response(found[name])
