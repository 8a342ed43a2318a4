"""Shapes and random inputs that the tests of the native kernels share."""

from __future__ import annotations

import itertools

import torch

from hf_mamba_prune import native

LENGTHS = (1, 2, 7, 63, 64, 65, 513)
STATES = (1, 8, 16, 64, 128)
BATCHES = (1, 3)
CHANNELS = (1, 15, 16, 48, 1536)

SHAPES = list(itertools.product(BATCHES, CHANNELS, LENGTHS, STATES))
# Every pair of a length and a state size, the channels in turn: what the default run looks at.
FEW_SHAPES = [
    (BATCHES[i % 2], CHANNELS[i % 4], length, n) for i, (length, n) in enumerate(itertools.product(LENGTHS, STATES))
]


def instruction_sets() -> list[str]:
    """Those this machine runs; `["none"]`, where nothing is compiled, tests the twins against themselves."""
    return native.instruction_sets() or ["none"]


def distance(found: torch.Tensor, expected: torch.Tensor, terms: torch.Tensor | None = None) -> float:
    """Norm of the difference relative to the norm of what is expected, or of the terms it is the sum of if larger."""
    scale = expected.double().norm() if terms is None else torch.stack([expected.norm(), terms.norm()]).max()
    return float((found.double() - expected.double()).norm() / scale.clamp_min(1e-30))


def scan_inputs(b: int, d: int, length: int, n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of `selective_scan` in the strides transformers gives them."""
    torch.manual_seed(seed)
    xz = torch.randn(b, length, 2 * d).transpose(1, 2)
    projected = torch.randn(b, length, 3 + 2 * n)
    return dict(
        u=xz[:, :d],
        delta=torch.randn(b, d, length),
        A=-torch.rand(d, n).mul(2).exp(),
        B=projected[..., 3 : 3 + n].transpose(1, 2),
        C=projected[..., 3 + n :].transpose(1, 2),
        D=torch.randn(d),
        z=xz[:, d:],
        delta_bias=torch.randn(d) - 2,
        initial_state=torch.randn(b, d, n),
    )


def chunk_inputs(b: int, length: int, heads: int, head_dim: int, groups: int, n: int) -> dict[str, torch.Tensor]:
    """Inputs of `chunk_scan` in the strides transformers gives them."""
    torch.manual_seed(0)
    d = heads * head_dim
    projected = torch.randn(b, length, d + 2 * groups * n)
    x, B, C = projected.split([d, groups * n, groups * n], dim=-1)
    return dict(
        x=x.unflatten(2, (heads, head_dim)),
        dt=torch.randn(b, length, heads + 5)[..., 5:],
        A=-torch.rand(heads).mul(2).exp(),
        B=B.unflatten(2, (groups, n)),
        C=C.unflatten(2, (groups, n)),
        D=torch.randn(heads),
        dt_bias=torch.randn(heads) - 2,
        initial_states=torch.randn(b, heads, head_dim, n),
    )


def outputs_and_gradients(function, inputs: dict[str, torch.Tensor], dtype: torch.dtype, **options) -> dict:
    """Runs a scan on copies of the inputs in `dtype` and differentiates a fixed random sum of all its outputs."""
    leaves = {name: value.detach().to(dtype).requires_grad_() for name, value in inputs.items()}
    outputs = function(**leaves, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    total = sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outputs)
    gradients = torch.autograd.grad(total, list(leaves.values()))
    results = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
    return results | {f"d{name}": value for name, value in zip(leaves, gradients, strict=True)}
