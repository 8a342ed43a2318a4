"""Quality against bits: ours one-shot, with zeros and without, ours trained, and the others, from what was measured.

    python benchmarks/frontier.py [--model mamba-wiki-4m]

Measures nothing: it reads results/few_bits.jsonl, recovery.jsonl and ladder.jsonl, prints for each of our sizes the
best of the others that is smaller or hardly larger, and draws results/frontier.png. Ours are on whole texts,
llama.cpp's and llm-compressor's on the first windows of the same texts, each beside the dense model on the same ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

RESULTS = Path(__file__).parent / "results"
TEXTS = {"wiki.test.raw": "WikiText", "c4.txt": "C4"}
OURS, WHOLE, TRAINED = "ours", "ours without zeros", "ours, trained 500 steps"
MARKS = {OURS: "o-", WHOLE: "o:", TRAINED: "s-"}
_NEAR = 0.35
"""Bits that another form may have more than ours, so that hardly any of ours is left without one."""
COLOURS = {OURS: "tab:blue", WHOLE: "tab:cyan", TRAINED: "tab:green"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One form of a model on one text: bits a projection weight, perplexity beside the dense one, means over seeds."""

    name: str
    text: str
    bits: float
    ratio: float
    seeds: int = 1


def rows_of(name: str, model: str) -> list[dict]:
    lines = (RESULTS / name).read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["model"] == model]


def own_points(model: str) -> list[Point]:
    """One-shot and trained; of several learning rates the one that is best on the validation text."""
    ratios: dict[tuple, list[float]] = defaultdict(list)
    for row in rows_of("few_bits.jsonl", model):
        if "bits" in row and row["windows"] is None:
            for text, ratio in row["x"].items():
                ratios[OURS if row["zeros"] else WHOLE, text, row["bits"]].append(ratio)
    runs = [row for row in rows_of("recovery.jsonl", model) if row.get("bits") and row["steps"] == 500]
    valid = {
        (row["bits"], row["rate"]): row["trained"] for row in runs if row["text"] == "wiki.valid.tokens"
    }  # of any seed
    for row in runs:
        rates = {rate: found for (bits, rate), found in valid.items() if bits == row["bits"]}
        if row["text"] in TEXTS and row["rate"] == min(rates, key=rates.__getitem__):
            ratios[TRAINED, row["text"], row["bits"]].append(row["trained"] / row["dense"])
    return [
        Point(name=name, text=text, bits=bits, ratio=statistics.mean(found), seeds=len(found))
        for (name, text, bits), found in ratios.items()
    ]


def other_points(model: str) -> list[Point]:
    names = {text: raw for raw, text in TEXTS.items()}
    found: dict[tuple[str, str], dict] = {}
    for row in rows_of("ladder.jsonl", model):
        if row.get("refused") or row["type"] in ("F32", "F16"):
            continue
        own = f"{'llama.cpp' if 'llama' in row['rival'] else 'llm-compressor'} {row['type']}"
        before = found.get((own, row["text"]), row)
        better = (row["windows"], -row["ratio"]) >= (before["windows"], -before["ratio"])
        found[own, row["text"]] = row if better else before
    return [
        Point(name=own, text=names[text], bits=row["bits"], ratio=row["ratio"]) for (own, text), row in found.items()
    ]


def print_table(own: list[Point], others: list[Point]) -> None:
    names = (
        "text",
        "bits",
        OURS,
        "seeds",
        WHOLE,
        "seeds",
        TRAINED,
        "best other, up to 0.35 bits more",
        "bits",
        "x dense",
    )
    print(f"| {' | '.join(names)} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for text in TEXTS:
        for bits in sorted({point.bits for point in own if point.text == text}, reverse=True):
            at = {point.name: point for point in own if (point.text, point.bits) == (text, bits)}
            cells = [f"{at[name].ratio:.4f} | {at[name].seeds}" if name in at else " | " for name in (OURS, WHOLE)] + [
                f"{at[TRAINED].ratio:.4f}" if TRAINED in at else ""
            ]
            near = [point for point in others if point.text == text and point.bits <= bits + _NEAR]
            best = min(near, key=lambda point: point.ratio, default=None)
            rival = "none | | " if best is None else f"{best.name} | {best.bits:.2f} | {best.ratio:.4f}"
            print(f"| {TEXTS[text]} | {bits:g} | {' | '.join(cells)} | {rival} |")


def draw(model: str, own: list[Point], others: list[Point]) -> None:
    figure, panels = plt.subplots(1, len(TEXTS), figsize=(11, 4.6), sharey=True, constrained_layout=True)
    for panel, (text, label) in zip(panels, TEXTS.items(), strict=True):
        for name, mark in MARKS.items():
            points = sorted((p.bits, 100 * (p.ratio - 1)) for p in own if (p.name, p.text) == (name, text))
            if points:
                panel.plot(*zip(*points, strict=True), mark, color=COLOURS[name], label=name, markersize=4)
        for tool, colour in (("llama.cpp", "tab:red"), ("llm-compressor", "tab:orange")):
            points = [(p.bits, 100 * (p.ratio - 1)) for p in others if p.text == text and p.name.startswith(tool)]
            points = [(bits, rise) for bits, rise in points if bits < 5 and 0.1 < rise < 200]
            panel.plot(*zip(*points, strict=True), "x", color=colour, label=tool)
        panel.set(title=f"{model}, {label}", xlabel="bits a projection weight in the file, all told", yscale="log")
        panel.set_yticks([0.2, 0.5, 1, 2, 5, 10, 20, 50, 100], ["0.2", "0.5", "1", "2", "5", "10", "20", "50", "100"])
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("rise of perplexity, %")
    panels[0].legend(frameon=False)
    figure.savefig(RESULTS / "frontier.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mamba-wiki-4m")
    model = parser.parse_args().model
    own, others = own_points(model), other_points(model)
    print_table(own, others)
    draw(model, own, others)


if __name__ == "__main__":
    main()
