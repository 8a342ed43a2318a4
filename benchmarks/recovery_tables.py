"""The tables and the picture of what `recovery.py` has measured."""

from __future__ import annotations

import json
import math
import os
import statistics
from itertools import groupby
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(os.environ.get("RECOVERY_RESULTS", Path(__file__).parent / "results" / "recovery.jsonl"))
LABELS = {
    "dense": "dense, fine-tuned",
    "rtn4": "dense, projections at 4 bits (nearest, groups of 32), not trained",
    "small": "a smaller dense model, from scratch on 14 million tokens",
    "paper": "the paper: gradient-magnitude, cubic, global, cross-entropy",
    "ours": "ours: one-shot with least squares, then KL to the dense model and half as much cross-entropy",
    "ours-kl": "ours with KL alone",
    "ours-ce": "ours with cross-entropy alone",
    "ours-mask": "ours without least squares",
    "ours-once": "ours in one pruning step",
    "ours-linear": "ours, linear schedule",
    "ours-uniform": "ours, uniform",
    "ours-gradient": "ours with the paper's score",
    "ours-magnitude": "ours with magnitude",
    "ours-hidden": "ours with KL and SquareHead",
    "paper-magnitude": "the paper with alpha 0",
    "paper-half": "the paper with alpha 0.5",
    "paper-linear": "the paper, linear schedule",
    "paper-once": "the paper's mask at once",
    "paper-uniform": "the paper, uniform",
    "paper-kl": "the paper with distillation",
}


def _key(run: dict) -> tuple:
    size = run["sparsity"], -(run["bits"] or 0.0)
    return run["model"], -run["steps"], run["text"], *size, list(LABELS).index(run["row"]), run["rate"], run["batch"]


def _rate(run: dict) -> str:
    return f"{run['rate']:g}" + ("" if run["batch"] == 8 else f", batch {run['batch']}")


def _size(run: dict) -> str:
    return f"{run['sparsity']:.0%}" if run["bits"] is None else f"{run['bits']:g} bits"


def _ratios(runs: list[dict], name: str) -> list[float]:
    return [run[name] / run["dense"] for run in runs if run[name] is not None]


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def print_tables() -> None:
    """A markdown table for each number of steps and text, and the curve of the longest runs."""
    runs = sorted((json.loads(line) for line in RESULTS.read_text().splitlines()), key=_key)
    for (model, steps, text), part in groupby(runs, key=lambda run: (run["model"], run["steps"], run["text"])):
        print(f"\n{model}, {steps} steps of 8 x 512 tokens, {text}\n")
        print(
            "| method | sparsity or bits | learning rate | seeds | perplexity | x dense, pruned | trained | minutes |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for _, group in groupby(part, key=_key):
            same = list(group)
            first = same[0]
            perplexity = statistics.mean(run["trained"] for run in same)
            print(
                f"| {LABELS[first['row']]} | {_size(first)} | {_rate(first)} | {len(same)} "
                f"| {perplexity:.2f} | {_cell(_ratios(same, 'pruned'))} | {_cell(_ratios(same, 'trained'))} "
                f"| {statistics.mean(run['minutes'] for run in same):.1f} |"
            )
    _draw(runs)


def _draw(runs: list[dict]) -> None:
    runs = [run for run in runs if run["model"] == "mamba-wiki-3m" and run["bits"] is None]
    longest = max(run["steps"] for run in runs)
    tested = [run for run in runs if run["text"] == "wiki.test.raw"]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for row, color in (("paper", "tab:orange"), ("ours", "tab:blue")):
        rates: dict[tuple[float, float], list[float]] = {}
        for run in tested:
            if run["row"] == row and run["steps"] == longest:
                rates.setdefault((run["sparsity"], run["rate"]), []).append(run["trained"] / run["dense"])
        points: dict[float, float] = {}  # at the best learning rate
        for (sparsity, _), ratios in rates.items():
            points[sparsity] = min(points.get(sparsity, math.inf), statistics.mean(ratios))
        if points:
            axes.plot(
                [100 * sparsity for sparsity in sorted(points)],
                [points[sparsity] for sparsity in sorted(points)],
                marker="o",
                color=color,
                label=LABELS[row].split(":")[0],
            )
    for row, style in (("dense", "-"), ("rtn4", "--"), ("small", ":")):
        values = [r["trained"] / r["dense"] for r in tested if r["row"] == row and r["steps"] in (0, longest)]
        if values:
            label = f"{LABELS[row].split(',')[0]} at 4 bits" if row == "rtn4" else LABELS[row].split(", from")[0]
            axes.axhline(min(values), color="0.4", linestyle=style, label=label)
    axes.set(xlabel="zeros in the projections, %", ylabel="perplexity, x dense as it is")
    axes.set_title(f"After {longest * 4096 / 1e6:.1f} million tokens of training")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(RESULTS.with_suffix(".png"), dpi=130)
