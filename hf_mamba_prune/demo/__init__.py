"""The bundled small model and texts."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
MODEL = FOLDER / "mamba-wiki-3m"
CALIBRATION = FOLDER / "calibration.txt.xz"
EVALUATION = FOLDER / "evaluation.raw"
