"""Embeddings and head: rows of common tokens get more bits, what they cost is foretold, and sizes are exact."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import VOCABULARY, build_model

from hf_mamba_prune import PruningConfig
from hf_mamba_prune.bits import model as bits_model
from hf_mamba_prune.bits.model import measure_rows, round_model
from hf_mamba_prune.bits.outer import Outer, OuterWeights
from hf_mamba_prune.bits.sensitivity import measure_sensitivity
from hf_mamba_prune.bits.vocabulary import TOKEN_WIDTHS, TokenUse, outer_parameters
from hf_mamba_prune.codings.grids import grids_of, put_on_grids
from hf_mamba_prune.codings.storage import stored_bits
from hf_mamba_prune.codings.tensors import pack_tensor
from hf_mamba_prune.models.targets import find_targets
from hf_mamba_prune.repair.divergence import divergence

UNTIED = "mamba2"


def mean_width(chosen) -> float:
    return float(torch.cat([*chosen.widths.values()]).float().mean())


@pytest.fixture(scope="module")
def sequences() -> torch.Tensor:
    """Of which the first half of the vocabulary is all."""
    return torch.randint(0, VOCABULARY // 2, (8, 24), generator=torch.Generator().manual_seed(0))


def token_curves(model, sequences):
    use = TokenUse(model)
    with use.shown():
        measure_sensitivity(model, find_targets(model), sequences, seed=0)
    return use.curves()


@torch.no_grad()
def lost(model, dense, sequences: torch.Tensor) -> float:
    found, wanted = (own.eval()(input_ids=sequences).logits.flatten(0, 1) for own in (model, dense))
    return float(divergence(found, wanted)) / len(found)


@pytest.mark.parametrize("case", ("mamba", UNTIED))
@pytest.mark.parametrize("bits", TOKEN_WIDTHS)
def test_curves_foretell_what_rounding_costs(bits, case, sequences):
    model = build_model(case).float()
    dense = copy.deepcopy(model)
    curves = token_curves(model, sequences)
    outer = Outer(model, torch.float32, curves)
    for name, own in curves.items():
        widths = torch.full((VOCABULARY,), bits, dtype=torch.uint8)
        model.load_state_dict(dense.state_dict())
        put_on_grids(model, outer.rounded(OuterWeights(widths={name: widths}, file_bytes=0)))
        assert lost(model, dense, sequences) == pytest.approx(own.loss(widths), rel=0.6), name


def test_fewer_bits_are_expected_to_cost_more_and_take_less(sequences):
    model = build_model("mamba")
    outer = Outer(model, torch.float32, token_curves(model, sequences))
    found = [outer.at(price) for price in (0.0, 1e-9, 1e-7, 1e-5, 1.0)]
    assert mean_width(found[0]) == max(TOKEN_WIDTHS) and mean_width(found[-1]) == min(TOKEN_WIDTHS)
    for richer, poorer in zip(found, found[1:], strict=False):
        assert richer.expected <= poorer.expected and richer.file_bytes >= poorer.file_bytes
    least, most = found[0].expected, found[-1].expected
    within = outer.within((least + most) / 2)
    assert least < within.expected <= (least + most) / 2 and within.file_bytes < found[0].file_bytes
    assert mean_width(outer.within(0.0)) == max(TOKEN_WIDTHS)


def test_rows_that_are_looked_up_get_more_bits(sequences):
    model = build_model(UNTIED)
    curves = token_curves(model, sequences)
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
    outer = Outer(model, torch.float32, token_curves(model, sequences))
    rich, poor = outer.at(1e-9), outer.at(1.0)
    sizes = [outer.file_bytes(chosen, outer.rounded(chosen)) for chosen in (rich, poor)]
    assert rich.file_bytes - poor.file_bytes == pytest.approx(sizes[0] - sizes[1], rel=0.15)
    for share in (0.0, 0.9):  # without a mask and with one
        for weight in outer_parameters(model).values():
            weight.data[torch.rand(weight.shape) < share] = 0
        dense = sum(stored_bits(pack_tensor(weight)) for weight in outer_parameters(model).values()) // 8
        rounded = sum(map(stored_bits, outer.rounded(poor).values())) // 8
        whole = outer.as_they_are()
        assert not whole.widths
        assert whole.file_bytes - outer.file_bytes(poor, outer.rounded(poor)) == dense - rounded


def test_bits_leave_a_small_share_of_the_loss_to_embeddings(sequences):
    model = build_model("mamba")
    measured = measure_rows(model, find_targets(model), sequences, PruningConfig(bits=2.5))
    outer = Outer(model, torch.float32, measured.tokens)
    plan = bits_model._plan(find_targets(model), measured.curves, outer, PruningConfig(bits=2.0))
    share = bits_model._OUTER_SHARE * plan.budget.expected
    assert 0.8 * share < plan.outer.expected <= share and mean_width(plan.outer) < 6
    rich = bits_model._plan(find_targets(model), measured.curves, outer, PruningConfig(bits=6.0))
    assert mean_width(rich.outer) > mean_width(plan.outer)


@pytest.mark.parametrize("case", ("mamba", UNTIED))
def test_a_size_is_divided_better_than_by_one_width_of_embeddings(case, sequences):
    model = build_model(case)
    targets = find_targets(model)
    measured = measure_rows(model, targets, sequences, PruningConfig(bits=2.5))
    outer = Outer(model, torch.float32, measured.tokens)
    held = sum(map(bits_model._overhead, targets))
    size = outer.at(0.0).file_bytes + (held + 2 * sum(own.size for own in targets)) // 8
    plan = bits_model._plan(targets, measured.curves, outer, PruningConfig(size=size))
    for price in (0.0, 1.0):
        alike = outer.at(price)
        left = bits_model.BitBudget(measured.curves, 8 * (size - alike.file_bytes) - held)
        assert plan.expected <= left.expected + alike.expected
    huge = bits_model._plan(targets, measured.curves, outer, PruningConfig(size=10_000_000))
    assert not huge.outer.widths and huge.outer.expected == 0.0


def test_kept_weights_of_one_width_leave_six_bits_to_embeddings(sequences):
    model = build_model("mamba")
    facts = round_model(model, find_targets(model), sequences, PruningConfig(0.5, code_bits=2), torch.float32)
    (embeddings,) = (own for name, own in grids_of(model).items() if name in outer_parameters(model))
    assert set(embeddings.widths().tolist()) == {6} and 4.5 < facts.embedding_bits < 6.5  # with scales


def test_more_embeddings_than_tokens_are_counted(sequences):
    model = build_model("mamba")
    model.resize_token_embeddings(VOCABULARY + 8)
    model.config.vocab_size = VOCABULARY
    (curves,) = token_curves(model, sequences).values()
    assert len(curves.losses) == VOCABULARY + 8 and torch.isfinite(curves.losses).all()


def test_what_is_not_finite_is_refused(sequences):
    use = TokenUse(build_model("mamba"))
    use._gradient = float("nan")
    with pytest.raises(RuntimeError, match="no finite predictions or gradients"):
        use.curves()


def test_what_is_rounded_are_embeddings_and_head(sequences):
    model = build_model(UNTIED)
    round_model(model, find_targets(model), sequences, PruningConfig(bits=4.0), torch.float32)
    assert set(outer_parameters(model)) <= set(grids_of(model))
