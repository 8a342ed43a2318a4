"""Tokens that a model has no embedding for are one sentence in every command that tokenizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run
from tiny_models import VOCABULARY, build_model, build_tokenizer

TEXT = "the cat in the hat sat on the mat and then it ran in a line\n" * 60
SMALL = ("--calibration", "odd.txt", "--calibration-samples", "3", "--calibration-length", "16", "--steps", "1")
HIGHEST = VOCABULARY + 3


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A model whose tokenizer grew without it, a text with the new word and one without."""
    monkeypatch.chdir(tmp_path)
    build_model("mamba").save_pretrained("model")
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"new-{number}" for number in range(HIGHEST + 1 - len(tokenizer))])
    tokenizer.save_pretrained("model")
    word = tokenizer.convert_ids_to_tokens(HIGHEST)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    Path("odd.txt").write_text(TEXT.replace("cat", word), encoding="utf-8")
    rows = [{"text": f"the {word} sat on the mat"}] * 3
    Path("task.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    Path("word.txt").write_text(word, encoding="utf-8")
    return tmp_path


RECOVER = ("--recipe", "standard", "--recover-steps", "2", "--recover-dataset", "odd.txt")
COMMANDS = {
    "evaluate": ("evaluate", "model", "--eval", "odd.txt", "--window", "16"),
    "tasks": ("evaluate", "model", "--tasks", "task.jsonl"),
    "prune, calibration": ("model", *SMALL, "--no-eval", "--output", "out"),
    "prune, evaluation": ("model", "--score", "magnitude", "--no-reconstruct", "--eval", "odd.txt", "--output", "out"),
    "prune, recovery": ("model", "--score", "magnitude", "--no-reconstruct", "--no-eval", *RECOVER, "--output", "out"),
    "analyze": ("analyze", "model", *SMALL[:6], "--eval", "text.txt", "--window", "16", "--output", "out"),
    "generate": ("generate", "model", "the new-{number} sat"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_highest_id_and_the_vocabulary_are_named(place, capsys, name):
    word = Path("word.txt").read_text(encoding="utf-8")
    assert run(*[part.replace("new-{number}", word) for part in COMMANDS[name]]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-mamba-prune: error")]
    assert f"has token ids up to {HIGHEST}, and the model's vocabulary has {VOCABULARY} (ids up to" in error
    assert "--tokenizer" in error and not Path("out").exists()


def test_words_that_a_text_does_not_use_are_no_matter(place):
    assert run("evaluate", "model", "--eval", "text.txt", "--window", "16") == 0
