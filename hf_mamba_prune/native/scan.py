"""The selective scan of Mamba and Mamba-2 on the native kernels, forward and backward."""

from typing import Any, cast

import torch
from torch.autograd.function import once_differentiable

from hf_mamba_prune.native import twin
from hf_mamba_prune.native.checks import check_chunk_scan, check_scan
from hf_mamba_prune.native.library import active_instruction_set, available, buffer, kernels, strided


class _Scan(torch.autograd.Function):
    """Inputs are time-major: u and z (b, l, d), delta (b, l, d or heads), B and C (b, l, groups * n)."""

    @staticmethod
    def forward(
        ctx: Any,
        u: torch.Tensor,
        delta: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor | None,
        z: torch.Tensor | None,
        bias: torch.Tensor | None,
        initial: torch.Tensor | None,
        shape: Any,
        differentiable: bool,
        want_last: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        isa, native = active_instruction_set(), kernels()
        b, d, n = shape.batch, shape.channels, shape.states
        out = u.new_empty(b, shape.length, d)
        last = u.new_empty(b, d, n, dtype=torch.float32) if want_last else None
        checkpoints, tensors = None, (u, delta, z, B, C, A, D, bias, initial)
        if differentiable:
            tiles = native.scan_sizes(isa=isa, shape=shape).tiles
            checkpoints = u.new_empty(b, tiles, d, n, dtype=torch.float32)
            ctx.save_for_backward(*tensors, checkpoints)
            ctx.shape, ctx.isa = shape, isa
        native.scan_forward(
            isa=isa,
            threads=torch.get_num_threads(),
            inputs=_inputs(shape, *tensors),
            out=strided(out),
            last=buffer(last),
            checkpoints=buffer(checkpoints),
        )
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: torch.Tensor | None, dlast: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        *tensors, checkpoints = ctx.saved_tensors
        delta, bias = tensors[1], tensors[7]
        shape = ctx.shape
        dout = torch.zeros_like(tensors[0]) if dout is None else dout
        dlast = None if dlast is None else dlast.float().contiguous()
        sums = _sums(shape, ctx.isa, tensors)
        like = _like(shape, tensors)
        kernels().scan_backward(
            isa=ctx.isa,
            threads=torch.get_num_threads(),
            inputs=_inputs(shape, *tensors),
            checkpoints=buffer(checkpoints),
            dout=strided(dout),
            dlast=buffer(dlast),
            **{name: strided(tensor) for name, tensor in like.items()},
            **{name: buffer(tensor) for name, tensor in sums.items()},
        )
        b, heads, ddelta = shape.batch, shape.heads, like["ddelta"]
        dA, dD, dbias = sums["dA"], sums["dD"], sums["dbias"]
        if shape.per_head:
            ddelta = sums["dstep"].view(b, shape.length, heads, -1).sum(-1).to(delta.dtype)
            dA, dbias = (x.view(b, heads, -1).sum((0, 2)) for x in (dA, dbias))
            dD = None if dD is None else dD.view(b, heads, -1).sum((0, 2))
        else:
            dA, dbias, dD = (None if x is None else x.sum(0) if b > 1 else x[0] for x in (dA, dbias, dD))
        dbias = None if bias is None else dbias
        return (
            like["du"], ddelta, dA, like["dB"], like["dC"], dD, like["dz"], dbias, sums["dinitial"], None, None, None
        )  # fmt: skip


def _inputs(shape: Any, *tensors: torch.Tensor | None) -> Any:
    """What the kernels read: u, delta, z, B, C, A, D, bias and the initial state."""
    u, delta, z, B, C, A, D, bias, initial = tensors
    return kernels().ScanInputs(
        shape=shape,
        u=strided(u),
        delta=strided(delta),
        z=strided(z),
        B=strided(B),
        C=strided(C),
        A=buffer(A),
        D=buffer(D),
        bias=buffer(bias),
        initial=buffer(initial),
    )


def _like(shape: Any, tensors: list) -> dict[str, Any]:
    """Room for the gradients of activations; with a step for each head, that of the steps is among the sums."""
    u, delta, z, B, C = tensors[:5]
    wanted = {"du": u, "ddelta": None if shape.per_head else delta, "dz": z, "dB": B, "dC": C}
    return {
        name: None if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for name, x in wanted.items()
    }


def _sums(shape: Any, isa: str, tensors: list) -> dict[str, Any]:
    """Room for what the caller sums up: gradients of parameters, and of what the heads of a group share."""
    sizes = kernels().scan_sizes(isa=isa, shape=shape)
    b, d, n, blocks, length = shape.batch, shape.channels, shape.states, sizes.blocks, shape.length

    def floats(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.float32)

    return {
        "dA": floats(b, blocks) if shape.per_head else floats(b, d, n),
        "dD": None if tensors[6] is None else floats(b, d),
        "dbias": floats(b, blocks if shape.per_head else d),
        "dinitial": None if tensors[8] is None else torch.empty_like(tensors[8]),
        "dstep": floats(b, length, blocks) if shape.per_head else None,
        "dBC": torch.empty((b, shape.groups, sizes.shares, length, 2, sizes.padded_states), dtype=torch.float32),
    }


def _parameter(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _activation(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """float32 and bfloat16 go in as they are, the rest as float32."""
    if tensor is None or tensor.dtype in (torch.float32, torch.bfloat16):
        return tensor
    return tensor.float()


_ACTIVATIONS = ("u", "delta", "B", "C", "z")


def _run(shape: Any, want_last: bool, **tensors: torch.Tensor | None) -> tuple[torch.Tensor, Any]:
    """The scan of tensors by their names, in the order of time."""
    held = {name: (_activation if name in _ACTIVATIONS else _parameter)(x) for name, x in tensors.items()}
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in held.values())
    names = ("u", "delta", "A", "B", "C", "D", "z", "bias", "initial")
    out, last = _Scan.apply(*(held.get(name) for name in names), shape, differentiable, want_last)
    return out.to(cast(torch.Tensor, tensors["u"]).dtype), last


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
) -> Any:
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
    named = dict(A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state)
    check_scan(u, delta, **named)
    if not available() or u.dtype == torch.float64:
        how = dict(delta_softplus=delta_softplus, return_last_state=return_last_state)
        return twin.selective_scan(u, delta, **named, **how)
    b, d, length = u.shape
    shape = kernels().ScanShape(
        batch=b,
        length=length,
        heads=1,
        head_dim=d,
        groups=1,
        states=A.shape[1],
        per_head=False,
        softplus=delta_softplus,
    )
    u, delta, B, C = (x.transpose(1, 2) for x in (u, delta, B, C))
    z = None if z is None else z.transpose(1, 2)
    inputs = dict(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, bias=delta_bias, initial=initial_state)
    out, last = _run(shape, return_last_state, **inputs)
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
) -> Any:
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
    named: dict[str, Any] = dict(A=A, B=B, C=C, D=D, dt_bias=dt_bias, dt_limit=dt_limit, initial_states=initial_states)
    check_chunk_scan(x, dt, **named)
    if not available() or x.dtype == torch.float64:
        return twin.chunk_scan(x, dt, **named, dt_softplus=dt_softplus, return_final_states=return_final_states)
    b, length, heads, head_dim = x.shape
    groups, n = B.shape[2:]
    limits = (0.0, 0.0) if dt_softplus and tuple(dt_limit) == (0.0, float("inf")) else dt_limit
    shape = kernels().ScanShape(
        batch=b,
        length=length,
        heads=heads,
        head_dim=head_dim,
        groups=groups,
        states=n,
        per_head=True,
        softplus=dt_softplus,
        step_min=float(limits[0]),
        step_max=float(limits[1]),
    )
    initial = None if initial_states is None else initial_states.flatten(1, 2)
    inputs = dict(delta=dt, A=A, B=B.flatten(2), C=C.flatten(2), D=D, bias=dt_bias, initial=initial)
    out, last = _run(shape, return_final_states, u=x.flatten(2), **inputs)
    out = out.view(x.shape)
    return (out, last.view(b, heads, head_dim, n)) if return_final_states else out
