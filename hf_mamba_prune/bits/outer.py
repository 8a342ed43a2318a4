"""Embeddings and head in few bits: a head is repaired on what it sees, rows that are only looked up have no inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mamba_prune.bits.vocabulary import DAMPING, TOKEN_WIDTHS, TokenCurves, outer_parameters
from hf_mamba_prune.bits.widths import lowest_price, row_sizes
from hf_mamba_prune.codings.grids import coded_tensor
from hf_mamba_prune.codings.storage import stored_bits
from hf_mamba_prune.codings.tensors import PackedTensor, pack_tensor
from hf_mamba_prune.native.codes import LEVELS, WIDTHS
from hf_mamba_prune.repair.levels import level_table
from hf_mamba_prune.repair.rounding import round_weight

_ROWS = 4096
HIGHEST_PRICE, _SAME_PRICE = 1.0, 1.001
"""Of a bit, in nats per token, and a ratio of prices that are as good as the same."""
_ENTRY, _HEADED = 220, 390
"""Bytes that the header and index of a file take for a tensor, and with the head of a packed one and its lengths."""
SCALE_BITS = 13
"""Bits that the scale of a row, with its width, or of a column takes in a file."""


@dataclass(frozen=True, kw_only=True)
class OuterWeights:
    """How all that is no projection of a block is to be held.

    Args:
        widths: uint8 (vocabulary,) of embeddings and head by parameter name; empty where they stay as they are.
        file_bytes: of a packed checkpoint without its projections' codes.
        expected: rise of the loss by them, nats per token.
    """

    widths: Mapping[str, torch.Tensor]
    file_bytes: int
    expected: float = 0.0


class Outer:
    """Embeddings and head of a model, and what they may be held in.

    Args:
        model: a causal language model of a supported type.
        dtype: that its weights are saved in.
        curves: of `TokenUse`, by parameter name.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, curves: Mapping[str, TokenCurves]) -> None:
        self._parameters, self._curves, self._dtype = outer_parameters(model), curves, dtype
        self._others = _other_bytes(model, dtype)

    def at(self, price: float) -> OuterWeights:
        """The best at a price of a bit, in nats."""
        widths = {name: own.widths(price) for name, own in self._curves.items()}
        expected = sum(own.loss(widths[name]) for name, own in self._curves.items())
        sizes = (_coded_bytes(self._parameters[name].shape[1], own) for name, own in widths.items())
        return OuterWeights(widths=widths, file_bytes=self._others + sum(sizes), expected=expected)

    def within(self, loss: float) -> OuterWeights:
        """The fewest bits that are expected to cost at most so many nats per token, or all that there are."""
        dearer = lowest_price(lambda price: self.at(price).expected > loss, HIGHEST_PRICE, _SAME_PRICE)
        found = self.at(dearer / _SAME_PRICE)
        return found if found.expected <= loss else self.at(0.0)

    def as_they_are(self) -> OuterWeights:
        """Not rounded."""
        packed = (pack_tensor(weight.detach().to(self._dtype)) for weight in self._parameters.values())
        return OuterWeights(widths={}, file_bytes=self._others + sum(map(stored_bits, packed)) // 8)

    def file_bytes(self, chosen: OuterWeights, rounded: Mapping[str, PackedTensor]) -> int:
        """`OuterWeights.file_bytes`, now that they were rounded."""
        return self._others + sum(map(stored_bits, rounded.values())) // 8 if rounded else chosen.file_bytes

    def rounded(self, chosen: OuterWeights) -> dict[str, PackedTensor]:
        """In packed form, by parameter name."""
        return {name: self._rounded(name, widths) for name, widths in chosen.widths.items()}

    def _rounded(self, name: str, widths: torch.Tensor) -> PackedTensor:
        weight, inputs = self._parameters[name], self._curves[name].inputs
        rows, columns = weight.shape
        system = (torch.eye(columns) if inputs is None else inputs)[None]
        codes, scales = torch.empty(weight.shape, dtype=torch.uint8), torch.empty(rows, dtype=torch.bfloat16)
        for first in range(0, rows, _ROWS):
            own = slice(first, first + _ROWS)
            found = round_weight(weight[own].detach().float().cpu(), system, widths[own], DAMPING, by_column=False)
            codes[own], scales[own] = found.codes, found.scales
        return coded_tensor(codes, widths, level_table(), scales=scales, column_scales=None, dtype=self._dtype)


def least_bytes(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """What a packed file takes beside its projections, with embeddings and head in the narrowest codes.

    Args:
        model: may be on the meta device.
        dtype: of all that is not packed.
    """
    shapes = (weight.shape for weight in outer_parameters(model).values())
    least = (_coded_bytes(columns, torch.full((rows,), min(TOKEN_WIDTHS))) for rows, columns in shapes)
    return _other_bytes(model, dtype) + sum(least)


def _coded_bytes(columns: int, widths: torch.Tensor) -> int:
    """That a packed weight whose rows have these widths is expected to take in a file."""
    rows = torch.bincount(widths.long(), minlength=len(WIDTHS)).double()
    return (int(row_sizes(columns, WIDTHS) @ rows) + SCALE_BITS * len(widths)) // 8 + LEVELS


def _other_bytes(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """What a packed file holds beside the parts of linear maps and embeddings."""
    whole = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)}
    own = [parameter for parameter in model.parameters() if id(parameter) not in whole]
    maps = sum(isinstance(module, nn.Linear) for module in model.modules())
    return sum(parameter.numel() for parameter in own) * dtype.itemsize + maps * _HEADED + len(own) * _ENTRY
