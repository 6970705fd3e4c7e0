"""The table of a partition: repeated blocks in one line, totals per role."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lightning_gluon.partition.route import BLOCK_INDEX, Route
from lightning_gluon.roles import ROLES

__all__ = ["render", "to_text"]

_SHOWN_NUMBERS = 4
_SHOWN_MATRICES = 5
_SHOWN_ALIASES = 3
_LONG = 10_000  # columns on which every table fits
_LEAST_REASON = 24  # columns in which a reason is still read with ease


@dataclass(frozen=True)
class _Line:
    """One line: a parameter, several alike, or a total."""

    name: str
    count: int
    shape: str
    role: Text
    norm: str = ""
    matrices: str = ""
    reason: str = ""

    def add_wide(self, table: Table) -> None:
        """Add the line with a column for everything."""
        table.add_row(
            Text(self.name),
            str(self.count),
            self.shape,
            self.role,
            self.norm,
            self.matrices,
            Text(self.reason),
        )

    def add_narrow(self, table: Table) -> None:
        """Add the line with the reason under the name, the norm under the role and the matrices under the shape."""
        name: list[Text | Padding] = [Text(self.name)]
        if self.reason:
            indented = Padding(Text(self.reason), (0, 0, 0, 2))
            name.append(indented)
        role = Group(self.role, self.norm) if self.norm else self.role
        shape = f"{self.shape}\n{self.matrices}".rstrip()
        table.add_row(Group(*name), str(self.count), role, shape)

    def entry(self) -> Group:
        """Return the line as the name alone, and everything else indented below it."""
        name = Text(self.name, no_wrap=True, overflow="ignore")
        facts = [f"{self.count} x {self.role.plain}", self.norm, self.shape]
        if self.matrices not in ("", self.shape):
            facts.append(f"as {self.matrices}")
        facts.append(self.reason)
        told = filter(None, facts)
        below = Text(", ".join(told))
        return Group(name, Padding(below, (0, 0, 0, 2), expand=False))


def render(routes: list[Route], width: int) -> RenderableType:
    """Build the table of a list of routes in the widest layout that breaks no name.

    Args:
        routes: The routes in the module's order.
        width: Columns of the terminal.

    Returns:
        A rich table with one line per parameter, repeated blocks merged, and totals per role below. Where the names
        alone fill the terminal it is a list.
    """
    groups = _collapse(routes)
    lines = [_line(group) for group in groups]
    totals = list(_totals(routes))
    longest = _widest(line.name for line in (*lines, *totals))
    for layout in _LAYOUTS:
        table = layout.table(lines, totals, longest)
        spare = width - _least_width(table)
        if spare >= 0:
            name = table.columns[0]
            name.width = longest + min(spare, layout.spare(lines, longest))
            return table
    entries = [line.entry() for line in (*lines, *totals)]
    return Group(*entries)


def _widest(texts: Iterable[str]) -> int:
    lengths = [len(row) for text in texts for row in text.splitlines()]
    return max(lengths, default=0)


def _least_width(table: Table) -> int:
    """Return the columns of a terminal on which a table breaks no word."""
    console = Console(width=_LONG)
    return Measurement.get(console, console.options, table).minimum


def to_text(table: RenderableType, width: int) -> str:
    """Return a rich table as plain text of a given width; a name that is longer still is not cut."""
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=width,
        force_jupyter=False,  # in a notebook rich would show the table instead of writing it
        no_color=True,
        highlight=False,
    )
    console.print(table, crop=False)
    return buffer.getvalue()


# ---- layouts


@dataclass(frozen=True)
class _TableLayout:
    """A way to lay the table out.

    Args:
        columns: Adds the columns behind the name's.
        add: Adds a line.
        name: Heading of the first column.
        below: Whether the reason stands below the name.
    """

    columns: Callable[[Table], None]
    add: Callable[[_Line, Table], None]
    name: str
    below: bool

    def table(self, lines: list[_Line], totals: list[_Line], longest: int) -> Table:
        """Return the table, with the name as wide as the longest one."""
        table = Table(
            title="Partition",
            title_justify="left",
            header_style="bold",
            pad_edge=False,
        )
        table.add_column(self.name, overflow="fold", width=longest)
        self.columns(table)
        for line in lines:
            self.add(line, table)
        table.add_section()
        for line in totals:
            self.add(line, table)
        return table

    def spare(self, lines: list[_Line], longest: int) -> int:
        """Return by how much a wider first column would still help."""
        if not self.below:
            return 0
        return max(0, _widest(line.reason for line in lines) + 2 - longest)


def _narrow_columns(table: Table) -> None:
    table.add_column("n", justify="right", overflow="fold")
    table.add_column("role\nnorm", overflow="fold")
    table.add_column("shape\nmatrices", overflow="fold")


def _wide_columns(table: Table) -> None:
    table.add_column("n", justify="right")
    table.add_column("shape")
    table.add_column("role")
    table.add_column("norm")
    table.add_column("matrices", overflow="fold")
    table.add_column("reason", overflow="fold", min_width=_LEAST_REASON)


_LAYOUTS = (
    _TableLayout(_wide_columns, _Line.add_wide, "name", below=False),
    _TableLayout(_narrow_columns, _Line.add_narrow, "name\n  reason", below=True),
)


# ---- lines


def _line_key(route: Route) -> tuple[object, ...]:
    """Return the key that two lines must share to become one: the name up to its numbers, and everything else shown."""
    return (
        BLOCK_INDEX.sub("#", route.name),
        len(route.aliases),
        route.shape,
        route.role,
        route.norm,
        tuple(route.matrices),
        route.frozen,
    )


def _collapse(routes: list[Route]) -> list[list[Route]]:
    """Group the routes that one line can show, in the order of their first member."""
    groups: dict[tuple[object, ...], list[Route]] = {}
    for route in routes:
        key = _line_key(route)
        groups.setdefault(key, []).append(route)
    return list(groups.values())


def _line(group: list[Route]) -> _Line:
    """Write the line of several routes that are alike."""
    route = group[0]
    name = _merged_name(group)
    for alias in route.aliases[:_SHOWN_ALIASES]:
        name += f"\n= {alias}"
    role = Text(route.role, ROLES[route.role].style)
    if route.frozen:
        role = Text(f"({route.role}, frozen)", "dim")
    return _Line(
        name=name,
        count=len(group),
        shape="x".join(map(str, route.shape)) or "scalar",
        role=role,
        norm=route.norm,
        matrices=_matrices(route),
        reason=route.reason,
    )


def _totals(routes: list[Route]) -> Iterable[_Line]:
    """Yield the totals of every role that occurs, of all trained parameters, and of the frozen ones."""
    live = [route for route in routes if not route.frozen]
    frozen = [route for route in routes if route.frozen]
    for role in ROLES:
        members = [route for route in live if route.role == role]
        if members:
            yield _total(role, members, Text(role))
    yield _total("all", live, Text(""))
    if frozen:
        yield _total("frozen", frozen, Text(""))


def _total(label: str, members: list[Route], role: Text) -> _Line:
    entries = sum(route.numel for route in members)
    return _Line(f"total {label}", len(members), f"{entries:,}", role)


# ---- cells


def _ranges(numbers: Iterable[int]) -> str:
    """Write numbers as ranges: `0-11`, `0,2,4`."""
    ordered = sorted(set(numbers))
    first, last = ordered[0], ordered[-1]
    if len(ordered) > 2 and len(ordered) == last - first + 1:
        return f"{first}-{last}"
    shown = ",".join(map(str, ordered[:_SHOWN_NUMBERS]))
    if len(ordered) > _SHOWN_NUMBERS:
        return f"{shown},..{last}"
    return shown


def _merged_name(routes: list[Route]) -> str:
    """Return one name for several: every number that varies becomes a range."""
    between = BLOCK_INDEX.split(routes[0].name)
    columns: list[list[int]] = [[] for _ in between[1:]]
    for route in routes:
        for column, number in zip(columns, BLOCK_INDEX.findall(route.name), strict=True):
            column.append(int(number))
    name = between[0]
    for column, text in zip(columns, between[1:], strict=True):
        name += _ranges(column) + text
    return name


def _matrices(route: Route) -> str:
    """Write the matrices short: `3x384x384`."""
    runs = [(shape, len(list(same))) for shape, same in groupby(route.matrices)]
    texts = []
    for (out, fan_in), count in runs[:_SHOWN_MATRICES]:
        several = f"{count}x" if count > 1 else ""
        texts.append(f"{several}{out}x{fan_in}")
    if len(runs) > _SHOWN_MATRICES:
        texts.append("...")
    return " + ".join(texts)
