"""The causal convolution and the token updates of decoding, against the float64 twins."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from native_cases import CHANNELS, LENGTHS, distance, instruction_sets, outputs_and_gradients

from hf_mamba_prune import native
from hf_mamba_prune.native import twin

needs_kernels = pytest.mark.skipif(not native.available(), reason="the kernels are not built or switched off")


def conv_inputs(b: int, d: int, length: int, width: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(b, length, 2 * d).transpose(1, 2)[:, :d]
    return dict(x=x, weight=torch.randn(d, width), bias=torch.randn(d))


@needs_kernels
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("d", CHANNELS)
def test_outputs_and_gradients_are_the_twins(d, length):
    check_conv(conv_inputs(2, d, length, 4), activation="silu")


@needs_kernels
@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_other_widths(width, activation):
    check_conv(conv_inputs(3, 20, 40, width), activation=activation)


@needs_kernels
@pytest.mark.parametrize("length", [3, 100])
def test_channel_major_memory(length):
    inputs = conv_inputs(2, 33, length, 4)
    check_conv(inputs | {"x": inputs["x"].contiguous()}, activation="silu")


def check_conv(inputs: dict, **options) -> None:
    expected = outputs_and_gradients(twin.causal_conv1d, inputs, torch.float64, **options)
    for isa in instruction_sets():
        with native.force_instruction_set(isa):
            found = outputs_and_gradients(native.causal_conv1d, inputs, torch.float32, **options)
        assert max(distance(found[name], expected[name]) for name in expected) < 1e-5, isa


def test_twin_is_torchs_convolution():
    inputs = {name: value.double() for name, value in conv_inputs(2, 5, 9, 4).items()}
    plain = F.conv1d(inputs["x"], inputs["weight"][:, None], inputs["bias"], padding=3, groups=5)[..., :9]
    torch.testing.assert_close(twin.causal_conv1d(**inputs, activation="silu"), F.silu(plain))
    leaves = [value.requires_grad_() for value in inputs.values()]
    assert torch.autograd.gradcheck(lambda *x: twin.causal_conv1d(*x, "silu"), leaves)


def each_isa(run, expected: list[torch.Tensor], tolerance: float) -> None:
    for isa in instruction_sets():
        with native.force_instruction_set(isa):
            found = run()
        assert max(distance(f, e) for f, e in zip(found, expected, strict=True)) < tolerance, isa


@needs_kernels
@pytest.mark.parametrize(("b", "d", "n"), [(1, 1, 1), (3, 40, 16), (1, 1536, 16), (2, 15, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_update_is_one_step_of_the_scan(b, d, n, dtype):
    torch.manual_seed(0)
    state = torch.randn(b, d, n)
    u, dt, z, B, C = (torch.randn(b, size).to(dtype) for size in (d, d, d, n, n))
    A, D, bias = -torch.rand(d, n), torch.randn(d), torch.randn(d)

    def one(function, cast):
        kept = cast(state.clone())
        out = function(kept, *(cast(x) for x in (u, dt, A, B, C, D, z, bias)), True)
        return [out, kept]

    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    each_isa(
        lambda: one(native.selective_state_update, lambda x: x),
        one(twin.selective_state_update, torch.Tensor.double),
        tolerance,
    )
    whole, last = twin.selective_scan(
        *(x[..., None].double() for x in (u, dt)), A.double(), *(x[..., None].double() for x in (B, C)), D,
        z[..., None], bias, True, state, True,
    )  # fmt: skip
    stepped = one(twin.selective_state_update, torch.Tensor.double)
    torch.testing.assert_close(stepped[0], whole[..., 0])
    torch.testing.assert_close(stepped[1], last)


@needs_kernels
@pytest.mark.parametrize(
    ("b", "heads", "head_dim", "groups", "n"), [(1, 1, 1, 1, 1), (2, 6, 20, 3, 20), (1, 24, 64, 1, 128)]
)
def test_chunk_state_update_is_the_twins(b, heads, head_dim, groups, n):
    torch.manual_seed(0)
    state = torch.randn(b, heads, head_dim, n)
    x, dt = torch.randn(b, heads, head_dim), torch.randn(b, heads)
    B, C = torch.randn(2, b, groups, n)
    A, D, bias = -torch.rand(heads), torch.randn(heads), torch.randn(heads)

    def one(function, cast):
        kept = cast(state.clone())
        return [function(kept, *(cast(y) for y in (x, dt, A, B, C, D, bias)), True), kept]

    each_isa(
        lambda: one(native.chunk_state_update, lambda y: y), one(twin.chunk_state_update, torch.Tensor.double), 1e-5
    )


@needs_kernels
@pytest.mark.parametrize("kept", [3, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conv_updates_one_by_one_are_the_convolution(kept, dtype):
    inputs = conv_inputs(2, 20, 12, 4)
    x = inputs["x"].to(dtype)
    expected = twin.causal_conv1d(x.double(), inputs["weight"], inputs["bias"], "silu")
    for isa in instruction_sets():
        state = torch.zeros(2, 20, kept, dtype=dtype)
        with native.force_instruction_set(isa):
            outs = [
                native.causal_conv1d_update(x[..., t], state, inputs["weight"], inputs["bias"], "silu")
                for t in range(12)
            ]
        assert distance(torch.stack(outs, dim=2), expected) < (1e-6 if dtype == torch.float32 else 4e-3)
        assert torch.equal(state, x[..., -kept:])


def test_wrong_arguments_are_refused_by_name():
    inputs = conv_inputs(1, 4, 5, 4)
    with pytest.raises(ValueError, match="activation is 'relu'"):
        native.causal_conv1d(**inputs, activation="relu")
    with pytest.raises(ValueError, match=r"weight has shape \(3, 4\), expected \(4, 4\)"):
        native.causal_conv1d(**inputs | {"weight": inputs["weight"][:3]})
    with pytest.raises(ValueError, match="keeps 2 inputs, a convolution of width 4 needs 3"):
        native.causal_conv1d_update(inputs["x"][..., 0], torch.zeros(1, 4, 2), inputs["weight"])
    with pytest.raises(ValueError, match=r"B has shape \(1, 3\), expected \(1, 2\)"):
        native.selective_state_update(
            torch.zeros(1, 4, 2), *torch.zeros(2, 1, 4), torch.zeros(4, 2), torch.zeros(1, 3), torch.zeros(1, 2)
        )
