"""How many gradients does a row need to the loss that tuned AdamW ends at, and to that of tuned Muon?

    python -m benchmarks.steps_to_loss [FILE ...]

Reads what was run already: files of `benchmarks.compare`, `benchmarks.estimators` and `benchmarks.anchors`. A row
stands at the rate that its own task chose on seed 0. It has the reported seeds where there are some, else seed 0
itself, and the table says how many. What "gradients to a loss" and its interval are: `benchmarks.anchors.report`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.anchors.report import Entry, Result, baselines, entries, final, gradients, picture
from benchmarks.estimators import best, loss_of, setting_of
from benchmarks.journal import Journal

RESULTS = Path(__file__).parent / "results"
FILES = ("compare_cifar10", "estimators_cifar10", "estimators_wikitext", "estimators_text", "anchor_california")
FILES += ("anchor_shakespeare",)


def converted(run: Result) -> Result:
    """Return a run of `compare` or `estimators` with the keys of an anchor's."""
    points = [{**point, "val": point["val/loss"]} for point in run["curve"]]
    return {**run, "val": loss_of(run, "val/loss"), "curve": points}


def compared(journal: Journal) -> list[Entry]:
    """Return the methods of a comparison at their chosen rates."""
    found = []
    for summary in journal.latest("summary", "method"):
        companions = summary["companion sweep"]
        chosen = (summary["method"], summary["sweep"][0], companions[0] if companions else None)
        own = [run for run in journal.of("run") if (run["method"], run["lr"], run["companion"]) == chosen]
        runs = [converted(run) for run in own if run["seed"] != 0 and run["failure"] is None]
        found.append(Entry(summary["method"], [], runs, {}))
    return found


def estimated(journal: Journal) -> list[Entry]:
    """Return the rows of a sweep of estimators, each at the best setting of seed 0."""
    whole = [run for run in journal.of("run") if run["share"] == 1 and run["failure"] is None]
    found = []
    for name in dict.fromkeys(run["row"] for run in whole):
        swept = {setting_of(run): run for run in whole if run["row"] == name and run["seed"] == 0}
        if not swept:
            continue
        setting = best({key: loss_of(run, "val/loss") for key, run in swept.items()})
        chosen = [run for run in whole if run["row"] == name and setting_of(run) == setting]
        reported = [run for run in chosen if run["seed"] != 0]
        found.append(Entry(name, [], [converted(run) for run in reported or chosen], {}))
    return found


READERS: dict[str, Callable[[Journal], list[Entry]]] = {"compare": compared, "estimators": estimated, "anchor": entries}


def rows(path: Path) -> list[Entry]:
    """Return the rows of a file, best first."""
    reader = READERS[path.stem.split("_")[0]]
    return sorted(reader(Journal(path)), key=lambda entry: final(entry.runs))


def table(known: list[Entry]) -> str:
    """Return the rows of one task as Markdown; the best of several rows of Muon is the one to reach."""
    targets = baselines(known)
    titles = ["row", "seeds", "validation loss", *(f"gradients to {name}'s" for name in targets)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for entry in known:
        needs = [str(gradients(entry.runs, target)) for target in targets.values()]
        lines.append(f"| {' | '.join([entry.name, str(len(entry.runs)), f'{final(entry.runs):.3f}', *needs])} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Print the tables, and draw the pictures beside the files of `compare` and `estimators`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=[RESULTS / f"{name}.jsonl" for name in FILES])
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the pictures")
    given = parser.parse_args(argv)
    for path in given.files:
        known = rows(path) if path.exists() else []
        if not known:
            print(f"{path.stem}: no row is there yet.\n")
            continue
        print(f"{path.stem}\n\n{table(known)}")
        header = Journal(path).find("header") or {"summary": path.stem}
        several = [entry for entry in known if len(entry.runs) > 1]
        picture(several or known, header["summary"], given.folder / f"steps_{path.stem}.png")


if __name__ == "__main__":
    main()
