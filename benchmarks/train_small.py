"""Trains a small Mamba-2 (or Mamba) language model from scratch, as the bundled mamba-wiki-3m was trained.

    python benchmarks/train_small.py --text enwiki.txt.xz --tokenizer mamba-wiki-3m --out mamba2-wiki-3m

By default 2,900 steps of 8 x 512 tokens of the text, each seen once; AdamW (0.9, 0.95), weight decay 0.1 on matrices,
peak learning rate 4e-3 with 150 warm-up steps and cosine decay to 5 %, clipping 1.0, bf16 autocast over fp32 weights.
A run that was stopped goes on from its last saved step.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import AutoTokenizer, Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from hf_mamba_prune import native

COMMON = dict(num_hidden_layers=8, expand=2, vocab_size=4096, bos_token_id=0, eos_token_id=0, pad_token_id=0)
BATCH, LENGTH = 8, 512


def build(kind: str, hidden: int = 192) -> torch.nn.Module:
    """About 2.8 million weights of either kind with 192 channels, embeddings tied to the head."""
    torch.manual_seed(0)
    common = COMMON | dict(hidden_size=hidden, tie_word_embeddings=True)
    if kind == "mamba":
        return MambaForCausalLM(MambaConfig(**common, state_size=16))
    heads = dict(state_size=64, head_dim=64, num_heads=hidden // 32, n_groups=1, chunk_size=64)
    return Mamba2ForCausalLM(Mamba2Config(**common, **heads))


def sequences(text: Path, tokenizer_folder: Path) -> torch.Tensor:
    """(count, LENGTH) token ids: articles with token 0 after each, cut into sequences, shuffled with seed 0."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    articles = lzma.open(text, "rt", encoding="utf-8").read().split("\n\n = ")
    articles = articles[:1] + [" = " + article for article in articles[1:]]
    stream: list[int] = []
    for start in range(0, len(articles), 256):
        for ids in tokenizer(articles[start : start + 256])["input_ids"]:
            stream += ids
            stream.append(0)
    rows = len(stream) // LENGTH
    cut = np.array(stream[: rows * LENGTH], dtype=np.int64).reshape(rows, LENGTH)
    return torch.from_numpy(cut[np.random.default_rng(0).permutation(rows)])


def rate(step: int, steps: int, peak: float) -> float:
    """Learning rate: linear warm-up over 150 steps, then cosine to 5 % of the peak."""
    if step < 150:
        return peak * (step + 1) / 150
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - 150) / (steps - 150))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["mamba2", "mamba"], default="mamba2")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with a tokenizer of 4,096 entries")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peak", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--hidden", type=int, default=192, help="d_model")
    parser.add_argument("--steps", type=int, default=2900)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)

    data = sequences(arguments.text, arguments.tokenizer)
    model = build(arguments.kind, arguments.hidden).train()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.peak, betas=(0.9, 0.95))
    state, losses = arguments.out / "state.pt", []
    if state.exists():
        saved = torch.load(state)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        losses = saved["losses"]
    weights = sum(p.numel() for p in model.parameters())
    print(f"{weights:,} weights, {len(data):,} sequences, from step {len(losses)}", flush=True)

    start = time.perf_counter()
    with native.use_native(model):
        for step in range(len(losses), arguments.steps):
            ids = data[step * BATCH : (step + 1) * BATCH]
            for group in optimizer.param_groups:
                group["lr"] = rate(step, arguments.steps, arguments.peak)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) % 50 == 0:
                mean = sum(losses[-50:]) / 50
                print(f"step {len(losses)}: loss {mean:.4f}, {time.perf_counter() - start:.0f} s", flush=True)
            if len(losses) % 100 == 0:
                saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}
                torch.save(saved, state.with_suffix(".new"))
                state.with_suffix(".new").rename(state)
    model.save_pretrained(arguments.out)
    AutoTokenizer.from_pretrained(arguments.tokenizer).save_pretrained(arguments.out)
    (arguments.out / "losses.json").write_text(json.dumps(losses))
    smooth = np.convolve(losses, np.ones(20) / 20, mode="valid")
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(np.arange(len(smooth)) + 20, smooth)
    axes.set(
        xlabel="step of 8 x 512 tokens", ylabel="loss (mean of 20)", title=f"{arguments.kind}, {weights:,} weights"
    )
    figure.tight_layout()
    figure.savefig(arguments.out / "loss.png", dpi=120)


if __name__ == "__main__":
    main()
