"""Measures the checkpoints of `llm_compressor.py` as `hf-mamba-prune evaluate` does, one row a method and sparsity.

    python benchmarks/rivals/evaluate.py --model mamba-wiki-3m --text wiki.test.raw --runs FOLDER [--only 0.7]

FOLDER holds the outputs, named <method>-<sparsity>-<seed>, with `-matched` behind it when their total was matched.
"""

from __future__ import annotations

import argparse
import re
import statistics
from pathlib import Path

import torch

from hf_mamba_prune import Evaluation, find_targets, load_model, read_text, use_native

NAME = re.compile(r"(?P<method>\w+)-(?P<sparsity>[\d.:]+)-(?P<seed>\d+)(?P<matched>-matched)?")


def measure(folder: str, evaluation: Evaluation) -> tuple[float, float]:
    """(perplexity, share of zeros in the prunable weights)."""
    loaded = load_model(folder, device="cpu")
    weights = [target.weight(loaded.model) for target in find_targets(loaded.model)]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    with use_native(loaded.model):
        return evaluation.run(loaded.model, loaded.tokenizer)[0].perplexity, zeros


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the dense model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="these sparsities")
    parser.add_argument("--windows", type=int, default=None)
    arguments = parser.parse_args()
    evaluation = Evaluation(
        texts=(read_text(arguments.text, "test"),), window=2048, stride=None, max_windows=arguments.windows
    )
    base, _ = measure(arguments.model, evaluation)
    print(f"dense {base:.2f}\n\n| method | asked | zeros in all four projections | perplexity | x dense | runs |")
    print("|---|---|---|---|---|---|", flush=True)
    groups: dict[tuple[str, str, str], list[Path]] = {}
    for folder in sorted(arguments.runs.iterdir()):
        found = NAME.fullmatch(folder.name)
        if found and (not arguments.only or found["sparsity"] in arguments.only):
            groups.setdefault((found["sparsity"], found["method"], found["matched"] or ""), []).append(folder)
    for (sparsity, method, matched), folders in groups.items():
        found = [measure(str(folder), evaluation) for folder in folders]
        ratios = [perplexity / base for perplexity, _ in found]
        print(
            f"| llm-compressor {method}{', total matched' if matched else ''} | {sparsity} | {found[0][1]:.2%} "
            f"| {statistics.mean(p for p, _ in found):.2f} | {statistics.mean(ratios):.4f} "
            f"({min(ratios):.4f} to {max(ratios):.4f}) | {len(found)} |",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
