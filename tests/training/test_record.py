"""The report of a training is about the model that the trainer holds in the end."""

from __future__ import annotations

import pytest
import torch
from tiny_models import build_model
from training_cases import DATA, SPARSITY, arguments, config

from hf_mamba_prune import PruningReport, PruningTrainer, find_targets


def reported(trainer, folder):
    trainer.create_model_card()
    return PruningReport.load(folder)


def test_the_loss_is_that_of_the_best_model_where_it_was_loaded(mamba, tmp_path):
    often = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, save_total_limit=2)
    args = arguments(
        tmp_path, max_steps=30, learning_rate=0.1, load_best_model_at_end=True, metric_for_best_model="eval_loss",
        **often,
    )  # fmt: skip
    other = DATA.select(range(30, 34))
    trainer = PruningTrainer(
        mamba, args, train_dataset=DATA.select(range(2)), eval_dataset=other, pruning_config=config()
    )
    trainer.train()
    last = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    (loss,) = reported(trainer, tmp_path).tasks_after
    assert loss.value == trainer.state.best_metric < last
    again = trainer.evaluate()["eval_loss"]
    assert again == pytest.approx(loss.value)
    assert reported(trainer, tmp_path).tasks_after[0].value == again


def test_zeros_are_counted_in_the_model_that_model_init_made(tmp_path):
    trainer = PruningTrainer(
        model_init=lambda: build_model("mamba"), args=arguments(tmp_path), train_dataset=DATA, pruning_config=config()
    )
    trainer.train()
    report = reported(trainer, tmp_path)
    size = sum(target.size for target in find_targets(trainer.model))
    assert report.sparsity.prunable.zeros == report.sparsity.masked == round(SPARSITY * size)
    assert report.recovery.gradual


def test_a_training_with_masks_kept_is_not_called_gradual(mamba, tmp_path):
    for target in find_targets(mamba):
        target.weight(mamba)[:, torch.arange(target.shape[1]) % 5 < 4] = 0
    trainer = PruningTrainer(mamba, arguments(tmp_path), train_dataset=DATA, pruning_config=config())
    trainer.train()
    assert not reported(trainer, tmp_path).recovery.gradual
