"""A config.json that cannot be is one sentence, said before anything of its sizes is made."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from conftest import run
from safetensors.torch import load_file
from tiny_models import build_model, build_tokenizer

from hf_mamba_prune.files.loading import load_model, load_skeleton

INFINITE = float("inf")


@pytest.fixture
def folder(tmp_path) -> Path:
    return written("mamba", tmp_path)


def written(case: str, folder: Path) -> Path:
    build_model(case).save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    return folder / "model"


def edit(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused_in_one_sentence(folder: Path, message: str) -> None:
    for load in (load_skeleton, load_model):
        with pytest.raises(ValueError, match=message) as refused:
            load(str(folder))
        said = str(refused.value)
        assert "\n" not in said and len(said) < 500 + len(str(folder))


SIZE = "expected a whole number of at least 1"
WRONG = {
    "hidden_size": (["24", None, 24.0, True, 0, -4, [24], 1 << 40], SIZE),
    "num_hidden_layers": ([2.0, None, 0, -1], SIZE),
    "vocab_size": ([2e8, "264"], SIZE),
    "expand": ([2.0, "2", 0], SIZE),
    "state_size": ([0, None], SIZE),
    "conv_kernel": ([0, 4.5], SIZE),
    "time_step_rank": (["x", 0, 1.5, None], "expected 'auto', or a whole number"),
    "layer_norm_epsilon": (["x", 0, -1, INFINITE, float("nan"), None], "expected a finite number above 0"),
    "initializer_range": (["x", INFINITE, None], "expected a finite number"),
    "tie_word_embeddings": (["yes", 1, None], "expected true or false"),
    "hidden_act": (["nonsense", 5, None, ["silu"]], "expected the name of an activation"),
    "eos_token_id": (["a", [1, "a"], 1.5], "expected a token id"),
    "dtype": (["float8", 5, "int8"], "expected one of float32"),
    "id2label": ([5, "x"], "expected a mapping"),
    "use_kernels": ([True, {"x": "evil/kernel"}], "expected none: which kernels run a model"),
    "kernel_config": ([{"RMSNorm": "evil/kernel"}], "expected none: which kernels run a model"),
    "attn_implementation": (["flash_attention_2", 5, "evil/kernel"], "expected none: a state-space model has no"),
    "to_dict": ([5], "has 'to_dict', which is no setting of a model"),
    "attribute_map": ([5, {"hidden_size": "vocab_size"}], "has 'attribute_map', which is no setting"),
    "base_model_tp_plan": ([5], "has 'base_model_tp_plan', which is no setting"),
    "sub_configs": ([5], "has 'sub_configs', which is no setting"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_named_with_what_was_expected(folder, name):
    values, message = WRONG[name]
    for value in values:
        edit(folder, **{name: value})
        refused_in_one_sentence(folder, f"config.json of .*{message}")


WRONG_MAMBA2 = {
    "num_heads": [-1, 0, 5, None],
    "head_dim": [0, 5],
    "n_groups": [0, 3, -1],
    "chunk_size": [0, None],
    "time_step_limit": [
        [0.0, "Infinity"], [0.0], 5, None, [2.0, 1.0], [float("nan"), 1.0], [0.0, None], "01", [0, True], [-1.0, 1.0],
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_MAMBA2)
def test_so_are_the_heads_and_the_time_step_of_mamba2(tmp_path, name):
    folder = written("mamba2", tmp_path)
    for value in WRONG_MAMBA2[name]:
        edit(folder, **{name: value})
        refused_in_one_sentence(
            folder, f"config.json of .*{name}.*expected|config.json of .*expected the two products"
        )


@pytest.mark.parametrize("limit", [[0.0, INFINITE], [0.0, 5.0], [0.0, {"__float__": "Infinity"}]], ids=str)
def test_a_time_step_without_a_limit_is_read_as_transformers_writes_it(tmp_path, limit):
    folder = written("mamba2", tmp_path)
    edit(folder, time_step_limit=limit)
    found = load_model(str(folder)).model.config.time_step_limit
    assert tuple(found) == (0.0, 5 if limit[1] == 5 else INFINITE)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4-bit"),
        ({"quant_method": "gptq", "bits": 3}, "gptq, 3-bit"),
        ({"quant_method": "awq", "bits": 4}, "awq, 4-bit"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": ["x"]}, "an unknown method"),
        ({}, "an unknown method"),
        (5, "5"),
    ],
)
def test_a_quantized_checkpoint_is_named_as_such_also_by_info(folder, values, named, capsys):
    edit(folder, quantization_config=values)
    refused_in_one_sentence(folder, rf"is quantized \({named}\), so its weights are codes .* take the model that it")
    assert run("info", str(folder)) == 2
    assert f"is quantized ({named})" in capsys.readouterr().err


SIZES = [{"num_hidden_layers": 10**9}, {"vocab_size": 2 * 10**8}, {"hidden_size": 1 << 20}, {"state_size": 1 << 28},
         {"hidden_size": 2**31 - 1, "vocab_size": 2**31 - 1, "expand": 2**31 - 1}]  # fmt: skip


@pytest.mark.parametrize("values", SIZES, ids=str)
@pytest.mark.parametrize("form", ["safetensors", "pickle", "original", "config alone"])
def test_a_size_beyond_the_weights_is_refused_before_anything_is_built(folder, values, form):
    state = load_file(folder / "model.safetensors")
    if form != "safetensors":
        (folder / "model.safetensors").unlink()
    if form in ("pickle", "original"):
        torch.save(state, folder / "pytorch_model.bin")
    if form == "original":
        names = {"num_hidden_layers": "n_layer", "hidden_size": "d_model"}
        values = {names.get(name, name): value for name, value in values.items()}
        ssm = {"expand": values.get("expand", 2), "d_state": values.get("state_size", 4)}
        (folder / "config.json").write_text(
            json.dumps({"d_model": 24, "n_layer": 2, "vocab_size": 264, "ssm_cfg": ssm} | values)
        )
    else:
        edit(folder, **values)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loads = (load_model, load_skeleton) if form != "config alone" or "num_hidden_layers" in values else (load_model,)
    for load in loads:
        with pytest.raises(ValueError, match=r"config.json|cannot be loaded"):
            load(str(folder))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_pickle_that_shows_few_bytes_as_many_weights_counts_as_few(folder):
    (folder / "model.safetensors").unlink()
    state = {f"backbone.layers.{i}.x": torch.zeros(1).expand(1 << 40) for i in range(2)}
    torch.save(state, folder / "pytorch_model.bin")
    edit(folder, vocab_size=10**8)
    with pytest.raises(ValueError, match="it describes .* of them, and the files hold 2"):
        load_model(str(folder))
