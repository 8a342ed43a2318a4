"""One whole run from a model's name to a folder on disk: what the command, the demo and the Space start.

What a run reads, how much it trains and what it would refuse is found here once: `PruningJob.plan` says what it costs,
`PruningJob.prepare` reads all but the weights, and `PreparedJob.run` does the work on what was read.
May import: everything but the command and `reproduce`.
"""

from hf_mamba_prune.job.analysis import AnalysisJob
from hf_mamba_prune.job.choices import TRAINING_LENGTH, EvaluationChoice, ModelChoice, RecoveryChoice
from hf_mamba_prune.job.prune import PreparedJob, PruningJob, default_output, demo_job

__all__ = [
    "TRAINING_LENGTH",
    "AnalysisJob",
    "EvaluationChoice",
    "ModelChoice",
    "PreparedJob",
    "PruningJob",
    "RecoveryChoice",
    "default_output",
    "demo_job",
]
