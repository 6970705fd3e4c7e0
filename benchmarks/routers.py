"""Norm and radius of the router of a mixture of experts, on a task of clusters that each have a map of their own.

    python -m benchmarks.routers [--minutes 15]
    python -m benchmarks.routers --table

Two mixtures of eight experts, of which each input takes two, learn which output of the input's cluster is largest. All
but the router steps as in `gluon`. Loss on fresh inputs after a linear schedule, hidden radius 0.02.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, rms_norm

from benchmarks.journal import Journal
from lightning_gluon import METHODS, Gluon, Rule, register_method

RESULTS = Path(__file__).parent / "results" / "routers.jsonl"
SEEDS, STEPS, RATE, WARMUP = (0, 1, 2), 200, 0.02, 20
WIDTH, EXPERTS, CLASSES, CLUSTERS, NOISE, BATCH = 32, 8, 16, 24, 0.7, 128
LENGTH = {"row_scaling": "sign"}
RADII = {
    "spectral": (1.0, 3.0, 10.0, 30.0),
    "sign": (3.0, 25.0),
    "row": (3.0, 25.0),
    "centred_row": (1.0, 3.0, 10.0, 25.0, 80.0),
}


class Mixture(nn.Module):
    """A residual mixture of experts, each input by the two that its router prefers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(map(_expert, range(EXPERTS)))

    def forward(self, x: Tensor) -> Tensor:
        """Add the outputs of the chosen experts."""
        inside = rms_norm(x, (WIDTH,))
        shares, chosen = self.gate(inside).softmax(-1).topk(2)
        shares = shares / shares.sum(-1, keepdim=True)
        outputs = torch.stack([expert(inside) for expert in self.experts], 1)
        taken = outputs.gather(1, chosen[..., None].expand(-1, -1, WIDTH))
        return x + (shares[..., None] * taken).sum(1)


def _expert(_: int) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))


class Clusters:
    """Inputs around centres, and for every centre a map whose largest output is the class."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.centres = torch.randn(CLUSTERS, WIDTH, generator=generator)
        self.maps = torch.randn(CLUSTERS, WIDTH, CLASSES, generator=generator)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return inputs and classes."""
        cluster = torch.randint(CLUSTERS, (count,), generator=generator)
        x = self.centres[cluster] + NOISE * torch.randn(count, WIDTH, generator=generator)
        return x, torch.einsum("bi,bio->bo", x, self.maps[cluster]).argmax(-1)


def train(norm: str, radius: float, seed: int) -> float:
    """Return the loss on fresh inputs after a training.

    Args:
        norm: Norm of the router.
        radius: Its radius relative to the hidden one.
        seed: Of weights and inputs.
    """
    name = f"router-{norm}-{radius:g}"
    gluon = METHODS["gluon"]
    router = Rule(norm, "ema", radius, None, {} if norm in ("spectral", "sign") else LENGTH)
    if name not in METHODS:
        register_method(name, replace(gluon, rules={**gluon.rules, "router": router}))
    torch.manual_seed(seed)
    layers = nn.Linear(WIDTH, WIDTH), Mixture(), Mixture(), nn.Linear(WIDTH, CLASSES)
    net, clusters = nn.Sequential(*layers), Clusters()
    optimizer = Gluon(net, lr=RATE, method=name)
    generator = torch.Generator().manual_seed(100 + seed)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * (1 - step / STEPS)
        x, classes = clusters.draw(BATCH, generator)
        optimizer.zero_grad()
        cross_entropy(net(x), classes).backward()
        optimizer.step()
    x, classes = clusters.draw(32 * BATCH, torch.Generator().manual_seed(999))
    with torch.no_grad():
        return cross_entropy(net(x), classes).item()


def table(journal: Journal) -> str:
    """Return the losses as Markdown: mean over the seeds, and their range."""
    lines = ["| norm | radius | loss | least | largest |", "|---|---|---|---|---|"]
    for norm, radii in RADII.items():
        for radius in radii:
            losses = [run["loss"] for run in journal.of("run") if (run["norm"], run["radius"]) == (norm, radius)]
            if losses:
                mean = sum(losses) / len(losses)
                lines.append(f"| {norm} | {radius:g} | {mean:.3f} | {min(losses):.3f} | {max(losses):.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="start no run after this long")
    parser.add_argument("--table", action="store_true", help="only print the results")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    journal, end = Journal(given.output), time.monotonic() + 60 * given.minutes
    torch.set_num_threads(1)
    done = {(run["norm"], run["radius"], run["seed"]) for run in journal.of("run")}
    wanted = [(norm, radius, seed) for norm, radii in RADII.items() for radius in radii for seed in SEEDS]
    for key in wanted:
        if given.table or key in done or time.monotonic() > end:
            continue
        norm, radius, seed = key
        journal.append("run", norm=norm, radius=radius, seed=seed, loss=round(train(*key), 4))
    print(table(journal))


if __name__ == "__main__":
    main()
