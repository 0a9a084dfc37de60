"""Features of a frozen body in batches of 32, as sentence-embedding tools do, and a logistic regression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from meter import Meter
from rows import read_job, read_rows
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH = 32


def main() -> None:
    """One step is the whole job: features of every row, longest first, then the head."""
    job = read_job()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], dtype=torch.float32)
    body = model.base_model.eval().to(job["device"])
    columns = read_rows(job["rows"])
    ids = columns["input_ids"]
    meter = Meter()
    meter.begin()
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    features = np.empty((len(ids), body.config.hidden_size), np.float32)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = tokenizer.pad({"input_ids": [ids[row] for row in chosen]}, return_tensors="pt").to(
            body.device
        )
        with torch.inference_mode():
            hidden = body(**batch, use_cache=False).last_hidden_state
        last = batch["attention_mask"].sum(1) - 1
        features[chosen] = hidden[torch.arange(len(chosen)), last].float().cpu().numpy()
    LogisticRegression(max_iter=1000).fit(features, columns["labels"])
    meter.step(tokens=sum(map(len, ids)), loss=0.0)
    meter.end()
    meter.write(Path(job["result"]))


if __name__ == "__main__":
    main()
