"""Batch prediction and serving against transformers' pipeline, on this machine.

GPT-2 small's shape with random weights, a head of four labels, GPT-2's own tokenizer, AG News. Both
sides run in processes of their own, in turn, A B A B; their labels and probabilities are compared first.
Who begins takes turns. The peer in its usual setting answers texts one by one; at its best it gets the
fastest of the settings tried: batches of several sizes (or requests at once and processes), then to the
fastest freed memory kept by its allocator, compiling, and both.

    python benchmarks/speed_serving.py --data FOLDER [--quick] [--only predict] [--peer-python PATH]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import RESULTS, judged, start_record, write_record
from speed_works import KEPT

LABELS = ("World", "Sports", "Business", "Sci/Tech")
CLIENTS = 32
WORKER = Path(__file__).with_name("speed_serving_worker.py")
TOLERANCE = 1e-4  # of probabilities in fp32
# Each side takes as many threads as it does where nobody says otherwise.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
Json = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    texts: int
    pairs: int
    seconds: float  # of each served measurement
    batch_sizes: tuple[int, ...]
    compile: bool
    peer_python: str = sys.executable


WARM_TRIES = 12
CHOOSING = 4  # one text in so many is enough to choose the peer's best by
BARS = {  # by work and what it stands against: must and aim
    ("batch", "usual"): (3.0, 4.0),
    ("batch", "best"): (2.0, 2.5),
    ("served", "usual"): (4.0, 5.0),
    ("served", "best"): (2.5, 3.0),
}
PAIRS = 5  # fewer settle nothing
COMPILER = shutil.which("c++") is not None
FULL = Plan(texts=512, pairs=5, seconds=10, batch_sizes=(1, 2, 4, 8, 16, 32), compile=COMPILER)
QUICK = Plan(texts=64, pairs=2, seconds=4, batch_sizes=(8, 16), compile=False)


def write_model(folder: Path, tokenizer_files: Path) -> Path:
    """GPT-2 small with random weights as a finished run's model folder."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

    from gptailor.models.bundle import write_bundle
    from gptailor.types import Bundle

    merges, words = tokenizer_files / "vocab.bpe", tokenizer_files / "encoder.json"
    backend = ByteLevelBPETokenizer(str(words), str(merges))._tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.model_max_length = 1024
    config = GPT2Config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {name: place for place, name in enumerate(LABELS)}
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.mul_(5)  # probabilities of some spread
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    clean = dict.fromkeys(("repair_text", "unescape_entities", "drop_control", "squeeze_space"), False)
    bundle = Bundle(
        path=folder,
        task="classification",
        base="random",
        base_revision="0",
        approach="scratch",
        label_names=list(LABELS),
        max_tokens=1024,
        too_long="cut",
        temperature=1.0,
        threshold=None,
        clean=clean,
        scores={},
    )
    write_bundle(bundle)
    return folder


def read_news(data: Path, count: int) -> tuple[list[str], list[str]]:
    """Titles, and titles with their descriptions."""
    with (data / "ag_news" / "test.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row][:count]
    return [row[1].strip() for row in rows], [f"{row[1]} {row[2]}".strip() for row in rows]


class Failed(Exception):
    """A worker or a server ended or refused; a candidate is then left out."""


def environment_of(setting: Json) -> dict[str, str]:
    return {**ENVIRONMENT, **KEPT} if setting.get("kept") else ENVIRONMENT


class Worker:
    """A process that answers all texts once whenever it is asked."""

    def __init__(self, python: str, side: str, model: Path, setting: Json, texts: Path) -> None:
        self.process = subprocess.Popen(
            [python, str(WORKER), side, str(model), json.dumps(setting), "--texts", str(texts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment_of(setting),
        )
        self.setting, self.answers = setting, self._read()["answers"]

    def run(self) -> Json:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._read()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()

    def _read(self) -> Json:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"a worker ended: {self.process.args!r}")
        found: Json = json.loads(line)
        return found


def spread(values: Sequence[float]) -> Json:
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "pairs": len(values),
    }


def between(pairs: Sequence[tuple[Json, Json]], key: str) -> list[float]:
    """Ours and theirs: the median over all pairs."""
    return [statistics.median(side[key] for side in sides) for sides in zip(*pairs, strict=True)]


def largest_difference(ones: Sequence[Json], others: Sequence[Json]) -> float:
    pairs = zip(ones, others, strict=True)
    return max(abs(float(one[name]) - float(other[name])) for one, other in pairs for name in LABELS)


def same_labels(ones: Sequence[Json], others: Sequence[Json]) -> float:
    """The share of texts with the same label."""
    best = [[max(LABELS, key=answer.__getitem__) for answer in answers] for answers in (ones, others)]
    return float(statistics.mean(one == other for one, other in zip(*best, strict=True)))


def peer_settings(plan: Plan, precision: str) -> list[Json]:
    """What the peer's best is chosen from: as usual, or sorted by length and padded to a batch's longest."""
    sizes = [{"batch_size": size, "sorted": True} for size in plan.batch_sizes]
    return [{"precision": precision}, *({"precision": precision, **size} for size in sizes)]


def choose(settings: Sequence[Json], plan: Plan, speed_of: Callable[[Json], float], unit: str) -> Json:
    """The fastest of the settings, or of what can be added to it.

    Raises:
        Failed: none runs here.
    """
    tried: list[tuple[float, Json]] = []

    def take(setting: Json) -> None:
        try:
            speed = speed_of(setting)
        except (Failed, OSError, asyncio.IncompleteReadError) as error:
            print(f"  peer {setting}: {error}", file=sys.stderr, flush=True)
            return
        print(f"  peer {setting}: {speed:.1f} {unit}", file=sys.stderr, flush=True)
        tried.append((speed, setting))

    def fastest() -> Json:
        if not tried:
            raise Failed("no setting of the peer runs here")
        return max(tried, key=lambda one: one[0])[1]

    for setting in settings:
        take(setting)
    plain = fastest()
    more: list[Json] = [{"kept": True}]
    if plan.compile:
        more += [{"compile": True}, {"compile": True, "kept": True}]
    for addition in more:
        take({**plain, **addition})
    return fastest()


def in_turn(pairs: int, ours: Callable[[], Json], theirs: Callable[[], Json]) -> list[tuple[Json, Json]]:
    """Both sides so many times; who begins takes turns."""
    found = []
    for number in range(pairs):
        if number % 2:
            other = theirs()
            found.append((ours(), other))
        else:
            found.append((ours(), theirs()))
    return found


def predict_rows(plan: Plan, model: Path, texts: Sequence[str], folder: Path) -> Iterator[Json]:
    """Batch prediction in fp32 and in bf16."""
    from gptailor.models.predictor import load_predictor

    encoder = load_predictor(model)
    tokens = sum(item.num_tokens for item in encoder.encode_many(texts) if item is not None)
    file, few = folder / "texts.json", folder / "few.json"
    file.write_text(json.dumps(list(texts)), encoding="utf-8")
    few.write_text(json.dumps(list(texts)[::CHOOSING]), encoding="utf-8")
    exact = None
    for precision in ("fp32", "bf16"):
        setting = {"precision": precision}
        with contextlib.ExitStack() as stack:

            def start(python: str, side: str, setting: Json, stack: Any = stack) -> Worker:
                worker = Worker(python, side, model, setting, file)
                stack.callback(worker.end)
                return worker

            mine, usual = start(sys.executable, "ours", setting), start(plan.peer_python, "peer", setting)
            exact = exact or usual.answers
            agreement = {
                "same_labels": same_labels(mine.answers, usual.answers),
                "ours_off": largest_difference(mine.answers, exact),
                "theirs_off": largest_difference(usual.answers, exact),
            }
            if precision == "fp32" and not agreement["ours_off"] <= TOLERANCE:
                raise SystemExit(f"the two sides answer differently: {agreement}")

            def speed_of(setting: Json) -> float:
                worker = Worker(plan.peer_python, "peer", model, setting, few)
                try:
                    return len(texts) / CHOOSING / min(float(worker.run()["seconds"]) for _ in range(2))
                finally:
                    worker.end()

            setting = choose(peer_settings(plan, precision), plan, speed_of, "texts/s")
            best = start(plan.peer_python, "peer", setting)
            for name, other in (("usual", usual), ("best", best)):
                pairs = in_turn(plan.pairs, mine.run, other.run)
                row = {
                    "work": "batch prediction",
                    "precision": precision,
                    "against": name,
                    "setting": other.setting,
                    "tokens": tokens,
                    "ratio": spread([b["seconds"] / a["seconds"] for a, b in pairs]),
                    "ratio_cpu": spread([b["cpu_seconds"] / a["cpu_seconds"] for a, b in pairs]),
                    "ours": spread([tokens / a["seconds"] for a, _ in pairs]),
                    "theirs": spread([tokens / b["seconds"] for _, b in pairs]),
                    "unit": "tokens/s",
                    "peak_bytes": [pairs[-1][0]["peak_bytes"], pairs[-1][1]["peak_bytes"]],
                    **agreement,
                }
                print_row(row)
                yield row


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Server:
    """A server in a process group of its own."""

    def __init__(self, command: Sequence[str], port: int, environment: dict[str, str]) -> None:
        self.port = port
        self.process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, env=environment
        )
        end = time.monotonic() + 600
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready"):
                return
            if self.process.poll() is not None or time.monotonic() > end:
                self.end()
                raise Failed(f"a server didn't start: {command}")
            time.sleep(0.2)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait()


def start_ours(model: Path, precision: str) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "gptailor", "serve", str(model), "--port", str(port)]
    return Server([*command, "--precision", precision], port, ENVIRONMENT)


def start_peer(plan: Plan, model: Path, setting: Json) -> Server:
    port = free_port()
    command = [plan.peer_python, str(WORKER), "serve", str(model), json.dumps(setting), "--port", str(port)]
    return Server(command, port, environment_of(setting))


async def ask(port: int, texts: Sequence[str], *, seed: int, end: float) -> list[tuple[float, float]]:
    """One client: asks, waits for the answer, asks again. Gives when each answer came and after how long."""
    found = []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    draw = random.Random(seed)
    while time.perf_counter() < end:
        body = json.dumps({"input": draw.choice(texts)}).encode()
        head = (
            "POST /classify HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        began = time.perf_counter()
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length"))
        await reader.readexactly(length)
        if " 200" not in lines[0]:
            raise Failed(f"a server refused: {lines[0]}")
        now = time.perf_counter()
        found.append((now, now - began))
    writer.close()
    return found


def load(server: Server, texts: Sequence[str], seconds: float) -> Json:
    """What 32 clients get in so many seconds, after a warm-up of a quarter of them."""

    async def main() -> list[tuple[float, float]]:
        begin = time.perf_counter() + seconds / 4
        clients = [ask(server.port, texts, seed=seed, end=begin + seconds) for seed in range(CLIENTS)]
        found = [pair for pairs in await asyncio.gather(*clients) for pair in pairs]
        return [(when, took) for when, took in found if begin <= when < begin + seconds]

    took = sorted(duration for _, duration in asyncio.run(main()))
    took = took or [seconds]  # a setting under which nobody was answered in time
    return {
        "per_second": len(took) / seconds,
        "p50": took[len(took) // 2],
        "p99": took[int(len(took) * 0.99)],
    }


def warm(server: Server, texts: Sequence[str], plan: Plan) -> None:
    """Asks until answers come no faster: what is compiled is compiled for each new length of text."""
    before = 0.0
    for _ in range(WARM_TRIES):
        found = load(server, texts, plan.seconds)["per_second"]
        if found < 1.1 * before:
            return
        before = found


def served_settings(precision: str) -> list[Json]:
    """What the peer's best server is chosen from: as usual, or one request a core, in one process or two."""
    cores = os.cpu_count() or 1
    return [
        {"precision": precision},
        {"precision": precision, "threads": 1, "at_once": cores},
        {"precision": precision, "threads": 1, "at_once": 1, "workers": cores},
        {"precision": precision, "threads": cores, "at_once": 1},
    ]


def served_rows(plan: Plan, model: Path, titles: Sequence[str]) -> Iterator[Json]:
    """Throughput and latency under 32 clients that ask one short text after the other."""
    for precision in ("fp32", "bf16"):

        def speed_of(setting: Json) -> float:
            with ended(start_peer(plan, model, setting)) as server:
                warm(server, titles, plan)
                return float(load(server, titles, plan.seconds)["per_second"])

        best = choose(served_settings(precision), plan, speed_of, "requests/s")
        with ended(start_ours(model, precision)) as mine:
            warm(mine, titles, plan)
            for name, setting in (("usual", {"precision": precision}), ("best", best)):
                with ended(start_peer(plan, model, setting)) as other:
                    warm(other, titles, plan)
                    pairs = in_turn(
                        plan.pairs,
                        lambda: load(mine, titles, plan.seconds),
                        lambda other=other: load(other, titles, plan.seconds),  # type: ignore[misc]
                    )
                row = {
                    "work": f"served, {CLIENTS} clients",
                    "precision": precision,
                    "against": name,
                    "setting": setting,
                    "ratio": spread([a["per_second"] / b["per_second"] for a, b in pairs]),
                    "ours": spread([a["per_second"] for a, _ in pairs]),
                    "theirs": spread([b["per_second"] for _, b in pairs]),
                    "unit": "requests/s",
                    **{key: between(pairs, key) for key in ("p50", "p99")},
                }
                print_row(row)
                yield row


@contextlib.contextmanager
def ended(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.end()


def print_row(row: Json) -> None:
    ratio, ours, theirs = row["ratio"], row["ours"]["median"], row["theirs"]["median"]
    more = ""
    if "p50" in row:
        more = "; p50 {:.0f} / {:.0f} ms, p99 {:.0f} / {:.0f} ms".format(
            *(1000 * value for value in (*row["p50"], *row["p99"]))
        )
    if "ratio_cpu" in row:
        cpu = row["ratio_cpu"]["median"]
        more = f"; {cpu:.2f} x by processor time; off by {row['ours_off']:.1e} / {row['theirs_off']:.1e}"
    must, aim = BARS["served" if row["work"].startswith("served") else "batch", row["against"]]
    row["bar"] = judged(ratio["median"], must, aim, doubt="" if ratio["pairs"] >= PAIRS else "few pairs")
    more += f"; {row['bar']}"
    print(
        f"{row['work']}, {row['precision']}, peer's {row['against']}: {ratio['median']:.2f} x "
        f"({ratio['low']:.2f} to {ratio['high']:.2f}), {ours:,.0f} / {theirs:,.0f} {row['unit']}{more}",
        flush=True,
    )


def page(found: Json) -> str:
    """Markdown: a line for each row, and where it was taken."""
    told, lines = found["machine"], []
    for row in found["rows"]:
        ratio, bar = row["ratio"], row["bar"].rpartition(": ")[2]
        sides = " / ".join(f"{row[side]['median']:,.0f}" for side in ("ours", "theirs"))
        chosen = {name: value for name, value in row["setting"].items() if name != "precision"}
        setting = ", ".join(name if value is True else f"{name} {value}" for name, value in chosen.items())
        unit, after = row["unit"], "–"
        if "p50" in row:
            after = "; ".join(
                f"{name} " + " / ".join(f"{1000 * value:.0f}" for value in row[name]) + " ms"
                for name in ("p50", "p99")
            )
        cells = [row["work"], row["precision"], f"{row['against']} ({setting or 'as it comes'})"]
        cells += [f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})", bar]
        lines.append(f"| {' | '.join([*cells, f'{sides} {unit}', after])} |")
    head = [
        "| work | precision | against | ratio (lowest to highest) | bar | ours / theirs | latency |",
        "|---|---|---|---:|---|---:|---|",
    ]
    return "\n\n".join(
        [
            f"# Prediction and serving, {found['when'][:10]}",
            "\n".join([*head, *lines]),
            "GPT-2 small's shape with random weights and a head of four labels, AG News. Ours over "
            "transformers' pipeline, who begins takes turns. Prediction: titles with their descriptions, "
            "from text to probabilities. Served: titles, 32 clients that ask one after the other; theirs "
            "behind a plain FastAPI route. `kept`: glibc keeps freed memory; `at_once`: so many requests are "
            "answered at a time.",
            f"{told['cores']} cores of {told['processor']}, {told['memory_gb']} GB, load before the start "
            f"{told['load_before']}. Written by `python benchmarks/speed_serving.py` of commit "
            f"{found['commit'] or '?'}.",
        ]
    )


def measure(data: Path, plan: Plan, *, only: str | None = None) -> Iterator[Json]:
    """All rows of the table, one by one; `data` holds `gpt2_bpe` and `ag_news`."""
    titles, texts = read_news(data, plan.texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "model", data / "gpt2_bpe")
        if only != "served":
            yield from predict_rows(plan, model, texts, folder)
        if only != "predict":
            yield from served_rows(plan, model, titles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with gpt2_bpe and ag_news")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("predict", "served"))
    parser.add_argument("--peer-python", default=sys.executable, help="the peer's own environment")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    given = parser.parse_args()
    chosen = QUICK if given.quick else FULL
    plan = Plan(**{**vars(chosen), "peer_python": given.peer_python})
    begun = start_record()
    name = "-".join(["speed-serving", *(part for part in (given.only, given.quick and "quick") if part)])
    rows: list[Json] = []
    try:
        for row in measure(given.data, plan, only=given.only):
            rows.append(row)
            found = {**begun, "rows": rows}
            write_record(given.results, name, found, page(found))  # hours aren't lost with what fails
    except Failed as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
