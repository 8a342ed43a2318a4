"""The table of architectures is the only truth: names may change in it, blocks may differ, and gaps are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import VOCABULARY, build_model

from hf_mamba_prune import Evaluation, Origin, PruningConfig, TextSource, find_targets, make_plan, native, prune
from hf_mamba_prune.measure.stability import measure_decay
from hf_mamba_prune.models.architectures import ARCHITECTURES
from hf_mamba_prune.models.targets import components_of

TEXT = TextSource("some text", tuple(f" The thing number {i} in the other .\n" for i in range(40)))
IDS = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))


def changed(monkeypatch, change, case: str = "mamba") -> None:
    """Each component of an architecture as `change` gives it back; None leaves it out."""
    architecture = ARCHITECTURES[case]
    kinds = {
        name: replace(kind, components=tuple(own for own in map(change, kind.components) if own is not None))
        for name, kind in architecture.kinds.items()
    }
    monkeypatch.setitem(ARCHITECTURES, case, replace(architecture, kinds=kinds))


def pruned(tokenizer, model):
    config = PruningConfig(0.6, calibration_samples=2, calibration_length=12, steps=1)
    report = prune(model, tokenizer, config, TEXT, Evaluation(), Origin(id="tiny"))
    return report, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_another_name_for_a_component_changes_no_weight(tokenizer, monkeypatch):
    before, weights = pruned(tokenizer, build_model("mamba"))
    changed(monkeypatch, lambda own: replace(own, name=f"renamed_{own.name}"))
    after, same = pruned(tokenizer, build_model("mamba"))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert [count.name for count in after.sparsity.components if "." not in count.name] == [
        f"renamed_{count.name}" for count in before.sparsity.components if "." not in count.name
    ]
    assert before.sparsity.prunable == after.sparsity.prunable


def test_masks_that_nothing_applies_are_no_report(tokenizer, monkeypatch):
    changed(monkeypatch, lambda own: replace(own, stage=None) if own.name == "in_proj" else own)
    with pytest.raises(RuntimeError, match=r"were to become zero and only [\d,]+ are: the table of architectures"):
        pruned(tokenizer, build_model("mamba"))


def test_blocks_of_one_model_may_be_of_different_kinds(tokenizer, monkeypatch):
    """The second block is treated as one that has no recurrence, no kernels and only one weight to prune."""
    architecture = ARCHITECTURES["mamba"]
    (kind,) = architecture.kinds.values()
    (out_proj,) = [own for own in kind.components if own.name == "out_proj"]
    other = replace(kind, components=(out_proj,), recurrence=None, kernels=None)
    mixed = replace(architecture, kinds={"a": kind, "b": other}, kind_of=lambda config, index: "ab"[index])
    monkeypatch.setitem(ARCHITECTURES, "mamba", mixed)
    model = build_model("mamba")
    assert [(target.layer, target.component) for target in find_targets(model)] == [
        *((0, name) for name in ("in_proj", "x_proj", "dt_proj", "out_proj")), (1, "out_proj"),
    ]  # fmt: skip
    assert [own.name for own in components_of(model)].count("out_proj") == 1
    assert [decay.layer for decay in measure_decay(model, IDS)] == [0]
    assert make_plan(model, PruningConfig(0.6)).prunable == sum(target.size for target in find_targets(model))
    report, weights = pruned(tokenizer, model)
    assert report.sparsity.prunable.zeros == report.sparsity.masked
    assert weights["backbone.layers.1.mixer.in_proj.weight"].all()
    with native.use_native(model) as handle:
        assert handle.active
