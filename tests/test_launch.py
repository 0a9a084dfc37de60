"""Where a run lives: precision by capability, one writer, an environment that is settled once."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gptailor import launch
from gptailor.errors import FolderBusyError, RunError
from gptailor.launch import (
    BF16_PAYS_FROM,
    choose_micro_batch,
    choose_precision,
    describe_machine,
    one_writer,
    precision_context,
    remember,
    resolve_environment,
    write_atomically,
)

LARGE, SMALL = BF16_PAYS_FROM, BF16_PAYS_FROM - 1


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Precision.


@pytest.mark.parametrize(
    ("flags", "weights", "expected"),
    [
        ("fpu sse avx2 avx512f amx_bf16", LARGE, "bf16"),
        ("fpu sse avx2 avx512_bf16", LARGE, "bf16"),
        ("fpu sse avx2 avx512_bf16 amx_bf16", SMALL, "fp32"),
        ("fpu sse avx2 avx512f", LARGE, "fp32"),
        ("", LARGE, "fp32"),
    ],
)
def test_precision_goes_by_what_the_processor_can_and_what_pays(
    flags: str, weights: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_processor_line", lambda key: flags if key == "flags" else "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_precision("auto", num_weights=weights) == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_on_a_gpu_bf16_where_it_is_supported(
    supported: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # torch counts what it emulates unless told otherwise; that is slower than fp32.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported or including_emulation
    )
    assert choose_precision("auto", num_weights=1000) == expected
    assert launch.device_name() == "cuda"


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_who_names_a_precision_gets_it(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_processor_line", lambda _: "amx_bf16" if wanted == "fp32" else "")
    assert choose_precision(wanted, num_weights=LARGE) == wanted


def test_the_precision_context_changes_products_and_no_weights() -> None:
    layer = torch.nn.Linear(4, 4)
    for precision, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with precision_context(precision, "cpu"):  # type: ignore[arg-type]
            assert layer(torch.ones(2, 4)).dtype == kind
        assert layer.weight.dtype == torch.float32


# Micro-batches.


def micro_batch(free: float, monkeypatch: pytest.MonkeyPatch, batch_size: int = 16) -> int:
    class Memory:
        available = free

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    return choose_micro_batch(batch_size, max_tokens=128, layers=12, width=768, weights=10**6)


def test_the_micro_batch_fits_the_memory_and_is_one_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [micro_batch(gigabytes * 1e9, monkeypatch) for gigabytes in (0.01, 0.7, 1, 2, 4, 64)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (1, 16)
    assert set(found) <= {1, 2, 4, 8, 16}
    assert len(set(found)) >= 4
    assert micro_batch(0.01e9, monkeypatch, batch_size=1) == 1
    assert micro_batch(64e9, monkeypatch, batch_size=7) == 7


def test_a_container_may_take_less_than_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(launch, "CONTAINER_LIMITS", [(limit, used)])
    free = launch.available_memory()
    limit.write_text("3000000\n")
    used.write_text("1000000\n")
    assert launch.available_memory() == 2_000_000
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 400000\n")
    assert launch.available_memory() == 2_400_000, "files that were read are given back"
    limit.write_text("max\n")
    assert launch.available_memory() > 0.5 * free


@pytest.mark.parametrize(("code", "busy"), [(errno.EWOULDBLOCK, True), (errno.EOPNOTSUPP, False)])
def test_a_file_system_without_locks_is_not_a_busy_folder(
    code: int, busy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(fcntl, "flock", refuse)
    if busy:
        with pytest.raises(FolderBusyError), launch.one_writer(tmp_path):
            pass
    else:
        with launch.one_writer(tmp_path):
            assert (tmp_path / ".lock").exists()


def test_on_a_gpu_its_own_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "device_name", lambda: "cuda")
    for free, expected in ((80e9, 16), (0.01e9, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 80e9))
        assert micro_batch(64e9 if expected == 1 else 0.01e9, monkeypatch) == expected


# The environment.


def test_a_run_begun_on_a_gpu_says_that_it_needs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "environment.json"
    monkeypatch.setattr(launch, "device_name", lambda: "cuda")
    resolve_environment(path, {})
    monkeypatch.setattr(launch, "device_name", lambda: "cpu")
    with pytest.raises(RunError, match="begun on a GPU"):
        resolve_environment(path, {})


def test_the_environment_is_written_once_and_read_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    torch.set_num_threads(2)
    first, changed = resolve_environment(path, {"base_revision": "abc"})
    assert changed == []
    assert (first["threads"], first["bit_exact"], first["base_revision"]) == (2, True, "abc")
    assert set(first) >= {"versions", "python", "system", "processor", "capability", "threads", "device"}
    assert json.loads(path.read_text()) == first
    written = path.read_bytes()
    torch.set_num_threads(1)
    again, changed = resolve_environment(path, {"base_revision": "abc"})
    assert torch.get_num_threads() == 2, "a resumed run takes the threads it had"
    assert (again, changed) == (first, [])
    assert path.read_bytes() == written


def test_another_choice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    resolve_environment(path, {"base_revision": "abc"})
    with pytest.raises(RunError, match="base_revision was abc when this run was begun and is xyz now"):
        resolve_environment(path, {"base_revision": "xyz"})


def test_another_machine_ends_bit_exactness_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "environment.json"
    resolve_environment(path, {})
    here = describe_machine()
    elsewhere = {**here, "processor": "another", "versions": {**here["versions"], "torch": "9.9"}}
    monkeypatch.setattr(launch, "describe_machine", lambda: elsewhere)
    environment, changed = resolve_environment(path, {})
    assert environment["bit_exact"] is False
    assert changed == [
        f"torch: {here['versions']['torch']} then, 9.9 now",
        f"processor: {here['processor']} then, another now",
    ]
    monkeypatch.setattr(launch, "describe_machine", lambda: here)
    environment, told = resolve_environment(path, {})
    assert (environment["bit_exact"], told) == (False, changed), "coming back doesn't make it exact again"


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'"threads"', b'{"threads": "many"}', b"{}", b"\xff\xfe", b"null"]
)
def test_a_damaged_environment_is_told(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "environment.json"
    path.write_bytes(damage)
    with pytest.raises(RunError, match="can't be read") as caught:
        resolve_environment(path, {})
    assert caught.value.where == str(path)


def test_what_was_measured_first_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    choices = {"micro_batch_size": 8, "precision": "fp32"}
    assert remember(path, choices) == choices
    assert not path.exists(), "without a run nothing is written"
    resolve_environment(path, {"base_revision": "abc"})
    assert remember(path, choices) == choices
    assert remember(path, {"micro_batch_size": 2, "precision": "bf16"}) == choices
    kept = json.loads(path.read_text())
    assert (kept["micro_batch_size"], kept["base_revision"]) == (8, "abc")


# One writer.

HOLD = """
import sys
from pathlib import Path
from gptailor.launch import one_writer
with one_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_writer_is_refused_with_the_process_until_the_first_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    holder = hold(folder)
    with pytest.raises(RunError, match=f"process {holder.pid} is writing"), one_writer(folder):
        pytest.fail("two writers")
    holder.kill()  # without a chance to clean up
    holder.communicate()
    with one_writer(folder):
        assert (folder / ".lock").read_text() == str(os.getpid())
        with pytest.raises(RunError, match=f"process {os.getpid()}"), one_writer(folder):
            pytest.fail("two writers in one process")
    with one_writer(folder):
        pass


def test_a_writer_that_fails_lets_the_next_one_in(tmp_path: Path) -> None:
    with pytest.raises(KeyError), one_writer(tmp_path):
        raise KeyError
    with one_writer(tmp_path):
        pass


def test_a_folder_that_can_not_be_locked_is_told(tmp_path: Path) -> None:
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "run", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="can't be written to"), one_writer(folder):
            pytest.fail("it was locked")


# Files that are whole or absent.


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for text in ("first", "zweiter – 東京\n"):
        write_atomically(path, text)
        assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failing_disk_keeps_the_old_file(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "report.json"
    write_atomically(path, "old")
    target: Any = os if function == "fsync" else Path
    monkeypatch.setattr(target, function, fail)
    with pytest.raises(RunError, match="Input/output error") as caught:
        write_atomically(path, "new")
    assert caught.value.where == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_machine_is_described_without_its_paths() -> None:
    told = json.dumps(describe_machine())
    assert str(Path.cwd()) not in told
    assert json.loads(told)["versions"]["torch"] == torch.__version__
