"""Committed reports of real runs, as a table and a picture."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from charts import scatter

from hf_mamba_prune import PruningReport

FOLDER = Path(__file__).parent / "gallery"
COLUMNS = ["model", "zeros, %", "dense", "perplexity", "x dense", "file, MB", "tokens/s", "recipe"]


def read_reports(folder: Path = FOLDER) -> dict[str, PruningReport]:
    """Name -> report, sorted."""
    return {
        path.stem: PruningReport.from_dict(json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(folder.glob("*.json"))
    }


def rows(reports: dict[str, PruningReport]) -> list[list[str | float]]:
    """One for each report, in the order of `COLUMNS`."""
    found = []
    for name, report in reports.items():
        before, after, packed = report.before[0], report.after[0], report.speeds[-1]
        found.append(
            [
                name,
                round(100 * report.sparsity.prunable.sparsity, 1),
                round(before.perplexity, 2),
                round(after.perplexity, 2),
                round(after.perplexity / before.perplexity, 3),
                round(packed.file_bytes / 1e6, 2),
                round(packed.decode_tokens_per_second),
                _recipe(report),
            ]
        )
    return found


def _recipe(report: PruningReport) -> str:
    """What was done, in order; a report without reconstruction has an empty tuple of it."""
    parts = []
    if report.rounding is not None:
        parts.append(f"{report.rounding.bits:.2f} bits")
    if report.reconstruction:
        parts.append("reconstruction")
    if report.recovery is not None:
        parts.append(f"{report.recovery.steps:,} steps")
    return " + ".join(parts)


def picture(reports: dict[str, PruningReport]) -> str:
    """Perplexity against the size of the file, dense models too."""
    points = {}
    for name, report in reports.items():
        dense, packed = report.speeds[0], report.speeds[-1]
        points[report.model.id] = (dense.file_bytes / 1e6, report.before[0].perplexity)
        points[name] = (packed.file_bytes / 1e6, report.after[0].perplexity)
    named = [(name, x, y) for name, (x, y) in points.items()]
    texts = ", ".join(escape(text) for text in dict.fromkeys(r.after[0].text for r in reports.values()))
    drawn = scatter("Quality against size: lower and further left is better", "file, MB", "perplexity", named)
    return (
        f'<section class="card"><div class="scroll">{drawn}</div><p class="quiet">Perplexity on {texts}.</p></section>'
    )
