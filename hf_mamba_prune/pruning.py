"""The story: find targets -> calibrate -> score -> allocate -> mask -> reconstruct -> round -> evaluate -> report."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mamba_prune import native
from hf_mamba_prune.bits.model import check_budget, round_model
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.files.origin import Origin, model_facts, shown_command
from hf_mamba_prune.files.saving import round_to
from hf_mamba_prune.masks.allocations import Curves
from hf_mamba_prune.masks.budget import Budget, allocate, refuse_sparser, total_to_prune
from hf_mamba_prune.masks.calibration import Statistics, calibrate, check_inputs
from hf_mamba_prune.masks.model import apply_masks, masks_within, scores_of_model
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
from hf_mamba_prune.repair.tuning import sequences_to_tune, tune_kept
from hf_mamba_prune.report import (
    LanguageMetrics,
    PruningReport,
    RecoveryFacts,
    RepairFacts,
    RoundingFacts,
    TaskMetrics,
)
from hf_mamba_prune.schedules import sparsity_at
from hf_mamba_prune.texts.sequences import (
    REPAIR_PARTS,
    SCORE_PARTS,
    calibration_facts,
    check_ids,
    part_of_step,
    sample_sequences,
)
from hf_mamba_prune.texts.sources import TextSource
from hf_mamba_prune.training.demands import check_gradual, check_steps
from hf_mamba_prune.training.gradual import GradualPruner
from hf_mamba_prune.training.recovery import Recovery, lay_out, recover, training_tokens

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
    ready = prepare(
        model=model,
        tokenizer=tokenizer,
        config=config,
        calibration=calibration,
        evaluation=evaluation,
        origin=origin,
        recovery=recovery,
    )
    return ready.run()


def prepare(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: PruningConfig,
    calibration: TextSource | None,
    evaluation: Evaluation | None,
    origin: Origin | None,
    recovery: Recovery | None,
) -> ReadyToPrune:
    """Refuse what cannot be done, and draw the sequences; the arguments are those of `prune`.

    Raises:
        ValueError: the config does not fit the model, or a text is missing or too short.
    """
    gradual = recovery is not None and recovery.gradual
    config = config.for_weights(model.num_parameters())
    targets = check_fit(model, config, recovery.steps if recovery is not None and gradual else None)
    refuse_sparser(model, targets, config)
    check_budget(model, targets, config, (origin and origin.saved_dtype) or model.dtype)
    sequences = lessons = None
    if reads_calibration(config, gradual):
        if calibration is None:
            raise ValueError("scores and reconstruction are measured on data: give a calibration text.")
        sequences, lessons = draw(model, tokenizer, config, calibration)
    tokens = None
    if recovery is not None:
        if gradual:
            lay_out(GradualPruner(model, config, sequences), recovery)
        tokens = training_tokens(tokenizer, recovery, config.seed)
        check_ids(tokens, model, f"the text {recovery.text.name}")
    return ReadyToPrune(
        model=model,
        tokenizer=tokenizer,
        config=config,
        evaluation=evaluation or Evaluation(),
        origin=origin or Origin(id=str(model.name_or_path)),
        recovery=recovery,
        targets=targets,
        sequences=sequences,
        lessons=lessons,
        tokens=tokens,
        text=None if calibration is None else calibration.name,
    )


def draw(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: PruningConfig, calibration: TextSource
) -> tuple[torch.Tensor, torch.Tensor]:
    """What scores are measured on, and what is left learns from: the first of the same token ids, (samples, l) each.

    Raises:
        ValueError: the text is too short, or of another vocabulary.
    """
    samples, length = config.calibration_samples, config.calibration_length
    learned = sequences_to_tune(model.num_parameters(), samples, length, model.device.type == "cpu")
    drawn = sample_sequences(calibration, tokenizer, max(samples, learned), length, config.seed)
    check_ids(drawn, model, f"the text {calibration.name}")
    return drawn[:samples], drawn[:learned]


@dataclass(frozen=True, kw_only=True)
class ReadyToPrune:
    """A run that nothing is left to refuse, and whose model is still dense.

    Args:
        model, tokenizer, config, evaluation, origin, recovery: as `prune` takes them.
        targets: the weights that may be pruned.
        sequences: token ids that scores are measured on, (samples, l); None where they are not read.
        lessons: token ids of the same text that what is left learns from, (samples, l).
        tokens: token ids to train on, (sequences, l); None without a recovery.
        text: name of the calibration text.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: PruningConfig
    evaluation: Evaluation
    origin: Origin
    recovery: Recovery | None
    targets: Sequence[Target]
    sequences: torch.Tensor | None
    lessons: torch.Tensor | None
    tokens: torch.Tensor | None
    text: str | None

    def run(self) -> PruningReport:
        """Prune in place, and say what came of it.

        Raises:
            RuntimeError: the model gives no finite predictions, or a weight saw no token.
        """
        model, meter = self.model, CostMeter()
        facts = model_facts(model, self.origin)
        zeros = ZeroCounter(model, self.targets)
        with meter.step("evaluate"):
            before, tasks_before = self._measured()
        gradual = self.recovery is not None and self.recovery.gradual
        repaired = self.config.reconstruct and self.config.sparsity > 0 and not gradual
        taught = repaired or (self.config.rounds and not gradual) or (self.recovery and self.recovery.distill)
        dense = copy.deepcopy(model) if taught else None
        dtype = self.origin.saved_dtype or model.dtype
        done = None if gradual else self._prune_in_steps(dense, meter)
        budget, repairs = done or (None, ())
        if repaired and dense is not None:
            self._tune(dense, dtype, meter)
        rounding = None if gradual else self._rounded(dense, dtype, meter)
        trained, in_training = self._train(dense, meter)
        round_to(model, dtype)
        rounding = self._rounded(dense, dtype, meter) if gradual else rounding
        learned = self.lessons if repaired or self.config.rounds else None
        last = budget or in_training
        if last is None:
            raise RuntimeError("the training ended without a pruning step: train longer, or lower steps.")
        sparsity = zeros.checked_facts(model, self.config.sparsity, last)
        with meter.step("evaluate"):
            after, tasks_after = self._measured()
        return PruningReport(
            config=self.config.to_dict(),
            command=shown_command(self.origin.command),
            model=facts,
            sparsity=sparsity,
            calibration=calibration_facts(self.text or "", self.sequences, learned),
            before=before,
            after=after,
            tasks_before=tasks_before,
            tasks_after=tasks_after,
            reconstruction=repairs,
            recovery=trained,
            rounding=rounding,
            costs=meter.costs,
            versions=versions(),
            hardware=hardware(model.device, native.plugged(model)),
            warnings=self.origin.left_out,
        )

    def _measured(self) -> tuple[tuple[LanguageMetrics, ...], tuple[TaskMetrics, ...]]:
        evaluation = self.evaluation
        return evaluation.run(self.model, self.tokenizer), evaluation.tasks.run(self.model, self.tokenizer)

    def _prune_in_steps(
        self, dense: PreTrainedModel | None, meter: CostMeter
    ) -> tuple[Budget, tuple[RepairFacts, ...]]:
        """Measure, score, allocate, mask and reconstruct at each sparsity of the schedule; what the last step did."""
        model, targets, config = self.model, self.targets, self.config
        score = build_score(config)
        drawn = cast(torch.Tensor, self.sequences)  # there wherever something is measured on it
        wanted = {} if dense is None else {target.name: target.weight(dense) for target in targets}
        outside = [target for target in targets if not config.reconstruct or target.layer is None]
        bf16 = in_bfloat16(config.calibration_bf16, model.device)
        curves: Curves | None = None
        repairs: tuple[RepairFacts, ...] = ()
        statistics: Statistics = {}
        if config.sparsity == 0 and config.rounds:  # nothing to mask, and so nothing to measure
            plain = replace(config, allocation="uniform", score="magnitude")
            return allocate(targets, scores_of_model(model, build_score(plain), {}), plain, 0.0, None), ()
        for step in range(1, config.steps + 1):
            sparsity = sparsity_at(config.schedule, step / config.steps, config.sparsity)
            with meter.step("calibrate"):
                for own in statistics.values():
                    own.fade(_REMEMBERED)
                if score.needs:
                    seen = part_of_step(drawn, step, config.steps, SCORE_PARTS, config.seed)
                    statistics = calibrate(
                        model, targets, seen, score.needs, config.batch_size, bf16=bf16, start=statistics
                    )
                if config.allocation == "sensitivity" and step == 1:
                    curves = measure_curves(model, targets, score, statistics, sequences=drawn, config=config)
            with meter.step("mask"):
                scores_of = scores_of_model(model, score, statistics)
                budget = allocate(targets, scores_of, config, sparsity, curves)
                mask_of = masks_within(budget, scores_of, config)
                apply_masks(model, outside, mask_of)
            if config.reconstruct:
                with meter.step("reconstruct"):
                    seen = part_of_step(drawn, step, config.steps, REPAIR_PARTS, config.seed)
                    repairs = repair(
                        MemoryBlocks(model),
                        targets,
                        mask_of,
                        dense=wanted,
                        sequences=seen,
                        damping=config.damping,
                        bf16=bf16,
                    )
            tell("prune", step, config.steps, sparsity=sparsity)
        return budget, repairs

    def _tune(self, dense: PreTrainedModel, dtype: torch.dtype, meter: CostMeter) -> None:
        lessons, names = cast(torch.Tensor, self.lessons), [target.name for target in self.targets]
        with meter.step("tune"):
            bf16 = in_bfloat16(self.config.calibration_bf16, self.model.device)
            tune_kept(self.model, dense, names, lessons, dtype=dtype, seed=self.config.seed, bf16=bf16)

    def _rounded(self, dense: PreTrainedModel | None, dtype: torch.dtype, meter: CostMeter) -> RoundingFacts | None:
        if not self.config.rounds:
            return None
        sequences = cast(torch.Tensor, self.sequences)  # rounding always reads them
        with meter.step("round"):
            bf16 = in_bfloat16(self.config.calibration_bf16, self.model.device)
            return round_model(
                self.model, self.targets, sequences, self.config, dtype, bf16=bf16, dense=dense, lessons=self.lessons
            )

    def _train(self, dense: PreTrainedModel | None, meter: CostMeter) -> tuple[RecoveryFacts | None, Budget | None]:
        """Recover, and prune while doing so where that is asked for: what came of it, and the last budget then."""
        if self.recovery is None or self.tokens is None:
            return None, None
        teacher = dense if self.recovery.distill else None
        with meter.step("recover"):
            facts, pruner = recover(
                self.model, self.tokens, self.config, self.recovery, teacher, calibration=self.sequences
            )
        return facts, pruner.budget


def check_fit(model: PreTrainedModel, config: PruningConfig, gradual_steps: int | None = None) -> list[Target]:
    """Refuse what does not fit a model, whatever its weights are; what can be pruned in it.

    Args:
        model: may be on the meta device.
        config: how to prune.
        gradual_steps: of a training that prunes; None: pruned at rest.

    Raises:
        ValueError: the config does not fit the model, or the training.
    """
    targets = find_targets(model, config.components)
    total_to_prune(targets, config, config.sparsity)
    check_inputs(targets, build_score(config).needs)
    check_budget(model, targets, config)
    if gradual_steps is not None:
        check_gradual(targets, config)
        check_steps(config, gradual_steps)
    return targets


def reads_calibration(config: PruningConfig, gradual: bool = False) -> bool:
    """Whether a run measures on a calibration text.

    Args:
        config: how to prune.
        gradual: in training, which reconstructs nothing, and by default measures its own gradients.
    """
    if config.rounds:
        return True
    needs = bool(build_score(config).needs)
    if gradual:
        return needs and config.measure == "calibration"
    return needs or config.reconstruct or config.allocation == "sensitivity"
