"""The command answers at once where nothing is to be done: help, version and wrong options import nothing heavy."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run

import hf_mamba_prune

PACKAGE = Path(hf_mamba_prune.__file__).parent

HEAVY = ("torch", "numpy", "transformers", "datasets", "evaluate", "matplotlib", "accelerate", "huggingface_hub")

ASK = f"""
import sys, types
package = types.ModuleType("hf_mamba_prune")  # the package's own start has its test; here it is the command's
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["hf_mamba_prune"] = package
from hf_mamba_prune.command.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print("found", end.code or 0, *(name for name in {HEAVY!r} if name in sys.modules))
"""

ANSWERS = {
    "help": (("--help",), 0),
    "version": (("--version",), 0),
    "help of a command": (("prune", "--help"), 0),
    "help of another": (("reproduce", "--help"), 0),
    "an option that is not there": (("model", "--spasity", "0.7"), 2),
    "a value of another type": (("model", "--sparsity", "much"), 2),
    "a value out of range": (("model", "--sparsity", "1.5"), 2),
    "an unknown name": (("model", "--score", "magnitud"), 2),
    "an option that would do nothing": (("model", "--values", "int8"), 2),
    "levels that are no numbers": (("analyze", "model", "--levels", "half"), 2),
}


def seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("name", ANSWERS)
def test_what_needs_no_model_imports_nothing_heavy(name):
    arguments, code = ANSWERS[name]
    done = subprocess.run([sys.executable, "-c", ASK, *arguments], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1].strip() == f"found {code}", done.stdout + done.stderr


def test_help_takes_little_of_the_processor():
    before = seconds_of_children()
    subprocess.run([sys.executable, "-c", ASK, "--help"], check=True, capture_output=True)
    # A third of this on a quiet machine; 5 seconds with torch and transformers.
    assert seconds_of_children() - before < 1.5


def test_the_demo_s_help_states_one_default_each(capsys):
    assert run("demo", "--help") == 0
    shown = capsys.readouterr().out
    assert "0.5" not in shown and "pruned-<NN>" not in shown
