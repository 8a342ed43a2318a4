"""What a user gets wrong is answered in words that help; each default is stated once."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from conftest import run
from rich.console import Console
from tiny_models import build_model, build_tokenizer

from hf_mamba_prune.command import cli, tables
from hf_mamba_prune.report import SpeedFacts

TEXT = "the cat in the hat sat on the mat and then it ran in a line\n" * 60


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a tiny model and a text, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    build_model("mamba").save_pretrained("model")
    build_tokenizer().save_pretrained("model")
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_no_option_states_two_defaults(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "400")
    assert run(command, "--help") == 0
    shown = capsys.readouterr().out
    stated = [line for line in shown.splitlines() if len(re.findall("default:", line, re.I)) > 1]
    assert not stated
    assert command != "demo" or shown.count("efault: ") == 2


WORDS = {
    "a misspelt command": (("pruen", "m3"), "there is no command 'pruen': did you mean `prune`?"),
    "another": (("evalute", "m3", "--eval", "a.txt"), "did you mean `evaluate`?"),
    "hours": (("model", "--max-hours", "1e-9"), "on this CPU, more than the limit of 3.6e-06 seconds: choose"),
    "no hours": (("model", "--max-hours", "0"), "--max-hours is 0; expected hours above 0, such as 0.5."),
    "negative hours": (("model", "--max-hours=-1"), "--max-hours is -1; expected hours above 0"),
    "pattern": (
        ("model", "--pattern", "2:4", "--sparsity", "0.7"),
        "but sparsity is 0.7: it keeps 2 of every 4 weights, so leave the sparsity out, or the pattern.",
    ),
    "twice": (
        ("model", "--component-sparsity", "out_proj=0.5", "--component-sparsity", "out_proj =0.6"),
        "--component-sparsity names out_proj twice: give one sparsity for each component.",
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_words_that_help(place, capsys, name):
    request, wanted = WORDS[name]
    assert run(*request) == 2
    error = capsys.readouterr().err.strip()
    assert wanted in error and len(error.splitlines()) == 1


def test_hours_below_one_are_said_in_a_unit_that_shows_them(place, capsys):
    assert run("model", "--calibration", "text.txt", "--max-hours", "0.0001", "--calibration-samples", "100000") == 2
    error = capsys.readouterr().err
    assert "0.36 seconds" in error and "0.0 hours" not in error


def test_help_is_help_unless_it_is_a_model(place, capsys):
    assert run("help") == 0 and "Usage: hf-mamba-prune [OPTIONS] COMMAND" in capsys.readouterr().out
    assert run("help", "pack") == 0 and "Usage: hf-mamba-prune pack" in capsys.readouterr().out
    assert cli.with_default_command(["pruen", "--sparsity", "0.5"]) == ["prune", "pruen", "--sparsity", "0.5"]
    for name in ("help", "pruen"):
        Path(name).mkdir()
        assert cli.with_default_command([name, "x"]) == ["prune", name, "x"]


GIVEN = {"none": (), "calibration": ("--calibration", "text.txt"), "evaluation": ("--eval", "text.txt")}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_a_default_text_that_cannot_be_had_is_said_at_the_start_with_both_flags(place, capsys, monkeypatch, given):
    def fail(*arguments: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    monkeypatch.setattr("hf_mamba_prune.job.choices.load_model", fail)
    assert run("model", "--calibration-samples", "2", "--calibration-length", "16", *given) == 1
    error = capsys.readouterr().err
    assert "the data set 'wikitext' could not be read" in error and len(error.splitlines()) == 1
    assert "wikitext is the default of --calibration and of --eval: name a text of your own" in error


def unreachable(*arguments: object, **options: object) -> None:
    raise ConnectionError("no network")


def speed(name: str, values: str, size: int) -> SpeedFacts:
    return SpeedFacts(
        name=name, values=values, kernels="avx2", threads=1, file_bytes=size, memory_bytes=1, prompt_tokens=1,
        prefill_tokens_per_second=1.0, new_tokens=1, decode_tokens_per_second=1.0,
    )  # fmt: skip


@pytest.mark.parametrize("saved, shown", [("float32", "5.0"), ("bfloat16", "10.0"), (None, "10.0")])
def test_the_files_of_a_summary_are_of_one_type(saved, shown):
    out = io.StringIO()
    speeds = (speed("dense, native kernels", "bfloat16", 10_000_000), speed("packed", "bfloat16", 2_000_000))
    facts = {"processor": "a processor", "kernels": "avx2"}
    tables.show_speeds(Console(file=out, width=200), speeds, facts, saved)
    rows = {line.split("  ")[0]: line.split() for line in out.getvalue().splitlines() if line}
    assert rows["dense, native kernels"][4] == shown and rows["packed"][2] == "2.0"
    assert ("The dense file as bfloat16; as float32, as it is saved, 10.0 MB." in out.getvalue()) == (
        saved == "float32"
    )
