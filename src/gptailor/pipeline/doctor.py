"""What this machine has, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from typing import Any

import psutil

from gptailor.cache import cache_bytes, cache_folder
from gptailor.launch import describe_machine
from gptailor.models.lean import can_compile
from gptailor.models.names import STARTER

OPTIONAL = {  # library: its extra, and what it is for
    "datasets": ("hub", "reading hub:owner/name"),
    "optuna": ("tune", "tune"),
    "gguf": ("gguf", "export --to gguf"),
    "onnxruntime": ("onnx", "export --to onnx"),
    "tensorboard": ("tensorboard", "--set trackers=[tensorboard]"),
    "mlflow": ("mlflow", "--set trackers=[mlflow]"),
    "wandb": ("wandb", "--set trackers=[wandb]"),
    "trackio": ("trackio", "--set trackers=[trackio]"),
}


def graphics() -> dict[str, str]:
    """The graphics card and its memory, where there is one."""
    import torch

    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    return {"graphics card": f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"}


def examine() -> dict[str, Any]:
    """Machine, libraries, extras and advice."""
    machine = describe_machine()
    versions = machine.pop("versions")
    memory = psutil.virtual_memory()
    facts = {
        **machine,
        **graphics(),
        "cores": os.cpu_count(),
        "memory": f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        "disk": f"{shutil.disk_usage('.').free / 1e9:.1f} GB free here",
        "cache": f"{cache_folder()} ({cache_bytes() / 1e6:,.0f} MB)",
    }
    advice = [
        f"{purpose} needs {library}: pip install 'gptailor[{extra}]'"
        for library, (extra, purpose) in OPTIONAL.items()
        if importlib.util.find_spec(library) is None
    ]
    if not can_compile():
        advice.append("long training on this processor would be faster with a C++ compiler (g++ or clang++)")
    if not (STARTER / "config.json").exists():
        advice.append("the bundled starter is missing: install gptailor again")
    if platform.system() == "Windows":
        advice.append("Windows is best effort: locks and some signals work differently there")
    return {"machine": facts, "libraries": versions, "advice": advice}
