"""OpenAI's own client against a real server with tiny models that write."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import Served, alone, serving
from transformers import AutoTokenizer

from gptailor.cli import verbs
from gptailor.data.feeder import PromptIds
from gptailor.errors import InputError, ModelError, PromptTooLong
from gptailor.models.answerer import Answerer, load_answerer
from gptailor.pipeline.export import export_run
from gptailor.serve.app import build_app
from gptailor.serve.openai import CHAT, COMPLETION, NEUTRAL, _fed, read_completion
from gptailor.tasks.sandbox import run_template

PROMPT = "the race 5"
TURNS: Any = [{"role": "user", "content": "the race 5"}]


@pytest.fixture(scope="module")
def served(runs: dict[str, Path]) -> Iterator[Served]:
    with serving([load_answerer(run) for run in runs.values()]) as found:
        yield found


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with served.client() as found:
        yield found


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url) as found:
        yield found


def joined(chunks: list[Any], place: int = 0) -> dict[str, Any]:
    """A stream of completions put together by hand."""
    own = [choice for chunk in chunks for choice in chunk.choices if choice.index == place]
    scores = [choice.logprobs for choice in own if choice.logprobs]
    return {
        "text": "".join(choice.text for choice in own),
        "finish": [choice.finish_reason for choice in own if choice.finish_reason],
        "tokens": [token for score in scores for token in score.tokens],
        "logprobs": [value for score in scores for value in score.token_logprobs],
        "offsets": [value for score in scores for value in score.text_offset],
        "top": [top for score in scores for top in score.top_logprobs],
    }


def test_the_models_are_listed_with_what_they_are_for(client: openai.OpenAI) -> None:
    listed = {model.id: model.model_dump() for model in client.models.list()}
    assert list(listed) == ["run-plain", "run-columns", "run-chat"]
    assert [listed[name]["task"] for name in listed] == ["completion", "completion", "chat"]
    assert listed["run-columns"]["columns"] == ["who", "what"]
    assert listed["run-columns"]["template"] == "{who} and {what}: "
    assert [listed[name]["chat"] for name in listed] == [False, False, True]
    assert client.models.retrieve("run-chat").id == "run-chat"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("run-other")


def test_a_completion_is_what_the_model_writes_alone(
    client: openai.OpenAI, answerers: dict[str, Answerer]
) -> None:
    plain = answerers["plain"]
    prompt = plain.feed_text(PROMPT)
    expected = alone(plain, prompt, max_new_tokens=12)
    found = client.completions.create(model="run-plain", prompt=PROMPT, temperature=0, max_tokens=12)
    assert (found.object, found.model, found.system_fingerprint) == (
        "text_completion",
        "run-plain",
        plain.version,
    )
    [choice] = found.choices
    assert (choice.text, choice.finish_reason) == (expected.text, expected.finished)
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(prompt)
    assert found.usage.completion_tokens == expected.num_drawn == 12
    assert found.usage.total_tokens == len(prompt) + 12


def test_a_turn_of_a_chat_is_what_the_model_writes_alone(
    client: openai.OpenAI, answerers: dict[str, Answerer]
) -> None:
    chat = answerers["chat"]
    prompt = chat.feed_messages(TURNS)
    expected = alone(chat, prompt, max_new_tokens=10)
    found = client.chat.completions.create(
        model="run-chat", messages=TURNS, temperature=0, max_completion_tokens=10
    )
    [choice] = found.choices
    assert found.object == "chat.completion"
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert choice.finish_reason == expected.finished
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(prompt)


def test_a_streamed_completion_joined_is_the_whole_one(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "run-plain",
        "prompt": [PROMPT, "the flu"],
        "n": 2,
        "seed": 3,
        "max_tokens": 9,
        "logprobs": 2,
    }
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert len(chunks) > 9
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    for choice in whole.choices:
        got = joined(chunks, choice.index)
        assert (got["text"], got["finish"]) == (choice.text, [choice.finish_reason])
        assert choice.logprobs is not None
        assert got["tokens"] == choice.logprobs.tokens
        assert got["logprobs"] == choice.logprobs.token_logprobs
        assert got["offsets"] == choice.logprobs.text_offset
        assert got["top"] == choice.logprobs.top_logprobs
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_streamed_turn_joined_is_the_whole_one(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "run-chat",
        "messages": TURNS,
        "seed": 4,
        "max_tokens": 9,
        "logprobs": True,
        "top_logprobs": 3,
    }
    whole = client.chat.completions.create(**asked).choices[0]
    chunks = list(client.chat.completions.create(**asked, stream=True))
    choices = [chunk.choices[0] for chunk in chunks]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == whole.message.content
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == [whole.finish_reason]
    told = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert whole.logprobs is not None
    assert told == whole.logprobs.content


def test_logprobs_are_the_models_own(client: openai.OpenAI, answerers: dict[str, Answerer]) -> None:
    plain = answerers["plain"]
    expected = alone(plain, plain.feed_text(PROMPT), max_new_tokens=8)
    found = client.completions.create(
        model="run-plain", prompt=PROMPT, temperature=0, max_tokens=8, logprobs=3
    ).choices[0]
    assert found.logprobs is not None
    assert found.logprobs.token_logprobs == list(expected.log_probabilities)
    assert found.logprobs.tokens == [plain.token_text(token) for token in expected.token_ids]
    for token, score, top in zip(
        found.logprobs.tokens, expected.log_probabilities, found.logprobs.top_logprobs or [], strict=True
    ):
        assert top[token] == score == max(top.values())  # greedy: the likeliest
        assert 1 <= len(top) <= 4
    assert found.logprobs.text_offset == sorted(found.logprobs.text_offset or [])
    told = client.chat.completions.create(
        model="run-chat", messages=TURNS, temperature=0, max_tokens=5, logprobs=True, top_logprobs=2
    ).choices[0]
    assert told.logprobs is not None
    for token in told.logprobs.content or []:
        assert token.top_logprobs[0].logprob == token.logprob
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 2


def test_a_token_stands_at_its_offset_also_when_text_was_held_back(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "run-plain",
        "prompt": PROMPT,
        "seed": 1,
        "max_tokens": 20,
        "logprobs": 0,
    }
    free = client.completions.create(**asked).choices[0]
    held = client.completions.create(**asked, stop=f"{free.text[3:9]}\N{SNOWMAN}").choices[0]
    assert held == free
    assert held.logprobs is not None
    last, offset = (held.logprobs.tokens or [])[-1], (held.logprobs.text_offset or [])[-1]
    assert held.text[offset:] == last


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "run-plain", "prompt": PROMPT, "seed": 1, "max_tokens": 30}
    text = client.completions.create(**asked).choices[0].text
    stop = text[len(text) // 2 :][:2]
    expected = text[: text.index(stop)]
    for stops in (stop, ["never in it", stop]):
        found = client.completions.create(**asked, stop=stops).choices[0]
        assert (found.text, found.finish_reason) == (expected, "stop")
    chunks = list(client.completions.create(**asked, stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected


def test_a_seed_repeats_the_answer_and_the_kth_of_n_has_a_seed_of_its_own(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "run-plain", "prompt": PROMPT, "max_tokens": 16}
    several = client.completions.create(**asked, n=3, seed=7).choices
    assert len({choice.text for choice in several}) == 3
    for place, choice in enumerate(several):
        assert client.completions.create(**asked, seed=7 + place).choices[0].text == choice.text
    assert len({client.completions.create(**asked).choices[0].text for _ in range(3)}) == 3


def test_without_a_seed_no_two_answers_of_a_list_share_their_draws(runs: dict[str, Path]) -> None:
    service = build_app([], answerers=[load_answerer(runs["plain"])]).state.service

    def seeds(**more: Any) -> list[int]:
        body = json.dumps({"prompt": [PROMPT] * 3, "n": 2, **more}).encode()
        return [asked.sampling.seed for asked in read_completion(body, service).requests]

    assert len(set(seeds())) == 6
    assert seeds(seed=5) == [5, 6] * 3, "as each prompt alone"


def test_of_a_top_p_of_0_the_likeliest_token_is_left(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "run-plain", "prompt": PROMPT, "max_tokens": 8}
    greedy = client.completions.create(**asked, temperature=0).choices[0].text
    assert client.completions.create(**asked, temperature=2, top_p=0).choices[0].text == greedy


def test_a_context_cut_to_a_window_is_told(
    client: openai.OpenAI, answerers: dict[str, Answerer], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = answerers["columns"]
    values = {"who": "the bank 3", "what": "its rate 3"}
    asked: dict[str, Any] = {"model": "run-columns", "prompt": "", "temperature": 0, "max_tokens": 3}
    asked["extra_body"] = {"values": values}
    whole = client.completions.create(**asked).choices[0]
    fed = PromptIds(columns.feed_values(values), left_out=300)
    monkeypatch.setattr(Answerer, "feed_values", lambda *_, **__: fed)
    cut = client.completions.create(**asked).choices[0]
    assert (whole.model_extra, cut.model_extra) == ({"truncated": False}, {"truncated": True})
    assert cut.text == whole.text
    chunks = [chunk.choices[0] for chunk in client.completions.create(**asked, stream=True)]
    assert all(chunk.model_extra == {"truncated": True} for chunk in chunks)


def test_columns_and_raw_prompts(client: openai.OpenAI, answerers: dict[str, Answerer]) -> None:
    columns, chat = answerers["columns"], answerers["chat"]
    written = "the bank 3 and its rate 3: "
    expected = alone(columns, columns.feed_text(written), max_new_tokens=6).text
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 6}
    values = {"who": "the bank 3", "what": "its rate 3"}
    for asked_by in ({"prompt": "", "extra_body": {"values": values}}, {"prompt": written}):
        assert client.completions.create(model="run-columns", **asked_by, **asked).choices[0].text == expected
    raw = client.completions.create(
        model="run-columns", prompt=" the  race", extra_body={"raw": True, "top_k": 5}, **asked
    )
    assert raw.choices[0].text == alone(columns, columns.feed_raw(" the  race"), max_new_tokens=6).text
    told = client.completions.create(model="run-chat", prompt=PROMPT, **asked)
    assert told.choices[0].text == alone(chat, chat.feed_raw(PROMPT), max_new_tokens=6).text


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        ({"prompt": "the race " * 80}, "context_length_exceeded", "tokens"),
        ({"prompt": "x" * 100_001}, "input_too_long", "'prompt' has 100,001 characters; 100,000 are allowed"),
        ({"prompt": ["a", "x" * 100_001]}, "input_too_long", r"prompt\[1\] has 100,001 characters"),
        (
            {"prompt": "", "extra_body": {"values": {"prompt": "x" * 100_001}}},
            "input_too_long",
            r"values\['prompt'\] has 100,001 characters",
        ),
        ({"prompt": 3}, "invalid_value", "a text or a list"),
        ({"prompt": [1, 2]}, "invalid_value", "token ids"),
        ({"prompt": []}, "invalid_value", "a text or a list"),
        ({"max_tokens": 0}, "invalid_value", "whole number from 1"),
        ({"max_tokens": True}, "invalid_value", "whole number from 1"),
        ({"temperature": "hot"}, "invalid_value", "a number from 0 to 2"),
        ({"top_p": 1.5}, "invalid_value", "from 0 to 1"),
        ({"extra_body": {"repetition_penalty": 0}}, "invalid_value", "a number from 0.01 to 10"),
        ({"temperature": 10**400}, "invalid_value", "a number from 0 to 2"),
        ({"seed": -(10**400)}, "invalid_value", "a whole number from"),
        ({"n": 500}, "invalid_value", "from 1 to 128"),
        ({"logprobs": 21}, "invalid_value", "from 0 to 20"),
        ({"stop": ["a"] * 5}, "invalid_value", "up to 4"),
        ({"stop": [""]}, "invalid_value", "none of them empty"),
        ({"best_of": 4}, "invalid_value", "equal to 'n'"),
        ({"echo": True}, "unsupported", "can't be honoured"),
        ({"suffix": "x"}, "unsupported", "can't be honoured"),
        ({"frequency_penalty": 0.5}, "unsupported", "can't be honoured"),
        ({"logit_bias": {"5": 1}}, "unsupported", "can't be honoured"),
        ({"extra_body": {"tools": [{"type": "function"}]}}, "unsupported", "can't be honoured"),
        ({"extra_body": {"response_format": {"type": "json_object"}}}, "unsupported", "honoured"),
        ({"extra_body": {"temprature": 1}}, "unknown_key", "Did you mean 'temperature'"),
        ({"extra_body": {"values": {"wo": "x"}}}, "invalid_value", "takes the place"),
        ({"prompt": "", "extra_body": {"values": {"prompts": "x"}}}, "unanswerable", "'prompt'"),
        ({"stream_options": {"include_usage": "yes"}}, "invalid_value", "include_usage"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(
    client: openai.OpenAI, asked: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.completions.create(**{"model": "run-plain", "prompt": PROMPT, **asked})
    assert caught.value.code == code
    assert caught.value.param


def test_other_refusals_of_the_right_kind(client: openai.OpenAI, http: httpx.Client) -> None:
    with pytest.raises(openai.NotFoundError, match="'run-plain'") as missing:
        client.completions.create(model="run-plane", prompt=PROMPT)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="/v1/completions"):
        client.chat.completions.create(model="run-plain", messages=TURNS)
    faulty: list[Any] = [[], [{"role": "robot", "content": "x"}], [{"role": "user"}]]
    for messages in faulty:
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="run-chat", messages=messages)
    turns: Any = [{"role": "user", "content": "the race " * 80}]
    with pytest.raises(openai.BadRequestError, match="earliest turns") as long:
        client.chat.completions.create(model="run-chat", messages=turns)
    assert long.value.code == "context_length_exceeded"
    classified = http.post("/classify", json={"model": "run-chat", "input": "x"})
    assert (classified.status_code, classified.json()["error"]["code"]) == (422, "wrong_kind_of_model")
    for body in (b"{", b"[]", b'{"prompt": "\\ud83d"}', b'{"temperature": NaN, "prompt": "x"}'):
        headers = {"content-type": "application/json"}
        assert http.post("/v1/completions", content=body, headers=headers).status_code == 400


def test_a_conversation_far_too_long_is_refused_before_its_answers_are_looked_for(
    answerers: dict[str, Answerer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find them takes a rendering for each."""
    rendered = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        rendered.append(args)
        return run_template(*args, **kwargs)

    monkeypatch.setattr("gptailor.tasks.writing.run_template", counted)
    turns = [*TURNS, {"role": "assistant", "content": "the goal 5"}]
    assert answerers["chat"].feed_messages([*turns, *TURNS])
    assert len(rendered) >= 2
    rendered.clear()
    with pytest.raises(PromptTooLong, match="the conversation is longer than 48 tokens"):
        answerers["chat"].feed_messages([*turns * 200, *TURNS])
    assert len(rendered) <= 3


def test_what_says_no_more_than_the_default_is_taken(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="run-chat",
        messages=TURNS,
        max_tokens=2,
        user="me",
        tools=[],
        presence_penalty=0,
        logit_bias={},
        response_format={"type": "text"},
        stop=None,
        store=False,
    )
    assert found.choices


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 30)
    | st.floats()
    | st.sampled_from(["the race", "", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["role", "content", "include_usage", "prompt", "x"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["completions", "chat/completions"]),
    st.dictionaries(st.sampled_from(sorted({*COMPLETION, *CHAT, *NEUTRAL, "x"})), VALUES, max_size=5),
)
def test_no_body_breaks_the_server(http: httpx.Client, route: str, body: dict[str, Any]) -> None:
    known = {"prompt": PROMPT} if route == "completions" else {"messages": TURNS}
    content = json.dumps({**known, "max_tokens": 2, **body}).encode()
    headers = {"content-type": "application/json"}
    found = http.post(f"/v1/{route}", content=content, headers=headers)
    assert found.status_code in (200, 400, 404), found.text
    if found.status_code != 200:
        assert found.json()["error"]["message"]


def test_a_run_that_answers_its_probe_otherwise_is_not_served(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr("gptailor.serve.run.serve", lambda *_, answerers, **__: served.extend(answerers))
    shutil.copytree(runs["plain"] / "model", tmp_path / "model")
    verbs.serve([tmp_path, runs["chat"]])
    assert [answerer.is_chat for answerer in served] == [False, True]
    path = tmp_path / "model" / "gptailor.json"
    bundle = json.loads(path.read_text(encoding="utf-8"))
    bundle["probes"][0]["nats"][0] += 0.01
    path.write_text(json.dumps(bundle), encoding="utf-8")
    with pytest.raises(ModelError, match="answered differently"):
        verbs.serve([tmp_path])


def test_a_run_that_must_not_repeat_itself_does_not_here_unless_asked_to(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run-still" / "model"
    shutil.copytree(runs["plain"] / "model", folder)
    bundle = json.loads((folder / "gptailor.json").read_text(encoding="utf-8"))
    bundle["form"]["no_repeat"] = 1
    (folder / "gptailor.json").write_text(json.dumps(bundle), encoding="utf-8")
    answerer = load_answerer(folder.parent)
    prompt = answerer.feed_text(PROMPT)
    with serving([answerer]) as found, found.client() as client:
        asked: dict[str, Any] = {"model": "run-still", "prompt": PROMPT, "temperature": 0, "max_tokens": 12}
        usual = client.completions.create(**asked).choices[0].text
        free = client.completions.create(**asked, extra_body={"no_repeat": 0}).choices[0].text
    assert usual == alone(answerer, prompt, max_new_tokens=12, no_repeat=1).text
    assert free == alone(answerer, prompt, max_new_tokens=12, no_repeat=0).text
    assert usual != free, "the tiny model doesn't repeat itself, so nothing is shown"


def test_a_models_files_are_hashed_before_the_first_request(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer = load_answerer(runs["plain"])
    build_app([], answerers=[answerer])

    def never(_: Path) -> str:
        raise AssertionError("the files were read while requests wait")

    monkeypatch.setattr("gptailor.models.answerer.served_version", never)
    assert answerer.version


def test_the_key_is_asked_for(runs: dict[str, Path]) -> None:
    with serving([load_answerer(runs["plain"])], api_key="open sesame") as guarded:
        with guarded.client() as wrong, pytest.raises(openai.AuthenticationError):
            wrong.completions.create(model="run-plain", prompt=PROMPT)
        with guarded.client(api_key="open sesame") as right:
            assert right.completions.create(model="run-plain", prompt=PROMPT, max_tokens=1).choices


def test_an_exported_chat_is_asked_the_same_tokens_by_transformers(
    runs: dict[str, Path], answerers: dict[str, Answerer], tmp_path: Path
) -> None:
    """Transformers writes the template out and tokenizes that text, its markers with it."""
    result = export_run(runs["chat"], to="hf", out=tmp_path / "out")
    assert "control token" in result["warning"]
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True)["input_ids"]
    assert asked == list(answerers["chat"].feed_messages(TURNS))
    plain = export_run(runs["plain"], to="hf", out=tmp_path / "plain")
    assert "warning" not in plain


def test_the_longest_prompt_is_told_and_taken(client: openai.OpenAI, answerers: dict[str, Answerer]) -> None:
    plain = answerers["plain"]
    told = client.models.retrieve("run-plain").model_dump()
    most = told["max_prompt_tokens"]
    assert most < told["context"]
    word = " the"
    words = next(n for n in range(1, 600) if len(plain.feed_text(word * n, whole=True)) == most)
    client.completions.create(model="run-plain", prompt=word * words, max_tokens=1)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="run-plain", prompt=word * (words + 1), max_tokens=1)
    assert caught.value.code == "context_length_exceeded"
    assert f"{most:,} tokens" in str(caught.value)


def test_control_tokens_have_names_among_the_likeliest(answerers: dict[str, Answerer]) -> None:
    chat = answerers["chat"]
    names = [chat.token_text(token) for token in range(len(chat.tokenizer))]
    assert "" not in names
    assert {chat.tokenizer.eos_token, chat.tokenizer.pad_token} <= {*names}
    assert chat.decode([chat.tokenizer.eos_token_id]) == ""


def test_a_run_that_answers_its_probe_otherwise_answers_nobody(runs: dict[str, Path], tmp_path: Path) -> None:
    """Neither `predict` nor `evaluate` takes what another run's weights say for this one's answers."""
    shutil.copytree(runs["plain"] / "model", tmp_path / "model")
    path = tmp_path / "model" / "gptailor.json"
    bundle = json.loads(path.read_text(encoding="utf-8"))
    bundle["probes"][0]["nats"][0] += 0.01
    path.write_text(json.dumps(bundle), encoding="utf-8")
    with pytest.raises(ModelError, match="answered differently"):
        load_answerer(tmp_path)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("mr is missing.", "mr is missing. Give mr."),
        ("the text is empty", "The text is empty. Give mr."),
        ("there is no column 'x'.", "There is no column 'x'. Give mr."),
    ],
)
def test_what_can_not_be_asked_is_told_in_a_sentence_with_columns_as_they_are_spelled(
    what: str, told: str
) -> None:
    def feed() -> tuple[int, ...]:
        raise InputError(what, where="values", fix="Give mr.")

    with pytest.raises(Exception, match=re.escape(told)):
        _fed(feed, key="values", names=("mr", "th"))
