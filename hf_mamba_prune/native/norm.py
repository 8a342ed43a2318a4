"""RMSNorm without gradients, in place after its first product: stock goes through memory five times."""

import functools
from collections.abc import Callable

import torch


def norm_in_place(stock: Callable) -> Callable:
    """The forward of a norm x / sqrt(mean(x^2) + eps) * weight; stock's with gradients, and for all but float32."""

    @functools.wraps(stock)
    def forward(self, hidden_states):
        weight = self.weight
        served = hidden_states.device.type == "cpu" and hidden_states.dtype == weight.dtype == torch.float32
        tracked = torch.is_grad_enabled() and (hidden_states.requires_grad or weight.requires_grad)
        if not served or tracked or torch.compiler.is_compiling():
            return stock(self, hidden_states)
        length = torch.linalg.vector_norm(hidden_states, dim=-1, keepdim=True)
        scale = length.square_().div_(hidden_states.shape[-1]).add_(self.variance_epsilon).rsqrt_()
        return (hidden_states * scale).mul_(weight)

    return forward
