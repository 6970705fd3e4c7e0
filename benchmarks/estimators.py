"""Which estimator of the momentum reaches which loss for the same number of gradients, and for how many bytes?

    python -m benchmarks.estimators --task cifar10 --path FOLDER_WITH_PARQUET [--seeds 1 2 3]
    python -m benchmarks.estimators --task text [--path TEXT_FILE]

Tasks, model, data, schedule and the count of gradients are those of `benchmarks.compare`. Every row has the same budget
of tuning:

    screen     seed 0, every learning rate, at the row's own momentum, `--screen-share` of the gradients
    sweep      the best rows of the screen and the baselines: every momentum, at the best rate and its neighbours, for
               `--sweep-share` of the gradients; then all of them, at the best setting and at the next shorter rate
    report     the same rows at their best rate and momentum, on the other seeds
    levels     the same with a share of the gradients only: which row reaches the loss of `ema` with fewer?

Choices go by the validation loss of seed 0, the table has the test loss of the others. A line is written per run, and a
second call does only what is missing.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import compare
from benchmarks.journal import Journal
from benchmarks.self_tuning import ADAMW
from lightning_gluon import METHODS, register_method

HERE = Path(__file__).parent
RATES = (0.005, 0.01, 0.02, 0.04)
MOMENTA = (0.8, 0.9, 0.95)
BASELINES = ("ema", "muon", "adamw")
PUBLISHED = {"kernel_start": (0.072, 90 / 3100), "kernel_end": (0.137, 24 / 3100)}
TABLES = (("row", "row"), ("row", "centred_row"), ("sign", "centred_row"), ("clipped_row", "clipped_row"))
SIGN_LENGTH = {"row_scaling": "sign"}
DECAY = {"weight_decay": 0.3}
MLP = {"*mlp*weight": {"role": "hidden", "norm": "balanced"}}
FLAT = {"kernel_start": (0.1, 30 / 640), "kernel_end": (0.1, 30 / 640)}
DUAL = {"kernel_start": (0.1, 30 / 640), "kernel_end": (0.14, 12 / 640)}
MIX_AGES = (3 / 640, 32 / 640)
TWO = {"mix": 2, "mix_weights": (0.8, 0.4)}


@dataclass(frozen=True)
class Row:
    """One estimator.

    Args:
        method: Its row of `METHODS`.
        options: Options beside the method's own.
        momentum: Momentum of the screen; `None` for a row without one.
        unit: Its learning rates, relative to those of the others.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    momentum: float | None = 0.9
    unit: float = 1.0

    def rates(self, given: Iterable[float]) -> list[float]:
        """Return its learning rates."""
        return [float(f"{self.unit * rate:.3g}") for rate in given]


def register_tables() -> list[str]:
    """Register Gluon with other norms for table and head, rows as long as those of `sign`, and return their names."""
    gluon = METHODS["gluon"]
    names = []
    for table, head in TABLES:
        name = f"gluon-{table}-{head}".replace("_", "-")
        norms = {"embedding": table, "head": head}
        rules = {role: replace(gluon.rules[role], norm=norm, options=SIGN_LENGTH) for role, norm in norms.items()}
        if name not in METHODS:
            register_method(name, replace(gluon, summary=f"{table} tables", rules={**gluon.rules, **rules}))
        names.append(name)
    return names


def scaled(pair: tuple[float, ...], *factors: float) -> tuple[float, ...]:
    """Return a pair times one factor, or each of it times its own."""
    first, second = factors if len(factors) > 1 else factors * 2
    return pair[0] * first, pair[1] * second


def kernel(weight: float = 1.0, age: float = 1.0) -> dict[str, Any]:
    """Return the constants of the dual average with both newest weights, or both mean ages, times a factor."""
    return {name: scaled(pair, weight, age) for name, pair in DUAL.items()}


def rows() -> dict[str, Row]:
    """Return the rows by name."""
    found = {name: Row(name) for name in register_tables()}
    for gate in (0.001, 0.01, 0.1):
        found[f"mimuon {gate:g}"] = Row("mimuon", {"gate": gate}, momentum=0.95, unit=2.0)
    found |= {
        "af-muon": Row("af-muon", momentum=0.95, unit=2.0),
        "symmetry-compatible": Row("symmetry-compatible", momentum=0.95, unit=2.0),
        "gluon, heads apart": Row("gluon", {"per_head": True}),
        "muon, heads apart": Row("muon", {"per_head": True}, momentum=0.95, unit=2.0),
        "ema": Row("gluon"),
        "nesterov": Row("gluon-nesterov"),
        "dual": Row("gluon-dual"),
        "dual, nesterov before": Row("gluon-dual", {"kernel_before": "nesterov"}),
        "dual, no anneal": Row("gluon-dual", FLAT),
        "dual, as published": Row("gluon-dual", PUBLISHED),
        "mix 8": Row("gluon-mix"),
        "mix 2": Row("gluon-mix", TWO),
        "ema-nesterov .3": Row("gluon-ema-nesterov", {"lookahead": 0.3}),
        "ema-nesterov .6": Row("gluon-ema-nesterov"),
        "anchor": Row("gluon-anchor"),
        "muon": Row("muon", momentum=0.95, unit=2.0),
        "muon-dual": Row("muon-dual", momentum=0.95, unit=2.0),
        "mars": Row("mars", momentum=0.95),
        "adamw": Row("adamw", momentum=None, unit=0.1),
    }
    found |= {
        "muoneq": Row("muoneq", momentum=0.95, unit=2.0),
        "normuon": Row("normuon", momentum=0.95, unit=2.0),
        "aurora": Row("aurora", momentum=0.95, unit=2.0),
        "hyperball": Row("hyperball", momentum=0.95),
        "nesterov, balance rows": Row("gluon-nesterov", {"balance": "rows"}),
        "nesterov, balance longer": Row("gluon-nesterov", {"balance": "longer"}),
        "nesterov, rows equal before": Row("gluon-nesterov", {"equilibrate": "rows"}),
        "nesterov, aurora": Row("gluon-nesterov", {"equilibrate": "aurora"}),
        "nesterov, aurora in MLPs": Row("gluon-nesterov", {"equilibrate": "aurora", "rules": MLP}),
        "nesterov, balance longer in MLPs": Row("gluon-nesterov", {"balance": "longer", "rules": MLP}),
        "nesterov, aurora, heads apart": Row("gluon-nesterov", {"equilibrate": "aurora", "per_head": True}),
        "nesterov, brake": Row("gluon-nesterov", {"retract": "brake"}),
        "nesterov, brake, balance longer": Row("gluon-nesterov", {"retract": "brake", "balance": "longer"}),
        "nesterov, decay": Row("gluon-nesterov", DECAY),
        "nesterov, decay follows lr": Row("gluon-nesterov", {**DECAY, "decay": "follows_lr"}),
        "nesterov, cautious decay": Row("gluon-nesterov", {**DECAY, "decay": "cautious"}),
        "nesterov, heads apart": Row("gluon-nesterov", {"per_head": True}),
    }
    for factor in (0.5, 2.0, 4.0):
        found[f"dual, ages x{factor:g}"] = Row("gluon-dual", kernel(age=factor))
        found[f"mix 8, ages x{factor:g}"] = Row("gluon-mix", {"mix_ages": scaled(MIX_AGES, factor)})
    for factor in (0.7, 1.4):
        found[f"dual, newest x{factor:g}"] = Row("gluon-dual", kernel(weight=factor))
    # AdamW's own best rate on both tasks is near .1 of Muon's; the usual .015 is far below.
    for name in ("muon", "muon-dual", "muoneq", "normuon", "aurora", "hyperball"):
        found[f"{name}, AdamW .1"] = Row(name, ADAMW, momentum=0.95)
    for share in (0.1, 0.2, 0.3, 0.6, 1.0):
        found[f"igt {share:g}"] = Row("gluon-igt", {"lookahead": share})
    for gamma in (0.025, 0.1, 0.25, 0.5, 0.75, 1.0):
        found[f"mvr1 {gamma:g}"] = Row("gluon-mvr1", {"gamma": gamma})
    for number in (2, 3):
        for gamma in (0.0, 0.25, 1.0):
            found[f"mvr{number} {gamma:g}"] = Row(f"gluon-mvr{number}", {"gamma": gamma})
    for rank in (8, 16):
        found[f"limuon r{rank}"] = Row("limuon", {"rank": rank})
    for rank in (4, 8, 16, 64):
        for feedback in (None, "int8", "int4"):
            kept = "" if feedback is None else f" {feedback}"
            found[f"lowrank r{rank}{kept}"] = Row("gluon-lowrank", {"rank": rank, "feedback": feedback})
    return found


class Setting(NamedTuple):
    """What is tuned."""

    lr: float
    momentum: float | None


class Study:
    """The runs of one task, kept in a file and filled in where they are missing.

    Args:
        given: The command line.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        task = compare.TASKS[given.task]
        self.budget = given.evaluations or task.evaluations
        self.journal = Journal(given.output)
        self.journal.header(**{"task": given.task, **task.header(), "evaluations": self.budget})
        known = rows()
        self.rows = {name: known[name] for name in given.rows or known}
        self.end = time.monotonic() + 60 * given.minutes

    def run(self, name: str, setting: Setting, seed: int, share: float = 1.0) -> float:
        """Return the validation loss of a run, from the file where it is there."""
        found = self.find(name, setting, seed, share)
        return loss_of(self._train(name, setting, seed, share) if found is None else found, "val/loss")

    def find(self, name: str, setting: Setting, seed: int, share: float = 1.0) -> dict[str, Any] | None:
        """Return a run of the file; `None` if it is not there."""
        return self.journal.find("run", row=name, **setting._asdict(), seed=seed, share=share)

    def _train(self, name: str, setting: Setting, seed: int, share: float) -> dict[str, Any]:
        if time.monotonic() > self.end:
            raise TimeoutError
        row = self.rows[name]
        arguments = {"method": row.method, **row.options, "lr": setting.lr}
        if setting.momentum is not None:
            arguments["momentum"] = setting.momentum
        budget = round(share * self.budget)
        reported = seed != self.given.sweep_seed
        points = compare.POINTS if reported else 1
        done = compare.fit(self.given.task, self.given.path, arguments, seed, budget, test=reported, points=points)
        run = self.journal.append("run", row=name, share=share, **setting._asdict(), **done)
        loss = loss_of(run, "val/loss")
        print(f"{name:22} {setting} seed {seed} share {share:g}  {loss:.4f}  {run['seconds']} s", flush=True)
        return run

    def screen(self) -> dict[str, dict[Setting, float]]:
        """Return the validation losses of every row at every rate, at its own momentum, on the first seed."""
        losses: dict[str, dict[Setting, float]] = {}
        for name, row in self.rows.items():
            settings = [Setting(lr, row.momentum) for lr in row.rates(self.given.rates)]
            tried = {one: self.run(name, one, self.given.sweep_seed, self.given.screen_share) for one in settings}
            losses[name] = tried
        return losses

    def finalists(self, screened: dict[str, dict[Setting, float]]) -> list[str]:
        """Return the best rows of the screen, and the baselines."""
        ranked = sorted(screened, key=lambda name: min(screened[name].values()))
        chosen = [name for name in ranked if name not in BASELINES][: self.given.finalists]
        return [*chosen, *(name for name in BASELINES if name in screened)]

    def sweep(self, name: str, screened: dict[Setting, float]) -> Setting:
        """Return the best rate and momentum of a row; every row has the same number of runs to find them."""
        row = self.rows[name]
        rates = row.rates(self.given.rates)
        place = rates.index(best(screened).lr)
        near = rates[max(0, place - 1) : place + 2]
        losses: dict[Setting, float] = {}
        own = row.momentum is None or not self.given.momenta
        for momentum in [row.momentum] if own else self.given.momenta:
            for lr in near:
                setting = Setting(lr, momentum)
                losses[setting] = self.run(name, setting, self.given.sweep_seed, self.given.sweep_share)
        chosen = best(losses)
        # A longer training wants no longer steps than a short one, but may want shorter ones.
        whole = [Setting(lr, chosen.momentum) for lr in near if lr <= chosen.lr][-2:]
        return best({one: self.run(name, one, self.given.sweep_seed) for one in whole})

    def work(self) -> None:
        """Run what is missing, stage by stage."""
        screened = self.screen()
        if self.given.screen:
            return
        chosen = {name: self.sweep(name, screened[name]) for name in self.finalists(screened)}
        for share in (1.0, *self.given.levels):
            for name, setting in chosen.items():
                for seed in self.given.seeds:
                    self.run(name, setting, seed, share)

    def screen_table(self) -> str:
        """Return what the screen found as Markdown: the best rate of every row, best row first."""
        share = self.given.screen_share
        lines = [
            f"{round(share * self.budget)} gradient evaluations per run, seed {self.given.sweep_seed}. Training loss: "
            "mean of the last tenth of the batches. `*`: the best rate is at the edge of those tried.",
            "",
            "| row | validation loss | lr | training loss | bytes per parameter |",
            "|---|---|---|---|---|",
        ]
        found = [self._screened(name, share) for name in self.rows]
        for best_run, edge in sorted(filter(None, found), key=lambda pair: loss_of(pair[0], "val/loss")):
            losses = f"{loss_of(best_run, 'val/loss'):.3f}", f"{compare.training_loss(best_run):.3f}"
            rate = f"{best_run['lr']:g}{'*' if edge else ''}"
            cells = (best_run["row"], losses[0], rate, losses[1], best_run["bytes_per_parameter"])
            lines.append(f"| {' | '.join(map(str, cells))} |")
        return "\n".join(lines) + "\n"

    def _screened(self, name: str, share: float) -> tuple[dict[str, Any], bool] | None:
        """Return a row's best run of the screen, and whether its rate is at the edge; `None` if none ran."""
        wanted = {"row": name, "share": share, "seed": self.given.sweep_seed, "momentum": self.rows[name].momentum}
        runs = [run for run in self.journal.of("run") if wanted.items() <= run.items()]
        if not runs:
            return None
        rates = {run["lr"] for run in runs}
        chosen = min(runs, key=lambda run: loss_of(run, "val/loss"))
        return chosen, len(rates) > 1 and chosen["lr"] in (min(rates), max(rates))

    def table(self) -> str:
        """Return the losses as Markdown, best first: of the other seeds where there are some, else of the screen."""
        levels = [f"test loss, {share:g} of the gradients" for share in self.given.levels]
        columns = ["estimator", "test loss", "training loss", "seeds", "val loss, seed 0", "lr", "momentum"]
        columns += ["bytes per parameter"]
        columns += ["steps", *levels]
        lines = [
            f"{self.budget} gradient evaluations per run; test loss over the seeds, validation loss on the first. "
            "Training loss: mean of the last tenth of the batches. `*`: the best rate is at the edge of those tried.",
            "",
            f"| {' | '.join(columns)} |",
            "|---" * len(columns) + "|",
        ]
        for entry in sorted(self._entries(), key=lambda entry: (entry.test is None, entry.order)):
            lines.append(entry.line())
        return "\n".join(lines) + "\n"

    def _entries(self) -> Iterator[Entry]:
        for name in self.rows:
            runs = [run for run in self.journal.of("run") if run["row"] == name and run["share"] == 1]
            swept = {setting_of(run): run for run in runs if run["seed"] == self.given.sweep_seed}
            if not swept:
                continue
            setting = best({key: loss_of(run, "val/loss") for key, run in swept.items()})
            losses = {share: self._reported(name, setting, share) for share in (1.0, *self.given.levels)}
            trained = self._runs(name, setting, 1.0) or [swept[setting]]
            reached = [compare.training_loss(run) for run in trained]
            tried = {run["lr"] for run in self.journal.of("run") if run["row"] == name}
            edge = len(tried) > 1 and setting.lr in (min(tried), max(tried))
            yield Entry(name, setting, swept[setting], losses, reached, edge)

    def _reported(self, name: str, setting: Setting, share: float) -> list[float]:
        """Return the test losses of the reported seeds, at a share of the gradients."""
        return [loss_of(run, "test/loss") for run in self._runs(name, setting, share)]

    def _runs(self, name: str, setting: Setting, share: float) -> list[dict[str, Any]]:
        """Return the runs of the reported seeds."""
        runs = [self.find(name, setting, seed, share) for seed in self.given.seeds]
        return [run for run in runs if run is not None]


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Args:
        name: The row.
        setting: Its best rate and momentum.
        first: The run of the first seed at these.
        losses: Test losses of the other seeds, by share of the gradients.
        reached: Losses of their last training batches; of the first seed's without others.
        edge: Whether its rate is the lowest or highest that was tried.
    """

    name: str
    setting: Setting
    first: dict[str, Any]
    losses: dict[float, list[float]]
    reached: list[float]
    edge: bool

    @property
    def tests(self) -> list[float]:
        """Test losses at all gradients."""
        return self.losses[1.0]

    @property
    def test(self) -> float | None:
        """Their mean; `None` without any."""
        return statistics.mean(self.tests) if self.tests else None

    @property
    def order(self) -> float:
        """What the table is sorted by."""
        return loss_of(self.first, "val/loss") if self.test is None else self.test

    def line(self) -> str:
        """Return the line."""
        momentum = "" if self.setting.momentum is None else f"{self.setting.momentum:g}"
        first = f"{loss_of(self.first, 'val/loss'):.3f}"
        size, steps = self.first["bytes_per_parameter"], self.first["steps"]
        rate = f"{self.setting.lr:g}{'*' if self.edge else ''}"
        levels = [told(losses) for share, losses in self.losses.items() if share != 1]
        losses = (told(self.tests), told(self.reached))
        cells = (self.name, *losses, len(self.tests), first, rate, momentum, size, steps, *levels)
        return f"| {' | '.join(map(str, cells))} |"


def told(losses: list[float]) -> str:
    """Return mean and standard deviation of some losses, as text."""
    if not losses:
        return ""
    spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
    return f"{statistics.mean(losses):.3f}{spread}"


def setting_of(run: dict[str, Any]) -> Setting:
    """Return what a run was tuned to."""
    return Setting(run["lr"], run["momentum"])


def loss_of(run: dict[str, Any], key: str) -> float:
    """Return a loss of a run, infinite if it diverged."""
    loss = run["metrics"][key]
    return loss if math.isfinite(loss) else math.inf


def best(losses: dict[Setting, float]) -> Setting:
    """Return the setting with the lowest loss."""
    return sorted(losses, key=losses.__getitem__)[0]


def check_names(names: Iterable[str]) -> None:
    """Raise for a row that is not there."""
    known = rows()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"Expected `--rows` out of {', '.join(known)}; got {', '.join(unknown)}.")


def main(argv: list[str] | None = None) -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=compare.TASKS, default="digits")
    parser.add_argument("--path", help="parquet folder of cifar10, text file or folder of text")
    parser.add_argument("--rows", nargs="*", help="names of rows; default: all")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--momenta", type=float, nargs="*", default=list(MOMENTA), help="none: each row's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="reported")
    parser.add_argument("--sweep-seed", type=int, default=0, help="everything is chosen on this one")
    parser.add_argument("--finalists", type=int, default=8, help="rows that go on beside the baselines")
    parser.add_argument("--screen", action="store_true", help="stop after the screen")
    parser.add_argument("--screen-share", type=float, default=1.0, help="share of the gradients of the screen's runs")
    parser.add_argument("--sweep-share", type=float, default=1.0, help="share of the gradients of the momentum sweep")
    parser.add_argument("--levels", type=float, nargs="*", default=[], help="shares of the gradients, such as 0.9 0.8")
    parser.add_argument("--evaluations", type=int, help="gradient evaluations per run")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after this long")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/estimators_<task>.jsonl")
    given = parser.parse_args(argv)
    check_names(given.rows or ())
    given.rates.sort()
    given.output = given.output or HERE / "results" / f"estimators_{given.task}.jsonl"
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    study = Study(given)
    try:
        study.work()
    except TimeoutError:
        print(f"Stopped after {given.minutes:g} minutes; the same command goes on.")
    page = study.screen_table() if given.screen else study.table()
    given.output.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
