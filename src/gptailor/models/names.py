"""From a name to files: where a base lies, which revision it is, how long it reads. No torch import.

Safetensors only: pickled weights can run code and are never fetched or opened.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptailor.errors import ModelError, did_you_mean

STARTER = Path(__file__).parent / "starter"
# What a base may bring. No pickles, no Python.
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
HUB_LEFT_OUT = ["*/*", "consolidated*"]  # the same weights again, in other tools' layouts


@dataclass(frozen=True, slots=True)
class Base:
    """A base that lies on this machine. `revision` is the hub's commit, or a hash of the weights."""

    name: str
    path: Path
    revision: str
    kind: Literal["starter", "folder", "run", "hub"]


def resolve_base(name: str, *, revision: str | None = None) -> Base:
    """Finds a base by name: `starter`, a run folder, a model folder, or a hub repository.

    Raises:
        ModelError: there is no such base, or it has no safetensors weights.
    """
    if name == "starter":
        return Base(name, STARTER, folder_hash(STARTER), "starter")
    if not name.strip():
        raise ModelError("the base has no name.", fix="Use --base starter (bundled), a folder or a hub name.")
    try:
        path = Path(name).expanduser()
        kinds = ((path / "model", "gptailor.json", "run"), (path, "config.json", "folder"))
        found = next(((folder, kind) for folder, mark, kind in kinds if (folder / mark).is_file()), None)
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # too long for the system, or ~somebody who isn't there
        raise ModelError(
            f"can't be a folder: {first_line(error)}", where=f"base {name[:80]!r}", fix="Check the name."
        ) from None
    if found is not None:
        folder, kind = found
        read_config_file(folder)
        return Base(name, folder, folder_hash(folder), kind)  # type: ignore[arg-type]
    if exists:
        raise ModelError(
            "is neither a model folder (no config.json) nor a finished run (no model/gptailor.json).",
            where=name,
            fix="Give the folder that holds config.json and model.safetensors.",
        )
    if name.count("/") > 1 or name.startswith((".", "~")):
        raise ModelError("there is no such folder.", where=name, fix="Check the path given with --base.")
    return _from_hub(name, revision)


def folder_hash(folder: Path) -> str:
    """SHA-256 over the names and bytes of a model folder's configuration, tokenizer and weights."""
    digest = hashlib.sha256()
    names = (
        *("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        *("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer.model"),
    )
    paths = [folder / name for name in names if (folder / name).is_file()]
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            "holds no safetensors weights (pickled weights can run code and are not loaded).",
            where=str(folder),
            fix="Convert them once with save_pretrained(..., safe_serialization=True).",
        )
    for path in [*paths, *weights]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def served_version(folder: Path) -> str:
    """The same with gptailor.json, where thresholds, templates and lengths stand: what answers depend on."""
    digest = hashlib.sha256(folder_hash(folder).encode())
    bundle = folder / "gptailor.json"
    if bundle.is_file():
        digest.update(bundle.read_bytes())
    return digest.hexdigest()


def read_config_file(folder: Path) -> dict[str, Any]:
    """The values of a model folder's config.json.

    Raises:
        ModelError: it can't be read, or isn't an object.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"can't be read: {first_line(error)}", where=str(path), fix="Get the base's files again."
        ) from None
    if not isinstance(values, dict):
        raise ModelError("is not an object.", where=str(path), fix="Get the base's files again.")
    return values


def _from_hub(name: str, revision: str | None) -> Base:
    from huggingface_hub import constants, snapshot_download

    constants.HF_HUB_DISABLE_TELEMETRY = True  # nothing phones home: it would tell versions and ask for more
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_LEFT_OUT
        )
    except Exception as error:  # besides its own errors, those of whatever HTTP library it uses
        reason = _hub_reason(error, revision)
        raise ModelError(
            f"can't be had from the Hugging Face hub: {reason}.{did_you_mean(name, ['starter'])}",
            where=f"base {name!r}",
            fix="Check the name and the network, or use --base starter (bundled) or a folder.",
        ) from None
    path = Path(folder)
    if not list(path.glob("*.safetensors")):
        raise ModelError(
            "has no safetensors weights at this revision (pickled weights are not loaded).",
            where=f"base {name!r}",
            fix="Choose a revision or a base with model.safetensors.",
        )
    return Base(name, path, path.name, "hub")


def _hub_reason(error: Exception, revision: str | None) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):  # a kind of the next one
        return "it is gated: accept its terms on its page there, then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "the hub can't be reached from here, and the base was not fetched before"
    return first_line(error).rstrip(".")


def context_length(config: Any) -> int:
    """The most tokens a base can read at once, from its configuration (an object or config.json's values)."""
    values = config if isinstance(config, dict) else vars(config) | config.to_dict()
    for key in ("max_position_embeddings", "n_positions", "n_ctx"):
        if values.get(key):
            return int(values[key])
    return 1024


def read_tokenizer_file(base: Base) -> tuple[Any, int]:
    """The base's tokenizers.Tokenizer and its context length, straight from the files where that can be.

    Raises:
        ModelError: the base has no tokenizer that can be read.
    """
    from tokenizers import Tokenizer

    try:
        if (base.path / "tokenizer.json").is_file():
            backend = Tokenizer.from_file(str(base.path / "tokenizer.json"))
        else:  # older ones have vocab.json and merges.txt, which take torch to be read
            from gptailor.models.load import load_tokenizer

            tokenizer: Any = load_tokenizer(base)
            backend = tokenizer.backend_tokenizer
        config = json.loads((base.path / "config.json").read_text(encoding="utf-8"))
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(
            f"its tokenizer.json or config.json can't be read: {first_line(error)}",
            where=f"base {base.name!r}",
            fix="Convert the tokenizer once with transformers and save it beside the weights.",
        ) from None
    return backend, context_length(config)


def first_line(error: BaseException) -> str:
    """The first line of an error that a library raised, for a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
