"""The tables, the fits and the picture of what `tokens_per_parameter.py --measure` has measured."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

RESULTS = Path(
    os.environ.get("TOKENS_PER_PARAMETER_RESULTS", Path(__file__).parent / "results" / "tokens_per_parameter.jsonl")
)
PASS = 28_000 * 512  # tokens of the text that is trained on, again and again

Setting = tuple[int, float, bool]  # recovery steps, its rate, whether sizes are bits and not sparsities
Rises = dict[float, dict[int, float]]  # size -> tokens per parameter -> rise of the loss, nats


@dataclass(frozen=True)
class Power:
    """rise = factor * (tokens per parameter) ** exponent, fitted by least squares in the logarithms.

    Args:
        factor: the rise at one token per parameter, nats.
        exponent: 0 means that training longer changes nothing.
        residual: root mean square of log(measured) - log(fitted), over the points less the two that are fitted; None
            with two points, which fix the line.
    """

    factor: float
    exponent: float
    residual: float | None

    def at(self, target: float) -> float:
        """Rise of the loss at so many tokens per parameter, nats."""
        return self.factor * target**self.exponent


def fit(rises: dict[int, float]) -> Power | None:
    """The power law through tokens per parameter -> rise; None with fewer than two rises above zero."""
    points = sorted((target, rise) for target, rise in rises.items() if rise > 0)
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points)).T
    exponent, factor = np.polyfit(x, y, 1)
    left = y - (exponent * x + factor)
    residual = math.sqrt(float(left @ left) / (len(points) - 2)) if len(points) > 2 else None
    return Power(math.exp(factor), float(exponent), residual)


def settings(lines: Sequence[dict]) -> dict[Setting, Rises]:
    """Mean rise over the seeds, for each way to recover and to be small."""
    found: dict[Setting, dict[float, dict[int, list[float]]]] = {}
    for line in sorted(
        lines, key=lambda line: (line["steps"], -(line["bits"] or 99), line["sparsity"], line["target"])
    ):
        size = line["bits"] or line["sparsity"]
        rises = found.setdefault((line["steps"], line["rate"], line["bits"] is not None), {}).setdefault(size, {})
        rises.setdefault(line["target"], []).append(line["rise"])
    return {
        setting: {
            sparsity: {target: statistics.mean(values) for target, values in rises.items()}
            for sparsity, rises in by_sparsity.items()
        }
        for setting, by_sparsity in found.items()
    }


def title(setting: Setting) -> str:
    """A setting in words."""
    steps, rate, in_bits = setting
    how = "Rounded" if in_bits else "Pruned"
    return f"{how}, then {steps} steps of 8 x 512 tokens at {rate:g}" if steps else f"{how}, one-shot"


def checkpoints(lines: Sequence[dict]) -> list[str]:
    """The table of what was pruned."""
    dense = {line["target"]: (line["weights"], line["dense"]) for line in lines}
    rows = [
        "| tokens per parameter | tokens, million | passes over the text | dense perplexity |",
        "|---|---|---|---|",
    ]
    for target, (weights, value) in sorted(dense.items()):
        tokens = target * weights
        rows.append(f"| {target} | {tokens / 1e6:.1f} | {tokens / PASS:.1f} | {value:.2f} |")
    return rows


def rise_table(rises: Rises, in_bits: bool) -> list[str]:
    """x dense perplexity by size and tokens per parameter, with the fitted power of each size."""
    targets = sorted({target for own in rises.values() for target in own})
    seen = " | ".join(f"{target} seen" for target in targets)
    head = f"| {'bits' if in_bits else 'sparsity'} | {seen} | exponent | residual | last from the others | at 500 |"
    rows = [head, "|" + "---|" * (len(targets) + 5)]
    for size, own in rises.items():
        cells = [_cell(own.get(target)) for target in targets]
        shown = f"{size:g}" if in_bits else f"{size:.0%}"
        rows.append("| " + " | ".join([shown, *cells, *_fit_cells(own)]) + " |")
    return rows


def _cell(rise: float | None) -> str:
    return "" if rise is None else f"{math.exp(rise):.3f} ({rise:+.4f})"


def _fit_cells(own: dict[int, float]) -> list[str]:
    """Exponent, residual, the last point as the others alone predict it, and the rise far beyond the last one."""
    power = fit(own)
    if power is None:
        return ["", "", "", ""]
    residual = "two points" if power.residual is None else f"{power.residual:.3f}"
    before = fit(dict(sorted(own.items())[:-1]))
    return [f"{power.exponent:.3f}", residual, _cell(before and before.at(max(own))), _cell(power.at(500))]


def write_table() -> None:
    """Write the markdown file and the picture beside the results."""
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    found = settings(lines)
    seeds = sorted({line["seed"] for line in lines})
    text = [
        "`benchmarks/tokens_per_parameter.py --table`, from the measurements in `tokens_per_parameter.jsonl`; the "
        "picture is `tokens_per_parameter.png`.",
        f"One Mamba of {lines[0]['weights']:,} weights, decayed at several lengths of one training, pruned or rounded "
        "with the defaults; first 40 windows of 1,024",
        f"tokens of WikiText-103's raw test text; calibration seeds: {', '.join(map(str, seeds))}. Past the first "
        "pass the text is seen again: the later checkpoints have not seen new words.",
        "",
        *checkpoints(lines),
        "",
        "Each cell is x dense perplexity, in brackets the rise of the loss in nats. The fit is rise = a * (tokens per "
        "parameter) ^ exponent, as arXiv 2411.04330",
        "has it for rounding at a fixed size: least squares of log(rise) against log(tokens per parameter). The "
        "residual is the root mean square of the logarithms over",
        'the points less two (0.1 is about 10 % of the rise). "Last from the others" is the longest training as the '
        'shorter ones predict it; "at 500" is extrapolated.',
        "Beyond the longest training nothing was measured. Rises of zero or less are not in the fits.",
    ]
    for setting, rises in found.items():
        text += ["", f"## {title(setting)}", "", *rise_table(rises, setting[2])]
    RESULTS.with_suffix(".md").write_text("\n".join(text) + "\n")
    _draw(found)


def _draw(found: dict[Setting, Rises]) -> None:
    """Rise against size: a panel for each setting, a line for each tokens per parameter."""
    figure, grid = plt.subplots(
        1, len(found), figsize=(1.5 + 4.5 * len(found), 4.2), sharey=True, squeeze=False, layout="constrained"
    )
    targets = sorted({target for rises in found.values() for own in rises.values() for target in own})
    colors = dict(zip(targets, plt.get_cmap("viridis")(np.linspace(0.85, 0, len(targets))), strict=True))
    for axes, (setting, rises) in zip(grid[0], found.items(), strict=True):
        for target in targets:
            scale = 1 if setting[2] else 100
            points = [(scale * size, own[target]) for size, own in rises.items() if own.get(target, 0) > 0]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", color=colors[target], label=str(target))
        axes.set(xlabel="bits of a projection weight" if setting[2] else "zeros in the projections, %", yscale="log")
        axes.set_title(title(setting), fontsize=9)
        axes.grid(alpha=0.3, which="both")
    grid[0][0].set_ylabel("rise of the loss, nats")
    grid[0][0].legend(title="tokens per parameter")
    figure.savefig(RESULTS.with_suffix(".png"), dpi=130)
    plt.close(figure)
