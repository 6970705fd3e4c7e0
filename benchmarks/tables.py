"""Which norm suits a table and a head: tied or apart, with a small vocabulary or a large one?

    python -m benchmarks.tables [--path TEXT_FILE] [--minutes 60]
    python -m benchmarks.tables --table

Model, text, schedule and the count of gradients are those of the task `text` of `benchmarks.compare`. Only the norm of
the tables changes; their rows keep the length that `sign` gives them, and so all norms share one scale of rates. Every
case has the same rates on the first seed, and its best one on the others. Beside the losses: the RMS of the rows of the
tables, the longest row and the spectral norm, along the training. A second call does only what is missing.

What counts is the loss of the last training batches, a tenth of all. The runs see less than one epoch, so these are
fresh; the validation split holds other files, and what is learned of the ones says little of the others.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from benchmarks import compare
from benchmarks.journal import Journal
from lightning_gluon import METHODS, register_method

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "tables.jsonl"
NORMS = ("sign", "row", "centred_row", "clipped_row")
VOCABULARIES = (512, 4096)
LENGTH = {"row_scaling": "sign"}


@dataclass(frozen=True)
class Case:
    """One model and one norm of its tables.

    Args:
        norm: Norm of the head, and of a table that is tied to it.
        tied: Whether the head is the table.
        vocabulary: Rows of the table.
    """

    norm: str
    tied: bool
    vocabulary: int

    @property
    def task(self) -> str:
        """Name of its task."""
        return f"text {self.vocabulary} {'tied' if self.tied else 'apart'}"

    @property
    def table(self) -> str:
        """Norm of the table: rows where centring would move those of tokens that a batch does not hold."""
        apart = self.norm == "centred_row" and not self.tied
        return "row" if apart else self.norm

    def method(self) -> str:
        """Register Gluon with these norms, and return its name."""
        gluon = METHODS["gluon"]
        name = f"gluon-{self.table}-{self.norm}-tables".replace("_", "-")
        norms = {"embedding": self.table, "head": self.norm}
        rules = {role: replace(gluon.rules[role], norm=norm, options=LENGTH) for role, norm in norms.items()}
        if name not in METHODS:
            register_method(name, replace(gluon, summary="other tables", rules={**gluon.rules, **rules}))
        return name


CASES = tuple(Case(*values) for values in product(NORMS, (True, False), VOCABULARIES))


class Tables(Callback):
    """Measure the tables of a language model along its training.

    Args:
        points: How often.
    """

    def __init__(self, points: int = compare.POINTS) -> None:
        self.points, self.found = points, []  # type: ignore[var-annotated]

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
        """Measure them now and then."""
        step = trainer.global_step
        if step % max(1, trainer.max_steps // self.points) == 0:
            network: Any = module.net
            tables = {"table": network.get_input_embeddings(), "head": network.get_output_embeddings()}
            self.found.append({"step": step, **{name: norms_of(layer.weight) for name, layer in tables.items()}})


def norms_of(table: Tensor) -> dict[str, float]:
    """Return the RMS of the lengths of the rows, the longest row and the spectral norm."""
    lengths = table.detach().norm(dim=1)
    found = {"rows": lengths.square().mean().sqrt(), "longest": lengths.max(), "spectral": _spectral(table.detach())}
    return {name: round(float(value), 4) for name, value in found.items()}


def _spectral(table: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(table.double().mT @ table.double())[-1].sqrt()


class Study:
    """The runs, kept in a file and filled in where they are missing.

    Args:
        given: The command line.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.journal = Journal(given.output)
        self.end = time.monotonic() + 60 * given.minutes

    def run(self, case: Case, lr: float, seed: int) -> float:
        """Return the loss of a run, from the file where it is there."""
        return compare.training_loss(self.find(case, lr, seed) or self._train(case, lr, seed))

    def find(self, case: Case, lr: float, seed: int) -> dict[str, Any] | None:
        """Return a run of the file; `None` if it is not there."""
        return self.journal.find("run", **asdict(case), lr=lr, seed=seed, evaluations=self.given.evaluations)

    def _train(self, case: Case, lr: float, seed: int) -> dict[str, Any]:
        if time.monotonic() > self.end:
            raise TimeoutError
        tables = Tables()
        tokens = compare.Tokens(case.vocabulary, case.tied)
        compare.TASKS[case.task] = replace(compare.TASKS["text"], tokens=tokens)
        arguments = {"method": case.method(), "lr": lr}
        options: dict[str, Any] = {"test": False, "points": 1, "callbacks": [tables]}
        done = compare.fit(case.task, self.given.path, arguments, seed, self.given.evaluations, **options)
        done["evaluations"] = self.given.evaluations
        run = self.journal.append("run", **asdict(case), lr=lr, **done, tables=tables.found)
        print(f"{case} lr {lr:g} seed {seed}  {compare.training_loss(run):.4f}  {run['seconds']} s", flush=True)
        return run

    def work(self) -> None:
        """Run what is missing."""
        first, *others = self.given.seeds
        best = {}
        for case in CASES:
            losses = {lr: self.run(case, lr, first) for lr in self.given.rates}
            best[case] = sorted(losses, key=losses.__getitem__)[0]
        for seed in others:
            for case, lr in best.items():
                self.run(case, lr, seed)

    def table(self) -> str:
        """Return losses and norms as Markdown."""
        columns = ["vocabulary", "tables", "norm", "loss", "validation loss", "seeds", "lr"]
        columns += ["rows of the table", "rows of the head"]
        count = self.given.evaluations
        head = f"Loss of the last tenth of {count} fresh batches; RMS of the rows, at the start and the end."
        lines = [head, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        return "\n".join([*lines, *self._lines()]) + "\n"

    def _lines(self) -> Iterator[str]:
        for case in sorted(CASES, key=lambda case: (case.vocabulary, case.tied)):
            runs = {lr: self.find(case, lr, self.given.seeds[0]) for lr in self.given.rates}
            losses = {lr: compare.training_loss(run) for lr, run in runs.items() if run is not None}
            if not losses:
                continue
            lr = sorted(losses, key=losses.__getitem__)[0]
            found = [run for run in (self.find(case, lr, seed) for seed in self.given.seeds) if run is not None]
            last = found[0]["tables"]
            spans = [f"{last[0][part]['rows']:.2f} to {last[-1][part]['rows']:.2f}" for part in ("table", "head")]
            values = [compare.training_loss(run) for run in found]
            loss = f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            held = f"{statistics.mean(run['metrics']['val/loss'] for run in found):.3f}"
            tables = "tied" if case.tied else "apart"
            cells = (case.vocabulary, tables, case.norm, loss, held, len(found), f"{lr:g}", *spans)
            yield f"| {' | '.join(map(str, cells))} |"


def main(argv: list[str] | None = None) -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", help="text file or folder of text; default: Python's own sources")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.02])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="rates are chosen on the first")
    parser.add_argument("--evaluations", type=int, default=400, help="gradient evaluations per run")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after this long")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what is on file")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    study = Study(given)
    try:
        if not given.table:
            study.work()
    except TimeoutError:
        print(f"Stopped after {given.minutes:g} minutes; the same command goes on.")
    print(study.table())


if __name__ == "__main__":
    main()
