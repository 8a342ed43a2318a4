"""Rounding whole models: budgets are met, and what is measured, saved and packed are the same numbers."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import ARCHITECTURE_CASES, VOCABULARY, build_model, build_tokenizer
from transformers import AutoModelForCausalLM

from hf_mamba_prune import PruningConfig, native
from hf_mamba_prune.bits import widths
from hf_mamba_prune.bits.model import round_model
from hf_mamba_prune.bits.sensitivity import GROUPS, measure_sensitivity
from hf_mamba_prune.codings.grids import grids_of
from hf_mamba_prune.codings.storage import stored_bits
from hf_mamba_prune.models.targets import find_targets
from hf_mamba_prune.packed.checkpoint import load_packed, write_packed_model

SAMPLES, LENGTH = 6, 24


@pytest.fixture(scope="module")
def sequences() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))


def rounded(case: str, sequences: torch.Tensor, dtype: torch.dtype = torch.float32, **wanted):
    model = build_model(case).to(dtype)
    facts = round_model(model, find_targets(model), sequences, PruningConfig(**wanted), dtype)
    return model, facts


@pytest.mark.parametrize("case", ARCHITECTURE_CASES)
def test_bits_are_met_and_the_packed_model_is_the_rounded_one(case, sequences, tmp_path, monkeypatch):
    model, facts = rounded(case, sequences, bits=5.0)
    projections = {target.name for target in find_targets(model)}
    packed = grids_of(model)
    own = sum(stored_bits(grid) for name, grid in packed.items() if name in projections)
    assert facts.bits == pytest.approx(own / sum(target.size for target in find_targets(model)))
    assert 5.0 * 0.95 < facts.bits <= 5.0  # a row of a tiny model is a large part of it
    write_packed_model(tmp_path / "packed", model, build_tokenizer(), torch.float32, "rounded")
    unpacked = load_packed(tmp_path / "packed", unpack=True)
    for name, weight in model.state_dict().items():
        assert torch.equal(unpacked.state_dict()[name], weight), name
    ids = sequences[:1]
    kept = load_packed(tmp_path / "packed", unpack=False)
    dense, found = model.eval()(ids).logits, kept(ids).logits
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with native.force_instruction_set("portable") if native.available() else nullcontext():
        torch.testing.assert_close(kept(ids).logits, dense, rtol=1e-3, atol=1e-3)
    # AVX2 and AVX-512 round what codes meet to int8, or to bfloat16.
    assert (found - dense).norm() < 0.05 * dense.norm()


def test_a_bfloat16_model_saves_and_packs_the_same_numbers(sequences, tmp_path):
    model, _ = rounded("mamba", sequences, torch.bfloat16, bits=4.0)
    model.save_pretrained(tmp_path / "dense")
    write_packed_model(tmp_path / "packed", model, build_tokenizer(), torch.bfloat16, "rounded")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").state_dict()
    for name, weight in load_packed(tmp_path / "packed", unpack=True).state_dict().items():
        assert torch.equal(weight, dense[name]), name


def test_a_size_is_met_by_the_file(sequences, tmp_path):
    most, _ = rounded("mamba", sequences, bits=6.0)
    write_packed_model(tmp_path / "most", most, build_tokenizer(), torch.float32, "rounded")
    size = round(0.8 * (tmp_path / "most" / "model.safetensors").stat().st_size)
    model, facts = rounded("mamba", sequences, size=size)
    write_packed_model(tmp_path / "packed", model, build_tokenizer(), torch.float32, "rounded")
    found = (tmp_path / "packed" / "model.safetensors").stat().st_size
    assert 0.9 * size < found <= 1.01 * size
    assert facts.embedding_bits is None or 2.5 <= facts.embedding_bits <= 6.5


def test_zeros_that_a_budget_chose_are_packed_under_masks(sequences, tmp_path, monkeypatch):
    """A model of random weights has little to gain by zeros, so that masks are made to look free."""
    of_masks = widths._mask_curves

    def cheap(*arguments, **more):
        found = of_masks(*arguments, **more)
        return replace(found, losses=found.losses / 10)

    monkeypatch.setattr(widths, "_mask_curves", cheap)
    model, facts = rounded("mamba", sequences, bits=3.5)
    codings = {name: grid.coding for name, grid in grids_of(model).items()}
    under = [name for name, coding in codings.items() if coding.startswith("int")]
    assert under and "mixed" in codings.values()
    assert all(not model.get_parameter(name).all() for name in under)
    assert any(own.zeros > 0 for own in facts.components) and facts.bits <= 3.5
    without, _ = rounded("mamba", sequences, bits=3.5, zeros=False)
    assert {grid.coding for grid in grids_of(without).values()} == {"mixed"}
    write_packed_model(tmp_path / "packed", model, build_tokenizer(), torch.float32, "rounded")
    unpacked = load_packed(tmp_path / "packed", unpack=True).state_dict()
    assert all(torch.equal(unpacked[name], weight) for name, weight in model.state_dict().items())


def test_a_size_that_holds_no_model_is_refused(sequences):
    with pytest.raises(ValueError, match="a file of 2,000 bytes does not hold this model"):
        rounded("mamba", sequences, size=2000)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_kept_weights_of_a_sparse_model_are_rounded_under_its_masks(bits, sequences, tmp_path):
    model = build_model("mamba")
    targets = find_targets(model)
    for target in targets:
        weight = target.weight(model)
        weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.6] = 0
    zeros = {target.name: target.weight(model) == 0 for target in targets}
    round_model(model, targets, sequences, PruningConfig(0.6, code_bits=bits), torch.float32)
    for target in targets:
        weight = target.weight(model)
        assert torch.equal(weight == 0, zeros[target.name])
        assert grids_of(model)[target.name].coding == f"int{bits}"
    write_packed_model(tmp_path / "packed", model, build_tokenizer(), torch.float32, "rounded")
    unpacked = load_packed(tmp_path / "packed", unpack=True).state_dict()
    assert all(torch.equal(unpacked[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("zeros", [1, 20])
def test_few_zeros_of_a_sparse_model_stay_as_well_as_many(zeros, sequences):
    """A ranking of the whole model may take only some weights of a tensor, and none of another."""
    model = build_model("mamba")
    target, *others = find_targets(model)
    target.weight(model).view(-1)[:zeros] = 0
    facts = round_model(model, [target, *others], sequences, PruningConfig(0.01, code_bits=3), torch.float32)
    assert facts.expected_rise is None
    assert not target.weight(model).view(-1)[:zeros].any() and target.weight(model).view(-1)[zeros:].all()
    codings = [grids_of(model)[own.name].coding for own in (target, others[0])]
    assert codings == ["int3", "mixed"]


def test_weights_that_changed_since_are_not_packed_as_they_were(sequences, tmp_path):
    model, _ = rounded("mamba", sequences, bits=4.0)
    with torch.no_grad():
        find_targets(model)[0].weight(model)[0, 0] += 1
    with pytest.raises(ValueError, match="has changed since it was rounded"):
        write_packed_model(tmp_path / "packed", model, build_tokenizer(), torch.float32, "rounded")


@pytest.mark.parametrize("case", ARCHITECTURE_CASES)
def test_sensitivities_leave_the_model_as_it_was_and_see_every_target(case, sequences):
    model = build_model(case)
    before, modes = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    found = measure_sensitivity(model, find_targets(model), sequences, seed=0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == modes and all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for target in find_targets(model):
        own = found[target.name]
        assert own.rows.shape == (target.shape[0],) and own.rows.sum() > 0
        if own.tokens is not None:
            assert own.tokens.shape == (min(GROUPS, target.shape[0]), SAMPLES, LENGTH)
            torch.testing.assert_close(own.tokens.mean((1, 2)), torch.ones(len(own.tokens)))


def test_sensitivity_is_what_an_error_of_a_weight_costs(sequences):
    """The mean rise of the loss under small random changes of one weight, each as large as its input is small."""
    model = build_model("mamba").double().eval()
    target = next(target for target in find_targets(model) if target.component == "out_proj")
    many = torch.randint(0, VOCABULARY, (64, LENGTH), generator=torch.Generator().manual_seed(2))
    rows = measure_sensitivity(model, [target], many, seed=0)[target.name].rows.double()
    seen = []
    with torch.no_grad():
        module = model.get_submodule(target.name.removesuffix(".weight"))
        handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].square().mean((0, 1))))
        dense = model(input_ids=many).logits.log_softmax(-1)
        handle.remove()
        weight, generator, size, rises = target.weight(model), torch.Generator().manual_seed(3), 1e-3, []
        before = weight.clone()
        for _ in range(16):
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.copy_(before + size * noise / seen[0].sqrt())
            other = model(input_ids=many).logits.log_softmax(-1)
            rises.append(float((dense.exp() * (dense - other)).sum(-1).mean()))
    expected = 0.5 * size**2 * float(rows.sum()) * weight.shape[1]
    assert sum(rises) / len(rises) == pytest.approx(expected, rel=0.25)


@pytest.mark.slow
def test_rounding_is_the_same_whenever_it_is_done(sequences):
    first, again = (rounded("mamba", sequences, bits=3.0)[0].state_dict() for _ in range(2))
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())


def test_the_file_holds_codes_and_nothing_dense(sequences, tmp_path):
    model, _ = rounded("mamba", sequences, bits=3.0)
    write_packed_model(tmp_path / "packed", model, build_tokenizer(), torch.float32, "rounded")
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    assert all(tensors[target.name].dtype == torch.uint8 for target in find_targets(model))
