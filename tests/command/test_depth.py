"""From the command to the arithmetic of a score there are few calls: whoever follows a parameter reads them all."""

from __future__ import annotations

import traceback
from pathlib import Path

from conftest import run
from tiny_models import build_model, build_tokenizer

import hf_mamba_prune
from hf_mamba_prune.masks.scores.fisher import Fisher

PACKAGE = Path(hf_mamba_prune.__file__).parent
DEEPEST = 12


def test_few_calls_lead_to_a_score(tmp_path, monkeypatch):
    build_model("mamba").save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("the cat in the hat sat on the mat\n" * 60, encoding="utf-8")
    arithmetic, calls = Fisher.__call__, []

    def watched(self, *args):
        own = [frame for frame in traceback.extract_stack() if PACKAGE in Path(frame.filename).parents]
        calls.append([*(frame.name for frame in own), "__call__"])
        return arithmetic(self, *args)

    monkeypatch.setattr(Fisher, "__call__", watched)
    small = ("--calibration-samples", "2", "--calibration-length", "16", "--steps", "1", "--no-eval", "--quiet")
    given = ("--calibration", str(tmp_path / "text.txt"), "--output", str(tmp_path / "out"), *small)
    assert run(str(tmp_path / "model"), *given) == 0
    assert calls and max(map(len, calls)) <= DEEPEST, max(calls, key=len)
