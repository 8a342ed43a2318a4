"""What pruning costs a training step on a CPU: `PruningTrainer` beside `transformers.Trainer`, both on the kernels.

    python benchmarks/training_step.py [--steps 10] [--rounds 5] [--threads 2]

The model is mamba-wiki-3m, 8 x 512 tokens a step, cross-entropy, AdamW. "masks kept" trains a model that is 70 %
sparse already; "gradual" averages the gradients too, between the first pruning step and the last. The three run in
turns, and each ratio is that of the medians. The data folder is that of the environment variable HF_MAMBA_PRUNE_DATA
(default ../shared/data), the model stands beside it in ../models.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_mamba_prune import PruningConfig, PruningTrainer, find_targets, load_model, use_native

MODELS = Path(os.environ.get("HF_MAMBA_PRUNE_DATA", "../shared/data")).parent / "models"


class Clock(TrainerCallback):
    """Seconds from the end of each step to the end of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **rest) -> None:
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def run(kind: str, steps: int, data: Dataset) -> list[float]:
    """Seconds of each step but the first."""
    model = load_model(str(MODELS / "mamba-wiki-3m"), device="cpu").model
    clock = Clock()
    # All of a gradual run lies between its first pruning step and its last: what is timed is the averaging.
    schedule = dict(steps=1) if kind != "gradual" else dict(steps=2, start=0.0, end=1.0)
    config = PruningConfig(sparsity=0.7, score="gradient-magnitude", **schedule)
    if kind == "masks kept":
        with torch.no_grad():
            for target in find_targets(model):
                weight = target.weight(model)
                weight.masked_fill_(weight.abs() <= weight.abs().float().quantile(0.7001), 0)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=steps + 1, per_device_train_batch_size=8, learning_rate=1e-4, use_cpu=True,
            save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
            dataloader_pin_memory=False,
        )  # fmt: skip
        options = dict(model=model, args=args, train_dataset=data, callbacks=[clock])
        trainer = Trainer(**options) if kind == "dense" else PruningTrainer(**options, pruning_config=config)
        with use_native(model):
            trainer.train()
    return clock.seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokens = np.load(MODELS / "mamba-wiki-3m-unseen.npz")["tokens"][: 8 * (arguments.steps + 1)].astype(np.int64)
    data = Dataset.from_dict({"input_ids": tokens.tolist(), "labels": tokens.tolist()}).with_format("torch")
    found: dict[str, list[float]] = {"dense": [], "masks kept": [], "gradual": []}
    for _ in range(arguments.rounds):
        for kind, seconds in found.items():
            seconds += run(kind, arguments.steps, data)
    dense = statistics.median(found["dense"])
    print("| training | seconds a step | beside dense |\n|---|---|---|")
    for kind, seconds in found.items():
        print(f"| {kind} | {statistics.median(seconds):.3f} | {statistics.median(seconds) / dense:.3f} x |")


if __name__ == "__main__":
    main()
