"""What can be a base: what lies on this machine, and the common names of the hub. No network, no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from gptailor.errors import ModelError
from gptailor.models.names import HUB_LEFT_OUT, STARTER, Base, context_length, first_line, read_config_file
from gptailor.report.facts import bytes_text

Source = Literal["starter", "run", "cache", "hub"]
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")  # how transformers names their architectures
# A weight has three dimensions at most. Old files hold GPT's attention masks beside them, in four.
MOST_DIMENSIONS = 3
STARTER_LICENSE = "CC BY-SA 4.0 (see LICENSE.md of the starter)"
OWN_LICENSE = "yours to choose, within what its data allow (trained from scratch)"


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A base that `--base NAME` takes. `context` is in tokens, `stored_bytes` what lies on the disk here."""

    name: str
    source: Source
    parameters: int
    context: int
    license: str
    stored_bytes: int | None = None  # None: not on this machine
    gated: bool = False  # the hub asks to log in and accept terms first
    also: str = ""  # a shorter name that the hub takes, too
    note: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that looks like a base and can't be one, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Catalog:
    """What can be had without a network, common names of the hub, and what was found but can't be used."""

    offline: list[CatalogEntry]
    hub: list[CatalogEntry]
    left_out: list[LeftOut]


def _common(
    name: str, parameters: int, context: int, license_name: str, *, gated: bool = False, also: str = ""
) -> CatalogEntry:
    return CatalogEntry(name, "hub", parameters, context, license_name, gated=gated, also=also)


# Pretrained, not instruction-tuned: what a fine-tune starts from. Parameters are counted from each
# config.json with tied embeddings counted once; context is its max_position_embeddings (n_positions);
# licences and gates are those of the model cards. Only bases that read nothing but text.
COMMON: tuple[CatalogEntry, ...] = (
    _common("distilbert/distilgpt2", 81_912_576, 1024, "Apache-2.0", also="distilgpt2"),
    _common("openai-community/gpt2", 124_439_808, 1024, "MIT", also="gpt2"),
    _common("openai-community/gpt2-medium", 354_823_168, 1024, "MIT", also="gpt2-medium"),
    _common("openai-community/gpt2-large", 774_030_080, 1024, "MIT", also="gpt2-large"),
    _common("openai-community/gpt2-xl", 1_557_611_200, 1024, "MIT", also="gpt2-xl"),
    _common("EleutherAI/gpt-neo-125m", 125_198_592, 2048, "MIT"),
    _common("EleutherAI/gpt-neo-1.3B", 1_315_575_808, 2048, "MIT"),
    _common("EleutherAI/gpt-neo-2.7B", 2_651_307_520, 2048, "MIT"),
    _common("EleutherAI/pythia-160m", 162_322_944, 2048, "Apache-2.0"),
    _common("HuggingFaceTB/SmolLM2-135M", 134_515_008, 8192, "Apache-2.0"),
    _common("HuggingFaceTB/SmolLM2-360M", 361_821_120, 8192, "Apache-2.0"),
    _common("HuggingFaceTB/SmolLM2-1.7B", 1_711_376_384, 8192, "Apache-2.0"),
    _common("Qwen/Qwen3-0.6B-Base", 596_049_920, 32_768, "Apache-2.0"),
    _common("Qwen/Qwen3-1.7B-Base", 1_720_574_976, 32_768, "Apache-2.0"),
    _common("meta-llama/Llama-3.2-1B", 1_235_814_400, 131_072, "Llama 3.2 Community", gated=True),
    _common("meta-llama/Llama-3.2-3B", 3_212_749_824, 131_072, "Llama 3.2 Community", gated=True),
    _common("google/gemma-3-270m", 268_098_176, 32_768, "Gemma", gated=True),
    _common("google/gemma-3-1b-pt", 999_885_952, 32_768, "Gemma", gated=True),
)


def read_catalog(*, runs: Path = Path("runs"), hub_cache: Path | None = None) -> Catalog:
    """Looks through the disk: the starter, finished runs, and what the hub's cache holds.

    Args:
        runs: The folder whose run folders are listed.
        hub_cache: Where huggingface_hub keeps repositories; None asks it (HF_HUB_CACHE, HF_HOME).
    """
    offline: list[CatalogEntry] = []
    left_out: list[LeftOut] = []
    found = [_starter(), *_runs(runs), *_cached(hub_cache or _hub_cache())]
    for entry in found:
        if isinstance(entry, CatalogEntry):
            offline.append(entry)
        else:
            left_out.append(entry)
    here = {entry.name: entry.stored_bytes for entry in offline if entry.source == "cache"}
    hub = [replace(c, stored_bytes=here.get(c.name, here.get(c.also or c.name))) for c in COMMON]
    return Catalog(offline, hub, left_out)


def in_words(entry: CatalogEntry) -> str:
    """`124 M parameters, 548.1 MB, context 1,024, MIT`: one line of the list, without the name."""
    words = [f"{parameters_text(entry.parameters)} parameters"]
    if entry.source != "hub" and entry.stored_bytes is not None:
        words.append(bytes_text(entry.stored_bytes))
    words += [f"context {entry.context:,}", entry.license]
    if entry.gated:
        words.append("gated")
    if entry.source == "hub" and entry.stored_bytes is not None:
        words.append("already here")
    return ", ".join(words) + (f" ({entry.note})" if entry.note else "")


def shortest_name(entry: CatalogEntry) -> str:
    """What a person types after --base."""
    return entry.also or entry.name


def parameters_text(count: int) -> str:
    """`1.4 M`, `124 M`, `1.24 B`."""
    if count >= 999_500_000:
        return f"{count / 1e9:.2f} B"
    return f"{count / 1e6:.1f} M" if count < 10_000_000 else f"{count / 1e6:.0f} M"


def _starter() -> CatalogEntry | LeftOut:
    return _measure("starter", STARTER, "starter", license_name=STARTER_LICENSE, note="bundled")


def _runs(folder: Path) -> Iterator[CatalogEntry | LeftOut]:
    """Finished runs: their fine-tuned body goes on as a base."""
    for bundle in sorted(folder.glob("*/model/gptailor.json")):
        name = bundle.parent.parent.as_posix()
        try:
            values = json.loads(bundle.read_text(encoding="utf-8"))
            told = f"{values['task']}, {values['approach']} on {values['base']}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield LeftOut(name, f"its gptailor.json is damaged: {first_line(error)}")
            continue
        yield _measure(name, bundle.parent, "run", license_name=_license_of_run(bundle.parent), note=told)


def _cached(folder: Path) -> Iterator[CatalogEntry | LeftOut]:
    """Repositories in the hub's cache that were fetched whole enough to be a base."""
    for repository in sorted(folder.glob("models--*")):
        name = repository.name.removeprefix("models--").replace("--", "/")
        snapshot, note = _snapshot(repository)
        if snapshot is None:
            yield LeftOut(name, "nothing of it was fetched whole")
        elif not (snapshot / "config.json").is_file():
            yield LeftOut(name, "no config.json was fetched")
        else:
            told = _known_license(name) or _card_license(snapshot)
            yield _measure(name, snapshot, "cache", license_name=told, note=note)


def _snapshot(repository: Path) -> tuple[Path | None, str]:
    """The files that the name stands for without a network, and a note where it takes more than the name."""
    try:
        commit = (repository / "refs" / "main").read_text(encoding="ascii").strip()
        if (repository / "snapshots" / commit).is_dir():
            return repository / "snapshots" / commit, ""
    except (OSError, ValueError):
        pass
    others = sorted(path for path in repository.glob("snapshots/*") if path.is_dir())
    return (others[-1], f"with --set revision={others[-1].name}") if others else (None, "")


def _measure(
    name: str, folder: Path, source: Source, *, license_name: str | None, note: str
) -> CatalogEntry | LeftOut:
    """Size and context from the files themselves."""
    try:
        config = read_config_file(folder)
        architectures = [str(kind) for kind in config.get("architectures") or []]
        if source == "cache" and not any(kind.endswith(LANGUAGE_MODELS) for kind in architectures):
            return LeftOut(name, f"not a causal language model ({', '.join(architectures) or 'unknown'})")
        weights = [path for path in sorted(folder.glob("*.safetensors")) if not _is_left_out(path.name)]
        if not weights:
            return LeftOut(name, "no safetensors weights (pickled ones are never loaded)")
        return CatalogEntry(
            name=name,
            source=source,
            parameters=sum(count_parameters(path) for path in weights),
            context=context_length(config),
            license=license_name or "licence: see its card",
            stored_bytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
            note=note,
        )
    except (ModelError, OSError, ValueError, TypeError) as error:
        return LeftOut(name, first_line(error))


def _is_left_out(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in HUB_LEFT_OUT)


def count_parameters(path: Path) -> int:
    """The weights in a safetensors file, from its header alone.

    Raises:
        ModelError: the header is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118  (no mapping)
    except SafetensorError as error:
        raise ModelError(f"its weights can't be read: {first_line(error)}", where=str(path)) from None
    return sum(math.prod(shape) for shape in shapes if 0 < len(shape) <= MOST_DIMENSIONS)


def license_of(base: Base) -> str | None:
    """A base's licence, which goes with what is fine-tuned from it; None where nothing here tells it."""
    if base.kind == "run":
        return _license_of_run(base.path)
    return _known_license(base.name) or _card_license(base.path)


def _license_of_run(model: Path) -> str | None:
    """The licence that a run has from its base: its details say it, else the base's name does."""
    known = None
    try:
        bundle = json.loads((model / "gptailor.json").read_text(encoding="utf-8"))
        if bundle["approach"] == "scratch":
            return OWN_LICENSE
        known = _known_license(str(bundle["base"]))
        details = json.loads((model.parent / "details.json").read_text(encoding="utf-8"))
        told = details["base_details"].get("license")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return known
    return told if isinstance(told, str) else known


def _known_license(base: str) -> str | None:
    if base == "starter":
        return STARTER_LICENSE
    return next((entry.license for entry in COMMON if base in (entry.name, entry.also)), None)


def _card_license(folder: Path) -> str | None:
    """The licence that a model card's first lines name."""
    try:
        lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    if lines[:1] == ["---"]:
        for line in lines[1:]:
            if line == "---":
                break
            key, _, value = line.partition(":")
            if key == "license" and value.strip():
                return value.strip()
    return None


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def as_values(catalog: Catalog) -> dict[str, Any]:
    """The catalog as plain JSON values."""
    return asdict(catalog)
