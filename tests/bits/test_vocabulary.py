"""Embeddings and head: rows of common tokens get more bits, what they cost is foretold, and sizes are exact."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import VOCABULARY, build_model

from hf_mamba_prune.bits.outer import Outer
from hf_mamba_prune.bits.vocabulary import TOKEN_WIDTHS, outer_parameters, token_curves
from hf_mamba_prune.codings.blobs import to_blob
from hf_mamba_prune.codings.grids import put_on_grids
from hf_mamba_prune.repair.divergence import divergence

UNTIED = "mamba2"


@pytest.fixture(scope="module")
def sequences() -> torch.Tensor:
    """Of which the first half of the vocabulary is all."""
    return torch.randint(0, VOCABULARY // 2, (8, 24), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def lost(model, dense, sequences: torch.Tensor) -> float:
    found, wanted = (own.eval()(input_ids=sequences).logits.flatten(0, 1) for own in (model, dense))
    return float(divergence(found, wanted)) / len(found)


@pytest.mark.parametrize("bits", TOKEN_WIDTHS)
def test_curves_foretell_what_rounding_costs(bits, sequences):
    model = build_model("mamba").float()
    dense = copy.deepcopy(model)
    curves = token_curves(model, sequences, seed=0)
    (name,) = curves
    widths = torch.full((VOCABULARY,), bits, dtype=torch.uint8)
    outer = Outer(model, torch.float32, curves)
    chosen = type(outer.at(0.0))(widths={name: widths}, file_bytes=0, expected=0.0)
    put_on_grids(model, outer.rounded(chosen))
    assert lost(model, dense, sequences) == pytest.approx(curves[name].loss(widths), rel=0.6)


def test_fewer_bits_are_expected_to_cost_more_and_take_less(sequences):
    model = build_model("mamba")
    outer = Outer(model, torch.float32, token_curves(model, sequences, seed=0))
    found = [outer.at(price) for price in (0.0, 1e-9, 1e-7, 1e-5, 1.0)]
    assert found[0].bits == max(TOKEN_WIDTHS) and found[-1].bits == min(TOKEN_WIDTHS)
    for richer, poorer in zip(found, found[1:], strict=False):
        assert richer.expected <= poorer.expected and richer.file_bytes >= poorer.file_bytes
    least, most = found[0].expected, found[-1].expected
    within = outer.within((least + most) / 2)
    assert least < within.expected <= (least + most) / 2 and within.file_bytes < found[0].file_bytes
    assert outer.within(0.0).bits == max(TOKEN_WIDTHS)


def test_rows_that_are_looked_up_get_more_bits(sequences):
    model = build_model(UNTIED)
    curves = token_curves(model, sequences, seed=0)
    assert set(curves) == set(outer_parameters(model)) and len(curves) == 2
    (lookups,) = (own for own in curves.values() if own.inputs is None)
    common = torch.bincount(sequences.flatten(), minlength=VOCABULARY).argsort(descending=True)
    prices = torch.logspace(-12, -2, 40).tolist()
    means = [lookups.widths(price).float()[common] for price in prices]
    often, seldom = (torch.stack([own[part].mean() for own in means]) for part in (slice(0, 10), slice(-10, None)))
    assert (often >= seldom).all() and (often > seldom).any()


@pytest.mark.parametrize("case", ("mamba", UNTIED))
def test_sizes_are_those_of_the_packed_weights(case, sequences):
    model = build_model(case)
    outer = Outer(model, torch.float32, token_curves(model, sequences, seed=0))
    rich, poor = outer.at(1e-9), outer.at(1.0)
    sizes = [sum(to_blob(own).numel() for own in outer.rounded(chosen).values()) for chosen in (rich, poor)]
    assert rich.file_bytes - poor.file_bytes == sizes[0] - sizes[1]
    dense = sum(weight.numel() * 4 for weight in outer_parameters(model).values())
    assert outer.as_they_are().file_bytes - poor.file_bytes >= dense - sizes[1]
    assert outer.as_they_are().bits is None
