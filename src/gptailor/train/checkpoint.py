"""Checkpoints that are whole or don't exist.

One commit protocol: a temporary folder, fsync of each file, a manifest with sizes and SHA-256, fsync of
the folder, one rename, fsync of the parent. No pickle: safetensors and JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gptailor.errors import CheckpointError
from gptailor.types import Checkpoint

MANIFEST = "manifest.json"
TEMPORARY = ".partial-"


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> Checkpoint:
    """Commits the trainable weights, the optimizer and the run's state as `folder/step-000200`.

    Raises:
        CheckpointError: it could not be written; older checkpoints are untouched.
    """
    final = folder / f"step-{step:06d}"
    temporary = folder / f"{TEMPORARY}{step:06d}-{os.getpid()}"
    tensors = trainable_tensors(model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_file(tensors, temporary / "weights.safetensors")
        save_file(optimizer_tensors(model, optimizer), temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps({"step": step, **state}))
        commit_folder(temporary, final, extra={"environment": dict(environment)})
    except Exception as error:  # safetensors wraps OSError in its own type
        shutil.rmtree(temporary, ignore_errors=True)
        raise _cannot_write(error, folder, needed=3 * sum(t.nbytes for t in tensors.values())) from None
    return Checkpoint(final, step, state.get("score"))


def commit_folder(temporary: Path, final: Path, *, extra: Mapping[str, Any]) -> None:
    """Makes a folder of finished files durable, then visible, in that order."""
    files = {}
    for path in sorted(temporary.iterdir()):
        sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    manifest = temporary / MANIFEST
    manifest.write_text(json.dumps({"version": 1, "files": files, **extra}, indent=1))
    sync(manifest)
    sync(temporary)
    if final.exists():  # the same step, saved again after a resume
        shutil.rmtree(final)
    temporary.rename(final)
    sync(final.parent)


def sync(path: Path) -> None:
    """fsync of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def faults(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint folder, file by file; empty if it is whole."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [f"{checkpoint / MANIFEST}: missing or unreadable"]
    found = []
    for name, (size, digest) in expected.items():
        path = checkpoint / name
        if not path.is_file():
            found.append(f"{path}: missing")
        elif path.stat().st_size != size:
            found.append(f"{path}: {path.stat().st_size} bytes instead of {size}")
        elif file_hash(path) != digest:
            found.append(f"{path}: its content changed")
    return found


def newest_verified(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and the faults of newer ones that were passed over."""
    passed_over: list[str] = []
    for path in _newest_first(folder):
        found = faults(path)
        if found:
            passed_over.extend(found)
            continue
        state = read_state(path)
        return Checkpoint(path, int(state["step"]), state.get("score")), passed_over
    return None, passed_over


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The run's state as it was when the checkpoint was made."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return state


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Puts the checkpoint's weights into the model, bit for bit."""
    saved = load_file(checkpoint / "weights.safetensors")
    current = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in saved.items():
            current[name].copy_(tensor)


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts the checkpoint's optimizer state into the optimizer, bit for bit."""
    saved = load_file(checkpoint / "optimizer.safetensors")
    by_name = dict(model.named_parameters())
    for key, tensor in saved.items():
        kind, _, name = key.partition(":")
        optimizer.state[by_name[name]][kind] = tensor


def prune(folder: Path, *, keep: set[int]) -> None:
    """Removes all checkpoints but the newest verified one and the steps to keep, and torn remains."""
    newest, _ = newest_verified(folder)
    for path in _newest_first(folder):
        step = int(path.name.removeprefix("step-"))
        if newest is not None and step not in keep and path != newest.path:
            _remove(path)
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def refuse_too_little_space(folder: Path, model: nn.Module) -> None:
    """Before the start: two checkpoints must fit.

    Raises:
        CheckpointError: they don't.
    """
    needed = 2 * 3 * sum(tensor.nbytes for tensor in trainable_tensors(model).values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"two checkpoints need {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free.",
            where=str(folder),
            fix="Free some space, or choose another folder with --out.",
        )


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


def _newest_first(folder: Path) -> Iterator[Path]:
    yield from sorted((p for p in folder.glob("step-*") if p.is_dir()), reverse=True)


def _remove(path: Path) -> None:
    """Makes a checkpoint invisible in one rename before its files go, so that a kill can't tear it."""
    doomed = path.with_name(f"{TEMPORARY}removed-{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _cannot_write(error: Exception, folder: Path, *, needed: int) -> CheckpointError:
    try:
        free = f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB"
    except OSError:
        free = "unknown"
    return CheckpointError(
        f"a checkpoint could not be written ({error}). It needs {needed / 1e6:,.0f} MB; free: {free}.",
        where=str(folder),
        fix="Free some space and run the same command again: it goes on from the last checkpoint.",
    )
