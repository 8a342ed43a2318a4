"""Packed models where people use transformers: one table of habits over all architectures, against the dense model."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from typing import Any

import pytest
import torch
from packed_cases import CASES, load, save, tokens
from tiny_models import build_model, build_tokenizer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer, pipeline

from hf_mamba_prune import PackedConfig, PruningConfig, native, prune
from hf_mamba_prune.packed.checkpoint import write_packed_model
from hf_mamba_prune.packed.modules import PackedEmbedding, PackedLinear, PackedWeight, packed_modules
from hf_mamba_prune.texts.sources import TextSource

LOOSE = dict(rtol=1e-4, atol=1e-4)


@pytest.fixture(params=["mamba", "mamba2", "mamba2-tied", "falcon_mamba"])
def pair(request, tmp_path):
    """A dense model and the same packed, as `AutoModelForCausalLM` loads it from `packed` in a folder."""
    dense = save(tmp_path / "packed", request.param)
    return dense, AutoModelForCausalLM.from_pretrained(tmp_path, subfolder="packed", **unpacked(False))


def unpacked(unpack: bool) -> dict[str, Any]:
    """What keeps weights packed on every machine, where that is not the default."""
    return {} if native.available() and not unpack else {"quantization_config": PackedConfig(unpack=unpack)}


def test_it_is_stocks_class_with_packed_layers(pair):
    dense, packed = pair
    assert type(packed) is type(dense) and packed.is_quantized
    linear = sum(isinstance(module, torch.nn.Linear) for module in dense.modules())
    held = packed_modules(packed)
    assert sum(isinstance(module, PackedLinear) for module in held.values()) == linear
    assert isinstance(packed.get_input_embeddings(), PackedEmbedding) and len(held) == linear + 1
    described = packed.config.quantization_config.to_dict()
    assert described.keys() == {"quant_method", "version", "values", "dtype", "sha256"}
    assert packed.config.model_type == dense.config.model_type


GENERATION = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 5},
    "beams": {"num_beams": 3},
    "scores": {"output_scores": True, "output_logits": True},
    "hidden states": {"output_hidden_states": True},
    "one": {"max_new_tokens": 1},
    "least": {"min_new_tokens": 3, "do_sample": True, "temperature": 2.0},
    "several": {"num_return_sequences": 2, "do_sample": True},
}


@pytest.mark.parametrize("options", GENERATION.values(), ids=GENERATION)
@pytest.mark.parametrize("given", ["input_ids", "inputs_embeds"])
def test_generate_gives_what_the_dense_model_gives(pair, options, given):
    outs = []
    for model in pair:
        torch.manual_seed(0)
        ids = tokens(6, 2)
        inputs = {"inputs_embeds": model.get_input_embeddings()(ids)} if given == "inputs_embeds" else {given: ids}
        asked = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True} | options
        outs.append(model.generate(**inputs, **asked))
    expected, found = outs
    assert torch.equal(found.sequences, expected.sequences) and found.keys() == expected.keys()
    for name in ("scores", "logits", "hidden_states"):
        if name in expected:
            torch.testing.assert_close(flat(found[name]), flat(expected[name]), **LOOSE)


def flat(nested: Any) -> list[torch.Tensor]:
    return [nested] if isinstance(nested, torch.Tensor) else [tensor for one in nested for tensor in flat(one)]


def test_assisted_generation_ends_as_with_the_dense_model(pair):
    outs = []
    for model in pair:
        with pytest.raises(ValueError) as error:
            model.generate(tokens(4), max_new_tokens=4, assistant_model=model)
        outs.append(str(error.value))
    assert outs[0] == outs[1] and "stateful" in outs[0]


def test_padded_batches_and_streamers(pair, tmp_path):
    dense, packed = pair
    ids, mask = tokens(9, 2), torch.ones(2, 9, dtype=torch.long)
    ids[0, :3], mask[0, :3] = 0, 0
    options = dict(attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(packed.generate(ids, **options), dense.generate(ids, **options))
    streamer = TextIteratorStreamer(build_tokenizer())
    work = threading.Thread(target=packed.generate, args=(ids[1:],), kwargs=dict(max_new_tokens=6, streamer=streamer))
    work.start()
    assert len("".join(streamer)) > 0
    work.join()


@pytest.mark.parametrize("more", [{}, {"output_hidden_states": True}, {"labels": tokens(8)}, {"logits_to_keep": 3}])
def test_several_tokens_after_a_cache_continue_it(pair, more):
    dense, packed = pair
    ids = tokens(12)
    with torch.no_grad():
        whole = dense(ids, output_hidden_states=True)
        for model in pair:
            with native.use_native(model):
                cache = model(ids[:, :4], use_cache=True).cache_params
                rest = model(ids[:, 4:], cache_params=cache, use_cache=True, **more)
            kept = rest.logits.shape[1]
            torch.testing.assert_close(rest.logits, whole.logits[:, -kept:], **LOOSE)
            assert kept == more.get("logits_to_keep", 8) and ("loss" in rest) == ("labels" in more)
            if "output_hidden_states" in more:
                torch.testing.assert_close([*rest.hidden_states], [x[:, 4:] for x in whole.hidden_states], **LOOSE)


def test_pipelines_and_tie_weights_and_auto_model(pair, tmp_path):
    dense, packed = pair
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "packed")
    packed.tie_weights()  # as lm-eval's HFLM calls it
    texts = [
        pipeline("text-generation", model=model, tokenizer=tokenizer)("the cat", max_new_tokens=4, do_sample=False)
        for model in pair
    ]
    assert texts[0] == texts[1]
    if native.available():
        assert pipeline("text-generation", model=str(tmp_path / "packed"))("the cat", max_new_tokens=2)
        base = AutoModel.from_pretrained(tmp_path / "packed")
        assert packed_modules(base) and type(base) is type(dense.base_model)
        states = [model(tokens(5)).last_hidden_state for model in (base, dense.base_model)]
        torch.testing.assert_close(*states, **LOOSE)


def test_numbers_and_copies(pair):
    dense, packed = pair
    assert packed.num_parameters() == dense.num_parameters()
    assert packed.num_parameters(only_trainable=True) == 0
    held = sum(weight.nbytes for weight in packed.parameters()) + sum(buffer.nbytes for buffer in packed.buffers())
    assert packed.get_memory_footprint() == held < 1.1 * dense.get_memory_footprint()
    expected = packed(tokens(7)).logits
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(other(tokens(7)).logits, expected)
        assert (other.lm_head.weight is other.get_input_embeddings().weight) == dense.config.tie_word_embeddings


def test_a_saved_state_goes_into_another_packed_model(pair, tmp_path):
    dense, packed = pair
    file = io.BytesIO()
    torch.save(packed.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    with torch.no_grad():
        for weight in dense.parameters():
            weight.zero_()
    save_as = tmp_path / "zeros"
    write_packed_model(save_as, dense, build_tokenizer(), torch.float32)
    other = load(save_as)
    before, after = other(tokens(5)).logits, packed(tokens(5)).logits
    assert not before.any() and after.any()
    other.load_state_dict(state)
    assert torch.equal(other(tokens(5)).logits, after)
    assert torch.equal(other.generate(tokens(5), max_new_tokens=5), packed.generate(tokens(5), max_new_tokens=5))
    name = next(iter(packed_modules(packed))) + ".weight"
    for wrong, message in ((state[name][:-64], "its head says"), (torch.zeros(3), "a packed weight is uint8")):
        with pytest.raises(RuntimeError, match=message):
            other.load_state_dict(state | {name: wrong})
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({key: tensor for key, tensor in state.items() if key != name})


def test_saving_again_gives_equal_bytes(pair, tmp_path):
    _, packed = pair
    packed.save_pretrained(tmp_path / "again")
    load(tmp_path / "again").save_pretrained(tmp_path / "once more")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        first, second, third = ((tmp_path / place / name).read_bytes() for place in ("packed", "again", "once more"))
        assert first == second == third, name


def test_dequantize_gives_back_what_was_packed(tmp_path):
    for case in ("mamba", "mamba2-tied", "falcon_mamba"):
        dense = save(tmp_path / case, case, torch.bfloat16)
        with pytest.warns(UserWarning, match="loading attributes .*'unpack'"):  # transformers' own word
            loaded = AutoModelForCausalLM.from_pretrained(
                tmp_path / case, quantization_config=PackedConfig(unpack=True)
            )
        for found in (load(tmp_path / case).dequantize(), loaded):
            assert found.dtype == torch.bfloat16 and not packed_modules(found)
            assert not getattr(found, "is_quantized", False) and "quantization_config" not in found.config.to_dict()
            wanted = dense.state_dict()
            assert found.state_dict().keys() == wanted.keys()
            assert all(torch.equal(x, wanted[name].bfloat16()) for name, x in found.state_dict().items())
            assert all(parameter.requires_grad for parameter in found.parameters())
            found.save_pretrained(tmp_path / f"{case}-dense")
            assert AutoModelForCausalLM.from_pretrained(tmp_path / f"{case}-dense").dtype == torch.bfloat16
        assert load(tmp_path / case, unpack=True, dtype=torch.float32).dtype == torch.float32
        assert load(tmp_path / case).dequantize(dtype=torch.float32).dtype == torch.float32


@CASES
@pytest.mark.parametrize("values", ["auto", "int8"])
def test_a_dense_checkpoint_is_packed_while_it_is_loaded(tmp_path, case, values):
    save(tmp_path / "p", case, torch.bfloat16, values)
    build_model(case)
    load(tmp_path / "p", unpack=True).save_pretrained(tmp_path / "dense")
    config = PackedConfig(values=values)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config)
    assert found.config.quantization_config.dtype == "bfloat16" and found.dtype == torch.float32
    if values == "auto":
        found.save_pretrained(tmp_path / "again")
        files = [tmp_path / name / "model.safetensors" for name in ("p", "again")]
        assert files[0].read_bytes() == files[1].read_bytes()
    torch.testing.assert_close(found(tokens(5)).logits, load(tmp_path / "p")(tokens(5)).logits, rtol=0.1, atol=0.1)


def test_what_cannot_be_done_is_refused(pair, tmp_path):
    _, packed = pair
    with pytest.raises(TypeError, match="not an instance of <class 'torch.nn.modules.sparse.Embedding'>"):
        packed.resize_token_embeddings(300)
    with pytest.raises(ValueError, match="is packed or quantized"):
        prune(packed, build_tokenizer(), PruningConfig(sparsity=0.5), TextSource("words", ("the cat",) * 99))
    with pytest.raises(ValueError, match="unpack=True is for packed checkpoints"):
        packed.dequantize().save_pretrained(tmp_path / "dense")
        AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=PackedConfig(unpack=True))


def test_a_weight_reads_as_its_matrix(pair):
    dense, packed = pair
    for name, module in packed_modules(packed).items():
        weight, wanted = module.weight, dense.get_submodule(name).weight.detach()
        assert isinstance(weight, PackedWeight) and weight.dtype == torch.float32 and weight.size() == wanted.shape
        assert weight.numel() == wanted.numel() and weight.element_size() == 1
        steps = torch.randn(2, wanted.shape[1], 3)
        torch.testing.assert_close(weight @ steps, wanted @ steps, rtol=1e-4, atol=1e-5)
