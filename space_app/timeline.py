"""Where a pruning is, from what its process has said so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orders import Order

from hf_mamba_prune import Progress

PRUNING = ("calibrate", "sensitivity", "mask", "reconstruct", "prune", "tune")
LABELS = {
    "dense": "Measure the dense model",
    "prune": "Prune and reconstruct",
    "recover": "Train what is left",
    "pruned": "Measure the pruned model",
    "speed": "Pack, and time both",
}
_SHARES = {"dense": 6, "prune": 60, "recover": 90, "pruned": 6, "speed": 28}
"""About how long each stage takes."""


@dataclass
class Timeline:
    """Progress of a job.

    Args:
        order: what it does.
        stages: keys of `LABELS`, in order.
        stage: the one that goes on.
        done: share of it, 0 to 1.
        detail: what is done in it.
        sparsity: (seconds, share of zeros) after each step.
        loss: (seconds, nats a token).
        perplexity: of the dense model, when it is known.
    """

    order: Order
    stages: tuple[str, ...]
    stage: str = "dense"
    done: float = 0.0
    detail: str = ""
    sparsity: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.0)])
    loss: list[tuple[float, float]] = field(default_factory=list)
    perplexity: float | None = None

    @property
    def share(self) -> float:
        """Of the whole, 0 to 1."""
        before = self.stages[: self.stages.index(self.stage)]
        total = sum(_SHARES[stage] for stage in self.stages)
        return (sum(_SHARES[stage] for stage in before) + self.done * _SHARES[self.stage]) / total

    def add(self, seconds: float, said: Progress) -> None:
        """Take one message."""
        stage = self._stage_of(said.stage)
        if stage != self.stage:
            self.stage, self.done = stage, 0.0
        if "sparsity" in said.values:
            self.sparsity.append((seconds, said.values["sparsity"]))
        if "loss" in said.values:
            self.loss.append((seconds, said.values["loss"]))
        if "perplexity" in said.values and self.perplexity is None:
            self.perplexity = said.values["perplexity"]
        if said.stage in ("prune", "recover", "evaluate", "measure speed") and said.total:
            self.done = said.done / said.total
        steps = self.order.config().steps
        step = min(steps, max(1, round(self.done * steps) + (self.done < 1)))
        self.detail = f"{said.stage}, step {step} of {steps}" if stage == "prune" else f"{said.done} of {said.total}"
        if not said.total and stage != "prune":
            self.detail = ""

    def _stage_of(self, name: str) -> str:
        if name in PRUNING and "prune" in self.stages:
            return "prune"
        if name in ("recover", *PRUNING):
            return "recover"
        if name == "evaluate":
            return "dense" if self.stage == "dense" else "pruned"
        return "speed"


def read_timeline(order: Order, messages: Sequence[tuple[float, Progress]]) -> Timeline:
    """All messages so far, as (seconds since the start, what was said)."""
    recovery = order.recovery()
    gradual = recovery is not None and recovery.gradual
    own = ([] if gradual else ["prune"]) + (["recover"] if recovery else [])
    timeline = Timeline(order, ("dense", *own, "pruned", "speed"))
    for seconds, said in messages:
        timeline.add(seconds, said)
    return timeline
