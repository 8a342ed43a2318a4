"""One-shot quality: what each method keeps of a real model's perplexity with nothing but a calibration text.

    python benchmarks/one_shot.py [--sparsity 0.5 0.7 2:4] [--seeds 3] [--rows ours wanda ...] [--windows N]
        [--c4] [--second]

Calibrated on 128 x 512 tokens of real text, measured on WikiText-103's raw test text as `hf-mamba-prune evaluate`
does, every row on all projections (in, x, dt, out) with the same true sparsity; what is tuned reads 512 sequences of
the same text. "magnitude, global" is what `torch.nn.utils.prune.global_unstructured` chooses. The data
folder is that of the environment variable HF_MAMBA_PRUNE_DATA (default ../shared/data), the model stands beside it in
../models. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch

from hf_mamba_prune import Evaluation, PruningConfig, load_model, prune, read_text, use_native

DATA = Path(os.environ.get("HF_MAMBA_PRUNE_DATA", "../shared/data"))
MASK_ONLY = dict(steps=1, reconstruct=False)
ROWS: dict[str, tuple[str, dict]] = {
    "magnitude": ("magnitude, uniform", dict(score="magnitude", allocation="uniform", **MASK_ONLY)),
    "l1": ("magnitude, global (torch.nn.utils.prune)", dict(score="magnitude", ceiling=1.0, **MASK_ONLY)),
    "wanda-row": ("Wanda, per row", dict(score="wanda", allocation="per-row", **MASK_ONLY)),
    "wanda": ("Wanda, uniform", dict(score="wanda", allocation="uniform", **MASK_ONLY)),
    "wanda-ls": ("Wanda, uniform + least squares, tuned", dict(score="wanda", allocation="uniform", steps=1)),
    "paper": ("gradient-magnitude, global (2505.08299)", dict(score="gradient-magnitude", **MASK_ONLY)),
    "fisher": ("fisher, global", dict(**MASK_ONLY)),
    "fisher-ls": ("fisher, global + least squares, 1 step, tuned", dict(steps=1)),
    "ours": ("hf-mamba-prune, as it is by default", dict()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DATA.parent / "models" / "mamba-wiki-3m"))
    parser.add_argument("--sparsity", nargs="+", default=["0.5", "0.7"], help="numbers, or patterns such as 2:4")
    parser.add_argument("--seeds", type=int, default=3, help="of the calibration")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--windows", type=int, default=None, help="only the first windows of 2,048 tokens")
    parser.add_argument("--second", action="store_true", help="measure on C4 too")
    parser.add_argument("--c4", action="store_true", help="calibrate on C4 instead")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"There is no data in {DATA}: set HF_MAMBA_PRUNE_DATA.")
    loaded = load_model(arguments.model, device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    source = DATA / ("calibration/c4.txt" if arguments.c4 else "text/enwiki.txt.xz")
    calibration = read_text(str(source), "train")
    texts = ["wikitext/wiki.test.raw"] + (["calibration/c4.txt"] if arguments.second else [])
    evaluation = Evaluation(
        texts=tuple(read_text(str(DATA / text), "test") for text in texts),
        window=2048,
        stride=None,
        max_windows=arguments.windows,
    )
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    with use_native(model):
        base = evaluation.run(model, tokenizer)
        values = ", ".join(f"{metrics.perplexity:.2f} on {metrics.text}" for metrics in base)
        print(f"dense {values}; calibrated on 128 x 512 tokens of {source.name}\n")
        print("| method | sparsity | text | perplexity | x dense | lowest to highest | seconds | peak GB |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for sparsity in arguments.sparsity:
            for row in arguments.rows:
                label, options = ROWS[row]
                if ":" in sparsity:
                    options = options | dict(pattern=sparsity, allocation=None, steps=1)
                else:
                    options = options | dict(sparsity=float(sparsity))
                seeds = 1 if options.get("score") == "magnitude" else arguments.seeds  # it sees no data
                found, seconds, peak = [], [], 0
                for seed in range(seeds):
                    model.load_state_dict(dense)
                    started = time.perf_counter()
                    report = prune(model, tokenizer, PruningConfig(seed=seed, **options), calibration)
                    seconds.append(time.perf_counter() - started)
                    peak = max(peak, *(cost.peak_bytes for cost in report.costs))
                    asked = report.config["sparsity"]
                    assert report.sparsity.masked == round(asked * report.sparsity.prunable.weights)
                    found.append([metrics.perplexity for metrics in evaluation.run(model, tokenizer)])
                for metrics, values in zip(base, zip(*found, strict=True), strict=True):
                    ratios = [value / metrics.perplexity for value in values]
                    print(
                        f"| {label} | {sparsity} | {metrics.text} | {statistics.mean(values):.2f} "
                        f"| {statistics.mean(ratios):.4f} | {min(ratios):.4f} to {max(ratios):.4f} "
                        f"| {statistics.mean(seconds):.0f} | {peak / 1e9:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
