"""Masks of a model in training: the sparsity rises by a schedule, and what is zero stays zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from hf_mamba_prune.codings.grids import rows_without_codes
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.masks.budget import Budget, allocate
from hf_mamba_prune.masks.calibration import GRADIENT_TERMS, Need, Statistics, TargetStatistics, calibrate
from hf_mamba_prune.masks.model import masks_within, scores_of_model
from hf_mamba_prune.masks.scores import build_score
from hf_mamba_prune.masks.slots import weights_to_prune
from hf_mamba_prune.masks.tensor import tensor_mask
from hf_mamba_prune.models.shards import WHOLE, Shard, shard_of
from hf_mamba_prune.models.targets import Target, find_targets
from hf_mamba_prune.schedules import sparsity_at
from hf_mamba_prune.training.demands import check_gradual, check_steps

STATE_NAME = "pruning_state.safetensors"


class GradualPruner:
    """Keeps the masks outside the model, averages gradients, and prunes when the schedule says so.

    Zeros that the model has at the start are masked from the start: a pruned model is trained with its masks kept.
    Where FSDP2 divides the weights, each rank keeps masks and averages of its own rows; every rank must make the same
    calls in the same order.

    Args:
        model: a transformers model of a supported type, not wrapped.
        config: how to prune; `start`, `end`, `steps` and `schedule` say when.
        calibration: token ids (samples, l); for scores that are not measured on training gradients.

    Raises:
        ValueError: the config does not fit the model or the training.
    """

    def __init__(self, model: PreTrainedModel, config: PruningConfig, calibration: torch.Tensor | None = None) -> None:
        self.model, self.config = model, config
        self.targets = find_targets(model, config.components)
        self._score = build_score(config)
        self._calibration = calibration
        self._dropped: dict[str, torch.Tensor] = {}
        self._masked: dict[str, int] = {}
        self._shard: Shard = WHOLE
        self._averages: dict[Need, dict[str, torch.Tensor]] = {}
        self.restart()
        self._events: dict[int, float] = {}
        self.budget: Budget | None = None
        self.churn = 0.0
        if not self._is_sparse_enough():
            self._check()

    def _is_sparse_enough(self) -> bool:
        """Nothing is left to prune: only the masks must hold."""
        if self.config.n_of_m is not None:
            kept, of = self.config.n_of_m
            groups = (self._dropped[target.name].reshape(-1, of).sum(1) for target in self.targets)
            return self._everywhere(all(bool((masked >= of - kept).all()) for masked in groups))
        return self.masked() >= weights_to_prune(self.config.sparsity, self._size)

    def _check(self) -> None:
        config = self.config
        check_gradual(self.targets, config)
        if config.measure == "calibration" and self._score.needs and self._calibration is None:
            raise ValueError("measure='calibration' needs calibration sequences.")

    def lay_out(self, total_steps: int, done: int = 0) -> dict[int, float]:
        """Fix the optimizer steps after which it prunes, and the sparsity of each; none when it is sparse enough.

        Args:
            total_steps: optimizer steps of the whole training.
            done: those made before now. A pruning step that is due and was not made, as the run was meant to be
                longer, comes at the next one.

        Raises:
            ValueError: fewer steps in training than pruning steps.
        """
        config = self.config
        self._settle()
        self._events = {}
        if self._is_sparse_enough():
            return {}
        check_steps(config, total_steps)
        first, last = config.start * total_steps, config.end * total_steps
        start = self._start_sparsity
        for step in range(1, config.steps + 1):
            progress = step / config.steps
            sparsity = sparsity_at(config.schedule, progress, config.sparsity, start)
            # A run that goes on, longer perhaps than it was meant to be, does not go back.
            ahead = step == config.steps or weights_to_prune(sparsity, self._size) > self.masked()
            if ahead and sparsity > self._risen:
                self._events[max(math.floor(first + (last - first) * progress + 0.5), done + 1)] = sparsity
        return self.events

    def _settle(self) -> None:
        """Follow the weights, which were moved, or divided over ranks, since the masks were made."""
        self._shard = shard_of(self.model, [target.name for target in self.targets])
        if self._shard.process_group is not None:
            self._check_divided()
        for target in self.targets:
            dropped = self._dropped[target.name]
            whole = len(dropped) == target.shape[0]
            device = target.weight(self.model).device
            self._dropped[target.name] = self._here(dropped, target) if whole else dropped.to(device)

    def _check_divided(self) -> None:
        config = self.config
        if config.measure == "calibration" and self._score.needs:
            raise ValueError("measure='calibration' sees whole weights, which FSDP2 divides: use measure='training'.")
        if config.allocation == "owl" or any("." in name for name in config.component_sparsity):
            raise ValueError(
                "allocation 'owl' and sparsities of parts such as 'x_proj.B' do not work where FSDP2 divides the "
                "weights: use allocation 'global', 'uniform' or 'per-row', and whole components."
            )

    def _everywhere(self, here: bool) -> bool:
        """Whether something holds on all ranks that the weights are divided among."""
        return self._shard.count([not here]) == [0]

    @property
    def events(self) -> dict[int, float]:
        """The optimizer steps after which it prunes, and the sparsity of each, as planned."""
        return dict(self._events)

    def finished(self, step: int) -> bool:
        """Whether the final sparsity is reached after this many optimizer steps."""
        return step >= max(self._events, default=0)

    @torch.no_grad()
    def collect(self, step: int, scale: float = 1.0) -> None:
        """Take the gradients of a whole optimizer step, dense, into the averages; then mask them.

        Args:
            step: optimizer steps made before this one.
            scale: what the gradients were multiplied with against underflow.

        Raises:
            RuntimeError: a weight that may be pruned has no gradient.
        """
        needs = set(self._score.needs) if self.config.measure == "training" else set()
        if self.config.regrow:
            needs.add(Need.GRADIENT_ABSOLUTE)
        gradients: dict[str, torch.Tensor] = {}
        for target in self.targets:
            gradient = self.model.get_parameter(target.name).grad
            if gradient is None:
                raise RuntimeError(f"{target.name} has no gradient: is it frozen? Prune what is trained only.")
            gradients[target.name] = target.local_matrix(gradient)
        # An overflow, which the optimizer will skip, must not stay in the averages.
        averaging = not self.finished(step) and self._everywhere(
            all(bool(torch.isfinite(gradient.sum())) for gradient in gradients.values())
        )
        for target in self.targets:
            own = gradients[target.name]
            for need in needs if averaging else ():
                term = GRADIENT_TERMS[need](own.float() / scale)
                average = self._averages.setdefault(need, {})
                if target.name in average:
                    average[target.name].lerp_(term, 1 - self.config.decay)
                else:
                    average[target.name] = term.clone()
            own.masked_fill_(self._dropped[target.name], 0)

    @torch.no_grad()
    def apply(self) -> None:
        """Set what is masked to zero again, after the optimizer moved it."""
        for target in self.targets:
            target.weight(self.model).masked_fill_(self._dropped[target.name], 0)

    @torch.no_grad()
    def rise(self, step: int) -> bool:
        """Prune, if the schedule has a pruning step after this many optimizer steps; says whether it did."""
        sparsity = self._events.get(step)
        if sparsity is None:
            return False
        statistics = self._statistics()
        scores_of = scores_of_model(self.model, self._score, statistics)
        self.budget = allocate(self.targets, scores_of, self.config, sparsity, shard=self._shard)
        mask_of = masks_within(self.budget, scores_of, self.config, self._shard)
        changed = 0
        for target in self.targets:
            drop = ~mask_of(target)
            if self.config.regrow and not self.finished(step):
                drop = self._regrown(target, drop)
            if torch.distributed.is_initialized() and self._shard.process_group is None:
                # The same pass may round differently on every rank.
                torch.distributed.broadcast(drop, 0)
            changed += int((drop != self._dropped[target.name]).sum())
            self._dropped[target.name] = drop
        self._count_masked()
        self._risen = sparsity
        self.churn = self._shard.count([changed])[0] / self._size
        if self.finished(step):
            self._averages.clear()
        self.apply()
        return True

    def _statistics(self) -> Statistics:
        if not self._score.needs:
            return {}
        if self.config.measure == "calibration" and self._calibration is not None:
            with torch.enable_grad():
                return calibrate(
                    self.model, self.targets, self._calibration, self._score.needs, self.config.batch_size
                )
        if not self._averages:
            raise RuntimeError(
                "no training step before the first pruning step had finite gradients: there is nothing to score by: "
                "prune later (start), lower the learning rate, or train in bfloat16 instead of float16."
            )
        statistics = {}
        for target in self.targets:
            sums = {need: self._averages[need][target.name] for need in self._score.needs}
            statistics[target.name] = TargetStatistics(sums=sums, sequences=1)
        return statistics

    def _regrown(self, target: Target, drop: torch.Tensor) -> torch.Tensor:
        """Exchange a share of the kept weights, the smallest, for as many masked ones with the largest gradients."""
        masked = self._shard.count([int(drop.sum())])[0]
        count = min(round(self.config.regrow * (target.size - masked)), masked)
        if count == 0:
            return drop
        gradient = self._averages[Need.GRADIENT_ABSOLUTE][target.name]
        weight = target.weight(self.model)
        weakest = self._lowest(torch.where(drop, torch.inf, weight.abs().float()), count, target)
        grown = drop & ~self._lowest(torch.where(drop, gradient, torch.inf), masked - count, target)
        return (drop | weakest) & ~grown

    def _lowest(self, scores: torch.Tensor, count: int, target: Target) -> torch.Tensor:
        """True at the `count` lowest scores; they must not be negative."""
        finite = scores.clamp_max(torch.finfo(torch.float32).max).float()
        return ~tensor_mask(finite, count, target.name, self.config.seed, size=target.size, shard=self._shard)

    def sparsity(self) -> float:
        """Share of the prunable weights that is masked, 0 to 1."""
        return self._share(self.targets)

    def component_sparsities(self) -> dict[str, float]:
        """The same for each component."""
        names = dict.fromkeys(target.component for target in self.targets)
        return {name: self._share([t for t in self.targets if t.component == name]) for name in names}

    def _share(self, targets: Sequence[Target]) -> float:
        return sum(self._masked[t.name] for t in targets) / sum(t.size for t in targets)

    @property
    def _size(self) -> int:
        return sum(target.size for target in self.targets)

    def masked(self) -> int:
        """Weights that the masks hold at zero."""
        return sum(self._masked.values())

    def _count_masked(self) -> None:
        counts = self._shard.count(int(drop.sum()) for drop in self._dropped.values())
        self._masked = dict(zip(self._dropped, counts, strict=True))

    def restart(self) -> None:
        """Take the masks from the model's zeros, and forget all averages."""
        self._shard = shard_of(self.model, [target.name for target in self.targets])
        self._dropped = {target.name: self._zeros(target) for target in self.targets}
        self._count_masked()
        self._averages = {}
        self._start_sparsity, self._risen = self.sparsity(), 0.0

    def _zeros(self, target: Target) -> torch.Tensor:
        """What is zero and stays it: of a weight that was rounded to few bits only rows that have none."""
        zeros = target.weight(self.model) == 0
        rows = rows_without_codes(self.model, target.name)
        return zeros if rows is None else zeros & rows.to(zeros.device)[:, None]

    def state(self) -> dict[str, torch.Tensor]:
        """Masks, eight to a byte, and averages, of all rows: everything that a run needs to go on."""
        tensors = {}
        for target in self.targets:
            drop = self._shard.gather(self._dropped[target.name].to(torch.uint8), target.shape[0])
            tensors[f"mask.{target.name}"] = torch.from_numpy(np.packbits(drop.flatten().numpy()))
        for need, averages in self._averages.items():
            for target in self.targets:
                rows = averages[target.name]
                tensors[f"average.{need.name}.{target.name}"] = self._shard.gather(rows, target.shape[0])
        for name, value in (("start_sparsity", self._start_sparsity), ("risen", self._risen), ("churn", self.churn)):
            tensors[name] = torch.tensor(value, dtype=torch.float64)
        return tensors

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state`.

        Raises:
            ValueError: the state is of another model.
        """
        self._shard = shard_of(self.model, [target.name for target in self.targets])
        for target in self.targets:
            packed = tensors.get(f"mask.{target.name}")
            if packed is None or packed.numel() != (target.size + 7) // 8:
                raise ValueError(f"the pruning state holds no mask that fits {target.name}: it is of another model.")
            bits = np.unpackbits(packed.cpu().numpy(), count=target.size).astype(bool)
            self._dropped[target.name] = self._here(torch.from_numpy(bits).view(target.shape), target)
        self._count_masked()
        self._averages = {}
        targets = {target.name: target for target in self.targets}
        for key, value in tensors.items():
            if key.startswith("average."):
                _, need, name = key.split(".", 2)
                self._averages.setdefault(Need[need], {})[name] = self._here(value, targets[name])
        self._start_sparsity = float(tensors["start_sparsity"])
        self._risen, self.churn = float(tensors["risen"]), float(tensors["churn"])

    def _here(self, whole: torch.Tensor, target: Target) -> torch.Tensor:
        """The rows of a whole weight that this rank holds, where they are."""
        weight = target.weight(self.model)
        return self._shard.cut(whole, target.name, len(weight)).to(weight.device)

    def save(self, folder: Path, write: bool = True) -> None:
        """Write `pruning_state.safetensors` into an existing folder; ranks that do not write still give their rows."""
        state = self.state()
        if write:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / STATE_NAME)

    def load(self, folder: Path) -> None:
        """Read it again.

        Raises:
            ValueError: see `load_state`.
        """
        self.load_state(load_file(folder / STATE_NAME))
