"""LoRA on a pruned model: what is merged keeps the zeros and is what was trained; what cannot be is refused."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import build_model
from training_cases import DATA, TOKENS, arguments, config, zeros_of
from transformers import Trainer

from hf_mamba_prune import PruningCallback, PruningTrainer, find_targets, mask_adapters

TARGETS = {"mamba": ["in_proj", "x_proj"], "mamba2": ["in_proj"]}  # PEFT itself refuses out_proj


def adapted(case: str = "mamba", **options):
    """A model with 60 % zeros, and the same under adapters that do something."""
    model = build_model(case)
    for target in find_targets(model):
        weight = target.weight(model)
        weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(target.size)) < 0.6] = 0
    zeros = zeros_of(model)
    torch.manual_seed(2)  # what PEFT starts adapters with
    lora = LoraConfig(r=4, target_modules=TARGETS[case], init_lora_weights=False, **options)
    return zeros, get_peft_model(model, lora)


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("case", TARGETS)
def test_merged_weights_keep_the_zeros_and_give_the_same_logits(case, safe):
    zeros, model = adapted(case)
    assert mask_adapters(model) == 2 * len(TARGETS[case])
    model.eval()
    with torch.no_grad():
        before = model(TOKENS[:2]).logits
        dense = {name: p.clone() for name, p in model.get_base_model().named_parameters() if "base_layer" in name}
        model.merge_adapter(safe_merge=safe)
        model.unmerge_adapter()
        for name, p in model.get_base_model().named_parameters():
            if "base_layer" in name:
                torch.testing.assert_close(p, dense[name])
        merged = model.merge_and_unload(safe_merge=safe)
        torch.testing.assert_close(merged(TOKENS[:2]).logits, before, rtol=1e-4, atol=5e-5)
    found = zeros_of(merged)
    assert all(torch.equal(found[name], zeros[name]) for name in zeros)


def test_pefts_own_adapters_fill_the_zeros():
    zeros, model = adapted()
    found = zeros_of(model.merge_and_unload())
    adapted_weights = [name for name in zeros if any(part in name for part in TARGETS["mamba"])]
    assert adapted_weights and not any(found[name].any() for name in adapted_weights)


def test_a_training_lowers_the_loss_and_leaves_the_base_alone(tmp_path):
    zeros, model = adapted(lora_dropout=0.1)
    mask_adapters(model)
    base = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    trainer = Trainer(model, arguments(tmp_path, max_steps=40, learning_rate=3e-2), train_dataset=DATA)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if not p.requires_grad)
    found = zeros_of(model.merge_and_unload())
    assert all(torch.equal(found[name], zeros[name]) for name in zeros)


def test_what_cannot_be_masked_is_refused(mamba, tmp_path):
    with pytest.raises(ValueError, match="no LoRA adapter"):
        mask_adapters(mamba)
    model = get_peft_model(build_model("mamba"), LoraConfig(r=2, target_modules=["in_proj", "dt_proj"]))
    with pytest.raises(ValueError, match="reads its weight without calling it.*leave dt_proj out of target_modules"):
        mask_adapters(model)


def test_a_peft_model_is_not_pruned_in_training(tmp_path):
    _, model = adapted()
    for attempt in (
        lambda: PruningTrainer(model, arguments(tmp_path), train_dataset=DATA, pruning_config=config()),
        lambda: Trainer(model, arguments(tmp_path), train_dataset=DATA, callbacks=[PruningCallback(config())]).train(),
    ):
        with pytest.raises(ValueError, match="wrapped by PEFT.*mask_adapters and transformers' own Trainer"):
            attempt()
