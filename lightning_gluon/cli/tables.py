"""Tables of methods for a terminal of any width."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table

from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.methods import METHODS, Method, Rule
from lightning_gluon.norms.table import NORMS
from lightning_gluon.roles import ROLES

__all__ = ["detail", "overview"]

WIDE = 160  # columns of a terminal from which every column is shown
MEDIUM = 80  # columns above which the summary has its own column


@dataclass(frozen=True)
class OverviewColumn:
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
    OverviewColumn("method", wraps=MEDIUM),
    OverviewColumn("hidden", width=WIDE),
    OverviewColumn("others", width=WIDE, wraps=math.inf),
    OverviewColumn("gradients"),
    OverviewColumn("momentum"),
    OverviewColumn("decay"),
    OverviewColumn("what it is", width=MEDIUM + 1, wraps=math.inf),
    OverviewColumn("source", width=WIDE, wraps=math.inf),
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
        cells = _cells(name, row)
        if width <= MEDIUM:
            indented = Padding(row.summary, (0, 0, 0, 2))
            cells["method"] = Group(name, indented)
        texts = [cells[column.title] for column in shown]
        table.add_row(*texts)
    return table


def _cells(name: str, row: Method) -> dict[str, RenderableType]:
    """Return the cells of one method by column."""
    rules = dict(row.rules)
    hidden = rules.pop("hidden")
    short = map(_rule_text, rules.values())
    others = dict.fromkeys(short)
    gradients = map(_gradient_count, row.rules.values())
    return {
        "method": name,
        "hidden": _rule_text(hidden),
        "others": ", ".join(others),
        "gradients": str(max(gradients)),
        "momentum": _number_text(row.momentum),
        "decay": _number_text(row.weight_decay),
        "what it is": row.summary,
        "source": row.source,
    }


def _number_text(value: float) -> str:
    """Write a number without trailing zeros."""
    return f"{value:g}"


def _gradient_count(rule: Rule) -> int:
    estimator = ESTIMATORS[rule.estimator]
    return estimator.gradients({**estimator.options, **rule.options})


def _rule_text(rule: Rule) -> str:
    if rule.norm == "identity":
        return rule.estimator
    return f"{rule.norm} {rule.estimator}"


def detail(name: str, row: Method) -> Table:
    """Return the rules of one method, role by role, with the options of its estimators.

    Args:
        name: The method.
        row: Its row of `METHODS`.

    Returns:
        The table.

    Example:
        >>> detail("muon", METHODS["muon"]).row_count
        8
    """
    title = f"{name}: {row.summary} ({row.source})"
    table = Table(title=title, caption_justify="left", pad_edge=False)
    for column in ("role", "norm", "scaling", "estimator", "radius"):
        table.add_column(column, overflow="fold")  # no name loses its end
    options: dict[str, dict[str, object]] = {}
    decays: dict[str, object] = {}
    for role in ROLES:
        rule = row.rules[role]
        scaling = rule.scaling or ""
        table.add_row(role, rule.norm, scaling, rule.estimator, _number_text(rule.radius))
        if rule.weight_decay is not None:
            decays[role] = rule.weight_decay
        options[rule.norm] = _row_defaults(NORMS[rule.norm].defaults(), rule)
        options[rule.estimator] = _row_defaults(ESTIMATORS[rule.estimator].options, rule)
    numbers = {
        "momentum": _number_text(row.momentum),
        "weight_decay": _number_text(row.weight_decay),
    }
    lines = [_option_list(numbers)]
    options["weight_decay"] = decays
    for part, values in options.items():
        if values:
            lines.append(f"options of {part}: {_option_list(values)}")
    table.caption = "\n".join(lines)
    return table


def _row_defaults(own: Mapping[str, object], rule: Rule) -> dict[str, object]:
    """Return the defaults of a norm or an estimator, with those that the rule sets; the scaling has a column."""
    options = {option: rule.options.get(option, value) for option, value in own.items()}
    options.pop("scaling", None)
    return options


def _option_list(options: Mapping[str, object]) -> str:
    pairs = [f"{option}={value}" for option, value in options.items()]
    return ", ".join(pairs)
