"""The causal depthwise convolution on the native kernels, forward and backward."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from hf_mamba_prune.native import twin
from hf_mamba_prune.native.checks import check_conv
from hf_mamba_prune.native.library import active_instruction_set, available, buffer, kernels, strided


class _Conv(torch.autograd.Function):
    """x is time-major: (b, l, d)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, silu: bool
    ) -> torch.Tensor:
        isa = active_instruction_set()
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        kernels().conv_forward(
            isa=isa,
            threads=torch.get_num_threads(),
            silu=silu,
            width=weight.shape[1],
            x=strided(x),
            weight=buffer(weight),
            bias=buffer(bias),
            out=strided(out),
        )
        ctx.save_for_backward(x, weight, bias)
        ctx.isa, ctx.silu = isa, silu
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        b, _, d = x.shape
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dweight = weight.new_empty(b, *weight.shape)
        dbias = weight.new_empty(b, d)
        kernels().conv_backward(
            isa=ctx.isa,
            threads=torch.get_num_threads(),
            silu=ctx.silu,
            width=weight.shape[1],
            x=strided(x),
            weight=buffer(weight),
            bias=buffer(bias),
            dout=strided(dout),
            dx=strided(dx),
            dweight=buffer(dweight),
            dbias=buffer(dbias),
        )
        return dx, dweight.sum(0), None if bias is None else dbias.sum(0), None


def causal_conv1d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """out[t] = act(bias + sum_j weight[j] x[t - width + 1 + j]), channel by channel, zeros before the start.

    Args:
        x: (b, d, l), any strides; transposed views of (b, l, d) memory are the fastest.
        weight: (d, width). bias: (d,).
        activation: `"silu"`, `"swish"` or None.

    Returns:
        (b, d, l) in x's dtype, a transposed view of (b, l, d) memory.

    Raises:
        ValueError: a shape, device, dtype or activation does not fit, or a dimension is empty.
    """
    check_conv(x, weight, bias, activation)
    if not available() or x.dtype == torch.float64:
        return twin.causal_conv1d(x, weight, bias, activation)
    native = x if x.dtype in (torch.float32, torch.bfloat16) else x.float()
    bias = None if bias is None else bias.float().contiguous()
    out = _Conv.apply(native.transpose(1, 2), weight.float().contiguous(), bias, activation is not None)
    return out.to(x.dtype).transpose(1, 2)
