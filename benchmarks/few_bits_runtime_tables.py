"""The tables and the picture of what `few_bits_runtime.py` has measured."""

from __future__ import annotations

import json
import os
from itertools import groupby
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(
    os.environ.get("FEW_BITS_RUNTIME_RESULTS", Path(__file__).parent / "results" / "few_bits_runtime.jsonl")
)
RIVAL = "llama.cpp Q4_K_M"
HEAD = ("", "file, MB", "x bf16", "memory, MB", "prefill", "generate", "forwards of a token", f"x {RIVAL}")


def table(rows: list[dict]) -> list[str]:
    """All forms of a shape; tokens a second, and those of forwards beside llama.cpp's."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    rival = next((row["forwards"] for row in rows if row["form"] == RIVAL), 0.0)
    for row in rows:
        memory = "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e6:.0f}"
        speeds = [f"{row[name]:.0f}" if row[name] else "" for name in ("prefill", "generate", "forwards")]
        beside = f"{row['forwards'] / rival:.2f}" if rival and row["forwards"] else ""
        size = row["file_bytes"]
        cells = [row["form"], f"{size / 1e6:.1f}", f"{size / row['dense_bytes']:.3f}", memory, *speeds, beside]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write_tables() -> None:
    """Write the markdown file and the picture beside the results."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    shapes = [(shape, list(own)) for shape, own in groupby(rows, key=lambda row: row["shape"])]
    text = [
        f"`benchmarks/few_bits_runtime.py --table`, of the measurements in `{RESULTS.name}`; the picture is "
        "`speed_by_size.png`. Tokens a second.",
        "llama.cpp is its prebuilt library, with the best backend that the processor has.",
    ]
    for shape, own in shapes:
        text += ["", f"## mamba-{shape} shape", "", own[0]["processor"], "", *table(own)]
    RESULTS.with_suffix(".md").write_text("\n".join(text) + "\n")
    _draw(shapes)


def _draw(shapes: list[tuple[str, list[dict]]]) -> None:
    """Tokens a second, one by one, against the size of the file."""
    figure, panels = plt.subplots(
        1, len(shapes), figsize=(5.5 * len(shapes), 4.2), squeeze=False, layout="constrained"
    )
    for panel, (shape, rows) in zip(panels[0], shapes, strict=True):
        whole = [row for row in rows if row["bits"] and "masks" not in row["form"]]
        heads = sorted({row["form"].partition("head ")[2] for row in whole}, reverse=True)
        kinds = {
            f"ours, a width for each row{f', head of {head} bits' if head else ''}": (
                mark,
                [row for row in whole if row["form"].partition("head ")[2] == head],
            )
            for head, mark in zip(heads, ("o-", "v-", "^-"), strict=False)
        }
        kinds |= {
            "ours, all under masks": ("o:", [r for r in rows if r["bits"] and "masks" in r["form"]]),
            "ours, int8 and 70 % zeros": ("s", [r for r in rows if "int8" in r["form"]]),
            "llama.cpp": ("x--", [r for r in rows if r["llama"]]),
        }
        colours = ["blue"] * len(heads) + ["cyan", "green", "red"]
        for (name, (mark, own)), colour in zip(kinds.items(), colours, strict=True):
            if not own:
                continue
            own = sorted(own, key=lambda row: row["file_bytes"])
            points = [(row["file_bytes"] / 1e6, row["forwards"]) for row in own]
            panel.plot(*zip(*points, strict=True), mark, color=f"tab:{colour}", label=name, markersize=5)
            for row, place in zip(own, points, strict=True):
                label = (
                    f"{round(row['bits'], 2):g} bits"
                    if row["bits"]
                    else row["form"].split()[-1]
                    if row["llama"]
                    else ""
                )
                panel.annotate(label, place, textcoords="offset points", xytext=(5, 4), fontsize=7)
        panel.set(title=f"mamba-{shape}'s shape", xlabel="file, MB")
        panel.margins(x=0.12, y=0.08)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("tokens a second, one by one")
    panels[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS.with_name("speed_by_size.png"), dpi=110)
    plt.close(figure)
