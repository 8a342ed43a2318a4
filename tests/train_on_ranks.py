"""What `accelerate launch` runs in the tests of many ranks: train, and write what each rank ends with.

python train_on_ranks.py FOLDER BATCH_PER_RANK
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from conftest import build_model
from test_trainer import DATA, arguments, config, zeros_of

from hf_mamba_prune import PruningTrainer
from hf_mamba_prune.loading import weights_sha256


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    model = build_model("mamba")
    args = arguments(folder / "out", per_device_train_batch_size=int(sys.argv[2]), seed=5)
    trainer = PruningTrainer(model, args, train_dataset=DATA, pruning_config=config())
    trainer.train()
    rank = args.process_index
    torch.save({"sha": weights_sha256(model), "masks": zeros_of(model)}, folder / f"rank-{rank}.pt")


if __name__ == "__main__":
    main()
