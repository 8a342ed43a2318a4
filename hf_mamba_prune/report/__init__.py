"""Everything about one run: `facts` are its parts, `whole` is what `report.json` holds.

All names are imported from here. May import: the ground.
"""

from hf_mamba_prune.report.facts import (
    CalibrationFacts,
    Count,
    LanguageMetrics,
    ModelFacts,
    RecoveryFacts,
    RepairFacts,
    RoundingFacts,
    SparsityFacts,
    SpeedFacts,
    StepCost,
    TaskMetrics,
    WidthFacts,
)
from hf_mamba_prune.report.whole import FORMAT_VERSION, REPORT_NAME, PruningReport

__all__ = [
    "FORMAT_VERSION",
    "REPORT_NAME",
    "CalibrationFacts",
    "Count",
    "LanguageMetrics",
    "ModelFacts",
    "PruningReport",
    "RecoveryFacts",
    "RepairFacts",
    "RoundingFacts",
    "SparsityFacts",
    "SpeedFacts",
    "StepCost",
    "TaskMetrics",
    "WidthFacts",
]
