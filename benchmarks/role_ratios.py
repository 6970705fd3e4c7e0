"""Radii of the roles relative to the hidden one: each swept alone around its default, on three small tasks.

    python -m benchmarks.role_ratios --cifar10 FOLDER --text FOLDER [--minutes 15]
    python -m benchmarks.role_ratios --table

`head`, `table` (the token table of text), `input` (the patch embedding of images, whose input is pixels) and `vectors`
(bias and elementwise together) are varied under `gluon`, the others keep its default; `adamw` is all that AdamW steps
beside `muon`. The hidden radius is 0.02. Results are written after every run, and a second call continues where the
first ended.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.journal import Journal
from benchmarks.small_tasks import Task, chosen, continued, train

RESULTS = Path(__file__).parent / "results" / "role_ratios.jsonl"
# The defaults are among the values; a run at them is shared by all roles of a method.
VALUES = {
    "head": (1.0, 5.0, 25.0, 100.0),
    "table": (1.0, 5.0, 25.0, 100.0),
    "input": (0.03, 0.1, 0.3, 1.0, 3.0),
    "vectors": (0.01, 0.1, 1.0),
    "adamw": (0.005, 0.015, 0.05, 0.15, 0.5),
}
DEFAULTS = {"head": 25.0, "table": 25.0, "input": 0.3, "vectors": 0.1, "adamw": 0.015}
KEYS = {
    "head": ("head",),
    "table": ("embedding",),
    "input": ("input",),
    "vectors": ("bias", "elementwise"),
    "adamw": ("input", "embedding", "head", "bias", "elementwise"),
}
TASKS = ("digits", "cifar10", "text")
HIDDEN = 0.02  # within 1 % of the best of the sweep on every task (benchmarks/self_tuning.py)


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    continued(parser, RESULTS, _run, table)


def _run(given: argparse.Namespace, journal: Journal) -> None:
    end = time.monotonic() + 60 * given.minutes
    done = {_key(run["task"], run["role"], run["ratio"], run["seed"]) for run in journal.of("run")}
    tasks = chosen(TASKS, given.cifar10, given.text)
    for seed in given.seeds:
        for role, values in VALUES.items():
            for task in tasks:
                for value in values if _has(task.name, role) else ():
                    key = _key(task.name, role, value, seed)
                    if key in done:
                        continue
                    if time.monotonic() > end:
                        return
                    found = journal.append("run", **_train(task, role, value, seed))
                    done.add(key)
                    print(key, found["loss"], flush=True)


def _train(task: Task, role: str, value: float, seed: int) -> dict[str, Any]:
    options = {
        "method": "muon" if role == "adamw" else "gluon",
        "lr": HIDDEN,
        "radius": dict.fromkeys(KEYS[role], value),
    }
    what = {"task": task.name, "role": role, "ratio": value, "seed": seed, "steps": task.steps}
    return {**what, **train(task, options, seed=seed, steps=task.steps, batch=task.batch)}


def _has(task: str, role: str) -> bool:
    return role != ("input" if task == "text" else "table")


def _key(task: str, role: str, value: float, seed: int) -> str:
    shared = value == DEFAULTS[role] and role != "adamw"
    return f"{task}/{'defaults' if shared else f'{role} {value:g}'}/{seed}"


def table(runs: list[dict[str, Any]]) -> str:
    """Return the evaluation losses as Markdown tables, one per role, the mean over seeds."""
    parts = []
    losses = {_key(run["task"], run["role"], run["ratio"], run["seed"]): run["loss"] for run in runs}
    for role, values in VALUES.items():
        lines = [f"| {role} | " + " | ".join(f"{value:g}" for value in values) + " |", "|---|" + "---|" * len(values)]
        for task in (task for task in TASKS if _has(task, role)):
            cells = []
            for value in values:
                prefix = _key(task, role, value, 0)[:-1]
                found = [loss for key, loss in losses.items() if key.startswith(prefix)]
                cells.append(f"{sum(found) / len(found):.4f}" if found else "")
            lines.append(f"| {task} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
