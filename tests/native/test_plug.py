"""The kernels under transformers' own models: the same results, every hook still fires, and back out again."""

from __future__ import annotations

import operator
import sys

import pytest
import torch
from native_cases import distance
from tiny_models import build_model

from hf_mamba_prune import native
from hf_mamba_prune.native import plug, time_major


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three left-padded sequences."""
    ids = torch.randint(1, 200, (3, 37), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    mask[2, :30] = 0
    return {"input_ids": ids, "attention_mask": mask}


def loss_and_gradients(model, batch: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    out = model(**batch, labels=batch["input_ids"])
    out.loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    return gradients | {"logits": out.logits.detach()}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_logits_and_gradients_are_stocks(model, batch, train, padded):
    model.train(train)
    if not padded:
        del batch["attention_mask"]
    expected = loss_and_gradients(model, batch)
    with native.use_native(model) as handle:
        assert handle.active
        found = loss_and_gradients(model, batch)
    assert max(distance(found[name], expected[name]) for name in expected) < 1e-5


def test_generate_gives_stocks_tokens(model, batch):
    options = dict(max_new_tokens=20, do_sample=False, output_scores=True, return_dict_in_generate=True)
    expected = model.generate(**batch, **options)
    with native.use_native(model):
        found = model.generate(**batch, **options)
    for want, have in zip(expected.scores, found.scores, strict=True):
        assert (want - have).abs().max() < 1e-3
        best = want.topk(2).values
        clear = best[:, 0] - best[:, 1] > 2e-3
        assert (want.argmax(-1) == have.argmax(-1))[clear].all()
        if not clear.all():  # from here on the two may continue differently
            break


def test_caches_of_the_two_can_be_handed_over(model, batch):
    ids = batch["input_ids"]
    with torch.no_grad():
        whole = model(ids).logits
        with native.use_native(model):
            cache = model(ids[:, :20], use_cache=True).cache_params
            middle = model(ids[:, 20:21], cache_params=cache).logits
        last = model(ids[:, 21:22], cache_params=cache).logits
    assert distance(middle[:, 0], whole[:, 20]) < 1e-5 and distance(last[:, 0], whole[:, 21]) < 1e-5


def test_decoding_keeps_its_graph_where_weights_want_gradients(model, batch):
    with torch.no_grad(), native.use_native(model):
        cache = model(batch["input_ids"], use_cache=True).cache_params
    with native.use_native(model):
        logits = model(batch["input_ids"][:, :1], cache_params=cache).logits
    assert logits.requires_grad


@pytest.mark.parametrize("train", [False, True])
def test_the_same_hooks_fire(model, batch, train):
    model.train(train)
    fired: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: fired.append(name))
    model(**batch)
    expected, fired[:] = list(fired), []
    with native.use_native(model):
        model(**batch)
    assert fired == expected and any(name.endswith("out_proj") for name in fired)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")  # 5.20 has no other
def test_bfloat16_and_checkpointing_train(model, batch):
    with native.use_native(model):
        expected = loss_and_gradients(model, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = loss_and_gradients(model, batch)
        assert distance(found["logits"], expected["logits"]) < 0.05
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        again = loss_and_gradients(model, batch)
        assert max(distance(again[name], expected[name]) for name in expected) < 1e-5
        half = model.bfloat16()(**batch).logits.detach()
        assert distance(half, expected["logits"]) < 0.1


def test_closing_the_last_handle_puts_stock_back(model):
    path = next(path for path in sorted({type(m).__module__ for m in model.modules()}) if path in plug.EXCHANGED)
    find, names = operator.attrgetter, plug.EXCHANGED[path]
    module = sys.modules[path]
    before = {name: find(name)(module) for name in names}
    first, second = native.use_native(model), native.use_native(torch.nn.Sequential(model))
    first.close()
    first.close()
    assert not first.active and all(find(name)(module) is not before[name] for name in names)
    second.close()
    assert all(find(name)(module) is before[name] for name in names)


def test_nothing_happens_where_it_is_switched_off_or_no_mamba(model, monkeypatch):
    assert not native.use_native(torch.nn.Linear(2, 2)).active
    monkeypatch.setenv("HF_MAMBA_PRUNE_NATIVE", "0")
    assert not native.available() and native.active_instruction_set() == "none"
    assert not native.use_native(model).active


def test_twins_run_where_nothing_was_compiled(model, batch, monkeypatch):
    expected = loss_and_gradients(model, batch)
    monkeypatch.setattr("hf_mamba_prune.native.library._kernels", None)
    assert native.info() == native.info() | {"built": False, "available": False, "instruction_set": "none"}
    with native.use_native(model) as handle:
        assert handle.active
        found = loss_and_gradients(model, batch)
    assert max(distance(found[name], expected[name]) for name in expected) < 1e-5


def test_a_changed_transformers_is_told_and_left_alone(model, monkeypatch):
    path = next(path for path in sorted({type(m).__module__ for m in model.modules()}) if path in plug.EXCHANGED)

    def causal_conv1d_fn(x, weight):
        return x

    monkeypatch.setattr(sys.modules[path], "causal_conv1d_fn", causal_conv1d_fn)
    with pytest.warns(UserWarning, match=r"causal_conv1d_fn takes \(x, weight\) instead of"):
        handle = native.use_native(model)
    assert not handle.active and sys.modules[path].causal_conv1d_fn is causal_conv1d_fn


def test_other_devices_go_to_stock(model, monkeypatch):
    path = next(path for path in sorted({type(m).__module__ for m in model.modules()}) if path in plug.EXCHANGED)
    with native.use_native(model):
        out = sys.modules[path].causal_conv1d_fn(torch.empty(1, 4, 5, device="meta"), torch.empty(4, 4, device="meta"))
    assert out.device.type == "meta"


@pytest.mark.parametrize("architecture", ["mamba", "falcon_mamba"])
def test_the_scan_reads_step_sizes_as_the_product_wrote_them(architecture, monkeypatch):
    model, ids = build_model(architecture), torch.arange(1, 10)[None]
    seen = []

    def scan(u, delta, *inputs, **named):
        seen.append(delta.stride())
        return native.selective_scan(u, delta, *inputs, **named)

    monkeypatch.setattr(plug, "selective_scan", scan)
    with native.use_native(model):
        model(ids)
    d_inner = model.config.intermediate_size
    assert seen == [(9 * d_inner, 1, d_inner)] * model.config.num_hidden_layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_without_gradients_are_stocks(model, dtype):
    norm = model.backbone.layers[0].norm.to(dtype)
    x = torch.randn(2, 5, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0] = 0
    torch.nn.init.normal_(norm.weight)
    before = x.clone()
    with torch.no_grad():
        expected = norm(x)
        with native.use_native(model):
            found = norm(x)
    assert found.dtype == expected.dtype and distance(found, expected) < 1e-6 and torch.equal(x, before)
    x[1, 2, 3] = torch.nan
    with torch.no_grad(), native.use_native(model):
        assert norm(x)[1, 2].isnan().all() and not norm(x)[0].isnan().any()


def test_other_functions_take_the_weight_of_the_step_sizes_as_a_tensor(mamba):
    mixer, steps = mamba.backbone.layers[0].mixer, torch.randn(2, 5, mamba.config.time_step_rank)
    weight = time_major._Mixer(mixer).dt_proj.weight
    expected = torch.nn.functional.linear(steps, mixer.dt_proj.weight)
    assert weight.shape == mixer.dt_proj.weight.shape and weight.dtype == torch.float32
    assert torch.equal(torch.nn.functional.linear(steps, weight), expected)
    assert torch.equal((weight @ steps.transpose(1, 2)).transpose(1, 2), expected)


def test_offloaded_weights_are_left_to_accelerate(mamba):
    mixer, fired = mamba.backbone.layers[0].mixer, []

    class Hook:
        def pre_forward(self, module, *_):
            fired.append(module)

        def post_forward(self, module, output):
            return output

    mixer.dt_proj._hf_hook = Hook()
    with native.use_native(mamba):
        mamba(torch.arange(1, 10)[None])
    assert fired == [mixer.dt_proj]
