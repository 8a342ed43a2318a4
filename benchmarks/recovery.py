"""Recovery by training: the paper's recipe, ours, and the dense model fine-tuned, on the same tokens.

    python benchmarks/recovery.py [--sparsity 0.7] [--rows dense paper ours ...] [--steps 500] [--lr 1e-3] [--seeds 1]

The model is mamba-wiki-3m, the tokens are those that it has never seen (8 x 512 a step, 500 steps are 2 million), the
measure is the whole raw test text of WikiText-103 as `hf-mamba-prune evaluate` reports it. The data folder is that of
the environment variable HF_MAMBA_PRUNE_DATA (default ../shared/data), the model stands beside it in ../models. Every
row can have its own learning rate: run it with several and take the best of each. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from hf_mamba_prune import Evaluation, PruningConfig, Recovery, TextSource, load_model, prune, read_text, use_native
from hf_mamba_prune.recovery import recover

DATA = Path(os.environ.get("HF_MAMBA_PRUNE_DATA", "../shared/data"))
PAPER = dict(score="gradient-magnitude", reconstruct=False)
GRADUAL, DISTILLED = dict(gradual=True, distill=False), dict(distill=True)

# label, options of the pruning config, how it is trained
ROWS: dict[str, tuple[str, dict, dict]] = {
    "dense": ("dense, fine-tuned", dict(sparsity=0.0), dict(distill=False)),
    "paper": ("the paper: gradient-magnitude, cubic, global, cross-entropy", PAPER, GRADUAL),
    "ours": ("ours: one-shot with least squares, then KL to the dense model", {}, DISTILLED),
    "ours-ce": ("ours without distillation: cross-entropy", {}, dict(distill=False)),
    "ours-mask": ("ours without least squares", dict(reconstruct=False), DISTILLED),
    "ours-once": ("ours in one pruning step", dict(steps=1), DISTILLED),
    "ours-uniform": ("ours with uniform sparsity", dict(allocation="uniform"), DISTILLED),
    "paper-magnitude": ("the paper with alpha 0", PAPER | dict(alpha=0.0), GRADUAL),
    "paper-half": ("the paper with alpha 0.5", PAPER | dict(alpha=0.5), GRADUAL),
    "paper-linear": ("the paper, linear schedule", PAPER | dict(schedule="linear"), GRADUAL),
    "paper-once": ("the paper's mask at once", PAPER | dict(steps=1), dict(distill=False)),
    "paper-uniform": ("the paper, uniform", PAPER | dict(allocation="uniform"), GRADUAL),
    "paper-kl": ("the paper with distillation", PAPER, dict(gradual=True, distill=True)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DATA.parent / "models" / "mamba-wiki-3m"))
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.7])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=["dense", "paper", "ours"])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--windows", type=int, default=None, help="only the first windows of 2,048 tokens")
    parser.add_argument("--valid", action="store_true", help="measure on the validation text, to choose settings")
    arguments = parser.parse_args()
    unseen = np.load(DATA.parent / "models" / "mamba-wiki-3m-unseen.npz")["tokens"].astype(np.int64)
    tokens = torch.from_numpy(unseen)
    calibration = read_text(str(DATA / "text/enwiki.txt.xz"), "train")
    text = "wiki.valid.tokens" if arguments.valid else "wiki.test.raw"
    evaluation = Evaluation((read_text(str(DATA / "wikitext" / text), "test"),), 2048, None, arguments.windows)
    loaded = load_model(arguments.model, device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    teacher = copy.deepcopy(model)
    with use_native(model):
        base = evaluation.run(model, tokenizer)[0].perplexity
        print(f"dense {base:.2f} on {text}; {arguments.steps} steps of 8 x 512 tokens\n")
        print("| method | sparsity | learning rate | pruned | trained | x dense | lowest to highest | minutes |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        choices = [(s, r, lr) for s in arguments.sparsity for r in arguments.rows for lr in arguments.lr]
        for sparsity, row, rate in choices:
            label, options, training = ROWS[row]
            config = {"sparsity": sparsity} | options
            before, after, started = [], [], time.perf_counter()
            for seed in range(arguments.seeds):
                model.load_state_dict(teacher.state_dict())
                pruning = PruningConfig(**config, seed=seed)
                if not training.get("gradual") and pruning.sparsity:
                    prune(model, tokenizer, pruning, calibration)
                    before.append(evaluation.run(model, tokenizer)[0].perplexity)
                recovery = Recovery(TextSource("unseen", ()), steps=arguments.steps, learning_rate=rate, **training)
                order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
                seen = tokens[order[: arguments.steps * recovery.batch_size]]
                recover(model, seen, pruning, recovery, teacher if recovery.distill else None)
                after.append(evaluation.run(model, tokenizer)[0].perplexity)
            print(
                f"| {label} | {config['sparsity']:.0%} | {rate:g} | {statistics.mean(before) if before else 0:.2f} "
                f"| {statistics.mean(after):.2f} | {statistics.mean(after) / base:.4f} "
                f"| {min(after) / base:.4f} to {max(after) / base:.4f} "
                f"| {(time.perf_counter() - started) / 60 / arguments.seeds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
