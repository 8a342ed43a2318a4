"""What killed runs leave is removed by the next run of the same output, and signals wait while folders are moved."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hf_mamba_prune.command.signals import ending_cleanly
from hf_mamba_prune.files.interrupts import Interrupts
from hf_mamba_prune.files.saving import whole_folder
from hf_mamba_prune.files.temporary import Temporary, remove_left

KILLED = """
import os, signal, sys
from pathlib import Path
from hf_mamba_prune.files import saving
from hf_mamba_prune.files.temporary import Temporary
goal, moment = Path(sys.argv[1]), sys.argv[2]
rename = Path.rename
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
def rename_and_die(path, goal):
    rename(path, goal)
    die()
if moment == "between the moves":
    Path.rename = rename_and_die
if moment == "removing the old":
    saving.shutil.rmtree = die
with saving.whole_folder(goal, overwrite=True) as folder:
    (folder / "report.json").write_text("new")
    if moment == "writing":
        die()
"""


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed(goal: Path, moment: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(goal), moment], timeout=100)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "moment, left", [("writing", "old"), ("between the moves", "old"), ("removing the old", "new")]
)
def test_the_next_run_removes_what_a_killed_one_left(tmp_path, moment, left):
    goal = tmp_path / "out"
    goal.mkdir()
    (goal / "report.json").write_text("old")
    killed(goal, moment)
    assert len(entries(tmp_path)) == 2  # the temporary folder, or the earlier result that was moved aside
    remove_left(goal)
    assert entries(tmp_path) == ["out"] and (goal / "report.json").read_text() == left


def test_living_runs_other_outputs_and_other_peoples_folders_stay(tmp_path):
    living = Temporary(tmp_path / "out")
    others = [".out.settings", ".out.backup01", ".out2.hf-mamba-prune-abcdefgh", ".out.hf-mamba-prune-notes.txt"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".out.hf-mamba-prune-abcdefgh").mkdir()
    (tmp_path / ".out.hf-mamba-prune-linked00").symlink_to(tmp_path / ".out.settings")
    with whole_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert entries(tmp_path) == sorted(["out", living.path.name, ".out.hf-mamba-prune-linked00", *others])
    living.remove()
    assert not living.path.exists()


def test_a_file_system_without_locks_keeps_what_it_cannot_know(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError("no locks")

    (tmp_path / ".out.hf-mamba-prune-abcdefgh").mkdir()
    monkeypatch.setattr("fcntl.flock", refuse)
    with whole_folder(tmp_path / "out"):
        pass
    assert entries(tmp_path) == [".out.hf-mamba-prune-abcdefgh", "out"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_as_an_exception_and_leaves_nothing(tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, ending_cleanly(), whole_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        signal.raise_signal(number)
    assert ended.value.code == 128 + number and entries(tmp_path) == [] and signal.getsignal(number) == before


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_cleanly():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("owner, name", [(tempfile, "mkdtemp"), (Path, "rename"), (shutil, "rmtree")])
def test_a_signal_in_the_middle_of_a_move_waits_for_its_end(tmp_path, monkeypatch, owner, name):
    real = getattr(owner, name)

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        done = real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGINT)
        return done

    goal = tmp_path / "out"
    goal.mkdir()
    (goal / "report.json").write_text("old")
    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(SystemExit) as ended, ending_cleanly(), whole_folder(goal, overwrite=True) as folder:
        (folder / "report.json").write_text("new")
    assert ended.value.code == 128 + signal.SIGTERM
    wanted = "old" if name == "mkdtemp" else "new"
    assert entries(tmp_path) == ["out"] and (goal / "report.json").read_text() == wanted


def test_the_first_signal_holds_back_the_next_until_what_it_ended_is_cleaned_up():
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        interrupts.release()
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            done.append("cleaned up")
    assert done
