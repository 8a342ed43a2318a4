"""Recovery: fine-tune what is left, with its masks, towards the dense model or the text itself."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.measure.environment import in_bfloat16
from hf_mamba_prune.report import RecoveryFacts
from hf_mamba_prune.texts.sequences import sample_sequences
from hf_mamba_prune.texts.sources import TextSource
from hf_mamba_prune.training.bar import TrainingBar
from hf_mamba_prune.training.gradual import GradualPruner
from hf_mamba_prune.training.trainer import PruningTrainer


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How to train after pruning, or while pruning.

    Args:
        text: to train on.
        steps: optimizer steps, at least 1.
        learning_rate: its peak; a tenth of the steps warm up, a cosine leads to zero.
        batch_size: sequences of a step, at least 1.
        length: tokens of a sequence, at least 2.
        distill: learn from the dense model, with the weights of the pruning config; otherwise cross-entropy alone.
        gradual: prune in training, by the schedule of the pruning config, instead of before it (arXiv 2505.08299).
        bf16: run the products in bfloat16 over float32 weights; None: on a CPU that has instructions for them.

    Raises:
        ValueError: a number is out of range.
    """

    text: TextSource
    steps: int = 500
    learning_rate: float = 1e-3
    batch_size: int = 8
    length: int = 512
    distill: bool = True
    gradual: bool = False
    bf16: bool | None = None

    def __post_init__(self) -> None:
        for name, low in (("steps", 1), ("batch_size", 1), ("length", 2)):
            if getattr(self, name) < low:
                raise ValueError(f"recovery: {name} is {getattr(self, name)}; expected at least {low}.")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"recovery: learning_rate is {self.learning_rate}; expected 0 < learning_rate < 1.")


class _Sequences(Dataset):
    def __init__(self, tokens: torch.Tensor) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._tokens[index], "labels": self._tokens[index]}


def training_tokens(tokenizer: PreTrainedTokenizerBase, recovery: Recovery, seed: int) -> torch.Tensor:
    """Random windows of the recovery's text, as many as its steps take: (sequences, l).

    Raises:
        ValueError: the text is too short.
    """
    count = recovery.steps * recovery.batch_size
    draw = seed + 1  # not the windows that the scores were measured on
    return sample_sequences(recovery.text, tokenizer, count, recovery.length, draw)


def lay_out(pruner: GradualPruner, recovery: Recovery) -> None:
    """Fix the pruning steps of a gradual recovery.

    Raises:
        ValueError: they do not fit into its steps, or the model is sparse enough already.
    """
    if not pruner.lay_out(recovery.steps):
        raise ValueError(f"the model is {pruner.sparsity():.1%} sparse already: there is nothing to prune.")


def recover(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    config: PruningConfig,
    recovery: Recovery,
    teacher: nn.Module | None,
    calibration: torch.Tensor | None = None,
) -> tuple[RecoveryFacts, GradualPruner]:
    """Train a model in place, in float32; it comes back in its own dtype.

    Args:
        model: pruned, or dense when `recovery.gradual`.
        tokens: token ids (sequences, l), as `training_tokens` draws them.
        config: components, seed, and for a gradual recovery how to prune.
        recovery: data and length of the training.
        teacher: the dense model; None: cross-entropy alone.
        calibration: token ids (samples, l); for a gradual recovery whose config says `measure="calibration"`.

    Returns:
        What was done, and the masks.

    Raises:
        ValueError: the config does not fit a training.
    """
    dtype = model.dtype
    model.float()
    with tempfile.TemporaryDirectory() as folder:
        arguments = _arguments(folder, model, config, recovery)
        trainer = PruningTrainer(
            model,
            arguments,
            train_dataset=_Sequences(tokens),
            pruning_config=config,
            teacher=teacher,
            calibration=calibration,
            callbacks=[TrainingBar("recover")],
        )
        if recovery.gradual:
            lay_out(trainer.pruner, recovery)
        trainer.remove_callback(PrinterCallback)  # its lines would stand in the middle of what the command prints
        trainer.train()
        # The model left as it came, without the autocast around its forward.
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    nn.Module.to(model, dtype).eval()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    facts = RecoveryFacts(
        text=recovery.text.name,
        steps=recovery.steps,
        tokens=recovery.steps * recovery.batch_size * tokens.shape[1],
        learning_rate=recovery.learning_rate,
        distilled=teacher is not None,
        gradual=recovery.gradual,
        first_loss=losses[0],
        last_loss=losses[-1],
    )
    return facts, trainer.pruner


def _arguments(folder: str, model: PreTrainedModel, config: PruningConfig, recovery: Recovery) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=recovery.steps,
        per_device_train_batch_size=recovery.batch_size,
        learning_rate=recovery.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recovery.steps // 10,
        max_grad_norm=1.0,
        bf16=in_bfloat16(recovery.bf16, model.device),
        logging_steps=max(1, recovery.steps // 20),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=model.device.type != "cpu",
        seed=config.seed % 2**32,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one model on one device, however many there are
    return arguments
