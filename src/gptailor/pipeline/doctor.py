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
from gptailor.models.names import STARTER

OPTIONAL = {
    "datasets": ("hub", "reading hub:owner/name"),
    "gguf": ("gguf", "export --to gguf"),
    "onnxruntime": ("onnx", "export --to onnx"),
}


def examine() -> dict[str, Any]:
    """Machine, libraries, extras and advice."""
    machine = describe_machine()
    versions = machine.pop("versions")
    memory = psutil.virtual_memory()
    facts = {
        **machine,
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
    if not (STARTER / "config.json").exists():
        advice.append("the bundled starter is missing: install gptailor again")
    if platform.system() == "Windows":
        advice.append("Windows is best effort: locks and some signals work differently there")
    return {"machine": facts, "libraries": versions, "advice": advice}
