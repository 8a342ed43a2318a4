"""One token at a time: the state and the convolution window are updated in place, without gradients."""

from typing import Any, cast

import torch

from hf_mamba_prune.native import twin
from hf_mamba_prune.native.checks import check_activation, check_rank, check_tensors
from hf_mamba_prune.native.library import active_instruction_set, available, buffer, kernels, strided


def _native(state: torch.Tensor, *activations: torch.Tensor | None) -> bool:
    readable = (torch.float32, torch.bfloat16)
    return (
        available()
        and state.dtype == torch.float32
        and state.is_contiguous()
        and all(x is None or x.dtype in readable for x in activations)
    )


def _moment(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """(b, channels) -> (b, 1, channels)."""
    return None if tensor is None else tensor[:, None]


def _floats(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _step(
    state: torch.Tensor, shape: Any, parameters: dict[str, torch.Tensor | None], **activations: torch.Tensor | None
) -> torch.Tensor:
    """`activations` are (b, channels)."""
    out = torch.empty_like(cast(torch.Tensor, activations["u"]), memory_format=torch.contiguous_format)
    held = {name: _floats(tensor) for name, tensor in parameters.items()}  # until the kernel has read them
    moments = {name: strided(_moment(tensor)) for name, tensor in activations.items()}
    inputs = kernels().ScanInputs(shape=shape, **moments, **{name: buffer(tensor) for name, tensor in held.items()})
    kernels().state_step(
        isa=active_instruction_set(),
        threads=torch.get_num_threads(),
        inputs=inputs,
        state=buffer(state),
        out=strided(out[:, None]),
    )
    return out


@torch.no_grad()
def selective_state_update(
    state: torch.Tensor,
    u: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
) -> torch.Tensor:
    """One moment of `selective_scan`.

    Args:
        state: (b, d_inner, n), updated in place.
        u, dt, z: (b, d_inner). A: (d_inner, n). B, C: (b, n). D, dt_bias: (d_inner,).

    Returns:
        (b, d_inner) in u's dtype.

    Raises:
        ValueError: a shape, device or dtype does not fit, or a dimension is empty.
    """
    b, d, n = check_rank("state", state, "b d_inner n")
    check_tensors(
        state=(state, (b, d, n)),
        u=(u, (b, d)),
        dt=(dt, (b, d)),
        A=(A, (d, n)),
        B=(B, (b, n)),
        C=(C, (b, n)),
        D=(D, (d,)),
        z=(z, (b, d)),
        dt_bias=(dt_bias, (d,)),
    )
    activations = (u, dt, B, C, z)
    if not _native(state, *activations):
        return twin.selective_state_update(
            state, u, dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, dt_softplus=dt_softplus
        )
    shape = kernels().ScanShape(
        batch=b, length=1, heads=1, head_dim=d, groups=1, states=n, per_head=False, softplus=dt_softplus
    )
    return _step(state, shape, {"A": A, "D": D, "bias": dt_bias}, u=u, delta=dt, z=z, B=B, C=C)


@torch.no_grad()
def chunk_state_update(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
) -> torch.Tensor:
    """One moment of `chunk_scan`.

    Args:
        state: (b, heads, head_dim, n), updated in place.
        x: (b, heads, head_dim). dt: (b, heads). A, D, dt_bias: (heads,). B, C: (b, groups, n).

    Returns:
        (b, heads, head_dim) in x's dtype.

    Raises:
        ValueError: a shape, device or dtype does not fit, or a dimension is empty.
    """
    b, heads, head_dim, n = check_rank("state", state, "b heads head_dim n")
    groups = check_rank("B", B, "b groups n")[1]
    if heads % groups:
        raise ValueError(f"{heads} heads cannot share {groups} groups of B and C: the groups must divide the heads")
    check_tensors(
        state=(state, (b, heads, head_dim, n)),
        x=(x, (b, heads, head_dim)),
        dt=(dt, (b, heads)),
        A=(A, (heads,)),
        B=(B, (b, groups, n)),
        C=(C, (b, groups, n)),
        D=(D, (heads,)),
        dt_bias=(dt_bias, (heads,)),
    )
    if not _native(state, x, dt, B, C):
        return twin.chunk_state_update(state, x, dt, A=A, B=B, C=C, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus)
    shape = kernels().ScanShape(
        batch=b, length=1, heads=heads, head_dim=head_dim, groups=groups, states=n, per_head=True, softplus=dt_softplus
    )
    activations = {"u": x.flatten(1), "delta": dt, "B": B.flatten(1), "C": C.flatten(1)}
    return _step(state, shape, {"A": A, "D": D, "bias": dt_bias}, **activations).view(x.shape)


@torch.no_grad()
def causal_conv1d_update(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """One moment of `causal_conv1d`.

    Args:
        x: (b, d). weight: (d, width). bias: (d,).
        conv_state: (b, d, kept), the last inputs, oldest first; kept is at least width - 1; updated in place.
        activation: `"silu"`, `"swish"` or None.

    Returns:
        (b, d) in x's dtype.

    Raises:
        ValueError: a shape, device or dtype does not fit, or a dimension is empty.
    """
    b, d, kept = check_rank("conv_state", conv_state, "b d kept")
    width = check_rank("weight", weight, "d width")[1]
    check_activation(activation)
    if kept < width - 1:
        raise ValueError(f"conv_state keeps {kept} inputs, a convolution of width {width} needs {width - 1}")
    check_tensors(x=(x, (b, d)), conv_state=(conv_state, (b, d, kept)), weight=(weight, (d, width)), bias=(bias, (d,)))
    readable = (torch.float32, torch.bfloat16)
    if not available() or x.dtype not in readable or conv_state.dtype not in readable:
        return twin.causal_conv1d_update(x, conv_state, weight, bias, activation)
    out = x.new_empty(b, d)
    weights, biases = weight.float().contiguous(), _floats(bias)
    kernels().conv_step(
        isa=active_instruction_set(),
        silu=activation is not None,
        width=width,
        state=strided(conv_state.transpose(1, 2)),
        x=strided(x[:, None]),
        out=strided(out[:, None]),
        weight=buffer(weights),
        bias=buffer(biases),
    )
    return out
