"""What does not fit is refused on the native side of the border, before a kernel reads or writes memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_mamba_prune import native
from hf_mamba_prune.native.library import CODES, CODINGS, MAX_BATCH, READABLE_BYTES, buffer, kernels, strided

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels are not built or switched off")

HUGE = 1 << 62


def isa() -> dict[str, Any]:
    return {"isa": native.active_instruction_set()}


def run() -> dict[str, Any]:
    return isa() | {"threads": 1}


def floats(*shape: int) -> Any:
    """Memory that lives as long as the test's process: refused calls must not depend on it."""
    return buffer(keep(torch.zeros(shape)))


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Any:
    return strided(keep(torch.zeros(shape, dtype=dtype)))


_kept: list[torch.Tensor] = []


def keep(own: torch.Tensor) -> torch.Tensor:
    _kept.append(own)
    return own


def refused(call: Any, fitting: dict[str, Any], change: dict[str, Any], message: str) -> None:
    """The call works as it is, and not with the change."""
    call(**fitting)
    with pytest.raises(ValueError, match=message):
        call(**fitting | change)


def test_the_table_of_codings_is_the_kernels():
    assert CODES == {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
    assert (MAX_BATCH, READABLE_BYTES) == (kernels().MAX_BATCH, kernels().READABLE_BYTES)


@pytest.mark.parametrize(
    "name", ["scan_forward", "conv_step", "range_histogram", "packed_product", "Matrix", "Buffer"]
)
def test_nothing_goes_over_by_position(name):
    with pytest.raises(TypeError):
        getattr(kernels(), name)(0, 0)


SCAN = {"batch": 2, "length": 5, "heads": 4, "head_dim": 8, "groups": 2, "states": 16, "per_head": True}
SCAN |= {"softplus": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({name: size}, "positive") for name in ("batch", "length", "heads", "groups", "states") for size in (0, -1)),
        ({"batch": HUGE}, "63 bits"),
        ({"groups": 3}, "3 groups do not divide 4 heads"),
        ({"per_head": False}, "one head and one group"),
        ({"step_min": 2.0, "step_max": 1.0}, "step_min is above step_max"),
    ],
)
def test_shapes_of_scans(change, message):
    refused(kernels().ScanShape, SCAN, change, message)


def scan(length: int = 5) -> dict[str, Any]:
    wide, shared = (2, length, 32), (2, length, 32)
    return {
        "shape": kernels().ScanShape(**SCAN | {"length": length}),
        "u": tensor(*wide),
        "delta": tensor(2, length, 4),
        "z": tensor(*wide),
        "B": tensor(*shared),
        "C": tensor(*shared),
        "A": floats(4),
        "D": floats(4),
        "bias": floats(4),
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *((name, lambda: tensor(2, 4, 32), f"{name} is \\(2, 4, 32\\)") for name in ("u", "delta", "z", "B", "C")),
        *((name, lambda: floats(3), f"{name} has 12 bytes, expected 4 values") for name in ("A", "D", "bias")),
        ("initial", lambda: floats(2, 32, 15), "initial has"),
        ("u", lambda: tensor(2, 5, 32, dtype=torch.float16), "u is float16, expected float32 or bfloat16"),
    ],
)
def test_inputs_of_scans(name, value, message):
    refused(kernels().ScanInputs, scan(), {name: value()}, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": lambda: tensor(2, 5, 31)}, "out is"),
        ({"last": lambda: floats(2, 32, 15)}, "last has"),
        ({"checkpoints": lambda: floats(2, 32, 16, 9)}, "checkpoints has"),
        ({"threads": lambda: 0}, "threads is 0"),
    ],
)
def test_what_a_scan_writes(change, message):
    fitting = run() | {"inputs": kernels().ScanInputs(**scan()), "out": tensor(2, 5, 32)}
    refused(kernels().scan_forward, fitting, {name: make() for name, make in change.items()}, message)


def backward() -> dict[str, Any]:
    inputs = scan()
    sizes = kernels().scan_sizes(**isa(), shape=inputs["shape"])
    return run() | {
        "inputs": kernels().ScanInputs(**inputs),
        "checkpoints": floats(2, sizes.tiles, 32, 16),
        "dout": tensor(2, 5, 32),
        "du": tensor(2, 5, 32),
        "dz": tensor(2, 5, 32),
        "dB": tensor(2, 5, 32),
        "dC": tensor(2, 5, 32),
        "dA": floats(2, sizes.blocks),
        "dD": floats(2, 32),
        "dbias": floats(2, sizes.blocks),
        "dstep": floats(2, 5, sizes.blocks),
        "dBC": floats(2, 2, sizes.shares, 5, 2, sizes.padded_states),
    }


@pytest.mark.parametrize("name", ["checkpoints", "dlast", "dA", "dD", "dbias", "dstep", "dBC"])
def test_memory_of_gradients(name):
    refused(kernels().scan_backward, backward(), {name: floats(7)}, f"{name} has 28 bytes")


@pytest.mark.parametrize("name", ["dout", "du", "dz", "dB", "dC"])
def test_shapes_of_gradients(name):
    refused(kernels().scan_backward, backward(), {name: tensor(2, 5, 31)}, f"{name} is")


@pytest.mark.parametrize("change", [{"dz": None}, {"dD": None}, {"dinitial": 1}])
def test_gradients_without_what_they_are_of(change):
    change = {name: value and floats(2, 32, 16) for name, value in change.items()}
    refused(kernels().scan_backward, backward(), change, "where z, D and initial are")
    refused(kernels().scan_backward, backward(), {"dstep": None}, "dstep is missing")


def test_steps_of_states():
    call, inputs = kernels().state_step, kernels().ScanInputs(**scan(length=1))
    fitting = run() | {"inputs": inputs, "state": floats(2, 32, 16), "out": tensor(2, 1, 32)}
    refused(call, fitting, {"state": floats(1, 32, 16)}, "state has")
    refused(call, fitting, {"out": tensor(1, 1, 32)}, "out is")
    refused(call, fitting, {"inputs": kernels().ScanInputs(**scan())}, "of length 1")


CONV = {"silu": True, "width": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": lambda: 0}, "weight has a size of 0"),
        ({"weight": lambda: floats(6, 3)}, "weight has"),
        ({"bias": lambda: floats(5)}, "bias has"),
        ({"out": lambda: tensor(2, 9, 7)}, "out is"),
        ({"x": lambda: tensor(2, 9, 6, dtype=torch.float16)}, "x is float16"),
    ],
)
def test_convolutions(change, message):
    change = {name: make() for name, make in change.items()}
    given = CONV | {"x": tensor(2, 9, 6), "weight": floats(6, 4), "bias": floats(6)}
    refused(kernels().conv_forward, run() | given | {"out": tensor(2, 9, 6)}, change, message)
    change = {"dout" if name == "out" else name: value for name, value in change.items()}
    gradients = {"dout": tensor(2, 9, 6), "dx": tensor(2, 9, 6), "dweight": floats(2, 6, 4), "dbias": floats(2, 6)}
    refused(kernels().conv_backward, run() | given | gradients, change, message)
    for name in ("dweight", "dbias"):
        refused(kernels().conv_backward, run() | given | gradients, {name: floats(6)}, f"{name} has 24 bytes")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 6}, "keeps 4 inputs, a convolution of width 6 needs 5"),
        ({"width": 5}, "weight has"),
        ({"state": (2, 4, 5)}, "x is"),
        ({"x": (1, 1, 6)}, "x is"),
        ({"out": (2, 2, 6)}, "out is"),
    ],
)
def test_steps_of_convolutions(change, message):
    change = {name: value if name == "width" else tensor(*value) for name, value in change.items()}
    fitting = isa() | CONV | {"state": tensor(2, 4, 6), "x": tensor(2, 1, 6), "out": tensor(2, 1, 6)}
    refused(kernels().conv_step, fitting | {"weight": floats(6, 4)}, change, message)


def test_rankings():
    values = {"values": floats(100), "coding": CODES[torch.float32]}
    longs, words = buffer(keep(torch.zeros(12, dtype=torch.int64))), buffer(keep(torch.zeros(12, dtype=torch.int32)))
    histogram = run() | values | {"low": 0, "shift": 20, "bins": 10, "counts": longs}
    for change, message in (
        ({"bins": 11}, "counts has 96 bytes, expected 13"),
        ({"bins": 0}, "positive"),
        ({"bins": HUGE}, "63 bits"),
        ({"shift": 32}, "shift is 32"),
        ({"low": 1 << 31}, "low is no key"),
        ({"coding": CODES[torch.int8]}, "values are int8"),
        *(({"coding": CODINGS[name]}, f"values are {name}") for name in ("mixed", "int1", "int4")),  # no whole bytes
        ({"coding": 99}, "coding 99"),
        ({"values": buffer(keep(torch.zeros(3, dtype=torch.int8)))}, "not whole values"),
    ):
        refused(kernels().range_histogram, histogram, change, message)
    above = run() | values | {"threshold": 5, "keep": buffer(keep(torch.zeros(100, dtype=torch.bool)))}
    refused(kernels().keep_above, above, {"keep": words}, "keep has 48 bytes, expected 100")
    between = run() | values | {"low": 3, "high": 5, "positions": longs, "keys": words}
    refused(kernels().between, between, {"keys": longs}, "keys has 96 bytes, expected 12")
    refused(kernels().between, between, {"low": 6}, "low is above high")


def test_buffers_and_tensors():
    with pytest.raises(ValueError, match="no negative size"):
        kernels().Buffer(address=64, bytes=-1)
    fitting = {"address": 64, "coding": 0, "shape": (1, 2, 3), "strides": (6, 3, 1)}
    for change, message in (
        ({"shape": (1, 0, 3)}, "positive"),
        ({"shape": (HUGE, 2, 3)}, "63 bits"),
        ({"coding": -1}, "coding -1"),
        ({"address": 0}, "no memory"),
    ):
        refused(kernels().Strided, fitting, change, message)
