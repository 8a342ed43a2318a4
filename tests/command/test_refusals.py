"""What can be refused is refused before anything is announced, by the run and by `--dry-run` with one sentence."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import local_hub as hubs
import pyarrow as pa
import pytest
import torch
from conftest import run
from pyarrow import parquet
from tiny_models import build_model, build_tokenizer

from hf_mamba_prune import PruningReport, TextSource, find_targets

TEXT = "the cat in the hat sat on the mat and then it ran in a line\n" * 60
GOOD = ("--calibration", "text.txt", "--calibration-samples", "2", "--calibration-length", "16", "--steps", "1")
GOOD += ("--eval", "text.txt", "--window", "32", "--output", "out")
PAPER = ("--recipe", "paper", "--recover-batch", "1")
STANDARD = ("--recipe", "standard", "--recover-steps", "2", "--recover-batch", "1")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a tiny model, and texts and tasks good and bad."""
    monkeypatch.chdir(tmp_path)
    build_model("mamba").save_pretrained("model")
    build_tokenizer().save_pretrained("model")
    Path("text.txt").write_text(TEXT * 40, encoding="utf-8")
    Path("short.txt").write_text("the cat\n", encoding="utf-8")
    Path("one.txt").write_text("the", encoding="utf-8")
    Path("empty.txt").write_text(" \n", encoding="utf-8")
    Path("latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    Path("cut.txt.gz").write_bytes(gzip.compress(TEXT.encode())[:-9])
    Path("rows.jsonl").write_text(json.dumps({"title": "a", "body": TEXT}) + "\n", encoding="utf-8")
    Path("broken.jsonl").write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    parquet.write_table(pa.table({"title": ["a"], "body": [TEXT]}), "rows.parquet")
    Path("task.jsonl").write_text(json.dumps({"question": "why"}) + "\n", encoding="utf-8")
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("years of work", encoding="utf-8")
    Path("wordless").mkdir()
    return tmp_path


WRONG = {
    "calibration that is not there": (("--calibration", "./none.txt"), "there is no file"),
    "calibration that is a folder": (("--calibration", "full"), "is a folder"),
    "empty calibration": (("--calibration", "empty.txt"), "holds no text"),
    "short calibration": (("--calibration", "short.txt"), "short.txt is too short"),
    "calibration in another encoding": (("--calibration", "latin.txt"), "is not UTF-8"),
    "calibration cut short": (("--calibration", "cut.txt.gz"), "is not a whole .gz file"),
    "jsonl without a text column": (("--calibration", "rows.jsonl"), "has 2 text columns"),
    "parquet without this column": (("--calibration", "rows.parquet", "--column", "txt"), "no text column 'txt'"),
    "evaluation text that is not there": (("--eval", "./none.txt"), "there is no file"),
    "jsonl that is broken": (("--eval", "broken.jsonl"), "line 2: expected one JSON object"),
    "evaluation text of one token": (("--eval", "one.txt"), "one.txt has 1 tokens; at least 2"),
    "window": (("--window", "1"), "window is 1"),
    "no windows": (("--max-windows", "0"), "max_windows is 0"),
    "training text that is not there": ((*STANDARD, "--recover-dataset", "./none.txt"), "there is no file"),
    "short training text": ((*STANDARD, "--recover-dataset", "short.txt"), "short.txt is too short"),
    "learning rate": ((*STANDARD, "--recover-lr", "2"), "learning_rate is 2"),
    "batch": ((*STANDARD[:-1], "0"), "batch_size is 0"),
    "too few steps to prune in": ((*PAPER, "--recover-steps", "1"), "do not fit between"),
    "a score that training does not measure": ((*PAPER, "--score", "wanda"), "not made of gradients"),
    "an allocation that training does not know": ((*PAPER, "--allocation", "sensitivity"), "dense model at rest"),
    "dtype": (("--dtype", "int3"), "dtype is 'int3'"),
    "device that is none": (("--device", "gpu"), "device is 'gpu'"),
    "device without memory": (("--device", "meta"), "device is 'meta'"),
    "values": (("--pack", "--values", "int5"), "expected one of auto, int8"),
    "component": (("--components", "in_porj"), "Did you mean 'in_proj'?"),
    "pattern": (("--pattern", "5:7"), "7 does not divide"),
    "task that is not there": (("--tasks", "none.jsonl"), "there is no task file"),
    "task with other rows": (("--tasks", "task.jsonl"), "expected 'text', or 'query'"),
    "examples": (("--tasks", "task.jsonl", "--max-examples", "0"), "limit of examples is 0"),
    "output that holds something": (("--output", "full"), "is not empty"),
    "output that is not ours": (("--output", "full", "--overwrite"), "not a result of this tool"),
    "output that is a file": (("--output", "text.txt"), "is not a folder"),
    "tokenizer": (("--tokenizer", "wordless"), "no usable tokenizer"),
    "hours": (("--max-hours", "1e-9"), "more than the limit of 3.6e-06 seconds"),
}


def refused(capsys, *arguments: str) -> tuple[int, str]:
    """The exit code and the sentence of a command that announces nothing."""
    code = run("model", *GOOD, *arguments)
    said = capsys.readouterr()
    assert "About to remove" not in said.out
    return code, said.err.strip()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_refused_by_the_run_and_by_the_dry_run_alike(place, capsys, name):
    options, message = WRONG[name]
    before = sorted(place.rglob("*"))
    code, sentence = refused(capsys, *options)
    assert code == 2 and message in sentence and len(sentence.splitlines()) == 1
    assert sorted(place.rglob("*")) == before
    # The estimate of a refused time is measured anew.
    dry = refused(capsys, *options, "--dry-run")
    assert dry == (2, sentence) or (name == "hours" and dry[0] == 2 and message in dry[1])
    assert sorted(place.rglob("*")) == before


def test_what_is_right_is_planned_and_changes_nothing(place, capsys):
    before = sorted(place.rglob("*"))
    assert run("model", *GOOD, *STANDARD, "--pack", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "Plan (nothing was changed)" in shown and "About to remove" not in shown
    assert sorted(place.rglob("*")) == before


def damage(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def poison(folder: Path) -> None:
    model = build_model("mamba")
    with torch.no_grad():
        model.backbone.layers[0].mixer.in_proj.weight[0, 0] = float("nan")
    model.save_pretrained(folder)


def empty(folder: Path) -> None:
    model = build_model("mamba")
    with torch.no_grad():
        for target in find_targets(model):
            target.weight(model).zero_()
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    "harm, options, message",
    [
        (damage, (), "damaged or cut short"),
        (poison, (), "NaN or infinite"),
        (empty, (*PAPER, "--recover-steps", "4"), "zero already"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_before_anything_is_announced(place, capsys, harm, options, message):
    harm(place / "model")
    code, sentence = refused(capsys, *options)
    assert code == 2 and message in sentence and not Path("out").exists()


def test_where_the_result_cannot_be_pushed_is_said_before_the_work(place, capsys, monkeypatch, local_hub):
    local_hub.attach(monkeypatch, place / "home", None)
    code, sentence = refused(capsys, "--push", "--repo-id", "alice/small")
    assert code == 1 and "not logged in" in sentence
    assert refused(capsys, "--push", "--repo-id", "alice/small", "--dry-run") == (code, sentence)
    local_hub.attach(monkeypatch, place / "home", hubs.ALICE.token)
    code, sentence = refused(capsys, "--push", "--repo-id", "nobody/small")
    assert code == 1 and "you cannot make it" in sentence
    assert refused(capsys, "--push", "--repo-id", "nobody/small", "--dry-run") == (code, sentence)


def test_a_run_reads_each_text_once(place, monkeypatch):
    from hf_mamba_prune.job import choices, prune
    from hf_mamba_prune.texts.sources import read_text

    read: list[str] = []

    def count(source: str, split: str, column: str | None = None) -> TextSource:
        read.append(source)
        return read_text(source, split, column)

    monkeypatch.setattr(prune, "read_text", count)
    monkeypatch.setattr(choices, "read_text", count)
    Path("other.txt").write_text(TEXT, encoding="utf-8")
    assert run("model", *GOOD, *STANDARD, "--eval", "other.txt", "--quiet") == 0
    assert sorted(read) == ["other.txt", "text.txt", "text.txt"]  # what is measured on and trained on; what is held
    assert PruningReport.load("out").recovery.text == "text.txt"
