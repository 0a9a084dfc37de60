"""Zero-shot and few-shot: a plain language model answers by the likelihood of the label texts.

The score of a label is log p(label | prompt) - log p(label | prompt without the text), so that labels
which are likely anyway have no advantage (domain-conditional PMI: Holtzman et al. 2021, eq. 5).
The examples' prefix is run once and its key-value cache used again for every row. Rows of one length are
asked together: so none is padded, whatever the architecture makes of padding behind a cache.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import log_softmax

from gptailor.data.tokenize import Encoder, encode_texts
from gptailor.types import Example, FloatArray

MOST_LABELS = 20
SHOTS_PER_LABEL = 4
LONGEST_TEXT = 256  # tokens of a prompted text; its head is kept
TOKENS_PER_PASS = 2048  # of the texts that are asked together
MOST_CACHED = 4_096  # tokens in the caches of a pass, which holds one for each label of each text


@dataclass(frozen=True, slots=True)
class Prompter:
    """A language model with the label texts it chooses from."""

    model: Any
    encoder: Encoder
    label_ids: tuple[tuple[int, ...], ...]
    context: int


def why_not(label_names: Sequence[str]) -> str | None:
    """The reason why prompting makes no sense for these labels, or None."""
    if len(label_names) > MOST_LABELS:
        return f"{len(label_names)} classes are over {MOST_LABELS}"
    if all(name.replace(".", "", 1).lstrip("-").isdigit() for name in label_names):
        return "the labels are bare numbers without names (--label-names 0=...,1=...)"
    return None


def build_prompter(model: Any, encoder: Encoder, label_names: Sequence[str], *, context: int) -> Prompter:
    """Encodes the label texts as they stand after "Label:"."""
    texts = [f" {name.replace('_', ' ')}\n" for name in label_names]
    return Prompter(model, encoder, tuple(map(tuple, encode_texts(encoder, texts))), context)


def choose_shots(
    train: Sequence[Example], label_names: Sequence[str], *, seed: int, room: int, encoder: Encoder
) -> list[Example]:
    """At most four examples a class, short ones first of a random handful, as many as fit `room` tokens."""
    order = np.random.default_rng((seed, 4)).permutation(len(train))
    by_label: dict[int, list[Example]] = {label: [] for label in range(len(label_names))}
    for place in order:
        example = train[int(place)]
        if isinstance(example.label, int) and len(by_label[example.label]) < 4 * SHOTS_PER_LABEL:
            by_label[example.label].append(example)
    for candidates in by_label.values():
        candidates.sort(key=lambda example: len(example.text))
    shots: list[Example] = []
    for turn in range(SHOTS_PER_LABEL):
        round_of_shots = [c[turn] for c in by_label.values() if turn < len(c)]
        texts = [_shot_text(shot, label_names) for shot in shots + round_of_shots]
        if sum(map(len, encode_texts(encoder, texts))) > room:
            break
        shots.extend(round_of_shots)
    mixed = np.random.default_rng((seed, 5)).permutation(len(shots))
    return [shots[int(place)] for place in mixed]


def prompted_scores(
    prompter: Prompter, texts: Sequence[str], shots: Sequence[Example], label_names: Sequence[str]
) -> FloatArray:
    """(N, C) scores of every label for every text; the highest is the answer."""
    prefix_text = "".join(_shot_text(shot, label_names) for shot in shots)
    prefix = [*prompter.encoder.prefix, *encode_texts(prompter.encoder, [prefix_text + "Text:"])[0]]
    with torch.inference_mode():
        cache = prompter.model(input_ids=torch.tensor([prefix]), use_cache=True).past_key_values
        answer_mark = encode_texts(prompter.encoder, ["\nLabel:"])[0]
        neutral = _label_log_likelihoods(prompter, cache, [answer_mark])
        scores = np.empty((len(texts), len(prompter.label_ids)))
        bodies = encode_texts(prompter.encoder, [f" {text}" for text in texts])
        longest_label = max(map(len, prompter.label_ids))
        room = min(LONGEST_TEXT, prompter.context - len(prefix) - len(answer_mark) - longest_label)
        prompts = [[*ids[:room], *answer_mark] for ids in bodies]
        for rows in rows_to_ask_together(prompts, prefix=len(prefix), labels=len(prompter.label_ids)):
            asked = [prompts[row] for row in rows]
            scores[rows] = _label_log_likelihoods(prompter, cache, asked) - neutral
    return scores


def rows_to_ask_together(prompts: Sequence[Sequence[int]], *, prefix: int, labels: int) -> list[list[int]]:
    """Rows of one length, as many as a pass may hold."""
    by_length: dict[int, list[int]] = {}
    for row, ids in enumerate(prompts):
        by_length.setdefault(len(ids), []).append(row)
    found = []
    for length, rows in by_length.items():
        at_once = max(1, min(TOKENS_PER_PASS // length, MOST_CACHED // (labels * (prefix + length))))
        found += [rows[first : first + at_once] for first in range(0, len(rows), at_once)]
    return found


def _label_log_likelihoods(prompter: Prompter, cache: Any, prompts: Sequence[Sequence[int]]) -> FloatArray:
    """(B, C) log p(label | cached prefix, prompt), in nats, of prompts of one length."""
    labels = prompter.label_ids
    grown = copy.deepcopy(cache)
    grown.batch_repeat_interleave(len(prompts))
    out = prompter.model(input_ids=torch.tensor(prompts), past_key_values=grown, use_cache=True)
    first = log_softmax(out.logits[:, -1].double(), dim=-1)
    totals = first[:, [label[0] for label in labels]]
    longest = max(map(len, labels))
    if longest > 1:
        padded = torch.tensor([[*label, *[0] * (longest - len(label))] for label in labels])
        grown = out.past_key_values
        grown.batch_repeat_interleave(len(labels))
        logits = prompter.model(
            input_ids=padded[:, :-1].repeat(len(prompts), 1), past_key_values=grown, use_cache=True
        ).logits
        rest = log_softmax(logits.double(), dim=-1).view(len(prompts), len(labels), longest - 1, -1)
        for place, label in enumerate(labels):
            for at in range(1, len(label)):
                totals[:, place] += rest[:, place, at - 1, label[at]]
    return totals.numpy()


def _shot_text(shot: Example, label_names: Sequence[str]) -> str:
    label = label_names[shot.label if isinstance(shot.label, int) else 0]
    return f"Text: {shot.text}\nLabel: {label.replace('_', ' ')}\n\n"
