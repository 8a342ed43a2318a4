"""The kept weights are those of a dense least-squares solver, whatever the mask and the inputs."""

from __future__ import annotations

import pytest
import torch

from hf_mamba_prune.masks.tensor import pattern_mask
from hf_mamba_prune.repair.least_squares import reconstruct


def inputs(tokens: int, width: int, rank: int | None = None) -> torch.Tensor:
    """Correlated inputs of very different sizes."""
    torch.manual_seed(0)
    mixing = torch.randn(rank or width, width).double() * torch.logspace(-1.5, 0.5, width)
    return torch.randn(tokens, rank or width).double() @ mixing


def moment(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / len(x)


def row_by_row(weight, keep, x, damping) -> torch.Tensor:
    """`torch.linalg.lstsq` for each row: the damping is written as more rows of inputs."""
    hessian = moment(x)
    extra = (damping * hessian.diagonal().mean() * len(x)).sqrt() * torch.eye(x.shape[1]).double()
    stacked = torch.cat([x, extra])
    result = torch.zeros_like(weight, dtype=torch.float64)
    for i, (row, kept) in enumerate(zip(weight.double(), keep, strict=True)):
        if kept.any():
            result[i, kept] = torch.linalg.lstsq(stacked[:, kept], stacked @ row).solution
    return result


@pytest.mark.parametrize("damping", [0.01, 0.3])
@pytest.mark.parametrize("pattern", ["half", "few", "2:4"])
def test_the_result_is_that_of_a_dense_solver(pattern, damping):
    x, weight = inputs(300, 24), torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
    draw = torch.rand(16, 24, generator=torch.Generator().manual_seed(2))
    keep = {"half": draw < 0.5, "few": draw < 0.1, "2:4": pattern_mask(draw, 2, 4, "x", 0)}[pattern]
    found = reconstruct(weight, keep, moment(x), damping, tolerance=1e-6)
    wanted = row_by_row(weight, keep, x, damping)
    assert (found.weight[~keep] == 0).all()
    assert float((found.weight - wanted).norm() / wanted.norm()) < 1e-4
    assert found.after < found.before
    outputs = ((weight.double() - found.weight.double()) @ x.T).norm() ** 2 / (weight.double() @ x.T).norm() ** 2
    assert found.after == pytest.approx(float(outputs), rel=1e-6)


def test_rows_that_keep_nothing_or_all():
    x, weight = inputs(100, 12), torch.randn(3, 12)
    keep = torch.zeros(3, 12, dtype=torch.bool)
    keep[1] = True
    keep[2, ::2] = True
    found = reconstruct(weight, keep, moment(x))
    assert (found.weight[0] == 0).all() and torch.equal(found.weight[1], weight[1])
    assert (found.weight[2, ::2] != 0).all()
    nothing = reconstruct(weight, torch.ones_like(keep), moment(x))
    assert torch.equal(nothing.weight, weight) and nothing.after == 0 and nothing.iterations == 0


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_a_singular_hessian_and_inputs_that_never_come(damping):
    x = inputs(300, 20, rank=5)
    x[:, 7] = 0
    weight, keep = torch.randn(8, 20), torch.rand(8, 20) < 0.5
    found = reconstruct(weight, keep, moment(x), damping)
    assert torch.isfinite(found.weight).all()
    assert found.after <= found.before * (1 + 1e-9)
    only = reconstruct(weight, keep, torch.zeros(20, 20), damping)
    assert torch.equal(only.weight, weight * keep) and only.before == only.after == 0


def test_the_objective_never_rises_with_more_iterations():
    x, weight = inputs(400, 32), torch.randn(10, 32)
    keep, hessian = torch.rand(10, 32) < 0.4, moment(x)
    system = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(32)

    def objective(v: torch.Tensor) -> float:
        rest = weight.double() - v.double()
        return float(((rest @ system) * rest).sum())

    values = [objective(weight * keep)]
    values += [objective(reconstruct(weight, keep, hessian, 0.01, 1e-9, n).weight) for n in (1, 2, 4, 8, 16, 64)]
    assert all(after <= before * (1 + 1e-6) for before, after in zip(values, values[1:], strict=False))
    assert values[-1] < 0.9 * values[0]


def test_zeros_of_the_dense_weight_stay_zeros():
    weight, keep = torch.randn(6, 16), torch.rand(6, 16) < 0.6
    weight[:, ::3] = 0
    found = reconstruct(weight, keep, moment(inputs(80, 16)))
    assert (found.weight[:, ::3] == 0).all() and (found.weight[keep & (weight != 0)] != 0).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        reconstruct(torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bool), torch.eye(3))
    with pytest.raises(RuntimeError, match="not finite"):
        reconstruct(torch.ones(3, 2), torch.ones(3, 2, dtype=torch.bool), torch.full((2, 2), float("nan")))


@pytest.mark.parametrize("damping", [0.0, 1e-8, 1e-6])
def test_the_noise_of_a_singular_hessian_is_no_information(damping):
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(400, 10, generator=generator) @ torch.randn(10, 32, generator=generator)
        weight, keep = torch.randn(8, 32, generator=generator), torch.rand(8, 32, generator=generator) < 0.5
        found = reconstruct(weight, keep, (x.T @ x).double() / 400, damping)
        assert found.weight.abs().max() < 1e5
        assert -1e-3 < found.after <= found.before


def test_where_it_begins_changes_only_how_long_it_takes():
    x, weight = inputs(400, 30), torch.randn(9, 30)
    keep = torch.rand(9, 30) > 0.6
    cold = reconstruct(weight, keep, moment(x), tolerance=1e-6)
    far = reconstruct(weight, keep, moment(x), tolerance=1e-6, start=torch.randn(9, 30))
    near = reconstruct(weight, keep, moment(x), tolerance=1e-6, start=cold.weight)
    torch.testing.assert_close(far.weight, cold.weight, rtol=1e-4, atol=1e-5)
    assert near.iterations < cold.iterations and (far.weight[~keep] == 0).all()
