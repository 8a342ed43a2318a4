"""A model becomes sparse while it trains: exactly, in memory and on disk, resumed or not, whatever the trainer."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tiny_models import build_model
from training_cases import DATA, SPARSITY, TOKENS, arguments, check_final, config, share_of, zeros_of
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback

from hf_mamba_prune import PruningCallback, PruningConfig, PruningTrainer, find_targets
from hf_mamba_prune.files.loading import weights_sha256
from hf_mamba_prune.training.gradual import STATE_NAME, GradualPruner


class Watch(TrainerCallback):
    """Counts the zeros of the model at the end of every step, and what gradients masked weights still have."""

    def __init__(self, trainer=None):
        self.trainer, self.zeros = trainer, []

    def on_step_end(self, args, state, control, model=None, **rest):
        self.zeros.append(zeros_of(model))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("score", ["gradient-magnitude", "fisher", "magnitude"])
def test_sparsity_is_exact_at_every_step_and_zeros_stay(case, tmp_path, score, accumulate):
    model = build_model(case)
    watch = Watch()
    trainer = PruningTrainer(
        model, arguments(tmp_path, gradient_accumulation_steps=accumulate), train_dataset=DATA,
        pruning_config=config(score=score), callbacks=[watch],
    )  # fmt: skip
    trainer.train()
    total = share_of(watch.zeros[0])[1]
    wanted = [0.0] * 8
    for step, sparsity in trainer.pruner.events.items():
        wanted[step - 1 :] = [sparsity] * (9 - step)
    assert [share_of(zeros)[0] for zeros in watch.zeros] == [round(s * total) for s in wanted]
    for before, after in zip(watch.zeros, watch.zeros[1:], strict=False):
        assert all((after[name] | ~before[name]).all() for name in before)
    logged = [entry["sparsity"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([round(s * total) / total for s in wanted])
    assert wanted[-1] == SPARSITY


def test_a_checkpoint_is_an_ordinary_one(mamba, tmp_path):
    trainer = PruningTrainer(
        mamba, arguments(tmp_path, save_strategy="steps", save_steps=4), train_dataset=DATA, pruning_config=config()
    )
    trainer.train()
    trainer.save_model(tmp_path / "final")
    names = set(load_file(tmp_path / "final" / "model.safetensors"))
    assert names <= set(mamba.state_dict())
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "final", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert weights_sha256(loaded) == weights_sha256(mamba)
    zeros, total = share_of(zeros_of(loaded))
    assert zeros == round(SPARSITY * total)
    assert PruningConfig.from_pretrained(tmp_path / "final") == trainer.pruning_config
    assert (tmp_path / "checkpoint-4" / STATE_NAME).is_file()
    history = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
    assert history[-1]["sparsity"] == pytest.approx(SPARSITY, abs=1e-3) and "sparsity_in_proj" in history[-1]


@pytest.mark.parametrize("at", [2, 5])
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, at):
    def trainer(folder):
        args = arguments(folder, save_strategy="steps", save_steps=1, seed=3)
        return PruningTrainer(build_model("mamba"), args, train_dataset=DATA, pruning_config=config(regrow=0.1))

    whole = trainer(tmp_path / "whole")
    whole.train()
    again = trainer(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{at}"))
    assert weights_sha256(again.model) == weights_sha256(whole.model)
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, again)]
    assert losses[0] == losses[1]


def test_a_pruned_model_keeps_its_masks(mamba, tmp_path):
    for target in find_targets(mamba):
        target.weight(mamba)[:, ::2] = 0
    before = zeros_of(mamba)
    zeros, total = share_of(before)
    PruningTrainer(
        mamba, arguments(tmp_path), train_dataset=DATA, pruning_config=config(sparsity=zeros / total)
    ).train()
    assert all(torch.equal(before[name], zeros) for name, zeros in zeros_of(mamba).items())


def test_masked_gradients_are_gone_before_clipping(mamba, tmp_path):
    """The clipped norm is that of the weights that live: a norm of masked ones would shrink every step."""
    for target in find_targets(mamba):
        target.weight(mamba)[:, ::2] = 0
    zeros, total = share_of(zeros_of(mamba))
    seen = []

    class Norm(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **rest):
            seen.append([int((t.weight(model) == 0).sum()) for t in find_targets(model)])
            for target in find_targets(model):
                gradient = model.get_parameter(target.name).grad.view(target.shape)
                assert (gradient[:, ::2] == 0).all() and gradient[:, 1::2].abs().sum() > 0

    PruningTrainer(
        mamba, arguments(tmp_path, max_grad_norm=0.5), train_dataset=DATA,
        pruning_config=config(sparsity=zeros / total), callbacks=[Norm()],
    ).train()  # fmt: skip
    assert len(seen) == 8


def test_the_users_own_optimizer_is_held_too(mamba, tmp_path):
    optimizer = torch.optim.AdamW(mamba.parameters(), lr=1e-2)
    trainer = PruningTrainer(
        mamba, arguments(tmp_path), train_dataset=DATA, pruning_config=config(), optimizers=(optimizer, None)
    )
    trainer.train()
    check_final(mamba)


def test_training_twice_or_longer_than_planned_never_goes_back(mamba, tmp_path):
    watch = Watch()
    args = arguments(tmp_path, save_strategy="steps", save_steps=6)
    trainer = PruningTrainer(mamba, args, train_dataset=DATA, pruning_config=config(), callbacks=[watch])
    trainer.train()
    trainer.train()
    longer = PruningTrainer(
        build_model("mamba"), arguments(tmp_path, max_steps=16), train_dataset=DATA, pruning_config=config(),
        callbacks=[watch],
    )  # fmt: skip
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    counts = [share_of(zeros)[0] for zeros in watch.zeros]
    assert counts[7:] == [counts[7]] * (len(counts) - 7) and len(counts) == 26
    check_final(mamba)


def test_a_callback_serves_two_trainers(mamba, tmp_path):
    callback = PruningCallback(config())
    for model in (mamba, mamba, build_model("mamba")):
        Trainer(model, arguments(tmp_path), train_dataset=DATA, callbacks=[callback]).train()
        check_final(model)


def test_model_init_makes_masks_of_its_own(tmp_path):
    trainer = PruningTrainer(
        model_init=lambda: build_model("mamba"), args=arguments(tmp_path), train_dataset=DATA, pruning_config=config()
    )
    trainer.train()
    check_final(trainer.model)


def test_a_checkpoint_without_pruning_state_keeps_its_zeros_and_says_so(tmp_path):
    def trainer(**options):
        args = arguments(tmp_path, save_strategy="steps", save_steps=7, **options)
        return PruningTrainer(build_model("mamba"), args, train_dataset=DATA, pruning_config=config())

    trainer(save_only_model=True).train()
    again = trainer()
    with pytest.warns(UserWarning, match="checkpoint-7 holds no pruning_state.safetensors: its zeros are kept"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    check_final(again.model)


def test_an_overflow_does_not_stay_in_the_averages(mamba):
    pruner = GradualPruner(mamba, config())
    pruner.lay_out(8)
    for step, value in enumerate((1.0, float("inf"), float("nan"), 2.0)):
        for target in find_targets(mamba):
            parameter = mamba.get_parameter(target.name)
            parameter.grad = torch.rand(parameter.shape)
            parameter.grad.view(-1)[0] = value
        pruner.collect(step)
        pruner.rise(step + 1)
    assert 0 < pruner.sparsity() < SPARSITY


def test_small_gradients_rank_as_large_ones_in_regrowth(mamba):
    grown = []
    for scale in (1.0, 1e-9):
        pruner = GradualPruner(mamba, config(sparsity=0.5, regrow=0.2, steps=2, end=1.0, allocation="uniform"))
        pruner.lay_out(4)
        for target in find_targets(mamba):
            parameter = mamba.get_parameter(target.name)
            generator = torch.Generator().manual_seed(target.size)
            parameter.grad = scale * torch.rand(parameter.shape, generator=generator)
        pruner.collect(0)
        target = find_targets(mamba)[0]
        drop = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.5
        grown.append(pruner._regrown(target, drop))
    assert torch.equal(*grown)


def test_a_pattern_is_not_taken_for_any_zeros(mamba, tmp_path):
    for target in find_targets(mamba):
        target.weight(mamba)[:, : 1 + target.shape[1] // 2] = 0
    pruning = PruningConfig(pattern="2:4", score="magnitude", steps=1)
    PruningTrainer(mamba, arguments(tmp_path), train_dataset=DATA, pruning_config=pruning).train()
    for target in find_targets(mamba):
        assert ((target.weight(mamba) == 0).reshape(-1, 4).sum(1) >= 2).all()


def test_an_overridden_loss_keeps_the_sparsity(mamba, tmp_path):
    class Doubled(PruningTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            return (2 * outputs.loss, outputs) if return_outputs else 2 * outputs.loss

    Doubled(mamba, arguments(tmp_path), train_dataset=DATA, pruning_config=config()).train()
    zeros, total = share_of(zeros_of(mamba))
    assert zeros == round(SPARSITY * total)


def test_the_callback_prunes_under_a_stock_trainer(mamba, tmp_path):
    callback = PruningCallback(config())
    trainer = Trainer(mamba, arguments(tmp_path), train_dataset=DATA, callbacks=[callback])
    trainer.train()
    zeros, total = share_of(zeros_of(mamba))
    assert zeros == round(SPARSITY * total)
    assert trainer.state.log_history[-2]["sparsity"] == pytest.approx(SPARSITY, abs=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # TRL's own
def test_the_callback_prunes_under_trls_sft_trainer(mamba, tokenizer, tmp_path):
    from trl import SFTConfig, SFTTrainer

    tokenizer.pad_token = tokenizer.eos_token
    rows = Dataset.from_dict({"text": [f" The thing number {i} in the other ." for i in range(40)]})
    args = SFTConfig(
        str(tmp_path), max_steps=8, per_device_train_batch_size=2, learning_rate=1e-2, report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True, bf16=False, gradient_checkpointing=False, max_length=32,
    )  # fmt: skip
    SFTTrainer(
        mamba, args, train_dataset=rows, processing_class=tokenizer, callbacks=[PruningCallback(config())]
    ).train()
    zeros, total = share_of(zeros_of(mamba))
    assert zeros == round(SPARSITY * total)


def test_only_a_model_of_the_final_sparsity_can_be_the_best(mamba, tmp_path):
    args = arguments(
        tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, learning_rate=0.5,
        load_best_model_at_end=True, metric_for_best_model="eval_loss",
    )  # fmt: skip
    trainer = PruningTrainer(
        mamba, args, train_dataset=DATA, eval_dataset=DATA.select(range(4)), pruning_config=config()
    )
    trainer.train()
    assert trainer.state.best_global_step >= max(trainer.pruner.events)
    zeros, total = share_of(zeros_of(mamba))
    assert zeros == round(SPARSITY * total)


def test_scores_from_calibration(mamba, tmp_path):
    pruning = config(score="wanda", allocation="per-row", measure="calibration")
    trainer = PruningTrainer(
        mamba, arguments(tmp_path), train_dataset=DATA, pruning_config=pruning, calibration=TOKENS[:4]
    )
    trainer.train()
    zeros, total = share_of(zeros_of(mamba))
    assert zeros == round(SPARSITY * total)


def test_regrowth_brings_back_what_has_a_gradient(mamba):
    pruner = GradualPruner(mamba, config(sparsity=0.5, regrow=0.2, steps=2, end=1.0, allocation="uniform"))
    pruner.lay_out(4)
    for step in range(2):
        for target in find_targets(mamba):
            gradient = torch.zeros(target.shape)
            gradient[:, 0] = 5.0  # only the first column matters to the loss
            mamba.get_parameter(target.name).grad = gradient.view_as(mamba.get_parameter(target.name))
        for target in find_targets(mamba):
            target.weight(mamba)[:, 0] = 0 if step == 0 else target.weight(mamba)[:, 0]
        pruner.collect(step)
    assert pruner.rise(2) and pruner.churn > 0
    for target in find_targets(mamba):
        drop = pruner._dropped[target.name]
        assert int(drop.sum()) == round(0.4375 * target.size) and not drop[:, 0].all()


def test_what_cannot_work_is_refused(mamba, tmp_path):
    for options, message in (
        (dict(score="wanda"), "score 'wanda' is not made of gradients, which a training measures: choose one that is"),
        (dict(score="wanda", measure="calibration"), "measure='calibration' needs calibration sequences"),
        (dict(allocation="sensitivity"), "needs a dense model at rest"),
    ):
        with pytest.raises(ValueError, match=message):
            PruningTrainer(mamba, arguments(tmp_path), train_dataset=DATA, pruning_config=config(**options))
    with pytest.raises(ValueError, match="optim='schedule_free_adamw' puts weights of its own into the model"):
        args = arguments(tmp_path, optim="schedule_free_adamw")
        PruningTrainer(mamba, args, train_dataset=DATA, pruning_config=config())
    trainer = PruningTrainer(mamba, arguments(tmp_path, max_steps=3), train_dataset=DATA, pruning_config=config())
    with pytest.raises(ValueError, match="3 pruning steps do not fit between 0% and 70% of 3 training steps"):
        trainer.train()
    frozen = build_model("mamba")
    frozen.get_parameter(find_targets(frozen)[0].name).requires_grad_(False)
    trainer = PruningTrainer(frozen, arguments(tmp_path), train_dataset=DATA, pruning_config=config())
    with pytest.raises(RuntimeError, match="in_proj.weight has no gradient: is it frozen"):
        trainer.train()


def test_the_state_of_another_model_is_refused(mamba):
    state = GradualPruner(build_model("mamba2"), config()).state()
    with pytest.raises(ValueError, match="holds no mask that fits .*: it is of another model"):
        GradualPruner(mamba, config()).load_state(state)
