"""Where a model is from: what a report says of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hf_mamba_prune.files.loading import weights_sha256
from hf_mamba_prune.report import ModelFacts


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model is from and how it is run, for the report.

    Args:
        id: Hub id or folder.
        revision: commit of the Hub repository.
        command: the command line.
        saved_dtype: in which the result will be saved; None means the model's own.
        license: of the model's card.
        language: of the model's card.
        left_out: what of that card could not be used, one sentence each.
    """

    id: str
    revision: str | None = None
    command: str | None = None
    saved_dtype: torch.dtype | None = None
    license: str | None = None
    language: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


_HEADS = {
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForPrediction": ("AutoModelForTimeSeriesPrediction", "time-series-forecasting"),
}
"""End of a class's name -> who loads it, and what it does."""


def model_facts(model: PreTrainedModel, origin: Origin) -> ModelFacts:
    """What a model is before it is pruned."""
    auto_class, pipeline = _use(type(model).__name__)
    return ModelFacts(
        id=origin.id,
        revision=origin.revision,
        model_type=model.config.model_type,
        parameters=sum(p.numel() for p in model.parameters()),
        layers=model.config.num_hidden_layers,
        dtype=str(origin.saved_dtype or model.dtype).removeprefix("torch."),
        weights_sha256=weights_sha256(model),
        license=origin.license,
        language=origin.language,
        auto_class=auto_class,
        pipeline=pipeline,
    )


def _use(name: str) -> tuple[str, str]:
    found = (use for end, use in _HEADS.items() if name.endswith(end))
    return next(found, ("AutoModelForCausalLM", "text-generation"))
