"""How far the predictions of one model are from those of another, and its gradient, in one pass over the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

_AT_ONCE = {"cpu": 2**19}
"""Logits that are compared at a time: on a CPU what fits its cache, elsewhere (2^25) what keeps the device busy."""


def divergence(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0, counts: torch.Tensor | None = None
) -> torch.Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), summed over rows, in nats.

    The gradient, T (softmax(student / T) - softmax(teacher / T)), is made in the same pass over the logits: 3 to 5
    times faster on a CPU than letting autograd walk back, and one copy of them in memory instead of several.

    Args:
        student, teacher: (rows, vocabulary), any floating dtype; the arithmetic is float32.
        temperature: above 0.
        counts: (rows,) bool, the rows to sum; None: all.

    Returns:
        A scalar with gradients to the student only.
    """
    return _Divergence.apply(student, teacher.detach(), temperature, counts)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: torch.Tensor,
        teacher: torch.Tensor,
        temperature: float,
        counts: torch.Tensor | None,
    ) -> torch.Tensor:
        total = student.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(student)
        skipped = (counts if counts is not None else student.new_ones(len(student), dtype=torch.bool)).logical_not()
        rows = max(1, _AT_ONCE.get(student.device.type, 2**25) // student.shape[1])
        parts = (tensor.split(rows) for tensor in (student, teacher, skipped[:, None], gradient))
        for own, wanted, skip, slope in zip(*parts, strict=True):
            own = F.log_softmax(own.float() / temperature, dim=-1)
            wanted = F.log_softmax(wanted.float() / temperature, dim=-1)
            share = wanted.exp()
            total += wanted.sub_(own).mul_(share).masked_fill_(skip, 0).sum()
            slope.copy_(own.exp_().sub_(share).masked_fill_(skip, 0))
        ctx.save_for_backward(gradient)
        ctx.temperature = temperature
        return total * temperature**2

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (upstream * ctx.temperature), None, None, None
