"""The one-token step under dense models: stock's logits, where modules need not be called; else stock's modules."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from native_cases import instruction_sets
from packed_cases import needs_kernels, token_by_token, tokens

from hf_mamba_prune import native
from hf_mamba_prune.native import engine

pytestmark = needs_kernels
LOOSE = dict(rtol=1e-4, atol=1e-4)


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """Batches of the native steps that were made."""
    made, step = [], engine.TokenEngine.step

    def counted(self, tokens, cache):
        made.append(len(tokens))
        return step(self, tokens, cache)

    monkeypatch.setattr(engine.TokenEngine, "step", counted)
    return made


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("batch", [1, 9])
def test_dense_models_step_natively(model, steps, isa, dtype, batch):
    model = model.to(dtype)
    ids = tokens(9, batch)
    exact = copy.deepcopy(model).float()
    with torch.no_grad():
        expected = exact(ids).logits[:, 5:]
        with native.use_native(exact), native.force_instruction_set(isa):
            torch.testing.assert_close(token_by_token(exact, ids, 5), expected, **LOOSE)
        assert steps == [batch] * 4
        if dtype != torch.float16:  # stock's own prefill is not made for it
            with native.use_native(model), native.force_instruction_set(isa):
                found = token_by_token(model, ids, 5)
            assert (found - expected).norm() < 0.05 * expected.norm() and len(steps) == 8


@pytest.mark.parametrize("batch", [1, 3])
def test_several_tokens_after_a_cache_are_right_and_padding_is_refused(model, batch):
    ids = tokens(12, batch)
    mask = torch.ones_like(ids)
    mask[0, 6] = 0
    with torch.no_grad(), native.use_native(model):
        cache = model(ids[:, :4], use_cache=True).cache_params
        found = model(ids[:, 4:], cache_params=cache).logits
        if model.config.model_type != "mamba2":
            with pytest.raises(ValueError, match="tokens after a cache are padded"):
                model(ids[:, 4:], cache_params=cache, attention_mask=mask)
    with torch.no_grad():
        torch.testing.assert_close(found, model(ids).logits[:, 4:], **LOOSE)


def test_modules_are_called_where_somebody_waits_for_it(model, steps):
    ids, seen = tokens(9), []
    block = model.backbone.layers[1]
    with native.use_native(model):
        cache = model(ids[:, :4], use_cache=True).cache_params
        with torch.no_grad():
            model(ids[:, 4:5], cache_params=cache)
        assert len(steps) == 1
        hook = block.mixer.out_proj.register_forward_hook(lambda *_: seen.append(1))
        with torch.no_grad():
            model(ids[:, 5:6], cache_params=cache)
        hook.remove()
        assert len(steps) == len(seen) == 1
        assert model(ids[:, 6:7], cache_params=cache).logits.requires_grad and len(steps) == 1
        block.mixer.out_proj.forward = lambda x: seen.append(2) or 0 * x @ block.mixer.out_proj.weight.T
        with torch.no_grad():
            cache = model(ids[:, :4], use_cache=True).cache_params
            model(ids[:, 4:5], cache_params=cache)
        assert seen[-1] == 2 and len(steps) == 1


def test_changed_weights_are_seen_by_the_next_text(model):
    with torch.no_grad(), native.use_native(model):
        before = token_by_token(model, tokens(9), 5)
        for weight in model.parameters():
            weight.mul_(0.9)
        changed = token_by_token(model, tokens(9), 5)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 2)
        doubled = token_by_token(model, tokens(9), 5)
        model.backbone.layers[0].mixer.A_log.data = model.backbone.layers[0].mixer.A_log.data + 3
        last = token_by_token(model, tokens(9), 5)
    with torch.no_grad():
        torch.testing.assert_close(last, model(tokens(9)).logits[:, 5:], **LOOSE)
    assert not torch.allclose(before, changed) and not torch.allclose(doubled, last)
    torch.testing.assert_close(doubled, 2 * changed, **LOOSE)


def test_copies_have_engines_of_their_own(model):
    with torch.no_grad(), native.use_native(model):
        expected = token_by_token(model, tokens(9), 5)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert vars(other)["_token_engine"] is None
            torch.testing.assert_close(token_by_token(other, tokens(9), 5), expected)


def test_every_architecture_of_the_table_has_a_step(model):
    parts = engine._parts_of(model)
    assert parts is not None and len(parts.layers) == model.config.num_hidden_layers
