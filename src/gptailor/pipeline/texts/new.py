"""A finished text run on new rows: what it answers, and how good that is where the answers are known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gptailor.data.feeder import Feeder
from gptailor.data.read import doubts, iterate_rows
from gptailor.data.roles import infer_roles
from gptailor.data.source import is_stream
from gptailor.errors import DataError, InputError
from gptailor.evaluate.language import PieceNats, text_scores
from gptailor.evaluate.metrics import as_json
from gptailor.evaluate.preference import right_shares, share_score
from gptailor.evaluate.resampling import ROWS, Resampling
from gptailor.evaluate.text_metrics import METRICS, TextAnswers, text_answer_scores
from gptailor.models.answerer import Answerer
from gptailor.models.approach import adapt_full
from gptailor.models.decode import Generated
from gptailor.models.load import load_trainable_language_model
from gptailor.models.sampling import Sampling, drawn_apart
from gptailor.pipeline.columns import joined, refuse_unknown_kept, value_of
from gptailor.pipeline.folder import base_of
from gptailor.pipeline.held_out import cut_note, noted
from gptailor.pipeline.slices import score_text_slices, slice_columns
from gptailor.pipeline.texts.answers import ALWAYS, samplings
from gptailor.pipeline.texts.objective import log_likelihoods, margins_as_trained, sequence_nats
from gptailor.pipeline.texts.rows import (
    as_taught,
    documents_of,
    read_texts,
    refuse_missing_columns,
    with_near,
    without_question,
)
from gptailor.pipeline.texts.tokens import TokenizedRow, sequences_of
from gptailor.tasks.chat_form import ChatForm
from gptailor.tasks.classification import refuse_unknown_slices
from gptailor.tasks.completion_form import CompletionForm
from gptailor.tasks.form import PlainForm, TextForm, TextRow
from gptailor.tasks.restore import restore_preference_form
from gptailor.types import IntArray, RawExample, RejectedRow, TokenizedExample

Ask = Callable[[RawExample], tuple[int, ...] | RejectedRow]

CHUNK = 256  # rows that are asked together
EVALUATED = 1000  # rows whose answers are written out; the likelihood is of all


def answer_file(
    answerer: Answerer,
    location: str,
    *,
    columns: str | None,
    needed: Sequence[str] = (),
    text: str | None,
    sampling: Sampling,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[RawExample | RejectedRow, str, Generated | None]]:
    """Each row of a file with its prompt and what is answered, in the file's order and in constant memory.

    Rows that can't be read or asked come with None, so that nothing is lost.

    Raises:
        DataError: the file lacks a column that is asked for.
    """
    rows = iterate_rows(location, columns=columns, say=say)
    ask: Ask | None = None
    before = 0  # rows
    while held := list(itertools.islice(rows, CHUNK)):
        readable = [row for row in held if not isinstance(row, RejectedRow)]
        if ask is None and readable:
            refuse_unknown_kept(needed, readable, where=location)
            ask = _asker(answerer, readable, text, where=location)
        fed = iter([ask(row) for row in readable] if ask is not None else ())
        asked = [row if isinstance(row, RejectedRow) else next(fed) for row in held]
        places = [place for place, one in enumerate(asked, before) if not isinstance(one, RejectedRow)]
        prompts = [one for one in asked if not isinstance(one, RejectedRow)]
        answers = iter(answerer.answer(prompts, [drawn_apart(sampling, place) for place in places]))
        before += len(held)
        for row, ids in zip(held, asked, strict=True):
            if isinstance(ids, RejectedRow):
                yield replace(ids, fields=row.fields), "", None
            else:
                yield row, answerer.decode(ids), next(answers)


def evaluate_texts(
    answerer: Answerer,
    location: str,
    *,
    target: str | None,
    columns: str | None,
    slices: Sequence[str] = (),
    near_seed: int | None = None,
    resampling: Resampling = ROWS,
    note_of: Callable[[Iterable[tuple[int, str]]], str] = lambda _: "",
) -> dict[str, Any]:
    """Scores a run on new rows with known answers: the likelihood of all, and answers written to some.

    `note_of` says what is to be known of the rows, as `as_taught` writes them. With `near_seed` intervals
    draw near-duplicates among the rows together; the seed is that of the search for them.

    Raises:
        DataError: there is no row with a prompt and an answer.
    """
    file = read_texts(location, target, columns)
    refuse_unknown_slices(slices, file.columns, file=location)
    refuse_missing_columns(answerer.form, file.columns, where=location)
    found = [answerer.form.read(row) for row in file.rows]
    group = answerer.bundle.form.get("group") or None  # the column that training kept together
    rows = [
        replace(
            row,
            together=value_of(raw, group),
            slices=tuple((column, raw.fields.get(column, "")) for column in slices),
        )
        for raw, row in zip(file.rows, found, strict=True)
        if not isinstance(row, RejectedRow)
    ]
    if not rows:
        faults = [row for row in found if isinstance(row, RejectedRow)][:3]
        told = "\n".join(["has no row with a prompt and an answer.", *(f"  {f.detail}" for f in faults)])
        raise DataError(told, where=location, fix="Name its columns as in training.")
    if answerer.bundle.form.get("one_question"):
        rows = without_question(rows)
    if near_seed is not None:
        rows = with_near(rows, near_seed)
    nats, used, lengths, cut = _nats(answerer, rows)
    scores: dict[str, Any] = as_json(text_scores(nats, resampling=resampling))
    own = answerer.bundle.form.get("metrics") or answerer.form.metrics
    names = [name for name in dict.fromkeys((*own, *ALWAYS)) if name in METRICS]
    chosen = _first_of_each(rows)
    prompts = answerer.feeder.feed([row.prompt for row, _ in chosen])
    asked = [(ids, row, references) for ids, (row, references) in zip(prompts, chosen, strict=True) if ids]
    if asked:
        usual = samplings(answerer.usual, [row for _, row, _ in asked])
        made = answerer.answer([ids for ids, _, _ in asked], usual)
        answers = TextAnswers(
            [one.text.strip() for one in made],
            [references for _, _, references in asked],
            [one.finished == "stop" for one in made],
        )
        drawn = replace(resampling, groups=documents_of([row for _, row, _ in asked]))
        scores = {**as_json(text_answer_scores(answers, metrics=names, resampling=drawn)), **scores}
    few = replace(resampling, groups=documents_of(used)).caveat(len(used))
    read = len(file.rows) + len(file.rejected)
    return {
        "file": location,
        "read": read,
        "rows": len(used),
        "answers": len(asked),
        "left_out": read - len(used),
        "truncated": cut,
        "scores": scores,
        "slices": score_text_slices(
            nats, lengths=lengths, columns=slice_columns(used), resampling=resampling
        ),
        **noted(doubts(location, file.notes), note_of(enumerate(map(as_taught, used))), cut_note(cut), few),
    }


def evaluate_preferences(
    answerer: Answerer,
    location: str,
    *,
    columns: str | None,
    near_seed: int | None = None,
    resampling: Resampling = ROWS,
    note_of: Callable[[Iterable[tuple[int, str]]], str] = lambda _: "",
) -> dict[str, Any]:
    """How often a preference run ranks the chosen answers of new rows first, as its report measured it.

    `near_seed` and `note_of` as for `evaluate_texts`.

    Raises:
        DataError: there is no row with two answers.
        ModelError: the base the run began with can't be found any more.
    """
    state, chat = answerer.bundle.form, answerer.form
    assert isinstance(chat, ChatForm)
    form = restore_preference_form(state, chat)
    file = read_texts(location, None, columns)
    group = state.get("group") or None  # the column that training kept together
    read_rows = ((raw, form.read(raw)) for raw in file.rows)
    rows = [
        replace(row, together=value_of(raw, group))
        for raw, row in read_rows
        if not isinstance(row, RejectedRow)
    ]
    if state.get("one_question"):
        rows = without_question(rows)
    if near_seed is not None:
        rows = with_near(rows, near_seed)
    pairs = [pair for row in rows if (pair := _pair(answerer, row)) is not None]
    if not pairs:
        fix = "Name its columns as in training."
        raise DataError("has no row with a prompt and two answers that fit.", where=location, fix=fix)
    ours = log_likelihoods(adapt_full(answerer.model), pairs)
    reference = None
    if state["loss"] != "simpo" and answerer.bundle.approach != "scratch":
        base = base_of(answerer.bundle)  # what preferences are measured against
        before = adapt_full(load_trainable_language_model(base, answerer.tokenizer))
        reference = log_likelihoods(before, pairs)
    margins = margins_as_trained(state["loss"], ours, reference, pairs)
    drawn = replace(resampling, groups=documents_of([pair.row for pair in pairs]))
    score = share_score(right_shares(margins), resampling=drawn)
    read = len(file.rows) + len(file.rejected)
    cut = sum(pair.cut > 0 for pair in pairs)
    return {
        "file": location,
        "read": read,
        "rows": len(pairs),
        "answers": 0,
        "left_out": read - len(pairs),
        "truncated": cut,
        "scores": as_json({"preference_accuracy": score}),
        **noted(
            doubts(location, file.notes),
            note_of(enumerate(as_taught(pair.row) for pair in pairs)),
            cut_note(cut),
            drawn.caveat(len(pairs)),
        ),
    }


def _pair(answerer: Answerer, row: TextRow) -> TokenizedRow | None:
    """Both answers behind their prompt; None where one doesn't fit."""
    learned = list(answerer.feeder.learn(sequences_of(row)))
    if not all(encoded.learn[1:].any() for encoded, _ in learned):
        return None
    sequences = tuple(
        TokenizedExample(one.token_ids, one.learn, row.source, row.row, cut=cut) for one, cut in learned
    )
    return TokenizedRow(row, sequences, None)


def _first_of_each(rows: list[TextRow]) -> list[tuple[TextRow, tuple[str, ...]]]:
    """Each question once, with all answers that are right; at most so many, evenly spread."""
    known: dict[str, dict[str, None]] = {}
    first: dict[str, TextRow] = {}
    for number, row in enumerate(rows):
        key = row.asked or str(number)
        first.setdefault(key, row)
        known.setdefault(key, {}).update(dict.fromkeys(row.references))
    keys = list(first)
    if len(keys) > EVALUATED:
        places = np.linspace(0, len(keys) - 1, EVALUATED).round().astype(int)
        keys = [keys[place] for place in places.tolist()]
    return [(first[key], tuple(known[key])) for key in keys]


def _nats(answerer: Answerer, rows: list[TextRow]) -> tuple[PieceNats, list[TextRow], IntArray, int]:
    """What the answers cost, the M rows that have one that fits, (M,) tokens before the answer, and of how
    many of these rows something wasn't read.
    """
    feeder: Feeder = answerer.feeder
    owners, sequences = [], []
    cut = set()
    flat = [(place, example.segments) for place, row in enumerate(rows) for example in row.sequences]
    learned = feeder.learn([segments for _, segments in flat])
    for (place, _), (encoded, lost) in zip(flat, learned, strict=True):
        if encoded.learn[1:].any():
            owners.append(place)
            row = rows[place]
            if lost or row.left_out:
                cut.add(place)
            sequences.append(TokenizedExample(encoded.token_ids, encoded.learn, row.source, row.row))
    if not sequences:
        raise DataError(
            f"no answer begins within {answerer.max_tokens} tokens, the longest that the run reads.",
            where=rows[0].source,
            fix="Give shorter rows, or fit again with a larger data.max_tokens.",
        )
    nats, tokens = sequence_nats(adapt_full(answerer.model), sequences)
    used, owner = np.unique(owners, return_inverse=True)
    sizes = [len(answerer.text_behind(one.token_ids[one.learn].tolist()).encode()) for one in sequences]
    pieces = PieceNats(
        np.bincount(owner, nats).astype(np.float64),
        np.bincount(owner, tokens).astype(np.int64),
        np.bincount(owner, sizes).astype(np.int64),
        documents_of(chosen := [rows[place] for place in used.tolist()]),
    )
    before = np.bincount(owner, [int((~one.learn).sum()) for one in sequences]).astype(np.int64)
    return pieces, chosen, before, len(cut)


def _takes_one_text(form: TextForm) -> bool:
    """Whether a line is asked as an --input text is, and isn't a column that the form reads."""
    if isinstance(form, ChatForm):
        return form.roles.turns != "text"
    if isinstance(form, CompletionForm):
        needed = [column for column in form.roles.inputs if column != form.roles.template.optional]
        return len(needed) < 2 and "text" not in form.roles.inputs
    return True


def _asker(answerer: Answerer, rows: Sequence[RawExample], text: str | None, *, where: str) -> Ask:
    """How rows like these become token ids: by the run's template, or by a column as a text by itself."""
    columns = list(dict.fromkeys(name for row in rows for name in row.fields))
    by_line = is_stream(where) and columns == ["text"] and _takes_one_text(answerer.form)
    if text is None and not by_line and not isinstance(answerer.form, PlainForm):
        refuse_missing_columns(answerer.form, columns, where=where)
        turns = answerer.form.roles.turns if isinstance(answerer.form, ChatForm) else ""
        if turns and turns not in columns:
            told = ", ".join(columns)
            raise DataError(
                f"there is no column {turns!r}, which held the conversations in training; it has {told}.",
                where=where,
                fix="Name the column of what is asked with --text COLUMN.",
            )
        return answerer.feed_row
    column = text or ("text" if "text" in columns else None)
    chosen = infer_roles(columns, rows, text=column, label=None, need_label=False).text

    def ask(row: RawExample) -> tuple[int, ...] | RejectedRow:
        try:
            return answerer.feed_text(joined(row, chosen))
        except InputError as error:
            return RejectedRow(row.source, row.row, "no_text", error.what)

    return ask
