"""The scans: kernels against the float64 twins, on every instruction set; the twins against finite differences."""

from __future__ import annotations

import pytest
import torch
from native_cases import (
    FEW_SHAPES,
    SHAPES,
    chunk_inputs,
    distance,
    instruction_sets,
    outputs_and_gradients,
    scan_inputs,
)

from hf_mamba_prune import native
from hf_mamba_prune.native import twin

needs_kernels = pytest.mark.skipif(not native.available(), reason="the kernels are not built or switched off")
FULL = dict(delta_softplus=True, return_last_state=True)


def compare(kernel, reference, inputs: dict, tolerance: float, dtype=torch.float32, **options) -> None:
    expected = outputs_and_gradients(reference, inputs, torch.float64, **options)
    # With one channel the gradient of the bias is one number, a sum over time that may cancel to almost nothing.
    terms = {"ddelta_bias": expected.get("ddelta"), "ddt_bias": expected.get("ddt")}
    for isa in instruction_sets():
        with native.force_instruction_set(isa):
            found = outputs_and_gradients(kernel, inputs, dtype, **options)
        worst = {name: distance(found[name], expected[name], terms.get(name)) for name in expected}
        assert max(worst.values()) < tolerance, (isa, worst)


@needs_kernels
@pytest.mark.parametrize(("b", "d", "length", "n"), FEW_SHAPES)
def test_outputs_and_gradients_are_the_twins(b, d, length, n):
    compare(native.selective_scan, twin.selective_scan, scan_inputs(b, d, length, n), 1e-5, **FULL)


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize(("b", "d", "length", "n"), SHAPES)
def test_the_whole_shape_table(b, d, length, n):
    compare(native.selective_scan, twin.selective_scan, scan_inputs(b, d, length, n), 1e-5, **FULL)


@needs_kernels
@pytest.mark.parametrize("layout", ["time-major", "channel-major", "every second channel"])
def test_any_strides_are_read_in_place(layout):
    inputs = scan_inputs(2, 20, 70, 16)
    for name in ("u", "delta", "B", "C", "z"):
        tensor = inputs[name]
        if layout == "time-major":
            inputs[name] = tensor.transpose(1, 2).contiguous().transpose(1, 2)
        elif layout == "channel-major":
            inputs[name] = tensor.contiguous()
        else:
            inputs[name] = tensor.repeat_interleave(2, dim=1)[:, ::2]
    compare(native.selective_scan, twin.selective_scan, inputs, 1e-5, **FULL)


@needs_kernels
@pytest.mark.parametrize("absent", ["D", "z", "delta_bias", "initial_state"])
def test_what_may_be_left_out(absent):
    inputs = scan_inputs(2, 20, 40, 5)
    del inputs[absent]
    compare(native.selective_scan, twin.selective_scan, inputs, 1e-5, **FULL)


@needs_kernels
def test_steps_without_softplus():
    inputs = scan_inputs(1, 16, 40, 8)
    inputs["delta"] = inputs["delta"].abs() * 0.2
    del inputs["delta_bias"]
    compare(native.selective_scan, twin.selective_scan, inputs, 1e-5)


@needs_kernels
def test_bfloat16_inputs_lose_only_the_rounding_of_the_results():
    inputs = scan_inputs(2, 40, 70, 16)
    inputs = {k: v.bfloat16() if k in ("u", "delta", "B", "C", "z") else v for k, v in inputs.items()}
    rounded = {name: value.float() for name, value in inputs.items()}
    expected = outputs_and_gradients(twin.selective_scan, rounded, torch.float64, **FULL)
    for isa in instruction_sets():
        leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
        with native.force_instruction_set(isa):
            out, last = native.selective_scan(**leaves, **FULL)
        assert out.dtype == torch.bfloat16 and last.dtype == torch.float32
        assert distance(out.detach(), expected["output 0"]) < 4e-3
        assert distance(last.detach(), expected["output 1"]) < 1e-5
        out.float().sum().backward()
        assert all(leaf.grad.dtype == leaf.dtype for leaf in leaves.values())


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floats_are_served_too(dtype):
    inputs = {name: value.to(dtype) for name, value in scan_inputs(1, 16, 20, 4).items()}
    out = native.selective_scan(**inputs, delta_softplus=True)
    assert out.dtype == dtype
    wide = {name: value.double() for name, value in inputs.items()}
    assert distance(out, twin.selective_scan(**wide, delta_softplus=True)) < 2e-3


@needs_kernels
@pytest.mark.parametrize(
    ("b", "length", "heads", "head_dim", "groups", "n"),
    [(1, 65, 4, 16, 1, 16), (2, 70, 6, 20, 3, 8), (3, 1, 2, 5, 2, 1), (1, 513, 2, 64, 1, 128), (2, 33, 8, 8, 4, 20)],
)
@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.05, 0.4)])
def test_chunk_scan_is_the_twins(b, length, heads, head_dim, groups, n, limit):
    inputs = chunk_inputs(b, length, heads, head_dim, groups, n)
    options = dict(dt_softplus=True, dt_limit=limit, return_final_states=True)
    compare(native.chunk_scan, twin.chunk_scan, inputs, 1e-5, **options)


def test_twin_of_chunk_scan_is_the_plain_scan_with_shared_steps():
    inputs = chunk_inputs(2, 130, 2, 3, 1, 4)
    out, last = twin.chunk_scan(
        **{name: value.double() for name, value in inputs.items()}, dt_softplus=True, return_final_states=True
    )

    def per_channel(values):
        return values.repeat_interleave(3, dim=-1).double()

    plain, plain_last = twin.selective_scan(
        inputs["x"].flatten(2).double().transpose(1, 2),
        per_channel(inputs["dt"]).transpose(1, 2),
        per_channel(inputs["A"])[:, None].expand(-1, 4),
        inputs["B"].flatten(2).double().transpose(1, 2),
        inputs["C"].flatten(2).double().transpose(1, 2),
        per_channel(inputs["D"]),
        None,
        per_channel(inputs["dt_bias"]),
        True,
        inputs["initial_states"].double().flatten(1, 2),
        True,
    )
    torch.testing.assert_close(out.flatten(2), plain.transpose(1, 2))
    torch.testing.assert_close(last.flatten(1, 2), plain_last)


def test_gradients_of_the_twins_are_right():
    leaves = {name: value.double().requires_grad_() for name, value in scan_inputs(2, 3, 5, 2).items()}
    assert torch.autograd.gradcheck(lambda *x: twin.selective_scan(*x[:8], True, *x[8:], True), tuple(leaves.values()))
    leaves = {name: value.double().requires_grad_() for name, value in chunk_inputs(1, 5, 2, 2, 1, 2).items()}
    limits = (0.0, float("inf"))
    assert torch.autograd.gradcheck(
        lambda *x: twin.chunk_scan(*x[:7], True, limits, *x[7:], True), tuple(leaves.values())
    )


def test_scan_in_two_parts_is_the_scan_of_the_whole():
    inputs = scan_inputs(1, 16, 100, 8)
    whole, last = native.selective_scan(**inputs, **FULL)
    timed = ("u", "delta", "B", "C", "z")
    first = {k: v[..., :37] if k in timed else v for k, v in inputs.items()}
    start, state = native.selective_scan(**first, **FULL)
    rest = {k: v[..., 37:] if k in timed else v for k, v in inputs.items()} | {"initial_state": state}
    end, final = native.selective_scan(**rest, **FULL)
    torch.testing.assert_close(torch.cat([start, end], dim=2), whole)
    torch.testing.assert_close(final, last)


@needs_kernels
def test_same_bytes_whatever_the_number_of_threads():
    inputs, threads = scan_inputs(2, 100, 80, 16), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(outputs_and_gradients(native.selective_scan, inputs, torch.float32, **FULL))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in other)


def test_wrong_arguments_are_refused_by_name():
    inputs = scan_inputs(1, 4, 6, 2)
    for name, value, message in [
        ("u", inputs["u"][..., :0], r"u has shape \(1, 4, 0\).*empty"),
        ("u", inputs["u"][0], r"u has shape \(4, 6\), expected \(b, d_inner, l\)"),
        ("B", inputs["B"][:, :1], r"B has shape \(1, 1, 6\), expected \(1, 2, 6\)"),
        ("z", inputs["z"].long(), r"z is torch.int64; pass float32"),
        ("C", inputs["C"].to("meta"), r"C is on meta"),
    ]:
        with pytest.raises(ValueError, match=message):
            native.selective_scan(**inputs | {name: value})
    chunked = chunk_inputs(1, 4, 3, 2, 3, 2)
    with pytest.raises(ValueError, match="3 heads cannot share 2 groups"):
        native.chunk_scan(**chunked | {name: chunked[name][:, :, :2] for name in "BC"})
    with pytest.raises(ValueError, match="dt_limit"):
        native.chunk_scan(**chunked, dt_limit=(1.0, 0.5))
