"""Layer-wise (L0, L1) smoothness: its estimate along training, and the fit of the two constants.

    ||grad_i f(X) - grad_i f(Y)||_* <= (L0 + L1 ||grad_i f(X)||_*) ||X_i - Y_i||              the assumption, layer i

    L_hat[k] = ||c_new - c_old||_* / ||X^k - X^{k-1}||           same sample: what this library measures
    L_hat[k] = ||g^k - g^{k-1}||_* / ||X^k - X^{k-1}||           trajectory: the Gluon paper's, on two minibatches

The difference of two minibatch gradients holds the noise of both, about `sqrt(2) ||g||_*` once noise dominates, so the
trajectory estimate is then `sqrt(2) ||g||_* / t` whatever the smoothness is. That value is the reading `noise_only`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RunningFit", "SmoothnessFit", "fit", "noise_only"]

PENALTY = 5.0  # weight of samples above the fit, the paper's lambda
MAX_ROUNDS = 100  # the fit ends after finitely many rounds, in practice 3 to 6


@dataclass(frozen=True)
class SmoothnessFit:
    """What `fit` returns.

    Args:
        L0: Smoothness at zero gradient, in units of the dual norm over the norm; scales with the loss.
        L1: Its growth with the gradient, in units of 1 over the norm; does not depend on the scale of the loss.
        goodness: Share of the variance of `L_hat` explained, at most 1; 0 or less when a constant does as well.
        above: Share of the samples above the fit.
        samples: Number of samples.

    Example:
        >>> SmoothnessFit(L0=0.0, L1=50.0, goodness=1.0, above=0.0, samples=3).radius(4.0)
        0.02
    """

    L0: float
    L1: float
    goodness: float
    above: float
    samples: int

    def __call__(self, grad_dual_norm: float) -> float:
        """Return the smoothness `L0 + L1 ||g||_*`."""
        return self.L0 + self.L1 * grad_dual_norm

    def radius(self, grad_dual_norm: float, kappa: float = 1.0) -> float:
        """Return the radius of the paper's Theorem 1, `kappa ||g||_* / (L0 + L1 ||g||_*)`; infinite at no curvature."""
        smoothness = self(grad_dual_norm)
        return kappa * grad_dual_norm / smoothness if smoothness > 0 else math.inf


def fit(
    L_hat: Sequence[float] | Tensor, grad_dual_norm: Sequence[float] | Tensor, penalty: float = PENALTY
) -> SmoothnessFit:
    """Fit `L_hat ~ L0 + L1 ||g||_*` with underestimates penalised, exactly.

        min_{L0, L1 >= 0}  sum_k r_k^2 + penalty * max(0, r_k)^2,       r_k = L_hat[k] - L0 - L1 ||g^k||_*

    The objective is convex and piecewise quadratic: each round solves the quadratic piece it stands on over the
    quadrant, and goes to the lowest point of the segment towards that solution, so it ends on the exact minimum.
    Samples that are not finite are left out.

    Shapes: `L_hat` and `grad_dual_norm` (samples,).

    Args:
        L_hat: Smoothness estimates, at least one finite.
        grad_dual_norm: Dual norms of the gradients they were taken at.
        penalty: Extra weight of samples above the fit, >= 0 and finite (`lambda`).

    Returns:
        The constants and how well they fit.

    Raises:
        ValueError: If the lengths differ, no sample is finite, or the penalty is negative or not finite.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416 (penalty 5).

    Example:
        >>> found = fit([3.0, 5.0, 7.0], [1.0, 2.0, 3.0])
        >>> round(found.L0, 6), round(found.L1, 6)
        (1.0, 2.0)
    """
    y = torch.as_tensor(L_hat, dtype=torch.float64).flatten().cpu()
    x = torch.as_tensor(grad_dual_norm, dtype=torch.float64).flatten().cpu()
    if len(x) != len(y):
        raise ValueError(f"Expected one `grad_dual_norm` per `L_hat`, but got {len(x)} and {len(y)}.")
    _check_penalty(penalty)
    good = x.isfinite() & y.isfinite()
    if not good.any():
        raise ValueError(f"Expected at least one finite sample in `L_hat`, but got {int(good.sum())} of {len(y)}.")
    x, y = x[good], y[good]
    unit_x, unit_y = _unit(x), _unit(y)
    intercept, slope = _minimise(torch.stack([torch.ones_like(x), x / unit_x], 1), y / unit_y, penalty)
    return _describe(x, y, intercept * unit_y, slope * unit_y / unit_x)


def _check_penalty(penalty: float) -> None:
    if not 0 <= penalty < math.inf:
        raise ValueError(f"Expected a finite `penalty` >= 0, but got {penalty!r}.")


def _unit(values: Tensor) -> float:
    return float(values.abs().max()) or 1.0


def _describe(x: Tensor, y: Tensor, L0: float, L1: float) -> SmoothnessFit:
    residual = y - L0 - L1 * x
    spread = float((y - y.mean()).square().sum())
    left = float(residual.square().sum())
    goodness = 1 - left / spread if spread > 0 else float(left <= 1e-18 * float(y.square().sum()))
    above = float((residual > 1e-9 * y.abs().max()).double().mean())
    return SmoothnessFit(L0, L1, goodness, above, len(y))


def _minimise(basis: Tensor, y: Tensor, penalty: float) -> tuple[float, float]:
    """Minimise the piecewise quadratic over the quadrant."""
    here = _best_on_piece(basis, y, torch.ones_like(y))
    for _ in range(MAX_ROUNDS):
        residual = y - basis @ here
        weight = 1 + penalty * (residual > 0)
        there = _best_on_piece(basis, y, weight)
        share = _lowest_on_segment(residual, basis @ (there - here), penalty)
        moved = here + share * (there - here)
        if torch.equal(moved, here) or (share == 1 and torch.equal((y - basis @ moved > 0), residual > 0)):
            here = moved
            break
        here = moved
    return float(here[0]), float(here[1])


def _best_on_piece(basis: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted least-squares point of the quadrant: of its interior, its two edges or its corner."""
    gram, moment = basis.T @ (weight[:, None] * basis), basis.T @ (weight * y)
    candidates = []
    # Equal gradient norms leave the split between L0 and L1 open; the edges below then decide for L1, as the papers
    # find.
    determinant = float(gram[0, 0] * gram[1, 1] - gram[0, 1] ** 2)
    if determinant > 1e-14 * float(gram[0, 0] * gram[1, 1]):
        inside = torch.linalg.solve(gram, moment)
        if bool((inside >= 0).all()):
            return inside
    for edge in (1, 0):
        point = torch.zeros(2, dtype=y.dtype)
        if gram[edge, edge] > 0:
            point[edge] = max(0.0, float(moment[edge] / gram[edge, edge]))
        candidates.append((float(point @ gram @ point - 2 * moment @ point), point))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def _lowest_on_segment(residual: Tensor, change: Tensor, penalty: float) -> float:
    """Minimise `sum w (r - s c)^2` over s in [0, 1], w = 1 + penalty where r - s c > 0, by its increasing slope."""

    def slope(share: float) -> float:
        left = residual - share * change
        return -float((change * left * (1 + penalty * (left > 0))).sum())

    if slope(1.0) <= 0:
        return 1.0
    crossings = residual / torch.where(change == 0, torch.ones_like(change), change)
    inside = (change != 0) & (crossings > 0) & (crossings < 1)
    knots = [0.0, *crossings[inside].sort().values.tolist(), 1.0]
    low, high = 0, len(knots) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if slope(knots[middle]) <= 0 else (low, middle)
    left, right = slope(knots[low]), slope(knots[high])
    if left >= 0:
        return knots[low]
    return knots[low] - left * (knots[high] - knots[low]) / (right - left)


def noise_only(grad_dual_norm: float, step_norm: float) -> float:
    """Return what the trajectory estimate reads when all it sees is noise: `sqrt(2) ||g||_* / ||X^k - X^{k-1}||`.

    Two independent minibatch gradients whose noise outweighs their mean differ by `sqrt(2)` times the length of one. A
    trajectory estimate at this value says nothing of the smoothness; `L1 ~ sqrt(2) / t` for whatever radius t was used.
    """
    return math.sqrt(2) * grad_dual_norm / step_norm if step_norm > 0 else math.nan


class RunningFit:
    """The fit over the last samples, kept as training goes on.

    Args:
        window: Number of samples kept; older ones are forgotten.
        penalty: As in `fit`.

    Raises:
        ValueError: If `window` is below 2 or not whole, or the penalty is negative or not finite.

    Example:
        >>> running = RunningFit(window=10)
        >>> for gradient in (1.0, 2.0, 3.0):
        ...     running.add(5.0 * gradient, gradient)
        >>> round(running.fit().L1, 6)
        5.0
    """

    def __init__(self, window: int = 200, penalty: float = PENALTY) -> None:
        if not isinstance(window, int) or window < 2:
            raise ValueError(f"Expected `window` to be a whole number, window >= 2, but got {window!r}.")
        _check_penalty(penalty)
        self.window = window
        self.penalty = penalty
        self.samples: list[tuple[float, float]] = []
        self._fit: SmoothnessFit | None = None

    def add(self, L_hat: float, grad_dual_norm: float) -> None:
        """Add a sample; one that is not finite is passed over."""
        if math.isfinite(L_hat) and math.isfinite(grad_dual_norm):
            self.samples = [*self.samples, (float(L_hat), float(grad_dual_norm))][-self.window :]
            self._fit = None

    def fit(self) -> SmoothnessFit | None:
        """Return the fit, or `None` before the first sample."""
        if self._fit is None and self.samples:
            values, norms = zip(*self.samples, strict=True)
            self._fit = fit(values, norms, self.penalty)
        return self._fit

    def state_dict(self) -> dict[str, list[float]]:
        """Return the samples as plain numbers."""
        return {"L_hat": [pair[0] for pair in self.samples], "grad_dual_norm": [pair[1] for pair in self.samples]}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Restore the samples."""
        self.samples = list(zip(state["L_hat"], state["grad_dual_norm"], strict=True))
        self._fit = None
