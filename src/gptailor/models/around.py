"""What a tokenizer puts around a text in other tools: what training put there, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from gptailor.data.tokenize import build_encoder
from gptailor.types import Bundle


def begin_token(tokenizer: Any, bundle: Bundle) -> int | None:
    """The token that every text began with in training, by the stored probes of a run whose answer is text.

    None where there was none, or where a chat's template wrote it, unless the tokenizer adds it anyway.
    """
    named = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    begin = next((token for token in named if token is not None), None)
    if begin is None or {probe["token_ids"][0] for probe in bundle.probes} != {begin}:
        return None
    by_template = bundle.form.get("prefix") == []
    return (
        None if by_template and build_encoder(tokenizer.backend_tokenizer, pad_id=0).prefix == () else begin
    )


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


def read_markers(folder: Path) -> str:
    """Makes the tokenizer in a folder read what its chat template writes as the tokens that training read.

    Transformers writes a conversation out and tokenizes that text. Returns a warning of what it can't tell.
    """
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps({**values, "split_special_tokens": False}, indent=2, ensure_ascii=False), encoding="utf-8"
    )
    return "a control token that a person writes out is read as one, unlike by `gptailor serve`"


def _added(folder: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What transformers' tokenizer puts before and after a text."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    encoder = build_encoder(tokenizer.backend_tokenizer, pad_id=0)
    return encoder.prefix, encoder.suffix
