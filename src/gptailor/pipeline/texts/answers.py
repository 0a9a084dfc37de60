"""Answers written on fixed rows, by the model and by what is simpler: the ladder of the text tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gptailor.errors import ModelError
from gptailor.evaluate.text_baselines import copy, lead, nearest
from gptailor.evaluate.text_metrics import METRICS, TextAnswers
from gptailor.models.generate import generate
from gptailor.models.load import load_language_model
from gptailor.models.sampling import Sampling
from gptailor.pipeline.texts.shop import TextShop
from gptailor.pipeline.texts.tokens import TokenizedRow
from gptailor.recipe import ScratchApproach
from gptailor.tasks.completion_form import CompletionForm
from gptailor.tasks.form import TextRow
from gptailor.types import Part, Segment

VALIDATION_SHARE = 2  # one validation row is answered for so many test rows: it only chooses the baseline
QUICK_SHARE = 6  # writing an answer costs more than choosing a label, so fewer rows are asked
MOST_SHOTS = 4
PROMPTED = ("zero_shot", "few_shot")  # rungs that the base as it came writes
ALWAYS = ("stop_rate", "distinct_2", "repetition", "length_ratio")  # told of every model that writes


@dataclass(frozen=True, slots=True)
class Sample:
    """The rows of a part whose answers are written out, each question once, with every right answer."""

    rows: tuple[TokenizedRow, ...]
    references: tuple[tuple[str, ...], ...]

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        return [row.prompt_ids or () for row in self.rows]


@dataclass(frozen=True, slots=True)
class Written:
    """Answers to a sample, or to its first rows, and whether each ended by itself."""

    texts: tuple[str, ...]
    stopped: tuple[bool, ...]

    @property
    def stop_share(self) -> float:
        """The share that ended by itself."""
        return sum(self.stopped) / len(self.stopped)

    def first(self, size: int) -> Written:
        """The answers to the first rows."""
        return Written(self.texts[:size], self.stopped[:size])

    def beside(self, sample: Sample) -> TextAnswers:
        """The answers with the references of their rows."""
        return TextAnswers(self.texts, sample.references[: len(self.texts)], self.stopped)


@dataclass(frozen=True, slots=True)
class Rung:
    """A simpler means: its answers on validation and test; or why it was left out."""

    validation: Written | None = None
    test: Written | None = None
    skipped: str = ""


def choose_sample(shop: TextShop, part: Part, most: int) -> Sample:
    """Rows drawn from the seed, one for each question; those without room for an answer are left out."""
    known: dict[str, dict[str, None]] = {}
    first: dict[str, TokenizedRow] = {}
    for number, row in enumerate(shop.tokens.rows[part]):
        key = row.row.asked or str(number)
        known.setdefault(key, {}).update(dict.fromkeys(row.row.references))
        if row.prompt_ids is not None:
            first.setdefault(key, row)
    order = np.random.default_rng((shop.recipe.seed, 5)).permutation(len(first))[:most]
    keys = list(first)
    chosen = [keys[place] for place in order.tolist()]
    return Sample(tuple(first[key] for key in chosen), tuple(tuple(known[key]) for key in chosen))


def samplings(usual: Sampling, rows: Sequence[TextRow], *, seed: int = 0) -> list[Sampling]:
    """How each row is answered: as usual, but where nothing is asked drawn, with a seed for each.

    From nothing the likeliest answer is always the same, and its scores would be those of one text.
    """
    return [
        usual if row.asked else replace(usual, temperature=1.0, seed=seed + place)
        for place, row in enumerate(rows)
    ]


def metric_names(shop: TextShop) -> tuple[str, ...]:
    """The scores of written answers, the form's own first."""
    names = dict.fromkeys((*shop.metrics, *ALWAYS))
    return tuple(name for name in names if name in METRICS)


def climb(
    shop: TextShop,
    samples: Mapping[Part, Sample],
    *,
    scratch: bool,
    no_repeat: int,
    say: Callable[[str], None],
) -> dict[str, Rung]:
    """Every rung of the ladder, on the same rows; what writes may repeat itself as little as our model."""
    mode = shop.recipe.evaluate.baselines
    if mode == "none":
        return {}
    if not any(row.row.given for row in samples["test"].rows):
        return {}  # nothing is asked, so nothing can be copied or looked up
    train = shop.tokens.rows["train"]
    asked, answers = [row.row.asked for row in train], [row.row.references[0] for row in train]
    simple: dict[str, Callable[[Sample], list[str]]] = {
        "copy": lambda sample: copy([row.row.given for row in sample.rows]),
        "lead": lambda sample: lead([row.row.given for row in sample.rows]),
        "nearest": lambda sample: nearest(
            [row.row.asked for row in sample.rows], train_prompts=asked, train_answers=answers
        ),
    }
    rungs = {
        name: _rung({part: make(sample) for part, sample in samples.items()}) for name, make in simple.items()
    }
    whole = mode == "all"
    asked_base = prompted(shop, samples, whole=whole, scratch=scratch, no_repeat=no_repeat, say=say)
    return {**rungs, **asked_base}


def prompted(
    shop: TextShop,
    samples: Mapping[Part, Sample],
    *,
    whole: bool,
    scratch: bool,
    no_repeat: int,
    say: Callable[[str], None],
) -> dict[str, Rung]:
    """The base as it came, asked with and without examples. It may stop at a line's end, as answers do."""
    if scratch:
        return {name: Rung(skipped="trained from scratch") for name in PROMPTED}
    try:
        model = load_language_model(shop.base)
    except ModelError as error:
        return {name: Rung(skipped=f"the base {error.what}") for name in PROMPTED}
    model.to(shop.environment["device"])
    shots = choose_shots(shop)
    say(f"baselines: the base as it came, without and with {len(shots)} examples")
    rungs = {}
    for name, examples in zip(PROMPTED, ((), tuple(shots)), strict=True):
        found: dict[Part, Written] = {}
        for part, sample in samples.items():
            limit = len(sample.rows) if whole else shop.recipe.evaluate.prompted_rows // QUICK_SHARE
            first = replace(sample, rows=sample.rows[:limit])
            found[part] = _ask(shop, model, first, examples, no_repeat=no_repeat)
        rungs[name] = Rung(found["validation"], found["test"])
    return rungs


def choose_shots(shop: TextShop) -> list[TokenizedRow]:
    """Short training rows of a random handful, as many as leave room for the longest question and answer."""
    train = shop.tokens.rows["train"]
    order = np.random.default_rng((shop.recipe.seed, 4)).permutation(len(train))[: 8 * MOST_SHOTS]
    handful = sorted((train[place] for place in order.tolist()), key=_size)
    room = shop.text.context - shop.feeder.max_tokens
    room = max(room, shop.feeder.max_tokens // 2)
    chosen: list[TokenizedRow] = []
    for row in handful[:MOST_SHOTS]:
        if sum(map(_size, chosen)) + _size(row) <= room:
            chosen.append(row)
    return chosen


def _ask(
    shop: TextShop, model: Any, sample: Sample, shots: Sequence[TokenizedRow], *, no_repeat: int
) -> Written:
    """What the base writes. A prompt that has no room left loses examples, not its question."""
    lines = all("\n" not in row.row.references[0].strip() for row in shop.tokens.rows["train"][:200])
    longest = shop.max_new_tokens
    prompts = []
    for row in sample.rows:
        ids = row.prompt_ids or ()
        used = list(shots)
        while used and sum(map(_size, used)) + len(ids) + longest > shop.text.context:
            used.pop()
        prompts.append(_with_shots(shop, row, used) or ids or shop.text.prefix)
    made = generate(
        model,
        prompts,
        # A base that wasn't trained on the template may begin with an empty line.
        Sampling(
            max_new_tokens=longest,
            no_repeat=no_repeat,
            stop=("\n",) if lines else (),
            stop_after_text=True,
        ),
        decode=shop.decode,
        end=shop.end_ids,
        pad=0,
    )
    return Written(tuple(one.text.strip() for one in made), tuple(one.finished == "stop" for one in made))


def _with_shots(shop: TextShop, row: TokenizedRow, shots: Sequence[TokenizedRow]) -> tuple[int, ...]:
    """The prompt behind its examples: turns of the same chat, or paragraphs."""
    if not shots:
        return ()
    between = Segment("\n\n", learn=False)
    segments: list[Segment] = []
    for shot in shots:
        [example, *_] = shot.row.sequences
        if isinstance(shop.form, CompletionForm):
            segments += [*(s for s in example.segments if not s.markers), between]
        else:
            segments += example.segments
    plain = [replace(segment, learn=False) for segment in (*segments, *row.row.prompt)]
    [ids] = replace(shop.feeder, max_tokens=shop.text.context, reserve=shop.max_new_tokens).feed([plain])
    return ids or ()


def _rung(texts: Mapping[Part, Sequence[str]]) -> Rung:
    found = {
        part: Written(tuple(text.strip() for text in ones), (True,) * len(ones))
        for part, ones in texts.items()
    }
    return Rung(found["validation"], found["test"])


def _size(row: TokenizedRow) -> int:
    return len(row.sequences[0].token_ids)


def is_scratch(approach: Any) -> bool:
    """Whether there is no base to compare with."""
    return isinstance(approach, ScratchApproach)
