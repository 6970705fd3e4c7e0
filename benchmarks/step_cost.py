"""What one training step of each method costs, in units of one forward and backward pass, and the memory it peaks at.

A method that takes two gradients per step costs about 2 before its optimizer has done anything. `step` is the whole
step, `optimizer` what is left of it without its gradients. Every row trains its own copy of one model; rows take turns,
round by round, and each is divided by a plain forward-backward pass right before it, so a machine whose speed drifts
does not favour anyone. On the CPU it is the processor time of the process that counts, not the time on the wall. `peak`
counts every live byte of one further step: weights, gradients, state, activations, transients.

    python -m benchmarks.step_cost [--threads 1] [--rounds 9] [--quick]
    python -m benchmarks.step_cost --device cuda --rounds 50
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lightning_gluon
from benchmarks.journal import Journal
from benchmarks.memory import LiveBytes

# Variants of a method beside its defaults.
VARIANTS: dict[str, dict[str, Any]] = {
    "mimuon": {"method": "mimuon", "gate": 0.001},  # which has none by itself
    "limuon, rank 8": {"method": "limuon", "rank": 8},
    "gluon-mvr1, reference step": {"method": "gluon-mvr1", "reference": "step"},
    "gluon-mvr1, reference step8": {"method": "gluon-mvr1", "reference": "step8"},
}
MODEL = {"img_size": 32, "patch_size": 4, "embed_dim": 256, "depth": 6, "num_heads": 4, "num_classes": 10}
QUICK = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 10}

SETTING = ("model", "forward_backward", "rounds")  # of a report, beside its rows


class Row:
    """One optimizer on its own copy of the model and the batch."""

    def __init__(self, model: nn.Module, batch: tuple[Tensor, Tensor], options: dict[str, Any] | None) -> None:
        self.model = copy.deepcopy(model)
        self.batch = batch
        self.params = list(self.model.parameters())
        self.optimizer = lightning_gluon.Gluon(self.model, lr=1e-3, total_steps=1000, **options) if options else None

    def gradients(self) -> Tensor:
        """One forward and backward pass."""
        self.model.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.batch[0]), self.batch[1])
        loss.backward()
        return loss

    def step(self) -> None:
        """One training step."""
        if self.optimizer is None:
            self.gradients()
        else:
            self.optimizer.step(self.gradients)

    def peak(self) -> int:
        """Bytes alive at the peak of one step."""
        gc.collect()
        if self.params[0].is_cuda:
            torch.cuda.reset_peak_memory_stats()
            others = torch.cuda.memory_allocated() - self._own_bytes()
            self.step()
            return torch.cuda.max_memory_allocated() - others
        with LiveBytes() as live:
            for tensor in self._own():
                live.add(tensor)
            self.step()
        return live.peak

    def _own(self) -> list[Tensor]:
        state = [] if self.optimizer is None else [v for s in self.optimizer.state.values() for v in s.values()]
        gradients = [parameter.grad for parameter in self.params if parameter.grad is not None]
        return [*self.params, *gradients, *self.batch, *(value for value in state if isinstance(value, Tensor))]

    def _own_bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._own())


def timed(action: Callable[[], Any], device: str) -> float:
    """Seconds of one call: of the processor on the CPU, of the clock elsewhere."""
    if device == "cpu":
        start = time.process_time()
        action()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def build(device: str, *, quick: bool) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a ViT and a batch."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    size, count = (QUICK, 8) if quick else (MODEL, 16)
    model = VisionTransformer(**size).to(device)
    images = torch.randn(count, 3, size["img_size"], size["img_size"], device=device)
    return model, (images, torch.randint(10, (count,), device=device))


def measure(device: str, rounds: int, *, quick: bool) -> dict[str, Any]:
    """Return the model's size, the seconds of one forward-backward pass, and the rows."""
    model, batch = build(device, quick=quick)
    options = {method: {"method": method} for method in lightning_gluon.METHODS} | VARIANTS
    plain = Row(model, batch, None)
    rows = {name: Row(model, batch, given) for name, given in options.items()}
    for row in (plain, *rows.values()):
        row.step(), row.step()
    base, ratios = [], {name: [] for name in rows}
    for _ in range(rounds):
        for name, row in rows.items():
            base.append(timed(plain.step, device))
            ratios[name].append(timed(row.step, device) / base[-1])
    floor = plain.peak()
    found = {}
    for name, row in rows.items():
        before = row.optimizer.gradient_evaluations
        row.step()
        gradients = row.optimizer.gradient_evaluations - before
        step = statistics.median(ratios[name])
        peak = row.peak()
        found[name] = {
            "gradients": gradients,
            "step": round(step, 3),
            "optimizer": round(step - gradients, 3),
            "spread": [round(min(ratios[name]), 3), round(max(ratios[name]), 3)],
            "peak_bytes": peak,
            "peak_relative": round(peak / floor, 3),
            "state_bytes": row.optimizer.memory()["state_bytes"],
        }
    return {
        "model": {"parameters": sum(p.numel() for p in plain.params), "batch": len(batch[1])},
        "forward_backward": {"seconds": statistics.median(base), "peak_bytes": floor},
        "rounds": rounds,
        "rows": found,
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Print the table."""
    seconds, size = report["forward_backward"]["seconds"], report["model"]["parameters"]
    title = f"ViT, {size / 1e6:.2f} M parameters: one forward-backward pass {1e3 * seconds:.0f} ms = 1"
    table = Table(title=title)
    for column in ("method", "gradients", "step", "optimizer alone", "peak MB", "peak / 1"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, row in sorted(report["rows"].items(), key=lambda item: item[1]["step"]):
        cells = (f"{row['step']:.2f}", f"{row['optimizer']:.2f}", f"{row['peak_bytes'] / 1e6:.1f}")
        table.add_row(name, str(row["gradients"]), *cells, f"{row['peak_relative']:.2f}")
    console.print(table)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "step_cost.jsonl")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message=".*rank=.*")
    report = measure(arguments.device, arguments.rounds, quick=arguments.quick)
    journal = Journal(arguments.output)
    journal.append("setting", device=arguments.device, **{key: report[key] for key in SETTING})
    for name, row in report["rows"].items():
        journal.append("run", row=name, **row)
    show(report, Console())


if __name__ == "__main__":
    main()
