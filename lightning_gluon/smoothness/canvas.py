"""Empty figures in the style of all pictures here; matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lightning_gluon.extras import require
from lightning_gluon.roles import ROLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter

GREY = "#666666"
GRID = "#dddddd"
BESIDE_AXES = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}


def require_matplotlib() -> None:
    """Raise an `ImportError` if matplotlib is not installed: better before a training than at its end."""
    require("matplotlib.figure")


def new_figure(title: str, columns: int = 1, width: float = 6.4, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """Return a figure with a title and a row of axes.

    Args:
        title: Its title.
        columns: Number of axes.
        width: Width in inches.
        height: Height in inches.

    Returns:
        The figure and its axes.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def log_scale(axis: Axes, values: Iterable[float]) -> None:
    """Make the y axis logarithmic, with numbers written out, if there is anything above zero to show."""
    if not any(math.isfinite(value) and value > 0 for value in values):
        return
    few = (2, 0.4)  # decades below which minor ticks have labels too
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(_plain_numbers())
    axis.yaxis.set_minor_formatter(_plain_numbers(minor_thresholds=few))


def _plain_numbers(**options: Any) -> Formatter:
    """Return a formatter of logarithmic axes that writes 60 and 0.6, not 6 x 10^1 and 6e-01."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    return Plain(**options)


def colour_of(role: str) -> str:
    """Return the colour of a role, the same in all pictures; grey for one that is not known."""
    known = ROLES.get(role)
    return GREY if known is None else known.colour


def shades(count: int) -> list[Any]:
    """Return colours in an order that survives grey print."""
    from matplotlib import colormaps

    last = max(1, count - 1)
    return [colormaps["viridis"](0.85 * index / last) for index in range(count)]
