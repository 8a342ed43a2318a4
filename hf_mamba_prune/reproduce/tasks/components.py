"""Which component is the fragile one in a benchmark's model? Each pruned alone, by magnitude, masks only."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.masks.budget import allocate
from hf_mamba_prune.masks.model import apply_masks, masks_within, scores_of_model
from hf_mamba_prune.masks.scores import build_score
from hf_mamba_prune.models.targets import components_of, find_targets
from hf_mamba_prune.reproduce.tasks.base import Scale, Splits, Task
from hf_mamba_prune.reproduce.tasks.training import measure

LEVELS = (0.5, 0.7, 0.9)


def component_metrics(model: PreTrainedModel, task: Task, splits: Splits, scale: Scale) -> dict[str, dict[str, float]]:
    """The first metric with one component of all blocks pruned, uniformly over its tensors.

    Args:
        model: dense; as it was when this is done.
        task, splits, scale: of the benchmark.

    Returns:
        Component, `dense` first -> sparsity as text -> metric.
    """
    metric = task.metrics[0]
    found = {"dense": {"0": measure(model, task, splits, scale)[0][metric]}}
    for component in components_of(model):
        if component.kind == "state" or not component.per_layer:
            continue
        targets = find_targets(model, (component.name,))
        before = {target.name: target.weight(model).clone() for target in targets}
        found[component.name] = {}
        for level in LEVELS:
            config = PruningConfig(
                level, score="magnitude", allocation="uniform", components=(component.name,), reconstruct=False
            )
            scores_of = scores_of_model(model, build_score(config), {})
            mask_of = masks_within(allocate(targets, scores_of, config, level), scores_of, config)
            apply_masks(model, targets, mask_of)
            found[component.name][f"{level:g}"] = measure(model, task, splits, scale)[0][metric]
            with torch.no_grad():
                for target in targets:
                    target.weight(model).copy_(before[target.name])
    return found


def component_table(task: Task, found: dict[str, dict[str, float]]) -> str:
    """A markdown table of `component_metrics`."""
    dense = found["dense"]["0"]
    columns = ["component alone", *(f"{level:.0%}" for level in LEVELS)]
    lines = [f"Each component alone, by magnitude, masks only: {task.metrics[0]}, dense {dense:.4f}.", ""]
    lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for component, values in found.items():
        if component != "dense":
            cells = [component, *(f"{value:.4f}" for value in values.values())]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
