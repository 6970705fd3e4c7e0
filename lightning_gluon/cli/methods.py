"""The command `lightning-gluon methods`: the table of methods, or one of them with its options."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from lightning_gluon.cli.arguments import Arguments, print_json
from lightning_gluon.cli.errors import one_line_errors
from lightning_gluon.cli.tables import detail, overview
from lightning_gluon.methods import METHODS, Method
from lightning_gluon.step.checks import find_method

__all__ = ["methods_parser", "print_methods"]

# Columns of a file or a pipe, which have no width of their own.
FILE_WIDTH = 180


def print_methods(arguments: Sequence[str]) -> None:
    """Print the method table, or the rules and options of one method.

    Args:
        arguments: Command-line arguments, the command first: then the name of a method, or nothing.

    Raises:
        SystemExit: If the arguments are wrong, or there is no such method.
    """
    given = methods_parser().parse_args(list(arguments[1:]))
    with one_line_errors():
        shown = dict(METHODS)
        if given.name is not None:
            shown = {given.name: find_method(given.name)}
        if given.json:
            print_json([_plain_method(name, row) for name, row in shown.items()])
        else:
            _print_tables(shown, one=given.name)


def methods_parser() -> Arguments:
    """Return the parser of the command."""
    parser = Arguments("lightning-gluon methods", description="Print the table of methods.")
    parser.add_argument("name", nargs="?", help="print the rules and options of this method")
    parser.add_json()
    return parser


def _print_tables(shown: dict[str, Method], *, one: str | None) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    if one is None:
        console.print(overview(console.width))
    else:
        console.print(detail(one, shown[one]))


def _plain_method(name: str, row: Method) -> dict[str, object]:
    """Return a method as plain values."""
    rules = {}
    for role, rule in row.rules.items():
        rules[role] = {**vars(rule), "options": dict(rule.options)}
    return {**vars(row), "name": name, "rules": rules}
