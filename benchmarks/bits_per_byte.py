"""What held-out texts cost a base, in bits per byte: the starter's, or any other's.

    python benchmarks/bits_per_byte.py [--base starter] TEXT... [--separator '<|endoftext|>']

Prints and, with --out, writes JSON. The starter's own held-out slices are made by `pretraining/corpus.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gptailor.models.writer import open_base
from gptailor.pipeline.language_new import evaluate_language


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--base", default="starter")
    parser.add_argument("--block", type=int, help="tokens; null: the base's context")
    parser.add_argument("--separator", default="<|endoftext|>", help="line between two documents")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    writer = open_base(arguments.base, block=arguments.block)
    found = {}
    for text in arguments.texts:
        result = evaluate_language(writer, str(text), separator=arguments.separator)
        found[text.name] = result
        bits, perplexity = (result["scores"][name] for name in ("bits_per_byte", "perplexity"))
        print(
            f"{text.name:32s} {bits['value']:.3f} bits per byte ({bits['low']:.3f} to {bits['high']:.3f}), "
            f"perplexity {perplexity['value']:.1f}, {result['rows']:,} documents, {result['bytes']:,} bytes",
            flush=True,
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
