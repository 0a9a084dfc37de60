"""Checkpoints that are whole or don't exist.

One commit protocol: a temporary folder, fsync of each file, a sealed manifest with sizes and SHA-256, fsync
of the folder, one rename, fsync of the parent. No pickle: safetensors and JSON. What is on disk is checked
against the manifest before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gptailor.errors import CheckpointError, NonFiniteError
from gptailor.launch import sync
from gptailor.types import Checkpoint

MANIFEST = "manifest.json"
TEMPORARY = ".partial-"


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    state: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> Checkpoint:
    """Commits the trainable weights, the optimizer and the run's state as `folder/step-000200`.

    A step follows from those before it, so one that is committed already stays as it is.
    `state["best_step"]`, if given, names the checkpoint without which this one can't finish the run. A
    training that has ended needs no optimizer any more.

    Raises:
        CheckpointError: it could not be written; older checkpoints are untouched.
        NonFiniteError: a weight or moment is NaN or infinite.
    """
    final = checkpoint_path(folder, step)
    temporary = folder / f"{TEMPORARY}{step:06d}-{os.getpid()}"
    weights = trainable_tensors(model)
    moments = {} if optimizer is None else optimizer_tensors(model, optimizer)
    _refuse_non_finite({**weights, **moments}, step)
    with clear_errors(folder, needed=_size(weights)):
        if final.exists() and not faults(final):
            return Checkpoint(final, step, state.get("score"))
        try:
            _discard(temporary)
            temporary.mkdir(parents=True)
            save_file(weights, temporary / "weights.safetensors")
            save_file(moments, temporary / "optimizer.safetensors")
            (temporary / "state.json").write_text(json.dumps({"step": step, **state}))
            commit_folder(temporary, final, extra={"environment": dict(environment)})
        finally:
            _discard(temporary)
    return Checkpoint(final, step, state.get("score"))


def commit_folder(temporary: Path, final: Path, *, extra: Mapping[str, Any]) -> None:
    """Makes a folder of finished files durable, then visible, in that order."""
    files = {}
    for path in sorted(temporary.iterdir()):
        sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    manifest = temporary / MANIFEST
    manifest.write_text(_seal({"version": 1, "files": files, **extra}))
    sync(manifest)
    sync(temporary)
    if final.exists():  # damaged: a run that passed it over came by again
        _hide(final)
    temporary.rename(final)
    sync(final.parent)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def faults(checkpoint: Path, *, only: str | None = None) -> list[str]:
    """What is wrong with a checkpoint folder, file by file (or with one file); empty if it is whole."""
    try:
        text = (checkpoint / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        del manifest["sha256"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return [f"{checkpoint / MANIFEST}: missing or unreadable"]
    except OSError as error:
        raise _unreadable(checkpoint / MANIFEST, error) from None
    if _seal(manifest) != text:
        return [f"{checkpoint / MANIFEST}: its content changed"]
    names = expected if only is None else [only]
    found = (_fault(checkpoint / name, *expected[name]) for name in names)
    return [fault for fault in found if fault is not None]


def newest_verified(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint whose best is whole too, and the faults of those passed over."""
    passed_over: list[str] = []
    for path in _newest_first(folder):
        found = faults(path)
        if not found:
            state = read_state(path)
            best = checkpoint_path(folder, state.get("best_step") or state["step"])
            found = [] if best == path else faults(best)
            if not found:
                return Checkpoint(path, int(state["step"]), state.get("score")), passed_over
        passed_over.extend(fault for fault in found if fault not in passed_over)
    return None, passed_over


def forget_after(folder: Path, step: int) -> None:
    """Removes the checkpoints of later steps, which will be taken anew: an old one would be gone on from.

    Raises:
        CheckpointError: one can't be taken out of sight.
    """
    for path in _newest_first(folder):
        if _step(path) > step:
            with clear_errors(folder, needed=0):
                hidden = _hide(path)
            _discard(hidden)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The run's state as it was when the checkpoint was made."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return state


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Puts the checkpoint's weights into the model, bit for bit.

    Raises:
        CheckpointError: they are not what was saved.
    """
    saved = _load_verified(checkpoint, "weights.safetensors")
    current = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in saved.items():
            current[name].copy_(tensor)


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts the checkpoint's optimizer state into the optimizer, bit for bit, on each weight's device.

    Raises:
        CheckpointError: it is not what was saved.
    """
    saved = _load_verified(checkpoint, "optimizer.safetensors")
    by_name = dict(model.named_parameters())
    for key, tensor in saved.items():
        kind, _, name = key.partition(":")
        parameter = by_name[name]
        optimizer.state[parameter][kind] = tensor.to(parameter.device)


def prune(folder: Path, *, keep: set[int]) -> None:
    """Removes all checkpoints but the newest whole one and the steps to keep, and torn remains.

    What can't be removed now is removed the next time.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        _discard(path)
    newest = next((path for path in _newest_first(folder) if not faults(path)), None)
    for path in _newest_first(folder) if newest is not None else ():
        if path != newest and _step(path) not in keep:
            with suppress(OSError):
                _discard(_hide(path))


def refuse_too_little_space(folder: Path, model: nn.Module) -> None:
    """Before the start: three checkpoints must fit, the newest, the best and the one being written.

    Raises:
        CheckpointError: they don't.
    """
    needed = 3 * _size(trainable_tensors(model))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"three checkpoints need {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free.",
            where=str(folder),
            fix="Free some space, or choose another folder with --out.",
        )


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies: `folder/step-000200`."""
    return folder / f"step-{step:06d}"


def trainable_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights that may change, by name; what doesn't change is loaded from the base again."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments and step counts as `kind:parameter name`."""
    return {
        f"{kind}:{name}": tensor
        for name, parameter in model.named_parameters()
        for kind, tensor in optimizer.state.get(parameter, {}).items()
    }


def _newest_first(folder: Path) -> list[Path]:
    """By number, not by name; folders of other names are somebody else's."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and _step(path) >= 0]
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() and checkpoint_path(path.parent, int(digits)) == path else -1


def _seal(manifest: Mapping[str, Any]) -> str:
    """A manifest's text with the SHA-256 of the rest in it, so that a changed manifest shows."""
    digest = hashlib.sha256(json.dumps(manifest, indent=1).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": digest}, indent=1)


def _fault(path: Path, size: int, digest: str) -> str | None:
    try:
        if path.stat().st_size != size:
            return f"{path}: {path.stat().st_size} bytes instead of {size}"
        return None if file_hash(path) == digest else f"{path}: its content changed"
    except FileNotFoundError as error:
        return f"{path}: {error.strerror or error}"
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    """What a disk doesn't give today it may give tomorrow: nothing is passed over, and nothing removed."""
    return CheckpointError(
        f"can't be read: {error.strerror or error}.",
        where=str(path),
        fix="Mend the disk or the connection and run the same command again. Where that can't be, remove "
        f"{path.parent}: training goes on from the checkpoint before.",
    )


def _refuse_non_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(
                f"{name} holds NaN or infinity at step {step}; it was not saved.",
                fix="Lower train.learning_rate, or check the base's weights; the last checkpoint is whole.",
            )


def _load_verified(checkpoint: Path, name: str) -> dict[str, Tensor]:
    found = faults(checkpoint, only=name)
    if found:
        raise CheckpointError(
            f"is damaged ({found[0]}).",
            where=str(checkpoint),
            fix="Run the same command again: it goes on from an older checkpoint, or from the start.",
        )
    return load_file(checkpoint / name)


def _hide(path: Path) -> Path:
    """Makes a checkpoint invisible in one rename before its files go, so that a kill can't tear it."""
    hidden = path.with_name(f"{TEMPORARY}removed-{path.name}")
    _discard(hidden)
    return path.rename(hidden)


def _discard(path: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(path, ignore_errors=True)


def _size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of a checkpoint: the weights and AdamW's two moments."""
    return 3 * sum(tensor.nbytes for tensor in tensors.values())


@contextmanager
def clear_errors(place: Path, *, needed: int) -> Iterator[None]:
    """Turns a full or failing disk into a `CheckpointError` that says what to do. `needed` is in bytes."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors wraps OSError in a type of its own
        try:
            free = f"{shutil.disk_usage(place).free / 1e6:,.1f} MB"
        except OSError:
            free = "unknown"
        raise CheckpointError(
            f"could not be written ({error}). Needed: {needed / 1e6:,.1f} MB; free: {free}.",
            where=str(place),
            fix="Free some space and run the same command again: it goes on from the last checkpoint.",
        ) from None
