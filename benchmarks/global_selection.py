"""Global magnitude selection at 70 % on the 302 million projection weights of the mamba-370m shape.

    python benchmarks/global_selection.py

Beside `torch.nn.utils.prune.global_unstructured` on the same weights in the same run: seconds, and the extra memory
above the weights at its peak. Each side runs in a child process of its own, so that neither sees the other's memory.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from multiprocessing.connection import Connection

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune
from transformers import MambaConfig

from hf_mamba_prune import PruningConfig
from hf_mamba_prune.masks.budget import allocate
from hf_mamba_prune.masks.model import apply_masks, masks_within, scores_of_model
from hf_mamba_prune.masks.scores import build_score
from hf_mamba_prune.models.targets import Target

SPARSITY = 0.7
CONFIG = MambaConfig(hidden_size=1024, num_hidden_layers=48)


def make_weights() -> nn.Module:
    """Only the projections, under the names that they have in the model."""
    inner, rank, state = CONFIG.intermediate_size, CONFIG.time_step_rank, CONFIG.state_size
    shapes = {
        "in_proj": (2 * inner, CONFIG.hidden_size),
        "x_proj": (rank + 2 * state, inner),
        "dt_proj": (inner, rank),
        "out_proj": (CONFIG.hidden_size, inner),
    }
    torch.manual_seed(0)
    layers = nn.ModuleList()
    for _ in range(CONFIG.num_hidden_layers):
        block = nn.ModuleDict({name: nn.Linear(i, o, bias=False) for name, (o, i) in shapes.items()})
        layers.append(block)
    return layers


def ours(model: nn.Module) -> None:
    """Budget, masks and zeros through the code of the command."""
    config = PruningConfig(SPARSITY, score="magnitude", ceiling=1.0)
    targets = [
        Target(
            name=f"{name}.weight",
            component=name.rsplit(".", 1)[-1],
            layer=int(name.split(".")[0]),
            kind="linear",
            tap=None,
            shape=m.weight.shape,
        )
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear)
    ]
    scores_of = scores_of_model(model, build_score(config), {})
    budget = allocate(targets, scores_of, config, SPARSITY)
    apply_masks(model, targets, masks_within(budget, scores_of, config))


def theirs(model: nn.Module) -> None:
    """torch's own, as its documentation shows it."""
    pairs = [(m, "weight") for m in model.modules() if isinstance(m, nn.Linear)]
    torch_prune.global_unstructured(pairs, pruning_method=torch_prune.L1Unstructured, amount=SPARSITY)


def peak() -> int:
    """Highest resident memory of this process so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def child(run, answer: Connection) -> None:
    """Build the weights, run one side, and say what it cost and what it left."""
    torch.set_num_threads(2)
    model = make_weights()
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    size = sum(w.numel() * w.element_size() for w in weights)
    before = peak()
    started = time.perf_counter()
    run(model)
    seconds = time.perf_counter() - started
    extra = peak() - before
    zeros = sum(int((m.weight == 0).sum()) for m in model.modules() if isinstance(m, nn.Linear))
    count = sum(w.numel() for w in weights)
    answer.send((seconds, extra / size, zeros, count))


def measure(run) -> tuple[float, float, int, int]:
    """(seconds, extra memory / size of the weights, zeros, weights)."""
    mine, other = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(run, other))
    process.start()
    result = mine.recv()
    process.join()
    return result


def main() -> None:
    rounds = []
    for number in range(1, 4):
        rounds.append((measure(ours), measure(theirs)))
        print(f"round {number}: {rounds[-1][0][0]:.2f} s beside {rounds[-1][1][0]:.2f} s", flush=True)
    for label, results in zip(("hf-mamba-prune", "torch global_unstructured"), zip(*rounds, strict=True), strict=True):
        seconds = sorted(r[0] for r in results)[1]
        extra = max(r[1] for r in results)
        print(f"{label:<28} {seconds:8.2f} s   extra memory {extra:7.1%} of the weights   zeros {results[0][2]:,}")
    print(f"weights {rounds[0][0][3]:,}, asked for {round(SPARSITY * rounds[0][0][3]):,} zeros")
    print(f"ratio of the times, median of 3 rounds: {sorted(b[0] / a[0] for a, b in rounds)[1]:.1f}")


if __name__ == "__main__":
    main()
