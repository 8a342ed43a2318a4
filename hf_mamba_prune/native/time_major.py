"""The mixers' step sizes laid out by time, as the scan reads them, without a copy.

Stock writes `self.dt_proj.weight @ time_step.transpose(1, 2)`. As that weight may want a gradient, torch multiplies
the transposed operands and copies the product into the layout asked for, which takes a thirtieth of a forward.
"""

import functools
from collections.abc import Callable
from typing import cast

import torch
from torch.nn import functional as F

from hf_mamba_prune.native.checks import serves


class _Weight:
    """A tensor (d_inner, dt_rank) for all but `@`."""

    def __init__(self, tensor: torch.Tensor):
        self._tensor = tensor

    def __matmul__(self, steps: torch.Tensor) -> torch.Tensor:
        """(b, dt_rank, l) -> (b, d_inner, l), a transposed view of (b, l, d_inner) memory."""
        return F.linear(steps.transpose(1, 2), self._tensor).transpose(1, 2)

    def __getattr__(self, name: str):
        return getattr(self._tensor, name)

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        return function(*(x._tensor if isinstance(x, cls) else x for x in arguments), **(named or {}))


class _Projection:
    """A mixer's `dt_proj` for all but its weight."""

    def __init__(self, module: torch.nn.Linear):
        self._module = module

    @property
    def weight(self) -> _Weight:
        return _Weight(self._module.weight)

    def __call__(self, *arguments, **named):
        return self._module(*arguments, **named)

    def __getattr__(self, name: str):
        return getattr(self._module, name)


class _Mixer:
    """A mixer for all but its `dt_proj`."""

    def __init__(self, module: torch.nn.Module):
        self._module = module
        self.dt_proj = _Projection(cast(torch.nn.Linear, module.dt_proj))

    def __getattr__(self, name: str):
        return getattr(self._module, name)


def steps_by_time(stock: Callable) -> Callable:
    """The forward of a Mamba or Falcon-Mamba mixer whose step sizes need no copy; all else is stock's."""

    @functools.wraps(stock)
    def forward(self, hidden_states, *arguments, **named):
        offloaded = hasattr(self.dt_proj, "_hf_hook")  # accelerate must find the module itself
        dense = type(self.dt_proj) is torch.nn.Linear  # others multiply in their own way
        if offloaded or not dense or not serves(hidden_states):
            return stock(self, hidden_states, *arguments, **named)
        return stock(_Mixer(self), hidden_states, *arguments, **named)

    return forward
