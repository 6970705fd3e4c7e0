"""Least squares that rows of equal length make slow: the worst case of NorMuon in the study arXiv 2609.39114.

    python -m benchmarks.anchors.least_squares

Published, n = 8 columns, row i of the order of 1 / i, m rows up to 2048: Muon gains 5.7 decades of the loss
whatever m is, NorMuon 5.70 at few rows and 3.15 at 2048. The number of steps and the schedule are not known to us.

    f(W) = 1/2 ||W - T||_F^2,        T_i = x_i / i,  x_i normal,        W_0 = 0

Ours: 70 steps, a rate that goes linearly to zero, no momentum, the best of thirteen rates by factors of 1.5. So the
level cannot be compared, the way it falls can. A polar factor keeps the proportions of the rows; one with rows of
equal length must move row m as far as row 1.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import lightning_gluon
from benchmarks.anchors.runner import RESULTS
from benchmarks.journal import Journal

COLUMNS = 8
ROWS = (8, 64, 512, 2048)
STEPS = 70
METHODS: dict[str, dict[str, Any]] = {
    "muon": {},
    "normuon": {},
    "normuon, longer side": {"balance": "longer"},
    "aurora": {},
}
PUBLISHED = {("muon", 8): 5.7, ("muon", 2048): 5.72, ("normuon", 8): 5.70, ("normuon", 2048): 3.15}
RATES = [0.06 * 1.5**power for power in range(13)]


@dataclass(frozen=True)
class Problem:
    """The target and the loss.

    Args:
        rows: Number of rows.
        seed: Seed of the target.
    """

    rows: int
    seed: int = 0

    def target(self) -> torch.Tensor:
        """Return the minimizer."""
        generator = torch.Generator().manual_seed(self.seed)
        normal = torch.randn(self.rows, COLUMNS, generator=generator, dtype=torch.float64)
        return normal / torch.arange(1, self.rows + 1, dtype=torch.float64)[:, None]


def decades(problem: Problem, name: str, rate: float, steps: int) -> float:
    """Return the decades of the loss that a training gains.

    Args:
        problem: What is solved.
        name: A key of `METHODS`.
        rate: First step, relative to that of a matrix of 8 rows.
        steps: Steps, with rates down to zero.
    """
    target = problem.target()
    weight = torch.nn.Parameter(torch.zeros_like(target))
    lr = rate * math.sqrt(COLUMNS / problem.rows)  # `muon` multiplies by the root of rows over columns
    group = {"params": [weight], "role": "hidden"}
    options = {"momentum": 0.0, "orthogonalizer": "svd", **METHODS[name]}
    optimizer = lightning_gluon.Gluon([group], lr=lr, method=name.split(",")[0], **options)
    for step in range(steps):
        for each in optimizer.param_groups:
            each["lr"] = lr * (1 - step / steps)
        weight.grad = weight.detach() - target
        optimizer.step()
    begin, end = target.square().sum(), (weight.detach() - target).square().sum()
    return math.log10(begin / end)


def found(steps: int, rows: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Yield the best of the rates for every size and method."""
    for count in rows:
        for name in METHODS:
            start = time.process_time()
            gains = {rate: decades(Problem(count), name, rate, steps) for rate in RATES}
            rate = max(gains, key=lambda each: gains[each])
            seconds = round(time.process_time() - start, 2)
            known = PUBLISHED.get((name, count))
            yield {
                "row": name,
                "rows": count,
                "decades": round(gains[rate], 3),
                "published": known,
                "rate": round(rate, 4),
                "edge": rate in (RATES[0], RATES[-1]),
                "steps": steps,
                "processor_seconds": seconds,
            }


def table(runs: list[dict[str, Any]]) -> str:
    """Return the decades as Markdown, a line per method; published ones in brackets, `*` a best rate at the edge."""
    sizes = sorted({run["rows"] for run in runs})
    lines = [f"| decades gained | {' | '.join(f'm = {size}' for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    for name in METHODS:
        own = {run["rows"]: run for run in runs if run["row"] == name}
        cells = [_cell(own[size]) for size in sizes]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines) + "\n"


def _cell(run: dict[str, Any]) -> str:
    known = "" if run["published"] is None else f" ({run['published']:.2f})"
    edge = "*" if run["edge"] else ""
    return f"{run['decades']:.2f}{edge}{known}"


def main(argv: list[str] | None = None) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--output", type=Path, default=RESULTS / "anchor_least_squares.jsonl")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    journal = Journal(given.output)
    runs = [journal.append("run", **run) for run in found(given.steps, tuple(given.sizes))]
    page = table(runs)
    given.output.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
