"""The table of a partition: repeated blocks in one line, totals per role."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lightning_gluon.partition.route import Route
from lightning_gluon.roles import ROLES

__all__ = ["NUMBER", "render", "to_text"]

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def _key(route: Route) -> tuple[object, ...]:
    """Return what two lines must share to become one: the name up to its numbers, and everything else shown."""
    views = tuple(route.matrices)
    return (NUMBER.sub("#", route.name), len(route.aliases), route.shape, route.role, route.norm, views, route.frozen)


def _ranges(numbers: Iterable[int]) -> str:
    """Write numbers as ranges: `0-11`, `0,2,4`."""
    ordered = sorted(set(numbers))
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]}-{ordered[-1]}"
    shown = ",".join(map(str, ordered[:4]))
    return shown if len(ordered) <= 4 else f"{shown},..{ordered[-1]}"


def _merged_name(routes: list[Route]) -> str:
    """Return one name for several: every number that varies becomes a range."""
    pattern = NUMBER.split(routes[0].name)
    numbers = zip(*([int(n) for n in NUMBER.findall(route.name)] for route in routes), strict=True)
    name = pattern[0]
    for column, rest in zip(numbers, pattern[1:], strict=True):
        name += _ranges(column) + rest
    return name


def _matrices(route: Route) -> str:
    """Write the matrices short: `3x(384, 384)`."""
    runs: list[tuple[tuple[int, int], int]] = []
    for shape in route.matrices:
        if runs and runs[-1][0] == shape:
            runs[-1] = (shape, runs[-1][1] + 1)
        else:
            runs.append((shape, 1))
    text = [f"{count}x{out}x{fan_in}" if count > 1 else f"{out}x{fan_in}" for (out, fan_in), count in runs]
    return " + ".join(text[:5]) + (" + ..." if len(text) > 5 else "")


def _collapse(routes: list[Route]) -> list[list[Route]]:
    """Group the routes that one line can show, in the order of their first member."""
    groups: dict[tuple[object, ...], list[Route]] = {}
    for route in routes:
        groups.setdefault(_key(route), []).append(route)
    return list(groups.values())


def _totals(routes: list[Route]) -> Iterable[tuple[str, int, int]]:
    """Yield label, tensors and entries per role that occurs, of all, and of the frozen ones."""
    live = [route for route in routes if not route.frozen]
    frozen = [route for route in routes if route.frozen]
    for role in ROLES:
        members = [route for route in live if route.role == role]
        if members:
            yield role, len(members), sum(route.numel for route in members)
    yield "all", len(live), sum(route.numel for route in live)
    if frozen:
        yield "frozen", len(frozen), sum(route.numel for route in frozen)


def render(routes: list[Route], *, narrow: bool = False) -> Table:
    """Build the table of a list of routes.

    Args:
        routes: The routes in the module's order.
        narrow: Put the reason under the name, the norm under the role and the matrices under the shape.

    Returns:
        A rich table with one line per parameter, repeated blocks merged, and totals per role below.
    """
    table = Table(title="Partition", title_justify="left", header_style="bold", pad_edge=False)
    if narrow:
        for column in ("name\n  reason", "n", "role\nnorm", "shape\nmatrices"):
            table.add_column(column, justify="right" if column == "n" else "left", overflow="fold")
    else:
        for column, options in {
            "name": {"overflow": "fold", "ratio": 6}, "n": {"justify": "right"}, "shape": {}, "role": {}, "norm": {},
            "matrices": {"overflow": "fold", "ratio": 3}, "reason": {"overflow": "fold", "ratio": 5},
        }.items():  # fmt: skip
            table.add_column(column, **options)  # type: ignore[arg-type]

    def add(name: str, n: int, shape: str, role: Text, norm: str = "", matrices: str = "", reason: str = "") -> None:
        if narrow:
            both = [Text(name)] + ([Padding(Text(reason), (0, 0, 0, 2))] if reason else [])
            table.add_row(Group(*both), str(n), Group(role, norm) if norm else role, f"{shape}\n{matrices}".rstrip())
        else:
            table.add_row(Text(name), str(n), shape, role, norm, matrices, Text(reason))

    for group in _collapse(routes):
        route = group[0]
        style = "dim" if route.frozen else ROLES[route.role].style
        name = _merged_name(group) + "".join(f"\n= {alias}" for alias in route.aliases[:3])
        role = f"({route.role}, frozen)" if route.frozen else route.role
        shape = "x".join(map(str, route.shape)) or "scalar"
        add(name, len(group), shape, Text(role, style), route.norm, _matrices(route), route.reason)
    table.add_section()
    for label, tensors, entries in _totals(routes):
        add(f"total {label}", tensors, f"{entries:,}", Text(label if label in ROLES else ""))
    return table


def to_text(table: Table, width: int) -> str:
    """Return a rich table as plain text of a given width."""
    buffer = io.StringIO()
    Console(file=buffer, width=width, no_color=True, highlight=False).print(table)
    return buffer.getvalue()
