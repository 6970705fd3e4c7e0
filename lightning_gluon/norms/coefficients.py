"""Coefficients of the iterations, with their provenance: every step is `X <- a X + (b A + c A^2) X`, A = X X^T."""

from __future__ import annotations

from dataclasses import dataclass

Step = tuple[float, float, float]

# K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. Maximal slope at zero; singular
# values land in [0.68, 1.20], not at 1.
JORDAN: tuple[Step, ...] = ((3.4445, -4.7750, 2.0315),)

# J. You, modded-nanogpt speedrun, 2025: five different steps.
YOU: tuple[Step, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)

# N. Amsel, D. Persson, C. Musco, R. Gower, "The Polar Express", arXiv 2505.16932: minimax-optimal steps for singular
# values in [1e-3, 1], before the safety factor. The last one is the fixed point, cubic in its convergence to 1.
POLAR_EXPRESS: tuple[Step, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.875, -1.25, 0.375),
)


@dataclass(frozen=True)
class Iteration:
    """A way to the polar factor by steps.

    Args:
        coefficients: One step after the other; the last one is repeated.
        steps: How many are taken by default.
        tight: Start from the Schatten-8 norm, with room for rounding; else from the Frobenius norm, as the authors do.
        runs: Several steps may be taken at a time on the Gram matrix; else one by one.
    """

    coefficients: tuple[Step, ...]
    steps: int
    tight: bool
    runs: bool


ITERATIONS = {
    "polar_express": Iteration(POLAR_EXPRESS, 6, tight=True, runs=True),
    "you": Iteration(YOU, 5, tight=False, runs=True),
    "jordan": Iteration(JORDAN, 5, tight=False, runs=False),
    "newton_schulz": Iteration(JORDAN, 5, tight=False, runs=False),  # the name Muon's users know
}
ORTHOGONALIZERS = (*ITERATIONS, "svd")


def schedule(method: str = "polar_express", steps: int | None = None) -> tuple[Step, ...]:
    """Return the coefficients (a, b, c) of every step.

    A list shorter than `steps` is continued with its last entry. Asking for fewer Polar Express steps keeps the leading
    ones, as its authors do.

    Args:
        method: One of `ITERATIONS`.
        steps: Number of steps; default: 6 for `polar_express`, 5 for the others.

    Returns:
        One tuple (a, b, c) per step.

    Raises:
        ValueError: If the method is unknown or `steps` is not positive.

    Example:
        >>> schedule("jordan", 2)
        ((3.4445, -4.775, 2.0315), (3.4445, -4.775, 2.0315))
    """
    if method not in ITERATIONS:
        raise ValueError(
            f"Expected `method` to be one of {', '.join(ORTHOGONALIZERS)}, but got {method!r}. Check the spelling."
        )
    iteration = ITERATIONS[method]
    count = iteration.steps if steps is None else steps
    if count < 1:
        raise ValueError(
            f"Expected `steps` to be a positive integer, but got {steps}. The default for {method!r} is "
            f"{iteration.steps}."
        )
    listed = iteration.coefficients
    return (*listed, *(listed[-1:] * count))[:count]
