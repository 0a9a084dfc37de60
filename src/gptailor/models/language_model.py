"""A language model in memory, to weigh texts with: its tokens as training saw them, and its output layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptailor.data.tokenize import build_encoder
from gptailor.models.bundle import read_writing_bundle
from gptailor.models.load import load_saved_language_model, load_tokenizer, output_layer
from gptailor.models.names import Base


class LanguageModel:
    """A loaded language model. Immutable after loading; used from one thread at a time."""

    def __init__(self, folder: Path, *, block: int, clean: Mapping[str, bool]) -> None:
        self.block = block  # tokens, as long as training's
        self.clean = dict(clean)
        self.tokenizer: Any = load_tokenizer(Base(folder.name, folder, "", "folder"))
        self.encoder = build_encoder(self.tokenizer.backend_tokenizer, pad_id=self.tokenizer.pad_token_id)
        self.model = load_saved_language_model(folder)
        self.head = output_layer(self.model)
        end = self.tokenizer.eos_token_id
        self.end = int(self.tokenizer.bos_token_id if end is None else end)
        begin = self.tokenizer.bos_token_id
        self.begin = int(self.end if begin is None else begin)


def open_language_model(run: Path) -> LanguageModel:
    """The language model of a run folder or a model folder.

    Raises:
        ModelError: it isn't a finished run, or is a classifier.
    """
    bundle = read_writing_bundle(run)
    return LanguageModel(bundle.path, block=bundle.max_tokens, clean=bundle.clean)
