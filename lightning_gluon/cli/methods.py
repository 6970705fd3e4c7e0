"""The command `lightning-gluon methods`: the table of methods, or one of them with its options."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from lightning_gluon.cli.arguments import Arguments
from lightning_gluon.cli.errors import one_line_errors
from lightning_gluon.cli.tables import detail, overview
from lightning_gluon.step.checks import find_method

__all__ = ["print_methods"]

# Columns of a file or a pipe, which have no width of their own.
FILE_WIDTH = 180


def print_methods(arguments: Sequence[str]) -> None:
    """Print the method table, or the rules and options of one method.

    Args:
        arguments: Command-line arguments, the command first: then the name of a method, or nothing.

    Raises:
        SystemExit: If the arguments are wrong, or there is no such method.
    """
    parser = Arguments("lightning-gluon methods", description="Print the table of methods.")
    parser.add_argument("name", nargs="?", help="print the rules and options of this method")
    name = parser.parse_args(list(arguments[1:])).name
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    if name is None:
        console.print(overview(console.width))
        return
    with one_line_errors():
        console.print(detail(name, find_method(name)))
