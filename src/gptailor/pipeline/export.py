"""A run's model for other tools, compared with what the run answers before anything is left behind."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from transformers import PreTrainedModel

from gptailor.errors import ModelError, RunError, did_you_mean
from gptailor.launch import write_atomically
from gptailor.models.approach import put_adapter
from gptailor.models.around import add_only, begin_token, read_markers
from gptailor.models.bundle import BUNDLE_FILE, find_model_folder, read_bundle
from gptailor.models.gguf_file import StoredPrecision, write_gguf
from gptailor.models.load import (
    load_classifier,
    load_config,
    load_saved_classifier,
    load_saved_language_model,
    load_tokenizer,
    load_trainable_language_model,
)
from gptailor.models.names import Base
from gptailor.models.onnx_file import write_onnx
from gptailor.models.replay import probe_difference, refuse_difference, torch_answers
from gptailor.pipeline.folder import base_of
from gptailor.types import Bundle

PRECISIONS: tuple[StoredPrecision, ...] = get_args(StoredPrecision)


@dataclass(frozen=True, slots=True)
class _Job:
    """What to write, and where."""

    run: Path
    bundle: Bundle
    folder: Path
    precision: StoredPrecision


def export_run(run: Path, *, to: str, out: Path | None, precision: str | None = None) -> dict[str, Any]:
    """Writes a finished run's model in another format, and asks it the stored probes there.

    Returns the format, the folder, the largest difference of logits (of a language model: of
    log-probabilities), how the result is loaded, and what else the format has to tell. The same stands in
    the folder's `export.json`. The folder appears whole, or not at all.

    Args:
        run: A run folder, or a model folder.
        to: One of `FORMATS`.
        out: Where to write; `RUN/export/FORMAT` if None.
        precision: Of the weights in a GGUF file: fp32 (None means that), bf16 or fp16.

    Raises:
        RunError: the format isn't known or doesn't fit the run, or the folder is in use.
        ModelError: the run isn't finished, the format can't hold this model, or it answers differently there.
        MissingExtraError: the format's libraries aren't installed.
    """
    if to not in FORMATS:
        raise RunError(
            f"can't export to {to!r}; known: {', '.join(FORMATS)}.{did_you_mean(to, FORMATS)}",
            fix="`hf` is a plain transformers folder, which most tools read.",
        )
    chosen = _choose_precision(precision, to)
    bundle = read_bundle(find_model_folder(run))
    if not bundle.probes:
        raise ModelError("holds no probes to compare with.", where=str(bundle.path), fix="Fit again.")
    folder = out or run / "export" / to
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise RunError(
            "is a file." if folder.is_file() else "is not empty.",
            where=str(folder),
            fix="Choose another folder with --out.",
        )
    partial = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        told = FORMATS[to](_Job(run, bundle, partial, chosen))
        if bundle.task != "classification" and (partial / "tokenizer.json").exists():
            begin = begin_token(load_tokenizer(Base(str(run), partial, "", "folder")), bundle)
            warnings = [add_only(partial, begin), what_repeats(bundle)]
            if bundle.task in ("chat", "preference"):
                warnings.append(read_markers(partial))
            told |= {"warning": "; ".join(filter(None, warnings))} if any(warnings) else {}
        transformers = to not in ("onnx", "gguf")  # whose graph has it all in it, or which has no classifiers
        if bundle.task == "classification" and transformers and (apart := what_others_leave_out(bundle)):
            told["warning"] = "; ".join(filter(None, (told.get("warning"), apart)))
        result = {"to": to, "folder": str(folder), "probes": len(bundle.probes), **told}
        result["load"] = how_to_load(to, bundle, folder, vocabulary=told.get("vocabulary"))
        write_atomically(partial / "export.json", json.dumps(result, indent=1, ensure_ascii=False))
        _put_in_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return result


def what_others_leave_out(bundle: Bundle) -> str:
    """What this run does with the head's outputs and other tools don't, in words; empty where nothing."""
    form, temperature = bundle.answer, bundle.temperature
    if form.kind == "score":
        told = f"{form.mean:.6g} + {form.deviation:.6g} times it"
        return f"other tools give the number scaled: this run's is {told}"
    steps = [f"divides the logits by {temperature:.4g} before it takes probabilities"] * (temperature != 1)
    if form.kind == "multiple" and form.cutoff != 0.5:
        steps.append(f"gives a label from {form.cutoff:.3g} on")
    ways = {
        "window": f"reads longer texts in windows of {bundle.max_tokens} tokens",
        "cut": f"reads the first {bundle.max_tokens} tokens of a text (`truncation=True`)",
    }
    steps += [ways[bundle.too_long]] if bundle.too_long in ways else []
    *most, last = steps or [""]
    told = f"{', '.join(most)} and {last}" if most else last
    return f"this run {told}; other tools don't" if told else ""


def what_repeats(bundle: Bundle) -> str:
    """That this run's answers don't repeat themselves where other tools' may; empty where they may here."""
    count = bundle.form.get("no_repeat")
    if not count:
        return ""
    return (
        f"this run writes no {count} tokens twice in an answer; `no_repeat_ngram_size={count}` comes near "
        "(it counts the prompt, too)"
    )


def _put_in_place(made: Path, folder: Path) -> None:
    """Renames what was made; into an empty folder that is there (perhaps a mount, or where we stand) it is
    moved file by file, the last one the file that says that all are there.
    """
    if not folder.exists():
        made.rename(folder)
        return
    for path in sorted(made.iterdir(), key=lambda path: path.name == "export.json"):
        shutil.move(path, folder / path.name)


def how_to_load(to: str, bundle: Bundle, folder: Path, *, vocabulary: int | None = None) -> str:
    """One line of Python, or a command, that opens what was written.

    `vocabulary`: how many tokens a base must have room for, where it has not.
    """
    classifies = bundle.task == "classification"
    if to == "onnx":
        return f'onnxruntime.InferenceSession("{folder / "model.onnx"}")'
    if to == "gguf":
        return shlex.join(["llama-cli", "-m", str(folder / "model.gguf")])
    if to == "adapter":
        grown = "" if vocabulary is None else f"model.resize_token_embeddings({vocabulary}); "
        return f'{grown}peft.PeftModel.from_pretrained(model, "{folder}")  # where model is {bundle.base}'
    purpose = "text-classification" if classifies else "text-generation"
    return f'transformers.pipeline("{purpose}", "{folder}")'


def _choose_precision(wanted: str | None, to: str) -> StoredPrecision:
    if wanted is None:
        return "fp32"
    if to != "gguf":
        raise RunError(
            f"{to} has the weights as they are; only gguf can round them.",
            where="--precision",
            fix="Leave --precision out, or use --to gguf.",
        )
    for known in PRECISIONS:
        if wanted == known:
            return known
    hint = did_you_mean(wanted, PRECISIONS)
    raise RunError(
        f"there is no precision {wanted!r}; known: {', '.join(PRECISIONS)}.{hint}",
        where="--precision",
        fix="Leave it out for fp32, in which nothing is rounded.",
    )


def _write_folder(job: _Job) -> dict[str, Any]:
    """A plain transformers folder: what `model/` is already."""
    _copy_model(job)
    load = load_saved_classifier if job.bundle.task == "classification" else load_saved_language_model
    return {"parity": _compare(load(job.folder), job)}


def _copy_model(job: _Job, *leaving_out: str) -> None:
    """The model folder's files; exports that lie in it, this one among them, are none of its own."""
    others = [path.parent.name for path in job.bundle.path.glob("*/export.json")]
    patterns = shutil.ignore_patterns("export", ".*", *others, *leaving_out)
    shutil.copytree(job.bundle.path, job.folder, dirs_exist_ok=True, ignore=patterns)


def _write_merged(job: _Job) -> dict[str, Any]:
    """The same, with a word about the adapter."""
    note = f"nothing had to be merged: the approach was {job.bundle.approach}"
    if job.bundle.approach == "lora":
        note = "the adapter was merged into these weights when the run was saved"
    return {**_write_folder(job), "note": note}


def _write_adapter(job: _Job) -> dict[str, Any]:
    """peft's adapter with the tokenizer; compared on the base it belongs to."""
    bundle = job.bundle
    source = bundle.path.parent / "adapter"
    if not source.is_dir():
        raise RunError(
            f"has no adapter: its approach was {bundle.approach}.",
            where=str(job.run),
            fix="Use --to hf for the whole model. An adapter comes from a run of --approach lora.",
        )
    base = base_of(bundle)
    shutil.copytree(source, job.folder, dirs_exist_ok=True)
    for path in bundle.path.iterdir():
        if path.name.startswith(("tokenizer", "chat_template", BUNDLE_FILE)):
            shutil.copy2(path, job.folder)
    tokenizer = load_tokenizer(Base(str(job.run), bundle.path, "", "folder"))
    if bundle.task == "classification":
        names, kind = bundle.label_names, bundle.answer.kind
        plain = load_classifier(base, tokenizer, label_names=names, seed=0, kind=kind)
    else:
        plain = load_trainable_language_model(base, tokenizer)
    grown = len(tokenizer) > load_config(base).vocab_size  # by a pad token that the base had not
    return {
        "parity": _compare(put_adapter(plain, job.folder), job),
        "base": bundle.base,
        "base_revision": bundle.base_revision,
        **({"vocabulary": len(tokenizer)} if grown else {}),
    }


def _write_onnx(job: _Job) -> dict[str, Any]:
    """The graph, and beside it what is needed around it: tokenizer, label names, how texts are cleaned."""
    _copy_model(job, "*.safetensors", "*.safetensors.index.json")
    return write_onnx(job.bundle, job.folder / "model.onnx")


def _write_gguf(job: _Job) -> dict[str, Any]:
    """One file with everything in it."""
    if job.bundle.task == "classification":
        raise RunError(
            "is a classifier, and llama.cpp has no place for its head.",
            where=str(job.run),
            fix="Use --to onnx or --to hf. GGUF is for runs whose answer is text.",
        )
    name = job.run.resolve().name
    return write_gguf(job.bundle, job.folder / "model.gguf", name=name, precision=job.precision)


def _compare(model: PreTrainedModel, job: _Job) -> float:
    return refuse_difference(probe_difference(job.bundle.probes, torch_answers(model)), where=job.bundle.path)


FORMATS: Mapping[str, Callable[[_Job], dict[str, Any]]] = {
    "hf": _write_folder,
    "merged": _write_merged,
    "adapter": _write_adapter,
    "onnx": _write_onnx,
    "gguf": _write_gguf,
}
