"""The command `lightning-gluon compare`: the summaries of several runs side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_gluon.cli.arguments import Arguments, print_json
from lightning_gluon.cli.errors import one_line_errors
from lightning_gluon.cli.methods import FILE_WIDTH
from lightning_gluon.cli.summary import FILE, RunFacts

__all__ = ["compare", "compare_parser"]

RUN_COLUMNS = ("run", "method", "lr", "metric", "value", "steps", "gradients", "seconds", "state, bytes")


def compare(arguments: Sequence[str]) -> None:
    """Print what `fit` wrote of several runs, one line each.

    Args:
        arguments: Command-line arguments, the command first: folders of runs, or folders above them.

    Raises:
        SystemExit: If the arguments are wrong, or a folder holds no run.
    """
    given = compare_parser().parse_args(list(arguments[1:]))
    with one_line_errors():
        runs = {}
        for folder in given.runs:
            for file in _summaries(folder):
                runs[file.parent.as_posix()] = _read_facts(file)
        if given.json:
            print_json([{"run": run, **asdict(facts)} for run, facts in runs.items()])
        else:
            _print_runs(runs)


def compare_parser() -> Arguments:
    """Return the parser of the command."""
    parser = Arguments("lightning-gluon compare", description="Compare runs by the summaries that `fit` has written.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or folders above them")
    parser.add_json()
    return parser


def _summaries(folder: Path) -> Iterator[Path]:
    """Yield the summaries in and below a folder."""
    found = sorted(folder.rglob(FILE))
    if not found:
        raise FileNotFoundError(
            f"Expected '{folder}' to hold runs of `lightning-gluon fit`, but there is no '{FILE}' in it. It is written "
            "when a fit with a logger ends."
        )
    yield from found


def _read_facts(file: Path) -> RunFacts:
    try:
        return RunFacts(**json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected '{file}' to be a summary of `lightning-gluon fit`, but it is not one.") from error


def _print_runs(runs: dict[str, RunFacts]) -> None:
    table = Table(*RUN_COLUMNS, pad_edge=False)
    for run, facts in runs.items():
        table.add_row(run, *_cells_of_run(facts))
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    console.print(table)
    evaluations = {facts.gradient_evaluations for facts in runs.values()}
    if len(evaluations) > 1:
        console.print("The runs took different numbers of gradients: a longer one is ahead for that alone.")
    if len({facts.metric for facts in runs.values()}) > 1:
        console.print("The runs report different metrics.")


def _cells_of_run(facts: RunFacts) -> Iterator[str]:
    yield facts.method or ""
    yield _figure_text(facts.lr)
    yield facts.metric or ""
    yield _figure_text(facts.value)
    yield f"{facts.steps:,}"
    yield _figure_text(facts.gradient_evaluations)
    yield f"{facts.seconds:.1f}"
    yield _figure_text(facts.state_bytes)


def _figure_text(value: float | str | None) -> str:
    """Write a number; words stay, and None is nothing."""
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value
