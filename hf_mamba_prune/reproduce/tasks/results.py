"""What a benchmark's models came to, and the table of it."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from hf_mamba_prune.reproduce.methods import METHODS
from hf_mamba_prune.reproduce.tasks.base import Scale, Task

DENSE, LONGER = "dense", "dense-longer"
"""The dense model, and the same trained for as many steps more as the pruned ones are."""


@dataclass(frozen=True, kw_only=True)
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
        stand_ins: what was not the published data.
        test_bytes: the most memory that the process held while it ran the test part; 0: not measured.
    """

    task: str
    method: str
    sparsity: float
    seed: int
    metrics: dict[str, float]
    nonzero: int
    train_seconds: float
    test_seconds: float
    stand_ins: tuple[str, ...] = ()
    test_bytes: int = 0

    def save(self, path: Path) -> None:
        """Write it, all of it or nothing."""
        write_whole(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Result:
        """The inverse of `save`."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def write_whole(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it."""
    temporary = path.with_suffix(f".{os.getpid()}.part")  # another process may write the same
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def table(task: Task, scale: Scale, results: list[Result]) -> str:
    """A markdown table: one row for each method and sparsity."""
    lines = [f"# {task.name}", ""]
    stand_ins = dict.fromkeys(note for result in results for note in result.stand_ins)
    smaller = [*scale.reduced, *_less(scale, task.scales.get("paper", scale)), *stand_ins]
    if smaller:
        lines += [f"Other than published: {'; '.join(smaller)}.", ""]
    head = [f"{name} (mean +- deviation)" for name in task.metrics]
    columns = [
        "method",
        "sparsity",
        "seeds",
        *head,
        "kept",
        "non-zero weights",
        "training, s",
        "test part, s",
        "memory, MB",
    ]
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
        cells.append(f"{max(result.test_bytes for result in found) / 1e6:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _less(scale: Scale, full: Scale) -> list[str]:
    """In what the model and its training are smaller than at full scale."""
    names = {"hidden_size": "channels", "num_hidden_layers": "layers"}
    pairs = [(scale.model.get(key), full.model.get(key), name) for key, name in names.items()]
    pairs += [(scale.steps, full.steps, "steps"), (scale.recover_steps, full.recover_steps, "steps of the pruned")]
    return [f"{own:,} {name} instead of {other:,}" for own, other, name in pairs if own and other and own != other]


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} +- {statistics.stdev(values) if len(values) > 1 else 0:.4f}"


def _kept(task: Task, dense: list[Result], found: list[Result]) -> float:
    """Share of the first metric of the dense models with the same seeds that is kept; of an error, dense by pruned."""
    seeds = {result.seed for result in found}
    dense = [result for result in dense if result.seed in seeds] or dense
    before, after = (statistics.mean(r.metrics[task.metrics[0]] for r in results) for results in (dense, found))
    return after / before if task.higher_is_better else before / after
