"""Prune Mamba language models: sparse checkpoints that stay ordinary transformers models, with an honest report."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_mamba_prune.registration import register_when_needed

if TYPE_CHECKING:
    from hf_mamba_prune.config import PruningConfig
    from hf_mamba_prune.files.loading import load_model, load_skeleton
    from hf_mamba_prune.files.origin import Origin
    from hf_mamba_prune.job import EvaluationChoice, ModelChoice, PruningJob, RecoveryChoice
    from hf_mamba_prune.masks.calibration import calibrate
    from hf_mamba_prune.masks.scores import SCORES, Score
    from hf_mamba_prune.measure.analysis import Analysis, analyze
    from hf_mamba_prune.measure.evaluation import Evaluation
    from hf_mamba_prune.models.architectures import ARCHITECTURES
    from hf_mamba_prune.models.heads import (
        Mamba2ForPrediction,
        Mamba2ForSequenceClassification,
        MambaForPrediction,
        MambaForSequenceClassification,
    )
    from hf_mamba_prune.models.targets import Target, find_targets
    from hf_mamba_prune.native import use_native
    from hf_mamba_prune.packed.config import PackedConfig
    from hf_mamba_prune.plan import Plan, make_plan
    from hf_mamba_prune.progress import Progress, follow
    from hf_mamba_prune.pruning import prune
    from hf_mamba_prune.publish.card import render_card
    from hf_mamba_prune.publish.cloud import HubJob
    from hf_mamba_prune.publish.hub import PushChoice, push_folder
    from hf_mamba_prune.recipes import RECIPES, Recipe
    from hf_mamba_prune.report import PruningReport
    from hf_mamba_prune.texts.sources import TextSource, read_text
    from hf_mamba_prune.training.adapters import mask_adapters
    from hf_mamba_prune.training.recovery import Recovery
    from hf_mamba_prune.training.trainer import PruningCallback, PruningTrainer

__all__ = [
    "ARCHITECTURES",
    "RECIPES",
    "SCORES",
    "Analysis",
    "Evaluation",
    "EvaluationChoice",
    "HubJob",
    "Mamba2ForPrediction",
    "Mamba2ForSequenceClassification",
    "MambaForPrediction",
    "MambaForSequenceClassification",
    "ModelChoice",
    "Origin",
    "PackedConfig",
    "Plan",
    "Progress",
    "PruningCallback",
    "PruningConfig",
    "PruningJob",
    "PruningReport",
    "PruningTrainer",
    "PushChoice",
    "Recipe",
    "Recovery",
    "RecoveryChoice",
    "Score",
    "Target",
    "TextSource",
    "analyze",
    "calibrate",
    "find_targets",
    "follow",
    "load_model",
    "load_skeleton",
    "make_plan",
    "mask_adapters",
    "prune",
    "push_folder",
    "read_text",
    "render_card",
    "use_native",
]

_ROOMS = {
    "ARCHITECTURES": "models.architectures",
    "Analysis": "measure.analysis",
    "Evaluation": "measure.evaluation",
    "EvaluationChoice": "job",
    "HubJob": "publish.cloud",
    "Mamba2ForPrediction": "models.heads",
    "Mamba2ForSequenceClassification": "models.heads",
    "MambaForPrediction": "models.heads",
    "MambaForSequenceClassification": "models.heads",
    "ModelChoice": "job",
    "Origin": "files.origin",
    "PackedConfig": "packed.config",
    "Plan": "plan",
    "Progress": "progress",
    "PruningCallback": "training.trainer",
    "PruningConfig": "config",
    "PruningJob": "job",
    "PruningReport": "report",
    "PruningTrainer": "training.trainer",
    "PushChoice": "publish.hub",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "Recovery": "training.recovery",
    "RecoveryChoice": "job",
    "SCORES": "masks.scores",
    "Score": "masks.scores",
    "Target": "models.targets",
    "TextSource": "texts.sources",
    "analyze": "measure.analysis",
    "calibrate": "masks.calibration",
    "find_targets": "models.targets",
    "follow": "progress",
    "load_model": "files.loading",
    "load_skeleton": "files.loading",
    "make_plan": "plan",
    "mask_adapters": "training.adapters",
    "prune": "pruning",
    "push_folder": "publish.hub",
    "read_text": "texts.sources",
    "render_card": "publish.card",
    "use_native": "native",
}
"""Where each public name stands: imported when it is first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_needed()
