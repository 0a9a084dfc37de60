"""A finished language run on a new text: what the text costs it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptailor.data.blocks import num_blocks
from gptailor.data.read import is_doubt
from gptailor.errors import DataError
from gptailor.evaluate.language import of_how_few, piece_nats, text_scores
from gptailor.evaluate.metrics import as_json
from gptailor.evaluate.resampling import ROWS, Resampling
from gptailor.models.language_model import LanguageModel
from gptailor.pipeline.documents_split import all_in, numbered_pieces
from gptailor.pipeline.documents_survey import survey
from gptailor.pipeline.documents_tokens import write_store
from gptailor.pipeline.held_out import noted
from gptailor.recipe import CleanSettings, DataSettings, SplitSettings


def evaluate_language(
    language_model: LanguageModel,
    location: str,
    *,
    text: str | None = None,
    columns: str | None = None,
    separator: str | None = None,
    group: str | None = None,
    near_seed: int | None = None,
    resampling: Resampling = ROWS,
    note_of: Callable[[Iterable[tuple[int, str]]], str] = lambda _: "",
) -> dict[str, Any]:
    """Bits per byte and perplexity of a new text, in blocks as long as training's, with intervals.

    With `near_seed` near-duplicate documents are drawn together; the seed is that of the search for them.
    `note_of` says what is to be known of the text, given each piece with the number of its document.

    Raises:
        DataError: there is no text.
    """
    clean = CleanSettings(**{key: on for key, on in language_model.clean.items() if key != "squeeze_space"})
    settings = DataSettings(
        train=location,
        text=text,
        columns=columns,
        separator=separator,
        clean=clean,
        split=SplitSettings(group=group),
    )
    documents = survey(location, settings, columns=columns)
    file = all_in(documents, "test", settings, near_seed=near_seed)
    if (file.parts < 0).all():
        raise DataError("holds no text.", where=location, fix="Give a file with text.")
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(
            file,
            language_model.encoder,
            Path(folder),
            settings=settings,
            vocabulary=len(language_model.tokenizer),
            ends=(language_model.begin, language_model.end),
        )
        length = language_model.block
        blocks = range(num_blocks(store, length))
        pieces = piece_nats(language_model.model, language_model.head, store, length=length, blocks=blocks)
        drawn = replace(pieces, documents=file.together[pieces.documents])
        scores = text_scores(drawn, resampling=resampling)
        total = {"tokens": int(pieces.tokens.sum()), "bytes": int(pieces.bytes.sum())}
        del store  # on some platforms a mapped file can't be removed
    read = len(documents.row_of) + len(documents.rejected)
    guesses = filter(is_doubt, documents.notes)
    used = len(documents.row_of) - len(file.reasons)
    return {
        "file": location,
        "read": read,
        "rows": used,
        "left_out": read - used,
        **total,
        "block_tokens": length,
        "scores": as_json(scores),
        **noted(guesses, note_of(numbered_pieces(file, settings, "test")), of_how_few(drawn)),
    }
