"""The picture of L1 by depth: the latest constant of every matrix, by the block it stands in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning_gluon.roles import ROLES
from lightning_gluon.smoothness.canvas import BESIDE_AXES, log_scale, new_figure, shades
from lightning_gluon.smoothness.samples import Sample, Samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Style: TypeAlias = dict[str, Any]  # of a curve, in the words of matplotlib

MARKERS = "os^Dv<>PX*"
FEWEST = 2  # constants that make a picture
MOST_NUMBERS = 24  # block numbers along the axis
ASIDE = 0.1  # of a block: zeros of different kinds stand beside one another
NAME_WIDTH = 12  # block numbers that have the width of a layer's name
FEW_NAMES = 8  # below this names lie nearly flat


@dataclass(frozen=True)
class Spot:
    """The latest constant of one matrix.

    Args:
        name: Kind of layer inside a block, or the end of the name of a layer outside blocks.
        role: Its role.
        L1: The constant.
        place: Name of the list of blocks; empty outside blocks, or if the model is one list.
        depth: Position in that list; `None` outside blocks.
    """

    name: str
    role: str
    L1: float
    place: str = ""
    depth: int | None = None


@dataclass
class Layout:
    """The spots of a picture, in the order of its axis.

    Args:
        blocks: By kind, the spots inside blocks.
        outside: The spots of layers outside blocks.
    """

    blocks: dict[str, list[Spot]] = field(default_factory=dict)
    outside: list[Spot] = field(default_factory=list)

    @property
    def deepest(self) -> int:
        """The largest depth; -1 without blocks."""
        depths = [spot.depth for spots in self.blocks.values() for spot in spots if spot.depth is not None]
        return max(depths, default=-1)

    @property
    def spots(self) -> list[Spot]:
        """All spots."""
        inside = [spot for spots in self.blocks.values() for spot in spots]
        return [*inside, *self.outside]


def depth_figure(samples: Samples) -> Figure | None:
    """Draw L1 of the latest fit of every matrix; `None` if fewer than two have one.

    A line joins neighbouring blocks. It breaks at blocks without a constant and at constants of zero, which stand as
    hollow markers on the lower edge: a logarithmic axis has no zero.

    Args:
        samples: The samples of a run.

    Returns:
        The figure.
    """
    layout = arrange(latest(samples))
    spots = layout.spots
    if len(spots) < FEWEST:
        return None
    zeros = sum(spot.L1 <= 0 for spot in spots)
    note = f"; {zeros} of {len(spots)} matrices are at 0" if zeros else ""
    figure, (axis,) = new_figure(f"Smoothness constant by depth (latest fit{note})", 1, 8.0, 4.4)
    log_scale(axis, [spot.L1 for spot in spots])
    if zeros == len(spots):
        axis.set_yticks([])
    _draw_blocks(axis, layout)
    _draw_outside(axis, layout)
    _label_depths(axis, layout)
    axis.set(xlabel="block, then layers outside blocks", ylabel=r"$L_1$  [1 / norm]")
    if layout.blocks:
        axis.legend(frameon=False, fontsize=8, **BESIDE_AXES)
    return figure


def latest(samples: Samples) -> dict[str, Sample]:
    """Return the last sample with a fit of every matrix, by its name; vectors are too many for the picture."""
    found = {}
    for sample in samples:
        role = ROLES.get(sample["role"])
        matrix = role is None or role.matrices
        if matrix and sample["layer"] is not None and sample.get("L1") is not None:
            found[sample["layer"]] = sample
    return found


def arrange(constants: Mapping[str, Sample]) -> Layout:
    """Split names such as `blocks.3.mlp.fc1.weight` into a depth and a kind, by place if there are several.

    Args:
        constants: The latest sample of every matrix, by its name.

    Returns:
        The spots by kind.
    """
    spots = [_spot(name, sample) for name, sample in constants.items()]
    places = {spot.place for spot in spots if spot.depth is not None}
    layout = Layout()
    for spot in spots:
        if spot.depth is None:
            layout.outside.append(spot)
            continue
        kind = spot.name
        if len(places) > 1 or not kind:
            kind = f"{spot.place}.{kind}".strip(".")
        layout.blocks.setdefault(kind, []).append(spot)
    return layout


def _spot(name: str, sample: Sample) -> Spot:
    role, constant = sample["role"], sample["L1"]
    parts = re.fullmatch(r"(?:(.+?)\.)?(\d+)\.(.+)", name)
    if parts is None:
        end = name.removesuffix(".weight").split(".")[-2:]
        return Spot(".".join(end), role, constant)
    kind = re.sub(r"(^|\.)weight$", "", parts[3])
    return Spot(kind, role, constant, parts[1] or "", int(parts[2]))


def _draw_blocks(axis: Axes, layout: Layout) -> None:
    colours = shades(len(layout.blocks))
    for index, (kind, spots) in enumerate(sorted(layout.blocks.items())):
        style: Style = {"marker": MARKERS[index % len(MARKERS)], "color": colours[index]}
        heights = {spot.depth: spot.L1 for spot in spots if spot.depth is not None}
        drawn = [depth for depth, height in heights.items() if height > 0]
        if drawn:
            line = range(min(drawn), max(drawn) + 1)
            axis.plot(line, _with_gaps(heights, line), ms=5, lw=1.2, label=kind, **style)
        aside = ASIDE * (index - (len(colours) - 1) / 2)
        zeros = [depth + aside for depth, height in heights.items() if height <= 0]
        _draw_zeros(axis, zeros, style, None if drawn else f"{kind} (0)")


def _with_gaps(heights: Mapping[int, float], line: range) -> list[float]:
    """Return the heights along a line of blocks; NaN, which breaks the line, if a block has none above zero."""
    values = []
    for depth in line:
        height = heights.get(depth, 0.0)
        values.append(height if height > 0 else math.nan)
    return values


def _draw_zeros(axis: Axes, places: Sequence[float], style: Style, label: str | None) -> None:
    if places:
        edge = axis.get_xaxis_transform()
        hollow: Style = {"mfc": "white", "lw": 0, "ms": 6, "clip_on": False, "zorder": 3}
        axis.plot(places, [0.0] * len(places), transform=edge, label=label, **hollow, **style)


def _places_outside(layout: Layout) -> list[int]:
    """Return the positions of layers outside blocks: names are wider than numbers."""
    deepest = layout.deepest
    width = 1 + max(0, deepest) // NAME_WIDTH
    return [deepest + width * (1 + index) for index in range(len(layout.outside))]


def _draw_outside(axis: Axes, layout: Layout) -> None:
    for place, spot in zip(_places_outside(layout), layout.outside, strict=True):
        role = ROLES.get(spot.role)
        style: Style = {"marker": "o", "color": role.colour if role else "#666666"}
        if spot.L1 > 0:
            axis.plot([place], [spot.L1], ms=6, **style)
        else:
            _draw_zeros(axis, [place], style, None)


def _label_depths(axis: Axes, layout: Layout) -> None:
    deepest = layout.deepest
    numbers = range(0, deepest + 1, 1 + max(0, deepest) // MOST_NUMBERS)
    names = [spot.name for spot in layout.outside]
    axis.set_xticks([*numbers, *_places_outside(layout)], [*map(str, numbers), *names])
    rotation = 20 if len(names) < FEW_NAMES else 60
    for text in axis.get_xticklabels()[len(numbers) :]:
        text.set(rotation=rotation, ha="right", rotation_mode="anchor", fontsize=8)
