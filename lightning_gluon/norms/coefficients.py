"""Coefficients of the iterations, with their provenance: every step is `X <- a X + (b A + c A^2) X`, A = X X^T."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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

# The same minimax problem for fewer steps. A shorter schedule must begin at a larger singular value: the first five of
# six steps have not arrived, and leave values between 0.87 and 1.13. `benchmarks.polar_coefficients` solves them.
FEWER_STEPS: dict[int, tuple[Step, ...]] = {
    1: ((3.477677198168, -5.944945679617, 3.575789686411),),  # for singular values in [0.3, 1]
    2: (  # [0.13, 1]
        (5.095865625379, -11.932786187895, 8.200369888478),
        (2.029898656371, -1.413076249370, 0.391645302761),
    ),
    3: (  # [0.04, 1]
        (7.044121878979, -19.493642702007, 14.169002090095),
        (2.700367802910, -2.009054701505, 0.456160873623),
        (1.967171398605, -1.348995395669, 0.385029041717),
    ),
    4: (  # [0.012, 1]
        (8.013962779113, -23.307351849723, 17.197261788086),
        (3.539470308493, -2.651413309168, 0.528531629909),
        (2.530986366602, -1.868884937533, 0.440642157359),
        (1.925584576979, -1.305125820162, 0.380553872408),
    ),
    5: (  # [0.004, 1]
        (8.340980668026, -24.597367869404, 18.223024852918),
        (3.977994423438, -2.965434208138, 0.564272001028),
        (3.327478541288, -2.495236796836, 0.510813367761),
        (2.308564577776, -1.675994456279, 0.419573928781),
        (1.892113336102, -1.268886170735, 0.376893577952),
    ),
}


@dataclass(frozen=True)
class Iteration:
    """A way to the polar factor by steps.

    Args:
        coefficients: One step after the other; the last one is repeated.
        steps: How many are taken by default.
        tight: Start from the Schatten-8 norm, with room for rounding; else from the Frobenius norm, as the authors do.
        runs: Several steps may be taken at a time on the Gram matrix; else one by one.
        fewer: Schedules solved for a smaller number of steps.
        rational: Where rational steps are as accurate and faster, they are the default.
    """

    coefficients: tuple[Step, ...]
    steps: int
    tight: bool
    runs: bool
    fewer: Mapping[int, tuple[Step, ...]] = field(default_factory=dict)
    rational: bool = False


ITERATIONS = {
    "polar_express": Iteration(POLAR_EXPRESS, 6, tight=True, runs=True, fewer=FEWER_STEPS, rational=True),
    "you": Iteration(YOU, 5, tight=False, runs=True),
    "jordan": Iteration(JORDAN, 5, tight=False, runs=False),
    "newton_schulz": Iteration(JORDAN, 5, tight=False, runs=False),  # the name Muon's users know
}
ORTHOGONALIZERS = (*ITERATIONS, "svd")


def step_coefficients(method: str = "polar_express", steps: int | None = None) -> tuple[Step, ...]:
    """Return the coefficients (a, b, c) of every step.

    A list shorter than `steps` is continued with its last entry. Fewer than six Polar Express steps are solved for
    their number, so that each schedule ends near 1. `you` and `jordan` keep their leading steps, as their authors do.

    Args:
        method: One of `ITERATIONS`.
        steps: Number of steps; default: 6 for `polar_express`, 5 for the others.

    Returns:
        One tuple (a, b, c) per step.

    Raises:
        ValueError: If the method is unknown or `steps` is not positive.

    Example:
        >>> step_coefficients("jordan", 2)
        ((3.4445, -4.775, 2.0315), (3.4445, -4.775, 2.0315))
        >>> [round(sum(step_coefficients(steps=steps)[-1]), 4) for steps in (5, 9)]  # what the last step makes of 1
        [1.0001, 1.0]
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
    listed = iteration.fewer.get(count, iteration.coefficients)
    return (*listed, *(listed[-1:] * count))[:count]
