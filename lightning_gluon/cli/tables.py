"""Tables of methods for a terminal of any width."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table

from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.methods import METHODS, Method, Rule
from lightning_gluon.roles import ROLES

__all__ = ["detail", "overview"]

WIDE = 160  # columns of a terminal from which every column is shown
MEDIUM = 80  # columns above which the summary has a column of its own


@dataclass(frozen=True)
class Column:
    """One column of the overview.

    Args:
        title: Its heading.
        width: Columns of the terminal from which it is shown.
        wraps: Columns of the widest terminal in which its text may go on in the next line.
    """

    title: str
    width: int = 0
    wraps: float = 0


COLUMNS = (
    Column("method", wraps=MEDIUM),
    Column("hidden", width=WIDE),
    Column("others", width=WIDE, wraps=math.inf),
    Column("gradients"),
    Column("momentum"),
    Column("decay"),
    Column("what it is", width=MEDIUM + 1, wraps=math.inf),
    Column("source", width=WIDE, wraps=math.inf),
)


def overview(width: int) -> Table:
    """Return the table of methods.

    Args:
        width: Columns of the terminal. A narrow table leaves out what `methods NAME` shows too.

    Returns:
        The table, one row per method.

    Example:
        >>> [column.header for column in overview(80).columns]
        ['method', 'gradients', 'momentum', 'decay']
    """
    shown = [column for column in COLUMNS if column.width <= width]
    table = Table(title="method = norm x estimator x radius, per role (`lightning-gluon methods NAME` for one)")
    for column in shown:
        table.add_column(column.title, no_wrap=width > column.wraps)
    for name, row in METHODS.items():
        cells = _cells(name, row, summary_below=width <= MEDIUM)
        table.add_row(*[cells[column.title] for column in shown])
    return table


def _cells(name: str, row: Method, *, summary_below: bool) -> dict[str, RenderableType]:
    """Return the cells of one method by column; a narrow table has the summary below the name."""
    others = [_short(rule) for role, rule in row.rules.items() if role != "hidden"]
    gradients = max(map(_gradients, row.rules.values()))
    return {
        "method": Group(name, Padding(row.summary, (0, 0, 0, 2))) if summary_below else name,
        "hidden": _short(row.rules["hidden"]),
        "others": ", ".join(dict.fromkeys(others)),
        "gradients": str(gradients),
        "momentum": f"{row.momentum:g}",
        "decay": f"{row.weight_decay:g}",
        "what it is": row.summary,
        "source": row.source,
    }


def _gradients(rule: Rule) -> int:
    estimator = ESTIMATORS[rule.estimator]
    return estimator.gradients({**estimator.options, **rule.options})


def _short(rule: Rule) -> str:
    return rule.estimator if rule.norm == "identity" else f"{rule.norm} {rule.estimator}"


def detail(name: str, row: Method) -> Table:
    """Return the rules of one method, role by role, with the options of its estimators.

    Args:
        name: The method.
        row: Its row of `METHODS`.

    Returns:
        The table.

    Example:
        >>> detail("muon", METHODS["muon"]).row_count
        6
    """
    table = Table(title=f"{name}: {row.summary} ({row.source})", caption_justify="left", pad_edge=False)
    for column in ("role", "norm", "scaling", "estimator", "radius"):
        table.add_column(column, no_wrap=column in ("role", "norm"))
    options: dict[str, dict[str, Any]] = {}
    for role in ROLES:
        rule = row.rules[role]
        table.add_row(role, rule.norm, rule.scaling or "", rule.estimator, f"{rule.radius:g}")
        options[rule.estimator] = {**ESTIMATORS[rule.estimator].options, **rule.options}
    lines = [f"momentum={row.momentum:g}, weight_decay={row.weight_decay:g}"]
    lines += [f"options of {estimator}: {_listed(values)}" for estimator, values in options.items()]
    table.caption = "\n".join(lines)
    return table


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{option}={value}" for option, value in options.items()) or "none"
