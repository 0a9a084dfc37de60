"""Zero- and few-shot: the cached prefix changes nothing, the examples are fair, the prompt always fits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from gptailor.data.tokenize import build_encoder, encode_texts
from gptailor.evaluate import prompted
from gptailor.evaluate.prompted import (
    MOST_LABELS,
    SHOTS_PER_LABEL,
    Prompter,
    build_prompter,
    choose_shots,
    prompted_scores,
    why_not,
)
from gptailor.types import Example, Segment

LABELS = ["sports", "world_news", "a", "health and the flu"]
TEXTS = [
    "the cup final",
    "",
    "the bank raised its rate",
    "日本 🏆",
    "<|endoftext|> </s>",
    "the goal " * 80,
    "the cup final",
]
each_family = pytest.mark.parametrize("family", tiny.FAMILIES)


def example(text: str, label: int, row: int = 1) -> Example:
    return Example((Segment(text, learn=True),), "file", row, label)


SHOTS = [example("the race", 0), example("its shares", 1), example("doctors", 3)]


def build(family: str, context: int = 160) -> Prompter:
    """A tiny random language model of a family, ready to be prompted."""
    tokenizer = tiny.build_tokenizer(family)
    config = tiny.build_config(family, len(tokenizer))
    config.max_position_embeddings = context  # GPT-2 takes it for its n_positions
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    encoder = build_encoder(tokenizer.backend_tokenizer, pad_id=0)
    return build_prompter(model, encoder, LABELS, context=context)


def log_likelihood(prompter: Prompter, prompt: list[int], label: tuple[int, ...]) -> float:
    """log p(label | prompt) by one pass over the whole, without a cache, token by token."""
    with torch.no_grad():
        logits = prompter.model(input_ids=torch.tensor([[*prompt, *label]])).logits[0].double()
    places = range(len(prompt) - 1, len(prompt) + len(label) - 1)
    return sum(
        float(torch.log_softmax(logits[place], -1)[token]) for place, token in zip(places, label, strict=True)
    )


def expected_scores(prompter: Prompter, texts: list[str], shots: list[Example]) -> Any:
    """The scores by hand: log p(label | text) - log p(label | no text), the prompt written out."""
    shown = "".join(
        f"Text: {shot.text}\nLabel: {LABELS[shot.label or 0].replace('_', ' ')}\n\n" for shot in shots
    )
    encode = prompter.encoder
    prefix = [*encode.prefix, *encode_texts(encode, [shown + "Text:"])[0]]
    mark = encode_texts(encode, ["\nLabel:"])[0]
    longest = max(len(label) for label in prompter.label_ids)
    room = prompter.context - len(prefix) - len(mark) - longest
    assert room >= 5
    rows = []
    for text in texts:
        body = encode_texts(encode, [f" {text}"])[0][:room]
        rows.append(
            [
                log_likelihood(prompter, [*prefix, *body, *mark], label)
                - log_likelihood(prompter, [*prefix, *mark], label)
                for label in prompter.label_ids
            ]
        )
    return np.array(rows)


@each_family
@pytest.mark.parametrize("shots", [[], SHOTS], ids=["zero-shot", "few-shot"])
def test_the_cached_prefix_gives_the_scores_of_the_whole_text(family: str, shots: list[Example]) -> None:
    prompter = build(family)
    assert len({len(label) for label in prompter.label_ids}) > 1, "labels of one and of several tokens"
    scores = prompted_scores(prompter, TEXTS, shots, LABELS)
    assert scores.shape == (len(TEXTS), len(LABELS))
    assert np.abs(scores - expected_scores(prompter, TEXTS, shots)).max() < 1e-5
    assert scores[0].tolist() == scores[-1].tolist(), "a text's scores depend on its neighbors"
    assert np.ptp(scores, axis=0).min() > 1e-4, "the scores don't depend on the text"


@each_family
def test_labels_of_one_token_each_take_the_short_way_to_the_same_scores(family: str) -> None:
    prompter = build(family)
    short = Prompter(prompter.model, prompter.encoder, ((5,), (70,), (71,), (72,)), prompter.context)
    scores = prompted_scores(short, TEXTS, [], LABELS)
    assert np.abs(scores - expected_scores(short, TEXTS, [])).max() < 1e-5


def test_a_label_that_is_likely_anyway_has_no_advantage() -> None:
    """Adding a constant to the label's logit changes p(label | anything), and not its score."""
    prompter = build("gpt2")
    ids = ((5,), (70,), (71,), (72,))
    before = prompted_scores(Prompter(prompter.model, prompter.encoder, ids, 160), TEXTS[:3], [], LABELS)

    class Louder(torch.nn.Module):
        def forward(self, **given: Any) -> Any:
            out = prompter.model(**given)
            out.logits[..., 5] += 9.0
            return out

    after = prompted_scores(Prompter(Louder(), prompter.encoder, ids, 160), TEXTS[:3], [], LABELS)
    shift = (after - before) - (after - before)[:, 1:2]
    assert np.abs(shift).max() < 0.05, "9 nats were added to the label itself"


def test_a_prompt_never_outgrows_the_context() -> None:
    prompter = build("gpt2")
    seen: list[int] = []

    class Measured(torch.nn.Module):
        def forward(self, **given: Any) -> Any:
            cache = given.get("past_key_values")
            seen.append(given["input_ids"].shape[1] + (cache.get_seq_length() if cache is not None else 0))
            return prompter.model(**given)

    watched = Prompter(Measured(), prompter.encoder, prompter.label_ids, prompter.context)
    scores = prompted_scores(watched, ["the goal " * 200, "the goal " * 300], [], LABELS)
    assert max(seen) <= prompter.context == 160
    assert max(seen) >= 158, "the text is read as far as it fits"
    assert scores[0].tolist() == scores[1].tolist(), "the head is kept"


def test_rows_are_asked_together_only_where_none_has_to_be_padded() -> None:
    prompts = [[0] * length for length in [7, 3, 7, 7, 300, 3, 1]]
    few = prompted.rows_to_ask_together(prompts, prefix=200, labels=10)
    assert few == [[0], [2], [3], [1, 5], [4], [6]], "with ten labels two of 203 tokens fit, of 207 not"
    many = prompted.rows_to_ask_together(prompts, prefix=0, labels=2)
    assert many == [[0, 2, 3], [1, 5], [4], [6]]


# Which labels can be prompted.


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([f"topic {n}" for n in range(MOST_LABELS + 1)], "21 classes"),
        (["0", "1"], "bare numbers"),
        (["-1", "0", "1.5"], "bare numbers"),
        ([f"topic {n}" for n in range(MOST_LABELS)], None),
        (["0", "one"], None),
    ],
)
def test_labels_that_say_nothing_are_skipped_with_the_reason(labels: list[str], reason: str | None) -> None:
    said = why_not(labels)
    assert (said is None) == (reason is None)
    if reason is not None:
        assert said is not None
        assert reason in said


# The examples.


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    return build("llama")


def many(sizes: dict[int, int]) -> list[Example]:
    return [
        example(f"text {row} of {label} {'word ' * (row % 7)}", label, row)
        for label, size in sizes.items()
        for row in range(size)
    ]


def test_shots_are_balanced_fixed_by_the_seed_and_mixed(prompter: Prompter) -> None:
    train = many({0: 90, 1: 40, 2: 9, 3: 30})
    shots = choose_shots(train, LABELS, seed=0, room=10_000, encoder=prompter.encoder)
    assert Counter(shot.label for shot in shots) == dict.fromkeys(range(4), SHOTS_PER_LABEL)
    assert len({(shot.label, shot.row) for shot in shots}) == len(shots)
    assert shots == choose_shots(train, LABELS, seed=0, room=10_000, encoder=prompter.encoder)
    assert shots != choose_shots(train, LABELS, seed=1, room=10_000, encoder=prompter.encoder)
    labels = [shot.label for shot in shots]
    assert labels != sorted(labels, key=str), "the last label of an ordered prompt would win"


def test_shots_fill_the_room_and_no_more_in_rounds_over_all_labels(prompter: Prompter) -> None:
    train = many(dict.fromkeys(range(4), 20))
    encoder = prompter.encoder
    counts = []
    for room in (0, 60, 120, 240, 480):
        shots = choose_shots(train, LABELS, seed=0, room=room, encoder=encoder)
        texts = [
            f"Text: {shot.text}\nLabel: {LABELS[shot.label or 0].replace('_', ' ')}\n\n" for shot in shots
        ]
        assert sum(map(len, encode_texts(encoder, texts))) <= room
        assert len(set(Counter(shot.label for shot in shots).values())) <= 1
        counts.append(len(shots))
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] > counts[1]


def test_a_label_with_one_example_gives_it_and_the_others_go_on(prompter: Prompter) -> None:
    shots = choose_shots(many({0: 9, 1: 1, 2: 9}), LABELS, seed=0, room=10_000, encoder=prompter.encoder)
    assert Counter(shot.label for shot in shots) == {0: 4, 1: 1, 2: 4}
