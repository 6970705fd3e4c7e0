"""The command `lightning-gluon plot`: the pictures of a monitored run."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from lightning_gluon.cli.arguments import Arguments
from lightning_gluon.cli.errors import one_line_errors
from lightning_gluon.smoothness import plots

__all__ = ["plot", "plot_parser"]


def plot(arguments: Sequence[str]) -> None:
    """Draw estimate against fit, L1 by depth, and radii over time.

    Args:
        arguments: Command-line arguments, the command first: a run, then options.

    Raises:
        SystemExit: If the arguments are wrong, or the run holds no samples.
    """
    given = plot_parser().parse_args(list(arguments[1:]))
    with one_line_errors():
        _draw_run(given)


def plot_parser() -> Arguments:
    """Return the parser of the command."""
    parser = Arguments("lightning-gluon plot", description="Draw the pictures of a run with a SmoothnessMonitor.")
    parser.add_argument("run", type=Path, help="folder of a run, or its smoothness.jsonl")
    parser.add_argument("--out", type=Path, help="folder for the PNG files; default: the run's")
    parser.add_argument("--tensorboard", action="store_true", help="add them to TensorBoard, in the same folder")
    return parser


def _draw_run(given: Namespace) -> None:
    samples = plots.read_samples(given.run)
    figures = plots.smoothness_figures(samples)
    run = given.run if given.run.is_dir() else given.run.parent
    folder = given.out or run
    for path in plots.save(figures, folder):
        print(path)
    if given.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder)) as writer:
            plots.to_tensorboard(figures, writer, samples[-1]["step"])
