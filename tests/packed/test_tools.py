"""Packed checkpoints in other people's tools: lm-eval's loader, transformers' server, the Hub."""

from __future__ import annotations

import json
from pathlib import Path

import local_hub as hubs
import pytest
import torch
from local_hub import ALICE
from packed_cases import load, needs_kernels, save, tokens
from transformers import AutoModelForCausalLM

from hf_mamba_prune.packed.modules import packed_modules

local_hub = hubs.local_hub
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@needs_kernels
@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")  # HFLM hands over the model's own
@pytest.mark.parametrize("case", ["mamba", "mamba2", "falcon_mamba"])
def test_lm_eval_scores_it_as_the_dense_model(tmp_path, case):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    dense = save(tmp_path / "p", case)
    asked = [
        Instance(request_type="loglikelihood", doc={}, arguments=(start, end), idx=0)
        for start, end in (("the cat", " in the hat"), ("a", " b"))
    ]
    scores = []
    model = HFLM(pretrained=str(tmp_path / "p"), device="cpu", batch_size=2)
    assert packed_modules(model.model)
    for lm in (model, HFLM(pretrained=dense, tokenizer=model.tokenizer, device="cpu", batch_size=2)):
        scores.append(torch.tensor([score for score, _ in lm.loglikelihood(asked, disable_tqdm=True)]))
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-3)


@needs_kernels
def test_transformers_serve_loads_a_working_model(tmp_path):
    model_manager = pytest.importorskip("transformers.cli.serving.model_manager")
    save(tmp_path / "p")
    manager = model_manager.ModelManager(device="cpu", dtype="auto", trust_remote_code=False)
    try:
        model, _ = manager.load_model_and_processor(f"{tmp_path / 'p'}@main")
        assert packed_modules(model)
        told = [one.generate(tokens(5), max_new_tokens=5) for one in (model, load(tmp_path / "p"))]
        assert torch.equal(*told)
    finally:
        manager.shutdown()


@needs_kernels
@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
def test_what_is_pushed_comes_back(tmp_path, local_hub, monkeypatch, way):
    local_hub.attach(monkeypatch, tmp_path / "home", ALICE.token)
    save(tmp_path / "p", "mamba2")
    packed = load(tmp_path / "p")
    if way == "push_to_hub":
        packed.push_to_hub("alice/packed")
    else:
        packed.save_pretrained(tmp_path / "own", push_to_hub=True, repo_id="alice/packed")
    assert {"config.json", "model.safetensors"} <= set(local_hub.files("alice/packed"))
    found = AutoModelForCausalLM.from_pretrained("alice/packed")
    assert packed_modules(found) and torch.equal(found(tokens(5)).logits, packed(tokens(5)).logits)
    described = json.loads(Path(tmp_path / "p" / "config.json").read_text())["quantization_config"]
    assert found.config.quantization_config.to_dict() == described
