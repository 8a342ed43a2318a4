"""Train, prune and measure the model of a benchmark."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_outputs import ModelOutput
from transformers.trainer_callback import PrinterCallback

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.native import use_native
from hf_mamba_prune.progress import track
from hf_mamba_prune.reproduce.tasks.base import Scale, Splits, Task
from hf_mamba_prune.training.bar import TrainingBar
from hf_mamba_prune.training.trainer import PruningTrainer


def _arguments(folder: str, scale: Scale, steps: int, seed: int) -> TrainingArguments:
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=scale.batch_size,
        per_device_eval_batch_size=scale.batch_size,
        learning_rate=scale.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        weight_decay=0.01,
        logging_steps=max(1, steps // 20),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels", "future_values"],
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one model on one device, however many there are
    return arguments


def train(
    model: PreTrainedModel,
    splits: Splits,
    scale: Scale,
    steps: int,
    seed: int,
    config: PruningConfig | None = None,
    teacher: PreTrainedModel | None = None,
) -> None:
    """Train a model in place: dense, or pruned in training."""
    with tempfile.TemporaryDirectory() as folder, use_native(model):
        common: dict[str, Any] = dict(
            train_dataset=splits.train, data_collator=splits.collate, callbacks=[TrainingBar("train")]
        )
        arguments = _arguments(folder, scale, steps, seed)
        if config is None:
            trainer: Trainer = Trainer(model, arguments, **common)
        else:
            trainer = PruningTrainer(model, arguments, pruning_config=config, teacher=teacher, **common)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()


@torch.no_grad()
def measure(model: PreTrainedModel, task: Task, splits: Splits, scale: Scale) -> tuple[dict[str, float], float]:
    """A model's metrics on the test part, and the seconds that this took."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nn.Module.to(model, device)
    loader = torch.utils.data.DataLoader(splits.test, scale.batch_size, collate_fn=splits.collate)
    sums, started = dict.fromkeys((*task.metrics, "count"), 0.0), time.perf_counter()
    with use_native(model):
        for batch in track(loader, "measure", "batch"):
            batch = {name: value.to(model.device) for name, value in batch.items()}
            _add(sums, model(**batch), batch)
    seconds = time.perf_counter() - started
    means = {name: sums[name] / sums["count"] for name in task.metrics}
    if "perplexity" in means:
        means["perplexity"] = min(math.exp(min(means["perplexity"], 700)), sys.float_info.max)
    return means, seconds


def _add(sums: dict[str, float], found: ModelOutput, batch: dict[str, torch.Tensor]) -> None:
    """Add what one batch says: its count, and for each metric the sum that it is the mean of."""
    if "perplexity" in sums:
        count = batch["labels"][:, 1:].numel()
        sums["perplexity"] += float(found["loss"]) * count
    elif "accuracy" in sums:
        count = len(batch["labels"])
        sums["accuracy"] += int((found["logits"].argmax(-1) == batch["labels"]).sum())
    else:
        error = (found["prediction_outputs"] - batch["future_values"]).double()
        count = error.numel()
        sums["mse"] += float(error.square().sum())
        sums["mae"] += float(error.abs().sum())
    sums["count"] += count
