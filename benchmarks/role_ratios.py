"""Radii of the roles relative to the hidden one: each swept alone around a centre, on three small tasks.

    python -m benchmarks.role_ratios --cifar10 FOLDER --text FOLDER [--minutes 15]
    python -m benchmarks.role_ratios --table

`head`, `embedding` (text: the token table; images: the patch embedding, whose input is pixels) and `vectors` (bias and
elementwise together) are varied by factors, the others stay at the centre. The hidden radius is the best of a few, per
task, at the centre. Results are written after every run, and a second call continues where the first ended.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment, write_json
from benchmarks.small_tasks import Task, cifar10, digits, text, train

RESULTS = Path(__file__).parent / "results" / "role_ratios.json"
CENTRE = {"embedding": 25.0, "head": 25.0, "vectors": 0.1}
PATCH = 1.0  # centre of `embedding` for images
VALUES = {
    "head": (1.0, 5.0, 25.0, 100.0),
    "embedding": (0.2, 1.0, 5.0, 25.0, 100.0),
    "vectors": (0.01, 0.1, 1.0),
}
HIDDEN = {"digits": 0.02, "cifar10": 0.01, "text": 0.02}  # the best of benchmarks/self_tuning.py at full batch, b = .9


def main() -> None:
    """Run the sweep, or print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--method", default="gluon")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    report = (
        json.loads(given.results.read_text()) if given.results.exists() else {"environment": environment(), "runs": {}}
    )
    if not given.table:
        torch.set_num_threads(1)
        _run(given, report)
    print(table(report["runs"]))


def _run(given: argparse.Namespace, report: dict[str, Any]) -> None:
    makers: list[Callable[[], Task]] = [digits]
    makers += [lambda: cifar10(given.cifar10)] if given.cifar10 else []
    makers += [lambda: text(given.text)] if given.text else []
    end = time.monotonic() + 60 * given.minutes
    tasks = [make() for make in makers]
    for seed in given.seeds:
        for role, values in VALUES.items():
            for task in tasks:
                for value in values:
                    what = {"task": task.name, "role": role, "ratio": value, "seed": seed, "steps": given.steps}
                    key = "/".join(map(str, what.values()))
                    if key in report["runs"]:
                        continue
                    if time.monotonic() > end:
                        return
                    options = {"method": given.method, "lr": HIDDEN[task.name], "radius": _radii(task, role, value)}
                    report["runs"][key] = {
                        **what,
                        **train(task, options, seed=seed, steps=given.steps, batch=task.batch),
                    }
                    write_json(given.results, report)
                    print(key, report["runs"][key]["loss"], flush=True)


def _radii(task: Task, role: str, value: float) -> dict[str, float]:
    ratios = {**CENTRE, **({"embedding": PATCH} if task.radius else {}), role: value}
    vectors = ratios.pop("vectors")
    return {**ratios, "bias": vectors, "elementwise": vectors}


def table(runs: dict[str, Any]) -> str:
    """Return the evaluation losses as Markdown tables, one per role, the mean over seeds."""
    parts = []
    for role, values in VALUES.items():
        lines = [f"| {role} | " + " | ".join(f"{value:g}" for value in values) + " |", "|---|" + "---|" * len(values)]
        for task in HIDDEN:
            cells = []
            for value in values:
                found = [r["loss"] for r in runs.values() if (r["task"], r["role"], r["ratio"]) == (task, role, value)]
                cells.append(f"{sum(found) / len(found):.4f}" if found else "")
            lines.append(f"| {task} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
