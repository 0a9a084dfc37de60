"""What speed.py runs: each work, how we and the peers are set up for it, and the bars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# Learning rates, the same on both sides. Random weights: at a usual 5e-5 the loss jumps about in the first
# steps, and where two runs of chaos end says nothing of whether they did the same.
RATES = {"full": 5e-7, "lora": 1e-5, "frozen": 1e-3}
LORA = {"r": 8, "lora_alpha": 16}
LORA_TARGETS = ["c_attn", "c_fc", "c_proj"]  # every linear layer of a GPT-2 block
EPOCHS_OF_FROZEN = 5  # what the Trainer needs for a frozen body, where we go through the rows once
SHAPES = {
    "gpt2": {},  # GPT2Config's own: 12 layers, 768 wide, 12 heads, 124 million weights
    "tiny": {"n_layer": 2, "n_embd": 64, "n_head": 2},  # to try the benchmark itself
}

Task = Literal["classification", "completion"]
Approach = Literal["full", "lora", "frozen"]


@dataclass(frozen=True)
class Peer:
    """A script under speed_peers/ and the arguments of its trainer."""

    script: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pad_all: bool = False  # every row to the longest of all
    epochs: int = 1  # how often it goes through the rows for what we do in one
    environment: Mapping[str, str] = field(default_factory=dict)  # variables of its process


@dataclass(frozen=True)
class Work:
    """One kind of training. `peers` by what we are held against: their usual setting, their best."""

    name: str
    task: Task
    approach: Approach
    peers: Mapping[str, Peer]
    batch_size: int = 16  # rows per optimizer step
    dropouts: tuple[float, ...] = (0.1, 0.0)
    epochs_of_rows: int = 1  # frozen: so many times the rows, since the head's fit isn't one step


# The Trainer as tutorials set it up, and the fastest that was found for it (docs/log.md). Where
# every row is padded to the longest of all, their order changes no time: ours is taken, so that the losses
# after the last step can be compared.
USUAL = Peer("classify", {"train_sampling_strategy": "sequential"}, pad_all=True)
BEST = Peer("classify", {"bf16": True, "train_sampling_strategy": "group_by_length"})
# glibc gives large blocks back to the system and asks for them again in every step, unless it is told not to.
KEPT = {"MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": str(2**26)}
KEPT_BEST = Peer("classify", BEST.arguments, environment=KEPT)  # a tenth faster where all weights are trained
FROZEN = {
    "usual": Peer("classify", USUAL.arguments, pad_all=True, epochs=EPOCHS_OF_FROZEN),
    "best": Peer("classify", BEST.arguments, epochs=EPOCHS_OF_FROZEN),
    "features": Peer("features"),
}
# TRL as it comes (bf16, activations recomputed, rows padded to the longest of the batch), and the fastest
# that was found: half of its time went into fresh memory for logits. Packed it is half as fast.
SFT_USUAL = Peer("complete")
LIGHT = {"gradient_checkpointing": False}
GROUPED = {**LIGHT, "train_sampling_strategy": "group_by_length"}
PACKED = {**LIGHT, "packing": True, "max_length": 1024, "per_device_train_batch_size": 2}
SFT_BEST = Peer("complete", GROUPED, environment=KEPT)

WORKS = (
    Work("classification full", "classification", "full", {"usual": USUAL, "best": KEPT_BEST}),
    Work("classification lora", "classification", "lora", {"usual": USUAL, "best": BEST}),
    Work("classification frozen", "classification", "frozen", FROZEN, dropouts=(0.1,), epochs_of_rows=3),
    Work("completion full", "completion", "full", {"usual": SFT_USUAL, "best": SFT_BEST}),
    Work("completion lora", "completion", "lora", {"usual": SFT_USUAL, "best": SFT_BEST}),
    # Batches of about 2,048 tokens, beside the matrix products of the same run.
    Work("share of the machine", "classification", "full", {}, batch_size=40, dropouts=(0.1, 0.0)),
)
DECIDING_DROPOUT = {work.name: work.dropouts[0] for work in WORKS}

# What could be a peer's best: `speed.py --candidates` tries each once, and the fastest stands above.
COMPILED = {"torch_compile": True}
TRAINER_CANDIDATES = {
    "rows padded by batch": Peer("classify"),
    "+ bf16": Peer("classify", {"bf16": True}),
    "+ grouped by length": BEST,
    "+ freed memory kept": KEPT_BEST,
    "+ compiled": Peer("classify", {**BEST.arguments, **COMPILED}),
    "+ both": Peer("classify", {**BEST.arguments, **COMPILED}, environment=KEPT),
}
SFT_CANDIDATES = {
    "fp32, activations kept": Peer("complete", {**LIGHT, "bf16": False}),
    "activations kept": Peer("complete", LIGHT),
    "+ grouped by length": Peer("complete", GROUPED),
    "+ freed memory kept": SFT_BEST,
    "+ compiled": Peer("complete", {**GROUPED, **COMPILED}, environment=KEPT),
    "packed": Peer("complete", PACKED),
    "packed, row by row": Peer(
        "complete", {**PACKED, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    ),
    "packed, shorter rows": Peer(
        "complete", {**PACKED, "max_length": 512, "per_device_train_batch_size": 4}, environment=KEPT
    ),
    "packed, freed memory kept": Peer("complete", PACKED, environment=KEPT),
}
CANDIDATES: Mapping[str, Mapping[str, Peer]] = {
    work.name: SFT_CANDIDATES if work.task == "completion" else TRAINER_CANDIDATES
    for work in WORKS
    if work.peers
}
