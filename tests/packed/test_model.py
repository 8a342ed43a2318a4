"""Packed checkpoints: written, loaded, refused when damaged, and run token by token."""

from __future__ import annotations

import psutil
import pytest
import torch
from native_cases import instruction_sets
from packed_cases import CASES, load, needs_kernels, save, token_by_token, tokens
from tiny_models import VOCABULARY, build_model, build_tokenizer
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.generation.streamers import BaseStreamer

from hf_mamba_prune import PackedConfig, native
from hf_mamba_prune.packed.checkpoint import write_packed_model
from hf_mamba_prune.packed.modules import packed_modules


@CASES
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_unpacked_weights_are_those_that_were_packed(tmp_path, case, dtype):
    model = save(tmp_path / "p", case, dtype)
    found = load(tmp_path / "p", unpack=True)
    assert type(found) is type(model)
    assert found.config.model_type == model.config.model_type
    wanted = model.state_dict()
    assert found.state_dict().keys() == wanted.keys()
    for name, weight in found.state_dict().items():
        assert weight.dtype == dtype
        assert torch.equal(weight, wanted[name].to(dtype)), name
    assert found(tokens(5), labels=tokens(5)).loss.requires_grad
    found.save_pretrained(tmp_path / "dense")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in found.state_dict().items())


@CASES
def test_no_first_values_are_made_for_what_the_files_hold(tmp_path, case, monkeypatch):
    made = []
    model = save(tmp_path / "p", case)
    monkeypatch.setattr(type(model), "_init_weights", lambda _, module: made.append(type(module)))
    found = load(tmp_path / "p")
    assert set(made) <= {type(found), type(found.lm_head)}  # the tied head, which the files hold once
    torch.testing.assert_close(found(tokens(4)).logits, model(tokens(4)).logits, rtol=1e-4, atol=1e-5)


@needs_kernels
@CASES
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("batch", (1, 3, 9))
def test_the_native_step_gives_the_dense_models_logits(tmp_path, case, isa, batch):
    model = save(tmp_path / "p", case)
    packed = load(tmp_path / "p")
    ids = tokens(12, batch)
    with native.force_instruction_set(isa), torch.no_grad():
        torch.testing.assert_close(packed(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
        found = token_by_token(packed, ids, 5)
    torch.testing.assert_close(found, model(ids).logits[:, 5:], rtol=1e-4, atol=1e-4)


@needs_kernels
@CASES
@pytest.mark.parametrize("values", ("auto", "int8"))
def test_narrow_values_stay_close(tmp_path, case, values):
    save(tmp_path / "p", case, torch.bfloat16, values)
    packed, dense = load(tmp_path / "p"), load(tmp_path / "p", unpack=True).float()
    ids = tokens(12, 2)
    with torch.no_grad():
        expected = dense(ids).logits
        prefill = packed(ids).logits
    limit = 0.02 if values == "auto" else 0.08
    assert (prefill - expected).norm() < limit * expected.norm()
    assert (token_by_token(packed, ids, 5) - expected[:, 5:]).norm() < limit * expected[:, 5:].norm()


@needs_kernels
def test_tokens_after_a_cache_continue_it_however_many_come(tmp_path):
    model = save(tmp_path / "p")
    packed, ids = load(tmp_path / "p"), tokens(12)
    with torch.no_grad():
        cache = packed(ids[:, :4], use_cache=True).cache_params
        rest = packed(ids[:, 4:], cache_params=cache, use_cache=True).logits
        last = packed(
            ids[:, 4:], cache_params=packed(ids[:, :4], use_cache=True).cache_params, logits_to_keep=1
        ).logits
    torch.testing.assert_close(rest, model(ids).logits[:, 4:], rtol=1e-4, atol=1e-4)
    assert torch.equal(last, rest[:, -1:])


@needs_kernels
def test_a_token_that_there_is_not_is_refused(tmp_path):
    save(tmp_path / "p")
    packed = load(tmp_path / "p")
    cache = packed(tokens(4), use_cache=True).cache_params
    for wrong in (-1, VOCABULARY):
        with pytest.raises(IndexError, match=f"of {VOCABULARY}"):
            packed(torch.tensor([[wrong]]), cache_params=cache)


@needs_kernels
def test_a_cache_of_another_batch_or_model_is_refused(tmp_path):
    save(tmp_path / "p")
    save(tmp_path / "two", "mamba2")
    packed, other = load(tmp_path / "p"), load(tmp_path / "two")
    cache = packed(tokens(4), use_cache=True).cache_params
    with pytest.raises(ValueError, match="expected 2 sequences"):
        packed(tokens(1, 2), cache_params=cache)
    with pytest.raises(ValueError, match="the cache holds"):
        packed(tokens(1), cache_params=other(tokens(4), use_cache=True).cache_params)
    with pytest.raises(ValueError, match="the cache has 0 layers"):
        packed(tokens(1), cache_params=DynamicCache())


@needs_kernels
def test_states_that_were_exchanged_between_two_tokens_are_looked_at_again(tmp_path):
    save(tmp_path / "p")
    packed = load(tmp_path / "p")
    caches = [packed(tokens(4), use_cache=True).cache_params for _ in range(2)]
    for cache in caches:
        packed(tokens(1), cache_params=cache)
    states = caches[0].layers[-1].recurrent_states
    states[0] = states[0].double()
    found, expected = (packed(tokens(1), cache_params=cache).logits for cache in caches)
    assert torch.equal(found, expected)
    states[0] = states[0][:, :-1]
    with pytest.raises(ValueError, match="the cache holds"):
        packed(tokens(1), cache_params=caches[0])


@CASES
def test_generation_is_that_of_the_dense_model(tmp_path, case):
    model = save(tmp_path / "p", case)
    packed, ids = load(tmp_path / "p"), tokens(6, 2)
    for options in (dict(do_sample=False), dict(do_sample=False, num_beams=3), dict(do_sample=True, top_k=5)):
        torch.manual_seed(0)
        expected = model.generate(ids, max_new_tokens=12, **options)
        torch.manual_seed(0)
        assert torch.equal(packed.generate(ids, max_new_tokens=12, **options), expected), options


def test_left_padding_is_exact(tmp_path):
    model = save(tmp_path / "p")
    packed, ids = load(tmp_path / "p"), tokens(6)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    both = torch.cat([padded, tokens(9, seed=3)])
    mask = torch.ones_like(both)
    mask[0, :3] = 0
    found = packed.generate(both, attention_mask=mask, max_new_tokens=8, do_sample=False)[0, 9:]
    assert torch.equal(found, model.generate(ids, max_new_tokens=8, do_sample=False)[0, 6:])


def test_a_packed_model_says_what_it_does_not_do(tmp_path):
    save(tmp_path / "p")
    packed = load(tmp_path / "p")
    with pytest.raises(ValueError, match="`.half\\(\\)` is not supported for quantized model"):
        packed.half()
    for target in (torch.bfloat16, "meta"):
        with pytest.raises(RuntimeError, match="call dequantize\\(\\) first"):
            packed.to(target)
    with pytest.raises(RuntimeError, match="leave unpack=False out"):
        load(tmp_path / "p", device_map="cuda")
    with pytest.raises(ValueError, match="dtype is torch.float16, and the packed weights are float32"):
        load(tmp_path / "p", dtype=torch.float16)
    with pytest.raises(TypeError, match="unexpected keyword argument 'unpakc'"):
        load(tmp_path / "p", unpakc=True)
    with pytest.raises(ValueError, match="does not take {'vlaues': 'int8'}"):
        PackedConfig(vlaues="int8")
    assert not any(weight.requires_grad for weight in packed.parameters())
    assert packed.to("cpu") is packed


def test_without_fast_kernels_weights_are_unpacked(tmp_path, monkeypatch, caplog):
    save(tmp_path / "p")
    monkeypatch.setenv("HF_MAMBA_PRUNE_NATIVE", "0")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "p")
    assert not packed_modules(dense) and not getattr(dense, "is_quantized", False)
    assert "would run slower" in caplog.text
    packed = load(tmp_path / "p", unpack=False)
    ids = tokens(9)
    dense = load(tmp_path / "p", unpack=True)
    with torch.no_grad():
        torch.testing.assert_close(token_by_token(packed, ids, 4), dense(ids).logits[:, 4:], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_packed_says_so(tmp_path):
    with pytest.raises(ValueError, match="expected one of auto, int8"):
        write_packed_model(tmp_path, build_model("mamba"), build_tokenizer(), torch.float32, "int3")


@needs_kernels
@pytest.mark.slow
def test_ten_thousand_tokens_keep_the_memory_constant(tmp_path):
    save(tmp_path / "p", dtype=torch.bfloat16, values="int8")
    packed, process = load(tmp_path / "p"), psutil.Process()
    packed.generation_config.eos_token_id = None
    seen = []

    class Watch(BaseStreamer):
        def put(self, value):
            seen.append(process.memory_info().rss)

        def end(self):
            pass

    packed.generate(tokens(8), max_new_tokens=10_000, do_sample=True, streamer=Watch())
    assert len(seen) == 10_001
    assert seen[-1] - seen[1_000] < 4e6
