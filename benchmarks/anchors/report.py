"""Tables and pictures of runs with published numbers beside them.

Gradients to a score: a run's validation curve is first at or below the score that the baseline ends at, between two
points by a line. The rate decays to zero, so a run that stops there on purpose would be there earlier: the shares
tell how early. The interval draws seeds of the row and of the baseline again, with replacement, a thousand times,
and holds 90 %.
"""

from __future__ import annotations

import functools
import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.journal import Journal

Result = dict[str, Any]
TARGETS = ("adamw", "muon")
DRAWS = 1_000
COLORS = 10
TUNED_ON = 0  # the seed


def loss_of(run: Result, key: str) -> float:
    """Return a score of a run, infinite if it diverged."""
    value = run[key]
    return value if math.isfinite(value) else math.inf


def picked(run: Result) -> Result:
    """Return a run with the scores of its best validation point, as an early stop would have them."""
    if run["failure"] is not None:
        return run
    point = min(run["curve"], key=lambda each: each["val"])
    return {**run, "val": point["val"], "test": point.get("test", point["val"])}


def runs_of(journal: Journal) -> list[Result]:
    """Return the runs of an anchor, at their best validation points where the task is scored so."""
    if journal.of("early_stop"):
        return [picked(run) for run in journal.of("run")]
    return journal.of("run")


@dataclass(frozen=True)
class Entry:
    """One row of the table: its runs at the rate that was chosen.

    Args:
        name: The row.
        tuned: Runs of the seed that the rate was chosen on.
        runs: Runs of the other seeds.
        shares: Runs with a share of the gradients, by the share.
    """

    name: str
    tuned: list[Result]
    runs: list[Result]
    shares: dict[float, list[Result]]

    @property
    def tests(self) -> list[float]:
        """Return the scores."""
        return [loss_of(run, "test") for run in self.runs]

    @property
    def rate(self) -> str:
        """Return the rate, with a star where it is the lowest or highest that was tried."""
        tried = sorted({run["lr"] for run in self.tuned})
        lr = self.runs[0]["lr"]
        edge = "*" if len(tried) > 1 and lr in (tried[0], tried[-1]) else ""
        return f"{lr}{edge}"


def entries(journal: Journal) -> list[Entry]:
    """Return the rows that have reported seeds, best first."""
    found: dict[str, Entry] = {}
    for run in runs_of(journal):
        entry = found.setdefault(run["row"], Entry(run["row"], [], [], {}))
        if run["seed"] == TUNED_ON:
            entry.tuned.append(run)
        elif run["share"] == 1:
            entry.runs.append(run)
        else:
            entry.shares.setdefault(run["share"], []).append(run)
    reported = [entry for entry in found.values() if entry.runs]
    return sorted(reported, key=lambda entry: statistics.mean(entry.tests))


def curve(runs: Sequence[Result]) -> list[tuple[float, float]]:
    """Return gradient evaluations and the mean validation score at the points that all runs have."""
    columns = zip(*(run["curve"] for run in runs), strict=False)
    return [(column[0]["evaluations"], statistics.mean(point["val"] for point in column)) for column in columns]


def crossing(points: Iterable[tuple[float, float]], target: float) -> float:
    """Return where a curve is first at or below a target, infinite if it never is."""
    before: tuple[float, float] | None = None
    for place, value in points:
        if value <= target:
            if before is None:
                return place
            share = (before[1] - target) / (before[1] - value)
            return before[0] + share * (place - before[0])
        before = (place, value)
    return math.inf


def final(runs: Sequence[Result]) -> float:
    """Return the mean validation score at the end."""
    return statistics.mean(loss_of(run, "val") for run in runs)


@dataclass(frozen=True)
class Gradients:
    """Gradient evaluations to a baseline's score, as a share of the baseline's, with an interval of 90 %."""

    share: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isinf(self.share):
            return "not reached"
        if self.low == self.share == self.high:
            return percent(self.share)
        return f"{percent(self.share)} [{percent(self.low)}, {percent(self.high)}]"


def percent(share: float) -> str:
    """Return a share as text."""
    return "never" if math.isinf(share) else f"{100 * share:.0f} %"


def gradients(runs: Sequence[Result], baseline: Sequence[Result]) -> Gradients:
    """Return the gradients that a row needs to a baseline's score."""
    budget = baseline[0]["evaluations"]
    draw = random.Random(0).choices

    @functools.cache  # a few seeds can be drawn in a few ways only
    def share_of(own: tuple[int, ...], others: tuple[int, ...]) -> float:
        target = final([baseline[place] for place in others])
        return crossing(curve([runs[place] for place in own]), target) / budget

    drawn = []
    for _ in range(DRAWS):
        others = sorted(draw(range(len(baseline)), k=len(baseline)))
        own = sorted(draw(range(len(runs)), k=len(runs)))
        drawn.append(share_of(tuple(own), tuple(others)))
    drawn.sort()
    share = crossing(curve(runs), final(baseline)) / budget
    return Gradients(share, drawn[DRAWS // 20], drawn[-DRAWS // 20])


def told(values: Sequence[float]) -> str:
    """Return mean, standard deviation and number of some scores."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 and all(map(math.isfinite, values)) else ""
    return f"{statistics.mean(values):.4f}{spread} ({len(values)})"


def table(journal: Journal, published: Mapping[str, str]) -> str:
    """Return the rows as Markdown."""
    header = journal.of("header")[-1]
    known = entries(journal)
    by_name = {entry.name: entry for entry in known}
    titles = ["row", "published", f"{header['unit']} (seeds)", "lr"]
    titles += [f"gradients to {target}'s" for target in TARGETS]
    titles += ["seconds", "state, bytes per parameter"]
    minutes = sum(run["processor_seconds"] for run in journal.of("run")) / 60
    lines = [
        f"{header['summary']}; {header['evaluations']} gradient evaluations per run; {minutes:.0f} minutes of one "
        "processor in all. `*`: the best rate is at the edge.",
        "",
        f"| {' | '.join(titles)} |",
        "|---" * len(titles) + "|",
    ]
    for entry in known:
        first = entry.runs[0]
        needs = [str(gradients(entry.runs, by_name[name].runs)) if name in by_name else "" for name in TARGETS]
        seconds = statistics.median(run["processor_seconds"] for run in entry.runs)
        size = first["state_bytes"] / first["parameters"]
        cells = [entry.name, published.get(entry.name, ""), told(entry.tests), entry.rate, *needs]
        lines.append(f"| {' | '.join([*cells, f'{seconds:.0f}', f'{size:.2f}'])} |")
    return "\n".join([*lines, *_shares(known, by_name)]) + "\n"


def _shares(known: Sequence[Entry], by_name: Mapping[str, Entry]) -> list[str]:
    """Return the lines on runs with a share of the gradients: validation scores, as those of the baselines beside."""
    told_of = [(entry, share, runs) for entry in known for share, runs in sorted(entry.shares.items())]
    if not told_of:
        return []
    ends = [
        f"{name} {told([loss_of(run, 'val') for run in by_name[name].runs])}" for name in TARGETS if name in by_name
    ]
    lines = ["", f"Validation score with a share of the gradients, beside {', '.join(ends)} with all:", ""]
    for entry, share, runs in told_of:
        values = [loss_of(run, "val") for run in runs]
        lines.append(f"- {entry.name}, {share:.0%}: {told(values)}")
    return lines


def baselines(known: Sequence[Entry]) -> dict[str, Sequence[Result]]:
    """Return the runs of the baselines by name: of each its best row, whose companion may have a rate of its own."""
    found: dict[str, Sequence[Result]] = {}
    for target in TARGETS:
        own = [entry for entry in known if entry.name.split(",")[0] == target]
        if own:
            best = min(own, key=lambda entry: final(entry.runs))
            found[best.name] = best.runs
    return found


def picture(known: Sequence[Entry], title: str, path: Path) -> None:
    """Draw validation score against gradients and against seconds, and gradients to the baselines' scores as bars.

    Args:
        known: Rows, best first; at most ten are drawn, the baselines among them.
        title: What stands above.
        path: The PNG file.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    targets = baselines(known)
    beside = [entry for entry in known if entry.name not in targets][: COLORS - len(targets)]
    shown = [entry for entry in known if entry.name in targets or entry in beside]
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 5), layout="constrained")
    for place, entry in enumerate(shown):
        _band(axes[0], entry, lambda point, run: point["evaluations"], f"C{place}")
        _band(axes[1], entry, _seconds, f"C{place}")
    _bars(axes[2], shown, targets)
    low, high = _limits(shown)
    for axis, label in zip(axes, ("gradient evaluations", "seconds (of the processor where known)"), strict=False):
        axis.set(xlabel=label, ylabel="validation score", ylim=(low, high))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _seconds(point: Result, run: Result) -> float:
    """Return the time of a point; a run that has only its whole time took it evenly."""
    return point.get("seconds", run["seconds"] * point["evaluations"] / run["evaluations"])


def _limits(shown: Sequence[Entry]) -> tuple[float, float]:
    """Return limits that show the ends of the curves, not their beginnings."""
    ends = [final(entry.runs) for entry in shown]
    reach = max(max(ends) - min(ends), 0.02 * min(ends))
    return min(ends) - 0.2 * reach, max(ends) + 1.5 * reach


def _band(axis: Any, entry: Entry, place: Callable[[Result, Result], float], color: str) -> None:
    columns = list(zip(*([(point, run) for point in run["curve"]] for run in entry.runs), strict=False))
    places = [statistics.mean(place(point, run) for point, run in column) for column in columns]
    values = [[point["val"] for point, _ in column] for column in columns]
    axis.plot(places, list(map(statistics.mean, values)), color=color, label=f"{entry.name} ({len(entry.runs)})")
    axis.fill_between(places, list(map(min, values)), list(map(max, values)), color=color, alpha=0.15)


def _bars(axis: Any, shown: Sequence[Entry], baselines: Mapping[str, Sequence[Result]]) -> None:
    height = 0.8 / max(1, len(baselines))
    for place, (name, baseline) in enumerate(baselines.items()):
        color = f"{0.35 + 0.35 * place}"
        for row, entry in enumerate(shown):
            _bar(axis, gradients(entry.runs, baseline), row + place * height, height, color)
        axis.barh(0, 0, color=color, label=f"to {name}'s score")
    middle = 0.4 - height / 2
    axis.set_yticks([row + middle for row in range(len(shown))], [entry.name for entry in shown], fontsize=8)
    axis.set_ylim(len(shown) - 0.2, -0.6)
    axis.set(xlabel="share of the gradients (lines: 90 %)", xlim=(0, 1.05))
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _bar(axis: Any, need: Gradients, y: float, height: float, color: str) -> None:
    if math.isinf(need.share):
        axis.text(0.01, y, "not reached", va="center", fontsize=7)
        return
    axis.barh(y, need.share, height, color=color)
    axis.plot([need.low, min(need.high, 1.0)], [y, y], color="black", lw=1)


def write(journal: Journal, published: Mapping[str, str]) -> str:
    """Write table and pictures beside the runs, and return the table."""
    if not entries(journal):
        return "No row has a reported seed yet.\n"
    page = table(journal, published)
    journal.path.with_suffix(".md").write_text(page)
    repeated = [entry for entry in entries(journal) if "published" not in entry.name]
    picture(repeated, journal.of("header")[-1]["summary"], journal.path.with_suffix(".png"))
    return page
