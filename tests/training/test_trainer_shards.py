"""FSDP2 divides the weights over ranks: masks follow them, and are those that one process would have made."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tiny_models import build_model
from torch.optim import SGD
from training_cases import GIVEN, SPARSITY, arguments, config, environment, free_port, same_bits
from transformers import TrainerControl, TrainerState

from hf_mamba_prune import PruningCallback

SCRIPT = Path(__file__).with_name("shard_on_ranks.py")


def start(folder, *worlds):
    """Folder and what each rank found, by their number."""
    command = [sys.executable, str(SCRIPT), str(folder), *(f"{ranks}:{free_port()}" for ranks in worlds)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    own = {ranks: folder / str(ranks) for ranks in worlds}
    return {n: ([torch.load(own[n] / f"rank-{rank}.pt") for rank in range(n)], own[n]) for n in worlds}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return start(tmp_path_factory.mktemp("shards"), 1, 2)


@pytest.fixture(scope="module")
def one(few):
    return few[1][0][0]


@pytest.fixture(scope="module", params=[2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def ranks(request, few, tmp_path_factory):
    number = request.param
    return (few if number in few else start(tmp_path_factory.mktemp("shards"), number))[number]


@pytest.mark.parametrize("name", GIVEN)
def test_the_same_gradients_give_the_masks_of_one_rank(ranks, one, name):
    for rank in ranks[0]:
        assert all(torch.equal(rank["given"][name][key], mask) for key, mask in one["given"][name].items())


def test_a_training_is_exact_at_every_step_and_like_that_of_one_process(ranks, one):
    first = next(i for i, step in enumerate(one["seen"]) if step["sparsity"] > 0)
    for rank in ranks[0]:
        for i, (own, alone) in enumerate(zip(rank["seen"], one["seen"], strict=True)):
            assert own["sparsity"] == alone["sparsity"]
            assert own["masked"] == sum(int(mask.sum()) for mask in own["zeros"].values())
            if i == first:
                assert same_bits(own["zeros"], alone["zeros"]) >= 0.999
            assert all(torch.equal(mask, ranks[0][0]["seen"][i]["zeros"][key]) for key, mask in own["zeros"].items())
    assert one["seen"][-1]["sparsity"] == pytest.approx(SPARSITY, abs=1e-4)


def test_every_rank_holds_only_its_rows_and_a_checkpoint_holds_them_all(ranks, one):
    found, folder = ranks
    for name in found[0]["rows"]:
        assert sum(rank["rows"][name] for rank in found) == one["rows"][name]
        assert max(rank["rows"][name] for rank in found) <= -(-one["rows"][name] // len(found))
    for rank in found:
        assert rank["whole"].keys() == one["whole"].keys() == rank["resumed"].keys()
        assert all(torch.equal(value, rank["resumed"][key]) for key, value in rank["whole"].items())
        assert all(torch.equal(value, found[0]["whole"][key]) for key, value in rank["whole"].items())
    report = json.loads((folder / "report.json").read_text())
    assert report["sparsity"]["prunable"]["zeros"] == found[0]["seen"][-1]["masked"]


@pytest.mark.parametrize("version", [1, 2])
def test_fsdp1_is_refused_and_fsdp2_is_not(tmp_path, version):
    args = arguments(tmp_path)
    args.fsdp, args.fsdp_plugin_args = True, {"fsdp_version": version}
    with pytest.raises(ValueError, match="use FSDP2") if version == 1 else nullcontext():
        PruningCallback(config()).on_train_begin(
            args,
            TrainerState(max_steps=8),
            TrainerControl(),
            model=build_model("mamba"),
            optimizer=SGD([torch.ones(1)]),
        )
