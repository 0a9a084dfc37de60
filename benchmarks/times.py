"""How long a person waits: the commands of the README on this machine, with the bundled starter.

    python benchmarks/times.py [--quick]

Real headlines are taken from `../shared/data/ag_news` beside the checkout where they lie, else the bundled
sample. Every command runs in a process of its own with an empty cache, so imports and loading count. Prints
a table and writes it with the numbers to benchmarks/results/DATE-times.md and .json.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from record import RESULTS, start_record, write_record

import gptailor

HERE = Path(__file__).resolve().parent
NEWS = HERE.parent.parent / "shared" / "data" / "ag_news"
SAMPLE = Path(gptailor.__file__).parent / "data" / "sample" / "headlines.csv"
FIT_ROWS, MANY_ROWS = 1000, 10_000
LONGEST_FROZEN = 20  # seconds that a frozen fit may take, all in
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
Row = tuple[str, str]


@dataclass(frozen=True)
class Timing:
    """One line of the table."""

    what: str
    value: float
    unit: str
    how: str


@dataclass(frozen=True)
class Rows:
    """The files that are fitted, checked and predicted, and where their texts come from."""

    few: Path
    many: Path
    from_where: str


class Bench:
    """A folder with the files, and the command line run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "GPTAILOR_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}

    def run(self, *arguments: str) -> tuple[float, str]:
        """Wall seconds of a command, and its standard output."""
        command = [sys.executable, "-m", "gptailor", *arguments]
        began = time.perf_counter()
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"gptailor {' '.join(arguments)} failed:\n{done.stderr}")
        return seconds, done.stdout

    @contextmanager
    def server(self, run: str) -> Iterator[http.client.HTTPConnection]:
        """A connection to `gptailor serve`, which is stopped afterwards."""
        command = [sys.executable, "-m", "gptailor", "serve", run, "--port", "0"]
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        try:
            found = (match for line in process.stderr if (match := ADDRESS.search(line)))
            address = next(found, None)
            if address is None:
                raise SystemExit("the server didn't start")
            connection = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=60)
            yield connection
            connection.close()
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


# What is measured.


def time_help(bench: Bench, *, times: int) -> Timing:
    seconds = statistics.median(bench.run("--help")[0] for _ in range(times))
    return Timing("gptailor --help", seconds, "s", f"median of {times}")


def time_demo(bench: Bench) -> Timing:
    seconds, out = bench.run("demo", "--json")
    report = json.loads(out)
    how = f"{report['data']['read']} rows, approach {report['approach']} chosen"
    return Timing("gptailor demo", seconds, "s", how)


def time_fit(bench: Bench, rows: Rows) -> Timing:
    arguments = ["--approach", "frozen", "--baselines", "none", "--out", "run", "--json"]
    seconds, out = bench.run("fit", str(rows.few), "--text", "text", "--label", "label", *arguments)
    bar = f"under {LONGEST_FROZEN} s: {'holds' if seconds < LONGEST_FROZEN else 'does not hold'}"
    rows_read = json.loads(out)["data"]["read"]
    return Timing("gptailor fit, frozen", seconds, "s", f"{rows_read:,} rows, no baselines; {bar}")


def time_check(bench: Bench, rows: Rows) -> Timing:
    arguments = ["--text", "text", "--label", "label", "--no-estimate", "--json"]
    seconds, out = bench.run("check", str(rows.many), *arguments)
    return Timing("gptailor check", seconds, "s", f"{json.loads(out)['read']:,} rows, without the estimate")


def time_predict(bench: Bench, rows: Rows) -> Iterator[Timing]:
    """The command as a whole, and the rows a second once the model is loaded."""
    seconds, out = bench.run(
        "predict", "run", str(rows.many), "--text", "text", "-o", "answers.csv", "--json"
    )
    yield Timing("gptailor predict", seconds, "s", f"{json.loads(out)['rows']:,} rows into a CSV")
    run = gptailor.load(bench.folder / "run")
    run.predict(["warm up"])
    began = time.perf_counter()
    count = sum(1 for _ in run.predict_file(str(rows.many), text="text"))
    rate = count / (time.perf_counter() - began)
    yield Timing("prediction, model loaded", rate, "rows/s", f"{count:,} rows, fp32, bit-equal to the server")


def time_server(bench: Bench, rows: Rows, *, times: int) -> Iterator[Timing]:
    """Round trips over one connection, one text each, one after another."""
    texts = [text for text, _ in read_rows(rows.few)]
    headers = {"Content-Type": "application/json"}
    taken = []
    with bench.server("run") as connection:
        for number, text in enumerate(itertools.islice(itertools.cycle(texts), times + 20)):
            began = time.perf_counter()
            connection.request("POST", "/classify", json.dumps({"input": text}), headers)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise SystemExit(f"the server answered {response.status}: {body[:200]!r}")
            if number >= 20:  # the first ones warm up
                taken.append(1000 * (time.perf_counter() - began))
    taken.sort()
    how = f"{times} texts, one at a time, one connection"
    yield Timing("server round trip, median", statistics.median(taken), "ms", how)
    yield Timing("server round trip, 99 %", taken[int(0.99 * len(taken))], "ms", how)


def measure(bench: Bench, rows: Rows, *, quick: bool) -> Iterator[Timing]:
    """Every line of the table; the quick ones leave out the demo and the large file."""
    yield time_help(bench, times=3 if quick else 5)
    if not quick:
        yield time_demo(bench)
    yield time_fit(bench, rows)
    if not quick:
        yield time_check(bench, rows)
        yield from time_predict(bench, rows)
    yield from time_server(bench, rows, times=100 if quick else 500)


# The data and the machine.


def collect_rows(folder: Path) -> Rows:
    """A file of 1,000 rows and one of 10,000, as far as there are that many."""
    if NEWS.is_dir():
        few = [
            (f"{r['title']} {r['description']}", r["label"]) for r in dicts(NEWS / "openai_samples2000.csv")
        ]
        many = [(r["text"], r["label"]) for r in dicts(NEWS / "noisyag_val10000.csv")]
        from_where = "AG News"
    else:
        few = many = [(r["headline"], r["topic"]) for r in dicts(SAMPLE)]
        from_where = "the bundled sample"
    return Rows(
        write_rows(folder / "few.csv", few[:FIT_ROWS]),
        write_rows(folder / "many.csv", many[:MANY_ROWS]),
        from_where,
    )


def dicts(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_rows(path: Path) -> list[Row]:
    return [(row["text"], row["label"]) for row in dicts(path) if row["text"].strip()]


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


# What is written.


def table(timings: Sequence[Timing]) -> str:
    lines = ["| what | time | how |", "|---|---:|---|"]
    for timing in timings:
        digits = 0 if timing.value >= 100 else 1 if timing.value >= 10 else 2
        lines.append(f"| {timing.what} | {timing.value:,.{digits}f} {timing.unit} | {timing.how} |")
    return "\n".join(lines)


def results_text(found: Mapping[str, Any], timings: Sequence[Timing]) -> str:
    """The page."""
    host = found["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in host["versions"].items())
    return (
        f"# Times, {found['when'][:10]}\n\n{table(timings)}\n\n"
        f"{host['cores']} cores of {host['processor']}, {host['memory_gb']} GB, {host['device']}, "
        f"{host['threads']} threads; load before the start {host['load_before']}. Python {host['python']}, "
        f"{versions}. Texts: {found['data']}. Written by `python benchmarks/times.py"
        f"{' --quick' if found['quick'] else ''}`.\n"
    )


def main() -> None:
    """Measures, prints the table, and writes it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="without the demo and the large file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the two files")
    wanted = parser.parse_args()
    begun = start_record()
    timings: list[Timing] = []
    with tempfile.TemporaryDirectory(prefix="gptailor-times-") as folder:
        rows = collect_rows(Path(folder))
        for timing in measure(Bench(Path(folder)), rows, quick=wanted.quick):
            print(f"{timing.what}: {timing.value:,.2f} {timing.unit} ({timing.how})", file=sys.stderr)
            timings.append(timing)
    found = {
        **begun,
        "quick": wanted.quick,
        "data": rows.from_where,
        "times": [asdict(timing) for timing in timings],
    }
    name = f"times{'-quick' if wanted.quick else ''}"
    path = write_record(wanted.results, name, found, results_text(found, timings))
    print(table(timings))
    print(f"\nwritten to {path.name} and {path.with_suffix('.md').name}", file=sys.stderr)


if __name__ == "__main__":
    main()
