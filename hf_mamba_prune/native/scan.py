"""The selective scan of Mamba and Mamba-2 on the native kernels, forward and backward."""

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from hf_mamba_prune.native import twin
from hf_mamba_prune.native.checks import check_chunk_scan, check_scan
from hf_mamba_prune.native.library import active_instruction_set, address, available, kernels, time_major


class ScanCut(NamedTuple):
    """The shape of a scan as the kernels count it: channels in `heads` runs of `head_dim`."""

    batch: int
    length: int
    heads: int
    head_dim: int
    groups: int
    states: int
    per_head: bool
    softplus: bool
    step_min: float
    step_max: float


class _Scan(torch.autograd.Function):
    """Inputs are time-major: u and z (b, l, d), delta (b, l, d or heads), B and C (b, l, groups * n)."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, bias, initial, cut: ScanCut, differentiable: bool, want_last: bool):
        isa, threads, native = active_instruction_set(), torch.get_num_threads(), kernels()
        d = cut.heads * cut.head_dim
        sizes = native.scan_sizes(isa, cut)
        out = u.new_empty(cut.batch, cut.length, d)
        last = u.new_empty(cut.batch, d, cut.states, dtype=torch.float32) if want_last else None
        checkpoints = None
        if differentiable:
            checkpoints = u.new_empty(cut.batch, sizes[1], d, cut.states, dtype=torch.float32)
        inputs = (u, delta, z, B, C, A, D, bias, initial)
        native.scan_forward(
            isa, threads, cut, _described(inputs), time_major(out), address(last), address(checkpoints)
        )
        if differentiable:
            ctx.save_for_backward(*inputs, checkpoints)
            ctx.cut, ctx.isa, ctx.sizes = cut, isa, sizes
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dout, dlast):
        *inputs, checkpoints = ctx.saved_tensors
        u, delta, z, B, C, A, D, bias, initial = inputs
        cut = ctx.cut
        _, _, blocks, shares, padded = ctx.sizes
        if dout is None:
            dout = torch.zeros_like(u)
        if dlast is not None:
            dlast = dlast.float().contiguous()
        b, d = cut.batch, cut.heads * cut.head_dim

        def floats(*shape):
            return u.new_empty(shape, dtype=torch.float32)

        du, dB, dC = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, B, C))
        dz = None if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
        ddelta = None if cut.per_head else torch.empty_like(delta, memory_format=torch.contiguous_format)
        dstep = floats(b, cut.length, blocks) if cut.per_head else None
        dA = floats(b, blocks) if cut.per_head else floats(b, d, cut.states)
        dbias = floats(b, blocks if cut.per_head else d)
        dD = None if D is None else floats(b, d)
        dinitial = None if initial is None else torch.empty_like(initial)
        dBC = floats(b, cut.groups, shares, cut.length, 2, padded)
        kernels().scan_backward(
            ctx.isa,
            torch.get_num_threads(),
            cut,
            _described(inputs),
            checkpoints.data_ptr(),
            (time_major(dout), address(dlast)),
            tuple(time_major(x) for x in (du, ddelta, dz, dB, dC)),
            tuple(address(x) for x in (dA, dD, dbias, dinitial, dstep, dBC)),
        )
        if cut.per_head:
            ddelta = dstep.view(b, cut.length, cut.heads, -1).sum(-1).to(delta.dtype)
            dA, dbias = (x.view(b, cut.heads, -1).sum((0, 2)) for x in (dA, dbias))
            dD = None if dD is None else dD.view(b, cut.heads, -1).sum((0, 2))
        else:
            dA, dbias, dD = (None if x is None else x.sum(0) if b > 1 else x[0] for x in (dA, dbias, dD))
        dbias = None if bias is None else dbias
        return du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial, None, None, None


def _described(inputs) -> tuple:
    return (*(time_major(x) for x in inputs[:5]), *(address(x) for x in inputs[5:]))


def _parameter(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _activation(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """float32 and bfloat16 go in as they are, the rest as float32."""
    if tensor is None or tensor.dtype in (torch.float32, torch.bfloat16):
        return tensor
    return tensor.float()


def _run(u, delta, A, B, C, D, z, bias, initial, cut: ScanCut, want_last: bool):
    activations = [_activation(x) for x in (u, delta, B, C, z)]
    parameters = [_parameter(x) for x in (A, D, bias, initial)]
    tensors = [x for x in (*activations, *parameters) if x is not None]
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    u_in, delta_in, B_in, C_in, z_in = activations
    A_in, D_in, bias_in, initial_in = parameters
    out, last = _Scan.apply(
        u_in, delta_in, A_in, B_in, C_in, D_in, z_in, bias_in, initial_in, cut, differentiable, want_last
    )
    return out.to(u.dtype), last


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: torch.Tensor | None = None,
    return_last_state: bool = False,
):
    """h = exp(dt A) h + dt u B, out = (C h + D u) silu(z) with dt = softplus(delta + delta_bias) (Mamba, 2312.00752).

    Any strides are read in place; transposed views of (b, l, d_inner) memory, as transformers passes them, are the
    fastest. The arithmetic is float32 whatever the dtype; float64 runs on the twin.

    Args:
        u, delta, z: (b, d_inner, l).
        A: (d_inner, n). D, delta_bias: (d_inner,).
        B, C: (b, n, l).
        initial_state: (b, d_inner, n).

    Returns:
        out (b, d_inner, l) in u's dtype, a transposed view of (b, l, d_inner) memory; with `return_last_state` also
        the state (b, d_inner, n) in float32.

    Raises:
        ValueError: a shape, device or dtype does not fit, or a dimension is empty.
    """
    check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state)
    if not available() or u.dtype == torch.float64:
        return twin.selective_scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, return_last_state
        )
    b, d, length = u.shape
    cut = ScanCut(b, length, 1, d, 1, A.shape[1], False, delta_softplus, 0.0, 0.0)
    u, delta, B, C = (x.transpose(1, 2) for x in (u, delta, B, C))
    z = None if z is None else z.transpose(1, 2)
    out, last = _run(u, delta, A, B, C, D, z, delta_bias, initial_state, cut, return_last_state)
    out = out.transpose(1, 2)
    return (out, last) if return_last_state else out


def chunk_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_states: torch.Tensor | None = None,
    return_final_states: bool = False,
):
    """The scan of Mamba-2 (2405.21060): one step and one decay a head, B and C shared by the heads of a group.

    Args:
        x: (b, l, heads, head_dim). dt: (b, l, heads).
        A, D, dt_bias: (heads,).
        B, C: (b, l, groups, n).
        dt_limit: the steps are clamped to it after the softplus.
        initial_states: (b, heads, head_dim, n).

    Returns:
        (b, l, heads, head_dim) in x's dtype; with `return_final_states` also the state (b, heads, head_dim, n),
        float32.

    Raises:
        ValueError: a shape, device or dtype does not fit, or a dimension is empty.
    """
    check_chunk_scan(x, dt, A, B, C, D, dt_bias, dt_limit, initial_states)
    if not available() or x.dtype == torch.float64:
        return twin.chunk_scan(x, dt, A, B, C, D, dt_bias, dt_softplus, dt_limit, initial_states, return_final_states)
    b, length, heads, head_dim = x.shape
    groups, n = B.shape[2:]
    limits = (0.0, 0.0) if dt_softplus and tuple(dt_limit) == (0.0, float("inf")) else dt_limit
    cut = ScanCut(b, length, heads, head_dim, groups, n, True, dt_softplus, *(float(limit) for limit in limits))
    initial = None if initial_states is None else initial_states.flatten(1, 2)
    out, last = _run(
        x.flatten(2), dt, A, B.flatten(2), C.flatten(2), D, None, dt_bias, initial, cut, return_final_states
    )
    out = out.view(x.shape)
    return (out, last.view(b, heads, head_dim, n)) if return_final_states else out
