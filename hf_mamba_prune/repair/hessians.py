"""Sums of x x^T over tokens, for many tokens at a time: the dearest products of a repair."""

from __future__ import annotations

import torch

_TOKENS = 2048
"""Tokens that are multiplied at once: as many as make adding the product to the sum, in float64, cheap beside it."""
_COLUMNS = 384
"""Columns of a part of the product; of two parts that mirror each other one is made."""


class HessianSum:
    """E[x x^T] of one target's inputs, for each group of its rows with weights of tokens of their own.

    Products are in float32, whatever autocast says, and sums in float64: in bfloat16 few tokens, or inputs of very
    different sizes, give a matrix with eigenvalues below zero, on which least squares diverge.
    """

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None
        self._waiting: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def add(self, inputs: torch.Tensor, weights: torch.Tensor | None) -> None:
        """See inputs (tokens, in), and weights of the tokens (groups, tokens); None: one group, and all weigh 1."""
        # A copy, as the block goes on with its memory.
        self._waiting.append((inputs.to(torch.float32, copy=True), weights))
        if sum(len(waiting) for waiting, _ in self._waiting) >= _TOKENS:
            self._multiply()

    def mean(self, count: int) -> torch.Tensor:
        """float64 (groups, in, in), the sums over `count`."""
        self._multiply()
        assert self._sums is not None  # asked for when something was seen
        found = self._sums / count
        lower = found.tril(-1)
        return found.tril() + lower.transpose(1, 2)

    def _multiply(self) -> None:
        if not self._waiting:
            return
        rows = torch.cat([inputs for inputs, _ in self._waiting])
        weights = [own for _, own in self._waiting if own is not None]
        self._waiting = []
        scaled = [rows] if not weights else [rows * own[:, None] for own in torch.cat(weights, 1).to(rows)]
        size = rows.shape[1]
        if self._sums is None:
            self._sums = torch.zeros(len(scaled), size, size, dtype=torch.float64, device=rows.device)
        for group, own in enumerate(scaled):
            for first in range(0, size, _COLUMNS):
                with torch.autocast(rows.device.type, enabled=False):
                    part = own[:, first : first + _COLUMNS].T @ rows[:, : first + _COLUMNS]
                self._sums[group, first : first + _COLUMNS, : first + _COLUMNS] += part
