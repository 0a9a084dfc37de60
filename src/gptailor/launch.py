"""Where a run lives: devices, precision, threads, signals, one writer per folder.

Every measured or machine-dependent choice is made once, written to `environment.json`, and used again on
resume. torch is imported only inside the functions that need it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import signal
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TextIO

from gptailor.errors import FolderBusyError, Interrupted, RunError

Precision = Literal["fp32", "bf16"]
REPORTED_PACKAGES = ("gptailor", "torch", "transformers", "tokenizers", "peft", "numpy", "scikit-learn")
# Under this many weights the casts to bf16 cost more than the faster products give (docs/log.md).
BF16_PAYS_FROM = 5_000_000
ALLOCATOR = {"one_arena": -8, "map_from": -3, "never_trim": -1, "grow_by": -2}  # glibc's malloc.h
CONTAINER_LIMITS = [  # what a container may take, and what it has taken: cgroups of version 2 and 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
]


def describe_machine() -> dict[str, Any]:
    """What this machine is, for the report and for the promise of bit-exactness."""
    import torch

    versions = {}
    for package in REPORTED_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "versions": versions,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": device_name(),
    }


def device_name() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def use_one_heap() -> None:
    """One heap for all threads, not one for each, whose free memory no other can use.

    Heaps that are there already stay: best called before anything starts threads. Does nothing where the C
    library isn't glibc.
    """
    _set_allocator({"one_arena": 1})


def choose_heaps(approach: str) -> None:
    """One heap where weights are trained; frozen features are quicker with one for each thread."""
    if approach != "frozen":
        use_one_heap()


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed, instead of giving it back to the system and asking again in every step.

    Filling fresh pages took a seventh of a training step (docs/log.md). What is free at this moment is given
    back: the holes that loading left fit nothing else. Blocks from 32 MB on, glibc's most, still come from
    the system: a batch's logits find no hole, and the heap would grow with every step.
    Does nothing where the C library isn't glibc.
    """
    use_one_heap()
    library = _set_allocator({"map_from": 32 * 2**20, "never_trim": 2**31 - 1, "grow_by": 64 * 2**20})
    with contextlib.suppress(AttributeError):
        library.malloc_trim(0)


def _set_allocator(values: Mapping[str, int]) -> Any:
    """The C library after its mallopt took the values, or None."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError, TypeError):  # the last: Windows, where None names none
        library = ctypes.CDLL(None)
        for name, value in values.items():
            library.mallopt(ALLOCATOR[name], value)
        return library
    return None


def choose_precision(wanted: str, *, num_weights: int) -> Precision:
    """bf16 where the processor multiplies it natively and the model is large enough to gain.

    By capability, not by a stopwatch: the same machine always chooses the same.
    """
    import torch

    if wanted in ("fp32", "bf16"):
        return wanted  # type: ignore[return-value]
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    flags = _processor_flags()
    fast = "amx_bf16" in flags or "avx512_bf16" in flags
    return "bf16" if fast and num_weights >= BF16_PAYS_FROM else "fp32"


def precision_context(precision: Precision, device: str) -> contextlib.AbstractContextManager[object]:
    """The context of a forward pass in this precision; weights stay fp32."""
    import torch

    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device, torch.bfloat16)


def choose_micro_batch(batch_size: int, *, max_tokens: int, layers: int, width: int, weights: int) -> int:
    """How many rows fit memory at once, so that the effective batch stays what the recipe says.

    An estimate on the safe side: 40 floats per layer, token and unit of width are kept for the
    backward pass (about 34 in a GPT-2 block, plus fragmentation), half the free memory may be used.
    """
    free = (free_on_gpu() if device_name() == "cuda" else available_memory()) / 2 - 16 * weights
    per_row = 40 * 4 * layers * width * max_tokens
    fits = max(1, int(free / per_row))
    micro = batch_size
    while micro > fits:
        micro = -(-micro // 2)
    return micro


def free_on_gpu() -> int:
    """Bytes that are free on the GPU."""
    import torch

    return int(torch.cuda.mem_get_info()[0])


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has free, or what a container allows."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no container, or no limit ("max")
            taken = int(used.read_text()) - _file_cache(used.parent)
            free = min(free, max(0, int(limit.read_text()) - taken))
    return free


def _file_cache(group: Path) -> int:
    """Bytes of files that a container counts as taken, and gives back when they are needed."""
    with contextlib.suppress(OSError, ValueError):
        lines = (group / "memory.stat").read_text().splitlines()
        counts = {name: int(count) for name, count in (line.split() for line in lines)}
        return counts.get("total_inactive_file", counts.get("inactive_file", 0))
    return 0


def resolve_environment(path: Path, choices: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The environment a run uses: the one it started with, else the given choices, now written down.

    A resumed run takes the number of threads it had. Returns the environment with all differences that
    ended the promise of bit-exactness, in this start or an earlier one: they are written down too.

    Raises:
        RunError: a choice is another than the one the run was begun with, or the file is damaged.
    """
    import torch

    if not path.exists():
        now = {**describe_machine(), **choices, "bit_exact": True, "changed": []}
        write_atomically(path, json.dumps(now, indent=1))
        return now, []
    then = _read_environment(path)
    for key, value in choices.items():
        if then.get(key, value) != value:
            raise RunError(
                f"{key} was {then[key]} when this run was begun and is {value} now.",
                where=str(path),
                fix="Put the old one back, choose another folder with --out, or use --overwrite.",
            )
    if then.get("device") == "cuda" and device_name() != "cuda":
        raise RunError(
            "this run was begun on a GPU, and there is none here.",
            where=str(path),
            fix="Go on where there is one, choose another folder with --out, or use --overwrite.",
        )
    torch.set_num_threads(int(then["threads"]))
    before = then.get("changed", [])
    changed = list(dict.fromkeys([*before, *_changes(then, describe_machine())]))
    if changed != before:
        then = {**then, "bit_exact": False, "changed": changed}
        write_atomically(path, json.dumps(then, indent=1))
    return then, changed


def remember(path: Path, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Choices that are known late (micro-batch, precision): as the run first made them, now written down."""
    if not path.exists():
        return dict(choices)
    environment = _read_environment(path)
    made = {key: environment.get(key, value) for key, value in choices.items()}
    if not made.items() <= environment.items():
        write_atomically(path, json.dumps({**environment, **made}, indent=1))
    return made


def write_atomically(path: Path, content: str | bytes) -> None:
    """A file that is whole or absent, text in UTF-8.

    Raises:
        RunError: the disk is full or failing.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # A file's name may hold bytes that aren't UTF-8.
        data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise RunError(
            f"could not be written: {error.strerror or error}.",
            where=str(path),
            fix="Free some space or mend the disk, then run the same command again.",
        ) from None


def sync(path: Path) -> None:
    """fsync of a file or folder."""
    if os.name == "nt":  # Windows: best effort, it has no fsync of folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class StopRequest:
    """Remembers that SIGINT or SIGTERM came.

    The first signal leaves at once, unless it is `deferred`: then it waits for whoever looks at `name`.
    A second one always leaves at once; what is on disk is whole at every moment.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._deferred = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.name is not None:
            os._exit(Interrupted.exit_code)
        self.name = signal.Signals(number).name
        self._tell("saving, then leaving. Once more leaves at once." if self._deferred else "leaving.")
        if not self._deferred:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While inside, a signal only sets `name`. One that nobody acted on counts when leaving."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.name is not None:
            raise KeyboardInterrupt

    def _tell(self, words: str) -> None:
        # Not print: the signal may have come while somebody printed, and a stream can't be entered twice.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self.name}: {words} The same command goes on from there.\n".encode())


@contextlib.contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """While inside, SIGINT and SIGTERM go to the request that is handed out."""
    request = StopRequest()
    try:
        before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us has its own way to stop
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Holds the folder's lock. The system releases it when the process ends, however it ends.

    Raises:
        RunError: another process is writing there, or nobody may.
    """
    with _lock_file(folder, ".lock") as file:
        if not _try_lock(file.fileno()):
            file.seek(0)
            raise FolderBusyError(
                f"process {file.read().strip() or 'unknown'} is writing to this run.",
                where=str(folder),
                fix="Wait for it, stop it, or choose another folder with --out.",
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def in_use(folder: Path, *, alone: bool = False) -> Iterator[None]:
    """Notes that a folder is used, by several processes together; `alone` is for who would take it away.

    Raises:
        FolderBusyError: it is to be taken away and is used, or is being taken away.
        RunError: nobody may write there.
    """
    with _lock_file(folder, ".used") as file:
        if not _try_lock(file.fileno(), shared=not alone):
            raise FolderBusyError(
                "is used by a search that runs." if alone else "is being moved aside.",
                where=str(folder),
                fix="Wait for it, stop it, or choose another folder with --out.",
            )
        yield


def _read_environment(path: Path) -> dict[str, Any]:
    try:
        environment: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {**environment, "threads": int(environment["threads"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"can't be read: {error}.",
            where=str(path),
            fix="Choose another folder with --out, or use --overwrite (the old run is moved aside).",
        ) from None


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two machines in a way that may change bits."""
    keys = ("processor", "capability", "threads", "device")
    old, new = ({**env["versions"], **{key: env.get(key) for key in keys}} for env in (then, now))
    return [
        f"{key}: {old.get(key)} then, {new.get(key)} now"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _lock_file(folder: Path, name: str) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / name).open("a+")
    except OSError as error:
        raise RunError(
            f"can't be written to: {error.strerror or error}.",
            where=str(folder),
            fix="Choose another folder with --out.",
        ) from None


def _try_lock(descriptor: int, *, shared: bool = False) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: best effort
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        # Some file systems (NFS, Lustre, FUSE) have no locks: nobody is there, and nobody can be kept out.
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return True


def _processor_name() -> str:
    return _processor_line("model name") or platform.processor() or platform.machine()


def _processor_flags() -> frozenset[str]:
    return frozenset(_processor_line("flags").split())


def _processor_line(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
