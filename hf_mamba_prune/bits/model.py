"""A model within a budget of bytes: sensitivities, curves, widths and masks, and rounding block by block."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_mamba_prune.bits.outer import HIGHEST_PRICE, SCALE_BITS, Outer, OuterWeights, least_bytes
from hf_mamba_prune.bits.sensitivity import Sensitivity, measure_sensitivity
from hf_mamba_prune.bits.tuning import tune_scales
from hf_mamba_prune.bits.vocabulary import TokenCurves, TokenUse
from hf_mamba_prune.bits.widths import BitBudget, RowCurves, Widths, kept_prices, lowest_price, row_curves
from hf_mamba_prune.codings.grids import coded_tensor, put_on_grids
from hf_mamba_prune.codings.storage import stored_bits
from hf_mamba_prune.codings.tensors import PackedTensor, count_bits
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.models.blocks import MemoryBlocks
from hf_mamba_prune.models.targets import Target
from hf_mamba_prune.native.codes import LEVELS, WIDTHS
from hf_mamba_prune.repair.blocks import walk
from hf_mamba_prune.repair.levels import level_table
from hf_mamba_prune.repair.rounding import Rounded, round_weight
from hf_mamba_prune.repair.tuning import random_sequences
from hf_mamba_prune.report import RoundingFacts, WidthFacts

_CURVE_SEQUENCES = 16
_POWER, _HIGHEST = 0.5, 50.0
"""A token weighs as the root of its mean squared gradient beside the average, and at most so much."""
_OUTER_SHARE = 0.05
"""Of what the projections lose, embeddings and head may lose so much where only the bits of projections are named."""
_SAME_PRICE = 1.2
"""Prices of a bit that are as good as the same."""
_TABLE_BITS = 8 * LEVELS


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of a model before it is rounded.

    Args:
        sensitivity: of the projections, by target name.
        curves: of their rows; empty where every row has the same width.
        tokens: curves of embeddings and head, by parameter name.
    """

    sensitivity: Mapping[str, Sensitivity]
    curves: Mapping[str, RowCurves]
    tokens: Mapping[str, TokenCurves]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How the projections are held, a budget or codes of one width, and how embeddings and head are.

    Args:
        budget: None: all have `code_bits`.
        outer: embeddings and head.
        expected: rise of the loss, nats per token; None where it was not measured.
    """

    budget: BitBudget | None
    outer: OuterWeights
    expected: float | None


def check_budget(
    model: PreTrainedModel, targets: Sequence[Target], config: PruningConfig, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Refuse what no model of this shape fits into, or what cannot be rounded.

    Args:
        model: may be on the meta device.
        targets: what the config chooses.
        config: how to round.
        dtype: that the weights are saved in; where it is not known, one of the smallest.

    Raises:
        ValueError: says what the least would be.
    """
    if not config.rounds:
        return
    inner = _projections(targets)
    if len(inner) < len(targets):
        others = sorted({target.component for target in targets if target not in inner})
        raise ValueError(
            f"only linear maps of blocks are rounded to few bits, not {', '.join(others)}: leave them out."
        )
    least = sum(map(_overhead, inner))
    size = sum(target.size for target in inner)
    if config.bits is not None and config.bits * size <= least:
        raise ValueError(f"bits is {config.bits:g}, and scales and tables alone take {least / size:.2f}: give more.")
    if config.size is not None:
        whole = least // 8 + least_bytes(model, dtype)
        if config.size <= whole:
            raise ValueError(
                f"size is {config.size:,} bytes, and all but the projections' codes takes about {whole:,}: give more."
            )


def measure_rows(
    model: PreTrainedModel,
    targets: Sequence[Target],
    sequences: torch.Tensor,
    config: PruningConfig,
    bf16: bool = False,
) -> Measured:
    """What rounding each row would cost; the arguments are those of `round_model`, and the model stays as it is.

    Raises:
        RuntimeError: the model gives no finite predictions, or a target saw no token.
    """
    inner = _projections(targets)
    use = TokenUse(model)
    with use.shown():
        sensitivity = measure_sensitivity(model, inner, sequences, config.seed, bf16)
    curves: dict[str, RowCurves] = {}

    def visit(target: Target, weight: torch.Tensor, hessian: torch.Tensor | None) -> None:
        assert hessian is not None  # all of them are linear maps
        rows = sensitivity[target.name].rows
        curves[target.name] = row_curves(weight, hessian[0], rows, config.damping, config.zeros)

    if config.code_bits is None:
        walk(MemoryBlocks(model), inner, sequences[:_CURVE_SEQUENCES], visit, bf16)
    return Measured(sensitivity=sensitivity, curves=curves, tokens=use.curves())


def round_model(
    model: PreTrainedModel,
    targets: Sequence[Target],
    sequences: torch.Tensor,
    config: PruningConfig,
    dtype: torch.dtype,
    bf16: bool = False,
    measured: Measured | None = None,
    dense: PreTrainedModel | None = None,
    lessons: torch.Tensor | None = None,
) -> RoundingFacts:
    """Round a model in place: to a budget, or its kept weights to one width.

    Args:
        model: a causal language model of a supported type.
        targets: its projections.
        sequences: calibration token ids (samples, l).
        config: `bits`, `size` or `code_bits`, damping and seed.
        dtype: that the weights are saved in.
        bf16: run the model's products in bfloat16.
        measured: of this model and these sequences, where it is at hand.
        dense: what the rounded model is to predict like; None: like this one.
        lessons: token ids (samples, l) that scales are tuned on; None: the calibration's.

    Returns:
        What came of it; the grids stay with the model for packing.

    Raises:
        ValueError: the budget is less than scales and tables take.
        RuntimeError: the model gives no finite predictions, or a target saw no token.
    """
    inner = _projections(targets)
    measured = measured or measure_rows(model, targets, sequences, config, bf16)
    keep = _masks(model, inner) if config.code_bits is not None else {}
    outer = Outer(model, dtype, measured.tokens)
    curves = _curves(measured, config)
    plan, others = _with_outer(_plan(inner, curves, outer, config), outer, inner, curves, config)
    dense = dense or copy.deepcopy(model)
    anything = random_sequences(model, sequences, config.seed)
    tokens = _weights_of_tokens(measured, len(anything))
    packed: dict[str, PackedTensor] = {}

    def visit(target: Target, weight: torch.Tensor, hessian: torch.Tensor | None) -> None:
        assert hessian is not None
        name, fits = target.name, False
        while not fits:
            own = _widths(target, plan, config)
            prices = _prices(own, measured.sensitivity[name])
            rounded = round_weight(weight, hessian, own.bits, config.damping, keep=keep.get(name), prices=prices)
            packed[name] = _packed(rounded, own.bits, dtype)
            fits = plan.budget is None or plan.budget.spend(name, stored_bits(packed[name]) - _overhead(target))
        weight.copy_(rounded.weight)

    walk(MemoryBlocks(model), inner, torch.cat([sequences, anything]), visit, bf16=bf16, tokens=tokens)
    put_on_grids(model, {**packed, **others})
    lessons = sequences if lessons is None else lessons
    tuned = tune_scales(model, dense, packed, lessons, dtype=dtype, seed=config.seed, bf16=bf16)
    put_on_grids(model, {**tuned, **others})
    return _facts(inner, tuned, others, plan.expected)


def _projections(targets: Sequence[Target]) -> list[Target]:
    return [target for target in targets if target.layer is not None and target.kind == "linear"]


def _masks(model: PreTrainedModel, targets: Sequence[Target]) -> dict[str, torch.Tensor]:
    """What is not zero, of the weights that hold zeros: all of them stay."""
    masks = {target.name: target.weight(model) != 0 for target in targets}
    return {name: mask for name, mask in masks.items() if not mask.all()}


def _curves(measured: Measured, config: PruningConfig) -> Mapping[str, RowCurves]:
    """What a budget may choose from."""
    if config.zeros:
        return measured.curves
    return {name: replace(own, masks=None) for name, own in measured.curves.items()}


def _weights_of_tokens(measured: Measured, others: int) -> dict[str, torch.Tensor]:
    """(groups, samples + others, l) by name; those of other sequences count as much as the average."""
    found = {}
    for name, own in measured.sensitivity.items():
        if own.tokens is not None:
            weights = own.tokens.clamp_max(_HIGHEST) ** _POWER
            weights = weights / weights.mean((1, 2), keepdim=True).clamp_min(1e-30)
            found[name] = F.pad(weights, (0, 0, 0, others), value=1.0)
    return found


def _widths(target: Target, plan: _Plan, config: PruningConfig) -> Widths:
    if plan.budget is not None:
        return plan.budget.widths(target.name)
    assert config.code_bits is not None
    return Widths(bits=torch.full((target.shape[0],), config.code_bits, dtype=torch.uint8))


def _prices(widths: Widths, sensitivity: Sensitivity) -> torch.Tensor | None:
    if widths.price is None:
        return None
    return kept_prices(torch.tensor([widths.price]), int(widths.bits[0]), sensitivity.rows)[0]


def _packed(rounded: Rounded, bits: torch.Tensor, dtype: torch.dtype) -> PackedTensor:
    return coded_tensor(
        rounded.codes,
        bits,
        level_table(masked=rounded.keep is not None),
        scales=rounded.scales,
        column_scales=rounded.column_scales,
        dtype=dtype,
        keep=rounded.keep,
    )


def _plan(targets: Sequence[Target], curves: Mapping[str, RowCurves], outer: Outer, config: PruningConfig) -> _Plan:
    if config.code_bits is not None:
        return _Plan(budget=None, outer=outer.at(0.0), expected=None)
    if config.bits is not None:
        held = sum(map(_overhead, targets))
        budget = BitBudget(curves, int(config.bits * sum(target.size for target in targets)) - held)
        return _planned(budget, outer.within(_OUTER_SHARE * budget.expected))
    return _within_size(curves, targets, outer, config)


def _with_outer(
    plan: _Plan, outer: Outer, targets: Sequence[Target], curves: Mapping[str, RowCurves], config: PruningConfig
) -> tuple[_Plan, dict[str, PackedTensor]]:
    """Embeddings and head rounded, and the plan that knows what they take of a file."""
    others = outer.rounded(plan.outer)
    if config.size is not None:
        file_bytes = outer.file_bytes(plan.outer, others)
        plan = replace(plan, budget=_beside(file_bytes, targets, curves, config.size))
    return plan, others


def _beside(file_bytes: int, targets: Sequence[Target], curves: Mapping[str, RowCurves], size: int) -> BitBudget:
    """Of the projections, where all else in a file of that size takes so many bytes."""
    return BitBudget(curves, 8 * (size - file_bytes) - sum(map(_overhead, targets)))


def _planned(budget: BitBudget, outer: OuterWeights) -> _Plan:
    return _Plan(budget=budget, outer=outer, expected=budget.expected + outer.expected)


def _within_size(
    curves: Mapping[str, RowCurves], targets: Sequence[Target], outer: Outer, config: PruningConfig
) -> _Plan:
    """The best division of a file between embeddings and projections: where a bit has one price in both."""
    assert config.size is not None
    size = config.size

    def beside(chosen: OuterWeights) -> BitBudget:
        return _beside(chosen.file_bytes, targets, curves, size)

    def balanced(price: float) -> bool:
        chosen = outer.at(price)
        try:
            return beside(chosen).price <= price
        except ValueError:  # embeddings of this price leave too little
            return False

    chosen = outer.at(lowest_price(balanced, HIGHEST_PRICE, _SAME_PRICE))
    try:
        best = _planned(beside(chosen), chosen)
    except ValueError as error:
        raise ValueError(f"a file of {size:,} bytes does not hold this model: {error}") from error
    whole = outer.as_they_are()
    try:
        other = _planned(beside(whole), whole)
    except ValueError:
        return best
    return min(best, other, key=lambda plan: plan.expected or 0.0)


def _overhead(target: Target) -> int:
    """Bits that a weight is expected to take in a file beside its codes: scales, widths, tables."""
    return _TABLE_BITS + SCALE_BITS * sum(target.shape)


def _facts(
    targets: Sequence[Target],
    packed: Mapping[str, PackedTensor],
    others: Mapping[str, PackedTensor],
    expected: float | None,
) -> RoundingFacts:
    components: dict[str, WidthFacts] = {}
    for target in targets:
        before = components.get(target.component, WidthFacts(name=target.component, weights=0, bits=0.0, rows=()))
        own = packed[target.name]
        counts = torch.bincount(own.widths().long(), minlength=len(WIDTHS)).tolist()
        components[target.component] = replace(
            before,
            weights=before.weights + target.size,
            bits=before.bits + stored_bits(own),
            zeros=before.zeros + (0 if own.mask is None else target.size - count_bits(own.mask)),
            rows=tuple(map(sum, zip(counts, before.rows or [0] * len(WIDTHS), strict=True))),
        )
    bits = sum(own.bits for own in components.values())
    weights = sum(own.weights for own in components.values())
    outer = sum(math.prod(own.shape) for own in others.values())
    return RoundingFacts(
        bits=bits / weights,
        memory_bits=8 * sum(packed[target.name].bytes for target in targets) / weights,
        embedding_bits=sum(map(stored_bits, others.values())) / outer if others else None,
        expected_rise=expected,
        components=tuple(
            replace(own, bits=own.bits / own.weights, zeros=own.zeros / own.weights) for own in components.values()
        ),
    )
