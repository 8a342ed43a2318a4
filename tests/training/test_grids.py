"""A model that was rounded to few bits is trained on its grids: at every step it holds what would be packed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import build_model, build_tokenizer
from training_cases import DATA, TOKENS, arguments
from transformers import Trainer, TrainerCallback

from hf_mamba_prune import PruningConfig, PruningTrainer, find_targets
from hf_mamba_prune.bits.model import round_model
from hf_mamba_prune.codings.grids import grids_of
from hf_mamba_prune.codings.tensors import unpack_tensor
from hf_mamba_prune.files.loading import weights_sha256
from hf_mamba_prune.packed.checkpoint import load_packed, write_packed_model
from hf_mamba_prune.training.grids import GRID_STATE

CASES = {
    "mixed": ("mamba", dict(bits=3.5)),
    "few": ("mamba", dict(bits=2.4)),
    "masked": ("mamba", dict(sparsity=0.5, code_bits=2)),
    "many": ("mamba", dict(bits=6.5)),
    "mamba2": ("mamba2", dict(bits=4.0)),
}


def rounded(name: str, dtype: torch.dtype = torch.float32):
    """A tiny model on grids, and how it was rounded; the same whenever it is made."""
    case, wanted = CASES[name]
    model = build_model(case).to(dtype)
    for target in find_targets(model) if "code_bits" in wanted else ():
        with torch.no_grad():
            target.weight(model)[:, ::2] = 0
    config = PruningConfig(**wanted)
    round_model(model, find_targets(model), TOKENS[:4], config, dtype)
    return model, config


class Watch(TrainerCallback):
    """Compares the model with what its grids say at the end of every step."""

    def __init__(self) -> None:
        self.trainer: PruningTrainer | None = None
        self.steps, self.codes = 0, list[torch.Tensor]()

    def on_step_end(self, args, state, control, model=None, **rest):
        assert self.trainer is not None and self.trainer.grids is not None
        for name, latent in self.trainer.grids._latents.items():
            assert torch.equal(model.get_parameter(name).detach(), unpack_tensor(latent.packed())), name
        name = find_targets(model)[0].name
        self.codes.append(self.trainer.grids._latents[name].packed().values)
        self.steps += 1


def trainer_of(name: str, folder: Path, **options) -> PruningTrainer:
    model, config = rounded(name)
    watch = Watch()
    trainer = PruningTrainer(
        model, arguments(folder, **options), train_dataset=DATA, pruning_config=config, callbacks=[watch]
    )
    watch.trainer = trainer
    return trainer


def layout(model) -> dict[str, tuple]:
    """What training may not change: coding, mask, widths and scales of columns."""
    found = {}
    for name, packed in grids_of(model).items():
        grid = packed.grid
        parts = [packed.mask, grid.levels, grid.bits, grid.column_scales]
        found[name] = (packed.coding, packed.shape, *(None if part is None else part.tolist() for part in parts))
    return found


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ("mamba2", "few") else name
        for name in CASES
        if name != "many"
    ],
)
def test_a_model_stays_on_its_grids_at_every_step_and_is_packed_to_the_bit(name, tmp_path):
    trainer = trainer_of(name, tmp_path / "run", max_steps=24)
    model, before = trainer.model, layout(trainer.model)
    zeros = {target.name: target.weight(model) == 0 for target in find_targets(model)}
    start = weights_sha256(model)
    trainer.train()
    watch = next(own for own in trainer.callback_handler.callbacks if isinstance(own, Watch))
    assert watch.steps == 24 and weights_sha256(model) != start
    assert any(not torch.equal(codes, watch.codes[0]) for codes in watch.codes)  # levels change, not scales alone
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-6:]) < sum(losses[:6])
    assert layout(model) == before
    if name == "masked":
        assert all(torch.equal(target.weight(model) == 0, zeros[target.name]) for target in find_targets(model))
    write_packed_model(tmp_path / "packed", model, build_tokenizer(), torch.float32, "rounded")
    unpacked = load_packed(tmp_path / "packed", unpack=True).state_dict()
    for key, weight in model.state_dict().items():
        assert torch.equal(unpacked[key], weight), key


def test_a_level_of_zero_is_no_mask(tmp_path):
    """Codes of 6 bits have one: weights may leave it in training, which those of a mask or of an empty row may not."""
    trainer = trainer_of("many", tmp_path)
    model = trainer.model
    zeros = {target.name: target.weight(model) == 0 for target in find_targets(model)}
    empty = sum(int((own.widths() == 0).sum()) * own.shape[1] for own in grids_of(model).values())
    assert sum(int(own.sum()) for own in zeros.values()) > empty == trainer.pruner.masked()
    trainer.train()
    assert any(bool((target.weight(model)[zeros[target.name]] != 0).any()) for target in find_targets(model))


@pytest.mark.parametrize("name", ["mixed", pytest.param("masked", marks=pytest.mark.slow)])
def test_a_resumed_run_ends_as_if_it_had_not_stopped(name, tmp_path):
    whole = trainer_of(name, tmp_path / "whole", save_strategy="steps", save_steps=3, seed=3)
    whole.train()
    assert (tmp_path / "whole" / "checkpoint-3" / GRID_STATE).is_file()
    again = trainer_of(name, tmp_path / "again", seed=3)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert weights_sha256(again.model) == weights_sha256(whole.model)
    for key, packed in grids_of(whole.model).items():
        other = grids_of(again.model)[key]
        assert torch.equal(packed.values, other.values) and torch.equal(packed.scales, other.scales)


def test_a_checkpoint_without_its_grids_is_refused(tmp_path):
    trainer_of("mixed", tmp_path, save_strategy="steps", save_steps=4).train()
    (tmp_path / "checkpoint-8" / GRID_STATE).unlink()
    with pytest.raises(ValueError, match=f"checkpoint-8 holds no {GRID_STATE} of this model"):
        trainer_of("mixed", tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))


def test_a_checkpoint_of_other_grids_is_refused(tmp_path):
    trainer_of("mixed", tmp_path, save_strategy="steps", save_steps=4).train()
    with pytest.raises(ValueError, match="trained on other grids, as .* has other widths, zeros or levels there"):
        trainer_of("few", tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))


def test_weights_trained_by_another_trainer_have_left_their_grids(tmp_path):
    model, config = rounded("mixed")
    with torch.no_grad():
        find_targets(model)[0].weight(model).mul_(1.01)
    with pytest.raises(ValueError, match="has changed since it was rounded"):
        PruningTrainer(model, arguments(tmp_path), train_dataset=DATA, pruning_config=config)


def test_fsdp2_is_refused_when_it_is_asked_for_and_when_it_was_done(tmp_path, monkeypatch):
    sentence = "FSDP2 divides the weights of a model.*use DDP, or one process"
    trainer = trainer_of("mixed", tmp_path)
    name = find_targets(trainer.model)[0].name
    owner, _, leaf = name.rpartition(".")
    divided = torch.nn.Parameter(trainer.model.get_parameter(name).detach().clone())  # as fully_shard replaces all
    setattr(trainer.model.get_submodule(owner), leaf, divided)
    with pytest.raises(ValueError, match=sentence):
        trainer.train()
    make = Trainer.__init__

    def as_launched(own: Trainer, *given: object, **options: object) -> None:
        make(own, *given, **options)
        own.args.fsdp, own.args.fsdp_plugin_args = True, {"fsdp_version": 2}

    monkeypatch.setattr(Trainer, "__init__", as_launched)  # accelerate has no FSDP2 without a launcher
    with pytest.raises(ValueError, match=sentence):
        trainer_of("mixed", tmp_path)
    model = build_model("mamba")  # without grids it is not
    PruningTrainer(model, arguments(tmp_path), train_dataset=DATA, pruning_config=PruningConfig(0.5))


def test_the_best_of_many_steps_is_not_put_back_on_the_last_scales(tmp_path):
    model, config = rounded("mixed")
    best = arguments(
        tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=4
    )
    with pytest.raises(ValueError, match="load_best_model_at_end puts back the weights of an earlier step"):
        PruningTrainer(model, best, train_dataset=DATA, eval_dataset=DATA, pruning_config=config)
