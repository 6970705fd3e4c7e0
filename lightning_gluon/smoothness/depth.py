"""The picture of L1 by depth: the latest constant of every matrix, by the block it stands in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning_gluon.roles import ROLES
from lightning_gluon.smoothness.canvas import BESIDE_AXES, colour_of, log_scale, new_figure, shades
from lightning_gluon.smoothness.samples import Sample, Samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Style: TypeAlias = dict[str, Any]  # of a curve, in the words of matplotlib

NAME_IN_BLOCK = re.compile(r"(?:(.+?)\.)?(\d+)\.(.+)")  # place, depth and the rest of a layer's name
MARKERS = "os^Dv<>PX*"
NO_BLOCK = -1
FEWEST = 2  # constants that make a picture
MOST_NUMBERS = 24  # block numbers along the axis
ASIDE = 0.1  # of a block: zeros of different kinds stand next to one another
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
        depth: Position in that list; `NO_BLOCK` outside blocks.
    """

    name: str
    role: str
    L1: float
    place: str = ""
    depth: int = NO_BLOCK


@dataclass
class DepthLayout:
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
        deepest = -1
        for spots in self.blocks.values():
            for spot in spots:
                deepest = max(deepest, spot.depth)
        return deepest

    @property
    def spots(self) -> list[Spot]:
        """Spots in the order of the axis."""
        found = list(self.outside)
        for spots in self.blocks.values():
            found.extend(spots)
        return found


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
    constants = [spot.L1 for spot in layout.spots]
    count = len(constants)
    if count < FEWEST:
        return None
    zeros = sum(constant <= 0 for constant in constants)
    note = "latest fit"
    if zeros:
        note = f"latest fit; {zeros} of {count} matrices are at 0"
    title = f"Smoothness constant by depth ({note})"
    figure, (axis,) = new_figure(title, 1, 8.0, 4.4)
    log_scale(axis, constants)
    if zeros == count:
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
        vectors = role is not None and not role.matrices
        name = sample["layer"]
        if name is None or vectors:
            continue
        if sample.get("L1") is not None:
            found[name] = sample
    return found


def arrange(constants: Mapping[str, Sample]) -> DepthLayout:
    """Split names such as `blocks.3.mlp.fc1.weight` into a depth and a kind, by place if there are several.

    Args:
        constants: The latest sample of every matrix, by its name.

    Returns:
        The spots by kind.
    """
    layout = DepthLayout()
    inside = []
    for name, sample in constants.items():
        spot = _spot(name, sample)
        if spot.depth == NO_BLOCK:
            layout.outside.append(spot)
        else:
            inside.append(spot)
    several = len({spot.place for spot in inside}) > 1
    for spot in inside:
        kind = spot.name
        if several or not kind:
            kind = f"{spot.place}.{kind}".strip(".")
        layout.blocks.setdefault(kind, []).append(spot)
    return layout


def _spot(name: str, sample: Sample) -> Spot:
    role, constant = sample["role"], sample["L1"]
    parts = NAME_IN_BLOCK.fullmatch(name)
    if parts is None:
        words = name.removesuffix(".weight").split(".")
        end = ".".join(words[-2:])
        return Spot(end, role, constant)
    place, depth, rest = parts.groups(default="")
    kind = re.sub(r"(^|\.)weight$", "", rest)
    return Spot(kind, role, constant, place, int(depth))


def _draw_blocks(axis: Axes, layout: DepthLayout) -> None:
    colours = shades(len(layout.blocks))
    middle = (len(colours) - 1) / 2
    for index, kind in enumerate(sorted(layout.blocks)):
        marker = MARKERS[index % len(MARKERS)]
        style: Style = {"marker": marker, "color": colours[index]}
        spots = layout.blocks[kind]
        zeros = [spot for spot in spots if spot.L1 <= 0]
        label: str | None = f"{kind} (0)"
        if len(zeros) < len(spots):
            _draw_line(axis, spots, kind, style)
            label = None
        aside = ASIDE * (index - middle)
        places = [spot.depth + aside for spot in zeros]
        _draw_zeros(axis, places, style, label)


def _draw_line(axis: Axes, spots: Sequence[Spot], label: str, style: Style) -> None:
    """Draw a line along the blocks; NaN breaks it at a block that has no constant above zero."""
    heights = {spot.depth: spot.L1 for spot in spots if spot.L1 > 0}
    line = range(min(heights), max(heights) + 1)
    values = [heights.get(depth, math.nan) for depth in line]
    axis.plot(line, values, ms=5, lw=1.2, label=label, **style)


def _draw_zeros(axis: Axes, places: Sequence[float], style: Style, label: str | None) -> None:
    if not places:
        return
    axis.plot(
        places,
        [0.0] * len(places),
        transform=axis.get_xaxis_transform(),
        label=label,
        lw=0,
        ms=6,
        mfc="white",
        clip_on=False,
        zorder=3,
        **style,
    )


def _places_outside(layout: DepthLayout) -> list[int]:
    """Return the positions of layers outside blocks: names are wider than numbers."""
    place = layout.deepest
    width = 1 + max(0, place) // NAME_WIDTH
    places = []
    for _ in layout.outside:
        place += width
        places.append(place)
    return places


def _draw_outside(axis: Axes, layout: DepthLayout) -> None:
    for place, spot in zip(_places_outside(layout), layout.outside, strict=True):
        style: Style = {"marker": "o", "color": colour_of(spot.role)}
        if spot.L1 > 0:
            axis.plot([place], [spot.L1], ms=6, **style)
        else:
            _draw_zeros(axis, [place], style, None)


def _label_depths(axis: Axes, layout: DepthLayout) -> None:
    blocks = layout.deepest + 1
    stride = 1 + max(0, blocks - 1) // MOST_NUMBERS
    numbers = range(0, blocks, stride)
    names = [spot.name for spot in layout.outside]
    places = [*numbers, *_places_outside(layout)]
    labels = [*map(str, numbers), *names]
    axis.set_xticks(places, labels)
    rotation = 20 if len(names) < FEW_NAMES else 60
    texts = axis.get_xticklabels()
    for text in texts[len(numbers) :]:
        text.set(
            rotation=rotation,
            ha="right",
            rotation_mode="anchor",
            fontsize=8,
        )
