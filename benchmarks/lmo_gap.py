"""How good is the spectral LMO, and what does the accuracy cost?

For every method, dtype, spectrum and shape:

    gap      1 - <G, D / ||D||> / ||G||_*      what is lost of the steepest possible decrease; 0 is exact
    largest  ||D||                             above 1 the step is longer than its radius
    smallest the smallest singular value of D
    time     of one call, relative to the orthogonalisation inside torch.optim.Muon (5 steps, bf16) in the same run

    python -m benchmarks.lmo_gap [--threads 1] [--quick] [--output benchmarks/results/lmo_gap.jsonl]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.journal import Journal
from benchmarks.yardsticks import torch_muon
from lightning_gluon import orthogonalize

SHAPES = {"square": (768, 768), "4:1": (1536, 384), "1:7": (128, 896)}
QUICK = {"square": (128, 128), "4:1": (256, 64), "1:7": (48, 336)}
KEYS = ("method", "dtype", "shape")  # what a row of the table is of
SPECTRA = ("gaussian", "1/i", "1/i^2", "low rank")
TORCH = "torch.optim.Muon"
VARIANTS = (
    ("polar_express", torch.float32),
    ("polar_express", torch.bfloat16),
    ("polar_express", torch.float16),
    ("you", torch.bfloat16),
    ("jordan", torch.bfloat16),
    ("svd", torch.float32),
)


def test_matrix(shape: tuple[int, int], spectrum: str, generator: torch.Generator) -> Tensor:
    """Return an fp64 matrix with that spectrum; `low rank`: rank 8 plus Gaussian noise of 1 % per entry."""

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    if spectrum == "gaussian":
        return normal(*shape)
    if spectrum == "low rank":
        return normal(shape[0], 8) @ normal(8, shape[1]) / 8**0.5 + 0.01 * normal(*shape)
    u, s, v = torch.linalg.svd(normal(*shape), full_matrices=False)
    return u * torch.arange(1, len(s) + 1, dtype=torch.float64) ** -(2.0 if spectrum == "1/i^2" else 1.0) @ v


def relative_time(call: Callable[[Tensor], Tensor], g: Tensor, repeats: int) -> tuple[float, float]:
    """Return the fastest time of a call, in seconds and relative to torch's, the two taken in turn."""
    best = [float("inf")] * 2
    for _ in range(repeats + 1):
        for index, function in enumerate((call, torch_muon)):
            start = time.perf_counter()
            function(g)
            best[index] = min(best[index], time.perf_counter() - start)
    return best[0], best[0] / best[1]


def measure(label: str, dtype: str, call: Callable[[Tensor], Tensor], matrices: dict, repeats: int) -> list[dict]:
    """Return one record per spectrum and shape."""
    records = []
    for (spectrum, shape), g in matrices.items():
        d = call(g.float()).double()
        values = torch.linalg.svdvals(d)
        steepest = torch.linalg.svdvals(g).sum()
        gap = 1 - (g * d).sum() / values[0] / steepest
        record = {
            "method": label,
            "dtype": dtype,
            "spectrum": spectrum,
            "shape": shape,
            "rows_columns": list(g.shape),
            "gap": gap.item(),
            "largest": values[0].item(),
            "smallest": values[-1].item(),
        }
        if spectrum == "gaussian":
            record["seconds"], record["relative_time"] = relative_time(call, g.float(), repeats)
        records.append(record)
    return records


def table(records: list[dict]) -> Table:
    """Return one row per method, dtype and shape; gaps of the spectra side by side."""
    out = Table(title="Gap of the spectral LMO (%), singular values of D, time against torch.optim.Muon's products")
    for name in KEYS:
        out.add_column(name)
    for name in (*SPECTRA, "largest", "smallest (gaussian)", "time"):
        out.add_column(name, justify="right")
    rows: dict[tuple, dict[str, dict]] = {}
    for record in records:
        key = tuple(record[name] for name in KEYS)
        rows.setdefault(key, {})[record["spectrum"]] = record
    for key, spectra in rows.items():
        gaps = [f"{100 * spectra[name]['gap']:.2f}" for name in SPECTRA]
        largest = max(record["largest"] for record in spectra.values())
        gaussian = spectra["gaussian"]
        smallest, time_taken = gaussian["smallest"], gaussian["relative_time"]
        out.add_row(*key, *gaps, f"{largest:.3f}", f"{smallest:.3f}", f"{time_taken:.2f}")
    return out


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Accuracy and cost of the spectral LMO.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="small matrices")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "lmo_gap.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    shapes = QUICK if args.quick else SHAPES
    matrices = {(s, name): test_matrix(shape, s, generator) for name, shape in shapes.items() for s in SPECTRA}

    records = measure(TORCH, "bfloat16", torch_muon, matrices, args.repeats)
    for method, dtype in VARIANTS:

        def call(g: Tensor, method: str = method, dtype: torch.dtype = dtype) -> Tensor:
            return orthogonalize(g, method, dtype=dtype)

        repeats = 1 if method == "svd" or dtype == torch.float16 else args.repeats
        records += measure(method, str(dtype).removeprefix("torch."), call, matrices, repeats)

    Console(width=140).print(table(records))
    journal = Journal(args.output)
    for record in records:
        journal.append("run", **record)
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
