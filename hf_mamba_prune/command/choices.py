"""Groups of options -> the choices of a job."""

from __future__ import annotations

from typing import Any

from hf_mamba_prune.command import options as o
from hf_mamba_prune.command.option_groups import ModelOptions, PushOptions, RecoveryOptions, TaskOptions, TextOptions
from hf_mamba_prune.job import EvaluationChoice, ModelChoice, RecoveryChoice
from hf_mamba_prune.measure.zero_shot import ZeroShot
from hf_mamba_prune.publish.hub import PushChoice


def model(given: ModelOptions) -> ModelChoice:
    """Which model."""
    return ModelChoice(
        source=given.model,
        revision=given.revision,
        dtype=given.dtype,
        device=given.device,
        tokenizer=given.tokenizer,
        native=not given.no_native,
    )


def evaluation(texts: TextOptions, tasks: TaskOptions, skip: bool = False) -> EvaluationChoice:
    """What to measure, without the texts where they are skipped."""
    return EvaluationChoice(
        texts=() if skip else tuple(texts.evaluation or ["wikitext"]),
        column=texts.column,
        window=texts.window,
        stride=texts.stride,
        max_windows=texts.max_windows,
        tasks=ZeroShot(tasks=o.parse_names(tasks.tasks), limit=tasks.max_examples),
    )


def recovery(given: RecoveryOptions, trained: dict[str, Any] | None, column: str | None) -> RecoveryChoice | None:
    """How to train, with what the recipe says of it; None without training."""
    if trained is None:
        return None
    return RecoveryChoice(
        text=given.recover_dataset,
        column=column,
        learning_rate=given.recover_lr,
        batch_size=given.recover_batch,
        **trained,
    )


def push(given: PushOptions, revision: str | None, overwrite: bool) -> PushChoice:
    """Where to publish."""
    return PushChoice(
        repo=given.repo_id,
        private=given.private,
        create_pr=given.create_pr,
        revision=revision,
        overwrite=overwrite,
        force=given.force,
    )
