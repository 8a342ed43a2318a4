"""The kernels in plain torch: the reference of the tests, and what runs where nothing could be compiled.

Each function has the signature and the result of the native one. The arithmetic is float32, or float64 when the input
is; gradients come from autograd.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 64


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _steps(delta, bias, softplus: bool, dtype, limit=None):
    """The step sizes; bias broadcasts over delta."""
    dt = delta.to(dtype)
    if bias is not None:
        dt = dt + bias.to(dtype)
    if softplus:
        dt = F.softplus(dt)
    return dt if limit is None else dt.clamp(*limit)


def _chunks(run, state, length: int, tensors: tuple):
    """Runs `run(state, *slices) -> (state, out)` over time slices; keeps only the states between them for backward."""
    outs = []
    keep_all = not torch.is_grad_enabled()
    for start in range(0, length, CHUNK):
        slices = [tensor[:, start : start + CHUNK] for tensor in tensors]
        if keep_all:
            state, out = run(state, *slices)
        else:
            state, out = checkpoint(run, state, *slices, use_reentrant=False, preserve_rng_state=False)
        outs.append(out)
    return state, torch.cat(outs, dim=1)


def selective_scan(
    u,
    delta,
    A,
    B,
    C,
    D=None,
    z=None,
    delta_bias=None,
    delta_softplus=False,
    initial_state=None,
    return_last_state=False,
):
    """See `hf_mamba_prune.native.selective_scan`; linear in length, forward and backward."""
    dtype = _wide(u.dtype)
    b, d, length = u.shape
    u_wide, B_wide, C_wide = (x.to(dtype).transpose(1, 2) for x in (u, B, C))
    dt = _steps(delta.transpose(1, 2), delta_bias, delta_softplus, dtype)
    rates = A.to(dtype)
    state = u_wide.new_zeros(b, d, A.shape[1]) if initial_state is None else initial_state.to(dtype)

    def run(state, dt, dtu, B, C):
        # Time first: the loop's operands are contiguous, and the gradient of unbind is one stack.
        decay = torch.exp(dt.transpose(0, 1)[..., None] * rates)
        inflow = dtu.transpose(0, 1)[..., None] * B.transpose(0, 1)[:, :, None]
        states = []
        for keep, new in zip(decay.unbind(0), inflow.unbind(0), strict=True):
            state = torch.addcmul(new, keep, state)
            states.append(state)
        out = (torch.stack(states) @ C.transpose(0, 1)[..., None]).squeeze(-1)
        return state, out.transpose(0, 1)

    state, out = _chunks(run, state, length, (dt, dt * u_wide, B_wide, C_wide))
    out = out.transpose(1, 2)
    if D is not None:
        out = out + u.to(dtype) * D.to(dtype)[:, None]
    if z is not None:
        out = out * F.silu(z.to(dtype))
    out = out.to(u.dtype)
    return (out, state) if return_last_state else out


def chunk_scan(
    x,
    dt,
    A,
    B,
    C,
    D=None,
    dt_bias=None,
    dt_softplus=False,
    dt_limit=(0.0, float("inf")),
    initial_states=None,
    return_final_states=False,
):
    """See `hf_mamba_prune.native.chunk_scan`; inside a chunk the scan is a masked matrix product."""
    dtype = _wide(x.dtype)
    b, length, heads, head_dim = x.shape
    share = heads // B.shape[2]
    steps = _steps(dt, dt_bias, dt_softplus, dtype, dt_limit)
    wide = x.to(dtype)
    B_wide, C_wide = (matrix.to(dtype).repeat_interleave(share, dim=2) for matrix in (B, C))
    state = x.new_zeros(b, heads, head_dim, B.shape[3], dtype=dtype)
    if initial_states is not None:
        state = initial_states.to(dtype)

    def run(state, exponent, inflow, B, C):
        total = exponent.double().cumsum(1)  # the differences of long sums would keep few digits in float32
        size = total.shape[1]
        between = (total[:, :, None] - total[:, None]).to(dtype)
        future = torch.ones(size, size, dtype=torch.bool).triu(1)[None, :, :, None]
        weight = torch.einsum("bthn,bshn->btsh", C, B) * between.masked_fill(future, float("-inf")).exp()
        out = torch.einsum("btsh,bshp->bthp", weight, inflow)
        out = out + torch.einsum("bthn,bhpn->bthp", C * total.exp().to(dtype)[..., None], state)
        left = (total[:, -1:] - total).exp().to(dtype)
        state = state * total[:, -1].exp().to(dtype)[..., None, None]
        return state + torch.einsum("bthn,bthp->bhpn", B * left[..., None], inflow), out

    tensors = (steps * A.to(dtype), wide * steps[..., None], B_wide, C_wide)
    state, out = _chunks(run, state, length, tensors)
    if D is not None:
        out = out + wide * D.to(dtype)[:, None]
    out = out.to(x.dtype)
    return (out, state) if return_final_states else out


def causal_conv1d(x, weight, bias=None, activation=None):
    """See `hf_mamba_prune.native.causal_conv1d`; shifted multiply-adds, far faster on a CPU than its conv1d."""
    dtype = _wide(x.dtype)
    length, width = x.shape[2], weight.shape[1]
    padded = F.pad(x.to(dtype), (width - 1, 0))
    out = sum(weight[:, j, None].to(dtype) * padded[:, :, j : j + length] for j in range(width))
    if bias is not None:
        out = out + bias.to(dtype)[:, None]
    return (out if activation is None else F.silu(out)).to(x.dtype)


def selective_state_update(state, u, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """See `hf_mamba_prune.native.selective_state_update`."""
    dtype = _wide(state.dtype)
    dt = _steps(dt, dt_bias, dt_softplus, dtype)[..., None]
    new = torch.exp(dt * A.to(dtype)) * state.to(dtype) + dt * u.to(dtype)[..., None] * B.to(dtype)[:, None]
    state.copy_(new)
    out = (new @ C.to(dtype)[..., None]).squeeze(-1)
    if D is not None:
        out = out + u.to(dtype) * D.to(dtype)
    if z is not None:
        out = out * F.silu(z.to(dtype))
    return out.to(u.dtype)


def chunk_state_update(state, x, dt, A, B, C, D=None, dt_bias=None, dt_softplus=False):
    """See `hf_mamba_prune.native.chunk_state_update`."""
    dtype = _wide(state.dtype)
    share = x.shape[1] // B.shape[1]
    dt = _steps(dt, dt_bias, dt_softplus, dtype)
    B, C = (matrix.to(dtype).repeat_interleave(share, dim=1) for matrix in (B, C))
    decay = torch.exp(dt * A.to(dtype))[..., None, None]
    new = decay * state.to(dtype) + (dt[..., None] * x.to(dtype))[..., None] * B[:, :, None]
    state.copy_(new)
    out = (new @ C[..., None]).squeeze(-1)
    if D is not None:
        out = out + x.to(dtype) * D.to(dtype)[:, None]
    return out.to(x.dtype)


def causal_conv1d_update(x, conv_state, weight, bias=None, activation=None):
    """See `hf_mamba_prune.native.causal_conv1d_update`."""
    dtype = _wide(x.dtype)
    window = torch.cat([conv_state, x[..., None].to(conv_state.dtype)], dim=-1)
    out = (window[..., -weight.shape[1] :].to(dtype) * weight.to(dtype)).sum(-1)
    conv_state.copy_(window[..., -conv_state.shape[-1] :])
    if bias is not None:
        out = out + bias.to(dtype)
    return (out if activation is None else F.silu(out)).to(x.dtype)
