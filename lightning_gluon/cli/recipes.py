"""Recipes that come with the package: YAML by name, and the command `lightning-gluon recipes`."""

from __future__ import annotations

import difflib
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_gluon.cli.arguments import Arguments, print_json
from lightning_gluon.cli.config_files import config_positions
from lightning_gluon.cli.errors import one_line_errors

__all__ = ["find_recipe", "print_recipes", "recipe_names", "recipes_parser", "resolve"]

SUFFIX = ".yaml"
PACKAGE = Path(__file__).parents[1]


def recipe_folder() -> Path:
    """Return the folder of the recipes: inside the installed package, in a checkout beside it."""
    installed = PACKAGE / "recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of all recipes, such as `vit/tiny`.

    Example:
        >>> "vit/tiny" in recipe_names()
        True
    """
    folder = recipe_folder()
    files = sorted(folder.glob(f"*/*{SUFFIX}"))
    return [file.relative_to(folder).with_suffix("").as_posix() for file in files]


def find_recipe(name: str) -> Path | None:
    """Return the file of a recipe, or None if there is none of that name.

    Args:
        name: Its name; `recipes/` before it and `.yaml` behind it may stay.

    Returns:
        The file.

    Example:
        >>> find_recipe("vit/tiny") == find_recipe("recipes/vit/tiny.yaml") != None
        True
    """
    short = name.removeprefix("recipes/").removesuffix(SUFFIX)
    if short not in recipe_names():
        return None
    return recipe_folder() / f"{short}{SUFFIX}"


def resolve(arguments: Sequence[str]) -> list[str]:
    """Put the files of recipes in place of their names. A file on disk comes before a recipe.

    Args:
        arguments: Arguments of the command line, with `-c NAME` or `--config=NAME`.

    Returns:
        The arguments.

    Raises:
        ValueError: If a name is like that of a recipe, but there is neither a recipe nor a file.

    Example:
        >>> [Path(part).name for part in resolve(["-c", "vit/tiny"])]
        ['-c', 'tiny.yaml']
    """
    resolved = list(arguments)
    for position, prefix, name in config_positions(arguments):
        if not name or _is_on_disk(name):
            continue
        found = find_recipe(name)
        if found is None:
            _check_name(name)
        else:
            resolved[position] = f"{prefix}{found}"
    return resolved


def _is_on_disk(name: str) -> bool:
    try:
        return Path(name).exists() and not Path(name).is_dir()
    except (OSError, ValueError):  # YAML in place of a file
        return True


def _check_name(name: str) -> None:
    """Raise for a name that is almost that of a recipe."""
    if Path(name).suffix:
        return
    for near in difflib.get_close_matches(name, recipe_names(), n=1):
        raise ValueError(f"Expected `--config` to be a file or a recipe, but got {name!r}. Did you mean {near!r}?")


def print_recipes(arguments: Sequence[str]) -> None:
    """List the recipes, print one, or copy one into a folder to edit it there.

    Args:
        arguments: Command-line arguments, the command first: `list`, `show NAME`, or `copy NAME DIR`.

    Raises:
        SystemExit: If the arguments are wrong, or there is no such recipe.
    """
    given = recipes_parser().parse_args(list(arguments[1:]))
    options = {name: value for name, value in vars(given).items() if name not in ("command", "run")}
    with one_line_errors():
        given.run(**options)


def recipes_parser() -> Arguments:
    """Return the parser of the command."""
    parser = Arguments("lightning-gluon recipes", description="List, show or copy the recipes of this package.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | show NAME | copy NAME DIR")
    listed = commands.add_parser("list", help="print every recipe with its first line")
    listed.add_json()
    listed.set_defaults(run=_list)
    show = commands.add_parser("show", help="print the YAML of a recipe")
    copy = commands.add_parser("copy", help="copy a recipe, or all of one folder, to edit it")
    for command in (show, copy):
        command.add_argument("name", help="such as vit/tiny")
    copy.add_argument("folder", help="folder to copy into")
    show.set_defaults(run=_show)
    copy.set_defaults(run=_copy_recipe)
    return parser


def _list(json: bool) -> None:
    if json:
        print_json([{"recipe": name, "what it is": text} for name, text in _first_lines()])
        return
    table = Table("recipe", "what it is", box=None, pad_edge=False)
    for name, text in _first_lines():
        table.add_row(name, text)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


def _first_lines() -> Iterator[tuple[str, str]]:
    """Yield every recipe with the first line of its file."""
    folder = recipe_folder()
    for name in recipe_names():
        first, *_ = (folder / f"{name}{SUFFIX}").read_text(encoding="utf-8").splitlines()
        yield name, first.lstrip("# ")


def _show(name: str) -> None:
    sys.stdout.write(_existing(name).read_text(encoding="utf-8"))


def _copy_recipe(name: str, folder: str) -> None:
    """Copy a recipe, or those of a folder of them, and name the copies."""
    group = [other for other in recipe_names() if other.startswith(f"{name}/")]
    copies = {}
    for one in group or [name]:
        source = _existing(one)
        target = Path(folder) / source.relative_to(recipe_folder())
        if target.exists():
            raise FileExistsError(f"Expected a folder without '{target}', but it exists. Remove it or choose another.")
        copies[source] = target
    for source, target in copies.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        print(target)


def _existing(name: str) -> Path:
    found = find_recipe(name)
    if found is not None:
        return found
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else " `lightning-gluon recipes list` prints them."
    raise ValueError(f"Expected the name of a recipe, but got {name!r}.{hint}")
