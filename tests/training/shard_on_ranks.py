"""What the tests start as a program of its own, one process a rank: a model divided by FSDP2 becomes sparse.

python shard_on_ranks.py FOLDER RANKS:PORT ...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from tiny_models import build_model
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from training_cases import GIVEN, TOKENS, arguments, config

from hf_mamba_prune import PruningConfig, PruningTrainer, find_targets
from hf_mamba_prune.training.gradual import GradualPruner

STEPS, BATCH = 8, 12  # which 2, 3 and 4 ranks divide


def divide(model: torch.nn.Module) -> torch.nn.Module:
    for layer in model.backbone.layers:
        fully_shard(layer)
    return fully_shard(model)


def trained(folder: Path, model: torch.nn.Module, rank: int, ranks: int) -> tuple[GradualPruner, list[dict]]:
    """A training by the trainer's own overrides, in the order in which `Trainer.train` calls them."""
    args = arguments(folder, max_steps=STEPS, seed=5)
    trainer = PruningTrainer(model, args, pruning_config=config())
    divide(model)
    trainer.accelerator.state.distributed_type = "NO"  # FSDP2 of accelerate wants a GPU: it is divided here already
    trainer.create_optimizer_and_scheduler(STEPS)
    trainer.state.max_steps, trainer.current_gradient_accumulation_steps = STEPS, 1
    trainer.callback_handler.model, trainer.callback_handler.optimizer = model, trainer.optimizer
    trainer.control = trainer.callback_handler.on_train_begin(args, trainer.state, trainer.control)
    seen = []
    for step in range(STEPS):
        batch = TOKENS[torch.arange(step * BATCH, (step + 1) * BATCH) % len(TOKENS)]
        rows = batch.chunk(ranks)[rank]
        trainer.training_step(model, {"input_ids": rows, "labels": rows})
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.optimizer.zero_grad()
        trainer.state.global_step += 1
        trainer.callback_handler.on_step_end(args, trainer.state, trainer.control)
        zeros = {name: mask.clone() for name, mask in whole_zeros(model).items()}
        seen.append({"sparsity": trainer.pruner.sparsity(), "zeros": zeros, "masked": trainer.pruner.masked()})
    trainer._save_optimizer_and_scheduler(str(folder))
    trainer.create_model_card()
    return trainer.pruner, seen


def whole_zeros(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for target in find_targets(model):
        weight = model.get_parameter(target.name).detach()
        weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
        found[target.name] = weight.view(target.shape) == 0
    return found


def given(model: torch.nn.Module, options: dict) -> dict[str, torch.Tensor]:
    """The masks after the first half of the schedule, from gradients that do not depend on the ranks."""
    pruner = GradualPruner(model, PruningConfig(**dict(sparsity=0.6, steps=2, end=0.5) | options))
    pruner.lay_out(8)
    for step in range(4):
        for i, target in enumerate(pruner.targets):
            parameter = model.get_parameter(target.name)
            draw = torch.Generator().manual_seed(100 * step + i)
            # Few levels, so that many scores are equal.
            gradient = torch.randint(-3, 4, parameter.shape, generator=draw).float()
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
        pruner.collect(step)
        pruner.rise(step + 1)
    return whole_zeros(model)


def equal_weights(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for target in find_targets(model):
            target.weight(model).fill_(0.5)
    return model


def work(folder: Path, rank: int, ranks: int) -> None:
    masks = {}
    for name, options in GIVEN.items():
        model = build_model("mamba")
        model = divide(equal_weights(model) if name == "ties" else model)
        masks[name] = given(model, options)
    model = build_model("mamba")
    pruner, seen = trained(folder, model, rank, ranks)
    state = pruner.state()
    again = GradualPruner(model, config())
    again.load(folder)
    resumed = again.state()
    torch.save(
        {
            "given": masks, "seen": seen, "whole": state, "resumed": resumed,
            "rows": {t.name: len(t.weight(model)) for t in pruner.targets},
        },
        folder / f"rank-{rank}.pt",
    )  # fmt: skip


def main() -> None:
    """All ranks are forks of one process, which has imported everything; those of each number after the others."""
    torch.set_num_threads(1)
    for ranks, port in (map(int, world.split(":")) for world in sys.argv[2:]):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        folder = Path(sys.argv[1]) / str(ranks)
        folder.mkdir()
        running = []
        for rank in range(ranks):
            running.append(os.fork())
            if not running[-1]:
                torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
                work(folder, rank, ranks)
                torch.distributed.destroy_process_group()
                return
        if any([os.waitpid(pid, 0)[1] for pid in running]):
            sys.exit(f"a rank of {ranks} failed")


if __name__ == "__main__":
    main()
