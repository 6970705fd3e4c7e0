"""What does a momentum lose at low rank, and do ranks by layer or a kept subspace give it back?

    M = b C(M) + (1 - b) g,      C: the leading part of M

Equal bytes of factors in all rows of one rank: `svd` (the best C there is), `fresh` (a Gaussian sketch, with p power
iterations), `kept` (the sketch begins with the right factor of the step before), and `by layer` (svd, ranks that share
the bytes out by the spectra of a full momentum: each rank goes where it holds most energy per byte).

An MLP on scikit-learn's digits. Loss of the training images at the end, mean and spread of the seeds; `error` is the
part of M that C drops, `||M - C(M)|| / ||M||`, over all matrices and steps.

    python -m benchmarks.low_rank_carry
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lightning_gluon
from benchmarks import small_tasks
from benchmarks.journal import Journal

RESULTS = Path(__file__).parent / "results" / "low_rank_carry.jsonl"
WIDTHS = (64, 160, 160, 160, 10)
STEPS, BATCH, LR, B = 300, 64, 0.02, 0.9
PROBES = (10, 30, 100)  # steps whose spectra the ranks by layer come from
OVERSAMPLING = 5


@dataclass
class Carry:
    """The kept part of the momenta of some matrices.

    Args:
        ranks: Rank by parameter; a full momentum for those that have none.
        power: Power iterations; `None` takes singular values.
        keeps: Whether a sketch begins with the right factor of the step before.
        right: Those factors.
        errors: Shares of momenta that were dropped.
    """

    ranks: dict[str, int]
    power: int | None = None
    keeps: bool = False
    right: dict[str, Tensor] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)

    def __call__(self, name: str, momentum: Tensor) -> Tensor:
        """Return what is kept of a momentum."""
        rank = self.ranks.get(name)
        if rank is None or rank >= min(momentum.shape):
            return momentum
        basis = self._basis(name, momentum, rank)
        left, values, right = torch.linalg.svd(basis.mT @ momentum, full_matrices=False)
        self.right[name] = right[:rank].mT
        kept = basis @ (left[:, :rank] * values[:rank]) @ right[:rank]
        self.errors.append(float((momentum - kept).norm() / momentum.norm()))
        return kept

    def _basis(self, name: str, momentum: Tensor, rank: int) -> Tensor:
        if self.power is None:
            return torch.linalg.svd(momentum, full_matrices=False)[0]
        sketch = torch.randn(momentum.shape[1], rank + OVERSAMPLING)
        if self.keeps and name in self.right:
            sketch[:, :rank] = self.right[name]
        basis = torch.linalg.qr(momentum @ sketch).Q
        for _ in range(self.power):
            basis = torch.linalg.qr(momentum @ (momentum.mT @ basis)).Q
        return basis


def network(seed: int) -> nn.Module:
    """Return the MLP."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(WIDTHS):
        layers += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def train(task: small_tasks.Task, seed: int, carry: Carry, look: Callable[[int, dict[str, Tensor]], None]) -> float:
    """Train once, and return the loss of the training images."""
    net, generator = network(seed), torch.Generator().manual_seed(seed + 1)
    optimizer = lightning_gluon.Gluon(net, lr=LR, momentum=0.0)  # it steps along what is put into `.grad`
    momenta: dict[str, Tensor] = {}
    for step, (images, labels) in enumerate(task.batches(generator, BATCH, STEPS)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            momenta[name] = torch.lerp(parameter.grad, momenta.get(name, parameter.grad), B)
            parameter.grad = momenta[name]
            if parameter.ndim == 2:
                momenta[name] = carry(name, momenta[name])
        look(step, momenta)
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (STEPS - step) / (0.4 * STEPS))
        optimizer.step()
    assert task.train_labels is not None
    with torch.no_grad():
        return float(nn.functional.cross_entropy(net(task.train), task.train_labels))


def spectra(task: small_tasks.Task) -> dict[str, Tensor]:
    """Return the shares of energy of the singular values of full momenta, averaged over some steps."""
    found: dict[str, list[Tensor]] = {}

    def look(step: int, momenta: dict[str, Tensor]) -> None:
        for name, momentum in momenta.items():
            if step in PROBES and momentum.ndim == 2:
                energy = torch.linalg.svdvals(momentum).square()
                found.setdefault(name, []).append(energy / energy.sum())

    train(task, 0, Carry({}), look)
    return {name: torch.stack(shares).mean(0) for name, shares in found.items()}


def shared_out(energy: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], rank: int) -> dict[str, int]:
    """Return ranks of the bytes of a uniform rank, each one given where it holds most energy per byte."""
    cost = {name: sum(shapes[name]) for name in energy}
    left = sum(cost[name] * min(rank, *shapes[name]) for name in energy)
    ranks = dict.fromkeys(energy, 1)
    left -= sum(cost.values())
    while True:
        open_to = [name for name in energy if ranks[name] < min(shapes[name]) and cost[name] <= left]
        if not open_to:
            return ranks
        best = max(open_to, key=lambda name: float(energy[name][ranks[name]]) / cost[name])
        ranks[best] += 1
        left -= cost[best]


def carries(rank: int, task: small_tasks.Task) -> dict[str, Carry]:
    """Return the rows of one rank."""
    shapes = {name: tuple(p.shape) for name, p in network(0).named_parameters() if p.ndim == 2}
    uniform = {name: min(rank, *shape) for name, shape in shapes.items()}
    return {
        "svd": Carry(uniform),
        "fresh, p=0": Carry(uniform, 0),
        "fresh, p=1": Carry(uniform, 1),
        "kept, p=0": Carry(uniform, 0, keeps=True),
        "kept, p=1": Carry(uniform, 1, keeps=True),
        "by layer": Carry(shared_out(spectra(task), shapes, rank)),
    }


def main() -> None:
    """Train all rows, append the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    task, journal = small_tasks.digits(), Journal(given.output)
    rows: dict[tuple[int, str], Carry] = {(0, "full"): Carry({})}
    for rank in given.ranks:
        rows.update({(rank, name): carry for name, carry in carries(rank, task).items()})
    for (rank, name), carry in rows.items():
        losses = []
        for seed in given.seeds:
            carry.right.clear()
            losses.append(train(task, seed, carry, lambda step, momenta: None))
        show(journal.append("run", rank=rank, row=name, losses=losses, **dropped(carry)))


def dropped(carry: Carry) -> dict[str, Any]:
    """Return the mean share that was dropped, and the ranks."""
    error = statistics.mean(carry.errors) if carry.errors else 0.0
    return {"error": error, "ranks": list(carry.ranks.values())}


def show(row: dict[str, Any]) -> None:
    """Print a row."""
    losses = row["losses"]
    spread = statistics.stdev(losses) if len(losses) > 1 else math.nan
    mean = statistics.mean(losses)
    print(f"{row['rank']:3} {row['row']:12} {mean:.4f} ± {spread:.4f}  error {row['error']:.3f}  {row['ranks']}")


if __name__ == "__main__":
    main()
