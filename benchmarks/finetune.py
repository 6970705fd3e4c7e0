"""Which method and radius tune a pretrained model best, in full and by adapters, and what does each forget?

    python -m benchmarks.finetune --task encoder --model FOLDER
    python -m benchmarks.finetune --task chat --model FOLDER --text FILE
    python -m benchmarks.finetune --task gsm8k --model FOLDER --text FILE --gsm8k FOLDER --rates-of chat
    python -m benchmarks.finetune --task vit --images FOLDER

Every row has the same steps and tokens. Its rates are swept on seed 0. `--seeds` repeats the best one of each row, by
the held-out loss. `--rates-of` takes the best rates of another task in place of a sweep. A line is written per run, and
a second call does only what is missing.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import lightning_gluon
from benchmarks.finetune_tasks import PROBLEMS, Problem, take_step
from benchmarks.journal import Journal

OUTPUT = Path(__file__).parent / "results" / "finetune.jsonl"
APART = {"rules": {"*lora_*": "hidden"}}


@dataclass(frozen=True)
class Row:
    """One way to tune.

    Args:
        tune: `full`, `lora` or `out_proj`.
        method: Its row of `METHODS`.
        rates: Learning rates of the sweep.
        options: Options beside the method's own.
    """

    tune: str
    method: str
    rates: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)


RADII = (0.005, 0.015, 0.05)
FULL_RADII = (0.0003, 0.001, 0.003)

ROWS = {
    "lora adamw": Row("lora", "adamw", (5e-4, 1.5e-3, 5e-3)),
    "lora gluon": Row("lora", "gluon", RADII),
    "lora muon": Row("lora", "muon", RADII),
    "lora scion": Row("lora", "scion", RADII),
    "lora gluon-nesterov": Row("lora", "gluon-nesterov", RADII),
    "lora gluon-lowrank": Row("lora", "gluon-lowrank", RADII, {"rank": 4}),
    "lora gluon, factors apart": Row("lora", "gluon", RADII, APART),
    "lora gluon, damping .0001": Row("lora", "gluon", RADII, {"damping": 1e-4}),
    "lora gluon, damping .001": Row("lora", "gluon", RADII, {"damping": 1e-3}),
    "lora gluon, damping .1": Row("lora", "gluon", RADII, {"damping": 0.1}),
    "lora gluon, damping 1": Row("lora", "gluon", RADII, {"damping": 1.0}),
    "full adamw": Row("full", "adamw", (1e-5, 4e-5, 1.6e-4)),
    "full muon": Row("full", "muon", FULL_RADII),
    "full gluon": Row("full", "gluon", FULL_RADII),
    "out_proj adamw": Row("out_proj", "adamw", (2.5e-4, 1e-3, 4e-3)),
    "out_proj gluon": Row("out_proj", "gluon", RADII),
}


class Study:
    """The runs of one task, kept in a file and filled in where they are missing.

    Args:
        given: The command line.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.journal = Journal(given.output)
        self.problem: Problem = PROBLEMS[given.task](given)
        self.end = time.monotonic() + 60 * given.minutes

    def of(self, row: str, task: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the runs of a row on file."""
        for run in self.journal.of("run"):
            if run["task"] == (task or self.given.task) and run["row"] == row:
                yield run

    def run(self, name: str, lr: float, seed: int) -> dict[str, Any]:
        """Return a run, from the file where it is there."""
        known = self.journal.find("run", task=self.given.task, row=name, lr=lr, seed=seed)
        if known is not None:
            return known
        if time.monotonic() > self.end:
            raise TimeoutError
        done = fit(self.problem, ROWS[name], lr, seed)
        run = self.journal.append("run", task=self.given.task, row=name, lr=lr, seed=seed, **done)
        told = "  ".join(f"{key} {value:.4f}" for key, value in run["metrics"].items())
        print(f"{self.given.task} {name} lr {lr:g} seed {seed}  {told}  {run['seconds']} s", flush=True)
        return run

    def before(self) -> None:
        """Measure the model as it comes, once."""
        if self.journal.find("before", task=self.given.task) is None:
            torch.manual_seed(0)
            metrics = self.problem.measure(self.problem.build("full"))
            self.journal.append("before", task=self.given.task, metrics=metrics)
            print(f"{self.given.task} before {metrics}", flush=True)

    def work(self) -> None:
        """Run what is missing: row by row the sweep, then the other seeds."""
        self.before()
        for name in self.given.rows:
            for lr in self.rates(name):
                self.run(name, lr, 0)
        for seed in self.given.seeds:
            for name in self.given.rows:
                self.run(name, best(self.of(name))["lr"], seed)

    def rates(self, name: str) -> tuple[float, ...]:
        """Return the rates of a row on seed 0."""
        if self.given.rates_of is None:
            return tuple(self.given.rates or ROWS[name].rates)
        return (best(self.of(name, self.given.rates_of))["lr"],)


def best(runs: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Return the run of seed 0 with the lowest held-out loss."""
    swept = [run for run in runs if run["seed"] == 0]
    if not swept:
        raise SystemExit("Expected runs of seed 0 on file to take a rate from, but there are none. Sweep first.")
    return sorted(swept, key=loss_of)[0]


def loss_of(run: dict[str, Any]) -> float:
    """Return the held-out loss of a run, infinite if it diverged."""
    loss = run["metrics"]["loss"]
    return loss if math.isfinite(loss) else math.inf


def fit(problem: Problem, row: Row, lr: float, seed: int) -> dict[str, Any]:
    """Tune once; a run that diverges has an infinite loss."""
    start = time.process_time()
    torch.manual_seed(seed)
    module = problem.build(row.tune)
    plan = {"schedule": "cosine", "warmup": 0.1, "total_steps": problem.steps}
    configured = lightning_gluon.configure_optimizers(module, row.method, lr=lr, **plan, **row.options)
    optimizer = configured["optimizer"]
    batches = problem.batches(seed)
    losses: list[float] = []
    try:
        for _ in range(problem.steps):
            module.train()
            batch = next(batches)
            losses.append(take_step(module, configured, lambda batch=batch: problem.loss(module, batch)))
        metrics = problem.measure(module)
    except FloatingPointError:
        metrics = {"loss": math.inf}
    return {
        "steps": problem.steps,
        "metrics": {key: round(value, 5) for key, value in metrics.items()},
        "train_loss": [round(loss, 4) for loss in losses],
        "trained": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "state_bytes": optimizer.memory()["state_bytes"],
        "seconds": round(time.process_time() - start, 1),
    }


def table(journal: Journal) -> str:
    """Return every task's rows as Markdown, best first: the best rate of each, over its seeds."""
    lines = []
    for task in PROBLEMS:
        runs = [run for run in journal.of("run") if run["task"] == task]
        if not runs:
            continue
        keys = [key for key in runs[0]["metrics"] if key != "loss"]
        lines += [f"## {task}", "", f"| row | loss | {' | '.join(keys)} | rate | tried | seeds | state, MB |"]
        lines.append("|---" * (len(keys) + 6) + "|")
        for before in journal.of("before"):
            if before["task"] == task:
                cells = [f"{before['metrics'][key]:.3f}" for key in ("loss", *keys)]
                lines.append(f"| before | {' | '.join(cells)} | | | | |")
        lines += [*_lines(runs, keys), ""]
    return "\n".join(lines)


def _lines(runs: list[dict[str, Any]], keys: list[str]) -> list[str]:
    found = []
    for name in dict.fromkeys(run["row"] for run in runs):
        own = [run for run in runs if run["row"] == name]
        chosen = best(iter(own))
        same = [run for run in own if run["lr"] == chosen["lr"]]
        rates = sorted({run["lr"] for run in own})
        edge = "*" if len(rates) > 1 and chosen["lr"] in (rates[0], rates[-1]) else ""
        cells = [name, _mean(same, "loss"), *(_mean(same, key) for key in keys)]
        tried = " ".join(f"{lr:g}: {loss_of(_seed0(own, lr)):.3f}" for lr in rates)
        cells += [f"{chosen['lr']:g}{edge}", tried, str(len(same)), f"{chosen['state_bytes'] / 1e6:.1f}"]
        loss = statistics.mean(loss_of(run) for run in same)
        found.append((loss, f"| {' | '.join(cells)} |"))
    return [line for _, line in sorted(found)]


def _seed0(runs: list[dict[str, Any]], lr: float) -> dict[str, Any]:
    return next(run for run in runs if run["lr"] == lr and run["seed"] == 0)


def _mean(runs: list[dict[str, Any]], key: str) -> str:
    values = [run["metrics"].get(key, math.nan) for run in runs]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def main(argv: list[str] | None = None) -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=PROBLEMS, required=True)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="names of rows; default: all")
    parser.add_argument("--rates", type=float, nargs="+", help="in place of those of the rows")
    parser.add_argument("--rates-of", choices=PROBLEMS, help="a task on file whose best rates are taken")
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="beside 0, at the best rate")
    parser.add_argument("--model", help="folder of the pretrained model")
    parser.add_argument("--text", help="text that is not tuned on, to see what is forgotten")
    parser.add_argument("--gsm8k", help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--images", help="folder with CIFAR-10 as parquet")
    parser.add_argument("--cache", default=".cache", help="folder for what is pretrained here")
    parser.add_argument("--pretraining", type=int, default=400, help="steps of it")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after this long")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args(argv)
    unknown = [name for name in given.rows if name not in ROWS]
    if unknown:
        raise SystemExit(f"Expected `--rows` out of {', '.join(ROWS)}; got {', '.join(unknown)}.")
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore")
    study = Study(given)
    try:
        study.work()
    except TimeoutError:
        print(f"Stopped after {given.minutes:g} minutes; the same command goes on.")
    given.output.with_suffix(".md").write_text(table(study.journal))


if __name__ == "__main__":
    main()
