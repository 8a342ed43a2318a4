"""Mask and reconstruct block by block: each on the inputs that the blocks before it, pruned already, really give it.

Inside a block the order is that of the stages in the table of architectures. Only the Hessians of one stage of one
block are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from hf_mamba_prune.masks.calibration import evaluation_mode, observe, tap_of
from hf_mamba_prune.masks.tensor import MaskOf
from hf_mamba_prune.models.blocks import BlockSource
from hf_mamba_prune.models.components import Tap
from hf_mamba_prune.models.targets import Target
from hf_mamba_prune.progress import track
from hf_mamba_prune.repair.hessians import HessianSum
from hf_mamba_prune.repair.least_squares import reconstruct
from hf_mamba_prune.report import RepairFacts

Visit = Callable[[Target, torch.Tensor, torch.Tensor | None], None]
"""Sees a target, its live weight (out, in), Hessians of its inputs (groups, in, in); None: no linear map."""


class _EnoughError(Exception):
    """All inputs of a stage were seen: the rest of the block need not run."""


@torch.no_grad()
def walk(
    blocks: BlockSource,
    targets: Sequence[Target],
    sequences: torch.Tensor,
    visit: Visit,
    bf16: bool = False,
    tokens: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Visit the targets in the blocks, each with what the blocks before it, changed already, really give it.

    Args:
        blocks: the model.
        targets: what to visit; those outside the blocks are not.
        sequences: token ids (samples, l); run one by one, so that no batch size can change the result.
        visit: may write to the weight.
        bf16: run the products of the blocks in bfloat16; what is between the blocks is not.
        tokens: (groups, samples, l) by target name: weights of the tokens in a Hessian for each group of its rows;
            all other targets have one Hessian, where all tokens weigh 1.

    Raises:
        RuntimeError: a target saw no token.
    """
    states = [blocks.embed(batch) for batch in sequences.split(1)]
    for index in track(range(len(blocks)), "reconstruct", "block"):
        own = [target for target in targets if target.layer == index]
        with blocks.block(index) as block, evaluation_mode(block):
            prefix = blocks.prefix(index)
            for target in own:
                if target.kind != "linear":
                    visit(target, _weight(block, target, prefix), None)
            for stage in sorted({target.stage for target in own if target.stage is not None}):
                part = [target for target in own if target.stage == stage]
                with torch.autocast(states[0].device.type, torch.bfloat16, enabled=bf16):
                    hessians = _hessians(block, prefix, part, states, tokens or {})
                for target in part:
                    if target.name not in hessians:
                        raise RuntimeError(f"{target.name} saw no token: its row of the architecture table is wrong.")
                    visit(target, _weight(block, target, prefix), hessians[target.name])
            with torch.autocast(states[0].device.type, torch.bfloat16, enabled=bf16):
                for i, state in enumerate(states):
                    states[i] = block(state)


def repair(
    blocks: BlockSource,
    targets: Sequence[Target],
    mask_of: MaskOf,
    dense: Mapping[str, torch.Tensor],
    sequences: torch.Tensor,
    damping: float,
    bf16: bool = False,
) -> tuple[RepairFacts, ...]:
    """Prune the targets in the blocks, and let the kept weights take over what the pruned ones did.

    Args:
        blocks: the model.
        targets: what to prune; those that are no linear map are masked only, those outside the blocks are not touched.
        mask_of: asked once for each target, just before its weights change.
        dense: the weights before any pruning, (out, in), by target name: what is reconstructed.
        sequences: token ids (samples, l).
        damping: see `reconstruction.reconstruct`.
        bf16: as in `walk`; the least squares are not.

    Returns:
        The error of each reconstructed target, before and after.

    Raises:
        RuntimeError: a target saw no token, or its inputs are not finite.
    """
    facts: list[RepairFacts] = []

    def visit(target: Target, weight: torch.Tensor, hessian: torch.Tensor | None) -> None:
        if hessian is None:
            weight.masked_fill_(~mask_of(target), 0)
            return
        # Between two steps of a schedule little changes: what the last one found is near.
        found = reconstruct(dense[target.name], mask_of(target), hessian[0], damping, start=weight)
        weight.copy_(found.weight)
        facts.append(
            RepairFacts(name=target.name, before=found.before, after=found.after, iterations=found.iterations)
        )

    walk(blocks, targets, sequences, visit, bf16)
    return tuple(facts)


def _within(tap: Tap, prefix: str) -> Tap:
    """The tap as a block sees it that does not know where in the model it stands."""
    return replace(tap, module=tap.module.removeprefix(prefix))


def _weight(block: nn.Module, target: Target, prefix: str) -> torch.Tensor:
    return block.get_parameter(target.name.removeprefix(prefix)).detach().view(target.shape)


def _hessians(
    block: nn.Module,
    prefix: str,
    targets: Sequence[Target],
    states: Sequence[torch.Tensor],
    tokens: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """E[x x^T] over tokens, float64 (groups, in, in), of each target's inputs."""
    sums: dict[str, HessianSum] = {}
    missing: set[str] = set()
    place = 0

    def see(name: str, x: torch.Tensor) -> None:
        sums.setdefault(name, HessianSum()).add(x.flatten(0, 1), tokens[name][:, place] if name in tokens else None)
        missing.discard(name)
        if not missing:
            raise _EnoughError

    with ExitStack() as stack:
        for target in targets:
            stack.enter_context(observe(block, _within(tap_of(target), prefix), partial(see, target.name)))
        for place, state in enumerate(states):  # noqa: B007  # `see` reads it
            missing.update(target.name for target in targets)
            try:
                block(state)
            except _EnoughError:
                pass
    seen = sum(state.shape[0] * state.shape[1] for state in states)
    return {name: own.mean(seen) for name, own in sums.items()}
