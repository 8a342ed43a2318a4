"""Perplexity of every score x {uniform, global} at 50 / 60 / 70 / 80 %, masks alone, beside the dense model.

    python benchmarks/scores.py [MODEL] [--windows N] [--samples N]

Real model, calibrated on real text, measured on WikiText-103's raw test text. The data folder is that of the
environment variable HF_MAMBA_PRUNE_DATA (default ../shared/data), the model stands beside it in ../models.
Prints a markdown table.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from hf_mamba_prune import Evaluation, PruningConfig, calibrate, find_targets, load_model, read_text, use_native
from hf_mamba_prune.config import SCORE_NAMES
from hf_mamba_prune.masks.budget import allocate
from hf_mamba_prune.masks.calibration import Need
from hf_mamba_prune.masks.model import apply_masks, masks_within, scores_of_model
from hf_mamba_prune.masks.scores import build_score
from hf_mamba_prune.texts.sequences import sample_sequences

DATA = Path(os.environ.get("HF_MAMBA_PRUNE_DATA", "../shared/data"))
SPARSITIES = (0.5, 0.6, 0.7, 0.8)


def rows() -> list[tuple[str, dict]]:
    """Every score with both allocations; gradient-magnitude with both ways to aggregate."""
    options = [(name, {"score": name}) for name in SCORE_NAMES if name != "gradient-magnitude"]
    for gradient in ("absolute", "signed"):
        options.insert(1, (f"gradient-magnitude, {gradient}", {"score": "gradient-magnitude", "gradient": gradient}))
    return [
        (f"{name} | {allocation}", options | {"allocation": allocation})
        for name, options in options
        for allocation in ("uniform", "global")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(DATA.parent / "models" / "mamba-wiki-3m"))
    parser.add_argument("--windows", type=int, default=None, help="only the first windows of 2,048 tokens")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--scores", nargs="+", choices=SCORE_NAMES, default=SCORE_NAMES)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"There is no data in {DATA}: set HF_MAMBA_PRUNE_DATA.")
    loaded = load_model(arguments.model, device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    text = read_text(str(DATA / "wikitext" / "wiki.test.raw"), "test")
    evaluation = Evaluation(texts=(text,), max_windows=arguments.windows)
    calibration = read_text(str(DATA / "text" / "enwiki.txt.xz"), "train")
    sequences = sample_sequences(calibration, tokenizer, arguments.samples, 512, seed=0)
    dense = {name: p.detach().clone() for name, p in model.named_parameters()}
    targets = find_targets(model)
    with use_native(model), torch.no_grad():
        base = evaluation.run(model, tokenizer)[0].perplexity
        statistics = calibrate(model, targets, sequences, frozenset(Need))
        print(f"dense: {base:.2f}; {arguments.samples} x 512 tokens of calibration; all of this model's projections\n")
        print("| score | allocation | " + " | ".join(f"{s:.0%}" for s in SPARSITIES) + " |")
        print("|---|---|" + "---|" * len(SPARSITIES), flush=True)
        for label, options in rows():
            if options["score"] not in arguments.scores:
                continue
            cells = []
            for sparsity in SPARSITIES:
                config = PruningConfig(sparsity, ceiling=0.95, **options)
                scores_of = scores_of_model(model, build_score(config), statistics)
                mask_of = masks_within(allocate(targets, scores_of, config, sparsity), scores_of, config)
                apply_masks(model, targets, mask_of)
                perplexity = evaluation.run(model, tokenizer)[0].perplexity
                cells.append(f"{perplexity:,.1f} ({perplexity / base:.3f})")
                for name, parameter in model.named_parameters():
                    parameter.copy_(dense[name])
            print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
