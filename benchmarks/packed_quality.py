"""What packing costs in quality, through the paths that really run: token by token, and prefill.

    python benchmarks/packed_quality.py [--model FOLDER] [--sparsity 0.7] [--windows 64]

Prunes the model with the default recipe (or takes a pruned one with --pruned FOLDER), packs it as bfloat16 and as
int8, and feeds WikiText-103's raw test text, eight windows of 512 tokens at once, one token after the other. The
reference has the same bfloat16 weights in float32 arithmetic. The data folder is that of HF_MAMBA_PRUNE_DATA.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F

from hf_mamba_prune import PruningConfig, load_model, prune, read_text, use_native
from hf_mamba_prune.packed.checkpoint import load_packed, write_packed_model

DATA = Path(os.environ.get("HF_MAMBA_PRUNE_DATA", "../shared/data"))
WINDOW, BATCH = 512, 8


def windows(tokenizer, count: int) -> torch.Tensor:
    text = read_text(str(DATA / "wikitext/wiki.test.raw"), "test")
    ids = torch.tensor(tokenizer(text.joined(), verbose=False).input_ids)
    whole = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    return whole[: count // BATCH * BATCH]


@torch.no_grad()
def by_token(model, ids: torch.Tensor) -> torch.Tensor:
    """Logits after each token: the first token is the prefill, all others are native steps."""
    first = model(ids[:, :1], use_cache=True)
    steps = [first.logits[:, -1]]
    for t in range(1, ids.shape[1]):
        steps.append(model.engine.step(ids[:, t].contiguous(), first.cache_params))
    return torch.stack(steps, dim=1)


def loss(logits: torch.Tensor, ids: torch.Tensor) -> float:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DATA.parent / "models" / "mamba-wiki-3m"))
    parser.add_argument("--pruned", help="a folder that is pruned already")
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--windows", type=int, default=64)
    arguments = parser.parse_args()
    loaded = load_model(arguments.pruned or arguments.model, device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    ids = windows(tokenizer, arguments.windows)
    with tempfile.TemporaryDirectory() as temporary, use_native(model):
        if arguments.pruned is None:
            prune(model, tokenizer, PruningConfig(sparsity=arguments.sparsity), calibration())
        model.to(torch.bfloat16).float()
        packed = {}
        for values in ("auto", "int8"):
            folder = Path(temporary) / values
            write_packed_model(folder, model, tokenizer, torch.bfloat16, values)
            packed[values] = load_packed(folder, unpack=False)
        print(f"{ids.numel():,} tokens, windows of {WINDOW}")
        report(model, packed, ids)


def calibration():
    return read_text(str(DATA / "text/enwiki.txt.xz"), "train")


@torch.no_grad()
def report(model, packed: dict, ids: torch.Tensor) -> None:
    paths = {(values, path): [] for values in packed for path in ("token by token", "prefill")}
    worst, doubtful, base = dict.fromkeys(paths, 0.0), {path: [] for path in paths}, []
    for batch in ids.split(BATCH):
        reference = model(batch).logits
        base.append(loss(reference, batch))
        top = reference.topk(2, dim=-1)
        gap = top.values[..., 0] - top.values[..., 1]
        for values, path in paths:
            found = by_token(packed[values], batch) if path == "token by token" else packed[values](batch).logits
            paths[values, path].append(loss(found, batch))
            worst[values, path] = max(worst[values, path], (found - reference).abs().max().item())
            other = found.argmax(-1) != top.indices[..., 0]
            doubtful[values, path].append((gap[other], other.sum().item()))
    dense = math.exp(sum(base) / len(base))
    print(f"bf16 weights, float32 arithmetic: perplexity {dense:.3f}\n")
    print("| values | path | perplexity | change | largest logit difference | other best token | beyond it |")
    print("|---|---|---|---|---|---|---|")
    for (values, path), losses in paths.items():
        perplexity = math.exp(sum(losses) / len(losses))
        others = doubtful[values, path]
        disagreeing = sum(count for _, count in others)
        beyond = sum(int((gaps > worst[values, path]).sum()) for gaps, _ in others)
        print(
            f"| {'bf16' if values == 'auto' else values} | {path} | {perplexity:.3f} | {perplexity / dense - 1:+.3%} "
            f"| {worst[values, path]:.4f} | {disagreeing} of {ids.numel()} | {beyond} |"
        )


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
