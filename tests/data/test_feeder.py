"""What the model reads of a prompt and its answer: no answer in part, and what is left out is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from gptailor.data.feeder import Feeder, PromptIds
from gptailor.data.segments import SegmentEncoder, build_segment_encoder, encode_segments
from gptailor.types import Segment

LONGEST, RESERVE, BEGIN = 24, 8, 1
WORD = "cup "


@pytest.fixture(scope="module")
def encoder() -> SegmentEncoder:
    tokenizer: Any = tiny.build_tokenizer("gpt2")
    return build_segment_encoder(tokenizer.backend_tokenizer)


def feeder(encoder: SegmentEncoder, *, chat: bool = False) -> Feeder:
    return Feeder(encoder, () if chat else (BEGIN,), LONGEST, RESERVE, chat=chat)


def turns(*sizes: int) -> list[Segment]:
    """Questions and answers in turn, of so many words each."""
    return [Segment(WORD * size, learn=place % 2 == 1) for place, size in enumerate(sizes)]


def size_of(encoder: SegmentEncoder, segments: list[Segment]) -> int:
    (encoded,) = encode_segments(encoder, [segments], prefix=())
    return len(encoded.token_ids)


def test_an_answer_is_learned_whole_or_not_at_all(encoder: SegmentEncoder) -> None:
    made = feeder(encoder)
    asked = 1 + size_of(encoder, turns(2))
    fits, long = turns(2, 2), turns(2, LONGEST)
    (whole, none), (cut, lost) = made.learn([fits, long], whole=True)
    assert (len(whole.token_ids), none) == (1 + size_of(encoder, fits), 0)
    assert (len(cut.token_ids), lost) == (0, 1 + size_of(encoder, long))
    [(held_out, left)] = made.learn([long])  # of what is only scored the beginning is scored
    assert (len(held_out.token_ids), left) == (LONGEST, lost - LONGEST)
    assert held_out.learn.sum() == LONGEST - asked


@settings(max_examples=60, deadline=None, database=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=2, max_size=8))
def test_a_conversation_ends_with_its_last_whole_answer(encoder: SegmentEncoder, sizes: list[int]) -> None:
    said = turns(*sizes)
    [(kept, lost)] = feeder(encoder, chat=True).learn([said], whole=True)
    assert len(kept.token_ids) + lost == size_of(encoder, said)
    ends = [size_of(encoder, said[: place + 1]) for place in range(1, len(said), 2)]
    fitting = [end for end in ends if end <= LONGEST]
    if size_of(encoder, said) <= LONGEST:
        assert lost == 0
    else:
        assert len(kept.token_ids) == max(fitting, default=0)
        assert not len(kept.learn) or kept.learn[-1]


def test_a_text_that_answers_nothing_keeps_its_beginning(encoder: SegmentEncoder) -> None:
    [(kept, lost)] = feeder(encoder).learn([[Segment(WORD * LONGEST, learn=True)]], whole=True)
    assert len(kept.token_ids) == LONGEST
    assert lost > 0
    assert kept.learn.tolist() == [False] + [True] * (LONGEST - 1)


def test_what_a_prompt_lacks_is_counted(encoder: SegmentEncoder) -> None:
    room = LONGEST - RESERVE
    long = [Segment(WORD * LONGEST, learn=False)]
    window = [Segment(WORD, learn=False, left_out=300)]
    cut, narrowed, short = feeder(encoder).feed([long, window, [Segment(WORD, learn=False)]])
    assert cut is not None
    assert narrowed is not None
    assert short is not None
    assert (len(cut), cut.left_out) == (room, 1 + size_of(encoder, long) - room)
    assert (narrowed.left_out, short.left_out) == (300, 0)
    assert narrowed == short, "the ids are the same"
    assert feeder(encoder, chat=True).feed([long]) == [None]
    assert isinstance(cut, PromptIds)
    assert np.array_equal(cut, (BEGIN, *cut[1:]))
