"""Few bits by the command: what comes out, what is planned, and what is refused before the work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import run
from safetensors.torch import load_file
from tiny_models import build_model, build_tokenizer
from transformers import AutoModelForCausalLM

from hf_mamba_prune import PruningReport, find_targets
from hf_mamba_prune.codings.storage import head_of
from hf_mamba_prune.packed.checkpoint import load_packed

TEXT = "the cat in the hat sat on the mat and then it ran in a line\n" * 600
GOOD = ("--calibration", "text.txt", "--calibration-samples", "2", "--calibration-length", "16")
GOOD += ("--eval", "text.txt", "--window", "32", "--max-windows", "2")


@pytest.fixture
def place(tmp_path, monkeypatch, speeds_here) -> Path:
    """A folder with a tiny model and a text."""
    monkeypatch.chdir(tmp_path)
    build_model("mamba").save_pretrained("model")
    build_tokenizer().save_pretrained("model")
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def check_same(folder: Path) -> AutoModelForCausalLM:
    """The dense checkpoint at the root holds what its packed form stands for, bit for bit; the dense model."""
    dense = AutoModelForCausalLM.from_pretrained(folder)
    unpacked = load_packed(folder / "packed", unpack=True).state_dict()
    assert unpacked.keys() == dense.state_dict().keys()
    for name, weight in dense.state_dict().items():
        assert torch.equal(weight, unpacked[name]), name
    return dense


def bits_of(folder: Path) -> float:
    """Of a projection weight in the packed file, by its bytes alone, with what fills up each part."""
    tensors = load_file(folder / "packed" / "model.safetensors")
    targets = find_targets(AutoModelForCausalLM.from_pretrained(folder))
    assert all(tensors[target.name].dtype == torch.uint8 for target in targets)
    return 8 * sum(tensors[target.name].numel() for target in targets) / sum(target.size for target in targets)


def test_bits_end_in_a_folder_whose_parts_agree(place, capsys):
    assert run("model", *GOOD, "--bits", "4.5") == 0
    shown = capsys.readouterr().out
    assert "About to round 12,288 projection weights to 4.5 bits each" in shown and "Where the bits are" in shown
    assert "Where the zeros are" not in shown and "non-zero" not in shown and "pruned" not in shown
    folder = Path("model-4.5-bits")
    dense = check_same(folder)
    report = PruningReport.load(folder)
    assert report.rounding is not None and 0.95 * 4.5 < report.rounding.bits <= 4.5
    assert report.rounding.bits <= bits_of(folder)
    rows = {own.name: sum(own.rows) for own in report.rounding.components}
    assert rows == {
        name: sum(target.shape[0] for target in find_targets(dense) if target.component == name) for name in rows
    }
    assert sum(own.weights for own in report.rounding.components) == 12_288
    assert report.after[0].perplexity != report.before[0].perplexity and report.sparsity.asked == 0
    assert report.config["bits"] == 4.5 and report.speeds[-1].name == "packed"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"rounded to {report.rounding.bits:.3f} bits a projection weight" in card and "## Bits" in card
    assert f"In memory it has {report.rounding.memory_bits:.3f}" in card
    outer = f"{round(report.rounding.embedding_bits, 2):g}"
    assert f"Embeddings and head take {outer} bits a weight in the file" in card and "base_model_relation" not in card
    assert "| dense | rounded | kept |" in card and "## Sparsity" not in card and "- pruned" not in card
    assert [path.name for path in (folder / "figures").iterdir()] == ["quality.png"]


@pytest.mark.slow
def test_what_is_measured_afterwards_is_what_was_shipped(place, capsys):
    assert run("model", *GOOD, "--bits", "3.5", "--quiet") == 0
    after = PruningReport.load("model-3.5-bits").after[0].perplexity
    for folder in ("model-3.5-bits", "model-3.5-bits/packed"):
        capsys.readouterr()
        assert run("evaluate", folder, *GOOD[-6:], "--json") == 0
        found = json.loads(capsys.readouterr().out)["metrics"][0]["perplexity"]
        assert found == pytest.approx(after, rel=1e-3)


@pytest.mark.slow  # tests/bits has the same without the command
def test_a_size_is_that_of_the_file(place, capsys):
    assert run("model", *GOOD, "--size", "28KB") == 0
    assert "About to round 12,288 projection weights to a file of 28.0 kB" in capsys.readouterr().out
    folder = Path("model-0.028MB")
    check_same(folder)
    size = (folder / "packed" / "model.safetensors").stat().st_size
    assert 0.9 * 28_000 < size <= 1.01 * 28_000
    report = PruningReport.load(folder)
    assert report.config["size"] == 28_000 and 2.5 <= report.rounding.embedding_bits <= 6.5


def test_values_of_few_bits_keep_the_zeros_of_a_sparse_model(place, capsys):
    options = ("--steps", "1", "--sparsity", "0.6")
    assert run("model", *GOOD, *options, "--values", "int3") == 0
    shown = capsys.readouterr().out
    assert "and round the others to 3 bits" in shown
    assert "Where the zeros are" in shown and "Where the bits are" in shown
    folder = Path("model-pruned-60")
    dense = check_same(folder)
    targets = find_targets(dense)
    zeros = sum(int((target.weight(dense) == 0).sum()) for target in targets)
    assert zeros == round(0.6 * sum(target.size for target in targets))
    tensors = load_file(folder / "packed" / "model.safetensors")
    assert {head_of(tensors[target.name]).coding for target in targets} == {"int3"}
    report = PruningReport.load(folder)
    assert report.rounding.components[0].rows[3] == sum(report.rounding.components[0].rows)
    assert report.sparsity.prunable.zeros == zeros and report.config["code_bits"] == 3


def test_training_after_rounding_ships_what_it_trained(place):
    training = ("--recipe", "standard", "--recover-steps", "3", "--recover-batch", "1", "--quiet")
    assert run("model", *GOOD, *training, "--bits", "4") == 0
    check_same(Path("model-4-bits"))
    report = PruningReport.load("model-4-bits")
    assert report.recovery.steps == 3 and 0.95 * 4 < report.rounding.bits <= 4
    assert [cost.step for cost in report.costs] == ["evaluate", "round", "recover"]


PLANS = {
    "bits": (("--bits", "2.5"), "2.5 bits each", {"bits": 2.5, "file_bytes": None, "code_bits": None}),
    "size": (("--size", "60MB"), "a file of 60.0 MB", {"bits": None, "file_bytes": 60_000_000, "code_bits": None}),
    "small size": (("--size", "0.03 mb"), "a file of 30.0 kB", {"file_bytes": 30_000}),
    "values": (("--sparsity", "0.6", "--values", "int3"), "the others rounded to", {"bits": None, "code_bits": 3}),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_says_what_it_rounds_to_and_changes_nothing(place, capsys, name):
    options, said, facts = PLANS[name]
    before = sorted(place.rglob("*"))
    assert run("model", *GOOD, *options, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert said in shown and "Plan (nothing was changed)" in shown and "About to" not in shown
    assert ("will be zero" in shown) == (name == "values")
    assert run("model", *GOOD, *options, "--dry-run", "--json") == 0
    assert facts.items() <= json.loads(capsys.readouterr().out).items()
    assert sorted(place.rglob("*")) == before


WRONG = {
    "bits and a sparsity": (("--bits", "3", "--sparsity", "0.5"), "leave out one of them"),
    "bits and a pattern": (("--bits", "3", "--pattern", "2:4"), "leave out one of them"),
    "bits and a component's sparsity": (("--bits", "3", "--component-sparsity", "in_proj=0.5"), "leave out one of"),
    "both budgets": (("--bits", "3", "--size", "1MB"), "bits and size are two answers to one question"),
    "no size": (("--size", "5 parsecs"), "--size is '5 parsecs'; expected a size of a file, like 60MB"),
    "no bits": (("--bits", "nan"), "bits is nan; expected 0.3 to 6.5"),
    "bits of whole numbers": (("--bits", "16"), "bits is 16.0; expected 0.3 to 6.5"),
    "bits that scales alone take": (("--bits", "0.4"), "scales and tables alone take 1.05: give more"),
    "a size that holds nothing": (("--size", "2KB"), "all but the projections' codes takes about 12,766: give more"),
    "bits and values": (("--bits", "3", "--values", "int2"), "--bits and --values int2 are two answers"),
    "a size and values": (("--size", "1MB", "--values", "int8"), "--size and --values int8 are two answers"),
    "values that there are not": (("--bits", "3", "--values", "int5"), "expected one of auto, int8, int1"),
    "rounded from nothing": (("--pack", "--values", "rounded"), "--values rounded is what --bits and --size pack"),
    "embeddings": (("--bits", "3", "--components", "embeddings"), "are rounded to few bits, not embeddings"),
    "embeddings of a sparse model": (
        ("--values", "int3", "--components", "in_proj,embeddings"), "rounded to few bits, not embeddings",
    ),
    "how zeros are chosen": (
        ("--bits", "3", "--steps", "4", "--score", "wanda"), "--score, --steps says how weights become zero",
    ),
    "zeros of no budget": (("--no-zeros",), "--no-zeros is about what --bits and --size may choose"),
    "pruned in training": (("--bits", "3", "--recipe", "paper"), "leaves nothing to prune in training"),
    "pruned in training to no zeros": (("--sparsity", "0", "--recipe", "paper"), "nothing to prune in training"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_contradicts_itself_is_refused_in_one_sentence_and_nothing_is_announced(place, capsys, name):
    options, message = WRONG[name]
    before = sorted(place.rglob("*"))
    for more in ((), ("--dry-run",)):
        assert run("model", *GOOD, *options, *more) == 2
        said = capsys.readouterr()
        assert message in said.err and len(said.err.strip().splitlines()) == 1
        assert "About to" not in said.out and "Plan" not in said.out
    assert sorted(place.rglob("*")) == before


def test_a_size_below_what_the_saved_type_takes_is_refused_before_the_work(place, capsys):
    """Which only the weights tell; the plan knows the shapes alone."""
    assert run("model", *GOOD, "--size", "14KB") == 2
    said = capsys.readouterr()
    assert "about 15,022: give more" in said.err and "About to" not in said.out


@pytest.mark.parametrize("command", ["pack", "bench"])
def test_values_that_need_calibration_are_refused_by_commands_that_have_none(place, capsys, command):
    for values in ("int1", "int2", "int3", "int4", "rounded"):
        assert run(command, "model", "--values", values) == 2
        error = capsys.readouterr().err
        assert "`hf-mamba-prune MODEL --values int4`" in error and len(error.strip().splitlines()) == 1
    assert run(command, "model", "--values", "int5") == 2
    assert "expected one of auto, int8" in capsys.readouterr().err
    assert not Path("model-packed").exists()
