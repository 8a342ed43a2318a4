"""Calibration sums are those of a naive reference, whatever the batch size, and leave the model as it was."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_models import VOCABULARY, build_model
from torch.nn import functional as F

from hf_mamba_prune.masks.calibration import GRADIENT_TERMS, INPUT_NEEDS, Need, calibrate, observe
from hf_mamba_prune.models.components import Tap
from hf_mamba_prune.models.targets import Target, components_of, find_targets

SEQUENCES = torch.randint(VOCABULARY, (8, 10), generator=torch.Generator().manual_seed(2))
GRADIENTS = frozenset(GRADIENT_TERMS)


def with_input(model):
    """Targets of every component whose input can be measured, convolutions and factors among them."""
    targets = find_targets(model, tuple(own.name for own in components_of(model) if own.kind != "state"))
    return [target for target in targets if target.tap is not None]


def naive_gradients(model, targets):
    """One backward pass a sequence, of the loss that transformers computes."""
    per_sequence = []
    for sequence in SEQUENCES:
        model.zero_grad()
        model(input_ids=sequence[None], labels=sequence[None], use_cache=False).loss.backward()
        per_sequence.append({t.name: model.get_parameter(t.name).grad.double().view(t.shape) for t in targets})
    model.zero_grad()
    return per_sequence


def naive_squares(model, target):
    """Token by token, in float64, from one sequence at a time."""
    seen = []
    with observe(model, target.tap, lambda x: seen.append(x[0].double())), torch.no_grad():
        for sequence in SEQUENCES:
            model(input_ids=sequence[None], use_cache=False)
    if target.kind != "conv":
        total = sum((token**2 for x in seen for token in x), torch.zeros(seen[0].shape[1]))
        return total[:, None] if target.kind == "channel" else total[None]
    total = torch.zeros(target.shape, dtype=torch.float64)
    for x in seen:
        for now in range(len(x)):
            for tap in range(target.shape[1]):
                past = now - (target.shape[1] - 1 - tap)
                if past >= 0:
                    total[:, tap] += x[past] ** 2
    return total


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_input_squares_are_those_of_a_naive_reference(model, batch_size):
    targets = with_input(model)
    found = calibrate(model, targets, SEQUENCES, frozenset({Need.INPUT_SQUARE}), batch_size)
    assert set(found) == {target.name for target in targets}
    for target in targets:
        own = found[target.name]
        assert own.tokens == SEQUENCES.numel() and own.sums[Need.INPUT_SQUARE].dtype == torch.float64
        # The only difference between batch sizes is how float32 matrix products round.
        torch.testing.assert_close(own.sums[Need.INPUT_SQUARE], naive_squares(model, target), rtol=1e-4, atol=1e-9)
        torch.broadcast_to(own.mean_over_tokens(Need.INPUT_SQUARE), target.shape)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_input_products_hold_the_squares_on_their_diagonal(model, batch_size):
    targets = find_targets(model)
    found = calibrate(model, targets, SEQUENCES, frozenset({Need.INPUT_PRODUCT, Need.INPUT_SQUARE}), batch_size)
    for target in targets:
        product = found[target.name].sums[Need.INPUT_PRODUCT]
        squares = found[target.name].sums[Need.INPUT_SQUARE]
        assert product.shape == (target.shape[1],) * 2 and torch.equal(product, product.T)
        torch.testing.assert_close(product.diagonal()[None], squares, rtol=1e-4, atol=1e-9)
        assert torch.linalg.eigvalsh(product).min() > -1e-4 * product.diagonal().max()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_gradient_sums_are_those_of_single_sequences(model, batch_size):
    targets = find_targets(model, tuple(own.name for own in components_of(model) if own.kind != "state"))
    found = calibrate(model, targets, SEQUENCES, GRADIENTS, batch_size)
    reference = naive_gradients(model, targets)
    for target in targets:
        own = found[target.name]
        assert own.sequences == len(SEQUENCES)
        for need, term in GRADIENT_TERMS.items():
            wanted = sum(term(gradients[target.name]) for gradients in reference)
            assert wanted.abs().max() > 0
            scale = float(wanted.abs().max())
            torch.testing.assert_close(own.sums[need].double(), wanted, rtol=1e-4, atol=1e-5 * scale)


def test_gradients_of_batches_would_not_be_the_same():
    """The reference tells absolute values per sequence from those of a batch: otherwise it would prove nothing."""
    model = build_model("mamba")
    (target, *_) = find_targets(model)
    found = calibrate(model, [target], SEQUENCES, GRADIENTS)[target.name]
    assert (found.sums[Need.GRADIENT_SUM].abs() < 0.9 * found.sums[Need.GRADIENT_ABSOLUTE]).float().mean() > 0.5


def test_only_what_is_needed_is_gathered(mamba):
    targets = find_targets(mamba)
    assert calibrate(mamba, targets, SEQUENCES, frozenset()) == {}
    for need in Need:
        for own in calibrate(mamba, targets, SEQUENCES[:1], frozenset({need})).values():
            assert set(own.sums) == {need}


def test_sequences_shorter_than_the_convolution(mamba):
    (target, *_) = find_targets(mamba, ("conv1d",))
    found = calibrate(mamba, [target], SEQUENCES[:, :2], frozenset({Need.INPUT_SQUARE}))[target.name]
    squares = found.sums[Need.INPUT_SQUARE]
    assert (squares[:, :2] == 0).all()  # no token has another two or three places before it
    assert (squares[:, 2] > 0).all() and (squares[:, 3] > squares[:, 2]).all()


@pytest.mark.parametrize("fake", ["dt_proj", "conv1d"])
def test_a_target_that_saw_no_token_stops_the_run(mamba, fake):
    target, other = find_targets(mamba, ("dt_proj",))
    wrong = dataclasses.replace(target, tap=Tap(module=f"backbone.layers.0.mixer.{fake}", side="input"))
    with pytest.raises(RuntimeError, match=r"layers.0.mixer.dt_proj.weight saw no token .*\(INPUT_SQUARE\)"):
        calibrate(mamba, [wrong, other], SEQUENCES, frozenset({Need.INPUT_SQUARE}))


def test_a_target_that_got_no_gradient_stops_the_run(mamba):
    mamba.register_parameter("unused", torch.nn.Parameter(torch.ones(2, 2)))
    target = Target(name="unused", component="in_proj", layer=None, kind="linear", tap=None, shape=(2, 2))
    with pytest.raises(RuntimeError, match="unused saw no token during calibration"):
        calibrate(mamba, [target, *find_targets(mamba)], SEQUENCES, GRADIENTS)


def test_a_component_without_an_input_is_refused_where_one_is_needed():
    model = build_model("mamba2")
    (target,) = find_targets(model, ("embeddings",))
    with pytest.raises(ValueError, match="component 'embeddings' has no measurable input: choose a score without"):
        calibrate(model, [target], SEQUENCES, frozenset({Need.INPUT_SQUARE}))
    assert calibrate(model, [target], SEQUENCES, GRADIENTS)


def test_products_of_what_is_no_linear_map_are_refused(mamba):
    with pytest.raises(ValueError, match="component 'conv1d' is not a linear map: choose a score without products"):
        calibrate(mamba, find_targets(mamba, ("conv1d",)), SEQUENCES, frozenset({Need.INPUT_PRODUCT}))


def test_a_loss_that_is_not_finite_stops_the_run(mamba):
    mamba.backbone.norm_f.weight.data.fill_(float("inf"))
    with pytest.raises(RuntimeError, match="the calibration loss is (nan|inf): the model gives no finite"):
        calibrate(mamba, find_targets(mamba), SEQUENCES, GRADIENTS)


@pytest.mark.parametrize("needs", [GRADIENTS, frozenset({Need.INPUT_SQUARE}), frozenset(Need)], ids=len)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_even_when_the_pass_fails(mamba, needs, fails):
    frozen = mamba.get_parameter("backbone.layers.0.mixer.in_proj.weight").requires_grad_(False)
    kept = mamba.get_parameter("backbone.layers.1.mixer.in_proj.weight")
    kept.grad = gradient = torch.ones_like(kept)
    mamba.train()
    mamba.backbone.layers[1].eval()
    modes = [module.training for module in mamba.modules()]
    weights = {name: p.clone() for name, p in mamba.named_parameters()}
    sequences = SEQUENCES.clone()
    if fails:
        sequences[5, 3] = VOCABULARY + 7
        with pytest.raises(IndexError):
            calibrate(mamba, find_targets(mamba), sequences, needs, batch_size=2)
    else:
        calibrate(mamba, find_targets(mamba), sequences, needs, batch_size=2)
    assert [module.training for module in mamba.modules()] == modes
    assert not frozen.requires_grad and kept.grad is gradient and torch.equal(gradient, torch.ones_like(kept))
    for name, parameter in mamba.named_parameters():
        assert parameter.requires_grad is (parameter is not frozen) and torch.equal(parameter, weights[name])
        assert parameter is kept or parameter.grad is None
        assert not parameter._post_accumulate_grad_hooks
    for module in mamba.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert torch.is_grad_enabled()


def test_calibration_runs_in_evaluation_mode(mamba):
    seen = []
    mamba.train()
    mamba.backbone.layers[0].mixer.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    calibrate(mamba, find_targets(mamba), SEQUENCES[:2], frozenset({Need.INPUT_SQUARE}))
    assert seen == [False]


def test_frozen_weights_get_gradients_too(mamba):
    reference = calibrate(mamba, find_targets(mamba), SEQUENCES, GRADIENTS)
    found = calibrate(mamba.requires_grad_(False), find_targets(mamba), SEQUENCES, GRADIENTS)
    for name, own in reference.items():
        assert all(torch.equal(own.sums[need], found[name].sums[need]) for need in GRADIENTS)


def test_the_loss_is_that_of_the_next_token(mamba):
    """A gradient of the loss with a shifted or whole-batch reduction would differ: the reference is written out."""
    (target, *_) = find_targets(mamba, ("out_proj",))
    found = calibrate(mamba, [target], SEQUENCES[:1], GRADIENTS)[target.name]
    logits = mamba(input_ids=SEQUENCES[:1], use_cache=False).logits
    losses = [F.cross_entropy(logits[0, i], SEQUENCES[0, i + 1]) for i in range(SEQUENCES.shape[1] - 1)]
    (wanted,) = torch.autograd.grad(torch.stack(losses).mean(), mamba.get_parameter(target.name))
    torch.testing.assert_close(found.sums[Need.GRADIENT_SUM], wanted, rtol=1e-4, atol=1e-7)


def test_products_in_bfloat16_change_little_and_no_dtype(model):
    """What is summed stays in its own precision: only the model's own products are rounded."""
    targets = find_targets(model)
    needs = GRADIENTS | {Need.INPUT_SQUARE, Need.INPUT_PRODUCT}
    exact, rounded = (calibrate(model, targets, SEQUENCES, needs, bf16=bf16) for bf16 in (False, True))
    for target in targets:
        for need in needs:
            wanted, found = exact[target.name].sums[need], rounded[target.name].sums[need]
            assert found.dtype == wanted.dtype and (found - wanted).norm() < 0.1 * wanted.norm()
            # No product comes before the first input, and every gradient has come through some.
            untouched = target.layer == 0 and target.component == "in_proj" and need in INPUT_NEEDS
            assert torch.equal(found, wanted) == untouched


def test_what_was_seen_before_counts_on_as_far_as_it_is_remembered(model):
    targets, needs = with_input(model), GRADIENTS | {Need.INPUT_SQUARE}
    early, late = (calibrate(model, targets, part, needs) for part in (SEQUENCES[:6], SEQUENCES[6:]))
    both = calibrate(model, targets, SEQUENCES[:6], needs)
    for own in both.values():
        own.fade(0.5)
    both = calibrate(model, targets, SEQUENCES[6:], needs, start=both)
    for target in targets:
        old, new, found = early[target.name], late[target.name], both[target.name]
        assert (found.sequences, found.tokens) == (5, 50)  # half of 6 and of 60, then 2 and 20 more
        for need in needs:
            torch.testing.assert_close(found.sums[need], 0.5 * old.sums[need] + new.sums[need])
