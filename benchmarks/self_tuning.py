"""Self-tuning radii against the best fixed radius of a sweep, on three small tasks.

    python -m benchmarks.self_tuning --cifar10 FOLDER --text FOLDER [--tasks ...] [--seeds ...] [--minutes 15]
    python -m benchmarks.self_tuning --table
    python -m benchmarks.self_tuning ... --away 0 --rules momo ngn floor brake x4 "momo x4" "ngn x4" --results FILE

A cell is a task, a method, a momentum and a batch size. The cells form a star: `gluon` at a momentum of .9 and the full
batch, and each of the three changed alone (`--away 3`: all combinations). In each cell the fixed hidden radius is swept
by factors of two, on seed 0 until the best lies inside, on the other seeds over that best one and its two neighbours.
With the best of the means these are compared, at the same number of steps (`muon, adamw 0.1`, on demand, has the ratio
of AdamW's rate that a sweep on CIFAR-10 found, in place of Muon's own):

    auto          lr="auto": the calibrating warm-up from 1/64 of 0.02
    small         calibrate, started 32 times below the best fixed radius of seed 0
    smoothness    the smoothness rule, started at it
    warmup        the best fixed radius itself after a linear warm-up over four memories of the momentum: what a ramp
                  costs that knows where it ends
    momo, ngn, floor, brake
                  these rules, and the retraction, at the best fixed radius
    x4            four times the best fixed radius, and rules behind it: do they bring it down?

All runs share the schedule (constant, then linear to zero over the last 40 %) and the ratios between roles. Results are
written after every run, and a second call continues where the first ended.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.journal import Journal
from benchmarks.small_tasks import Task, chosen, continued, train

RESULTS = Path(__file__).parent / "results" / "self_tuning.jsonl"
CENTRE = 0.02
RULES = ("auto", "small", "smoothness", "warmup")
LIVE: dict[str, dict[str, Any]] = {  # arguments of `RadiusScheduler`
    "momo": {"rule": "momo"},
    "ngn": {"rule": "ngn"},
    "floor": {"rule": "floor"},
}
FAR = "x4"  # from four times the best fixed radius
MORE = (*LIVE, "brake", FAR, *(f"{name} {FAR}" for name in ("momo", "ngn", "brake")))
MEMORIES = 4  # of a warm-up
GOAL = 0.03  # gap to the best fixed radius
BESIDE = ("input", "embedding", "head", "bias", "elementwise")  # roles that AdamW steps beside Muon
ADAMW = {"radius": dict.fromkeys(BESIDE, 0.1)}  # where Muon's own is 0.015
METHODS: dict[str, dict[str, Any]] = {
    "gluon": {},
    "muon": {},
    "gluon-mvr1": {},
    "limuon": {"rank": 4},
    "muon, adamw 0.1": {"method": "muon", **ADAMW},
}
MOMENTA = (0.9, 0.95, 0.97)
SHARES = (1.0, 0.25)  # of the batch size
LONG_STEPS = 800  # at least, at the largest momentum: its ramp is three times as long
NAMES = ("task", "method", "momentum", "batch", "steps")


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=["digits", "cifar10", "text"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS)[:4])
    parser.add_argument("--momenta", nargs="*", type=float, default=MOMENTA)
    parser.add_argument("--shares", nargs="*", type=float, default=SHARES, help="shares of the batch size")
    parser.add_argument("--away", type=int, default=1, help="how many of the three may differ from the centre")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--rules", nargs="*", choices=(*RULES, *MORE), default=RULES)
    parser.add_argument("--steps", type=int, help="of every training, in place of the task's own")
    continued(parser, RESULTS, _run, table)


def _run(given: argparse.Namespace, journal: Journal) -> None:
    runs = {key_of(run): run for run in journal.of("run")}
    tasks = chosen(given.tasks, given.cifar10, given.text)
    end = time.monotonic() + 60 * given.minutes
    for seed, method, share, momentum, task in itertools.product(
        given.seeds, given.methods, given.shares, given.momenta, tasks
    ):
        if (method != "gluon") + (share != 1) + (momentum != MOMENTA[0]) > given.away:
            continue
        cell = Cell(task, method, momentum, share, runs, given.steps)
        for key, run in cell.missing(seed, given.rules):
            if time.monotonic() > end:
                return
            runs[key] = journal.append("run", **cell.names, seed=seed, **run())
            print(key, runs[key]["loss"], runs[key]["seconds"], flush=True)


def key_of(run: dict[str, Any]) -> str:
    """Return what identifies a run: its cell, its seed, and its fixed radius or its rule."""
    parts = [str(run[name]) for name in NAMES]
    parts.append(str(run["seed"]))
    parts.append(run["rule"] if "rule" in run else f"fixed {run['fixed']:g}")
    return "/".join(parts)


class Cell:
    """One cell of the grid."""

    def __init__(
        self, task: Task, method: str, momentum: float, share: float, runs: dict[str, Any], steps: int | None = None
    ) -> None:
        self.task, self.runs = task, runs
        steps = steps or (max(task.steps, LONG_STEPS) if momentum == MOMENTA[-1] else task.steps)
        values = (task.name, method, momentum, max(1, round(share * task.batch)), steps)
        self.names: dict[str, Any] = dict(zip(NAMES, values, strict=True))

    def missing(self, seed: int, rules: tuple[str, ...]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Yield runs that are not there yet: the sweep first, one after another, since each decides the next."""
        while (radius := self._next_radius(seed)) is not None:
            yield (
                self._key(seed, f"fixed {radius:g}"),
                lambda radius=radius: {"fixed": radius, **self._train(seed, {"lr": radius})},
            )
        best = best_radius(self._swept(0))
        for rule in rules:
            if (key := self._key(seed, rule)) not in self.runs:
                yield key, lambda rule=rule: {"rule": rule, **self._with_rule(seed, rule, best)}

    def _key(self, seed: int, what: str) -> str:
        return "/".join([*map(str, self.names.values()), str(seed), what])  # as `key_of` does

    def _swept(self, seed: int) -> dict[float, float]:
        prefix = self._key(seed, "fixed ")
        return {run["fixed"]: run["loss"] for key, run in self.runs.items() if key.startswith(prefix)}

    def _next_radius(self, seed: int) -> float | None:
        swept = self._swept(seed)
        centre = best_radius(self._swept(0)) if seed else CENTRE
        for radius in (centre, centre / 2, centre * 2):
            if radius not in swept:
                return radius
        best = best_radius(swept)
        if seed or min(swept) < best < max(swept):
            return None
        return best / 2 if best == min(swept) else best * 2

    def _train(self, seed: int, options: dict[str, Any], callbacks: list[Any] | None = None) -> dict[str, Any]:
        method, momentum, batch, steps = (self.names[name] for name in NAMES[1:])
        options = {"method": method, "momentum": momentum, **METHODS[method], **options}
        return train(self.task, options, seed=seed, steps=steps, batch=batch, callbacks=callbacks)

    def _with_rule(self, seed: int, rule: str, best: float) -> dict[str, Any]:
        from lightning_gluon.callbacks import RadiusScheduler

        if rule in MORE:
            return self._live(seed, rule, best)
        if rule == "auto":
            return self._train(seed, {"lr": "auto"})
        if rule == "small":
            return self._train(seed, {"lr": best}, [RadiusScheduler("calibrate", options={"start": 1 / 32})])
        if rule == "warmup":
            return self._train(seed, {"lr": best, "warmup": round(MEMORIES / (1 - self.names["momentum"]))})
        return self._train(seed, {"lr": best}, [RadiusScheduler("smoothness", every_n_steps=10)])

    def _live(self, seed: int, rule: str, best: float) -> dict[str, Any]:
        from lightning_gluon.callbacks import RadiusScheduler

        name = rule.removesuffix(FAR).strip()
        options: dict[str, Any] = {"lr": 4 * best if rule.endswith(FAR) else best}
        if name == "brake":
            options["retract"] = "brake"
        return self._train(seed, options, [RadiusScheduler(**LIVE[name])] if name in LIVE else None)


def best_radius(swept: dict[float, float]) -> float:
    """Return the radius with the lowest loss; a run that diverged counts as infinite."""
    return min(swept, key=lambda radius: swept[radius] if math.isfinite(swept[radius]) else math.inf)


def table(runs: list[dict[str, Any]]) -> str:
    """Return the gaps to the best fixed radius as a Markdown table, failures in bold.

    A gap is the mean over seeds of the difference to the best fixed radius, in per cent of that one's mean loss, and
    after the sign the standard error of that mean. The best radius is the one with the lowest mean.
    """
    cells: dict[tuple, CellLosses] = {}
    for run in runs:
        names = tuple(run[name] for name in NAMES)
        cell = cells.setdefault(names, CellLosses())
        losses = cell.rules[run["rule"]] if "rule" in run else cell.fixed[run["fixed"]]
        losses[run["seed"]] = run["loss"]
    told = [rule for rule in (*RULES, *MORE) if any(run.get("rule") == rule for run in runs)]
    head = [*NAMES, "seeds", "best radius", "its loss", *told]
    lines = [_line(head), "|---" * len(head) + "|"]
    for names, cell in cells.items():
        if cell.fixed:  # else the sweep was cut off
            lines.append(_line([*map(str, names), *cell.values(told)]))
    return "\n".join(lines)


def _line(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"


class CellLosses:
    """Losses of one cell by seed, of every fixed radius and of every rule."""

    def __init__(self) -> None:
        self.fixed: dict[float, dict[int, float]] = defaultdict(dict)
        self.rules: dict[str, dict[int, float]] = defaultdict(dict)

    def values(self, rules: list[str]) -> list[str]:
        """Return the number of seeds, the best radius, its loss, and the gap of these rules to it."""
        seeds = max(map(len, self.fixed.values()))
        means = {}
        for radius, losses in self.fixed.items():
            if len(losses) == seeds:
                means[radius] = statistics.mean(losses.values())
        best = best_radius(means)
        gaps = [_gap(self.rules[rule], self.fixed[best]) for rule in rules]
        return [str(seeds), f"{best:g}", f"{means[best]:.4f}", *gaps]


def _gap(losses: dict[int, float], best: dict[int, float]) -> str:
    seeds = sorted(losses.keys() & best.keys())
    if not seeds:
        return ""
    mean = statistics.mean(best[seed] for seed in seeds)
    gaps = [100 * (losses[seed] - best[seed]) / mean for seed in seeds]
    gap = statistics.mean(gaps)
    if not math.isfinite(gap):
        return "**diverged**"
    text = f"{gap:+.1f}"
    if len(gaps) > 1:
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        text += f" ± {error:.1f}"
    text += " %"
    return text if gap <= 100 * GOAL else f"**{text}**"


if __name__ == "__main__":
    main()
