"""Mask and reconstruct block by block: each on the inputs that the blocks before it, pruned already, really give it.

Inside a block the order is that of the stages in the table of architectures. Only the Hessians of one stage of one
block are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from hf_mamba_prune.repair.least_squares import reconstruct
from hf_mamba_prune.report import RepairFacts


class _EnoughError(Exception):
    """All inputs of a stage were seen: the rest of the block need not run."""


@torch.no_grad()
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
        sequences: token ids (samples, l); run one by one, so that no batch size can change the result.
        damping: see `reconstruction.reconstruct`.
        bf16: run the products of the blocks in bfloat16; what is between the blocks, and the least squares, are not.

    Returns:
        The error of each reconstructed target, before and after.

    Raises:
        RuntimeError: a target saw no token, or its inputs are not finite.
    """
    facts: list[RepairFacts] = []
    states = [blocks.embed(batch) for batch in sequences.split(1)]
    for index in track(range(len(blocks)), "reconstruct", "block"):
        own = [target for target in targets if target.layer == index]
        with blocks.block(index) as block, evaluation_mode(block):
            for target in own:
                if target.kind != "linear":
                    weight = _weight(block, target, blocks.prefix(index))
                    weight.masked_fill_(~mask_of(target), 0)
            for stage in sorted({target.stage for target in own if target.stage is not None}):
                part = [target for target in own if target.stage == stage]
                facts += _repair_stage(
                    block,
                    blocks.prefix(index),
                    part,
                    mask_of=mask_of,
                    dense=dense,
                    states=states,
                    damping=damping,
                    bf16=bf16,
                )
            with torch.autocast(states[0].device.type, torch.bfloat16, enabled=bf16):
                for i, state in enumerate(states):
                    states[i] = block(state)
    return tuple(facts)


def _repair_stage(
    block: nn.Module,
    prefix: str,
    targets: Sequence[Target],
    mask_of: MaskOf,
    dense: Mapping[str, torch.Tensor],
    states: Sequence[torch.Tensor],
    damping: float,
    bf16: bool,
) -> Iterator[RepairFacts]:
    if not targets:
        return
    taps = {target.name: _within(tap_of(target), prefix) for target in targets}
    with torch.autocast(states[0].device.type, torch.bfloat16, enabled=bf16):
        hessians = _hessians(block, set(taps.values()), states)
    for target in targets:
        if taps[target.name] not in hessians:
            raise RuntimeError(f"{target.name} saw no token: its row of the architecture table does not fit.")
        hessian = hessians[taps[target.name]]
        weight = _weight(block, target, prefix)
        keep = mask_of(target)
        # Between two steps of a schedule little changes: what the last one found is near.
        found = reconstruct(dense[target.name], keep, hessian, damping, start=weight)
        weight.copy_(found.weight)
        yield RepairFacts(name=target.name, before=found.before, after=found.after, iterations=found.iterations)


def _within(tap: Tap, prefix: str) -> Tap:
    """The tap as a block sees it that does not know where in the model it stands."""
    return replace(tap, module=tap.module.removeprefix(prefix))


def _weight(block: nn.Module, target: Target, prefix: str) -> torch.Tensor:
    return block.get_parameter(target.name.removeprefix(prefix)).detach().view(target.shape)


def _hessians(block: nn.Module, taps: set[Tap], states: Sequence[torch.Tensor]) -> dict[Tap, torch.Tensor]:
    """E[x x^T] over tokens, float64 (in, in), of the inputs at each tap; products in float32, sums in float64."""
    sums: dict[Tap, torch.Tensor] = {}
    missing: set[Tap] = set()

    def see(tap: Tap, x: torch.Tensor) -> None:
        rows = x.flatten(0, 1).float()
        product = (rows.T @ rows).double()
        sums[tap] = sums[tap] + product if tap in sums else product
        missing.discard(tap)
        if not missing:
            raise _EnoughError

    with ExitStack() as stack:
        for tap in taps:
            stack.enter_context(observe(block, tap, partial(see, tap)))
        for state in states:
            missing.update(taps)
            try:
                block(state)
            except _EnoughError:
                pass
    tokens = sum(state.shape[0] * state.shape[1] for state in states)
    return {tap: total / tokens for tap, total in sums.items()}
