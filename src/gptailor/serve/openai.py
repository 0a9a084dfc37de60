"""OpenAI's requests for text: strict types, what is unknown or can't be honoured refused in words."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from gptailor.errors import InputError, PromptTooLong, did_you_mean
from gptailor.models.sampling import Sampling
from gptailor.serve.limits import Refusal
from gptailor.serve.requests import HALF_A_PAIR, parse_object, shortened
from gptailor.serve.service import Service
from gptailor.serve.writing import ServableAnswerer, TextWorker

if TYPE_CHECKING:
    from gptailor.data.feeder import PromptIds
    from gptailor.models.decode import Request

MOST_CHOICES, MOST_STOPS, MOST_TOP = 128, 4, 20
NUMBERS = {  # key: lowest, highest, whole
    "temperature": (0, 2, False),
    "top_p": (0, 1, False),
    "min_p": (0, 1, False),
    "repetition_penalty": (0.01, 10, False),
    "top_k": (0, 1_000_000, True),
    "no_repeat": (0, 1_000_000, True),
    "max_tokens": (1, 1_000_000, True),
    "max_completion_tokens": (1, 1_000_000, True),
    "n": (1, MOST_CHOICES, True),
    "seed": (-(2**63), 2**63 - 1, True),
}
SWITCHES = ("stream", "raw")
COMMON = {
    "model": "one of /v1/models; the first that fits where absent",
    "max_tokens": "most tokens of an answer; the model's own longest where absent",
    "temperature": "0 takes the likeliest token each time; 1 where absent",
    "top_p": "only the likeliest tokens that together reach this probability; 0: the likeliest one",
    "n": "answers to each prompt",
    "seed": "of the draws; the k-th answer is drawn from seed + k; random where absent",
    "stop": "a text, or up to 4, that end an answer and are no part of it",
    "stream": "answer piece by piece, as server-sent events",
    "stream_options": '{"include_usage": true}: a last piece with the usage',
    "logprobs": "log-probabilities of the tokens",
    "top_k": "only so many of the likeliest tokens; 0: all",
    "min_p": "only tokens at least this fraction as likely as the likeliest",
    "repetition_penalty": "above 1, tokens that stood before are less likely",
    "no_repeat": "no run of so many tokens comes twice in the answer; the model's own where absent, 0: off",
}
COMPLETION = {
    "prompt": "a text, or a list of texts",
    **COMMON,
    "best_of": "absent, or equal to n",
    "values": "the template's columns by name, in place of the prompt",
    "raw": "the prompt as it stands, without the template",
}
CHAT = {
    "messages": "the turns so far",
    **COMMON,
    "max_completion_tokens": "the same as max_tokens",
    "top_logprobs": "how many of the likeliest tokens to tell at each place",
}
# Keys of OpenAI's that change nothing here, by the values that say no more than the default.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
}
# These say nothing about the answer, so any value will do.
IGNORED = (
    *("user", "metadata", "safety_identifier", "service_tier", "parallel_tool_calls", "prediction"),
    *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that can be answered. `requests` holds n for each prompt, one prompt after the other; of each
    `truncated` says whether part of its prompt isn't read.
    """

    worker: TextWorker
    requests: tuple[Request, ...]
    truncated: tuple[bool, ...]
    prompt_tokens: int
    chat: bool
    logprobs: bool
    stream: bool
    include_usage: bool


def refuse(message: str, *, key: str | None = None, code: str = "invalid_value") -> Refusal:
    """A 400, as OpenAI's API answers what it can't use."""
    return Refusal(400, message, code=code, key=key)


def schema(keys: Mapping[str, str]) -> dict[str, Any]:
    """The keys for /openapi.json. `read_completion` and `read_chat` check, and say what to mend."""
    return {
        "type": "object",
        "properties": {key: {"description": text} for key, text in keys.items()},
        "required": [next(iter(keys))],
        "additionalProperties": True,
    }


def read_completion(body: bytes, service: Service) -> Asked:
    """Parses and tokenizes a body for /v1/completions; runs in a helper thread."""
    content = _content(body, COMPLETION, example='{"prompt": "some text"}')
    worker = _find_worker(content, service, chat=False)
    prompts = _prompts(content, worker.answerer, most=service.limits.inputs)
    top = _integer(content, "logprobs", 0, MOST_TOP)
    n = content.get("n") or 1
    best = content.get("best_of")
    if best is not None and (isinstance(best, bool) or best != n):
        raise refuse("'best_of' must be absent or equal to 'n': no answers are left out here.", key="best_of")
    return _asked(content, worker, prompts, chat=False, logprobs=top is not None, top=top or 0)


def read_chat(body: bytes, service: Service) -> Asked:
    """Parses and tokenizes a body for /v1/chat/completions; runs in a helper thread."""
    example = '{"messages": [{"role": "user", "content": "some text"}]}'
    content = _content(body, CHAT, example=example)
    worker = _find_worker(content, service, chat=True)
    messages = content.get("messages")
    if not isinstance(messages, list):
        raise refuse(f"'messages' must be a list of turns, as in {example}.", key="messages")
    logprobs, top = content.get("logprobs") or False, _integer(content, "top_logprobs", 0, MOST_TOP)
    if not isinstance(logprobs, bool):
        raise refuse("'logprobs' must be true or false.", key="logprobs")
    if top is not None and not logprobs:
        raise refuse("'top_logprobs' needs 'logprobs' to be true.", key="top_logprobs")
    prompt = _fed(partial(worker.answerer.feed_messages, messages), key="messages")
    return _asked(content, worker, [prompt], chat=True, logprobs=logprobs, top=top or 0)


def _content(body: bytes, keys: Mapping[str, str], *, example: str) -> dict[str, Any]:
    content = parse_object(body, example=example, status=400)
    if HALF_A_PAIR.search(json.dumps(content, ensure_ascii=False)):
        raise refuse("A text holds half of a surrogate pair: a character was cut apart.", code="not_text")
    for key, value in content.items():
        if key in keys or key in IGNORED:
            continue
        if key not in NEUTRAL:
            hint = did_you_mean(key, keys)
            raise refuse(f"Unknown key {shortened(key)}.{hint}", key=key[:60], code="unknown_key")
        if value is not None and value not in NEUTRAL[key]:
            raise refuse(
                f"{key!r} can't be honoured by this server. Leave it out.", key=key, code="unsupported"
            )
    for key, (low, high, whole) in NUMBERS.items():
        if key in keys:
            _number(content, key, low, high, whole=whole)
    for key in SWITCHES:
        if not isinstance(content.get(key), bool | None):
            raise refuse(f"{key!r} must be true or false.", key=key)
    if not isinstance(content.get("model"), str | None):
        raise refuse("'model' must be a text.", key="model")
    return content


def _number(content: Mapping[str, Any], key: str, low: float, high: float, *, whole: bool) -> None:
    value = content.get(key)
    if value is None:
        return
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right or not low <= value <= high:  # which is false for what isn't a number
        kind = "a whole number" if whole else "a number"
        raise refuse(f"{key!r} must be {kind} from {low:,} to {high:,}.", key=key)


def _integer(content: Mapping[str, Any], key: str, low: int, high: int) -> int | None:
    _number(content, key, low, high, whole=True)
    value: int | None = content.get(key)
    return value


def _find_worker(content: Mapping[str, Any], service: Service, *, chat: bool) -> TextWorker:
    workers = service.workers
    fitting = [name for name, worker in workers.items() if worker.answerer.is_chat or not chat]
    name = content.get("model") or next(iter(fitting), next(iter(workers), next(iter(service.batchers), "")))
    if name in service.batchers:
        raise refuse(
            f"{shortened(name)} is a classifier. Ask it by /classify.",
            key="model",
            code="wrong_kind_of_model",
        )
    if name not in workers:
        there = ", ".join(repr(known) for known in (*service.batchers, *workers))
        message = f"There is no model {shortened(name)}. There is: {there}."
        raise Refusal(404, message, code="model_not_found", key="model")
    if chat and not workers[name].answerer.is_chat:
        raise refuse(
            f"{shortened(name)} wasn't trained on conversations. Ask it by /v1/completions, with a prompt.",
            key="model",
            code="wrong_kind_of_model",
        )
    return workers[name]


def _prompts(content: Mapping[str, Any], answerer: ServableAnswerer, *, most: int) -> list[PromptIds]:
    given, values, raw = content.get("prompt"), content.get("values"), bool(content.get("raw"))
    if values is not None:
        if given or raw:
            raise refuse("'values' takes the place of 'prompt' and 'raw'. Give one of them.", key="values")
        if not isinstance(values, dict) or not all(isinstance(text, str) for text in values.values()):
            raise refuse("'values' must be an object of texts, by column.", key="values")
        for column, text in values.items():
            _check_length(text, answerer, where=f"values[{shortened(column)}]", key="values")
        return [_fed(partial(answerer.feed_values, values, whole=True), key="values", names=answerer.columns)]
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise refuse("'prompt' must be a text or a list of texts; token ids aren't taken.", key="prompt")
    if len(texts) > most:
        raise refuse(f"'prompt' holds {len(texts):,} texts; {most:,} are allowed.", key="prompt")
    for place, text in enumerate(texts):
        where = "'prompt'" if isinstance(given, str) else f"prompt[{place}]"
        _check_length(text, answerer, where=where, key="prompt")
    feed = answerer.feed_raw if raw or answerer.is_chat else partial(answerer.feed_text, whole=True)
    return [_fed(partial(feed, text), key="prompt") for text in texts]


def _check_length(text: str, answerer: ServableAnswerer, *, where: str, key: str) -> None:
    if len(text) > answerer.max_characters:
        most = f"{answerer.max_characters:,} are allowed"
        raise refuse(f"{where} has {len(text):,} characters; {most}.", key=key, code="input_too_long")


def _fed(feed: Callable[[], PromptIds], *, key: str, names: Sequence[str] = ()) -> PromptIds:
    try:
        return feed()
    except InputError as error:
        code = "context_length_exceeded" if isinstance(error, PromptTooLong) else "unanswerable"
        what = " ".join(error.what.split("\n"))
        if what.split(" ")[0].rstrip(",") not in names:  # a column keeps its name
            what = what[:1].upper() + what[1:]
        what += "" if what.endswith((".", "!", "?")) else "."
        raise refuse(f"{what} {error.fix or ''}".strip(), key=key, code=code) from None


def _asked(
    content: Mapping[str, Any],
    worker: TextWorker,
    prompts: list[PromptIds],
    *,
    chat: bool,
    logprobs: bool,
    top: int,
) -> Asked:
    n = content.get("n") or 1
    if n * len(prompts) > worker.max_items:
        raise refuse(f"That is {n * len(prompts):,} answers; {worker.max_items:,} are allowed.", key="n")
    options = content.get("stream_options") or {}
    if not isinstance(options, dict) or not isinstance(options.get("include_usage"), bool | None):
        raise refuse("'stream_options' must be {\"include_usage\": true} or absent.", key="stream_options")
    sampling = _sampling(content, worker.answerer)
    # A seed gives a prompt the same answers in any list; without one no two answers share their draws.
    apart = n if content.get("seed") is None else 0
    return Asked(
        worker=worker,
        requests=tuple(
            worker.answerer.request(
                prompt, replace(sampling, seed=sampling.seed + apart * number + place), top=top
            )
            for number, prompt in enumerate(prompts)
            for place in range(n)
        ),
        truncated=tuple(prompt.left_out > 0 for prompt in prompts for _ in range(n)),
        prompt_tokens=sum(map(len, prompts)),
        chat=chat,
        logprobs=logprobs,
        stream=bool(content.get("stream")),
        include_usage=bool(options.get("include_usage")),
    )


def _sampling(content: Mapping[str, Any], answerer: ServableAnswerer) -> Sampling:
    stop = content.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(s, str) and s for s in stops)
    ):
        raise refuse(f"'stop' must be a text or up to {MOST_STOPS} texts, none of them empty.", key="stop")
    longest = [content[key] for key in ("max_completion_tokens", "max_tokens") if content.get(key)]
    if len(set(longest)) > 1:
        raise refuse("'max_tokens' and 'max_completion_tokens' differ. Give one.", key="max_tokens")
    seed, temperature = content.get("seed"), content.get("temperature")
    given = {
        key: content[key]
        for key in ("top_p", "top_k", "min_p", "repetition_penalty")
        if content.get(key) is not None
    }
    if given.get("top_p") == 0:  # as OpenAI's: the likeliest token alone
        temperature = given.pop("top_p")
    try:
        return Sampling(
            temperature=1.0 if temperature is None else temperature,
            max_new_tokens=longest[0] if longest else answerer.max_new_tokens,
            stop=tuple(stops),
            no_repeat=answerer.no_repeat if content.get("no_repeat") is None else content["no_repeat"],
            seed=secrets.randbits(62) if seed is None else seed,
            **given,
        )
    except InputError as error:
        raise refuse(f"{error.what} {error.fix}", key=error.where) from None
