"""What tests of interrupted runs share: how a run ends here, and what must be the same after it went on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# The clock's numbers and the machine's memory; everything else of two runs must be the same.
UNLIKE = ("seconds", "total_seconds", "tokens_per_second", "peak_memory_bytes", "forecast_seconds")
UNLIKE += ("memory_bytes", "memory_spare_bytes")


class Crash(Exception):
    """What ends a run here; nothing catches it."""


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def alike(values: Any, *, unlike: tuple[str, ...] = UNLIKE) -> Any:
    """The values without those that no two runs share."""
    if isinstance(values, dict):
        return {key: alike(value, unlike=unlike) for key, value in values.items() if key not in unlike}
    return [alike(value, unlike=unlike) for value in values] if isinstance(values, list) else values
