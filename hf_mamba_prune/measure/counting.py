"""Count the zeros of a model before and after pruning, per weight, component, part and in the whole."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from hf_mamba_prune.masks.budget import Budget
from hf_mamba_prune.models.shards import local, shard_of
from hf_mamba_prune.models.targets import Target
from hf_mamba_prune.report import Count, SparsityFacts


class ZeroCounter:
    """Counts when it is made, and again when asked for the facts: on every rank, where FSDP2 divides the weights."""

    def __init__(self, model: PreTrainedModel, targets: Sequence[Target]) -> None:
        self._targets = targets
        self._before = self._count(model)

    def facts(
        self, model: PreTrainedModel, asked: float, masked: int, at_ceiling: tuple[str, ...] = ()
    ) -> SparsityFacts:
        """What came of a run.

        Args:
            model: the same or, after a `model_init`, another of its kind.
            asked: sparsity that the config asks for.
            masked: weights that the masks of the last pruning step hold at zero.
            at_ceiling: tensors that it held at their ceiling.
        """
        before, after = self._before, self._count(model)
        targets = tuple(
            Count(
                name=t.name, layer=t.layer, weights=t.size, zeros_before=sum(before[t.name]), zeros=sum(after[t.name])
            )
            for t in self._targets
        )
        model_weights = sum(p.numel() for p in model.parameters())
        return SparsityFacts(
            asked=asked,
            masked=masked,
            prunable=Count(
                name="prunable weights",
                layer=None,
                weights=sum(c.weights for c in targets),
                zeros_before=sum(c.zeros_before for c in targets),
                zeros=sum(c.zeros for c in targets),
            ),
            model=Count(
                name="model", layer=None, weights=model_weights, zeros_before=before[""][0], zeros=after[""][0]
            ),
            components=self._components(before, after),
            targets=targets,
            at_ceiling=at_ceiling,
        )

    def checked_facts(self, model: PreTrainedModel, asked: float, budget: Budget) -> SparsityFacts:
        """The same of a run with this budget; fewer zeros than its masks hold mean that some were never applied.

        Raises:
            RuntimeError: that happened.
        """
        found = self.facts(model, asked, budget.total, budget.at_ceiling)
        if found.prunable.zeros < found.masked:
            untouched = [count.name for count in found.targets if count.zeros == 0]
            raise RuntimeError(
                f"{found.masked:,} weights were to become zero and only {found.prunable.zeros:,} are: the table of "
                f"architectures does not fit this model. {len(untouched)} weights have none, such as {untouched[:2]}."
            )
        return found

    def _count(self, model: PreTrainedModel) -> dict[str, list[int]]:
        """Zeros of every target, for each of its ranges of rows; of the whole model under the empty name."""
        shard = shard_of(model, [target.name for target in self._targets])
        counts = {}
        for target in self._targets:
            zeros = (target.weight(model) == 0).sum(1, keepdim=True)
            zeros = shard.gather(zeros, target.shape[0])
            counts[target.name] = [int(zeros[start:stop].sum()) for _, start, stop in _ranges(target)]
        counts[""] = shard.count([sum(int((local(p) == 0).sum()) for p in model.parameters())])
        return counts

    def _components(self, before: dict[str, list[int]], after: dict[str, list[int]]) -> tuple[Count, ...]:
        sums: dict[str, list[int]] = {}
        for target in self._targets:
            for i, (part, start, stop) in enumerate(_ranges(target)):
                for name in dict.fromkeys((target.component, part)):
                    total = sums.setdefault(name, [0, 0, 0])
                    total[0] += (stop - start) * target.shape[1]
                    total[1] += before[target.name][i]
                    total[2] += after[target.name][i]
        return tuple(
            Count(name=name, layer=None, weights=weights, zeros_before=was, zeros=now)
            for name, (weights, was, now) in sums.items()
        )


def _ranges(target: Target) -> tuple[tuple[str, int, int], ...]:
    return target.parts or ((target.component, 0, target.shape[0]),)
