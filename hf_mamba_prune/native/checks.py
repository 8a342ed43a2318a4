"""What the kernels serve, and what they refuse by name: wrong shapes, other devices and dtypes, empty dimensions."""

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def serves(tensor: torch.Tensor) -> bool:
    """Whether an exchanged function takes a call, or passes it on to stock's."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def tracks(*tensors: torch.Tensor | None) -> bool:
    """Whether somebody wants gradients of what is made of these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def check_tensors(**named: tuple[torch.Tensor | None, tuple[int, ...]]) -> None:
    """Raises ValueError unless every tensor that is given is a CPU float tensor of its expected shape."""
    for name, (tensor, shape) in named.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)} from the other inputs")
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} is {tensor.dtype}; pass float32, bfloat16, float16 or float64")
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} is on {tensor.device}; these kernels run on the CPU: move it there")


def check_rank(name: str, tensor: torch.Tensor, letters: str) -> tuple[int, ...]:
    """The shape of `tensor`; raises ValueError unless it has a dimension, not empty, for each of `letters`."""
    wanted = letters.split()
    if tensor.dim() != len(wanted):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected ({', '.join(wanted)})")
    if 0 in tensor.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)} ({', '.join(wanted)}): no dimension may be empty")
    return tuple(tensor.shape)


def check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state) -> None:
    """Raises ValueError unless the arguments of `selective_scan` fit together."""
    b, d, length = check_rank("u", u, "b d_inner l")
    n = check_rank("A", A, "d_inner n")[1]
    check_tensors(
        u=(u, (b, d, length)),
        delta=(delta, (b, d, length)),
        A=(A, (d, n)),
        B=(B, (b, n, length)),
        C=(C, (b, n, length)),
        D=(D, (d,)),
        z=(z, (b, d, length)),
        delta_bias=(delta_bias, (d,)),
        initial_state=(initial_state, (b, d, n)),
    )


def check_chunk_scan(x, dt, A, B, C, D, dt_bias, dt_limit, initial_states) -> None:
    """Raises ValueError unless the arguments of `chunk_scan` fit together."""
    b, length, heads, head_dim = check_rank("x", x, "b l heads head_dim")
    groups, n = check_rank("B", B, "b l groups n")[2:]
    if heads % groups:
        raise ValueError(f"{heads} heads cannot share {groups} groups of B and C: the groups must divide the heads")
    low, high = dt_limit
    if not low <= high or high <= 0:
        raise ValueError(f"dt_limit is ({low}, {high}), expected (low, high) with low <= high and high above 0")
    check_tensors(
        x=(x, (b, length, heads, head_dim)),
        dt=(dt, (b, length, heads)),
        A=(A, (heads,)),
        B=(B, (b, length, groups, n)),
        C=(C, (b, length, groups, n)),
        D=(D, (heads,)),
        dt_bias=(dt_bias, (heads,)),
        initial_states=(initial_states, (b, heads, head_dim, n)),
    )


def check_activation(activation: str | None) -> None:
    """Raises ValueError unless the activation is one the kernels fuse."""
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation is {activation!r}, expected 'silu', 'swish' or None")


def check_conv(x, weight, bias, activation) -> None:
    """Raises ValueError unless the arguments of `causal_conv1d` fit together."""
    b, d, length = check_rank("x", x, "b d l")
    width = check_rank("weight", weight, "d width")[1]
    check_activation(activation)
    check_tensors(x=(x, (b, d, length)), weight=(weight, (d, width)), bias=(bias, (d,)))
