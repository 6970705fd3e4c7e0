"""Rows of the tables from outside the package: one check for all tables, and entry points.

A package that adds rows names its own function under the entry-point group `lightning_gluon`. The function calls
`lightning_gluon.register_norm` and its like. It runs once, before a method is first looked up.
"""

from __future__ import annotations

import functools
from collections.abc import MutableMapping
from importlib.metadata import entry_points
from typing import TypeVar

Row = TypeVar("Row")
ENTRY_POINTS = "lightning_gluon"


def add_row(table: MutableMapping[str, Row], what: str, name: str, row: Row) -> None:
    """Add a row under a name that is free.

    Args:
        table: Rows by name.
        what: What a row is, for the error.
        name: The new name: lower-case letters, digits, `-` and `_`.
        row: The row.

    Raises:
        ValueError: If the name is taken or is no name.

    Example:
        >>> table = {"a": 1}
        >>> add_row(table, "number", "b", 2)
        >>> sorted(table)
        ['a', 'b']
    """
    plain = isinstance(name, str) and name.replace("-", "_").isidentifier() and name == name.lower()
    if not plain:
        raise ValueError(f"Expected the name of a {what} to be lower-case letters, digits, - and _, but got {name!r}.")
    if name in table:
        raise ValueError(f"There is a {what} called {name!r} already. Choose another name.")
    table[name] = row


@functools.cache
def load_plugins() -> None:
    """Run the functions that installed packages name as entry points, once per process."""
    for plugin in entry_points(group=ENTRY_POINTS):
        plugin.load()()
