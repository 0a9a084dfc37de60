"""From the bytes of a request to token ids; whatever can't be answered is refused with the reason."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable
from typing import Any

from pydantic import BaseModel, Field
from starlette.requests import Request

from gptailor.errors import InputError, did_you_mean
from gptailor.serve.batcher import Batcher, Encoded, ServablePredictor
from gptailor.serve.limits import ClientLeft, Refusal
from gptailor.serve.service import Service
from gptailor.types import FloatArray

BODY_SECONDS = 20.0  # a sender slower than this is cut off
HALF_A_PAIR = re.compile("[\ud800-\udfff]")


class ClassifyRequest(BaseModel):
    """What `/classify` reads. Only for the schema: `read_request` checks, and says what to mend."""

    model: str | None = Field(None, description="one of /v1/models; the first where absent")
    input: str | list[str] = Field(description="a text, or a list of texts")
    model_config = {"extra": "forbid"}


def _unreadable(message: str, code: str) -> Refusal:
    return Refusal(422, message, code=code)


def shortened(value: str) -> str:
    """A client's own words, quoted and bounded."""
    return repr(value if len(value) <= 60 else value[:57] + "...")


def parse_object(body: bytes, *, example: str, status: int = 422) -> dict[str, Any]:
    """The body as a JSON object."""
    try:
        content = json.loads(body.decode("utf-8-sig"))
    except RecursionError:
        raise Refusal(status, "The body is nested too deeply.", code="not_json") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise Refusal(status, f"The body is not JSON in UTF-8: {error}", code="not_json") from None
    if not isinstance(content, dict):
        raise Refusal(status, f"The body must be an object such as {example}.", code="wrong_type")
    return content


def _parse(body: bytes) -> dict[str, Any]:
    """The body as an object with known keys and the right types."""
    content = parse_object(body, example='{"input": "some text"}')
    for key in content:
        if key not in ClassifyRequest.model_fields:
            hint = did_you_mean(key, ClassifyRequest.model_fields)
            raise _unreadable(f"Unknown key {shortened(key)}.{hint}", "unknown_key")
    if not isinstance(content.get("model"), str | None):
        raise _unreadable("'model' must be a text.", "wrong_type")
    if "input" not in content:
        raise _unreadable("'input' is missing: a text or a list of texts.", "missing_input")
    return content


def _texts(given: Any, *, most: int) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list):
        raise _unreadable("'input' must be a text or a list of texts.", "wrong_type")
    if not texts:
        raise _unreadable("'input' is an empty list.", "empty_input")
    if len(texts) > most:
        raise _unreadable(f"'input' holds {len(texts):,} texts; {most:,} are allowed.", "too_many_inputs")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise _unreadable(f"input[{index}] must be a text, not {type(text).__name__}.", "wrong_type")
    return texts


def _encode(predictor: ServablePredictor, text: str, *, where: str) -> Encoded:
    if not text.strip():
        raise _unreadable(f"{where} is empty.", "empty_input")
    if len(text) > predictor.max_characters:
        raise _unreadable(
            f"{where} has {len(text):,} characters; {predictor.max_characters:,} are allowed.",
            "input_too_long",
        )
    if half := HALF_A_PAIR.search(text):
        raise _unreadable(
            f"{where} holds half of a surrogate pair at character {half.start()}: a character was cut apart.",
            "not_text",
        )
    try:
        return predictor.encode(text)
    except InputError as error:
        raise _unreadable(f"{where}: {' '.join(str(error).splitlines())}", "unanswerable") from None


def read_request(body: bytes, service: Service) -> tuple[Batcher, list[Encoded]]:
    """Parses and tokenizes; runs in a helper thread."""
    content = _parse(body)
    name = content.get("model") or next(iter(service.batchers), next(iter(service.workers), ""))
    if name in service.workers:
        kind = "chat/completions" if service.workers[name].answerer.is_chat else "completions"
        raise _unreadable(f"{shortened(name)} doesn't classify. Ask it by /v1/{kind}.", "wrong_kind_of_model")
    if name not in service.batchers:
        there = ", ".join(repr(known) for known in service.batchers)
        raise Refusal(404, f"There is no model {shortened(name)}. There is: {there}.", code="unknown_model")
    batcher = service.batchers[name]
    texts = _texts(content["input"], most=min(service.limits.inputs, batcher.max_items))
    alone = isinstance(content["input"], str)
    return batcher, [
        _encode(batcher.predictor, text, where="input" if alone else f"input[{index}]")
        for index, text in enumerate(texts)
    ]


async def read_body(request: Request) -> bytes:
    """The whole body; refuses other content types and senders that are too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # also keeps foreign web pages from posting without asking first
        raise Refusal(415, "Send the header 'Content-Type: application/json'.", code="wrong_content_type")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.body()
    except TimeoutError:
        raise Refusal(408, "The body came too slowly.", code="too_slow") from None


async def until_left(request: Request) -> None:
    """Returns when the client closes the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_left(request: Request, work: Awaitable[FloatArray]) -> FloatArray:
    """Awaits the work; cancels it when the client closes the connection."""
    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_left(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ClientLeft
    finally:
        answer.cancel()
        gone.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)
