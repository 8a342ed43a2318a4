"""One token at a time: the state and the convolution window are updated in place, without gradients."""

import torch

from hf_mamba_prune.native import twin
from hf_mamba_prune.native.checks import check_activation, check_rank, check_tensors
from hf_mamba_prune.native.library import active_instruction_set, address, available, kernels, time_major
from hf_mamba_prune.native.scan import ScanCut


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


def _step(state, cut: ScanCut, u, delta, z, B, C, A, D, bias) -> torch.Tensor:
    out = u.new_empty(u.shape)
    moments = [_moment(x) for x in (u, delta, z, B, C)]
    parameters = [_floats(x) for x in (A, D, bias)]
    inputs = (*(time_major(x) for x in moments), *(address(x) for x in parameters), None)
    kernels().state_step(
        active_instruction_set(), torch.get_num_threads(), cut, inputs, state.data_ptr(), time_major(out[:, None])
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
    if not _native(state, u, dt, B, C, z):
        return twin.selective_state_update(state, u, dt, A, B, C, D, z, dt_bias, dt_softplus)
    cut = ScanCut(b, 1, 1, d, 1, n, False, dt_softplus, 0.0, 0.0)
    return _step(state, cut, u, dt, z, B, C, A, D, dt_bias)


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
        return twin.chunk_state_update(state, x, dt, A, B, C, D, dt_bias, dt_softplus)
    cut = ScanCut(b, 1, heads, head_dim, groups, n, True, dt_softplus, 0.0, 0.0)
    out = _step(state, cut, x.flatten(1), dt, None, B.flatten(1), C.flatten(1), A, D, dt_bias)
    return out.view(x.shape)


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
    weight, bias = _floats(weight), _floats(bias)
    shape = (b, d, width, kept, activation is not None)
    state = time_major(conv_state.transpose(1, 2))
    moments = (time_major(tensor[:, None]) for tensor in (x, out))
    kernels().conv_step(active_instruction_set(), shape, state, *moments, weight.data_ptr(), address(bias))
    return out
