"""Pictures of a report: where the zeros are, and what was lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from hf_mamba_prune.measure.analysis import Analysis, Curve
from hf_mamba_prune.report import LanguageMetrics, PruningReport

INK, SOFT, DENSE, PRUNED = "#1b1f24", "#57606a", "#b6bec8", "#0b6e4f"


def draw_figures(report: PruningReport, folder: Path) -> list[Path]:
    """Draw the figures of a report as PNG files into `folder`, which is made.

    Returns:
        The files: `sparsity.png` when zeros were asked for, and `quality.png` when something was evaluated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [_save(_sparsity_map(report), folder / "sparsity.png")] if report.zeros_asked else []
    if report.after:
        drawn.append(_save(_quality(report), folder / "quality.png"))
    return drawn


def draw_analysis(analysis: Analysis, folder: Path) -> Path:
    """Draw `analysis.png` into `folder`, which is made: a heat map of the loss for components and for blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    tall = max(len(analysis.components), len(analysis.blocks))
    figure = Figure(figsize=(3.4 + 1.6 * len(analysis.levels), 1.6 + 0.27 * tall), layout="constrained")
    axes = figure.subplots(1, 2)
    titles = ("one component of all blocks pruned alone", "one block pruned alone")
    for place, curves, title in zip(axes, (analysis.components, analysis.blocks), titles, strict=True):
        _rise_map(place, curves, analysis.levels, title)
    figure.supxlabel(
        f"loss per token above dense ({analysis.dense_loss:.3f} nats), {_short(analysis.text)}, masks only, uniform",
        fontsize=9, color=SOFT,
    )  # fmt: skip
    return _save(figure, folder / "analysis.png")


def _rise_map(axes: Axes, curves: tuple[Curve, ...], levels: tuple[float, ...], title: str) -> None:
    values = np.array([curve.rises for curve in curves])
    axes.imshow(np.clip(values, 0.003, 3), cmap="YlOrRd", norm=LogNorm(0.003, 3), aspect="auto")
    for row, column in np.ndindex(values.shape):
        color = "white" if values[row, column] > 0.5 else INK
        axes.text(column, row, f"{values[row, column]:.3f}", ha="center", va="center", color=color, fontsize=7)
    axes.set_xticks(range(len(levels)), [f"{level:.0%}" for level in levels])
    axes.set_yticks(range(len(curves)), [curve.name for curve in curves])
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.tick_params(length=0, labelsize=8, colors=SOFT)
    axes.spines[:].set_visible(False)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=150, facecolor="white")
    return path


def _sparsity_map(report: PruningReport) -> Figure:
    """Heat map of the share of zeros, layers x weights, with the share of each weight over all layers at the foot."""
    names, layers, values = _sparsity_grid(report)
    height = 1.9 + 0.27 * (len(layers) + 1)
    figure = Figure(figsize=(2.2 + 1.15 * len(names), height), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(names)), names)
    step = max(1, len(layers) // 24)
    shown = [i for i in range(len(layers)) if i % step == 0 or i == len(layers) - 1]
    axes.set_yticks(shown, [layers[i] for i in shown])
    axes.axhline(len(layers) - 1.5, color="white", linewidth=3)
    for row in shown if step > 1 else range(len(layers)):
        for column in range(len(names)):
            if np.isfinite(values[row, column]):
                color = "white" if values[row, column] > 0.6 else INK
                axes.text(column, row, f"{values[row, column]:.0%}", ha="center", va="center", color=color, fontsize=8)
    facts = report.sparsity
    axes.set_title(
        f"{_short(report.model.id)}: {facts.prunable.sparsity:.1%} of the prunable weights are zero, "
        f"{facts.model.sparsity:.1%} of the model",
        loc="left", fontsize=10, color=INK, pad=12,
    )  # fmt: skip
    axes.tick_params(length=0, labelsize=9, colors=SOFT)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=lambda value, _: f"{value:.0%}")
    bar.outline.set_visible(False)
    bar.set_label("zeros", color=SOFT)
    return figure


def _sparsity_grid(report: PruningReport) -> tuple[list[str], list[str], np.ndarray]:
    """Column names, row names and the share of zeros of each weight; NaN where a block has no such weight."""
    targets = report.sparsity.targets
    names = list(dict.fromkeys(_component(t.name) for t in targets))
    layers = list(dict.fromkeys(t.layer for t in targets))
    values = np.full((len(layers) + 1, len(names)), np.nan)
    for target in targets:
        values[layers.index(target.layer), names.index(_component(target.name))] = target.sparsity
    for column, name in enumerate(names):
        own = [t for t in targets if _component(t.name) == name]
        values[-1, column] = sum(t.zeros for t in own) / sum(t.weights for t in own)
    labels = ["outside" if layer is None else f"block {layer}" for layer in layers]
    return names, [*labels, "all"], values


def _component(name: str) -> str:
    return name.removesuffix(".weight").rsplit(".", 1)[-1]


def _quality(report: PruningReport) -> Figure:
    """Perplexity before and after for each text, and the weights or the bits that are left."""
    texts = len(report.after)
    figure = Figure(figsize=(3.4 * (texts + 1), 3.4), layout="constrained")
    axes = figure.subplots(1, texts + 1)
    for place, before, after in zip(axes, report.before, report.after, strict=False):
        _perplexity_bars(place, before, after, report)
    if report.rounding is not None and not report.zeros_asked:
        bits = 8.0 * getattr(torch, report.model.dtype).itemsize, report.rounding.bits
        _bars(axes[-1], "bits a projection weight", bits, lambda value: f"{value:.3g}", report)
    else:
        facts = report.sparsity.model
        left = facts.weights - facts.zeros_before, facts.weights - facts.zeros
        _bars(axes[-1], "non-zero weights", left, lambda value: f"{value / 1e6:.2f} M", report)
    return figure


def _perplexity_bars(axes: Axes, before: LanguageMetrics, after: LanguageMetrics, report: PruningReport) -> None:
    ratio = after.perplexity / before.perplexity
    compared = f"{ratio:.3f} x {report.parent}, lower is better" if math.isfinite(ratio) else "beyond all numbers"
    _bars(
        axes,
        f"perplexity, {_short(before.text)}\n{compared}",
        (before.perplexity, after.perplexity),
        lambda value: f"{value:,.1f}" if math.isfinite(value) else "infinite",
        report,
    )


def _bars(
    axes: Axes, title: str, values: tuple[float, float], text: Callable[[float], str], report: PruningReport
) -> None:
    """Two bars; an infinite one is hatched and twice as high as the other."""
    known = [value for value in values if math.isfinite(value)]
    top = max(known, default=1.0) * (1 if len(known) == len(values) else 2)
    heights = [value if math.isfinite(value) else top for value in values]
    bars = axes.bar([report.parent, report.made], heights, color=[DENSE, PRUNED], width=0.6)
    for place, (bar, value, height) in enumerate(zip(bars, values, heights, strict=True)):
        if not math.isfinite(value):
            bar.set(hatch="//", edgecolor="white")
        axes.annotate(text(value), (place, height), xytext=(0, 4), textcoords="offset points", ha="center", color=INK)
    axes.set_title(title, loc="left", fontsize=10, color=INK, parse_math=False)
    axes.set_ylim(0, top * 1.15 or 1)
    axes.set_yticks([])
    axes.tick_params(length=0, colors=SOFT)
    axes.spines[["top", "left", "right"]].set_visible(False)


def _short(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]
