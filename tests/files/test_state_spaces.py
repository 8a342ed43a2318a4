"""Checkpoints in the original state-spaces layout become the model they were made from, or an error."""

from __future__ import annotations

import pickle
import zipfile

import pytest
import torch
from local_hub import ALICE
from original_checkpoints import original_state, write_original
from tiny_models import VOCABULARY, build_model
from transformers import AutoModelForCausalLM

from hf_mamba_prune.files.loading import load_model
from hf_mamba_prune.files.state_spaces import TOKENIZER, convert_config, is_original_layout, load_original

IDS = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
CASES = ["mamba", "mamba2", "mamba2-tied"]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_model_it_was_made_from(case, model, tmp_path, tokenizer):
    values = write_original(tmp_path / "original", model, tokenizer)
    loaded = load_model(str(tmp_path / "original"))
    assert is_original_layout(values) and loaded.model.config.model_type == model.config.model_type
    assert torch.equal(logits(loaded.model), logits(model))
    tied = loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    assert tied is model.config.tie_word_embeddings and not loaded.model.training
    # Saved in transformers' layout, loaded by transformers alone.
    loaded.model.save_pretrained(tmp_path / "saved")
    again, found = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert torch.equal(logits(again.eval()), logits(model))


def test_a_tied_checkpoint_may_hold_the_head_or_leave_it_out(mamba, tmp_path):
    values = write_original(tmp_path, mamba)
    for with_head in (True, False):
        state = original_state(mamba)
        if not with_head:
            del state["lm_head.weight"]
        torch.save(state, tmp_path / "pytorch_model.bin")
        model = load_original(tmp_path, convert_config(values), None)
        assert torch.equal(logits(model), logits(mamba))
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_dtype_is_that_of_the_checkpoint_unless_asked(mamba, tmp_path, dtype, tokenizer):
    values = write_original(tmp_path, mamba.to(dtype), tokenizer)
    assert load_original(tmp_path, convert_config(values), None).dtype == dtype
    assert load_original(tmp_path, convert_config(values), torch.float32).dtype == torch.float32
    loaded = load_model(str(tmp_path))
    assert (loaded.model.dtype, loaded.saved_dtype) == (torch.float32, dtype)


def test_the_vocabulary_is_padded_as_the_original_code_does():
    values = {"d_model": 16, "n_layer": 1, "vocab_size": 50277, "ssm_cfg": {}, "pad_vocab_size_multiple": 8}
    config = convert_config(values)
    assert (config.vocab_size, config.state_size, config.time_step_rank, config.intermediate_size) == (
        50280,
        16,
        1,
        32,
    )
    assert convert_config(values | {"pad_vocab_size_multiple": 16}).vocab_size == 50288
    heads = convert_config(values | {"ssm_cfg": {"layer": "Mamba2", "headdim": 8, "d_state": 4}})
    assert (heads.model_type, heads.num_heads, heads.n_groups, heads.state_size) == ("mamba2", 4, 1, 4)


def test_the_rest_of_ssm_cfg_is_read_or_means_nothing_to_a_trained_model():
    ssm = {"layer": "Mamba2", "headdim": 8, "dt_limit": [0.001, 0.1], "dt_min": 0.01, "rmsnorm": True, "d_ssm": None}
    config = convert_config({"d_model": 16, "n_layer": 1, "vocab_size": 8, "ssm_cfg": ssm})
    assert tuple(config.time_step_limit) == (0.001, 0.1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"attn_layer_idx": [1]}, "mixes Mamba with attention or MLP layers"),
        ({"d_intermediate": 64}, "mixes Mamba with attention or MLP layers"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "has ssm_cfg.layer 'Mamba3'"),
        ({"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, "'norm_before_gate': True} in its ssm_cfg"),
        ({"ssm_cfg": {"d_stat": 8}}, "'d_stat': 8} in its ssm_cfg, which transformers' Mamba cannot do"),
        ({"rms_norm": False}, "rms_norm False; expected 'Mamba1' or 'Mamba2' with RMSNorm"),
    ],
)
def test_what_transformers_cannot_express_is_refused(more, message):
    with pytest.raises(ValueError, match=message):
        convert_config({"d_model": 16, "n_layer": 1, "vocab_size": 8} | more)


class Payload:
    """Runs a command when it is unpickled carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_executes_nothing(mamba, tmp_path, zipped):
    values = write_original(tmp_path, mamba)
    trace = tmp_path / "executed"
    content = {"backbone.embedding.weight": Payload(trace)}
    if zipped:
        torch.save(content, tmp_path / "pytorch_model.bin")
        assert zipfile.is_zipfile(tmp_path / "pytorch_model.bin")
    else:
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="pytorch_model.bin is not a whole checkpoint of plain tensors"):
        load_original(tmp_path, convert_config(values), None)
    assert not trace.exists()


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


LAYER = "backbone.layers.1.mixer."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(LAYER + "out_proj.weight"), r"does not fit its config.json: .*out_proj.weight"),
        (without("backbone.norm_f.weight"), "does not fit its config.json: .*norm_f.weight"),
        (without("backbone.embedding.weight"), "does not fit its config.json: .*(embeddings|lm_head).weight"),
        (lambda state: state | {"extra.weight": torch.ones(2)}, "does not fit its config.json: .*extra.weight"),
        (lambda state: state | {LAYER + "D": torch.ones(3)}, "does not fit its config.json: 1 mismatched"),
        (lambda state: list(state.values()), "is not a whole checkpoint of plain tensors"),
        (lambda state: {"model": 5, **state}, "is not a whole checkpoint of plain tensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused(mamba, tmp_path, change, message):
    values = write_original(tmp_path, mamba)
    torch.save(change(original_state(mamba)), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="(?s)" + message):
        load_original(tmp_path, convert_config(values), None)


def test_a_checkpoint_that_is_cut_short_or_not_there_is_refused(mamba, tmp_path):
    values = write_original(tmp_path, mamba)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="is not a whole checkpoint of plain tensors"):
        load_original(tmp_path, convert_config(values), None)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is not a whole checkpoint of plain tensors"):
        load_original(tmp_path, convert_config(values), None)
    path.unlink()
    with pytest.raises(ValueError, match="original state-spaces layout but holds no model.safetensors or pytorch"):
        load_original(tmp_path, convert_config(values), None)


def test_the_tokenizer_of_the_family_is_fetched_when_the_folder_has_none(
    local_hub, monkeypatch, tmp_path, mamba, tokenizer
):
    local_hub.attach(monkeypatch, tmp_path / "home", ALICE.token)
    write_original(tmp_path / "original", mamba)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    local_hub.add_model("alice/original", tmp_path / "original")
    with pytest.raises(ValueError, match=TOKENIZER):
        load_model("alice/original")
    local_hub.add_model(TOKENIZER, tmp_path / "tokenizer")
    loaded = load_model("alice/original")
    assert loaded.tokenizer("the thing").input_ids == tokenizer("the thing").input_ids
    assert torch.equal(logits(loaded.model), logits(mamba))


def test_other_models_are_not_mistaken_for_it():
    assert not is_original_layout(build_model("mamba").config.to_dict())
    assert not is_original_layout({"model_type": "mamba", "d_model": 8, "n_layer": 2})
    assert not is_original_layout({"d_model": 8})
