"""What stands beside a finished model: figures and card. Where one cannot be made, the report says so instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from jinja2 import TemplateError

from hf_mamba_prune.publish.figures import draw_figures
from hf_mamba_prune.publish.hub import write_card
from hf_mamba_prune.report import PruningReport

FAILURES = (
    ArithmeticError, AttributeError, ImportError, LookupError, MemoryError, OSError, RuntimeError, TemplateError,
    TypeError, ValueError,
)  # fmt: skip
"""What drawing, rendering and measuring raise: the libraries that do it promise nothing narrower."""


def attempt(report: PruningReport, what: str, work: Callable[[], object]) -> PruningReport:
    """Do something whose failure must not cost the model.

    Args:
        report: of the run.
        what: is made; the beginning of a sentence, such as "The figures".
        work: makes it.

    Returns:
        The report, with one more warning where it failed.
    """
    try:
        work()
    except FAILURES as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        shown = re.sub(r"(?<![\w/])/(?:[^/'\"]*/)+", "", reason)  # the report is published: no folders of this machine
        return replace(report, warnings=(*report.warnings, f"{what} could not be made: {shown}."))
    return report


def write_extras(folder: Path, report: PruningReport, repo: str | None = None) -> PruningReport:
    """Write the report, then figures and card into a folder.

    Args:
        folder: exists.
        report: of the model.
        repo: Hub id that the card names.

    Returns:
        The report as it is saved: with a warning for each that could not be made.

    Raises:
        OSError: the report cannot be written.
    """
    report.save(folder)
    drawn = attempt(report, "The figures", lambda: draw_figures(report, folder / "figures"))
    drawn.save(folder)  # the card is made of what lies there
    described = attempt(drawn, "The card", lambda: write_card(folder, repo))
    described.save(folder)
    return described
