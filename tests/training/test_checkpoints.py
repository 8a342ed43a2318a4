"""A training that is killed at any moment goes on from its newest whole checkpoint."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import build_model
from training_cases import DATA, arguments, config, environment
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_mamba_prune import PruningCallback, PruningTrainer
from hf_mamba_prune.files.loading import weights_sha256
from hf_mamba_prune.training.checkpoints import RunLock
from hf_mamba_prune.training.gradual import STATE_NAME

KILLED = """
import os, signal, sys, torch
from pathlib import Path
from safetensors import torch as tensors
from tiny_models import build_model
from training_cases import DATA, arguments, config
from transformers import TrainerState
from hf_mamba_prune import PruningTrainer
torch.set_num_threads(1)
trainer = PruningTrainer(
    build_model("mamba"), arguments(sys.argv[1], save_strategy="steps", save_steps=2, seed=3), train_dataset=DATA,
    pruning_config=config(),
)
def die():
    if trainer.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
def before(work):
    def stopped(*arguments):
        die()
        return work(*arguments)
    return stopped
def cut(state, path, write=TrainerState.save_to_json):
    write(state, path)
    if state.global_step == 4:
        Path(path).write_text(Path(path).read_text()[:50])
    die()
moment = sys.argv[2]
if moment == "weights":
    trainer._save_optimizer_and_scheduler = before(trainer._save_optimizer_and_scheduler)
elif moment == "optimizer":
    trainer._save_rng_state = before(trainer._save_rng_state)
else:
    TrainerState.save_to_json = cut
trainer.train()
"""


def trainer_in(folder: Path, **options) -> PruningTrainer:
    args = arguments(folder, save_strategy="steps", save_steps=2, seed=3, **options)
    return PruningTrainer(build_model("mamba"), args, train_dataset=DATA, pruning_config=config())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str]:
    """A training of 8 steps with its 4 checkpoints, and the hash of its weights at the end."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = trainer_in(folder)
    trainer.train()
    return folder, weights_sha256(trainer.model)


@pytest.mark.parametrize(
    "moment", ["weights", *(pytest.param(moment, marks=pytest.mark.slow) for moment in ("optimizer", "state"))]
)
def test_a_killed_training_leaves_whole_checkpoints_alone_and_ends_as_if_it_had_not_been(tmp_path, whole, moment):
    command = [sys.executable, "-c", KILLED, str(tmp_path), moment]
    done = subprocess.run(command, timeout=200, env=environment(), capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert get_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    again = trainer_in(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert weights_sha256(again.model) == whole[1]
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in (2, 4, 6, 8)}


BROKEN = {
    "trainer_state.json": "trainer_state.json is missing",
    "trainer_state.json cut": "trainer_state.json is cut short",
    "model.safetensors": "it holds no weights",
    "model.safetensors cut": "model.safetensors is cut short",
    "optimizer.pt cut": "optimizer.pt is cut short",
    f"{STATE_NAME} cut": f"{STATE_NAME} is cut short",
}


@pytest.mark.parametrize("harm", BROKEN)
def test_checkpoints_that_another_trainer_left_cut_short_are_skipped_and_named(tmp_path, whole, harm):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    name, _, cut = harm.partition(" ")
    path = tmp_path / "checkpoint-8" / name
    path.write_bytes(path.read_bytes()[:-200]) if cut else path.unlink()
    again = trainer_in(tmp_path)
    said = f"{re.escape(str(tmp_path))}/checkpoint-8 is skipped, as {BROKEN[harm]}: going on from .*/checkpoint-6"
    with pytest.warns(UserWarning, match=said):
        again.train(resume_from_checkpoint=True)
    assert weights_sha256(again.model) == whole[1]
    shutil.rmtree(tmp_path / "checkpoint-8")
    shutil.copytree(whole[0] / "checkpoint-8", tmp_path / "checkpoint-8")
    path.write_bytes(path.read_bytes()[:-200]) if cut else path.unlink()
    with pytest.raises(ValueError, match=f"checkpoint-8 is not a whole checkpoint, {BROKEN[harm]}: go on from .*-6"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))


def test_no_whole_checkpoint_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"holds no checkpoint to go on from \(it holds none\): train from the begin"):
        trainer_in(tmp_path).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match=r"\(checkpoint-2: trainer_state.json is missing\): train from the beginning"):
        trainer_in(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="none beside it is whole, so train from the beginning"):
        trainer_in(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_best_checkpoint_and_the_newest_are_kept_and_known_by_their_places(tmp_path):
    trainer = PruningTrainer(
        build_model("mamba"),
        arguments(
            tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, learning_rate=0.5,
            load_best_model_at_end=True, metric_for_best_model="eval_loss", save_total_limit=2,
        ),
        train_dataset=DATA, eval_dataset=DATA.select(range(4)), pruning_config=config(),
    )  # fmt: skip
    trainer.train()
    best = tmp_path / f"checkpoint-{trainer.state.best_global_step}"
    assert trainer.state.best_model_checkpoint == str(best)
    kept = {path.name for path in tmp_path.iterdir()}  # where the newest is the best, the one before it, too
    assert len(kept) == 2 and kept >= {best.name, "checkpoint-8"}
    state = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)


def test_a_checkpoint_that_is_written_again_is_replaced(tmp_path):
    for _ in range(2):
        trainer_in(tmp_path).train()
        (tmp_path / "checkpoint-4" / "old").touch()
    trainer_in(tmp_path).train()
    assert not (tmp_path / "checkpoint-4" / "old").exists() and not (tmp_path / "_unfinished").exists()


STOCK_KILLED = """
import os, signal, sys, torch
from tiny_models import build_model
from training_cases import DATA, arguments, config
from transformers import Trainer
from hf_mamba_prune import PruningCallback
torch.set_num_threads(1)
trainer = Trainer(
    build_model("mamba"), arguments(sys.argv[1], save_strategy="steps", save_steps=2, seed=3), train_dataset=DATA,
    callbacks=[PruningCallback(config())],
)
def die(*arguments):
    if trainer.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
trainer._save_optimizer_and_scheduler = die
trainer.train()
"""


def stock_in(folder: Path) -> Trainer:
    args = arguments(folder, save_strategy="steps", save_steps=2, seed=3)
    callbacks = [PruningCallback(config())]
    return Trainer(build_model("mamba"), args, train_dataset=DATA, callbacks=callbacks)


@pytest.mark.slow
def test_a_killed_run_of_a_stock_trainer_goes_on_from_its_newest_whole_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, "-c", STOCK_KILLED, str(tmp_path)], timeout=200, env=environment())
    assert done.returncode == -signal.SIGKILL and get_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    with pytest.warns(
        UserWarning, match="left a checkpoint cut short, as trainer_state.json is missing: it is .*_bro"
    ):
        again = stock_in(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 8 and (tmp_path / "_broken-checkpoint-4").is_dir()


@pytest.mark.parametrize("harm", list(BROKEN)[:4])
def test_broken_checkpoints_are_set_aside_for_a_stock_trainer(tmp_path, whole, harm):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    name, _, cut = harm.partition(" ")
    for step in (4, 8):  # of which the earlier is behind a whole one, where nothing looks
        path = tmp_path / f"checkpoint-{step}" / name
        path.write_bytes(path.read_bytes()[:-200]) if cut else path.unlink()
    with pytest.warns(UserWarning, match=f"cut short, as {BROKEN[harm]}: it is .*_broken-checkpoint-8 now"):
        stock_in(tmp_path)
    assert get_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    assert {path.name for path in tmp_path.iterdir()} == {
        "_broken-checkpoint-8",
        *map("checkpoint-{}".format, (2, 4, 6)),
    }
    stock_in(tmp_path)  # and that is all


def test_the_checkpoint_of_a_living_run_is_left_alone(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    lock = RunLock(tmp_path)
    assert lock.take()
    stock_in(tmp_path)
    assert (tmp_path / "checkpoint-2").is_dir()
    lock.close()
    with pytest.warns(UserWarning, match="cut short"):
        stock_in(tmp_path)
    assert not (tmp_path / "checkpoint-2").exists()


def test_a_training_holds_its_folder_while_it_lasts(tmp_path):
    found = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **rest):
            lock = RunLock(tmp_path)
            found.append(lock.take(alone=True))
            lock.close()

    trainer = stock_in(tmp_path)
    trainer.add_callback(Look())
    trainer.train()
    assert found == [False] * 8
    lock = RunLock(tmp_path)
    assert lock.take(alone=True)
    lock.close()
