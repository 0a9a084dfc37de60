"""Shared by all tests: one thread, a cache of their own, tiny bases."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: two test processes use the cores better
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the person's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTAILOR_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random base of every family, by name."""
    import tiny

    folder = tmp_path_factory.mktemp("bases")
    return {family: tiny.build_base(folder / family, family) for family in tiny.FAMILIES}


@pytest.fixture
def news_csv(tmp_path: Path) -> Path:
    """120 easy rows of three labels, deterministic."""
    import tiny

    return tiny.write_news(tmp_path / "news.csv")
