"""Prune Mamba language models: sparse checkpoints that stay ordinary transformers models, with an honest report."""

from __future__ import annotations

from hf_mamba_prune.analysis import Analysis, analyze
from hf_mamba_prune.architectures import ARCHITECTURES, Target, find_targets
from hf_mamba_prune.calibration import calibrate
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.evaluation import Evaluation
from hf_mamba_prune.heads import (
    Mamba2ForPrediction,
    Mamba2ForSequenceClassification,
    MambaForPrediction,
    MambaForSequenceClassification,
)
from hf_mamba_prune.heads import register_heads as _register_heads
from hf_mamba_prune.job import EvaluationChoice, ModelChoice, PruningJob
from hf_mamba_prune.loading import load_model
from hf_mamba_prune.native import use_native
from hf_mamba_prune.origin import Origin
from hf_mamba_prune.packed import register as _register_packed_models
from hf_mamba_prune.pruning import prune
from hf_mamba_prune.recovery import Recovery
from hf_mamba_prune.report import PruningReport
from hf_mamba_prune.scores import SCORES, Score
from hf_mamba_prune.texts import TextSource, read_text
from hf_mamba_prune.trainer import PruningCallback, PruningTrainer

__all__ = [
    "ARCHITECTURES",
    "SCORES",
    "Analysis",
    "Evaluation",
    "EvaluationChoice",
    "Mamba2ForPrediction",
    "Mamba2ForSequenceClassification",
    "MambaForPrediction",
    "MambaForSequenceClassification",
    "ModelChoice",
    "Origin",
    "PruningCallback",
    "PruningConfig",
    "PruningJob",
    "PruningReport",
    "PruningTrainer",
    "Recovery",
    "Score",
    "Target",
    "TextSource",
    "analyze",
    "calibrate",
    "find_targets",
    "load_model",
    "prune",
    "read_text",
    "use_native",
]

_register_packed_models()
_register_heads()
