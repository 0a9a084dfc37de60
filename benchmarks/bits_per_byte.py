"""What held-out texts cost a base, in bits per byte: the starter's, or any other's.

    python benchmarks/bits_per_byte.py [TEXT...] [--corpus FOLDER] [--base starter]

`--corpus` takes the last hundredth of the documents of every part of the starter's corpus, which it never
learned from, and all of them together. Prints a table and writes it with the numbers to
benchmarks/results/DATE-bits-per-byte.md and .json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import RESULTS, start_record, write_record

from gptailor.models.language_model import LanguageModel
from gptailor.models.names import context_length, read_config_file, resolve_base
from gptailor.models.vocabulary import END_OF_TEXT
from gptailor.pipeline.language_new import evaluate_language

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pretraining"))


def held_out_files(corpus: Path, folder: Path) -> list[Path]:
    """A text file for the held-out documents of each part, and one for those of all parts."""
    from corpus import documents, held_out_from

    written, every = [], []
    for part in sorted(corpus.glob("*.xz")):
        texts = list(documents(part))
        kept = texts[held_out_from(texts) :]
        every += kept
        written.append(write_texts(folder / part.name.removesuffix(".xz"), kept))
    return [*written, write_texts(folder / "all parts.txt", every)]


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text(f"\n{END_OF_TEXT}\n".join(texts) + "\n", encoding="utf-8")
    return path


def measure(base: str, texts: list[Path], *, block: int | None, separator: str) -> list[dict[str, Any]]:
    """One line for each text."""
    language_model = open_base(base, block=block)
    lines = []
    for text in texts:
        found = evaluate_language(language_model, str(text), separator=separator)
        kept = {name: found[name] for name in ("rows", "bytes", "scores")}
        lines.append({"text": text.stem, **kept})
        print(row(lines[-1]), flush=True)
    return lines


def open_base(name: str, *, block: int | None) -> LanguageModel:
    """A base as it came; texts are read as they stand, in blocks as long as its context."""
    base = resolve_base(name)
    context = context_length(read_config_file(base.path))
    untouched = dict.fromkeys(("repair_text", "unescape_entities", "drop_control", "squeeze_space"), False)
    return LanguageModel(base.path, block=min(block or context, context), clean=untouched)


def row(line: dict[str, Any]) -> str:
    bits, perplexity = (line["scores"][name] for name in ("bits_per_byte", "perplexity"))
    drawn = bits["low"] is not None  # a short text has no interval
    told = f"{bits['value']:.3f}" + (f" ({bits['low']:.3f} to {bits['high']:.3f})" if drawn else "")
    return f"| {line['text']} | {told} | {perplexity['value']:.1f} | {line['rows']:,} | {line['bytes']:,} |"


def main() -> None:
    """Measures, prints the table, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("texts", nargs="*", type=Path)
    parser.add_argument("--corpus", type=Path, help="folder of the starter's corpus")
    parser.add_argument("--base", default="starter")
    parser.add_argument("--block", type=int, help="tokens; null: the base's context")
    parser.add_argument("--separator", default=END_OF_TEXT, help="line between two documents")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the two files")
    wanted = parser.parse_args()
    if not wanted.texts and wanted.corpus is None:
        parser.error("give texts, --corpus, or both")
    begun = start_record()
    head = ["| text | bits per byte | perplexity | documents | bytes |", "|---|---|---:|---:|---:|"]
    print("\n".join(head))
    with tempfile.TemporaryDirectory() as folder:
        parts = held_out_files(wanted.corpus, Path(folder)) if wanted.corpus is not None else []
        lines = measure(wanted.base, [*parts, *wanted.texts], block=wanted.block, separator=wanted.separator)
    page = [
        f"# Bits per byte, {begun['when'][:10]}",
        "",
        *head,
        *map(row, lines),
        "",
        f"Base: {wanted.base}.",
    ]
    found = {**begun, "base": wanted.base, "texts": lines}
    write_record(wanted.results, "bits-per-byte", found, "\n".join(page))


if __name__ == "__main__":
    main()
