"""Rows x rates x seeds of a task with published numbers, in a file that a second call continues.

    tune      seed 0, every rate of a row, by the validation score; every row has the same number of rates
    report    the best rate on the other seeds, by the test score
    shares    the same with a share of the gradients: does the row reach the score of tuned AdamW with half of them?

A row with AdamW beside its matrices gives that the best rate of the row `adamw`, so that it costs no runs of its own.
The row `auto` is `lr="auto"` with every default, and is never tuned.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import lightning_gluon
from benchmarks.anchors.report import TUNED_ON, loss_of, picked, write
from benchmarks.compare import gradients
from benchmarks.journal import Journal

RESULTS = Path(__file__).parents[1] / "results"
Batch = tuple[Tensor, Tensor]
COSINE = {"schedule": "cosine", "warmup": 0.05}
AUTO: dict[str, Any] = {"schedule": "wsd"}  # the one line of docs/self-tuning.md
BASELINE = "adamw"
SPLITS = ("val", "test")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        method: A row of `lightning_gluon.METHODS`; `None` is the default method.
        rates: Learning rates to tune over; one rate is not tuned.
        options: Further arguments of `configure_optimizers`.
        net: Arguments of the task's net.
        average: Weight on the old average of the weights that are scored; `None` scores the weights themselves.
        patience: Scores without a new best after which a run ends; its result is then that of the best.
        steps: Gradient evaluations, in place of the task's.
        companion: Whether AdamW, where it steps beside matrices, has the best rate of the row `adamw`.
    """

    method: str | None
    rates: tuple[float | str, ...]
    options: Mapping[str, Any] = field(default_factory=lambda: COSINE)
    net: Mapping[str, Any] = field(default_factory=dict)
    average: float | None = None
    patience: int | None = None
    steps: int | None = None
    companion: bool = True


class Task(ABC):
    """Data, model and published numbers.

    Args:
        path: Where the data lies.
    """

    name: str
    summary: str
    unit: str
    evaluations: int
    published: ClassVar[Mapping[str, str]]
    rows: ClassVar[Mapping[str, Row]]
    splits: tuple[str, ...] = SPLITS
    early_stop = False  # whether all rows are scored at their best validation point
    points = 20
    epoch = 1  # steps between two scores of a row with patience
    clip: float | None = 1.0
    seeds = (1, 2, 3)
    shares: ClassVar[Mapping[float, tuple[str, ...]]] = {}

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def net(self, **options: Any) -> nn.Module:
        """Return a new model."""

    @abstractmethod
    def batches(self, seed: int, steps: int) -> Iterator[Batch]:
        """Yield so many training batches."""

    @abstractmethod
    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        """Return the training loss of a batch."""

    @abstractmethod
    def score(self, net: nn.Module, split: str) -> float:
        """Return what is reported of a split; lower is better."""


class Module(LightningModule):
    """A task's model with an optimizer of this library."""

    def __init__(self, task: Task, row: Row, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.task, self.arguments = task, arguments
        self.net = task.net(**row.net)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self.task.loss(self.net, batch)

    def configure_optimizers(self) -> Any:
        """Build the optimizer."""
        return lightning_gluon.configure_optimizers(self, **self.arguments)


class Loader:
    """A data loader of a fixed number of batches."""

    def __init__(self, task: Task, seed: int, steps: int) -> None:
        self.task, self.seed, self.steps = task, seed, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return self.task.batches(self.seed, self.steps)


class Curve(Callback):
    """Score the weights, or their average, along a training, and end it where it no longer gains."""

    def __init__(self, task: Task, row: Row, every: int) -> None:
        self.task, self.row, self.every = task, row, every
        self.points: list[dict[str, float]] = []
        self.averaged: AveragedModel | None = None
        self.begin = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock, and the average."""
        self.begin = time.process_time()
        if self.row.average is not None:
            self.averaged = AveragedModel(module.net, multi_avg_fn=get_ema_multi_avg_fn(self.row.average))

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Score every so many steps."""
        if self.averaged is not None:
            self.averaged.update_parameters(module.net)
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self.score(trainer, module)

    def score(self, trainer: Trainer, module: LightningModule) -> None:
        """Keep the scores at this step, without the time they take."""
        stopped = time.process_time()
        net = module.net if self.averaged is None else self.averaged.module
        net.eval()
        with torch.no_grad():
            scores = {split: round(self.task.score(net, split), 5) for split in self.task.splits}
        net.train()
        optimizer: Any = trainer.optimizers[0]
        spent = round(stopped - self.begin, 2)
        self.points.append({"evaluations": optimizer.gradient_evaluations, "seconds": spent, **scores})
        self.begin += time.process_time() - stopped
        if self.row.patience is not None and len(self.points) - 1 - self.best > self.row.patience:
            trainer.should_stop = True

    @property
    def best(self) -> int:
        """Return which point has the lowest validation score."""
        values = [point["val"] for point in self.points]
        return values.index(min(values))


def fit(task: Task, row: Row, arguments: dict[str, Any], seed: int, evaluations: int) -> dict[str, Any]:
    """Train once; a run that diverges has infinite scores.

    Args:
        task: What is trained.
        row: The row.
        arguments: Arguments of `configure_optimizers`.
        seed: Seed of weights and order.
        evaluations: Gradient evaluations.

    Returns:
        Scores, the curve, and what the run cost.
    """
    seed_everything(seed, verbose=False)
    steps = evaluations // gradients({} if row.method is None else {"method": row.method})
    module = Module(task, row, {**arguments, "total_steps": steps})
    every = max(1, steps // task.points) if row.patience is None else task.epoch
    curve = Curve(task, row, every)
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        gradient_clip_val=task.clip,
        callbacks=[curve],
        **dict.fromkeys(silent, False),
    )
    start, processor, failure = time.perf_counter(), time.process_time(), None
    try:
        trainer.fit(module, Loader(task, seed, steps))
    except FloatingPointError as error:
        failure = str(error)[:120]
    optimizer: Any = trainer.optimizers[0]
    place = -1 if row.patience is None else curve.best
    diverged = failure is not None or not curve.points
    point = dict.fromkeys(SPLITS, math.inf) if diverged else curve.points[place]
    return {
        "val": point["val"],
        "test": point.get("test", point["val"]),
        "steps": trainer.global_step,
        "evaluations": optimizer.gradient_evaluations,
        "state_bytes": optimizer.memory()["state_bytes"],
        "parameters": sum(p.numel() for p in module.net.parameters()),
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "curve": curve.points,
        "failure": failure,
    }


@dataclass(frozen=True)
class Run:
    """What identifies a run."""

    row: str
    lr: float | str
    seed: int
    share: float = 1.0


class Study:
    """The runs of one task, kept in a file and filled in where they are missing.

    Args:
        task: The task.
        given: The command line.
    """

    def __init__(self, task: Task, given: argparse.Namespace) -> None:
        self.task, self.given = task, given
        self.budget = given.evaluations or task.evaluations
        self.journal = Journal(given.output)
        self.journal.header(task=task.name, summary=task.summary, evaluations=self.budget, unit=task.unit)
        if task.early_stop and not self.journal.of("early_stop"):
            self.journal.append("early_stop", points=task.points)
        self.rows = {name: task.rows[name] for name in given.rows or task.rows}
        self.end = time.monotonic() + 60 * given.minutes

    def find(self, run: Run) -> dict[str, Any] | None:
        """Return the result of a run; `None` if it is not in the file."""
        return self.journal.find("run", **asdict(run))

    def result(self, run: Run) -> dict[str, Any]:
        """Return the result of a run, from the file where it is there."""
        found = self.find(run)
        if found is not None:
            return found
        if time.monotonic() > self.end:
            raise TimeoutError
        row = self.task.rows[run.row]
        arguments = self.arguments(row, run.lr)
        budget = round(run.share * (row.steps or self.budget))
        done = fit(self.task, row, arguments, run.seed, budget)
        told = {key: value for key, value in arguments.items() if key != "lr"}
        found = self.journal.append("run", **vars(run), arguments=told, **done)
        score = f"val {done['val']:.4f} test {done['test']:.4f}"
        print(f"{run}  {score}  {done['seconds']} s", flush=True)
        return found

    def arguments(self, row: Row, lr: float | str) -> dict[str, Any]:
        """Return the arguments of `configure_optimizers`."""
        given = {**row.options, "lr": lr}
        if row.method is None:
            return given
        given["method"] = row.method
        rules = lightning_gluon.METHODS[row.method].rules
        beside = [role for role, rule in rules.items() if rule.estimator == "adamw"]
        if row.companion and row.method != "adamw" and beside and isinstance(lr, float):
            rate = self.best(BASELINE)
            assert isinstance(rate, float)
            given["radius"] = dict.fromkeys(beside, rate / lr)
        return given

    def best(self, name: str) -> float | str:
        """Return the rate of a row with the lowest validation score on seed 0."""
        rates = self.task.rows[name].rates
        if len(rates) == 1:
            return rates[0]
        tuned = {lr: self.result(Run(name, lr, TUNED_ON)) for lr in rates}
        if self.task.early_stop:
            tuned = {lr: picked(run) for lr, run in tuned.items()}
        return min(rates, key=lambda lr: loss_of(tuned[lr], "val"))

    def work(self) -> None:
        """Run what is missing, stage by stage."""
        rates = {name: self.best(name) for name in self.rows}
        for seed in self.given.seeds:
            for name, lr in rates.items():
                self.result(Run(name, lr, seed))
        for share, names in self.task.shares.items():
            for name in names:
                for seed in self.given.seeds:
                    if name in rates:
                        self.result(Run(name, rates[name], seed, share))


def auto(method: str | None = None) -> Row:
    """Return the row of a user who tunes nothing."""
    return Row(method, ("auto",), AUTO)


def family(rates: Iterable[float], *names: str, **options: Any) -> dict[str, Row]:
    """Return rows that share their rates, by the names of their methods."""
    return {name: Row(name, tuple(rates), {**COSINE, **options}) for name in names}


def main(task: type[Task], doc: str | None, argv: list[str] | None = None) -> None:
    """Run what is missing and write table and pictures."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="where the data lies")
    parser.add_argument("--rows", nargs="*", help=f"default: {' '.join(task.rows)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(task.seeds), help="reported")
    parser.add_argument("--evaluations", type=int, help="gradient evaluations per run")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after this long")
    parser.add_argument("--output", type=Path, default=RESULTS / f"anchor_{task.name}.jsonl")
    given = parser.parse_args(argv)
    unknown = [name for name in given.rows or () if name not in task.rows]
    if unknown:
        raise SystemExit(f"Expected `--rows` out of {', '.join(task.rows)}; got {', '.join(unknown)}.")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    study = Study(task(given.path), given)
    try:
        study.work()
    except TimeoutError:
        print(f"Stopped after {given.minutes:g} minutes; the same command goes on.")
    print(write(study.journal, task.published))
