"""Self-tuning radii against the best fixed radius of a sweep, on three small tasks.

    python -m benchmarks.self_tuning --cifar10 FOLDER --text FOLDER [--methods ...] [--momenta ...] [--minutes 15]
    python -m benchmarks.self_tuning --table

A cell is a task, a method, a momentum, a batch size and a seed. In each the fixed hidden radius is swept by factors of
two until the best lies inside, then these runs are compared with it at the same number of steps:

    auto          lr="auto": the calibrating warm-up from 1/64 of 0.02
    small         calibrate, started 32 times below the best fixed radius
    large         calibrate with its line search, started from 16 times the best fixed radius
    smoothness    the smoothness rule, started at the best fixed radius

All runs share the schedule (constant, then linear to zero over the last 40 %) and the ratios between roles. Results are
written after every run, and a second call continues where the first ended.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment, write_json
from benchmarks.small_tasks import Task, cifar10, digits, text, train

RESULTS = Path(__file__).parent / "results" / "self_tuning.json"
CENTRE = 0.02
RULES = ("auto", "small", "large", "smoothness")
GOAL = 0.03  # gap to the best fixed radius


def main() -> None:
    """Run the grid, or print its table."""
    given = _arguments()
    report = (
        json.loads(given.results.read_text()) if given.results.exists() else {"environment": environment(), "runs": {}}
    )
    if not given.table:
        torch.set_num_threads(1)
        _run(given, report)
    print(table(report["runs"]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar10", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--text", type=Path, help="folder with valid.txt and test.txt")
    parser.add_argument("--tasks", nargs="*", default=["digits", "cifar10", "text"])
    parser.add_argument("--methods", nargs="*", default=["gluon", "muon", "gluon-mvr1", "limuon"])
    parser.add_argument("--momenta", nargs="*", type=float, default=[0.9, 0.95, 0.97])
    parser.add_argument("--shares", nargs="*", type=float, default=[1.0, 0.25], help="shares of the batch size")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--rules", nargs="*", choices=RULES, default=RULES)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after this long")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of what was run")
    return parser.parse_args()


def _run(given: argparse.Namespace, report: dict[str, Any]) -> None:
    makers: dict[str, Callable[[], Task]] = {"digits": digits}
    if given.cifar10:
        makers["cifar10"] = lambda: cifar10(given.cifar10)
    if given.text:
        makers["text"] = lambda: text(given.text)
    tasks = {name: makers[name]() for name in given.tasks if name in makers}
    end = time.monotonic() + 60 * given.minutes
    cells = itertools.product(given.seeds, given.methods, given.shares, given.momenta, tasks.values())
    for seed, method, share, momentum, task in cells:
        cell = Cell(task, method, momentum, share, seed, given.steps, report["runs"])
        for key, run in cell.missing(given.rules):
            if time.monotonic() > end:
                return
            report["runs"][key] = {**cell.describe(), **run()}
            write_json(given.results, report)
            print(key, report["runs"][key]["loss"], report["runs"][key]["seconds"], flush=True)


class Cell:
    """One cell of the grid."""

    def __init__(
        self, task: Task, method: str, momentum: float, share: float, seed: int, steps: int, runs: dict[str, Any]
    ) -> None:
        self.task, self.method, self.momentum, self.share = task, method, momentum, share
        self.seed, self.steps, self.runs = seed, steps, runs
        self.batch = max(1, round(share * task.batch))

    def describe(self) -> dict[str, Any]:
        """Return what the cell is, in plain values."""
        return {
            "task": self.task.name, "method": self.method, "momentum": self.momentum, "batch": self.batch,
            "seed": self.seed, "steps": self.steps,
        }  # fmt: skip

    def key(self, what: str) -> str:
        """Return the name of a run."""
        return "/".join([*map(str, self.describe().values()), what])

    def missing(self, rules: tuple[str, ...]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Yield runs that are not there yet: the sweep first, one after another, since each decides the next."""
        while (radius := self._next_radius()) is not None:
            yield self.key(f"fixed {radius:g}"), lambda radius=radius: {"fixed": radius, **self._train({"lr": radius})}
        best, _ = best_fixed(self._swept())
        for rule in rules:
            if self.key(rule) not in self.runs:
                yield self.key(rule), lambda rule=rule: {"rule": rule, **self._with_rule(rule, best)}

    def _swept(self) -> dict[float, float]:
        return {run["fixed"]: run["loss"] for key, run in self.runs.items() if key.startswith(self.key("fixed "))}

    def _next_radius(self) -> float | None:
        swept = self._swept()
        for radius in (CENTRE, CENTRE / 2, CENTRE * 2):
            if radius not in swept:
                return radius
        best, _ = best_fixed(swept)
        if best == min(swept):
            return best / 2
        return best * 2 if best == max(swept) else None

    def _train(self, options: dict[str, Any], callbacks: list[Any] | None = None) -> dict[str, Any]:
        options = {"method": self.method, "momentum": self.momentum, **options}
        if self.method == "muon":
            options["radius"] = {}
        return train(self.task, options, seed=self.seed, steps=self.steps, batch=self.batch, callbacks=callbacks)

    def _with_rule(self, rule: str, best: float) -> dict[str, Any]:
        from lightning_gluon.callbacks import RadiusScheduler

        if rule == "auto":
            return self._train({"lr": "auto"})
        if rule == "small":
            return self._train({"lr": best}, [RadiusScheduler("calibrate", options={"start": 1 / 32})])
        if rule == "large":
            return self._train({"lr": 16 * best}, [RadiusScheduler("calibrate", options={"line_search": True})])
        return self._train({"lr": best}, [RadiusScheduler("smoothness", every_n_steps=10)])


def best_fixed(swept: dict[float, float]) -> tuple[float, float]:
    """Return the best fixed radius and its loss; a run that diverged counts as infinite."""
    return min(swept.items(), key=lambda item: item[1] if math.isfinite(item[1]) else math.inf)


def table(runs: dict[str, Any]) -> str:
    """Return the gaps to the best fixed radius as a Markdown table, failures in bold."""
    cells: dict[tuple, dict[str, Any]] = {}
    for run in runs.values():
        cell = cells.setdefault(tuple(run[k] for k in ("task", "method", "momentum", "batch", "seed", "steps")), {})
        cell.setdefault("fixed", {}).update({run["fixed"]: run["loss"]} if "fixed" in run else {})
        if "rule" in run:
            cell[run["rule"]] = run["loss"]
    lines = [
        "| task | method | momentum | batch | seed | steps | best radius | its loss | " + " | ".join(RULES) + " |",
        "|---|---|---|---|---|---|---|---|" + "---|" * len(RULES),
    ]
    for names, cell in cells.items():
        radius, loss = best_fixed(cell["fixed"])
        gaps = [_gap(cell.get(rule), loss) for rule in RULES]
        lines.append("| " + " | ".join([*map(str, names), f"{radius:g}", f"{loss:.4f}", *gaps]) + " |")
    return "\n".join(lines)


def _gap(value: float | None, best: float) -> str:
    if value is None:
        return ""
    gap = value / best - 1
    if not math.isfinite(gap):
        return "**diverged**"
    return f"{100 * gap:+.1f} %" if gap <= GOAL else f"**{100 * gap:+.1f} %**"


if __name__ == "__main__":
    main()
