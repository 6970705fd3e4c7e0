"""The command `lightning-gluon completion`: a script that lets the shell complete commands, options and names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_gluon.cli.arguments import Arguments
from lightning_gluon.cli.compare import compare_parser
from lightning_gluon.cli.config_files import CONFIG_FLAGS
from lightning_gluon.cli.errors import one_line_errors
from lightning_gluon.cli.export import export_parser, generate_parser
from lightning_gluon.cli.methods import methods_parser
from lightning_gluon.cli.partition import partition_parser
from lightning_gluon.cli.plot import plot_parser
from lightning_gluon.cli.recipes import recipe_names, recipes_parser
from lightning_gluon.extras import require
from lightning_gluon.methods import METHODS

__all__ = ["completion", "completion_parser"]

SHELLS = ("bash", "zsh", "tcsh")
PARSERS = {
    "partition": partition_parser,
    "methods": methods_parser,
    "recipes": recipes_parser,
    "export": export_parser,
    "generate": generate_parser,
    "plot": plot_parser,
    "compare": compare_parser,
}


def completion(arguments: Sequence[str]) -> None:
    """Print the script of a shell.

    Args:
        arguments: Command-line arguments, the command first: then the name of the shell.

    Raises:
        SystemExit: If the arguments are wrong, or shtab is not installed.
    """
    given = completion_parser().parse_args(list(arguments[1:]))
    with one_line_errors():
        shtab = require("shtab")
        print(shtab.complete(_joined_parser(), shell=given.shell))


def completion_parser() -> Arguments:
    """Return the parser of the command."""
    parser = Arguments(
        "lightning-gluon completion",
        description='Print a script for the shell: `eval "$(lightning-gluon completion bash)"`.',
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def _joined_parser() -> Arguments:
    """Return one parser with all commands, their options, and the names of recipes and methods."""
    from lightning_gluon.cli.fit import ParserCLI

    whole = Arguments("lightning-gluon")
    whole.add_argument("--version", action="store_true", help="print the version")
    commands = whole.add_subparsers(dest="command")
    for name, parser in ParserCLI().parser.commands().items():  # type: ignore[attr-defined]
        command = commands.add_parser(name, help=parser.description)  # shtab leaves out what has no help
        _add_options(command, parser.options())
    for name, build in PARSERS.items():
        parent = build()
        commands.add_parser(name, parents=[parent], add_help=False, help=parent.description)
    commands.add_parser(
        "completion", parents=[completion_parser()], add_help=False, help="print a script for the shell"
    )
    return whole


def _add_options(parser: Arguments, options: Iterable[str]) -> None:
    choices = {"--optimizer.method": METHODS}
    parser.add_argument(*CONFIG_FLAGS, choices=recipe_names(), help="a recipe or a YAML file")
    for option in options:
        if option not in CONFIG_FLAGS:
            parser.add_argument(option, choices=choices.get(option))
