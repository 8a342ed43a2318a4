"""Repeat the paper's experiments: train a dense model, prune it by several methods, measure, and write the table.

Every result is one file, written when it is there: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.modeling_outputs import ModelOutput
from transformers.trainer_callback import PrinterCallback

from hf_mamba_prune.architectures import find_targets
from hf_mamba_prune.config import PruningConfig, closest
from hf_mamba_prune.native import use_native
from hf_mamba_prune.progress import track
from hf_mamba_prune.tasks import TASKS, Scale, Splits, Task
from hf_mamba_prune.trainer import PruningTrainer
from hf_mamba_prune.training_bar import TrainingBar

METHODS: dict[str, tuple[str, dict[str, object], bool]] = {
    "ours": ("hf-mamba-prune: Fisher, global, distilled", dict(score="fisher"), True),
    "paper": ("gradient-magnitude, global, task loss (2505.08299)", dict(score="gradient-magnitude"), False),
    "magnitude": ("magnitude, uniform, task loss", dict(score="magnitude", allocation="uniform"), False),
}
"""Name -> how a table calls it, the fields of its config, and whether the dense model teaches."""

DENSE, LONGER = "dense", "dense-longer"
"""The dense model, and the same trained for as many steps more as the pruned ones are."""


@dataclass(frozen=True)
class Result:
    """One measured model.

    Args:
        task: name.
        method: of `METHODS`, `dense` or `dense-longer`.
        sparsity: of the prunable weights; 0 for the dense model.
        seed: of the data's order, the weights and the choices.
        metrics: on the test part.
        nonzero: weights of the whole model that are not zero.
        train_seconds: of its training, or of its pruning and recovery.
        test_seconds: of running the test part.
    """

    task: str
    method: str
    sparsity: float
    seed: int
    metrics: dict[str, float]
    nonzero: int
    train_seconds: float
    test_seconds: float


@dataclass(frozen=True)
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

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(closest("task", self.task, tuple(TASKS)))
        for method in self.methods:
            if method not in METHODS:
                raise ValueError(closest("method", method, tuple(METHODS)))
        if self.scale not in TASKS[self.task].scales:
            raise ValueError(closest("scale", self.scale, tuple(TASKS[self.task].scales)))
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
                    self._measure(task, scale, splits, method, sparsity, seed)
                    self.write_table()
                yield _read_result(path)
        self.write_table()

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
                _train(model, splits, scale, scale.steps, seed)
        elif method == LONGER:
            model = type(model).from_pretrained(kept, dtype=torch.float32)
            _train(model, splits, scale, scale.recover_steps, seed)
        else:
            model = type(model).from_pretrained(kept, dtype=torch.float32)
            teacher = type(model).from_pretrained(kept, dtype=torch.float32) if METHODS[method][2] else None
            config = PruningConfig(sparsity=sparsity, seed=seed, reconstruct=False, **METHODS[method][1])
            _train(model, splits, scale, scale.recover_steps, seed, config, teacher)
        seconds = time.perf_counter() - started
        metrics, test_seconds = measure(model, task, splits, scale)
        model.save_pretrained(self._folder() / f"{method}-{sparsity:g}-{seed}")
        nonzero = sum(int((p != 0).sum()) for p in model.parameters())
        targets = find_targets(model)
        zeros = sum(int((target.weight(model) == 0).sum()) for target in targets)
        reached = zeros / sum(target.size for target in targets)
        if sparsity and abs(reached - sparsity) > 1e-3:
            raise RuntimeError(f"{method} ended at a sparsity of {reached:.4f} instead of {sparsity}.")
        result = Result(task.name, method, sparsity, seed, metrics, nonzero, seconds, test_seconds)
        path = self._path(method, sparsity, seed)
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n", encoding="utf-8")
        temporary.rename(path)

    def results(self) -> list[Result]:
        """All that has been measured."""
        runs = ((method, sparsity, seed) for method, sparsity in self._runs() for seed in range(self.seeds))
        return [_read_result(path) for path in (self._path(*run) for run in runs) if path.is_file()]

    def write_table(self) -> Path:
        """Write the table of what has been measured: mean and deviation over the seeds, dense first."""
        path = self._folder() / "table.md"
        temporary = path.with_suffix(".part")
        temporary.write_text(table(TASKS[self.task], TASKS[self.task].scales[self.scale], self.results()), "utf-8")
        temporary.rename(path)
        return path


def _read_result(path: Path) -> Result:
    return Result(**json.loads(path.read_text(encoding="utf-8")))


def table(task: Task, scale: Scale, results: list[Result]) -> str:
    """A markdown table: one row for each method and sparsity."""
    lines = [f"# {task.name}", ""]
    if scale.reduced:
        lines += [f"Smaller than published: {'; '.join(scale.reduced)}.", ""]
    head = [f"{name} (mean +- deviation)" for name in task.metrics]
    columns = ["method", "sparsity", "seeds", *head, "kept", "non-zero weights", "training, s", "test part, s"]
    lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    groups: dict[tuple[str, float], list[Result]] = {}
    for result in results:
        groups.setdefault((result.method, result.sparsity), []).append(result)
    dense = groups.get((DENSE, 0.0))
    for (method, sparsity), found in groups.items():
        label = METHODS[method][0] if method in METHODS else method.replace("-", ", trained ")
        cells = [label, f"{sparsity:.0%}", str(len(found))]
        cells += [_spread([result.metrics[name] for result in found]) for name in task.metrics]
        cells.append("" if dense is None else f"{_kept(task, dense, found):.1%}")
        cells.append(f"{found[0].nonzero:,}")
        cells += [
            f"{statistics.mean(getattr(r, name) for r in found):.0f}" for name in ("train_seconds", "test_seconds")
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} +- {statistics.stdev(values) if len(values) > 1 else 0:.4f}"


def _kept(task: Task, dense: list[Result], found: list[Result]) -> float:
    """Share of the dense model's first metric that is kept; of an error, dense by pruned."""
    before, after = (statistics.mean(r.metrics[task.metrics[0]] for r in results) for results in (dense, found))
    return after / before if task.higher_is_better else before / after


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


def _train(
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
        common = dict(train_dataset=splits.train, data_collator=splits.collate, callbacks=[TrainingBar("train")])
        arguments = _arguments(folder, scale, steps, seed)
        if config is None:
            trainer = Trainer(model, arguments, **common)
        else:
            trainer = PruningTrainer(model, arguments, pruning_config=config, teacher=teacher, **common)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()


@torch.no_grad()
def measure(model: PreTrainedModel, task: Task, splits: Splits, scale: Scale) -> tuple[dict[str, float], float]:
    """A model's metrics on the test part, and the seconds that this took."""
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
        sums["perplexity"] += float(found.loss) * count
    elif "accuracy" in sums:
        count = len(batch["labels"])
        sums["accuracy"] += int((found.logits.argmax(-1) == batch["labels"]).sum())
    else:
        error = (found.prediction_outputs - batch["future_values"]).double()
        count = error.numel()
        sums["mse"] += float(error.square().sum())
        sums["mae"] += float(error.abs().sum())
    sums["count"] += count
