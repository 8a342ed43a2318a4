"""Programs of their own, started as a user starts them: several ranks end with one model, a killed run goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training.train_on_ranks import train
from training_cases import environment, free_port, same_bits

SCRIPT = Path(__file__).with_name("train_on_ranks.py")


def launch(folder, ranks, batch):
    folder.mkdir()
    # accelerate's own way to several processes on CPUs needs MPI; this one starts them as on GPUs.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={ranks}"]
    command += [
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        f"--main_process_port={free_port()}",
    ]
    command += [str(SCRIPT), str(folder), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(ranks)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    train(folder, 4)
    return torch.load(folder / "rank-0.pt")


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_agree_to_the_bit_and_with_one_process(tmp_path, one, ranks):
    found = launch(tmp_path / "run", ranks, 4 // ranks)
    assert len({rank["sha"] for rank in found}) == 1
    assert all(torch.equal(mask, found[-1]["masks"][name]) for name, mask in found[0]["masks"].items())
    # The same sequences, summed in another order.
    assert same_bits(found[0]["masks"], one["masks"]) >= 0.999


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, one):
    command = [sys.executable, str(SCRIPT), str(tmp_path), "4"]
    killed = subprocess.Popen([*command, "slowly"], env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "checkpoint-4" / "trainer_state.json").is_file():
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "rank-0.pt").exists()
    subprocess.run([*command, "resume"], env=environment(), check=True, capture_output=True, timeout=300)
    assert torch.load(tmp_path / "rank-0.pt")["sha"] == one["sha"]
