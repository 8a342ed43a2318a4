"""Checkpoints as other people's code writes them: the same model, or one short sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from local_hub import ALICE
from original_checkpoints import original_state, write_original
from safetensors.torch import load_file, save_file
from tiny_models import VOCABULARY
from transformers import AutoModelForCausalLM

from hf_mamba_prune.files.loading import load_model, load_skeleton, load_tokenizer
from hf_mamba_prune.files.state_spaces import convert_config

IDS = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.fixture
def original(mamba, tokenizer, tmp_path) -> Path:
    write_original(tmp_path / "original", mamba, tokenizer)
    return tmp_path / "original"


def rewrite(folder: Path, state: object) -> None:
    torch.save(state, folder / "pytorch_model.bin")


WRAPPED = {
    "module.": lambda state: {f"module.{name}": value for name, value in state.items()},
    "model": lambda state: {"model": state},
    "model, config": lambda state: {"model": state, "step": 5, "config": {"d_model": 24}},
    "lightning": lambda state: {
        "epoch": 1, "pytorch-lightning_version": "2.0",
        "state_dict": {f"model.{name}": v for name, v in state.items()},
        "hyper_parameters": {"lr": 0.1}, "optimizer_states": [{"state": {}}],
    },
    "compiled": lambda state: {"state_dict": {f"_orig_mod.module.{name}": value for name, value in state.items()}},
}  # fmt: skip


@pytest.mark.parametrize("how", WRAPPED)
def test_a_state_dict_that_a_training_loop_wrapped_is_unwrapped(original, mamba, how):
    rewrite(original, WRAPPED[how](original_state(mamba)))
    assert torch.equal(logits(load_model(str(original)).model), logits(mamba))


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("names", ["original", "transformers"])
def test_safetensors_in_the_original_layout_are_read(original, mamba, beside, names):
    state = original_state(mamba) if names == "original" else dict(mamba.state_dict())
    state = {name: value.clone() for name, value in state.items() if name != "lm_head.weight"}
    save_file(state, original / "model.safetensors")
    if not beside:
        (original / "pytorch_model.bin").unlink()
    assert torch.equal(logits(load_model(str(original)).model), logits(mamba))


def test_shards_in_the_original_layout_are_read(original, mamba):
    (original / "pytorch_model.bin").unlink()
    state = list(original_state(mamba).items())
    parts = {"model-00001-of-00002.safetensors": dict(state[:9]), "model-00002-of-00002.safetensors": dict(state[9:])}
    for name, part in parts.items():
        save_file({key: value.clone() for key, value in part.items()}, original / name)
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    (original / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(logits(load_model(str(original)).model), logits(mamba))


@pytest.mark.parametrize("form", ["safetensors", "pickle"])
def test_the_old_name_of_the_embeddings_in_transformers_layout_loads_and_is_saved_under_today_s(
    model, tokenizer, tmp_path, form
):
    folder = tmp_path / "old"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    state["backbone.embedding.weight"] = state.pop("backbone.embeddings.weight")
    if form == "safetensors":
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    else:
        (folder / "model.safetensors").unlink()
        rewrite(folder, state)
    loaded = load_model(str(folder)).model
    assert torch.equal(logits(loaded), logits(model))
    loaded.save_pretrained(tmp_path / "new")
    again, found = AutoModelForCausalLM.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert (
        not found["missing_keys"] and not found["unexpected_keys"] and torch.equal(logits(again.eval()), logits(model))
    )


def edit(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_config_without_a_vocabulary_has_the_original_code_s(original):
    values = json.loads((original / "config.json").read_text())
    del values["vocab_size"]
    (original / "config.json").write_text(json.dumps(values))
    assert convert_config(values).vocab_size == 50280
    with pytest.raises(ValueError, match="does not fit its config.json|does not fit its weights"):
        load_model(str(original))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"d_model": "24"}, "has hidden_size '24'; expected a whole number"),
        ({"n_layer": None}, "has num_hidden_layers None; expected a whole number"),
        ({"vocab_size": None}, "has vocab_size None; expected a whole number"),
        ({"ssm_cfg": 5}, "has ssm_cfg 5; expected a mapping"),
        ({"ssm_cfg": {"d_state": 0}}, "has state_size 0; expected a whole number"),
        ({"ssm_cfg": {"dt_rank": "x"}}, "has time_step_rank 'x'; expected 'auto'"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 7}}, "has headdim 7 and ngroups 1, which do not divide its 48"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 0}}, "has head_dim 0; expected a whole number"),
        ({"pad_vocab_size_multiple": 0}, "has pad_vocab_size_multiple 0; expected a whole number"),
        ({"norm_epsilon": "x"}, "has layer_norm_epsilon 'x'; expected a finite number above 0"),
        ({"tie_embeddings": "x"}, "has tie_word_embeddings 'x'; expected true or false"),
    ],
)
def test_a_wrong_value_in_the_original_layout_is_one_sentence(original, values, message):
    edit(original, **values)
    for load in (load_skeleton, load_model):
        with pytest.raises(ValueError, match=message) as refused:
            load(str(original))
        assert "\n" not in str(refused.value)


def remove_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)


def test_a_missing_tokenizer_names_the_option(original, local_hub, monkeypatch, tmp_path):
    local_hub.attach(monkeypatch, tmp_path / "home", ALICE.token)
    remove_tokenizer(original)
    with pytest.raises(ValueError, match="no tokenizer: .*EleutherAI/gpt-neox-20b.*; name one with --tokenizer"):
        load_model(str(original))
    local_hub.fail(".*", "/api/models/EleutherAI", 500, times=None)
    with pytest.raises(RuntimeError, match="no tokenizer: .*; name one with --tokenizer"):
        load_model(str(original))


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model"])
def test_a_sentencepiece_model_alone_is_called_that(mamba, tokenizer, tmp_path, name):
    mamba.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    with pytest.raises(
        ValueError, match=f"only {name}, a sentencepiece model.*: name one with --tokenizer"
    ) as refused:
        load_tokenizer(str(tmp_path))
    assert "tiktoken" not in str(refused.value)


@pytest.mark.parametrize(
    "values", [{"get_text_config": 5}, {"rope_parameters": 2}, {"torch_dtype": ["a"]}, {"id2label": 5}], ids=str
)
def test_what_transformers_reads_beside_a_tokenizer_is_no_traceback(original, values):
    """The original layout names no type, so nothing but the tokenizer's loader reads these."""
    edit(original, **values)
    with pytest.raises(ValueError, match="has no usable tokenizer .*: name one with --tokenizer") as refused:
        load_model(str(original))
    assert "\n" not in str(refused.value)
