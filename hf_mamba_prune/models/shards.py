"""Weights whose rows are divided over ranks, as FSDP2 does it: which rows are here, and sums over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import Shard as Divided


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of a divided tensor that this rank holds, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Which rows of each weight this rank holds, and how to reach the ranks that hold the others.

    Args:
        process_group: the ranks that the rows are divided among; None: all rows are here.
        first: number of each weight's first row that is here, by name.
        device: where that group's messages must lie.
    """

    process_group: distributed.ProcessGroup | None = None
    first: Mapping[str, int] = field(default_factory=dict)
    device: str = "cpu"

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Values of every rank added up, the same on each; on the CPU where they are divided at all."""
        if self.process_group is None:
            return values
        values = values.to(self.device, copy=True)
        distributed.all_reduce(values, group=self.process_group)
        return values.cpu()

    def count(self, values: Iterable[int]) -> list[int]:
        """Whole numbers, summed over the ranks."""
        return self.sum(torch.tensor(list(values), dtype=torch.int64)).tolist()

    def offset(self, name: str, columns: int) -> int:
        """Flat position, in the whole weight, of the first element that is here."""
        return self.first.get(name, 0) * columns

    def gather(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """All rows of a weight, on the CPU, from those of every rank.

        Args:
            rows: those that are here, (rows, in).
            count: how many there are in all.
        """
        if self.process_group is None:
            return rows.cpu()
        ranks = distributed.get_world_size(self.process_group)
        largest = -(-count // ranks)
        padded = torch.zeros(largest, rows.shape[1], dtype=rows.dtype, device=self.device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(ranks)]
        distributed.all_gather(parts, padded, group=self.process_group)
        return torch.cat(parts)[:count].cpu()

    def cut(self, whole: torch.Tensor, name: str, here: int) -> torch.Tensor:
        """The inverse of `gather`: the `here` rows of a whole weight that belong to this rank."""
        first = self.first.get(name, 0)
        return whole[first : first + here]


WHOLE = Shard()
"""Every rank holds all rows."""


def shard_of(model: nn.Module, names: Iterable[str]) -> Shard:
    """How the named parameters of a model are divided.

    Raises:
        ValueError: some are divided and some are not, or not by rows, or not among the same ranks.
    """
    parameters = {name: model.get_parameter(name) for name in names}
    divided = {name: value for name, value in parameters.items() if isinstance(value, DTensor)}
    if not divided:
        return WHOLE
    first: dict[str, int] = {}
    meshes: set[tuple[DeviceMesh, int]] = set()
    for name, value in divided.items():
        along = [i for i, placement in enumerate(value.placements) if placement == Divided(0)]
        if len(divided) < len(parameters) or len(along) != 1 or any(p.is_partial() for p in value.placements):
            raise ValueError(f"{name} is not divided by rows alone, as FSDP2 divides all weights: use fully_shard.")
        mesh, dimension = value.device_mesh, along[0]
        meshes.add((mesh, dimension))
        # The split of `torch.chunk`: all ranks but the last few hold as many rows.
        share = -(-len(value) // mesh.size(dimension))
        first[name] = min(mesh.get_local_rank(dimension) * share, len(value))
    if len(meshes) > 1:
        raise ValueError("the weights are divided among different groups of ranks: use one mesh for all of them.")
    mesh, dimension = meshes.pop()
    return Shard(process_group=mesh.get_group(dimension), first=first, device=mesh.device_type)
