"""What a tokenizer puts around a text in other tools: what training put there, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from gptailor.data.tokenize import build_encoder


def begin_token(tokenizer: Any, probes: Sequence[Mapping[str, Any]]) -> int | None:
    """The token that every text began with in training, by the stored probes of a run whose answer is text.

    None where there was none, as in chats, whose template writes what they begin with.
    """
    named = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    begin = next((token for token in named if token is not None), None)
    return begin if begin is not None and {probe["token_ids"][0] for probe in probes} == {begin} else None


def add_only(folder: Path, begin: int | None) -> str | None:
    """Makes the tokenizer in a folder add the begin token before a text, or nothing, and nothing after it.

    A base's tokenizer may end each text with a token that a classifier reads; a prompt would be over with it.
    Returns a warning where transformers adds something else whatever the file says.
    """
    path = folder / "tokenizer.json"
    wanted = () if begin is None else (begin,)
    if _added(folder) != (wanted, ()):
        backend: Any = Tokenizer.from_file(str(path))
        token = None if begin is None else backend.id_to_token(begin)
        backend.post_processor = TemplateProcessing(
            single="$A" if token is None else f"{token} $A",
            special_tokens=[] if token is None else [(token, begin)],
        )
        backend.save(str(path))
    if _added(folder) == (wanted, ()):
        return None
    return "the tokenizer puts other tokens around a text than training did: use add_special_tokens=False"


def _added(folder: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What transformers' tokenizer puts before and after a text."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    encoder = build_encoder(tokenizer.backend_tokenizer, pad_id=0)
    return encoder.prefix, encoder.suffix
