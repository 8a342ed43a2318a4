"""Heads learn, load back bit for bit, read in both directions, ignore padding, and are pruned like any other model."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTimeSeriesPrediction,
    Mamba2Config,
    MambaConfig,
    TrainingArguments,
)

import hf_mamba_prune as hmp
from hf_mamba_prune import PruningConfig, PruningTrainer, find_targets, use_native

SIZES = dict(vocab_size=12, hidden_size=24, num_hidden_layers=2, state_size=4, conv_kernel=4, expand=2)
CONFIGS = {
    "mamba": lambda **more: MambaConfig(**SIZES, time_step_rank=4, **more),
    "mamba2": lambda **more: Mamba2Config(**SIZES, num_heads=4, head_dim=12, n_groups=2, chunk_size=8, **more),
}
CLASSIFIERS = {"mamba": hmp.MambaForSequenceClassification, "mamba2": hmp.Mamba2ForSequenceClassification}
FORECASTERS = {"mamba": hmp.MambaForPrediction, "mamba2": hmp.Mamba2ForPrediction}


def classifier(kind, **more):
    torch.manual_seed(0)
    return CLASSIFIERS[kind](CONFIGS[kind](num_labels=3, **more)).eval()


def forecaster(kind, **more):
    torch.manual_seed(0)
    return FORECASTERS[kind](CONFIGS[kind](context_length=10, prediction_length=4, **more)).eval()


IDS = torch.randint(1, 12, (4, 9), generator=torch.Generator().manual_seed(1))
PAST = torch.randn(3, 10, 5, generator=torch.Generator().manual_seed(2)) * 4 + 7
kinds = pytest.mark.parametrize("kind", list(CONFIGS))


@kinds
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_on_the_right_changes_nothing(kind, bidirectional):
    model = classifier(kind, bidirectional=bidirectional)
    padded = torch.cat([IDS, torch.zeros(4, 3, dtype=torch.long)], dim=1)
    mask = torch.cat([torch.ones(4, 9), torch.zeros(4, 3)], dim=1)
    with torch.no_grad():
        assert torch.allclose(model(IDS).logits, model(padded, attention_mask=mask).logits, atol=1e-5)


@kinds
def test_both_directions_see_the_same_of_a_sequence_and_its_reverse(kind):
    one, both = classifier(kind), classifier(kind, bidirectional=True)
    both.load_state_dict(one.state_dict())
    with torch.no_grad():
        assert torch.allclose(both(IDS).logits, both(IDS.flip(1)).logits, atol=1e-5)
        assert not torch.allclose(one(IDS).logits, one(IDS.flip(1)).logits, atol=1e-3)


@kinds
def test_pairs_are_compared(kind):
    model = classifier(kind, paired=True)
    with torch.no_grad():
        logits = model(IDS, pair_input_ids=IDS.flip(1)).logits
    assert logits.shape == (4, 3)
    with pytest.raises(ValueError, match="paired=True"):
        model(IDS)
    with pytest.raises(ValueError, match="paired=False"):
        classifier(kind)(IDS, pair_input_ids=IDS)


@kinds
def test_a_forecast_follows_level_and_size_of_its_series(kind):
    model = forecaster(kind)
    with torch.no_grad():
        found = model(PAST)
        assert found.prediction_outputs.shape == (3, 4, 5)
        moved = model(3 * PAST + 100).prediction_outputs
        plain = forecaster(kind, scaling=False)(PAST)
    assert torch.allclose(moved, 3 * found.prediction_outputs + 100, atol=1e-2)
    assert plain.loc is None and not torch.allclose(plain.prediction_outputs, found.prediction_outputs)


@kinds
def test_both_load_back_through_the_auto_classes(kind, tmp_path):
    for made, auto, inputs in (
        (classifier(kind, bidirectional=True), AutoModelForSequenceClassification, {"input_ids": IDS}),
        (forecaster(kind), AutoModelForTimeSeriesPrediction, {"past_values": PAST}),
    ):
        made.save_pretrained(tmp_path / auto.__name__)
        again, found = auto.from_pretrained(tmp_path / auto.__name__, output_loading_info=True)
        assert type(again) is type(made) and not found["missing_keys"] and not found["unexpected_keys"]
        with torch.no_grad():
            outputs = [model.eval()(**inputs) for model in (made, again)]
        for key in outputs[0]:
            assert torch.equal(outputs[0][key], outputs[1][key])


def rows(count=32):
    """The class is the first token's, so that a few steps learn it."""
    ids = torch.randint(1, 4, (count, 9), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": row, "labels": row[0] - 1} for row in ids]


def series(count=32):
    steps = torch.arange(14) + torch.randint(50, (count, 1), generator=torch.Generator().manual_seed(4))
    waves = torch.stack([torch.sin(steps / 3), torch.cos(steps / 2)], dim=-1)
    return [{"past_values": wave[:10], "future_values": wave[10:]} for wave in waves]


def other_model(model):
    """Some way off, so that there is something to learn from it."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.add_(torch.randn(weight.shape, generator=generator) * weight.std())
    return model


@kinds
@pytest.mark.parametrize("build, data", [(classifier, rows), (forecaster, series)], ids=["classifier", "forecaster"])
@pytest.mark.parametrize("distilled", [False, True])
def test_they_are_pruned_in_training_and_still_learn(kind, build, data, distilled, tmp_path):
    model, found = build(kind), data()
    teacher = other_model(build(kind)) if distilled else None
    arguments = TrainingArguments(
        str(tmp_path), max_steps=40, learning_rate=1e-2, logging_steps=1, report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True, per_device_train_batch_size=8,
    )  # fmt: skip
    config = PruningConfig(sparsity=0.5, score="gradient-magnitude", steps=3, kl_weight=0.1)
    trainer = PruningTrainer(model, arguments, train_dataset=found, pruning_config=config, teacher=teacher)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    targets = find_targets(model)
    zeros = sum(int((target.weight(model) == 0).sum()) for target in targets)
    assert zeros == round(0.5 * sum(target.size for target in targets))


def test_the_kernels_run_them(tmp_path):
    for model, inputs in (
        (classifier("mamba", bidirectional=True), {"input_ids": IDS}),
        (forecaster("mamba"), {"past_values": PAST}),
    ):
        with torch.no_grad():
            stock = model(**inputs)
            with use_native(model):
                ours = model(**inputs)
        key = "logits" if "logits" in stock else "prediction_outputs"
        assert torch.allclose(stock[key], ours[key], atol=1e-4)


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_they_run_in_half_precision(kind, dtype):
    for model, inputs in (
        (classifier(kind, bidirectional=True), {"input_ids": IDS, "labels": torch.tensor([0, 1, 2, 0])}),
        (classifier(kind, paired=True), {"input_ids": IDS, "pair_input_ids": IDS}),
        (forecaster(kind), {"past_values": PAST, "future_values": torch.zeros(3, 4, 5)}),
    ):
        with torch.no_grad():
            wanted, found = model(**inputs), model.to(dtype)(**inputs)
        for key in ("logits", "prediction_outputs"):
            if key in wanted:
                assert torch.allclose(wanted[key], found[key].float(), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("more", [dict(num_labels=1), dict(problem_type="multi_label_classification")])
@kinds
def test_another_kind_of_problem_is_refused(kind, more):
    with pytest.raises(ValueError, match="this model chooses one of several classes"):
        CLASSIFIERS[kind](CONFIGS[kind](**dict(num_labels=3) | more))


def test_padding_on_the_left_is_refused():
    mask = torch.ones(4, 9)
    mask[0, :3] = 0
    with pytest.raises(ValueError, match="padding_side"):
        classifier("mamba")(IDS, attention_mask=mask)
