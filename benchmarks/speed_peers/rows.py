"""The job that speed.py gives a peer, and its rows: token ids, so that both sides see the same tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars


def read_job() -> dict[str, Any]:
    """The JSON file named on the command line."""
    disable_progress_bars()
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def read_rows(path: str) -> dict[str, list[Any]]:
    """Columns: input_ids, and labels or completion_mask."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return {key: [row[key] for row in rows] for key in rows[0]}


def as_dataset(columns: dict[str, list[Any]], *, pad_id: int, pad_all: bool = False) -> Dataset:
    """With `pad_all` every row is padded to the longest of all, as `tokenizer(texts, padding=True)` does."""
    if pad_all:
        longest = max(map(len, columns["input_ids"]))
        masks = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in columns["input_ids"]]
        padded = [ids + [pad_id] * (longest - len(ids)) for ids in columns["input_ids"]]
        columns = {**columns, "input_ids": padded, "attention_mask": masks}
    return Dataset.from_dict(columns)


def dropout_of(job: dict[str, Any]) -> dict[str, float]:
    """GPT-2's three: on embeddings, residuals and inside attention."""
    return dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), float(job["dropout"]))


def common_arguments(job: dict[str, Any]) -> dict[str, Any]:
    """What every setting shares: the same batch and rate as ours; nothing is saved on the way."""
    return {
        "output_dir": job["folder"],
        "num_train_epochs": 1,
        "max_steps": job["stop_after"] or -1,
        "per_device_train_batch_size": job["batch_size"],
        "per_device_eval_batch_size": job["validation_rows"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        "use_cpu": job["device"] == "cpu",
        "dataloader_pin_memory": job["device"] != "cpu",
        **job["arguments"],
    }
