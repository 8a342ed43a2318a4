"""Runs that are killed at random moments leave the old result or the new one, and nothing broken."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from os import environ, kill
from pathlib import Path

import pytest
import torch
from tiny_models import build_model, build_tokenizer
from training_cases import environment
from transformers import AutoModelForCausalLM

from hf_mamba_prune import PruningReport, native
from hf_mamba_prune.packed.checkpoint import load_packed

TEXT = "the cat in the hat sat on the mat and then it ran in a line\n" * 200
RUN = (
    "model",
    "--calibration",
    "text.txt",
    "--calibration-samples",
    "2",
    "--calibration-length",
    "16",
    "--steps",
    "1",
)
RUN += ("--eval", "text.txt", "--window", "32", "--max-windows", "2", "--output", "out", "--quiet")
KINDS = {
    "plain": (),
    "recovery": ("--recipe", "standard", "--recover-steps", "2", "--recover-batch", "1"),
    "pack": ("--pack", "--values", "int8"),
}
OLD, NEW = "0.5", "0.6"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)

SERVER = """
import json, os, signal, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from hf_mamba_prune.command import cli, prune
import matplotlib.backends.backend_agg
signal.signal(signal.SIGINT, signal.default_int_handler)
print("ready", flush=True)
if __name__ == "__main__":
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open("run.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            code = 0
            try:
                cli.main(json.loads(line))
            except SystemExit as ended:
                code = ended.code or 0
            os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Runs:
    """Starts commands in processes that have imported everything already."""

    def __init__(self, place: Path) -> None:
        self.place = place
        program = place.parent / "server.py"
        program.write_text(SERVER, encoding="utf-8")
        self._server = subprocess.Popen(
            [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=place,
            env=environ | environment(),
        )  # fmt: skip
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def run(self, arguments: tuple[str, ...], moment: float = 0, number: int | None = None) -> int:
        """The exit code of a command that gets a signal after some seconds; negative where the signal killed it."""
        assert self._server.stdin is not None
        print(json.dumps(arguments), file=self._server.stdin, flush=True)
        pid = int(self._read())
        if number is not None:
            time.sleep(moment)
            with suppress(ProcessLookupError):  # it has ended
                kill(pid, number)
        return int(self._read())

    def seconds(self, arguments: tuple[str, ...]) -> float:
        """Of a whole run."""
        started = time.monotonic()
        assert self.run(arguments) == 0, (self.place / "run.log").read_text()
        return time.monotonic() - started

    def close(self) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()


@pytest.fixture
def runs(tmp_path) -> Iterator[Runs]:
    """A folder with a tiny model and a text, in which commands run."""
    place = tmp_path / "place"
    place.mkdir()
    build_model("mamba").save_pretrained(place / "model")
    build_tokenizer().save_pretrained(place / "model")
    (place / "text.txt").write_text(TEXT, encoding="utf-8")
    found = Runs(place)
    yield found
    found.close()


def beside(place: Path) -> list[str]:
    return sorted({path.name for path in place.iterdir()} - {"model", "text.txt", "run.log", "out"})


def check_whole(folder: Path) -> str:
    """The sparsity of a result, each of whose files loads and says the same."""
    report = PruningReport.load(folder)
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert sum(int((weight == 0).sum()) for weight in model.parameters()) == report.sparsity.model.zeros
    assert not report.warnings and (folder / "README.md").is_file() and (folder / "figures/quality.png").is_file()
    if (folder / "packed").is_dir():
        packed = load_packed(folder / "packed", unpack=True).state_dict()
        assert (
            all(torch.isfinite(weight).all() for weight in packed.values())
            and packed.keys() == model.state_dict().keys()
        )
    return str(report.sparsity.asked)


def one_kill(runs: Runs, kind: str, moment: float, number: int, overwrite: bool) -> str:
    """Kill one run, look at what it left, and say how far it came."""
    out, arguments = runs.place / "out", (*RUN, *KINDS[kind], "--sparsity", NEW)
    shutil.rmtree(out, ignore_errors=True)
    if overwrite:
        shutil.copytree(runs.place.parent / "old", out)
        arguments += ("--overwrite",)
    code = runs.run(arguments, moment, number)
    assert code in (0, -number if number == signal.SIGKILL else 128 + number), (runs.place / "run.log").read_text()
    if number != signal.SIGKILL:
        assert beside(runs.place) == []
    found = check_whole(out) if out.exists() else None
    assert found in ((OLD, NEW) if overwrite else (None, NEW)) and (code != 0 or found == NEW)
    return "ended before" if code == 0 else "published" if found == NEW else "left things" if beside(
        runs.place
    ) else "left nothing"  # fmt: skip


def kills(runs: Runs, kinds: tuple[str, ...], count: int, seed: int) -> dict[str, int]:
    """Kill runs of all kinds, by each signal in turn, at random moments; how many came how far.

    A run that ended before its signal came does not count.
    """
    runs.run((*RUN, "--sparsity", OLD))
    shutil.move(runs.place / "out", runs.place.parent / "old")
    durations = {}
    for kind in kinds:
        durations[kind] = runs.seconds((*RUN, *KINDS[kind], "--sparsity", NEW, "--overwrite"))
    draw, came = random.Random(seed), dict[str, int]()
    turn = 0
    while turn < count:
        kind = kinds[turn // len(SIGNALS) % len(kinds)]
        moment = draw.uniform(0, durations[kind])
        how = one_kill(runs, kind, moment, SIGNALS[turn % len(SIGNALS)], overwrite=draw.random() < 0.5)
        if how == "ended before":  # the machine was slower when the whole run was timed
            durations[kind] = 0.95 * max(moment, 0.5 * durations[kind])
            continue
        turn += 1
        came[how] = came.get(how, 0) + 1
    shutil.rmtree(runs.place / "out", ignore_errors=True)
    assert runs.run((*RUN, "--sparsity", NEW)) == 0
    assert beside(runs.place) == [] and check_whole(runs.place / "out") == NEW
    return came


def test_killed_runs_leave_nothing_broken(runs):
    came = kills(runs, ("plain",), 3, seed=1)
    assert sum(came.values()) == 3


@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason="the kernels are not built or switched off")
def test_sixty_killed_runs_leave_nothing_broken(runs):
    came = kills(runs, tuple(KINDS), 60, seed=0)
    print(came)
    assert sum(came.values()) == 60
