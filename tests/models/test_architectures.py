"""The architecture table is right: every weight exists, every tap fires and shows the weight's true input."""

from __future__ import annotations

import dataclasses
import importlib
from contextlib import ExitStack, nullcontext

import pytest
import torch
from tiny_models import ARCHITECTURE_CASES, VOCABULARY, build_model
from torch.nn import functional as F
from transformers import LlamaConfig

from hf_mamba_prune import native
from hf_mamba_prune.masks.calibration import observe
from hf_mamba_prune.models.architectures import ARCHITECTURES, architecture_of
from hf_mamba_prune.models.components import Tap
from hf_mamba_prune.models.targets import components_of, find_targets

IDS = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
SCANS = {"selective": "mamba_selective_scan", "chunk": "mamba2_chunk_scan"}
SCAN_INPUTS = ("hidden_states", "dt", "A", "B", "C")


def prunable(model):
    """Targets of every component that zeros can remove."""
    names = tuple(own.name for own in components_of(model) if own.kind != "state")
    return find_targets(model, names)


class Recorder:
    """What the mixers feed to their convolution and scan and what comes out, layer by layer, and every tap."""

    def __init__(self, model, targets=()):
        self.convolved, self.scans, self.taps, self.outputs = [], [], {}, {}
        kernels = architecture_of(model.config).block(model.config, 0).kernels
        modeling, scan_name = importlib.import_module(kernels.modeling), SCANS[kernels.scan]
        convolve, scan = modeling.causal_conv1d_fn, getattr(modeling, scan_name)

        def record_convolution(*args, **options):
            self.convolved.append(convolve(*args, **options))
            return self.convolved[-1]

        def record_scan(*args, **options):
            self.scans.append(dict(zip(SCAN_INPUTS, args, strict=False)) | options)
            return scan(*args, **options)

        with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
            patch.setattr(modeling, "causal_conv1d_fn", record_convolution)
            patch.setattr(modeling, scan_name, record_scan)
            for target in targets:
                see = self.taps.setdefault(target.name, []).append
                if target.tap is not None:
                    stack.enter_context(observe(model, target.tap, see))
            for name, module in model.named_modules():
                handle = module.register_forward_hook(lambda _, i, o, n=name: self.outputs.__setitem__(n, o))
                stack.callback(handle.remove)
            with torch.no_grad():
                self.logits = model(input_ids=IDS, use_cache=False).logits


def used(model, target, recorded):
    """(what the weight makes of its tapped input, what the model really went on with)."""
    (x,) = recorded.taps[target.name]
    module = target.name.removesuffix(".weight")
    scan = recorded.scans[target.layer] if target.layer is not None else None
    if target.kind == "conv":
        convolution = model.get_submodule(module)
        padded = F.pad(x.transpose(1, 2), (target.shape[1] - 1, 0))
        made = F.conv1d(padded, convolution.weight, convolution.bias, groups=target.shape[0])
        return F.silu(made), recorded.convolved[target.layer]
    if target.component == "dt_proj":
        return F.linear(x, target.weight(model)).transpose(1, 2), scan["dt"]
    if target.component == "D":
        return x.transpose(1, 2), scan["hidden_states"]
    if target.component in ("embeddings", "lm_head"):
        return F.linear(x, target.weight(model)), recorded.logits
    return F.linear(x, target.weight(model)), recorded.outputs[module]


@pytest.mark.parametrize("kernels", [nullcontext, native.use_native], ids=["stock", "native"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_every_tap_fires_once_and_shows_the_true_input(model, training, kernels):
    model.train(training)
    targets = prunable(model)
    with kernels(model):
        recorded = Recorder(model, targets)
    assert len(recorded.scans) == len(recorded.convolved) == model.config.num_hidden_layers
    for target in targets:
        seen = recorded.taps[target.name]
        assert len(seen) == (target.tap is not None), target
        if target.tap is not None:
            made, real = used(model, target, recorded)
            torch.testing.assert_close(
                made, real, rtol=1e-4, atol=1e-5, msg=lambda text, t=target: f"{t.name}: {text}"
            )


def test_a_tap_at_the_wrong_place_would_be_found(mamba):
    (target, *_) = find_targets(mamba, ("dt_proj",))
    wrong = dataclasses.replace(target, tap=dataclasses.replace(target.tap, columns=(4, 28)))
    made, real = used(mamba, wrong, Recorder(mamba, [wrong]))
    assert not torch.allclose(made, real, rtol=1e-2)


def test_the_modules_of_dt_proj_and_conv1d_are_never_called(mamba):
    recorded = Recorder(mamba)
    for module in ("dt_proj", "conv1d"):
        assert f"backbone.layers.0.mixer.{module}" not in recorded.outputs
    assert "backbone.layers.0.mixer.x_proj" in recorded.outputs


def test_the_table_names_every_weight_and_no_parameter_twice(model):
    blocks = [component.weight for component in components_of(model) if component.per_layer]
    targets = prunable(model)
    named = {t.name for t in targets} | {f"backbone.layers.{i}.mixer.A_log" for i in range(2)}
    assert {name for name, p in model.named_parameters() if p.ndim > 1} <= named
    assert len({target.weight(model).data_ptr() for target in targets}) == len(targets) == len(named) - 2
    assert len(set(blocks)) == len(blocks)
    for target in targets:
        weight = model.get_parameter(target.name)
        assert target.size == weight.numel() and target.weight(model).data_ptr() == weight.data_ptr()
        assert target.shape[0] == weight.shape[0]


def test_writing_to_the_view_of_a_target_changes_the_model(model):
    for target in prunable(model):
        target.weight(model).fill_(0.25)
        assert (model.get_parameter(target.name) == 0.25).all()


def test_tied_embeddings_are_one_target_that_says_so(case, model):
    outer = [target for target in prunable(model) if target.layer is None]
    if case == "mamba2":
        assert [(t.name, t.kind, t.tied) for t in outer] == [
            ("backbone.embeddings.weight", "lookup", None),
            ("lm_head.weight", "linear", None),
        ]
        return
    (target,) = outer
    assert (target.name, target.kind, target.tied) == ("backbone.embeddings.weight", "linear", "lm_head.weight")
    target.weight(model)[3] = 0
    assert (model.get_output_embeddings().weight[3] == 0).all()


def test_the_defaults_are_the_four_projections_in_the_order_of_the_data(case, model):
    block = ["in_proj", "out_proj"] if case.startswith("mamba2") else ["in_proj", "x_proj", "dt_proj", "out_proj"]
    targets = find_targets(model)
    assert [target.component for target in targets] == block * 2
    assert [target.layer for target in targets] == [0] * len(block) + [1] * len(block)
    assert [t.name for t in find_targets(model, ("out_proj", "in_proj"))] == [
        f"backbone.layers.{i}.mixer.{c}.weight" for i in range(2) for c in ("in_proj", "out_proj")
    ]


def test_a_model_without_a_head_has_the_same_targets(model):
    bare = {target.name: target.shape for target in find_targets(model.base_model)}
    assert bare == {t.name.removeprefix("backbone."): t.shape for t in find_targets(model)}
    assert find_targets(model.base_model, ("embeddings",))[0].tap is None


def test_parts_cover_the_rows_without_gaps(model):
    with_parts = [target for target in prunable(model) if target.parts]
    expected = {"in_proj"} if model.config.model_type == "mamba2" else {"in_proj", "x_proj"}
    assert {t.component for t in with_parts} == expected
    for target in with_parts:
        edges = [0, *(stop for _, _, stop in target.parts)]
        assert edges[:-1] == [start for _, start, _ in target.parts] and edges[-1] == target.shape[0]


@pytest.mark.parametrize(
    ("case", "part", "changed"),
    [
        ("mamba", "x_proj.dt", {"dt"}),
        ("mamba", "x_proj.B", {"B"}),
        ("mamba", "x_proj.C", {"C"}),
        ("mamba", "in_proj.x", {"hidden_states", "dt", "B", "C"}),
        ("mamba", "in_proj.z", {"z"}),
        ("falcon_mamba", "x_proj.dt", {"dt"}),
        ("falcon_mamba", "x_proj.B", {"B"}),
        ("falcon_mamba", "x_proj.C", {"C"}),
        ("falcon_mamba", "in_proj.z", {"z"}),
        ("mamba2", "in_proj.z", set()),
        ("mamba2", "in_proj.x", {"hidden_states"}),
        ("mamba2", "in_proj.B", {"B"}),
        ("mamba2", "in_proj.C", {"C"}),
        ("mamba2", "in_proj.dt", {"dt"}),
    ],
)
def test_a_part_changes_what_its_name_says_and_nothing_else(model, part, changed):
    before = Recorder(model)
    (target, *_) = find_targets(model, (part.split(".")[0],))
    ((start, stop),) = [(start, stop) for name, start, stop in target.parts if name == part]
    target.weight(model)[start:stop] = 0
    after = Recorder(model)
    inputs = [name for name in (*SCAN_INPUTS, "z") if before.scans[0].get(name) is not None]
    different = {name for name in inputs if not torch.equal(before.scans[0][name], after.scans[0][name])}
    assert different == changed
    assert not torch.equal(before.logits, after.logits)


def test_a_state_is_off_when_its_row_of_b_is_zero_and_not_when_a_log_is(mamba):
    def logits(a_log):
        mamba.get_parameter("backbone.layers.0.mixer.A_log").data[:, 2] = a_log
        return mamba(input_ids=IDS, use_cache=False).logits

    with torch.no_grad():
        assert not torch.equal(logits(0.0), logits(60.0))
        (target, *_) = find_targets(mamba, ("x_proj",))
        ((start, _),) = [(start, stop) for name, start, stop in target.parts if name == "x_proj.B"]
        target.weight(mamba)[start + 2] = 0
        assert torch.equal(logits(0.0), logits(60.0))


def test_what_cannot_be_pruned_is_refused_with_the_reason(model):
    with pytest.raises(ValueError, match=r"'A_log' is not pruned by zeros: .*A_log = 0 means A = -1"):
        find_targets(model, ("A_log",))
    with pytest.raises(ValueError, match=r"unknown component 'out_porj'. Did you mean 'out_proj'\? Known: in_proj"):
        find_targets(model, ("in_proj", "out_porj"))
    with pytest.raises(ValueError, match="unknown component"):
        find_targets(model, ("x_proj.B",))


def test_other_models_are_refused_by_type():
    with pytest.raises(ValueError, match=f"model_type is 'llama'.*Supported: {', '.join(ARCHITECTURES)}"):
        architecture_of(LlamaConfig())


def test_every_architecture_has_a_tiny_model():
    assert {build_model(name).config.model_type for name in ARCHITECTURE_CASES} == set(ARCHITECTURES)


def test_a_tap_reads_its_columns():
    x = torch.arange(24).view(2, 3, 4)
    assert torch.equal(Tap(module="m", side="input").read(x), x)
    assert torch.equal(Tap(module="m", side="output", columns=(1, 3)).read(x), x[..., 1:3])
