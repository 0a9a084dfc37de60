"""Tokens to starter: predict text and, beside it, teach the end-of-text position to carry the meaning.

Each step has two halves, one per thread, each on one core:

- windows of running text, next-token prediction;
- short texts that end with the end-of-text token: next-token prediction, and the hidden state at that
  token (the one a classification head reads) learns, through a projection that is thrown away, to match
  a sentence encoder's embedding (`teacher.py`).

Muon for the blocks' matrices, AdamW for the rest; warm up, flat, then linear to zero over the last steps.
The flat part can be stopped and resumed for as long as there is time; the decay is a branch from it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from gptailor.models.vocabulary import END_OF_TEXT, PAD

CONTEXT = 512
HALF = 4096  # tokens of one half step
HEAD_ROWS = 2048  # tokens whose logits are in memory at a time
TEACHER_WIDTH = 384
HEAD_WIDTH = 64

# One core a half: two halves side by side lose less than two cores that share each.
torch._inductor.config.cpp.threads = 1
# Compiled graphs called from C++ give the interpreter's lock back; called from Python they keep it, and the
# halves wait for each other.
torch._inductor.config.cpp_wrapper = True


class Block(nn.Module):
    """One GPT-2 block; matrices are (out, in), query, key and value apart: to Muon a matrix is one map."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()

        def matrix(out: int, into: int, scale: float = 0.02) -> nn.Parameter:
            return nn.Parameter(torch.randn(out, into) * scale)

        def zeros(size: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(size))

        self.query, self.key, self.value = matrix(width, width), matrix(width, width), matrix(width, width)
        self.attention_bias = zeros(3 * width)
        self.out, self.out_bias = matrix(width, width, 0.02 / math.sqrt(2 * depth)), zeros(width)
        self.up, self.up_bias = matrix(4 * width, width), zeros(4 * width)
        self.down, self.down_bias = matrix(width, 4 * width, 0.02 / math.sqrt(2 * depth)), zeros(width)
        self.norm_1, self.norm_1_bias = nn.Parameter(torch.ones(width)), zeros(width)
        self.norm_2, self.norm_2_bias = nn.Parameter(torch.ones(width)), zeros(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, length, width = x.shape
        half = torch.bfloat16

        y = functional.layer_norm(x, (width,), self.norm_1, self.norm_1_bias).to(half)
        weight = torch.cat([self.query, self.key, self.value]).to(half)
        mixed = functional.linear(y, weight, self.attention_bias.to(half))
        query, key, value = mixed.view(rows, length, 3, width // HEAD_WIDTH, HEAD_WIDTH).permute(
            2, 0, 3, 1, 4
        )
        # Written out: the fused kernel's backward takes four times as long here.
        scores = (query * HEAD_WIDTH**-0.5) @ key.transpose(-1, -2)
        read = torch.softmax(scores.float() + mask, -1).to(half) @ value
        read = read.transpose(1, 2).reshape(rows, length, width)
        x = x + functional.linear(read, self.out.to(half), self.out_bias.to(half))

        y = functional.layer_norm(x, (width,), self.norm_2, self.norm_2_bias).to(half)
        y = functional.gelu(functional.linear(y, self.up.to(half), self.up_bias.to(half)), approximate="tanh")
        return x + functional.linear(y, self.down.to(half), self.down_bias.to(half))


class Network(nn.Module):
    """GPT-2's architecture with bf16 products over float32 weights."""

    def __init__(self, vocabulary: int, layers: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(vocabulary, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(CONTEXT, width) * 0.01)
        self.blocks = nn.ModuleList(Block(width, layers) for _ in range(layers))
        self.norm, self.norm_bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.projection = nn.Parameter(torch.randn(TEACHER_WIDTH, width) * width**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (rows, length) to hidden states after the last norm, float32."""
        length, width = ids.shape[1], self.tokens.shape[1]
        x = functional.embedding(ids, self.tokens) + self.positions[:length]
        mask = torch.full((length, length), -math.inf).triu(1)
        for block in self.blocks:
            x = block(x, mask)
        return functional.layer_norm(x, (width,), self.norm, self.norm_bias)


def head_loss(hidden: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
    logits = functional.linear(hidden.to(torch.bfloat16), tokens.to(torch.bfloat16)).float()
    return functional.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")


def teacher_loss(hidden: Tensor, projection: Tensor, targets: Tensor) -> Tensor:
    """Cosine to the encoder's embedding, and telling the batch's texts apart."""
    guess = functional.normalize(functional.linear(hidden, projection), dim=-1)
    similarity = guess @ targets.T
    contrast = functional.cross_entropy(similarity / 0.05, torch.arange(len(targets)))
    return (1 - similarity.diagonal()).mean() + 0.1 * contrast


@dataclass(frozen=True, slots=True)
class Half:
    """What one thread computes in one step: inputs and next tokens (-1: none), and perhaps what to match."""

    ids: Tensor
    targets: Tensor
    last: Tensor | None = None
    meaning: Tensor | None = None


class Windows:
    """Windows of running text, parts in proportion to their size, a function of the step alone."""

    def __init__(self, work: Path) -> None:
        self.parts = [np.memmap(p, np.uint16, "r") for p in sorted(work.glob("*.train.bin"))]
        self.shares = np.array([len(p) for p in self.parts]) / sum(len(p) for p in self.parts)

    def __call__(self, dice: np.random.Generator, length: int) -> Half:
        rows = []
        for part in dice.choice(len(self.parts), HALF // length, p=self.shares):
            start = dice.integers(0, len(self.parts[part]) - length - 1)
            rows.append(self.parts[part][start : start + length + 1])
        both = torch.from_numpy(np.stack(rows).astype(np.int64))
        return Half(both[:, :-1], both[:, 1:])


class Pieces:
    """Short texts with the encoder's embeddings, grouped by length so that little is padding."""

    LENGTHS = (32, 64, 128)

    def __init__(self, work: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        end = tokenizer.eos_token_id
        self.ids: list[np.ndarray] = []
        meanings = []
        for path in sorted(work.glob("*.pieces.npy")):
            texts = json.loads(path.with_suffix(".json").read_text())
            meanings += [np.load(path)] * 2
            lowered = [t.lower().rstrip(".") for t in texts]
            for variant in (texts, lowered):
                for encoding in tokenizer.backend_tokenizer.encode_batch_fast(
                    variant, add_special_tokens=False
                ):
                    self.ids.append(np.array([*encoding.ids[: self.LENGTHS[-1] - 1], end], np.uint16))
        self.meanings = np.concatenate(meanings)
        sizes = np.array([len(i) for i in self.ids])
        edges = (0, *self.LENGTHS)
        # Three texts in four as they were written, one lowered: the encoder reads no capitals.
        lowered_too = np.concatenate([[i % 2 == 1] * (len(m)) for i, m in enumerate(meanings)])
        keep = ~lowered_too | (np.random.default_rng(0).random(len(sizes)) < 1 / 3)
        self.groups = {
            b: np.flatnonzero((sizes > a) & (sizes <= b) & keep) for a, b in itertools.pairwise(edges)
        }

    def __call__(self, dice: np.random.Generator, length: int) -> Half:
        chosen = dice.choice(self.groups[length], HALF // length, replace=False)
        ids = np.zeros((len(chosen), length), np.int64)
        targets = np.full((len(chosen), length), -1, np.int64)
        last = np.zeros(len(chosen), np.int64)
        for row, piece in enumerate(chosen):
            tokens = self.ids[piece]
            last[row] = len(tokens) - 1
            ids[row, : len(tokens)] = tokens
            targets[row, : len(tokens) - 1] = tokens[1:]
        meaning = torch.from_numpy(self.meanings[chosen].astype(np.float32))
        return Half(torch.from_numpy(ids), torch.from_numpy(targets), torch.from_numpy(last), meaning)

    def length(self, dice: np.random.Generator) -> int:
        """A group, in proportion to its tokens."""
        weight = np.array([len(g) * size for size, g in self.groups.items()], float)
        return int(dice.choice(list(self.groups), p=weight / weight.sum()))


class Step:
    """Gradients of one half, computed on one core; compiled once per shape."""

    def __init__(self, network: Network, teach: float) -> None:
        self.network, self.teach = network, teach
        self.parameters = list(network.parameters())
        self.body = torch.compile(network, dynamic=False)
        self.head = torch.compile(head_loss, dynamic=False)

    def __call__(self, half: Half) -> tuple[list[Tensor | None], float, float]:
        """Gradients, nats per token, distance to the teacher."""
        hidden = self.body(half.ids)
        flat = hidden.detach().flatten(0, 1)
        wanted = half.targets.flatten()
        count = max(1, int((wanted >= 0).sum()))
        of_hidden, of_tokens = [], torch.zeros_like(self.network.tokens)
        nats = 0.0
        for piece, target in zip(flat.split(HEAD_ROWS), wanted.split(HEAD_ROWS), strict=True):
            leaf = piece.requires_grad_()
            loss = self.head(leaf, self.network.tokens, target) / count
            gradient, more = torch.autograd.grad(loss, [leaf, self.network.tokens])
            of_hidden.append(gradient)
            of_tokens += more
            nats += loss.item()
        backward = [torch.cat(of_hidden).view_as(hidden)]
        outputs, match = [hidden], 0.0
        if half.last is not None and half.meaning is not None:
            end = hidden[torch.arange(len(half.last)), half.last]
            distance = teacher_loss(end, self.network.projection, half.meaning)
            outputs.append(self.teach * distance)
            backward.append(torch.ones(()))
            match = distance.item()
        found = torch.autograd.grad(outputs, self.parameters, backward, allow_unused=True)
        gradients = [
            g + of_tokens if p is self.network.tokens and g is not None else g
            for p, g in zip(self.parameters, found, strict=True)
        ]
        return gradients, nats, match


def build_optimizers(network: Network) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices (in two halves, one per thread), AdamW for the rest."""
    matrices = [p for p in network.blocks.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    rest = [p for p in network.parameters() if id(p) not in known]
    return [
        torch.optim.Muon(matrices[0::2], lr=0.02, weight_decay=0.01, momentum=0.95),
        torch.optim.Muon(matrices[1::2], lr=0.02, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def rate(step: int, steps: int, decay: int) -> float:
    """Warm up over 100 steps, stay, then fall linearly to zero over the last `decay` steps."""
    return min(1.0, (step + 1) / 100, (steps - step) / max(1, decay))


def bits_per_byte(network: Network, work: Path, part: str, blocks: int = 64) -> float:
    """Over the first windows of 512 tokens of the held-out documents."""
    tokens = np.memmap(work / f"{part}.held_out.bin", np.uint16, "r")
    size = int((work / f"{part}.held_out.bytes").read_text())
    starts = range(0, min(blocks * CONTEXT, len(tokens) - CONTEXT - 1), CONTEXT)
    nats = 0.0
    with torch.no_grad():
        for start in starts:
            both = torch.from_numpy(tokens[start : start + CONTEXT + 1].astype(np.int64))
            hidden = network(both[None, :-1])[0]
            nats += head_loss(hidden, network.tokens, both[1:]).item()
    return nats / (len(starts) * CONTEXT) / math.log(2) * len(tokens) / size


def export(network: Network, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes bf16 weights that GPT2LMHeadModel loads, and a tokenizer that ends every text."""
    from tokenizers.processors import TemplateProcessing

    vocabulary, width = network.tokens.shape
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=CONTEXT,
            n_embd=width,
            n_layer=len(network.blocks),
            n_head=width // HEAD_WIDTH,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    body = model.transformer
    pairs: list[tuple[Any, Tensor]] = [
        (body.wte.weight, network.tokens),
        (body.wpe.weight, network.positions),
        (body.ln_f.weight, network.norm),
        (body.ln_f.bias, network.norm_bias),
    ]
    for theirs, ours in zip(body.h, network.blocks, strict=True):
        assert isinstance(ours, Block)
        pairs += [
            (theirs.attn.c_attn.weight, torch.cat([ours.query, ours.key, ours.value]).T),
            (theirs.attn.c_attn.bias, ours.attention_bias),
            (theirs.attn.c_proj.weight, ours.out.T),
            (theirs.attn.c_proj.bias, ours.out_bias),
            (theirs.mlp.c_fc.weight, ours.up.T),
            (theirs.mlp.c_fc.bias, ours.up_bias),
            (theirs.mlp.c_proj.weight, ours.down.T),
            (theirs.mlp.c_proj.bias, ours.down_bias),
            (theirs.ln_1.weight, ours.norm_1),
            (theirs.ln_1.bias, ours.norm_1_bias),
            (theirs.ln_2.weight, ours.norm_2),
            (theirs.ln_2.bias, ours.norm_2_bias),
        ]
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, tokenizer.eos_token_id)]
    )
    tokenizer.save_pretrained(out)


def load_tokenizer(work: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(work / "tokenizer.json"),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        padding_side="right",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def save_state(path: Path, step: int, network: Network, optimizers: list[torch.optim.Optimizer]) -> None:
    state = {
        "step": step,
        "network": network.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="what corpus.py and teacher.py wrote")
    parser.add_argument("--state", type=Path, required=True, help="saved every 200 steps and gone on from")
    parser.add_argument(
        "--start", type=Path, help="another state to branch from, where there is no own one yet"
    )
    parser.add_argument("--out", type=Path, help="where the finished starter goes")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--decay", type=int, default=0, help="the last so many steps fall to zero")
    parser.add_argument(
        "--teach", type=float, default=3.0, help="weight of the teacher's loss; 0: text alone"
    )
    parser.add_argument(
        "--short", type=float, default=0.0, help="share of the steps whose text half is short texts, too"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="save and stop after so many")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    work: Path = arguments.work
    tokenizer = load_tokenizer(work)
    network = Network(len(tokenizer), arguments.layers, arguments.width)
    print(
        f"{sum(p.numel() for n, p in network.named_parameters() if n != 'projection'):,} parameters",
        flush=True,
    )
    optimizers = build_optimizers(network)
    first = 0
    for path in (arguments.state, arguments.start):
        if path is not None and path.exists():
            state = torch.load(path, weights_only=True)
            network.load_state_dict(state["network"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            first = int(state["step"])
            break
    peaks = [0.02, 0.02, 3e-3]

    windows = Windows(work)
    pieces = Pieces(work, tokenizer) if arguments.teach else None
    compute = Step(network, arguments.teach)

    def halves(step: int) -> list[Half]:
        dice = np.random.default_rng((1, step))
        running = windows(dice, CONTEXT if dice.random() < 0.25 else CONTEXT // 2)
        if pieces is None:
            return [running, windows(dice, running.ids.shape[1])]
        if dice.random() < arguments.short:
            running = pieces(dice, pieces.length(dice))
        return [running, pieces(dice, pieces.length(dice))]

    # One after the other at first: compiling is not for two threads at a time.
    lengths = [*Pieces.LENGTHS] if pieces else []
    for half in [windows(np.random.default_rng(0), n) for n in (CONTEXT // 2, CONTEXT)]:
        compute(half)
    for length in lengths:
        assert pieces is not None
        compute(pieces(np.random.default_rng(0), length))
    print("compiled", flush=True)

    guard = threading.local()
    began, done = time.monotonic(), 0
    smooth: dict[str, float] = {}
    stop: Callable[[], bool] = lambda: time.monotonic() - began > arguments.minutes * 60  # noqa: E731
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: (setattr(guard, "ready", True), torch.set_num_threads(1)), range(2)))
        coming = pool.submit(halves, first)
        step = first
        for step in range(first, arguments.steps):
            both = coming.result()
            results = list(pool.map(compute, both))
            coming = pool.submit(halves, step + 1)
            for parameter, *found in zip(compute.parameters, *(r[0] for r in results), strict=True):
                known = [g for g in found if g is not None]
                parameter.grad = sum(known[1:], known[0]) / 2 if known else None
            nn.utils.clip_grad_norm_(compute.parameters, 1.0)
            factor = rate(step, arguments.steps, arguments.decay)
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = peak * factor
            list(pool.map(lambda o: o.step(), optimizers))
            for name, value in (("text", results[0][1]), ("short", results[1][1]), ("match", results[1][2])):
                smooth[name] = value if name not in smooth else 0.98 * smooth[name] + 0.02 * value
            done += 1
            if (step + 1) % 50 == 0:
                speed = done * 2 * HALF / (time.monotonic() - began)
                shown = " ".join(f"{k} {v:.3f}" for k, v in smooth.items())
                print(f"step {step + 1} {shown} {speed:,.0f} tokens/s", flush=True)
            if (step + 1) % 200 == 0 or stop():
                save_state(arguments.state, step + 1, network, optimizers)
            if stop():
                break
        coming.result()
    if done:
        save_state(arguments.state, step + 1, network, optimizers)
    names = [p.name.split(".")[0] for p in sorted(work.glob("*.held_out.bin"))]
    print("bits per byte", {n: round(bits_per_byte(network, work, n), 3) for n in names}, flush=True)
    if arguments.out:
        export(network, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
