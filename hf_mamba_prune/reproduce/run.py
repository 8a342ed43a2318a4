"""Repeat the paper's experiments: train a dense model, prune it by several methods, measure, and write the table.

Every result is one file, written when it is there: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import set_seed

from hf_mamba_prune.config import PruningConfig, closest
from hf_mamba_prune.measure.environment import CostMeter
from hf_mamba_prune.models.targets import find_targets
from hf_mamba_prune.reproduce.methods import METHODS
from hf_mamba_prune.reproduce.tasks import TASKS, Scale, Splits, Task
from hf_mamba_prune.reproduce.tasks.components import component_metrics, component_table
from hf_mamba_prune.reproduce.tasks.results import DENSE, LONGER, Result, table, write_whole
from hf_mamba_prune.reproduce.tasks.training import measure, train


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """One benchmark, all methods, sparsities and seeds.

    Args:
        task: name of `TASKS`.
        data: folder of its data.
        output: folder of the results; what is there already is not run again.
        sparsities: of the prunable weights.
        methods: names of `METHODS`.
        scale: `small` or `paper`.
        seeds: how many.
        components: also prune each component alone, masks only, in the first dense model.

    Raises:
        ValueError: an unknown task, method or scale, or a number out of range.
    """

    task: str
    data: Path
    output: Path
    sparsities: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8)
    methods: tuple[str, ...] = tuple(METHODS)
    scale: str = "small"
    seeds: int = 3
    components: bool = True

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(closest("task", self.task, tuple(TASKS)))
        for method in self.methods:
            if method not in METHODS:
                raise ValueError(closest("method", method, tuple(METHODS)))
        if self.scale not in TASKS[self.task].scales:
            raise ValueError(closest("scale", self.scale, tuple(TASKS[self.task].scales)))
        object.__setattr__(self, "sparsities", tuple(dict.fromkeys(self.sparsities)))
        object.__setattr__(self, "methods", tuple(dict.fromkeys(self.methods)))
        if self.seeds < 1 or not all(0 < sparsity < 1 for sparsity in self.sparsities):
            raise ValueError("expected at least one seed, and sparsities above 0 and below 1.")

    def run(self) -> Iterator[Result]:
        """Measure what has not been measured yet; every result as soon as it is there, then the table on disk.

        Raises:
            ValueError: the data is not there.
        """
        task = TASKS[self.task]
        scale = task.scales[self.scale]
        splits: Splits | None = None
        for seed in range(self.seeds):
            for method, sparsity in self._runs():
                path = self._path(method, sparsity, seed)
                if not path.is_file():
                    splits = splits or task.data(self.data, scale)
                    self._measure(task, scale, splits, method=method, sparsity=sparsity, seed=seed)
                    self.write_table()
                yield Result.load(path)
        if self.components and not self._components().is_file():
            splits = splits or task.data(self.data, scale)
            model = type(task.build(scale)).from_pretrained(self._folder() / f"{DENSE}-0-0", dtype=torch.float32)
            found = component_metrics(model, task, splits, scale)
            write_whole(self._components(), json.dumps(found, indent=1) + "\n")
        self.write_table()

    def _components(self) -> Path:
        return self._folder() / "components.json"

    def _runs(self) -> list[tuple[str, float]]:
        return [
            (DENSE, 0.0),
            (LONGER, 0.0),
            *((method, sparsity) for sparsity in self.sparsities for method in self.methods),
        ]

    def _folder(self) -> Path:
        return self.output / f"{self.task}-{self.scale}"

    def _path(self, method: str, sparsity: float, seed: int) -> Path:
        return self._folder() / f"{method}-{sparsity:g}-{seed}.json"

    def _measure(self, task: Task, scale: Scale, splits: Splits, method: str, sparsity: float, seed: int) -> None:
        set_seed(seed)
        kept = self._folder() / f"{DENSE}-0-{seed}"
        model = task.build(scale)
        started = time.perf_counter()
        if method == DENSE:
            if scale.steps:
                train(model, splits, scale, scale.steps, seed)
        elif method == LONGER:
            model = type(model).from_pretrained(kept, dtype=torch.float32)
            train(model, splits, scale, scale.recover_steps, seed)
        else:
            model = type(model).from_pretrained(kept, dtype=torch.float32)
            teacher = type(model).from_pretrained(kept, dtype=torch.float32) if METHODS[method][2] else None
            config = PruningConfig(sparsity=sparsity, seed=seed, reconstruct=False, **METHODS[method][1])
            train(model, splits, scale, scale.recover_steps, seed, config=config, teacher=teacher)
        seconds = time.perf_counter() - started
        meter = CostMeter()
        with meter.step("measure"):
            metrics, test_seconds = measure(model, task, splits, scale)
        model.save_pretrained(self._folder() / f"{method}-{sparsity:g}-{seed}")
        nonzero = sum(int((p != 0).sum()) for p in model.parameters())
        targets = find_targets(model)
        zeros = sum(int((target.weight(model) == 0).sum()) for target in targets)
        reached = zeros / sum(target.size for target in targets)
        if sparsity and abs(reached - sparsity) > 1e-3:
            raise RuntimeError(f"{method} ended at a sparsity of {reached:.4f} instead of {sparsity}.")
        result = Result(
            task=task.name,
            method=method,
            sparsity=sparsity,
            seed=seed,
            metrics=metrics,
            nonzero=nonzero,
            train_seconds=seconds,
            test_seconds=test_seconds,
            stand_ins=splits.stand_ins,
            test_bytes=meter.costs[0].peak_bytes,
        )
        result.save(self._path(method, sparsity, seed))

    def results(self) -> list[Result]:
        """All that has been measured, by this run and by those before it."""
        found = [Result.load(path) for path in self._folder().glob("*-*-*.json")]
        order = [DENSE, LONGER, *METHODS]
        return sorted(found, key=lambda result: (result.sparsity, order.index(result.method), result.seed))

    def write_table(self) -> Path:
        """Write the table of what has been measured: mean and deviation over the seeds, dense first."""
        task, path = TASKS[self.task], self._folder() / "table.md"
        scale = task.scales[self.scale]
        parts = [table(task, scale, self.results())]
        if self._components().is_file():
            parts.append(component_table(task, json.loads(self._components().read_text(encoding="utf-8"))))
        write_whole(path, "\n".join(parts))
        return path
