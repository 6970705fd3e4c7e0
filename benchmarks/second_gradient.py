"""When does a second gradient pay? Readings along trainings of a small MLP, and what it is worth there.

For every learning rate, on seeds of weights and order:

    readings    a training along the ema's own path, with a second gradient that only measures (gamma 1e-9)
    ema, 2N     `gluon` with as many gradients: twice the steps
    mvr1        `gluon-mvr1` with gamma .25 and 1, N steps

The readings are those of hidden matrices (`lightning_gluon.two_point.payoff`), averaged from a quarter of the
training to the beginning of the decay.

    python -m benchmarks.second_gradient

A line is written per run, and a second call does only what is missing.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks import small_tasks
from benchmarks.journal import Journal
from lightning_gluon.callbacks import VarianceReduction

RESULTS = Path(__file__).parent / "results" / "second_gradient.jsonl"
STEPS = 200
RATES = (0.002, 0.01, 0.04, 0.16)
SEEDS = (0, 1)
MEASURE = 1e-9  # gamma: too small to be seen in the path
KEYS = ("sd_to_sigma", "turning")


@dataclass(frozen=True)
class Spending:
    """One way to spend gradients.

    Args:
        title: Its column.
        options: Method and its options.
        doubles: Whether it takes twice the steps.
    """

    title: str
    options: dict[str, Any]
    doubles: bool = False


ROWS = {
    "ema": Spending("ema, N steps", {"method": "gluon-mvr1", "gamma": MEASURE}),
    "ema 2N": Spending("ema, 2N steps", {"method": "gluon"}, doubles=True),
    "mvr1 .25": Spending("mvr1 .25, N steps", {"method": "gluon-mvr1", "gamma": 0.25}),
    "mvr1 1": Spending("mvr1 1, N steps", {"method": "gluon-mvr1", "gamma": 1.0}),
}


@dataclass(frozen=True)
class Run:
    """One training."""

    task: str
    row: str
    lr: float
    seed: int


class Readings(Callback):
    """Keep the readings of hidden matrices between a quarter of the training and the decay."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {key: [] for key in KEYS}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Keep those of this step."""
        if not STEPS // 4 <= trainer.global_step <= 0.6 * STEPS:
            return
        for key in KEYS:
            value = trainer.callback_metrics.get(f"gluon/{key}/hidden")
            if value is not None:
                self.found[key].append(float(value))

    def means(self) -> dict[str, float]:
        """Return their means."""
        return {key: statistics.mean(values) for key, values in self.found.items() if values}


def train(task: small_tasks.Task, run: Run) -> dict[str, Any]:
    """Train once."""
    row, readings = ROWS[run.row], Readings()
    measures = row.options.get("gamma") == MEASURE
    callbacks: list[Callback] = [VarianceReduction(readings=measures), readings]
    steps = 2 * STEPS if row.doubles else STEPS
    options = {**row.options, "lr": run.lr}
    done = small_tasks.train(task, options, seed=run.seed, steps=steps, batch=64, parts=2, callbacks=callbacks)
    return {**asdict(run), "steps": steps, **readings.means(), **done}


def work(given: argparse.Namespace, journal: Journal) -> None:
    """Run what is missing."""
    known = [{key: run[key] for key in asdict(Run("", "", 0, 0))} for run in journal.of("run")]
    for task in small_tasks.chosen(given.tasks, given.cifar10, given.text):
        for seed in SEEDS:
            for lr in RATES:
                for row in ROWS:
                    run = Run(task.name, row, lr, seed)
                    if asdict(run) not in known:
                        done = journal.append("run", **train(task, run))
                        print(run, f"{done['loss']:.4f}", f"{done['seconds']} s", flush=True)


def table(runs: list[dict[str, Any]]) -> str:
    """Return the means over the seeds that have all rows, as Markdown."""
    titles = ["task", "lr", *KEYS, *(row.title for row in ROWS.values())]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for task in dict.fromkeys(run["task"] for run in runs):
        for lr in RATES:
            own = whole([run for run in runs if run["task"] == task and run["lr"] == lr])
            read = [_mean([run[key] for run in own if key in run]) for key in KEYS]
            losses = [_mean([run["loss"] for run in own if run["row"] == row]) for row in ROWS]
            cells = [task, f"{lr:g}", *(f"{value:.3f}" for value in (*read, *losses))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def whole(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs of those seeds that have all rows."""
    rows: dict[int, set[str]] = {}
    for run in runs:
        rows.setdefault(run["seed"], set()).add(run["row"])
    return [run for run in runs if rows[run["seed"]] == set(ROWS)]


def _mean(values: list[float]) -> float:
    return statistics.mean(values) if values else math.nan


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["digits-mlp"])
    torch.set_num_threads(1)
    small_tasks.continued(parser, RESULTS, work, table)


if __name__ == "__main__":
    main()
