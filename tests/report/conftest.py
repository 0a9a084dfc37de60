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
            "macro_precision": score(0.887),
            "macro_recall": score(0.882),
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
            "overfitting": "Validation loss rose after step 408, so the weights of that step were kept.",
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
        "baseline_notes": {"few_shot": "would take more than 20 % of the forecast time"},
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


STORIES = [
    "The keeper of the light climbed the stairs twice a night, once at ten and once before dawn.",
    "Nobody on the island had seen a newspaper since the ferry stopped running in the autumn.",
    "She wrote down the barometer, the wind, and whatever the gulls were doing that hour.",
]


def make_language_report() -> dict[str, Any]:
    return {
        "version": 1,
        "task": "language",
        "base": "starter",
        "approach": "full",
        "seed": 0,
        "data": {
            "read": 1310,
            "dropped": {"duplicate": 38, "no_text": 4, "leak_near": 2},
            "train": 1012,
            "validation": 127,
            "test": 127,
            "bytes": {"train": 3_412_870, "validation": 421_300, "test": 418_922},
            "tokens": {"trained": 871_204, "context": 214_210, "cut": 0, "padding": 13_120},
        },
        "test": {
            "documents": 127,
            "tokens": 106_810,
            "bytes": 418_922,
            "bits_per_byte": score(1.382, 0.021),
            "perplexity": score(42.71, 2.4),
            "loss": score(3.754, 0.056),
        },
        "validation": {
            "documents": 127,
            "tokens": 107_400,
            "bytes": 421_300,
            "bits_per_byte": score(1.377, 0.022),
            "perplexity": score(42.02, 2.5),
            "loss": score(3.738, 0.058),
        },
        "baselines": {
            "unigram": {"bits_per_byte": score(2.604, 0.014), "perplexity": score(1_189.0, 46.0)},
            "xz": {"bits_per_byte": score(2.187, 0.02)},
            "base": {"bits_per_byte": score(1.741, 0.024), "perplexity": score(113.2, 8.8)},
        },
        "verdict": {
            "best_baseline": "base",
            "difference": {"value": -0.359, "low": -0.372, "high": -0.345},
            "worth_it": True,
            "says": "The fine-tune needs 0.359 bits per byte less than the base as it came "
            "(95 % interval 0.345 to 0.372 less): worth it.",
        },
        "training": {
            "steps": 640,
            "best_step": 512,
            "seconds": 421.7,
            "tokens_per_second": 10_340.2,
            "peak_memory_bytes": 1_203_238_553,
            "stopped": "early",
            "validation_bits_per_byte": 1.377,
            "overfitting": "Overfitting from step 512: since then the training loss fell by 0.21 and the "
            "validation loss rose by 0.06 nats. The weights of step 512 were kept.",
            "bit_exact": True,
        },
        "environment": {"torch": "2.13.0", "machine": "x86_64", "threads": 2, "precision": "fp32"},
    }


def make_language_details() -> dict[str, Any]:
    curves: list[dict[str, Any]] = [
        {
            "step": step,
            "train_loss": 1.4 * math.exp(-step / 120) + 3.62 - step / 2400 + 0.06 * math.sin(step * 1.7),
            "learning_rate": 3e-4 * min(1, step / 38) * (0.5 + 0.5 * math.cos(math.pi * step / 640)),
        }
        for step in range(1, 641)
    ]
    for row in curves[31::32]:
        nats = 1.1 * math.exp(-row["step"] / 130) + 3.71 + max(0, row["step"] - 512) / 2200
        row |= {"validation_loss": nats, "validation_bits_per_byte": nats * 0.3684}
    counts = [14, 120, 260, 318, 240, 150, 92, 51, 30, 17, 9, 5, 2, 1, 0, 1]
    return {
        "title": "lighthouse",
        "created": "2026-11-21 10:12 UTC",
        "command": "gptailor fit lighthouse.jsonl --task language",
        "version": "0.1.0",
        "base_details": {"name": "starter", "parameters": 1_382_400, "license": "CC BY-SA 4.0"},
        "block_tokens": 512,
        "tokenizer": {"vocabulary": 8192, "bytes_per_token": 3.922},
        "curves": curves,
        "candidates": [
            {"approach": "full", "chosen": True, "validation_bits_per_byte": 1.377, "seconds": 421.7}
        ],
        "samples": _samples(),
        "hardest": [
            {
                "text": STORIES[i % 3] * (1 + i % 2),
                "bits_per_byte": 4.93 - 0.21 * i,
                "where": f"lh.jsonl:{9 * i}",
            }
            for i in range(9)
        ],
        "lengths": {
            "counts": counts,
            "edges": [170.0 * i for i in range(len(counts) + 1)],
            "max_tokens": 512,
            "longest": 2719,
            "cut_rows": 0,
            "cut_tokens": 0,
        },
        "duplicates": [{"kept": "lh.jsonl:1", "dropped": "lh.jsonl:44", "text": STORIES[0]}],
        "leaks": [
            {
                "train": "lh.jsonl:7",
                "test": "lh.jsonl:81",
                "kind": "leak_near",
                "texts": [STORIES[1], STORIES[1]],
            }
        ],
        "openings": [
            {
                "when": "2026-11-21T10:12:31+00:00",
                "command": "fit",
                "scores": {"bits_per_byte": score(1.382, 0.021), "perplexity": score(42.71, 2.4)},
            }
        ],
        "notes": ["Text from column body.", "Documents are packed into blocks of 512 tokens."],
        "parity": {"rows": 8, "largest_difference": 3.1e-6},
        "recipe": "task: language\ndata:\n  train: lighthouse.jsonl\n",
    }


def _samples() -> list[dict[str, Any]]:
    return [
        {
            "prompt": "The lamp had gone out a little after two, and by the time",
            "before": " the first of the two men was the first to be in the first of the two. The name of "
            "the first was a list of the first.",
            "after": " the keeper had his boots on the wind had turned. He lit it again with a steady hand "
            "and wrote the hour in the book.\n\n\u201cTwice this week,\u201d said his wife from the stair.",
            "reference": " she reached the gallery the glass was cold to the touch. She trimmed the wick, "
            "counted to ten as her father had taught her, and tried again.",
        },
        {
            "prompt": "Letters came on Thursdays,",
            "before": " and the other members of the family.",
            "after": " if they came at all, and the postman never stayed for tea.",
            "reference": " tied with the same green string that the shop used for parcels of cheese.",
        },
        {
            "prompt": "From the north window",
            "before": "s of the house, the house was built in the house of the house.",
            "after": " you could see the whole of the bay, and the two boats that had not come home.",
            "reference": " nothing could be seen but weather.",
        },
        {
            "prompt": "It was the third",
            "before": " of the",
            "after": "",
            "reference": " storm of that spring.",
        },
        {"prompt": "He said", "before": " that", "after": " nothing more.", "reference": " it would hold."},
        {"prompt": "The tide", "before": " of", "after": " was out.", "reference": " turned at noon."},
    ]


@pytest.fixture
def language_report() -> dict[str, Any]:
    return make_language_report()


@pytest.fixture
def language_details() -> dict[str, Any]:
    return make_language_details()
