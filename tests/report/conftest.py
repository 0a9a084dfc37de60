"""A report and its details as a run would leave them, small and with 77 classes."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

LABELS = ["Sports", "Business", "World", "Sci/Tech"]
TEXTS = [
    "Striker signs a three-year deal after the cup final, club confirms",
    "Shares in the chip maker fell 4 % after it cut its outlook for the quarter",
    "Ministers meet to save the water treaty as talks enter a third day",
    "New telescope sees water vapour on a planet forty light years away",
]


def score(value: float, reach: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - reach, "high": value + reach}


def make_report(labels: list[str]) -> dict[str, Any]:
    draw = random.Random(1)
    per_class = {
        name: {key: score(draw.uniform(0.72, 0.97), 0.03) for key in ("precision", "recall", "f1")}
        | {"support": 40}
        for name in labels
    }
    return {
        "version": 1,
        "task": "classification",
        "base": "starter",
        "approach": "full",
        "seed": 0,
        "data": {
            "read": 2460,
            "dropped": {"duplicate": 41, "conflict": 6, "no_text": 3, "leak_near": 10},
            "train": 1920,
            "validation": 240,
            "test": 240,
            "tokens": {"trained": 81234, "context": 0, "padding": 5120, "cut": 400},
        },
        "test": {
            "accuracy": score(0.891),
            "macro_f1": score(0.884, 0.021),
            "precision": score(0.887),
            "recall": score(0.882),
            "per_class": per_class,
            "calibration_error": score(0.031, 0.012),
        },
        "validation": {"accuracy": score(0.9), "macro_f1": score(0.893)},
        "baselines": {
            "majority": {"macro_f1": score(0.1, 0.001), "accuracy": score(0.25)},
            "tfidf": {"macro_f1": score(0.842, 0.025), "accuracy": score(0.85)},
            "frozen": {"macro_f1": score(0.861, 0.024), "accuracy": score(0.86)},
            "zero_shot": {"macro_f1": score(0.512, 0.05), "accuracy": score(0.53), "rows": 150},
        },
        "verdict": {
            "best_baseline": "frozen",
            "difference": {"value": 0.023, "low": 0.004, "high": 0.041},
            "worth_it": True,
            "says": "The fine-tuned model beats frozen features by 0.023 macro-F1 (0.004 to 0.041).",
        },
        "training": {
            "steps": 600,
            "best_step": 408,
            "seconds": 192.4,
            "tokens_per_second": 5210.5,
            "peak_memory_bytes": 1_503_238_553,
            "stopped": "early",
        },
        "environment": {
            "torch": "2.13.0",
            "machine": "x86_64",
            "threads": 2,
            "precision": "fp32",
            "bit_exact": True,
        },
    }


def make_details(labels: list[str]) -> dict[str, Any]:
    return _result_details(labels) | _data_details(labels) | _run_details()


def _result_details(labels: list[str]) -> dict[str, Any]:
    draw = random.Random(2)
    size = len(labels)
    confusion = [[draw.choice([0, 0, 0, 1, 3]) for _ in labels] for _ in labels]
    for index in range(size):
        confusion[index][index] = draw.randrange(25, 60)
    bins = [
        (0.05 + 0.1 * i, max(0.0, min(1.0, 0.02 + 0.1 * i + draw.uniform(-0.05, 0.04)))) for i in range(2, 10)
    ]
    after = [{"confidence": c, "accuracy": a, "count": 5 + 3 * i * i} for i, (c, a) in enumerate(bins)]
    before = [
        {"confidence": c, "accuracy": max(0.0, a - 0.09), "count": 5 + 3 * i * i}
        for i, (c, a) in enumerate(bins)
    ]
    levels = [i / 40 for i in range(41)]
    return {
        "label_names": labels,
        "confusion": confusion,
        "reliability": {"before": before, "after": after},
        "coverage": [{"threshold": t, "coverage": 1 - t**4, "accuracy": 0.89 + 0.1 * t**2} for t in levels],
        "threshold": 0.62,
        "at_threshold": {"coverage": score(0.847), "accuracy": score(0.953)},
        "temperature": 1.31,
        "mistakes": [
            {
                "text": TEXTS[i % 4] + (" and then much more was said about it" * (i % 3)),
                "answer": labels[i % size],
                "prediction": labels[(i + 1) % size],
                "probability": 0.997 - 0.01 * i,
                "where": f"headlines.csv:{31 + 17 * i}",
            }
            for i in range(18)
        ],
        "confused": [
            {"answer": labels[i % size], "prediction": labels[(i + 2) % size], "count": 9 - i}
            for i in range(min(size, 8))
        ],
    }


def _data_details(labels: list[str]) -> dict[str, Any]:
    counts = [3, 40, 180, 420, 610, 540, 330, 170, 80, 40, 22, 14, 6, 3, 1, 0, 1]
    return {
        "lengths": {
            "counts": counts,
            "edges": [8 * i for i in range(len(counts) + 1)],
            "max_tokens": 96,
            "longest": 131,
            "cut_rows": 25,
            "cut_tokens": 400,
        },
        "duplicates": [
            {"kept": f"headlines.csv:{i}", "dropped": f"headlines.csv:{90 + i}", "text": TEXTS[i % 4]}
            for i in range(9)
        ],
        "conflicts": [
            {
                "text": TEXTS[1],
                "labels": ["Business", "World"],
                "rows": ["headlines.csv:3", "headlines.csv:9"],
            }
        ],
        "near_duplicates": [
            {
                "rows": ["headlines.csv:11", "headlines.csv:72"],
                "texts": [TEXTS[0], TEXTS[0] + " today"],
                "part": "train",
            }
        ],
        "leaks": [
            {
                "train": "headlines.csv:3",
                "test": "test.csv:9",
                "kind": "leak_near",
                "texts": [TEXTS[2], TEXTS[2] + "."],
            }
        ],
        "label_merges": {"SPORTS": "Sports", "Buisness": "Business"},
        "label_suspicions": [["World", "Word"]],
        "repairs": {"mojibake": [["caf\u00c3\u00a9 prices", "café prices"]]},
        "label_counts": {
            "train": {name: 480 - 5 * i for i, name in enumerate(labels)},
            "validation": dict.fromkeys(labels, 60),
            "test": dict.fromkeys(labels, 60),
        },
    }


def _run_details() -> dict[str, Any]:
    curves: list[dict[str, Any]] = [
        {
            "step": step,
            "train_loss": 1.4 * math.exp(-step / 140) + 0.12 + 0.05 * math.sin(step * 1.7),
            "learning_rate": 3e-4 * min(1, step / 36) * (0.5 + 0.5 * math.cos(math.pi * step / 600)),
        }
        for step in range(1, 601)
    ]
    for row in curves[23::24]:
        step = row["step"]
        row["validation_loss"] = 1.2 * math.exp(-step / 150) + 0.27 + max(0, step - 400) / 2500
        row["validation_macro_f1"] = 0.893 - 0.6 * math.exp(-step / 90) - max(0, step - 408) / 9000
    return {
        "title": "headlines",
        "created": "2026-11-21 10:12",
        "command": "gptailor fit headlines.csv --label topic",
        "version": "0.1.0",
        "base_details": {
            "name": "starter",
            "revision": "a1b2c3d4",
            "parameters": 9_812_480,
            "license": "CC BY-SA 4.0",
        },
        "curves": curves,
        "strengths": [
            {"strength": 10.0**p, "validation_macro_f1": 0.85 - 0.02 * abs(p)} for p in range(-3, 4)
        ],
        "candidates": [
            {"approach": "frozen", "validation_macro_f1": 0.866, "seconds": 11.2, "chosen": False},
            {"approach": "full", "validation_macro_f1": 0.893, "seconds": 181.0, "chosen": True},
        ],
        "overfitting": "Validation loss rose after step 408, so the weights of that step were kept.",
        "baseline_notes": {"few_shot": "skipped: would take more than 20 % of the forecast time"},
        "openings": [
            {
                "when": "2026-11-21 10:12",
                "command": "gptailor fit headlines.csv",
                "scores": {"macro_f1": score(0.884)},
            }
        ],
        "notes": ["Encoding utf-8, separator comma.", "Text from column title, label from column topic."],
        "parity": {"rows": 8, "largest_difference": 2.1e-6, "same_labels": True},
        "recipe": "task: classification\ndata:\n  train: headlines.csv\n",
    }


@pytest.fixture
def report() -> dict[str, Any]:
    return make_report(LABELS)


@pytest.fixture
def details() -> dict[str, Any]:
    return make_details(LABELS)


MANY = [f"intent_number_{index:02d}" for index in range(77)]


@pytest.fixture
def many_report() -> dict[str, Any]:
    return make_report(MANY)


@pytest.fixture
def many_details() -> dict[str, Any]:
    return make_details(MANY)
