"""What the tests start as a program of its own: train, and write what each rank ends with.

python train_on_ranks.py FOLDER BATCH_PER_RANK [slowly|resume]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from tiny_models import build_model
from training_cases import DATA, arguments, config, zeros_of
from transformers import TrainerCallback

from hf_mamba_prune import PruningTrainer
from hf_mamba_prune.files.loading import weights_sha256


class Slowly(TrainerCallback):
    """Leaves time to be killed in the middle."""

    def on_step_end(self, args, state, control, **rest):
        time.sleep(0.5)


def train(folder: Path, batch: int, how: str = "") -> None:
    model = build_model("mamba")
    saving = dict(save_strategy="steps", save_steps=1) if how else {}
    args = arguments(folder / "out", per_device_train_batch_size=batch, seed=5, **saving)
    trainer = PruningTrainer(
        model, args, train_dataset=DATA, pruning_config=config(), callbacks=[Slowly()] if how == "slowly" else []
    )
    trainer.train(resume_from_checkpoint=True if how == "resume" else None)
    torch.save(
        {"sha": weights_sha256(model), "masks": zeros_of(model)}, folder / f"rank-{trainer.args.process_index}.pt"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), int(sys.argv[2]), "".join(sys.argv[3:]))
