"""What is left of a weight takes over what went: masked least squares for all rows at once, under any mask.

The kept weights V of a linear map take over what the pruned ones did: minimise ||(W - V) X||^2 + damping ||W - V||^2
over V that is zero outside the mask, where H = E[x x^T] is all that is needed of the inputs X. On the support S of a
row the minimum has (A v)_S = (A w)_S with A = H + damping I: a symmetric system for each row, solved by conjugate
gradients with a diagonal preconditioner. Products run in float32 and true residuals are taken in float64, so that a
few restarts give what float64 would.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_RESTARTS = 4
_NOISE = 1e-6
_MARGIN = 0.25
_LOOK = 4
"""Iterations between looks at which rows are done."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """What came of one target.

    Args:
        weight: (out, in) float32, zero outside the mask.
        before: ||(W - W * M) X||^2 / ||W X||^2, the share of the output that the mask alone loses.
        after: ||(W - V) X||^2 / ||W X||^2.
        iterations: products with H.
    """

    weight: torch.Tensor
    before: float
    after: float
    iterations: int


@torch.no_grad()
def reconstruct(
    weight: torch.Tensor,
    keep: torch.Tensor,
    hessian: torch.Tensor,
    damping: float = 0.01,
    tolerance: float = 1e-3,
    max_iterations: int = 200,
    start: torch.Tensor | None = None,
) -> Reconstruction:
    """The kept weights that reproduce the dense output best.

    Args:
        weight: (out, in), the dense weight; where it is 0 the result is 0 too.
        keep: (out, in) bool.
        hessian: (in, in), E[x x^T] over tokens, symmetric and positive semidefinite; may be singular.
        damping: added to the diagonal, as a share of its mean, 0 or more; it holds the result near the dense weight.
        tolerance: of the residual of each row, beside that of a row without any weight.
        max_iterations: products with H, at most, in each of up to four restarts.
        start: (out, in), where to begin; None: at the dense weight. It changes how long it takes, not what comes out.

    Raises:
        ValueError: shapes do not fit.
        RuntimeError: the Hessian is not finite.
    """
    if keep.shape != weight.shape or hessian.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(
            f"weight {tuple(weight.shape)}, mask {tuple(keep.shape)} and Hessian {tuple(hessian.shape)} do not fit: "
            "expected (out, in), (out, in) and (in, in)."
        )
    if not torch.isfinite(hessian).all():
        raise RuntimeError("the inputs that a weight is reconstructed on are not finite.")
    dense, support = weight.double(), keep & (weight != 0)
    hessian = hessian.double()
    system = hessian.clone()
    system.diagonal().add_(damping * hessian.diagonal().mean())
    # The diagonal preconditioner as a change of variables: the system in y = sqrt(d) v has a diagonal of ones.
    scale = system.diagonal().sqrt()
    scale[scale == 0] = 1  # an input that is never there
    system /= scale * scale[:, None]
    wanted = dense * scale
    begin = (wanted if start is None else start.double() * scale) * support
    found, iterations = _solve(system, wanted, begin, support, tolerance=tolerance, max_iterations=max_iterations)
    solved, fast = (found / scale).float(), hessian.float()
    whole, before, after = (_energy(rows, fast) for rows in (weight, weight * ~support, weight - solved))
    return Reconstruction(
        weight=solved, before=_share(before, whole), after=_share(after, whole), iterations=iterations
    )


def _energy(rows: torch.Tensor, hessian: torch.Tensor) -> float:
    rows = rows.float()
    return max(0.0, float(((rows @ hessian) * rows).sum(dtype=torch.float64)))


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _solve(
    system: torch.Tensor,
    wanted: torch.Tensor,
    found: torch.Tensor,
    support: torch.Tensor,
    tolerance: float,
    max_iterations: int,
) -> tuple[torch.Tensor, int]:
    """y on the support with (system y) = (system wanted) there, rows by conjugate gradients from `found`, which is
    written to; and the products made."""
    fast = system.float()
    limit = ((wanted.float() @ fast) * support).square().sum(1).double() * tolerance**2
    open_rows, iterations = torch.arange(len(wanted), device=wanted.device), 0
    for _ in range(_RESTARTS):
        mask = support[open_rows]
        residual = ((wanted[open_rows] - found[open_rows]) @ system) * mask
        still = residual.square().sum(1) > limit[open_rows]
        open_rows = open_rows[still]
        if not len(open_rows):
            break
        step, made = _conjugate_gradients(fast, residual[still], mask[still], limit[open_rows], max_iterations)
        found[open_rows] += step
        iterations += made
    return found, iterations


def _conjugate_gradients(
    system: torch.Tensor, residual: torch.Tensor, mask: torch.Tensor, limit: torch.Tensor, max_iterations: int
) -> tuple[torch.Tensor, int]:
    """The correction that a residual asks for, in float32; rows that are done leave the products."""
    # A little below the limit, so that one start is enough; no further than float32 can go.
    limit = torch.maximum(limit * _MARGIN, residual.square().sum(1) * 1e-11).float()
    total = torch.zeros_like(residual, dtype=torch.float32)
    rows = torch.arange(len(residual), device=residual.device)
    residual, mask = residual.float(), mask.float()
    solution, direction = torch.zeros_like(residual), residual.clone()
    size = residual.square().sum(1)
    for made in range(1, max_iterations + 1):
        product = (direction @ system).mul_(mask)
        curvature = (direction * product).sum(1)
        # Where the inputs hardly ever go, the curvature is float32's noise, and a step could have any length.
        real = curvature > _NOISE * direction.square().sum(1)
        length = torch.where(real, size / curvature, 0.0)[:, None]
        solution.addcmul_(direction, length)
        residual.addcmul_(product, length, value=-1)
        size, old = residual.square().sum(1), size
        direction.mul_(torch.where(old > 0, size / old, 0.0)[:, None]).add_(residual)
        if made % _LOOK and made < max_iterations:
            continue
        going = size > limit
        if not going.all():
            total[rows[~going]] = solution[~going]
            rows, limit, size, mask = rows[going], limit[going], size[going], mask[going]
            solution, residual, direction = solution[going], residual[going], direction[going]
        if not len(rows):
            break
    total[rows] = solution
    return total, made
