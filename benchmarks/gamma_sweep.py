"""Which share gamma of the correction trains a small CNN best, at equal steps and at equal gradients?

    M <- b (M + gamma (c_new - c_old)) + (1 - b) c_new          row `gluon-mvr1`; 0 is the ema, 1 is STORM

"Understanding MARS" (ICML 2026) publishes the final training loss of a small CNN on CIFAR-10 after the same number of
steps: .1925 without the correction, .0854 at its best gamma of .25, .1415 at 1. Its model, rate, batch and clipping are
not known to us, so only the shape can be compared: an optimum inside, and 1 worse than .25.

Ours: three convolutions and a linear layer, 2,000 images, batches of 32 in two halves, a learning rate that is constant
and then linear to 0 over the last 40 %. Every gamma has the same rates and seeds. A step with a second gradient costs
two, so gamma 0 is run with twice the steps as well: that is the comparison at equal gradients. `auto` is the estimate
from the halves.

    python -m benchmarks.gamma_sweep --path FOLDER_WITH_PARQUET

A line is written per run, and a second call does only what is missing.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from benchmarks import small_tasks
from benchmarks.journal import Journal

HERE = Path(__file__).parent
PUBLISHED = {0.0: 0.1925, 0.025: 0.1392, 0.1: 0.1023, 0.25: 0.0854, 0.5: 0.0911, 0.75: 0.1168, 1.0: 0.1415}
GAMMAS: tuple[float | str, ...] = (*PUBLISHED, "auto")
IMAGES = 2_000
BATCH = 32


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        gamma: Share of the correction.
        steps: Optimizer steps.
        lr: Hidden radius.
        seed: Seed of weights, order and augmentation.
    """

    gamma: float | str
    steps: int
    lr: float
    seed: int


class Gammas(Callback):
    """Keep the estimates of every quarter of a training, by group."""

    def __init__(self, steps: int) -> None:
        self.every = max(1, steps // 4)
        self.found: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Keep what is there after a quarter."""
        done = trainer.global_step
        if done % self.every == 0 and done // self.every == len(self.found) + 1:
            optimizer: Any = trainer.optimizers[0]
            gammas: dict[str, float] = optimizer.gammas
            self.found.append({group: round(gamma, 3) for group, gamma in gammas.items()})


def network() -> nn.Module:
    """Return the CNN."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 10))


def task(folder: Path) -> small_tasks.Task:
    """Return the images, which are those of the evaluation too: what is reported is the training loss."""
    whole = small_tasks.cifar10(folder)
    images, labels = whole.train[:IMAGES], whole.train_labels
    assert labels is not None
    labels = labels[:IMAGES]
    return replace(whole, train=images, train_labels=labels, test=images, test_labels=labels, model=network)


class Sweep:
    """The runs, kept in a file and filled in where they are missing.

    Args:
        given: The command line.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.journal = Journal(given.output)
        self.journal.header(images=IMAGES, batch=BATCH, momentum=given.momentum)
        self.end = time.monotonic() + 60 * given.minutes

    def runs(self) -> Iterator[Run]:
        """Yield all runs, whole seeds first, so that what is done can be compared."""
        steps = self.given.steps
        for seed in self.given.seeds:
            for lr in self.given.rates:
                for gamma in GAMMAS:
                    yield Run(gamma, steps, lr, seed)
                yield Run(0.0, 2 * steps, lr, seed)

    def find(self, run: Run) -> dict[str, Any] | None:
        """Return the result of a run; `None` if it is not in the file."""
        return self.journal.find("run", **asdict(run))

    def work(self) -> None:
        """Run what is missing."""
        missing = [run for run in self.runs() if self.find(run) is None]
        images = task(self.given.path) if missing else None
        for run in missing:
            if time.monotonic() > self.end:
                print(f"Stopped after {self.given.minutes:g} minutes; the same command goes on.")
                return
            assert images is not None
            gammas = Gammas(run.steps)
            options = {"method": "gluon-mvr1", "gamma": run.gamma, "lr": run.lr, "momentum": self.given.momentum}
            done = small_tasks.train(
                images, options, seed=run.seed, steps=run.steps, batch=BATCH, parts=2, callbacks=[gammas]
            )
            cost = run.steps if run.gamma == 0 else 2 * run.steps
            self.journal.append("run", **asdict(run), evaluations=cost, gammas=gammas.found, **done)
            print(f"{run}  {done['loss']:.4f}  {done['seconds']} s", flush=True)

    def table(self) -> str:
        """Return the training losses as Markdown: for every rate the mean over the seeds, and that of the best rate."""
        steps, rates = self.given.steps, self.given.rates
        titles = [f"lr {lr:g}" for lr in rates]
        cells = ["gamma", "steps", "gradients", *titles, "best", "published"]
        lines = [f"| {' | '.join(cells)} |", "|" + "---|" * len(cells)]
        for gamma in GAMMAS:
            lines.append(self._line(gamma, steps))
        lines.append(self._line(0.0, 2 * steps))
        return "\n".join(lines) + "\n"

    def _line(self, gamma: float | str, steps: int) -> str:
        losses = [self._mean(gamma, steps, lr) for lr in self.given.rates]
        known = [loss for loss in losses if loss is not None]
        shown = ["" if loss is None else f"{loss:.4f}" for loss in losses]
        best = f"{min(known):.4f}" if known else ""
        published = ""
        if steps == self.given.steps and isinstance(gamma, float):
            published = f"{PUBLISHED[gamma]:.4f}"
        cost = steps if gamma == 0 else 2 * steps
        return f"| {' | '.join([str(gamma), str(steps), str(cost), *shown, best, published])} |"

    def _mean(self, gamma: float | str, steps: int, lr: float) -> float | None:
        """Return the mean loss over the seeds that are there, infinite if one diverged."""
        found = [self.find(Run(gamma, steps, lr, seed)) for seed in self.given.seeds]
        losses = [run["loss"] for run in found if run is not None]
        if not losses:
            return None
        return statistics.mean(loss if math.isfinite(loss) else math.inf for loss in losses)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after this long")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "gamma_sweep.jsonl")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    sweep = Sweep(given)
    sweep.work()
    page = sweep.table()
    given.output.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
