"""Block by block: each weight is reconstructed on what the pruned blocks before it really give it."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import VOCABULARY, build_model

from hf_mamba_prune.masks.calibration import observe
from hf_mamba_prune.models.blocks import MemoryBlocks
from hf_mamba_prune.models.targets import find_targets
from hf_mamba_prune.repair import blocks as repairing
from hf_mamba_prune.repair.blocks import repair
from hf_mamba_prune.repair.least_squares import reconstruct

SEQUENCES = torch.randint(VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(4))
COMPONENTS = {"mamba": ("in_proj", "conv1d", "x_proj", "dt_proj", "D", "out_proj")}


def half(target):
    draw = torch.rand(target.shape, generator=torch.Generator().manual_seed(len(target.name)))
    return draw < 0.5


def repaired(model, targets, mask_of=half, bf16=False):
    dense = {target.name: target.weight(model).clone() for target in targets}
    return dense, repair(MemoryBlocks(model), targets, mask_of, dense, SEQUENCES, 0.01, bf16)


def test_blocks_one_after_the_other_are_the_model(model):
    blocks = MemoryBlocks(model)
    with torch.no_grad():
        state = blocks.embed(SEQUENCES)
        for index in range(len(blocks)):
            with blocks.block(index) as block:
                state = block(state)
            assert f"{blocks.prefix(index)}mixer.in_proj.weight" in model.state_dict()
        expected = model.base_model(SEQUENCES, use_cache=False).last_hidden_state
        norm = model.base_model.get_submodule("norm_f")
        torch.testing.assert_close(norm(state), expected)


def test_every_architecture_keeps_its_masks_and_loses_less_than_by_masks_alone(case):
    model = build_model(case)
    targets = find_targets(model, COMPONENTS.get(case, ()))
    dense, facts = repaired(model, targets)
    for target in targets:
        weight = target.weight(model)
        assert (weight[~half(target)] == 0).all() and (weight[half(target)] != 0).all()
    linear = [target for target in targets if target.kind == "linear"]
    assert [fact.name for fact in facts] == [target.name for target in linear]
    assert all(0 < fact.after < fact.before < 1 for fact in facts)
    assert all(not torch.equal(t.weight(model), dense[t.name] * half(t)) for t in linear)
    for target in targets:
        if target.kind != "linear":
            assert torch.equal(target.weight(model), dense[target.name] * half(target))


def test_inputs_are_those_of_the_pruned_model():
    model = build_model("mamba")
    targets = find_targets(model)
    dense, _ = repaired(model, targets)
    last = [target for target in targets if target.component == "out_proj"][-1]
    inputs = []
    with torch.no_grad(), observe(model, last.tap, inputs.append):
        model(SEQUENCES, use_cache=False)
    rows = torch.cat(inputs).flatten(0, 1).double()
    found = reconstruct(dense[last.name], half(last), rows.T @ rows / len(rows), 0.01)
    torch.testing.assert_close(found.weight, last.weight(model), rtol=1e-3, atol=1e-4)


def test_masks_are_asked_for_once_and_before_the_weight_changes():
    model = build_model("mamba")
    before = copy.deepcopy(model.state_dict())
    asked = []

    def mask_of(target):
        asked.append(target.name)
        assert torch.equal(target.weight(model), before[target.name].view(target.shape))
        return half(target)

    targets = find_targets(model)
    repaired(model, targets, mask_of)
    assert asked == [target.name for target in targets]


def test_only_one_stage_of_hessians_is_in_memory(monkeypatch):
    model = build_model("mamba")
    sizes = []

    def watched(block, prefix, targets, states, tokens):
        sizes.append(len(targets))
        return hessians(block, prefix, targets, states, tokens)

    hessians = repairing._hessians
    monkeypatch.setattr(repairing, "_hessians", watched)
    repaired(model, find_targets(model))
    assert sizes == [1, 2, 1] * 2


def test_a_tap_that_never_fires_stops_the_run_and_leaves_no_hook():
    model = build_model("mamba")
    targets = find_targets(model, ("dt_proj",))
    wrong = [copy.copy(target) for target in targets]
    for target in wrong:
        tap = copy.copy(target.tap)
        object.__setattr__(tap, "module", tap.module.replace("x_proj", "dt_proj"))  # never called as a module
        object.__setattr__(target, "tap", tap)
    with pytest.raises(RuntimeError, match="dt_proj.weight saw no token"):
        repaired(model, wrong)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not model.training


def test_blocks_in_bfloat16_are_repaired_as_well(model):
    targets = find_targets(model)
    twin = copy.deepcopy(model)
    exact, rounded = repaired(model, targets)[1], repaired(twin, targets, bf16=True)[1]
    for own, other in zip(exact, rounded, strict=True):
        assert other.after < other.before and abs(own.after - other.after) < 0.05 * own.before
    for target in targets:
        assert target.weight(twin).dtype == torch.float32
        assert torch.equal(target.weight(model) == 0, target.weight(twin) == 0)
