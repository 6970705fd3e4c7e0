"""Coefficients of Polar Express steps: where should a schedule begin, and what does each number of steps miss?

A step is an odd quintic `p(x) = a x + b x^3 + c x^5`. The best one on `[l, u]` is the one whose largest error
`E = max |1 - p(x)|` is least. It equioscillates: the error is `E, -E, E, -E` at `l`, the two extrema and `u`. The next
step then begins on `[1 - E, 1 + E]`. An exchange algorithm (Remez) finds each step in fp64, so a schedule has one free
number, the first `l`. A small `l` misses less of the small singular values and leaves the large ones further from 1.

    python -m benchmarks.polar_coefficients
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

Step = tuple[float, float, float]

# Where the schedules of the package begin, by their number of steps.
BEGINNINGS = {1: 0.3, 2: 0.13, 3: 0.04, 4: 0.012, 5: 0.004}
FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5)
ROWS = 256


def minimax_step(low: float, high: float, exchanges: int = 50) -> tuple[Step, float]:
    """Return the best odd quintic for 1 on `[low, high]`, and its error."""
    inside = torch.tensor([0.3, 0.75], dtype=torch.float64)
    ends = torch.tensor([low, high], dtype=torch.float64)
    interior = low + (high - low) * inside
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    for _ in range(exchanges):
        points = torch.cat([ends[:1], interior, ends[1:]])
        powers = [points, points**3, points**5, signs]
        a, b, c, error = torch.linalg.solve(torch.stack(powers, 1), torch.ones_like(points)).tolist()
        # p'(x) = 0, a quadratic equation in x^2
        root = (9 * b**2 - 20 * a * c) ** 0.5
        squares = torch.tensor([-3 * b - root, -3 * b + root], dtype=torch.float64) / (10 * c)
        interior = squares.clamp(low**2, high**2).sqrt()
    return (a, b, c), abs(error)


def minimax_schedule(low: float, steps: int) -> tuple[list[Step], float]:
    """Return the steps for singular values in `[low, 1]`, and the error of the last one."""
    high, error = 1.0, 1.0
    schedule = []
    for _ in range(steps):
        step, error = minimax_step(low, high)
        schedule.append(step)
        low, high = 1 - error, 1 + error
    return schedule, error


def spectra() -> dict[str, Tensor]:
    """Return singular values to judge a schedule by."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    index = torch.arange(1, ROWS + 1, dtype=torch.float64)
    low_rank = normal(ROWS, 8) @ normal(8, ROWS) / 8**0.5 + 0.01 * normal(ROWS, ROWS)
    return {
        "gaussian": torch.linalg.svdvals(normal(ROWS, ROWS)),
        "gaussian 1:4": torch.linalg.svdvals(normal(ROWS, 4 * ROWS)),
        "1/i": 1 / index,
        "1/i^2": 1 / index**2,
        "low rank": torch.linalg.svdvals(low_rank),
    }


def gap_and_norm(schedule: list[Step], values: Tensor) -> tuple[float, float]:
    """Return the LMO gap and `||D||` of a schedule that starts from the Schatten-8 norm."""
    x = values / values.pow(8).sum() ** 0.125
    for a, b, c in schedule:
        x = a * x + b * x**3 + c * x**5
    largest = x.max()
    gap = 1 - (values * x).sum() / largest / values.sum()
    return gap.item(), largest.item()


def main() -> None:
    """Print the gaps of schedules that begin lower and higher, then the coefficients."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    judged = spectra()
    table = Table("steps", "l", "last error", *judged, "mean", "||D||", title="LMO gap in %")
    for steps, begin in BEGINNINGS.items():
        for factor in FACTORS:
            schedule, error = minimax_schedule(factor * begin, steps)
            found = [gap_and_norm(schedule, values) for values in judged.values()]
            gaps = [100 * gap for gap, _ in found]
            shown = [f"{gap:.2f}" for gap in (*gaps, sum(gaps) / len(gaps))]
            largest = max(norm for _, norm in found)
            table.add_row(str(steps), f"{factor * begin:.4f}", f"{error:.4f}", *shown, f"{largest:.3f}")
        table.add_section()
    console = Console(width=120)
    console.print(table)
    for steps, begin in BEGINNINGS.items():
        for a, b, c in minimax_schedule(begin, steps)[0]:
            console.print(f"{steps} ({a:.12f}, {b:.12f}, {c:.12f})")


if __name__ == "__main__":
    main()
