"""Packed matrices and models whose parts do not fit each other are refused on the native side of the border."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_mamba_prune import native
from hf_mamba_prune.codings.tensors import pack_tensor
from hf_mamba_prune.native.codes import LEVELS
from hf_mamba_prune.native.library import CODES, CODINGS, MAX_BATCH, READABLE_BYTES, buffer, kernels
from hf_mamba_prune.native.packed import PackedMatrix

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels are not built or switched off")

_kept: list[Any] = []


def held(own: torch.Tensor) -> Any:
    """A buffer of memory that lives as long as the tests do."""
    _kept.append(own)
    return buffer(own)


def floats(*shape: int) -> Any:
    return held(torch.zeros(shape))


def run() -> dict[str, Any]:
    return {"isa": native.active_instruction_set(), "threads": 1}


def parts(coding: torch.dtype = torch.float32, masked: bool = True) -> dict[str, Any]:
    """A matrix (3, 70) that keeps columns 0, 1 and 69 of each row, or all of them."""
    count = 9 if masked else 210
    values = torch.zeros(count * coding.itemsize + READABLE_BYTES, dtype=torch.uint8)
    given = {"rows": 3, "columns": 70, "coding": CODES[coding], "values": held(values)}
    if masked:
        given |= {"masks": held(torch.tensor([[3, 1 << 5]] * 3)), "starts": starts(0, 3, 6)}
    return given | ({"scales": floats(3)} if coding == torch.int8 else {})


def starts(*at: int) -> Any:
    return held(torch.tensor(at, dtype=torch.int32))


def refused(call: Any, fitting: dict[str, Any], change: dict[str, Any], message: str) -> None:
    call(**fitting)
    with pytest.raises(ValueError, match=message):
        call(**fitting | change)


@pytest.mark.parametrize("coding", CODES, ids=str)
@pytest.mark.parametrize("masked", [True, False])
def test_values_of_a_matrix(coding, masked):
    fitting = parts(coding, masked)
    beyond = masked or coding == torch.int8  # floats of which none is left out need nothing behind them
    needed = fitting["values"].bytes - (0 if beyond else READABLE_BYTES)
    kernels().Matrix(**fitting | {"values": held(torch.zeros(needed, dtype=torch.uint8))})
    short = held(torch.zeros(needed - 1, dtype=torch.uint8))
    refused(kernels().Matrix, fitting, {"values": short}, "values has .* behind them" if beyond else "values has")
    refused(kernels().Matrix, fitting, {"scales": None if "scales" in fitting else floats(3)}, "scales must")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": lambda: 0}, "positive"),
        ({"columns": lambda: -70}, "positive"),
        ({"rows": lambda: 1 << 61}, "63 bits"),
        ({"rows": lambda: 2}, "masks has 48 bytes, expected 4 values of 8"),
        ({"columns": lambda: 64}, "masks has"),
        ({"columns": lambda: 69}, "bits beyond its 69 columns"),
        ({"coding": lambda: 99}, "coding 99"),
        ({"masks": lambda: None}, "masks and starts belong together"),
        ({"starts": lambda: None}, "masks and starts belong together"),
        ({"starts": lambda: starts(0, 3)}, "starts has 8 bytes"),
        ({"starts": lambda: starts(0, 4, 6)}, "row 1 starts at value 4, the masks before it keep 3"),
        ({"starts": lambda: starts(0, 3, -1)}, "row 2 starts at value 4294967295"),
        ({"starts": lambda: starts(1, 3, 6)}, "row 0 starts at value 1"),
    ],
)
def test_parts_of_a_matrix(change, message):
    refused(kernels().Matrix, parts(), {name: make() for name, make in change.items()}, message)


def test_scales_of_a_matrix():
    refused(kernels().Matrix, parts(torch.int8), {"scales": floats(2)}, "scales has 8 bytes, expected 3 values")


def test_values_that_the_door_is_given_must_be_those_of_the_mask():
    packed = pack_tensor(torch.eye(5, 70))
    with pytest.raises(ValueError, match="has 2 values, expected 5"):
        PackedMatrix(packed.shape, packed.mask, packed.values[:2])


def bytes_of(*own: int) -> Any:
    return held(torch.tensor(own, dtype=torch.int8 if min(own) < 0 else torch.uint8))


def places(*at: int) -> Any:
    return held(torch.tensor(at, dtype=torch.int64))


CODE_BYTES = {"mixed": 16 * (0 + 3 + 6), "int1": 8, "int2": 16, "int3": 24, "int4": 32}
"""Of the matrix (3, 70), two words a row: rows of 0, 3 and 6 bits, or planes of bits over the 9 that masks keep."""


def coded(coding: str) -> dict[str, Any]:
    """The same matrix in codes."""
    given = {"rows": 3, "columns": 70, "coding": CODINGS[coding], "scales": floats(3), "column_scales": floats(70)}
    given |= {"values": held(torch.zeros(CODE_BYTES[coding] + READABLE_BYTES, dtype=torch.uint8))}
    given |= {"levels": bytes_of(-32, 31, *[0] * (LEVELS - 2))}
    if coding == "mixed":
        return given | {"row_bits": bytes_of(0, 3, 6), "row_starts": places(0, 0, 48)}
    return given | {"masks": masks(1 << 40), "starts": starts(0, 3, 6)}


def masks(last: int) -> Any:
    """Of three rows of two words; in a mask of codes bit 8 of the last is its column 1."""
    return held(torch.tensor([[3, last]] * 3))


@pytest.mark.parametrize("coding", CODE_BYTES)
def test_codes_of_a_matrix(coding):
    fitting = coded(coding)
    short = held(torch.zeros(CODE_BYTES[coding] + READABLE_BYTES - 1, dtype=torch.uint8))
    refused(kernels().Matrix, fitting, {"values": short}, f"values has .* as {coding} and READABLE_BYTES behind them")
    kernels().Matrix(**fitting | {"column_scales": None})
    for change, message in (
        ({"scales": None}, f"scales must be given with {coding}"),
        ({"scales": floats(2)}, "scales has 8 bytes, expected 3 values"),
        ({"column_scales": floats(69)}, "column_scales has 276 bytes, expected 70 values"),
        ({"column_scales": held(torch.zeros(70, dtype=torch.bfloat16))}, "column_scales has 140 bytes"),
        ({"levels": None}, "levels is missing"),
        ({"levels": bytes_of(*[0] * (LEVELS - 1))}, "levels has 61 bytes, expected 62 values"),
        ({"levels": bytes_of(*[0] * (LEVELS + 1))}, "levels has 63 bytes"),
        ({"levels": bytes_of(*[0] * (LEVELS - 1), 32)}, "a level is 32, expected -32 to 31"),
        ({"levels": bytes_of(-33, *[0] * (LEVELS - 1))}, "a level is -33"),
    ):
        refused(kernels().Matrix, fitting, change, message)


@pytest.mark.parametrize("columns", [1, 8, 12, 63])
def test_codes_of_a_narrow_matrix_fill_bytes(columns):
    fitting = coded("mixed") | {"columns": columns, "column_scales": None, "row_bits": bytes_of(1, 5, 2)}
    width = -(-columns // 8)
    fitting |= {"row_starts": places(0, width, 6 * width)}
    exact = [held(torch.zeros(8 * width + READABLE_BYTES - less, dtype=torch.uint8)) for less in (0, 1)]
    refused(kernels().Matrix, fitting | {"values": exact[0]}, {"values": exact[1]}, "values has")
    refused(kernels().Matrix, fitting, {"row_starts": places(0, 8, 48)} if width < 8 else {"columns": 64 * 8}, "row")


@pytest.mark.parametrize(
    ("coding", "change", "message"),
    [
        ("mixed", {"row_bits": lambda: bytes_of(0, 3)}, "row_bits has 2 bytes, expected 3 values"),
        ("mixed", {"row_bits": lambda: bytes_of(0, 3, 6, 0)}, "row_bits has 4 bytes"),
        ("mixed", {"row_bits": lambda: bytes_of(0, 3, 7)}, "row 2 has codes of 7 bits"),
        ("mixed", {"row_bits": lambda: bytes_of(255, 3, 6)}, "row 0 has codes of 255 bits"),
        ("mixed", {"row_bits": lambda: bytes_of(0, 4, 6)}, "row 2 starts at byte 48, those before it end at 64"),
        ("mixed", {"row_bits": lambda: None}, "mixed has widths of rows and no masks"),
        ("mixed", {"row_starts": lambda: None}, "mixed has widths of rows and no masks"),
        ("mixed", {"row_starts": lambda: places(0, 0)}, "row_starts has 16 bytes, expected 3 values"),
        ("mixed", {"row_starts": lambda: places(0, 0, 40)}, "row 2 starts at byte 40, those before it end at 48"),
        ("mixed", {"row_starts": lambda: places(8, 0, 48)}, "row 0 starts at byte 8"),
        ("mixed", {"row_starts": lambda: places(0, -1, 48)}, "row 1 starts at byte 18446744073709551615"),
        ("mixed", {"masks": lambda: masks(1 << 40), "starts": lambda: starts(0, 3, 6)}, "and no masks"),
        ("mixed", {"masks": lambda: parts()["masks"]}, "masks and starts belong together"),
        ("mixed", {"columns": lambda: 71}, "column_scales has"),
        ("mixed", {"rows": lambda: 1 << 61}, "63 bits"),
        ("int2", {"masks": lambda: None, "starts": lambda: None}, "int2 has masks and no widths of rows"),
        ("int2", {"starts": lambda: None}, "masks and starts belong together"),
        ("int2", {"starts": lambda: starts(0, 4, 6)}, "row 1 starts at value 4, the masks before it keep 3"),
        ("int2", {"masks": lambda: masks(2)}, "bits beyond its 70 columns"),
        ("int2", {"columns": lambda: 69, "column_scales": lambda: None}, "bits beyond its 69 columns"),
        ("int2", {"row_bits": lambda: bytes_of(2, 2, 2)}, "int2 has masks and no widths of rows"),
        ("int2", {"row_starts": lambda: places(0, 0, 0)}, "int2 has masks and no widths of rows"),
        ("int4", {"coding": lambda: CODINGS["mixed"]}, "mixed has widths of rows and no masks"),
        ("int4", {"coding": lambda: CODINGS["int8"], "masks": lambda: masks(1)}, "must not be given with int8"),
        ("int3", {"coding": lambda: CODINGS["int4"]}, "values has 88 bytes, expected the codes of 9 weights as int4"),
    ],
)
def test_widths_and_masks_of_codes(coding, change, message):
    refused(kernels().Matrix, coded(coding), {name: make() for name, make in change.items()}, message)


@pytest.mark.parametrize("coding", CODES, ids=str)
@pytest.mark.parametrize("name", ["levels", "column_scales", "row_bits", "row_starts"])
def test_what_belongs_to_codes_is_not_taken_with_other_values(coding, name):
    other = coded("mixed")[name]
    for masked in (True, False):
        refused(kernels().Matrix, parts(coding, masked), {name: other}, "must not be given with")


@pytest.mark.parametrize("coding", CODE_BYTES)
def test_codes_are_nothing_that_rows_are_written_as(coding):
    rows = run() | {"matrix": kernels().Matrix(**coded(coding)), "count": 3, "coding": CODES[torch.float32]}
    refused(kernels().packed_rows, rows | {"out": floats(3, 70)}, {"coding": CODINGS[coding]}, "cannot be written as")


def test_products_and_rows():
    matrix = kernels().Matrix(**parts())
    product = run() | {"matrix": matrix, "batch": 2, "vectors": floats(2, 70), "out": floats(2, 3)}
    refused(kernels().packed_product, product, {"vectors": floats(2, 69)}, "vectors has")
    refused(kernels().packed_product, product, {"out": floats(2, 4)}, "out has")
    for batch in (0, -1):
        refused(kernels().packed_product, product, {"batch": batch}, "expected at least 1")
    refused(kernels().packed_product, product, {"batch": 2**60}, "vectors")
    rows = run() | {"matrix": matrix, "first": 1, "count": 2, "coding": CODES[torch.float32], "out": floats(2, 70)}
    refused(kernels().packed_rows, rows, {"coding": CODES[torch.bfloat16]}, "out has")
    refused(kernels().packed_rows, rows, {"coding": CODES[torch.int8]}, "rows cannot be written as int8")
    refused(kernels().packed_rows, rows, {"rows": held(torch.tensor([0]))}, "rows has 8 bytes, expected 2")
    for change in ({"first": 2}, {"first": -1}, {"count": -1}, {"rows": held(torch.tensor([0, 3]))}):
        with pytest.raises((IndexError, ValueError), match="not among the 3|positive"):
            kernels().packed_rows(**rows | change)


def matrix(rows: int, columns: int) -> Any:
    own = PackedMatrix((rows, columns), None, torch.zeros(rows * columns))
    _kept.append(own)
    return own.handle


SIZES = {"d_model": 8, "d_inner": 16, "states": 4, "conv_width": 3, "norm_eps": 1e-5}
MAMBA1 = SIZES | {"rank": 2}
MAMBA2 = SIZES | {"heads": 4, "groups": 2}


def whole(sizes: dict[str, Any]) -> dict[str, Any]:
    return sizes | {"embeddings": matrix(20, 8), "head": matrix(20, 8), "final_norm": floats(8)}


@pytest.mark.parametrize(
    ("sizes", "change", "message"),
    [
        *((MAMBA1, {name: 0}, f"{name} is 0") for name in ("d_model", "d_inner", "states", "conv_width", "rank")),
        *((MAMBA1, {name: 1 << 60}, f"{name} is") for name in ("d_inner", "states", "conv_width", "rank")),
        (MAMBA1, {"groups": 2}, "either heads and groups or a rank"),
        (MAMBA2, {"rank": 2}, "either heads and groups or a rank"),
        (MAMBA2, {"groups": 3}, "3 groups must divide 4 heads"),
        (MAMBA2, {"heads": 6}, "6 heads, and these d_inner, 16"),
        (MAMBA2, {"heads": -1}, "heads is -1"),
        (MAMBA2, {"step_min": 2.0, "step_max": 1.0}, "step_min is above"),
        (MAMBA1, {"norm_eps": float("nan")}, "norm_eps"),
        (MAMBA1, {"embeddings": (20, 9)}, r"embeddings is \(20, 9\), expected \(20, 8\)"),
        (MAMBA1, {"embeddings": (19, 8)}, "embeddings is"),
        (MAMBA1, {"head": (20, 9)}, r"head is \(20, 9\)"),
        (MAMBA1, {"final_norm": 7}, "final_norm has 28 bytes"),
    ],
)
def test_sizes_of_a_model(sizes, change, message):
    made = {"embeddings": lambda size: matrix(*size), "head": lambda size: matrix(*size), "final_norm": floats}
    change = {name: made[name](value) if name in made else value for name, value in change.items()}
    refused(kernels().PackedModel, whole(sizes), change, message)


def layer(sizes: dict[str, Any]) -> dict[str, Any]:
    if sizes is MAMBA2:
        given = {"in_proj": matrix(16 + 32 + 4, 8), "gate_norm": floats(16)}
        channels, steps, rates, rows = 32, 4, 4, 52
    else:
        given = {"in_proj": matrix(32, 8), "x_proj": matrix(2 + 2 * 4, 16), "dt_proj": matrix(16, 2)}
        channels, steps, rates, rows = 16, 16, 16 * 4, 32
    return given | {
        "out_proj": matrix(8, 16),
        "norm": floats(8),
        "in_bias": floats(rows),
        "conv_weight": floats(channels, 3),
        "conv_bias": floats(channels),
        "dt_bias": floats(steps),
        "A": floats(rates),
        "D": floats(steps),
        "out_bias": floats(8),
    }


@pytest.mark.parametrize("sizes", [MAMBA1, MAMBA2], ids=["mamba", "mamba2"])
def test_parts_of_a_layer(sizes):
    model, fitting = kernels().PackedModel(**whole(sizes)), layer(sizes)
    for name in fitting:
        wrong, message = (matrix(5, 7), "is") if "_proj" in name else (floats(5), "has 20 bytes")
        refused(model.add_layer, fitting, {name: wrong}, f"{name} {message}")
    if sizes is MAMBA1:
        refused(model.add_layer, fitting, {"x_proj": None}, "x_proj must be given in Mamba-1")
        refused(model.add_layer, fitting, {"gate_norm": floats(16)}, "gate_norm must be given in Mamba-2 and only")
    else:
        refused(model.add_layer, fitting, {"x_proj": matrix(4, 16)}, "x_proj must not be given")
        refused(model.add_layer, fitting, {"gate_norm": None}, "gate_norm must be given in Mamba-2")


def step_of(model: Any, batch: int = 2) -> dict[str, Any]:
    cache = kernels().TokenCache(model=model, batch=3, windows=[floats(3, 16, 3)], states=[floats(3, 16, 4)])
    return run() | {
        "tokens": held(torch.tensor([0, 19][:batch])),
        "cache": cache,
        "logits": floats(batch, 20),
        "memory": floats(model.memory(batch=batch)),
    }


def made(layers: int = 1) -> Any:
    model = kernels().PackedModel(**whole(MAMBA1))
    for _ in range(layers):
        model.add_layer(**layer(MAMBA1))
    return model


def test_caches():
    model = made()
    fitting = {"model": model, "batch": 2, "windows": [floats(2, 16, 3)], "states": [floats(2, 16, 4)]}
    for change, message in (
        ({"windows": []}, "windows are of 0 layers, the model has 1"),
        ({"windows": [floats(2, 16, 2)]}, "windows has"),
        ({"states": [floats(1, 16, 4)]}, "states has"),
        ({"batch": 0}, "positive"),
        ({"batch": 1 << 60}, "63 bits"),
    ):
        refused(kernels().TokenCache, fitting, change, message)


def test_steps():
    model = made()
    fitting = step_of(model)
    for change, message in (
        ({"logits": floats(1, 20)}, "logits has"),
        ({"memory": floats(9)}, "memory has 36 bytes"),
        ({"first": 2}, "sequences 2 to 3 are not all among the 3"),
        ({"first": -1}, "sequences -1"),
        ({"tokens": held(torch.zeros(0, dtype=torch.int64))}, "0 sequences"),
        ({"tokens": held(torch.zeros(MAX_BATCH + 1, dtype=torch.int64))}, "9 sequences"),
        ({"cache": step_of(made(layers=1), 1)["cache"], "threads": 0}, "threads is 0"),
    ):
        refused(model.step, fitting, change, message)
    for token in (-1, 20):
        with pytest.raises(IndexError, match=f"token {token} is not among 20"):
            model.step(**fitting | {"tokens": held(torch.tensor([0, token]))})
    with pytest.raises(ValueError, match="the cache was made for a model of other sizes"):
        made(layers=2).step(**fitting)
    with pytest.raises(ValueError, match="1 to MAX_BATCH"):
        model.memory(batch=MAX_BATCH + 1)
