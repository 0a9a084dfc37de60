"""The machine's best bf16 matrix-product rate at a GPT-2 block's own shapes, forward and backward.

    python benchmarks/speed_matmul.py RESULT.json WIDTH TOKENS

A step multiplies each of the four weights of a block three times: for the output, for the gradient of the
input, and for the gradient of the weight. Each product is timed alone, its best time counts, and the rate
is all the work over the sum of these times. A product is tried by all threads together, and by one thread a
core side by side, each with its part of the tokens: the faster way counts.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

TRIES = 20


def block_shapes(width: int) -> list[tuple[int, int]]:
    """(inputs, outputs) of a block's weights: attention in and out, the layer within, and back."""
    return [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]


def products(tokens: int, width: int) -> list[tuple[int, int, int]]:
    """(rows, inner, columns) of the twelve products of a block's training step."""
    found = []
    for inputs, outputs in block_shapes(width):
        found += [(tokens, inputs, outputs), (tokens, outputs, inputs), (inputs, tokens, outputs)]
    return found


def best_seconds(shape: tuple[int, int, int], device: str) -> float:
    """The shortest of some tries, in the layout of memory that suits the machine better."""
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    right = torch.randn(inner, columns, device=device, dtype=torch.bfloat16)
    layouts = [(left, right), (left, right.T.contiguous().T)]
    taken = []
    for one, other in layouts:
        out = one @ other
        for _ in range(TRIES):
            wait(device)
            began = time.perf_counter()
            torch.mm(one, other, out=out)
            wait(device)
            taken.append(time.perf_counter() - began)
    return min(taken)


def side_by_side_seconds(shape: tuple[int, int, int], *, tokens: int, workers: int) -> float:
    """The shortest time in which so many threads do the product together, each a part of the tokens alone."""
    own = tuple(-(-size // workers) if size == tokens else size for size in shape)
    barrier = threading.Barrier(workers)

    def work(_: int) -> list[tuple[float, float]]:
        torch.set_num_threads(1)
        rows, inner, columns = own
        left = torch.randn(rows, inner, dtype=torch.bfloat16)
        right = torch.randn(inner, columns, dtype=torch.bfloat16)
        out = left @ right
        spans = []
        for other in (right, right.T.contiguous().T):
            for _try in range(TRIES):
                barrier.wait()
                began = time.perf_counter()
                torch.mm(left, other, out=out)
                spans.append((began, time.perf_counter()))
        return spans

    with ThreadPoolExecutor(workers) as pool:
        spans = list(pool.map(work, range(workers)))
    tries = zip(*spans, strict=True)
    taken = [max(end for _, end in one) - min(begin for begin, _ in one) for one in tries]
    return float(min(taken))


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Writes the rate in operations (two per multiply-add) per second."""
    width, tokens = int(sys.argv[2]), int(sys.argv[3])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = products(tokens, width)
    together = [best_seconds(shape, device) for shape in shapes]
    workers = torch.get_num_threads() if device == "cpu" else 1
    if workers > 1:
        apart = [side_by_side_seconds(shape, tokens=tokens, workers=workers) for shape in shapes]
        together = [min(pair) for pair in zip(together, apart, strict=True)]
    seconds = sum(together)
    operations = sum(2 * rows * inner * columns for rows, inner, columns in shapes)
    Path(sys.argv[1]).write_text(
        json.dumps({"operations_per_second": operations / seconds}), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
