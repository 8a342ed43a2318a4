"""Trains one small Mamba twice from the same start, with mambapy and with the native kernels: one curve, two times.

python benchmarks/training_curve.py --text enwiki.txt.xz --model mamba-wiki-3m --out curve.png
"""

from __future__ import annotations

import argparse
import lzma
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import mambapy  # noqa: F401  (without it transformers runs its slow loop in mambapy's name)
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from transformers import AutoConfig, AutoTokenizer, MambaForCausalLM

from hf_mamba_prune import native


def batches(text: Path, tokenizer_folder: str, steps: int, size: int, length: int) -> torch.Tensor:
    """(steps, size, length) token ids from the start of the text."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    opened = lzma.open if text.suffix == ".xz" else open
    with opened(text, "rt", encoding="utf-8") as file:
        start = file.read(steps * size * length * 8)
    ids = torch.tensor(tokenizer(start)["input_ids"])
    wanted = steps * size * length
    if len(ids) < wanted:
        raise ValueError(f"the text has {len(ids)} tokens, {wanted} are needed: fewer --steps")
    return ids[:wanted].view(steps, size, length)


def train(data: torch.Tensor, folder: str, kernels: bool) -> tuple[list[float], float]:
    """The loss of each step, and the seconds it all took."""
    torch.manual_seed(0)
    model = MambaForCausalLM(AutoConfig.from_pretrained(folder, use_mambapy=not kernels)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses, start = [], time.perf_counter()
    with native.use_native(model) if kernels else nullcontext():
        for ids in data:
            loss = model(ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", required=True, help="folder of a config and a tokenizer; its weights are unused")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("training_curve.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    data = batches(arguments.text, arguments.model, arguments.steps, arguments.batch, arguments.length)
    native_losses, native_seconds = train(data, arguments.model, True)
    stock_losses, stock_seconds = train(data, arguments.model, False)

    worst = max(abs(a - b) for a, b in zip(native_losses, stock_losses, strict=True))
    print(f"native  {native_seconds:7.1f} s, last 20 losses {statistics.mean(native_losses[-20:]):.4f}")
    print(f"mambapy {stock_seconds:7.1f} s, last 20 losses {statistics.mean(stock_losses[-20:]):.4f}")
    print(f"largest difference of one step's losses {worst:.4f}; {stock_seconds / native_seconds:.1f} x faster")
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(stock_losses, label=f"stock transformers with mambapy, {stock_seconds:.0f} s", linewidth=3, alpha=0.5)
    axes.plot(native_losses, label=f"native kernels, {native_seconds:.0f} s", linewidth=1)
    axes.set(xlabel="step", ylabel="loss", title="The same training run on two CPU cores")
    axes.legend()
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
