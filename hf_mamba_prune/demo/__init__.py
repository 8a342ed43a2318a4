"""The bundled small model and texts: the whole job, offline."""

from __future__ import annotations

from pathlib import Path

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.job import EvaluationChoice, ModelChoice, PruningJob

FOLDER = Path(__file__).parent
MODEL = FOLDER / "mamba-wiki-3m"
CALIBRATION = FOLDER / "calibration.txt.xz"
EVALUATION = FOLDER / "evaluation.raw"


def demo_job(output: Path, sparsity: float) -> PruningJob:
    """Prune the bundled model into `output`, which may hold an earlier demo, and pack it.

    Args:
        output: folder to write.
        sparsity: of the prunable weights, 0 <= sparsity < 1.
    """
    return PruningJob(
        ModelChoice(str(MODEL)),
        PruningConfig(sparsity, calibration_samples=64),
        output,
        str(CALIBRATION),
        evaluation=EvaluationChoice((str(EVALUATION),)),
        overwrite=True,
        command=f"hf-mamba-prune demo --sparsity {sparsity}",
        pack="int8",
    )
