"""Layer-wise (L0, L1) smoothness: its estimate along training, and the fit of the two constants.

    ||grad_i f(X) - grad_i f(Y)||_* <= (L0 + L1 ||grad_i f(X)||_*) ||X_i - Y_i||              the assumption, layer i

    L_hat[k] = ||c_new - c_old||_* / ||X^k - X^{k-1}||           same sample: what this library measures
    L_hat[k] = ||g^k - g^{k-1}||_* / ||X^k - X^{k-1}||           trajectory: the Gluon paper's, on two minibatches

The trajectory estimate mostly measures noise; on this and on the worth of a fit: `docs/primers/smoothness.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_gluon.valid import number, whole

PENALTY = 5.0  # weight of samples above the fit, the paper's lambda
MAX_ROUNDS = 100  # the fit ends after finitely many rounds, in practice 3 to 6
SINGULAR = 1e-14  # determinant, relative to its largest value, below which all gradient norms count as equal
EXACT_FIT = 1e-18  # residual, relative to the samples squared, below which a fit of equal values counts as exact
ABOVE = 1e-9  # residual, relative to the largest sample, from which a sample counts as above the fit

Values: TypeAlias = Sequence[float] | Tensor
FitSample: TypeAlias = tuple[float, float]  # an estimate and the gradient's dual norm


@dataclass(frozen=True)
class SmoothnessFit:
    """The two constants of a layer or role, and how well they fit.

        L(g) = L0 + L1 ||g||_*,        radius = kappa ||g||_* / L(g)        (Theorem 1)

    Args:
        L0: Smoothness at zero gradient, in units of the dual norm over the norm; scales with the loss.
        L1: Growth of the smoothness with the gradient, in units of 1 over the norm; the loss's scale drops out.
        goodness: Share of the variance of `L_hat` explained, at most 1; 0 or less when a constant does as well.
        above: Share of the samples above the fit, in [0, 1].
        samples: Number of samples.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416, Theorem 1.

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
        """Return the radius of the paper's Theorem 1, `kappa ||g||_* / (L0 + L1 ||g||_*)`; infinite at no curvature.

        Args:
            grad_dual_norm: `||g||_*`, in units of the loss over the norm.
            kappa: Factor on the step length.
        """
        smoothness = self(grad_dual_norm)
        if smoothness <= 0:
            return math.inf
        return kappa * grad_dual_norm / smoothness


def fit(
    L_hat: Values,
    grad_dual_norm: Values,
    penalty: float = PENALTY,
) -> SmoothnessFit:
    """Fit `L_hat ~ L0 + L1 ||g||_*` with underestimates penalised, exactly.

        min_{L0, L1 >= 0}  sum_k r_k^2 + penalty * max(0, r_k)^2,       r_k = L_hat[k] - L0 - L1 ||g^k||_*

    The objective is convex and piecewise quadratic. Each round solves the quadratic piece it stands on over the
    quadrant, and goes to the lowest point of the segment towards that solution. So it ends on the exact minimum.
    Samples that are not finite are left out.

    Shapes: `L_hat` and `grad_dual_norm` (samples,).

    Args:
        L_hat: Smoothness estimates, at least one finite (`L_hat[k]`, in units of the dual norm over the norm).
        grad_dual_norm: Dual norms of the gradients they were taken at (`||g^k||_*`).
        penalty: Extra weight of samples above the fit, >= 0 and finite (`lambda` of the paper).

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
    y = _float_vector(L_hat)
    x = _float_vector(grad_dual_norm)
    count = len(y)
    if len(x) != count:
        raise ValueError(f"Expected one `grad_dual_norm` per `L_hat`, but got {len(x)} and {count}.")
    finite_positive = number()
    finite_positive("penalty", penalty)
    good = x.isfinite() & y.isfinite()
    if not good.any():
        raise ValueError(f"Expected at least one finite sample in `L_hat`, but got 0 of {count}.")
    x, y = x[good], y[good]
    unit_x = _unit(x)
    unit_y = _unit(y)
    ones = torch.ones_like(x)
    basis = torch.stack([ones, x / unit_x], 1)
    intercept, slope = _minimise(basis, y / unit_y, penalty)
    return _with_quality(
        x,
        y,
        L0=intercept * unit_y,
        L1=slope * unit_y / unit_x,
    )


def _float_vector(values: Values) -> Tensor:
    vector = torch.as_tensor(values, dtype=torch.float64)
    return vector.flatten().cpu()


def _unit(values: Tensor) -> float:
    return float(values.abs().max()) or 1.0


def _with_quality(x: Tensor, y: Tensor, L0: float, L1: float) -> SmoothnessFit:
    residual = y - L0 - L1 * x
    spread = _sum_of_squares(y - y.mean())
    error = _sum_of_squares(residual)
    if spread > 0:
        goodness = 1 - error / spread
    else:
        exact = error <= EXACT_FIT * _sum_of_squares(y)
        goodness = float(exact)
    threshold = ABOVE * y.abs().max()
    high = residual > threshold
    above = high.double().mean()
    return SmoothnessFit(
        L0=L0,
        L1=L1,
        goodness=goodness,
        above=float(above),
        samples=len(y),
    )


def _sum_of_squares(values: Tensor) -> float:
    return float(values.square().sum())


def _minimise(
    basis: Tensor,
    y: Tensor,
    penalty: float,
) -> tuple[float, float]:
    """Minimise the piecewise quadratic over the quadrant; `basis` is (samples, 2), `y` (samples,)."""
    point = _best_on_piece(basis, y, torch.ones_like(y))
    for _ in range(MAX_ROUNDS):
        residual = y - basis @ point
        above = residual > 0
        weight = 1 + penalty * above
        target = _best_on_piece(basis, y, weight)
        change = target - point
        share = _lowest_on_segment(residual, basis @ change, penalty)
        new = point + share * change
        still = torch.equal(new, point)
        above_new = y - basis @ new > 0
        same = torch.equal(above_new, above)
        point = new
        if still or (same and share == 1):
            break
    intercept, slope = point.tolist()
    return intercept, slope


def _best_on_piece(basis: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted least-squares point of the quadrant: of its interior, its two edges or its corner."""
    weighted = weight[:, None] * basis
    gram = basis.T @ weighted
    moment = basis.T @ (weight * y)
    # Equal gradient norms leave the split between L0 and L1 open. The edges below then decide for L1, as the papers
    # find.
    largest = gram[0, 0] * gram[1, 1]
    determinant = largest - gram[0, 1] ** 2
    if determinant > SINGULAR * largest:
        inside = torch.linalg.solve(gram, moment)
        if bool((inside >= 0).all()):
            return inside
    line = _on_edge(gram, moment, 1)
    constant = _on_edge(gram, moment, 0)
    if _objective(gram, moment, line) <= _objective(gram, moment, constant):
        return line
    return constant


def _on_edge(gram: Tensor, moment: Tensor, edge: int) -> Tensor:
    """Return the best point with one coordinate alone."""
    point = torch.zeros_like(moment)
    width = gram[edge, edge]
    if width > 0:
        best = moment[edge] / width
        point[edge] = max(0.0, float(best))
    return point


def _objective(gram: Tensor, moment: Tensor, point: Tensor) -> float:
    quadratic = point @ gram @ point
    linear = 2 * moment @ point
    return float(quadratic - linear)


def _lowest_on_segment(residual: Tensor, change: Tensor, penalty: float) -> float:
    """Minimise `sum w (r - s c)^2` over s in [0, 1], w = 1 + penalty if r - s c > 0, by its increasing slope."""

    def slope(share: float) -> float:
        rest = residual - share * change
        weight = 1 + penalty * (rest > 0)
        product = change * rest * weight
        return -float(product.sum())

    if slope(1.0) <= 0:
        return 1.0
    knots = _knots(residual, change)
    low = 0
    high = len(knots) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if slope(knots[middle]) <= 0:
            low = middle
        else:
            high = middle
    left = knots[low]
    right = knots[high]
    start = slope(left)
    end = slope(right)
    if start >= 0:
        return left
    rise = end - start
    return left - start * (right - left) / rise


def _knots(residual: Tensor, change: Tensor) -> list[float]:
    """Return the shares in [0, 1] at which a sample crosses the fit, with both ends, in order."""
    moving = change != 0
    crossings = residual[moving] / change[moving]
    inside = (crossings > 0) & (crossings < 1)
    knots = crossings[inside].sort().values
    return [0.0, *knots.tolist(), 1.0]


def noise_only(grad_dual_norm: float, step_norm: float) -> float:
    """Return the trajectory estimate of two gradients that are only noise: `sqrt(2) ||g||_* / ||X^k - X^{k-1}||`.

    Two independent minibatch gradients whose noise outweighs their mean differ by `sqrt(2)` times the length of one. A
    trajectory estimate at this value says nothing of the smoothness: `L1 ~ sqrt(2) / t` for whatever radius t was used.

    Args:
        grad_dual_norm: Dual norm of a minibatch gradient (`||g||_*`).
        step_norm: Length of the step (`||X^k - X^{k-1}||`).

    Returns:
        The estimate, in units of the dual norm over the norm; NaN if nothing moved.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.
        `docs/primers/smoothness.md` on the noise.

    Example:
        >>> round(noise_only(3.0, 0.1), 2)
        42.43
    """
    if step_norm <= 0:
        return math.nan
    return math.sqrt(2) * grad_dual_norm / step_norm


class RunningFit:
    """The fit over the last samples, as training goes on.

        L_hat[k] ~ L0 + L1 ||g^k||_*        for the last `window` samples k, by `fit`

    Shapes: plain numbers, in the units of `SmoothnessFit`.

    Args:
        window: Number of samples kept; older ones are forgotten.
        penalty: As in `fit` (`lambda`).

    Raises:
        ValueError: If `window` is below 2 or not whole, or the penalty is negative or not finite; on loading, if the
            saved samples are no pairs of finite numbers.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> running = RunningFit(window=10)
        >>> for gradient in (1.0, 2.0, 3.0):
        ...     running.add(5.0 * gradient, gradient)
        >>> round(running.fit().L1, 6)
        5.0
    """

    def __init__(self, window: int = 200, penalty: float = PENALTY) -> None:
        at_least_two, finite_positive = whole(2), number()
        at_least_two("window", window)
        finite_positive("penalty", penalty)
        self.window = window
        self.penalty = penalty
        self.samples: list[FitSample] = []
        self._fit: SmoothnessFit | None = None

    def add(self, L_hat: float, grad_dual_norm: float) -> None:
        """Add a sample; one that is not finite is passed over.

        Args:
            L_hat: Smoothness estimate, in units of the dual norm over the norm.
            grad_dual_norm: Dual norm of the gradient that it was taken at.
        """
        if math.isfinite(L_hat) and math.isfinite(grad_dual_norm):
            sample = float(L_hat), float(grad_dual_norm)
            self.samples.append(sample)
            del self.samples[: -self.window]
            self._fit = None

    def fit(self) -> SmoothnessFit | None:
        """Return the fit, or `None` before the first sample."""
        if self._fit is None and self.samples:
            values, norms = zip(*self.samples, strict=True)
            self._fit = fit(values, norms, self.penalty)
        return self._fit

    def state_dict(self) -> dict[str, list[float]]:
        """Return the samples as plain numbers."""
        return {
            "L_hat": [value for value, _ in self.samples],
            "grad_dual_norm": [norm for _, norm in self.samples],
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore the samples.

        Args:
            state: Result of `state_dict`.

        Raises:
            ValueError: If it is none, before anything has changed.
        """
        values = _saved_column(state, "L_hat")
        norms = _saved_column(state, "grad_dual_norm")
        count = len(norms)
        if len(values) != count:
            found = f"{len(values)} and {count}"
            raise ValueError(f"Expected as many `L_hat` as `grad_dual_norm`{IN_SAVED_FIT}, but got {found}.")
        samples = list(zip(values, norms, strict=True))
        self.samples = samples[-self.window :]
        self._fit = None


IN_SAVED_FIT = " in the saved samples of a smoothness fit"


def _saved_column(state: object, name: str) -> list[float]:
    if not isinstance(state, Mapping):
        kind = type(state).__name__
        raise ValueError(f"Expected the saved samples of a smoothness fit to be a mapping, but got {kind}.")
    column = state.get(name)
    if not isinstance(column, (list, tuple)):
        raise ValueError(f"Expected `{name}`{IN_SAVED_FIT} to be a list, but got {column!r}.")
    finite_positive = number()
    values = []
    for value in column:
        finite_positive(name, value, IN_SAVED_FIT)
        values.append(float(value))
    return values
