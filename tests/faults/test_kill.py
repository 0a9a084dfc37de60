"""A fit that is killed at random moments and started again ends with the very same bits. The short form:
`python benchmarks/kills.py --kills 100` is the long one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.slow
def test_a_killed_fit_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    words = [sys.executable, str(KILLS), "--kills", "4", "--inside", "2", "--results", str(tmp_path)]
    done = subprocess.run(
        words,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},  # as by itself: a fork that follows threads may hang
        timeout=280,
        capture_output=True,
        text=True,
    )
    (path,) = tmp_path.iterdir()
    found = json.loads(path.read_text())
    assert found["kills"] >= 4
    assert found["inside_a_write"] >= 2
    assert found["torn"] == 0
    assert found["identical"] == found["runs"] > 0
    # The harness can see what it looks for: a writer that tears, and other weights.
    assert found["control_torn"] > 0
    assert found["control_same"] == 0
    assert f"| {found['kills']} | {found['inside_a_write']} | 0 | {found['runs']} |" in done.stdout
