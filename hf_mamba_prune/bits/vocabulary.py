"""What few bits cost in embeddings and head: a token's row matters as often as it is predicted or looked up.

A change v of a head's row moves one logit by v x, which costs E[p (1 - p) (v x)^2] / 2 nats a token (the curvature of
the divergence), where p is the token's probability; a change of an embedding costs half the squared gradient of what
was looked up, as often as the token comes. A tied row costs both.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mamba_prune.bits.widths import row_sizes
from hf_mamba_prune.repair.rounding import round_weight

TOKEN_WIDTHS = (3, 4, 5, 6)
"""Bits that a code of embeddings and head may have."""
_SAMPLE, _ROWS = 256, 4096
_UNSEEN = 0.2
"""Share of what is seen that is divided among all tokens alike: other texts have others."""
DAMPING = 1.0
"""Much, as a tied head's rows are also looked up. Of 0.1, 0.3, 1 and 30 it loses least at 6 bits: 0.0013 nats per
token of another text, where nearest levels lose 0.0019."""


@dataclass(frozen=True, kw_only=True)
class TokenCurves:
    """What the rows of embeddings or head cost at each width.

    Args:
        losses: float64 (vocabulary, TOKEN_WIDTHS), expected rise of the loss in nats per token.
        sizes: float64 (TOKEN_WIDTHS,), bits of a row's codes in a file.
        inputs: (in, in), E[x x^T] of a head over tokens; None of rows that are only looked up.
    """

    losses: torch.Tensor
    sizes: torch.Tensor
    inputs: torch.Tensor | None

    def widths(self, price: float) -> torch.Tensor:
        """uint8 (vocabulary,), the best at a price of a bit, in nats."""
        return torch.tensor(TOKEN_WIDTHS, dtype=torch.uint8)[(self.losses + price * self.sizes).argmin(1)]

    def loss(self, widths: torch.Tensor) -> float:
        """Of rows of these widths, in nats per token."""
        places = torch.searchsorted(torch.tensor(TOKEN_WIDTHS), widths.long())
        return float(self.losses.gather(1, places[:, None]).sum())


def outer_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Embeddings and head, a tied pair once, by name."""
    wanted = {id(model.get_input_embeddings().weight)}
    head = model.get_output_embeddings()
    if head is not None:
        wanted.add(id(head.weight))
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in wanted}


class TokenUse:
    """How often each token is predicted and looked up, and what that is worth: sums over tokens of the runs shown.

    Args:
        model: a causal language model of a supported type.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._parameters = outer_parameters(model)
        self._embeddings = cast(nn.Embedding, model.get_input_embeddings())
        self._head = cast(nn.Linear | None, model.get_output_embeddings())
        self._lookups = torch.zeros(len(self._embeddings.weight), dtype=torch.float64)
        self._gradient = 0.0
        if self._head is not None:
            outputs, inputs = self._head.weight.shape
            self._products = torch.zeros(inputs, inputs)
            self._spread = torch.zeros(outputs, dtype=torch.float64)

    def shown(self) -> ExitStack:
        """While this is open, runs forward and back, of losses summed over tokens, are added."""
        stack = ExitStack()
        stack.callback(self._embeddings.register_forward_hook(self._see_lookup).remove)
        if self._head is not None:
            stack.callback(self._head.register_forward_hook(self._see_logits).remove)
        return stack

    def _see_lookup(self, _: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._lookups += torch.bincount(inputs[0].flatten().cpu(), minlength=len(self._lookups))
        output.requires_grad_(True).register_hook(self._see_gradient)

    def _see_gradient(self, gradient: torch.Tensor) -> None:
        self._gradient += float(gradient.float().square().sum()) / gradient.shape[-1]

    @torch.no_grad()
    def _see_logits(self, _: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = inputs[0].flatten(0, -2).float().cpu()
        with torch.autocast("cpu", enabled=False):  # these sums are of float32
            self._products.addmm_(x.T, x)
        likely = output.flatten(0, -2).float().softmax(1)
        self._spread += likely.sum(0).sub_(likely.square_().sum(0)).cpu()

    def curves(self) -> dict[str, TokenCurves]:
        """By name of `outer_parameters`.

        Raises:
            RuntimeError: a gradient or a prediction was not finite.
        """
        seen = [self._lookups * self._gradient] + ([] if self._head is None else [self._spread, self._products])
        if not all(bool(torch.isfinite(own).all()) for own in seen):
            raise RuntimeError("the model gives no finite predictions or gradients on the calibration text.")
        return {name: self._curves(parameter) for name, parameter in self._parameters.items()}

    def _curves(self, parameter: nn.Parameter) -> TokenCurves:
        weight, tokens = parameter.detach().cpu(), float(self._lookups.sum())
        of_head = self._head is not None and self._head.weight is parameter
        inputs = self._products / tokens if of_head else None
        changes = _Changes(weight, inputs)
        losses = torch.zeros(len(weight), len(TOKEN_WIDTHS), dtype=torch.float64)
        if inputs is not None:
            losses += changes.losses(inputs, self._spread / tokens)
        if self._embeddings.weight is parameter:
            losses += changes.losses(torch.eye(weight.shape[1]), self._lookups / tokens * self._gradient / tokens)
        sizes = row_sizes(weight.shape[1], TOKEN_WIDTHS)
        return TokenCurves(losses=losses, sizes=sizes.double(), inputs=inputs)


class _Changes:
    """What rounding makes of rows: some of them stand for all, by their squared weights."""

    def __init__(self, weight: torch.Tensor, inputs: torch.Tensor | None) -> None:
        parts = weight.split(_ROWS)
        self._squares = torch.cat([part.float().square().sum(1, dtype=torch.float64) for part in parts])
        some = torch.linspace(0, len(weight) - 1, min(_SAMPLE, len(weight))).long()
        rows, self._whole = weight[some].float(), float(self._squares[some].sum())
        system = (torch.eye(weight.shape[1]) if inputs is None else inputs)[None]
        widths = (torch.full((len(rows),), bits, dtype=torch.uint8) for bits in TOKEN_WIDTHS)
        self._changes = [round_weight(rows, system, own, DAMPING, by_column=False).weight - rows for own in widths]

    def losses(self, hessian: torch.Tensor, costs: torch.Tensor) -> torch.Tensor:
        """float64 (vocabulary, TOKEN_WIDTHS), from what a squared error of a row's output costs."""
        errors = torch.stack([((change @ hessian) * change).sum() for change in self._changes]).double()
        costs = (1 - _UNSEEN) * costs + _UNSEEN * costs.mean()
        return (costs * self._squares)[:, None] * errors / max(self._whole, 1e-30) / 2
