"""How long would an optimizer step take on an H200 at best? From the counts on file, by a roofline.

    products    TFLOP / 790 TFLOP/s, what an H200 does in 16 bits
    traffic     bytes / 4.3 TB/s
    launches    4 us each; a step is as long as its launches, if those of the host take longer than the device
    step        max(launches, products + traffic)

Operands of products are not traffic here: the library reads them while it multiplies. With symmetric products half of
every Gram matrix and of every product of small matrices is computed; `X <- P X` stays whole.

    python -m benchmarks.counts && python -m benchmarks.roofline
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning_gluon
from benchmarks.journal import Journal
from benchmarks.step import HIDDEN, build

TFLOP_S = 790.0
BYTES_S = 4.3e12
LAUNCH_S = 4e-6
GRAM_ASPECT = 1.5  # above it steps are taken in pairs on the Gram matrix


@dataclass(frozen=True)
class Products:
    """Products of a matrix's steps, in units of `2 m^3`.

    Args:
        whole: Those with X as their result.
        symmetric: Those with a symmetric result.
    """

    whole: float
    symmetric: float

    @classmethod
    def of(cls, aspect: float, steps: int) -> Products:
        """Count them for an aspect ratio and a number of steps."""
        if aspect <= GRAM_ASPECT:
            return cls(steps * aspect, steps * (aspect + 1))
        pairs, single = divmod(steps, 2)
        touches = pairs + single
        return cls(touches * aspect, touches * aspect + 5 * pairs + single)


def symmetric_share(model: str, steps: int) -> float:
    """Return the share of a step's products whose result is symmetric, for methods that are spectral on hidden weights.

    Args:
        model: Name of the model.
        steps: Steps of the orthogonalizer.
    """
    whole, symmetric = 0.0, 0.0
    for route, _ in lightning_gluon.partition(build(model)[0]):
        shapes = [shape for view in route.views for shape in view.shapes] if route.role == HIDDEN else []
        for shape in shapes:
            small, large = sorted(shape)
            found = Products.of(large / small, steps)
            whole += small**3 * found.whole
            symmetric += small**3 * found.symmetric
    return symmetric / (whole + symmetric)


def roofline(row: dict[str, Any], spared: float = 0.0) -> dict[str, float]:
    """Return the times of a counted step in ms.

    Args:
        row: A row of `benchmarks.counts`.
        spared: The share of its products that is not computed.
    """
    products = 1e3 * row["tflop"] * (1 - spared) / TFLOP_S
    traffic = 1e3 * row["bytes_per_parameter"] * row["parameters"] / BYTES_S
    launches = 1e3 * row["launches"] * LAUNCH_S
    times = {"launches": launches, "products": products, "traffic": traffic}
    return {**times, "step": max(launches, products + traffic)}


def rows(journal: Journal) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield model, row and times, and the five solved steps with symmetric products after those without."""
    for row in journal.latest("run", "model", "row"):
        yield row["model"], row["row"], roofline(row)
        steps = {"gluon": 6, "gluon, five steps": 5}.get(row["row"])
        if steps is not None:
            spared = symmetric_share(row["model"], steps) / 2
            yield row["model"], f"{row['row']}, symmetric products", roofline(row, spared)


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=Path, default=Path("benchmarks/results/counts.jsonl"))
    given = parser.parse_args(argv)
    print("| model | row | launches, ms | products | traffic | step |\n|---|---|---|---|---|---|")
    for model, name, times in rows(Journal(given.counts)):
        cells = " | ".join(f"{times[key]:.2f}" for key in ("launches", "products", "traffic", "step"))
        print(f"| {model} | {name} | {cells} |")


if __name__ == "__main__":
    main()
