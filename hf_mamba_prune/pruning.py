"""The story: find targets -> calibrate -> score -> allocate -> mask -> reconstruct -> evaluate -> report."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mamba_prune import native
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.files.origin import Origin, model_facts
from hf_mamba_prune.files.saving import round_to
from hf_mamba_prune.masks.allocations import Curves
from hf_mamba_prune.masks.budget import Budget, total_to_prune
from hf_mamba_prune.masks.calibration import Statistics, calibrate, check_inputs
from hf_mamba_prune.masks.model import apply_masks, choose_masks
from hf_mamba_prune.masks.scores import build_score
from hf_mamba_prune.masks.sensitivity import measure_curves
from hf_mamba_prune.measure.counting import ZeroCounter
from hf_mamba_prune.measure.environment import CostMeter, hardware, in_bfloat16
from hf_mamba_prune.measure.evaluation import Evaluation
from hf_mamba_prune.measure.versions import versions
from hf_mamba_prune.models.blocks import MemoryBlocks
from hf_mamba_prune.models.targets import Target, find_targets
from hf_mamba_prune.progress import tell
from hf_mamba_prune.repair.blocks import repair
from hf_mamba_prune.report import CalibrationFacts, PruningReport, RecoveryFacts, RepairFacts, SparsityFacts
from hf_mamba_prune.schedules import sparsity_at
from hf_mamba_prune.texts.sequences import REPAIR_PARTS, SCORE_PARTS, part_of_step, sample_sequences
from hf_mamba_prune.texts.sources import TextSource
from hf_mamba_prune.training.gradual import GradualPruner
from hf_mamba_prune.training.recovery import Recovery, recover, training_tokens

_REMEMBERED = 0.8
"""Share of the statistics that a step leaves to the next: little changes between two, and four see more than one."""


def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: PruningConfig,
    calibration: TextSource | None = None,
    evaluation: Evaluation | None = None,
    origin: Origin | None = None,
    recovery: Recovery | None = None,
) -> PruningReport:
    """Prune a model in place and say what came of it.

    Args:
        model: a causal language model of a supported type.
        tokenizer: of the model.
        config: how to prune.
        calibration: the text that scores are measured on; not needed by scores without data.
        evaluation: what to measure before and after; None measures nothing.
        origin: where the model is from; default: what the model remembers.
        recovery: how to train after pruning, or while pruning; None: not at all.

    Returns:
        The report; the model now holds literal zeros.

    Raises:
        ValueError: the config does not fit the model, or the calibration text is missing or too short.
        RuntimeError: the model gives no finite predictions, or a weight saw no token.
    """
    meter = CostMeter()
    targets = find_targets(model, config.components)
    total_to_prune(targets, config, config.sparsity)  # what cannot be is said before the work, not after it
    check_inputs(targets, build_score(config).needs)
    origin = origin or Origin(model.name_or_path)
    evaluation = evaluation or Evaluation()
    facts = model_facts(model, origin)
    measured = recovery is None or not recovery.gradual or config.measure == "calibration"  # or in training
    sequences = _sequences(tokenizer, config, calibration) if measured else None
    tokens = None if recovery is None else _training_tokens(model, tokenizer, config, recovery, sequences)
    zeros = ZeroCounter(model, targets)
    with meter.step("evaluate"):
        before, tasks_before = evaluation.run(model, tokenizer), evaluation.tasks.run(model, tokenizer)
    budget, repairs, trained = _prune_and_train(model, targets, config, sequences, recovery, tokens, meter)
    round_to(model, origin.saved_dtype or model.dtype)
    sparsity = _counted(zeros, model, config, budget)
    with meter.step("evaluate"):
        after, tasks_after = evaluation.run(model, tokenizer), evaluation.tasks.run(model, tokenizer)
    return PruningReport(
        config=config.to_dict(),
        command=origin.command,
        model=facts,
        sparsity=sparsity,
        calibration=None if sequences is None else _calibration_facts(calibration.name, sequences),
        before=before,
        after=after,
        tasks_before=tasks_before,
        tasks_after=tasks_after,
        reconstruction=repairs,
        recovery=trained,
        costs=meter.costs,
        versions=versions(),
        hardware=hardware(model.device, native.plugged(model)),
    )


def _counted(zeros: ZeroCounter, model: PreTrainedModel, config: PruningConfig, budget: Budget) -> SparsityFacts:
    """The zeros that are there; fewer than the masks hold means that some masks were never applied.

    Raises:
        RuntimeError: that happened.
    """
    found = zeros.facts(model, config.sparsity, budget.total, budget.at_ceiling)
    if found.prunable.zeros < found.masked:
        untouched = [count.name for count in found.targets if count.zeros == 0]
        raise RuntimeError(
            f"{found.masked:,} weights were to become zero and only {found.prunable.zeros:,} are: the table of "
            f"architectures does not fit this model. {len(untouched)} weights have none, such as {untouched[:2]}."
        )
    return found


def _training_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: PruningConfig,
    recovery: Recovery,
    sequences: torch.Tensor | None,
) -> torch.Tensor:
    """The training data; what cannot be trained is refused here, before the work."""
    if recovery.gradual:
        GradualPruner(model, config, sequences).lay_out(recovery.steps)
    return training_tokens(tokenizer, recovery, config.seed)


def _prune_and_train(
    model: PreTrainedModel,
    targets: Sequence[Target],
    config: PruningConfig,
    sequences: torch.Tensor | None,
    recovery: Recovery | None,
    tokens: torch.Tensor | None,
    meter: CostMeter,
) -> tuple[Budget, tuple[RepairFacts, ...], RecoveryFacts | None]:
    """Prune at rest and train then, or prune in training."""
    teacher = copy.deepcopy(model) if recovery is not None and recovery.distill else None
    budget, repairs = None, ()
    if recovery is None or not recovery.gradual:
        budget, repairs = _prune_in_steps(model, targets, config, sequences, meter)
    if recovery is None:
        return budget, repairs, None
    with meter.step("recover"):
        trained, pruner = recover(model, tokens, config, recovery, teacher, sequences)
    return budget or pruner.budget, repairs, trained


def _prune_in_steps(
    model: PreTrainedModel,
    targets: Sequence[Target],
    config: PruningConfig,
    sequences: torch.Tensor | None,
    meter: CostMeter,
) -> tuple[Budget, tuple[RepairFacts, ...]]:
    """Measure, score, allocate, mask and reconstruct at each sparsity of the schedule; what the last step did."""
    score = build_score(config)
    dense = _dense_weights(model, targets) if config.reconstruct else {}
    outside = [target for target in targets if not config.reconstruct or target.layer is None]
    bf16 = in_bfloat16(config.calibration_bf16, model.device)
    curves: Curves | None = None
    repairs: tuple[RepairFacts, ...] = ()
    statistics: Statistics = {}
    for step in range(1, config.steps + 1):
        sparsity = sparsity_at(config.schedule, step / config.steps, config.sparsity)
        with meter.step("calibrate"):
            for own in statistics.values():
                own.fade(_REMEMBERED)
            if score.needs:
                seen = part_of_step(sequences, step, config.steps, SCORE_PARTS, config.seed)
                statistics = calibrate(model, targets, seen, score.needs, config.batch_size, bf16, statistics)
            if config.allocation == "sensitivity" and step == 1:
                curves = measure_curves(model, targets, score, statistics, sequences, config)
        with meter.step("mask"):
            budget, mask_of = choose_masks(model, targets, score, statistics, config, sparsity, curves)
            apply_masks(model, outside, mask_of)
        if config.reconstruct:
            with meter.step("reconstruct"):
                seen = part_of_step(sequences, step, config.steps, REPAIR_PARTS, config.seed)
                repairs = repair(MemoryBlocks(model), targets, mask_of, dense, seen, config.damping, bf16)
        tell("prune", step, config.steps, sparsity=sparsity)
    return budget, repairs


def _dense_weights(model: PreTrainedModel, targets: Sequence[Target]) -> dict[str, torch.Tensor]:
    return {t.name: t.weight(model).clone() for t in targets if t.kind == "linear" and t.layer is not None}


def needs_data(config: PruningConfig) -> bool:
    """Whether a calibration text will be read."""
    return config.reconstruct or config.allocation == "sensitivity" or bool(build_score(config).needs)


def _sequences(
    tokenizer: PreTrainedTokenizerBase, config: PruningConfig, calibration: TextSource | None
) -> torch.Tensor | None:
    if not needs_data(config):
        return None
    if calibration is None:
        raise ValueError("scores and reconstruction are measured on data: give a calibration text.")
    return sample_sequences(calibration, tokenizer, config.calibration_samples, config.calibration_length, config.seed)


def _calibration_facts(name: str, sequences: torch.Tensor) -> CalibrationFacts:
    digest = hashlib.sha256(sequences.numpy().tobytes()).hexdigest()
    return CalibrationFacts(name, *sequences.shape, digest)
