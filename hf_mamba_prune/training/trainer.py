"""`PruningTrainer`: a transformers `Trainer` whose model becomes sparse while it trains, and stays it."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints

from hf_mamba_prune.codings.grids import grids_of
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.native import use_native
from hf_mamba_prune.report import SparsityFacts
from hf_mamba_prune.training.checkpoints import (
    RunLock,
    check_whole,
    finish,
    newest_whole,
    set_broken_aside,
    unfinished,
)
from hf_mamba_prune.training.devices import check_arguments, check_grids
from hf_mamba_prune.training.distillation import distill, distill_head
from hf_mamba_prune.training.gradual import STATE_NAME, GradualPruner
from hf_mamba_prune.training.grids import GridCallback
from hf_mamba_prune.training.record import TrainingRecord


class _Unsaved(str):
    """A token that works and is never written: the Trainer pushes its pickled arguments beside the weights."""

    def __reduce__(self):
        return str, ("<HUB_TOKEN>",)

    def __deepcopy__(self, memo: dict) -> _Unsaved:
        return self


class PruningCallback(TrainerCallback):
    """Pruning for a trainer whose class you cannot change, TRL's `SFTTrainer` for example.

    Its limits, none of which `PruningTrainer` has: gradients are averaged and masked after they were clipped, so a
    clipped norm still counts those of masked weights; a resumed run starts averages and schedule anew from the zeros
    that it finds; `load_best_model_at_end` may choose a checkpoint before the final sparsity; reporters that come
    before this callback do not see the sparsity; no `pruning_config.json` is written; checkpoints are written in
    place, and one that a killed run left cut short is set aside when the next trainer is made. One process, or DDP.

    Args:
        config: how to prune.
        calibration: token ids (samples, l), for `measure="calibration"`.
    """

    def __init__(self, config: PruningConfig, calibration: torch.Tensor | None = None) -> None:
        self._config, self._calibration = config, calibration
        self._pruner: GradualPruner | None = None
        self.sees_gradients = True
        self._held: torch.optim.Optimizer | None = None
        self._lock: RunLock | None = None

    def attach(self, model: PreTrainedModel) -> GradualPruner:
        """The masks of a model; new ones when it is another model than before."""
        if self._pruner is None or self._pruner.model is not model:
            self._pruner = GradualPruner(model, self._config, self._calibration)
        return self._pruner

    @property
    def pruner(self) -> GradualPruner:
        """Masks and schedule.

        Raises:
            RuntimeError: no training has begun, so there is no model yet.
        """
        if self._pruner is None:
            raise RuntimeError("this callback has no model yet: train with it first, or attach one.")
        return self._pruner

    def _hold(self, optimizer: torch.optim.Optimizer) -> None:
        """Zeros are zero again after each step of this optimizer, wrapped or not, whoever made it."""
        inner = getattr(optimizer, "optimizer", optimizer)
        if inner is not self._held:
            inner.register_step_post_hook(lambda *_: self.pruner.apply())
            self._held = inner

    def on_init_end(self, args, state, control, **rest) -> None:
        for path, wrong in set_broken_aside(Path(args.output_dir)).items() if state.is_world_process_zero else ():
            warnings.warn(f"a killed run left a checkpoint cut short, as {wrong}: it is {path} now.", stacklevel=2)

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **rest) -> None:
        check_arguments(args)
        if Path(args.output_dir).is_dir():
            self._unlock()
            self._lock = RunLock(Path(args.output_dir))
            self._lock.take()
        self.attach(getattr(model, "module", model))
        self._hold(optimizer)
        self.pruner.lay_out(state.max_steps, state.global_step)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def on_train_end(self, args, state, control, **rest) -> None:
        self._unlock()

    def on_pre_optimizer_step(self, args, state, control, **rest) -> None:
        if self.sees_gradients:
            self.pruner.collect(state.global_step)

    def on_step_end(self, args, state, control, **rest) -> None:
        self.pruner.rise(state.global_step)

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **rest) -> None:
        if logs is not None and "loss" in logs:
            logs |= self.metrics()
            state.log_history[-1] |= self.metrics()

    def metrics(self) -> dict[str, float]:
        """Sparsity of the prunable weights and of each component, and the share of the masks that changed last."""
        shares = {f"sparsity_{name}": share for name, share in self.pruner.component_sparsities().items()}
        return {"sparsity": self.pruner.sparsity(), "mask_churn": self.pruner.churn} | shares


class PruningTrainer(Trainer):
    """A drop-in for `Trainer` that prunes by a schedule and keeps zeros zero.

    A model that is sparse already is trained with its masks kept, one that was rounded to few bits on its grids. With
    a teacher the loss is that of `distillation.distill`. On a CPU the native kernels run the model. Works on one
    device, with DDP and, without grids, with FSDP2.

    Args:
        *args, **kwargs: those of `transformers.Trainer`.
        pruning_config: how to prune; `PruningConfig.from_pretrained` for a model that was pruned before.
        teacher: the dense model, in its own dtype; moved to the device of the training.
        calibration: token ids (samples, l), for `measure="calibration"`.

    Raises:
        ValueError: the config does not fit the model, or the way of training on many devices is not supported.
    """

    def __init__(
        self,
        *args,
        pruning_config: PruningConfig,
        teacher: nn.Module | None = None,
        calibration: torch.Tensor | None = None,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_arguments(self.args)
        if self.args.hub_token:
            self.args.hub_token = _Unsaved(self.args.hub_token)
        self.pruning_config = pruning_config
        self._pruning = PruningCallback(pruning_config, calibration)
        self._pruning.sees_gradients = False
        model = cast(PreTrainedModel, self.model)
        self._record = TrainingRecord(model, pruning_config, self._pruning.attach(model))
        # Before the callbacks that report, so that they see the sparsity in the logs.
        self.callback_handler.callbacks.insert(0, self._pruning)
        self.grids = GridCallback(model) if grids_of(model) else None
        if self.grids is not None:
            check_grids(self.args)
            self.callback_handler.callbacks.insert(1, self.grids)
        self._counted: SparsityFacts | None = None
        self._writes_into: Path | None = None
        self.teacher = teacher
        if teacher is not None:
            teacher.requires_grad_(False).eval().to(self.args.device)

    @property
    def pruner(self) -> GradualPruner:
        """Masks and schedule."""
        return self._pruning.pruner

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """`Trainer.train`, on the native kernels where the model is on a CPU.

        Args:
            resume_from_checkpoint: True: the newest whole one in the output folder; those that a killed run left cut
                short are skipped with a warning.
            *args, **kwargs: those of `Trainer.train`.

        Raises:
            ValueError: the checkpoint is cut short, or none is whole.
        """
        if resume_from_checkpoint is True:
            newest, skipped = newest_whole(Path(str(self.args.output_dir)))
            for path, wrong in skipped.items():
                warnings.warn(f"{path} is skipped, as {wrong}: going on from {newest}.", stacklevel=2)
            resume_from_checkpoint = str(newest)
        elif resume_from_checkpoint:
            check_whole(Path(str(resume_from_checkpoint)))
        with use_native(cast(PreTrainedModel, self.model)):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def evaluate(self, *args, **kwargs):
        """`Trainer.evaluate`, on the native kernels where the model is on a CPU."""
        with use_native(cast(PreTrainedModel, self.model)):
            return super().evaluate(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """`Trainer.training_step`; the gradients of a whole step are averaged and masked before they are clipped."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            scaler = self.accelerator.scaler
            scale = 1.0 if scaler is None or not scaler.is_enabled() else scaler.get_scale()
            self.pruner.collect(self.state.global_step, scale)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        """`Trainer.compute_loss`, or in training with a teacher a loss of `distillation`."""
        if self.teacher is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        hidden = bool(self.pruning_config.hidden_weight)
        labels = inputs.get("labels")
        inputs = {**inputs, "output_hidden_states": hidden}
        with torch.no_grad():
            taught = self.teacher(**{name: value for name, value in inputs.items() if name != "labels"})
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if not ("logits" in outputs and outputs["logits"].dim() == 3):
            loss = distill_head(loss, outputs, taught, self.pruning_config)
            return (loss, outputs) if return_outputs else loss
        count = None
        if num_items_in_batch is not None and self.model_accepts_loss_kwargs:
            scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            count = num_items_in_batch / scale
        # The outputs of all blocks, and behind them that of the last norm.
        states = [tuple(out.hidden_states[:-1]) if hidden else () for out in (outputs, taught)]
        loss = distill(
            loss,
            (outputs.logits, states[0]),
            (taught.logits, states[1]),
            cast(torch.Tensor, labels),
            self.pruning_config,
            count=count,
        )
        return (loss, outputs) if return_outputs else loss

    def create_model_card(  # type: ignore[override]  # what it has no place for is taken by name alone
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        dataset: str | list[str] | None = None,
        **ignored: Any,
    ) -> None:
        """The card, the report and the figures that the command writes, into the output folder. Call it on every rank.

        Args:
            language: of the model.
            license: default: that of the base model's repository.
            dataset: that it was trained on; default: what a data set of the Hub says of itself.
            **ignored: what `Trainer.create_model_card` takes and this card has no place for.
        """
        counted = self._counted or self._record.count(self.pruner)
        if self.is_world_process_zero():
            self._record.write(self, counted, license, language, dataset)

    def push_to_hub(self, *args, **kwargs):
        """`Trainer.push_to_hub`; what the card says of the zeros is counted on every rank first."""
        self._counted = self._record.count(self.pruner)
        try:
            return super().push_to_hub(*args, **kwargs)
        finally:
            self._counted = None

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        self.pruning_config.save_pretrained(output_dir or str(self.args.output_dir))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """All of it in a folder that no one takes for a checkpoint, which then gets its name in one move."""
        run, name = Path(self._get_output_dir(trial)), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(unfinished(run), ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._writes_into = unfinished(run)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writes_into = None
        best = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if best.name == name or best.is_dir():
            self.state.best_model_checkpoint = str(best)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(unfinished(run) / name / TRAINER_STATE_NAME))
            finish(run, name)
            limit, kept = self.args.save_total_limit, self.state.best_model_checkpoint
            rotate_checkpoints(str(run), save_total_limit=limit, best_model_checkpoint=kept, use_mtime=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / name))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writes_into or super()._get_output_dir(trial))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._writes_into is None:  # not before it is whole
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.pruner.save(Path(output_dir), write=self.args.should_save)
        if self.grids is not None and self.args.should_save:
            self.grids.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._pruning.attach(cast(PreTrainedModel, self.model))
        if self.grids is not None:
            self.grids.load(Path(checkpoint))
        if (Path(checkpoint) / STATE_NAME).is_file():
            self.pruner.load(Path(checkpoint))
        else:
            warnings.warn(
                f"{checkpoint} holds no {STATE_NAME}: its zeros are kept, but averages and schedule start anew.",
                stacklevel=2,
            )
            self.pruner.restart()

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Only models of the final sparsity may be the best one."""
        return self.pruner.finished(self.state.global_step) and super()._determine_best_metric(metrics, trial)
