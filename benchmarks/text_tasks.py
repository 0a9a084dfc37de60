"""One command on each of ten real data sets: how long, how good beside the best rung, does it stop by itself.

    python benchmarks/text_tasks.py [--works multi30k xquad ...] [--minutes 5] [--base starter]

Every command runs in a process of its own, as a person would type it. What was measured with
another base, other minutes or other code is run again. The data are not part of this project:
see --data. What is there is not run again (--again does). Prints a table and writes it with the numbers to
benchmarks/results/DATE-text-tasks.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import Any

from quality_data import digest
from record import RESULTS, sources_digest, start_record, write_record

from gptailor.models.names import resolve_base

HERE = Path(__file__).resolve().parent
LONGEST_MINUTES, ENOUGH_STOP = 10, 0.95
NO_MODEL = ("majority", "tfidf", "copy", "lead", "nearest", "longer", "shorter", "unigram", "xz", "mean")
REUTERS = "reuters.jsonl"
SCORES = ("bleu", "f1", "rouge_l", "chrf", "accuracy", "micro_f1", "macro_f1", "bits_per_byte")


def commands(data: Path, work: Path) -> dict[str, list[str]]:
    """The arguments of `gptailor fit` for every work."""
    flickr, e2e, scitldr = data / "multi30k", data / "e2e_nlg", data / "scitldr"
    pairs = {
        f"--{side}": str(flickr / f"{part}.{language}.gz")
        for part, sides in (
            ("train", ("source", "target")),
            ("val", ("validation", "validation-target")),
            ("test_2016_flickr", ("test", "test-target")),
        )
        for side, language in zip(sides, ("en", "de"), strict=True)
    }
    summary = ["--preset", "summarization", "--prompt", "source", "--completion", "target"]
    return {
        "multi30k": [part for pair in pairs.items() for part in pair],
        "xquad": [str(data / "qa" / "xquad.en.json")],
        "covidqa": [str(data / "qa" / "covidqa_200423.json")],
        "scitldr": [
            str(scitldr / "train.jsonl"),
            *("--validation", str(scitldr / "dev.jsonl"), "--test", str(scitldr / "test.jsonl")),
            *summary,
        ],
        "e2e_nlg": [
            str(e2e / "devset.csv"),
            *("--test", str(e2e / "testset_w_refs.csv")),
            *("--task", "completion", "--prompt", "mr", "--completion", "ref"),
        ],
        "dolly": [str(data / "dolly" / "dolly_6400.jsonl")],
        "openai_ft": [str(data / "openai_ft" / "toy_chat_fine_tuning.jsonl")],
        "dpo_en_demo": [str(data / "preference" / "dpo_en_demo.json")],
        "tinyshakespeare": [str(data / "lm_small" / "tinyshakespeare.txt"), "--task", "language"],
        "reuters": [str(work / REUTERS), "--text", "text", "--label", "topics"],
    }


def write_reuters(folder: Path, out: Path) -> None:
    """Title, body and topics of every article: SGML as JSON lines."""
    with out.open("w", encoding="utf-8") as file:
        for path in sorted(folder.glob("*.sgm")):
            for article in re.findall(
                r"<REUTERS.*?</REUTERS>", path.read_text(encoding="latin-1"), re.DOTALL
            ):
                found = re.search(r"<TOPICS>(.*?)</TOPICS>", article, re.DOTALL)
                topics = re.findall(r"<D>(.*?)</D>", found[1]) if found else []
                parts = re.findall(r"<(?:TITLE|BODY)>(.*?)</(?:TITLE|BODY)>", article, re.DOTALL)
                text = " ".join(unescape(unescape("\n".join(parts))).split())
                file.write(json.dumps({"text": text, "topics": topics}) + "\n")


def run(name: str, arguments: Sequence[str], wanted: argparse.Namespace) -> dict[str, Any]:
    """Fits, times, and picks what is asked of the report."""
    folder = wanted.work / "runs" / name
    common = ["--out", str(folder), "--overwrite", "--base", wanted.base, "--minutes", str(wanted.minutes)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "GPTAILOR_CACHE": str(wanted.work / "cache" / name)}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "gptailor", "fit", *arguments, *common, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{name}: gptailor fit ended with {done.returncode}\n{done.stderr[-2000:]}")
    return {"work": name, "seconds": round(seconds, 1), **read_report(json.loads(done.stdout))}


def read_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """The score that the verdict is about, the best rung without a model, and the share that stops."""
    verdict, rungs = report["verdict"], report["baselines"]
    score = verdict.get("metric") or next(key for key in SCORES if key in report["test"])
    ours = report["test"][score]["value"]
    lower = score in ("bits_per_byte", "mae")
    known = {
        rung: found[score]["value"] for rung, found in rungs.items() if rung in NO_MODEL and found.get(score)
    }
    best = (min if lower else max)(known, key=lambda rung: known[rung], default=None)
    return {
        "task": report["task"],
        "rows": report["data"]["train"],
        "score": score,
        "ours": ours,
        "rung": best,
        "theirs": known.get(best) if best else None,
        "ahead": best is not None and (ours < known[best] if lower else ours > known[best]),
        "stops": (report["test"].get("stop_rate") or {}).get("value"),
        "steps": report["training"]["steps"],
        "verdict": verdict["says"],
    }


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """One row a work; what a bar asks is marked where it is missed."""
    out = [
        "| work | rows | minutes | score | fine-tune | best without a model | stops by itself |",
        "|---|---:|---:|---|---:|---|---:|",
    ]
    for line in lines:
        minutes = line["seconds"] / 60
        late = " (too long)" if minutes > LONGEST_MINUTES else ""
        rung = "none" if line["rung"] is None else f"{line['theirs']:.3f} ({line['rung']})"
        behind = "" if line["ahead"] or line["rung"] is None else " (not ahead)"
        stops = "" if line["stops"] is None else f"{line['stops']:.1%}"
        short = " (too few)" if line["stops"] is not None and line["stops"] < ENOUGH_STOP else ""
        out.append(
            f"| {line['work']} | {line['rows']:,} | {minutes:.1f}{late} | {line['score']} | "
            f"{line['ours']:.3f}{behind} | {rung} | {stops}{short} |"
        )
    return "\n".join(out)


def results_text(found: Mapping[str, Any]) -> str:
    """The page."""
    host, lines = found["machine"], found["works"]
    said = "\n".join(f"- {line['work']}: {line['verdict']}" for line in lines)
    return (
        f"# Text tasks, {found['when'][:10]}\n\n{table(lines)}\n\nWhat the runs say themselves:\n\n{said}\n\n"
        f"Base {found['base']}, at most {found['minutes']:g} minutes of training each; {host['cores']} cores "
        f"of {host['processor']}, {host['memory_gb']} GB. Bits per byte: less is better; everything else: "
        "more. "
        "Written by `python benchmarks/text_tasks.py`.\n"
    )


def main() -> None:
    """Runs what isn't there, prints the table, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--works", nargs="+", help="some of them only")
    parser.add_argument("--minutes", type=float, default=5, help="of training, each")
    parser.add_argument("--base", default="starter")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=HERE / "work" / "text_tasks")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the two files")
    parser.add_argument("--again", action="store_true", help="run what is there once more")
    wanted = parser.parse_args()
    wanted.work = wanted.work.resolve()
    begun = start_record()
    known = commands(wanted.data.resolve(), wanted.work)
    if unknown := set(wanted.works or ()) - set(known):
        parser.error(f"--works: there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    kept = wanted.work / "lines"
    kept.mkdir(parents=True, exist_ok=True)
    lines = []
    about = [resolve_base(wanted.base).revision, wanted.minutes, sources_digest()]
    for name in wanted.works or known:
        path = kept / f"{name}-{digest(about)[:8]}.json"
        if wanted.again or not path.exists():
            if name == "reuters":
                write_reuters(wanted.data / "reuters21578", wanted.work / REUTERS)
            line = run(name, known[name], wanted)
            path.write_text(json.dumps(line, indent=1), encoding="utf-8")
            print(f"{name}: {line['seconds']:.0f} s, {line['verdict']}", file=sys.stderr, flush=True)
        lines.append(json.loads(path.read_text(encoding="utf-8")))
    found = {**begun, "base": wanted.base, "minutes": wanted.minutes, "works": lines}
    path = write_record(wanted.results, "text-tasks", found, results_text(found))
    print(table(lines))
    print(f"\nwritten to {path.name} and {path.with_suffix('.md').name}", file=sys.stderr)


if __name__ == "__main__":
    main()
