"""The tables of all libraries as one: patterns over names, sets of classes and rows of known families."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from lightning_gluon.partition.known import peft, timm, torch, transformers

__all__ = ["names_match", "pattern", "table_entries"]

# Rows of one library come before those of torch, which every model shares.
_LIBRARIES = (peft, timm, transformers, torch)


@cache
def table_entries(table: str) -> tuple[Any, ...]:
    """Return the entries of a table over all libraries, in the order in which they are tried."""
    return tuple(entry for library in _LIBRARIES for entry in getattr(library, table, ()))


@cache
def pattern(table: str) -> re.Pattern[str]:
    """Return one pattern for all patterns of a table; upper and lower case are alike if the table says so."""
    return re.compile("|".join(f"(?:{entry})" for entry in table_entries(table)))


def names_match(
    table: str,
    name: str,
) -> bool:
    """Tell whether a name as a whole is in a table of patterns."""
    return pattern(table).fullmatch(name) is not None


def matching(
    table: str,
    names: Iterable[str],
) -> list[str]:
    """Return those of several names that are in a table of patterns."""
    return [name for name in names if names_match(table, name)]
