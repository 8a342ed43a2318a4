"""RMSNorm without gradients, in place after its first product: stock goes through memory five times."""

import functools
from collections.abc import Callable

import torch

from hf_mamba_prune.native.checks import serves, tracks


def norm_in_place(stock: Callable) -> Callable:
    """The forward of a norm x / sqrt(mean(x^2) + eps) * weight; stock's with gradients, and for all but float32."""

    @functools.wraps(stock)
    def forward(self, hidden_states):
        float32 = hidden_states.dtype == self.weight.dtype == torch.float32
        if not serves(hidden_states) or not float32 or tracks(hidden_states, self.weight):
            return stock(self, hidden_states)
        length = torch.linalg.vector_norm(hidden_states, dim=-1, keepdim=True)
        scale = length.square_().div_(hidden_states.shape[-1]).add_(self.variance_epsilon).rsqrt_()
        return (hidden_states * scale).mul_(self.weight)

    return forward
