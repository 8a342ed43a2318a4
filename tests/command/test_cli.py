"""The command as a user meets it: exit codes, one clear line for a mistake, nothing half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import local_hub as hubs
import pytest
import torch
from conftest import run
from tiny_models import build_model, build_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_mamba_prune import PruningReport
from hf_mamba_prune.command import cli

TEXT = "the cat in the hat sat on the mat and then it ran in a line\n" * 60


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a tiny model and texts, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    build_model("mamba").save_pretrained("model")
    build_tokenizer().save_pretrained("model")
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


SMALL = ("--calibration", "text.txt", "--calibration-samples", "3", "--calibration-length", "16")
MEASURE = ("--eval", "text.txt", "--window", "32")


def test_prunes_into_a_folder_that_plain_transformers_loads(place, capsys):
    assert run("model", "--sparsity", "0.7", *SMALL, *MEASURE, "--output", "out") == 0
    shown = capsys.readouterr().out
    assert "perplexity, text.txt" in shown and "Saved in out" in shown
    report = PruningReport.load("out")
    assert report.sparsity.prunable.zeros == report.sparsity.masked == round(0.7 * report.sparsity.prunable.weights)
    assert report.command.startswith("hf-mamba-prune model --sparsity 0.7")
    model, found = AutoModelForCausalLM.from_pretrained("out", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert sum(int((p == 0).sum()) for p in model.parameters()) == report.sparsity.model.zeros
    assert {p.name for p in Path("out/figures").iterdir()} == {"sparsity.png", "quality.png"}


def test_the_default_output_says_model_and_sparsity(place):
    assert run("model", "--pattern", "2:4", "--score", "magnitude", "--no-reconstruct", "--no-eval", "--quiet") == 0
    assert PruningReport.load("model-pruned-50").sparsity.asked == 0.5


def test_json_prints_the_report_and_nothing_else(place, capsys):
    assert run("model", *SMALL, "--no-eval", "--json", "--output", "out") == 0
    assert PruningReport.from_dict(json.loads(capsys.readouterr().out)) == PruningReport.load("out")


def test_dry_run_prints_the_plan_and_changes_nothing(place, capsys):
    before = sorted(place.rglob("*"))
    assert run("model", "--sparsity", "0.7", *SMALL, *MEASURE, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["zeros"] == round(0.7 * plan["prunable"])
    assert plan["weights"] == sum(p.numel() for p in build_model("mamba").parameters())
    assert sorted(place.rglob("*")) == before


def test_evaluate_repeats_the_numbers_of_the_report(place, capsys):
    assert run("model", *SMALL, *MEASURE, "--output", "out", "--quiet") == 0
    assert capsys.readouterr().out == ""
    assert run("evaluate", "out", *MEASURE, "--json") == 0
    measured = json.loads(capsys.readouterr().out)
    report = PruningReport.load("out")
    assert measured["metrics"][0]["perplexity"] == report.after[0].perplexity
    assert measured["sparsity"] == report.sparsity.model.sparsity


def test_info_lists_every_component_and_the_environment(place, capsys):
    assert run("info", "model", "--json") == 0
    records = {r["component"]: r for r in json.loads(capsys.readouterr().out)}
    assert sum(r["share"] for r in records.values()) < 1
    assert records["A_log"]["pruned"] == "never" and records["x_proj"]["parts"] == ["dt", "B", "C"]
    assert run("info") == 0
    assert "native kernels" in capsys.readouterr().out


def test_a_result_is_overwritten_only_when_asked_and_only_when_it_is_ours(place, capsys):
    prune = ("model", "--score", "magnitude", "--no-reconstruct", "--no-eval", "--quiet", "--output", "out")
    assert run(*prune) == 0
    assert run(*prune) == 2 and "--overwrite" in capsys.readouterr().err
    assert run(*prune, "--sparsity", "0.6", "--overwrite") == 0
    assert PruningReport.load("out").sparsity.asked == 0.6
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work", encoding="utf-8")
    assert run(*prune[:-1], "mine", "--overwrite") == 2
    assert Path("mine/thesis.txt").read_text(encoding="utf-8") == "years of work"


def llama(folder: str) -> None:
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=64, intermediate_size=16
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def truncate(folder: str) -> None:
    build_model("mamba").save_pretrained(folder)
    path = Path(folder, "model.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])


def poison(folder: str) -> None:
    model = build_model("mamba")
    with torch.no_grad():
        model.backbone.layers[1].mixer.in_proj.weight[0, 0] = float("nan")
    model.save_pretrained(folder)


MISTAKES = {
    "sparsity below 0": (("--sparsity", "-0.1"), "sparsity is -0.1"),
    "sparsity 1": (("--sparsity", "1"), "sparsity is 1.0"),
    "sparsity nan": (("--sparsity", "nan"), "sparsity is nan"),
    "misspelt score": (("--score", "magnitud"), "Did you mean 'magnitude'?"),
    "misspelt component": (("--components", "in_porj"), "Did you mean 'in_proj'?"),
    "A_log by zeros": (("--components", "A_log"), "A = -exp(A_log)"),
    "pattern that does not divide": (("--pattern", "5:7", "--score", "magnitude"), "7 does not divide"),
    "pattern against sparsity": (("--pattern", "2:4", "--sparsity", "0.7"), "pattern 2:4 means a sparsity of 0.5"),
    "pattern with global": (("--pattern", "2:4", "--allocation", "global"), "only allocation 'uniform'"),
    "share without number": (("--component-sparsity", "out_proj"), "expected NAME=NUMBER"),
    "no calibration file": (("--calibration", "./none.txt"), "there is no file"),
    "empty calibration": (("--calibration", "empty.txt"), "holds no text"),
    "short calibration": (("--calibration-length", "100000"), "too short"),
    "wrong dtype": (("--dtype", "int3"), "dtype is 'int3'"),
    "window of 1": (("--window", "1"), "window is 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_line_and_exit_code_2(place, capsys, name):
    Path("empty.txt").write_text(" \n", encoding="utf-8")
    before = sorted(place.rglob("*"))
    options, message = MISTAKES[name]
    assert run("model", *SMALL, *MEASURE, *options, "--output", "out") == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("make", "message"), [(llama, "'llama'"), (truncate, "damaged or cut short"), (poison, "NaN or infinite")]
)
def test_a_model_that_cannot_be_used_is_refused(place, capsys, make, message):
    make("other")
    build_tokenizer().save_pretrained("other")
    assert run("other", *SMALL, "--no-eval", "--output", "out") == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1 and not Path("out").exists()


def test_an_output_that_cannot_be_written_is_said_before_any_work(place, capsys, monkeypatch):
    # Root may write anywhere, so the system's answer is replaced, not the check.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert run("model", *SMALL, "--output", "locked/out") == 1
    assert "no permission" in capsys.readouterr().err


def test_unknown_id_and_no_network(place, capsys, monkeypatch, local_hub):
    local_hub.attach(monkeypatch, place / "home", hubs.ALICE.token)
    assert run("nobody/nothing", "--output", "out") == 2
    assert "no Hub model 'nobody/nothing'" in capsys.readouterr().err
    local_hub.fail(".*", ".*", status=500, times=None)
    assert run("nobody/nothing", "--output", "out") == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and hubs.ALICE.token not in error


def test_a_model_and_its_data_from_the_hub(place, capsys, monkeypatch, local_hub):
    local_hub.attach(monkeypatch, place / "home", hubs.ALICE.token)
    local_hub.add_model("alice/tiny-mamba", place / "model")
    local_hub.add_dataset("alice/texts", {"train.txt": TEXT.encode(), "test.txt": TEXT.encode()})
    options = ("--calibration", "alice/texts", *SMALL[2:], "--eval", "alice/texts", "--window", "32")
    assert run("alice/tiny-mamba", *options, "--quiet") == 0
    report = PruningReport.load("tiny-mamba-pruned-50")
    assert report.model.id == "alice/tiny-mamba" and len(report.model.revision) == 40
    assert report.calibration.source == report.after[0].text == "alice/texts"
    written = "".join(p.read_text(encoding="utf-8") for p in Path("tiny-mamba-pruned-50").glob("*.json"))
    assert hubs.ALICE.token not in written


def test_debug_shows_the_traceback(place):
    with pytest.raises(ValueError, match="sparsity is 2"):
        cli.main(["model", "--sparsity", "2", "--debug"])


def test_help_and_version(capsys):
    assert run("--version") == 0 and capsys.readouterr().out.startswith("hf-mamba-prune ")
    for command in cli.COMMANDS:
        assert run(command, "--help") == 0 and "Usage" in capsys.readouterr().out


def test_analyze_measures_every_part_and_changes_nothing(place, capsys):
    before = Path("model/model.safetensors").read_bytes()
    ask = ("analyze", "model", *SMALL, *MEASURE, "--levels", "0.5,0.9", "--output", "found")
    assert run(*ask) == 0
    printed = capsys.readouterr().out
    assert "x_proj.B" in printed and "block 1" in printed and "90%" in printed
    assert {p.name for p in Path("found").iterdir()} == {"analysis.json", "analysis.png"}
    assert Path("model/model.safetensors").read_bytes() == before
    assert run(*ask) == 2  # the folder holds something
    assert run("analyze", "model", *SMALL, *MEASURE, "--levels", "0.5,1.5", "--output", "new") == 2
    assert run("analyze", "model", *SMALL, *MEASURE, "--levels", "half", "--output", "new") == 2
    assert not Path("new").exists()
