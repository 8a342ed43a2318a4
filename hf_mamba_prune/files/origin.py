"""Where a model is from: what a report says of it."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

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


def shown_name(name: str) -> str:
    """A file or folder by its last part, for what is published: where it lies is nobody's business.

    Args:
        name: path, Hub id or anything else, which come back as they are.
    """
    path = Path(name).expanduser()
    local = name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1 or _exists(path)
    return re.split(r"[/\\]", os.path.abspath(path).rstrip("/\\"))[-1] if local else name


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a name, or a null byte
        return False


def shown_command(command: str | None) -> str | None:
    """A command line whose files and folders are named by their last part, as `shown_name` does."""
    if command is None:
        return None
    shown, before = [], ""
    for argument in shlex.split(command):
        option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        output = before in _OUTPUTS or option in _OUTPUTS
        pieces = [value] if output or _exists(Path(value).expanduser()) else value.split(",")
        names = [
            shown_name(os.path.abspath(piece)) if output else shown_name(piece) if piece else "" for piece in pieces
        ]
        shown.append(argument if argument.startswith("--") and not equals else option + equals + ",".join(names))
        before = argument
    return shlex.join(shown)


_OUTPUTS = ("--output", "-o")

_HEADS = {
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForPrediction": ("AutoModelForTimeSeriesPrediction", "time-series-forecasting"),
}
"""End of a class's name -> who loads it, and what it does."""


def model_facts(model: PreTrainedModel, origin: Origin) -> ModelFacts:
    """What a model is before it is pruned."""
    auto_class, pipeline = _use(type(model).__name__)
    return ModelFacts(
        id=shown_name(origin.id),
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
