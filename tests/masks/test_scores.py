"""What every score promises, and the numbers of each against ones computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import VOCABULARY, build_model

from hf_mamba_prune.config import SCORE_NAMES, PruningConfig
from hf_mamba_prune.masks.calibration import Need, TargetStatistics, calibrate
from hf_mamba_prune.masks.scores import SCORES, build_score
from hf_mamba_prune.models.targets import Target, find_targets

SEQUENCES = torch.randint(VOCABULARY, (3, 8), generator=torch.Generator().manual_seed(4))
CASES = {
    "magnitude": [{}],
    "gradient-magnitude": [{}, {"gradient": "signed"}, {"alpha": 0.0}, {"alpha": 0.5}, {"alpha": 2.0}],
    "fisher": [{}],
    "wanda": [{}],
    "obs": [{}, {"damping": 0.1}],
    "random": [{}, {"seed": 5}],
}
CONFIGS = [PruningConfig(score=name, **options) for name, rows in CASES.items() for options in rows]

PAPER = dict(score="gradient-magnitude")
TARGET = Target(name="layer.weight", component="in_proj", layer=0, kind="linear", tap=None, shape=(2, 2))
WEIGHT = torch.tensor([[1.0, -2.0], [0.0, 4.0]])
STATISTICS = TargetStatistics(
    sums={
        Need.INPUT_SQUARE: torch.tensor([[20.0, 45.0]], dtype=torch.float64),
        Need.INPUT_PRODUCT: torch.tensor([[20.0, 15.0], [15.0, 45.0]], dtype=torch.float64),
        Need.GRADIENT_SUM: torch.tensor([[-2.0, 4.0], [6.0, 0.5]]),
        Need.GRADIENT_ABSOLUTE: torch.tensor([[8.0, 4.0], [6.0, 1.0]]),
        Need.GRADIENT_SQUARE: torch.tensor([[18.0, 8.0], [32.0, 2.0]]),
    },
    tokens=5,
    sequences=2,
)


def score(statistics=STATISTICS, weight=WEIGHT, **options):
    return build_score(PruningConfig(**options))(TARGET, weight, statistics)


def test_every_name_has_a_score_and_a_case():
    assert tuple(SCORES) == SCORE_NAMES == tuple(CASES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.score}-{c.gradient}-{c.alpha}-{c.seed}")
def test_what_every_score_promises(model, config, dtype):
    model.to(dtype)
    targets = find_targets(model)
    rule = build_score(config)
    for target in targets:
        target.weight(model)[torch.rand(target.shape, generator=torch.Generator().manual_seed(6)) < 0.2] = 0
    statistics = calibrate(model, targets, SEQUENCES, rule.needs)
    for target in targets:
        weight = target.weight(model)
        before = weight.clone()
        scores = rule(target, weight, statistics.get(target.name))
        assert scores.shape == target.shape and scores.dtype == torch.float32
        assert torch.isfinite(scores).all() and (scores >= 0).all()
        assert (scores[weight == 0] == 0).all() and (scores[weight != 0] > 0).float().mean() > 0.95
        assert torch.equal(scores, rule(target, weight, statistics.get(target.name)))
        assert torch.equal(weight, before)


def test_scores_say_what_they_need():
    needs = {name: build_score(PruningConfig(score=name)).needs for name in SCORE_NAMES}
    assert needs == {
        "magnitude": frozenset(),
        "gradient-magnitude": {Need.GRADIENT_ABSOLUTE},
        "fisher": {Need.GRADIENT_SQUARE},
        "wanda": {Need.INPUT_SQUARE},
        "obs": {Need.INPUT_PRODUCT},
        "random": frozenset(),
    }
    assert build_score(PruningConfig(score="gradient-magnitude", gradient="signed")).needs == {Need.GRADIENT_SUM}
    assert build_score(PruningConfig(score="gradient-magnitude", alpha=0)).needs == frozenset()


def test_magnitude():
    assert score(None, score="magnitude").tolist() == [[1, 2], [0, 4]]


def test_gradient_magnitude():
    assert score(**PAPER, gradient="absolute").tolist() == [[4, 4], [0, 2]]  # |w| * mean |g|
    assert score(**PAPER, gradient="signed").tolist() == [[1, 4], [0, 1]]  # |w| * |mean g|
    assert score(**PAPER, alpha=2).tolist() == [[16, 8], [0, 1]]
    half = [[math.sqrt(4), 2 * math.sqrt(2)], [0, 4 * math.sqrt(0.5)]]
    torch.testing.assert_close(score(**PAPER, alpha=0.5), torch.tensor(half))


def test_alpha_0_is_magnitude():
    for gradient in ("absolute", "signed"):
        assert torch.equal(score(None, **PAPER, alpha=0, gradient=gradient), score(None, score="magnitude"))


def test_fisher_is_the_squared_weight_times_the_mean_squared_gradient():
    scores = score(score="fisher")
    torch.testing.assert_close(
        scores / scores[0, 0] * 9, torch.tensor([[9.0, 16.0], [0.0, 16.0]])
    )  # w^2 * 9, 4, 16, 1
    # Gradients of a well trained model: the product must not fall below float32's range.
    small = TargetStatistics(sums={Need.GRADIENT_SQUARE: torch.full((2, 2), 1e-30)}, sequences=1)
    assert (score(small, weight=torch.full((2, 2), 1e-6), score="fisher") > 1e-36).all()


def test_wanda_is_the_weight_times_the_norm_of_its_input():
    torch.testing.assert_close(score(score="wanda"), torch.tensor([[2.0, 6.0], [0.0, 12.0]]))  # means 4 and 9


def test_obs_is_the_error_that_remains_when_the_others_of_the_row_adjust():
    # H = [[4, 3], [3, 9]]; its inverse has the diagonal 1/3 and 4/27.
    wanted = torch.tensor([[3.0, 27.0], [0.0, 108.0]]) * 2.0**40
    torch.testing.assert_close(score(score="obs", damping=0.0), wanted)
    hessian, row = torch.tensor([[4.0, 3.0], [3.0, 9.0]]), torch.tensor([1.0, -2.0])
    rest = hessian[0, 1] / hessian[1, 1]  # how far the second weight moves to make up for the first
    error = torch.tensor([row[0], -rest * row[0]])
    assert (error @ hessian @ error).item() == pytest.approx(3.0)


def test_obs_refuses_dependent_inputs_without_damping():
    product = torch.tensor([[4.0, 4.0], [4.0, 4.0]], dtype=torch.float64)
    dependent = TargetStatistics(sums={Need.INPUT_PRODUCT: product}, tokens=2)
    with pytest.raises(ValueError, match="layer.weight are linearly dependent: raise --damping above 0.0"):
        score(dependent, score="obs", damping=0.0)
    assert torch.isfinite(score(dependent, score="obs")).all()


def test_wanda_of_a_convolution_and_of_a_factor(mamba):
    for component in ("conv1d", "D"):
        (target, *_) = find_targets(mamba, (component,))
        found = calibrate(mamba, [target], SEQUENCES, frozenset({Need.INPUT_SQUARE}))[target.name]
        scores = build_score(PruningConfig(score="wanda"))(target, target.weight(mamba), found)
        mean = (found.sums[Need.INPUT_SQUARE] / SEQUENCES.numel()).sqrt().float()
        torch.testing.assert_close(scores, target.weight(mamba).abs() * mean)
        assert scores.shape == target.shape


def test_random_goes_by_seed_and_name_only():
    model, other = build_model("mamba"), build_model("mamba", seed=9)
    first, second = find_targets(model, ("in_proj",))
    draw = build_score(PruningConfig(score="random"))
    assert torch.equal(draw(first, first.weight(model), None), draw(first, first.weight(other), None))
    assert not torch.equal(draw(first, first.weight(model), None), draw(second, second.weight(model), None))
    again = build_score(PruningConfig(score="random", seed=1))
    assert not torch.equal(draw(first, first.weight(model), None), again(first, first.weight(model), None))
    values = draw(first, torch.ones(400, 400), None)
    assert 0 < values.min() and values.max() <= 1 and abs(values.mean() - 0.5) < 0.01
