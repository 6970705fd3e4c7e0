"""Reading of a stored weight as matrices `(out, in)`: one view per map that it holds."""

from __future__ import annotations

import math
import re

from torch import nn

from lightning_gluon.norms.views import MatrixView
from lightning_gluon.partition.knowledge import table_entries
from lightning_gluon.partition.known.rows import MapLayout, RawMap
from lightning_gluon.partition.known.torch import GATES
from lightning_gluon.partition.layers import Conv, ConvTranspose, declared_widths, stores_transposed
from lightning_gluon.partition.place import Place, Shape, class_names
from lightning_gluon.partition.splits import Split, find_split, named_split

__all__ = [
    "TRANSPOSED",
    "Read",
    "find_raw_map",
    "is_depthwise",
    "layer_views",
    "raw_views",
    "recurrent_views",
    "split_views",
]

Read = tuple[tuple[MatrixView, ...], str]  # the views and what to say about them
TRANSPOSED = ", stored transposed"


def split_views(
    shape: Shape,
    split: Split,
    *,
    transposed: bool = False,
    kernel_dims: int = 0,
) -> Read:
    """Read a fused weight part by part."""
    views = MatrixView.grouped(
        shape,
        sizes=split.sizes,
        groups=split.groups,
        transposed=transposed,
        kernel_dims=kernel_dims,
    )
    return views, split.note


# ---- layers


def is_depthwise(conv: nn.Module) -> bool:
    """Tell whether a convolution filters each channel by itself, which is no map between channels."""
    if not isinstance(conv, Conv):
        return False
    alone = conv.in_channels == conv.out_channels == 1
    return alone or conv.groups == conv.in_channels > 1


def layer_views(place: Place) -> Read:
    """Read the weight of a linear layer, a convolution or a `Conv1D` of GPT-2."""
    owner = place.owner
    shape = place.shape
    if isinstance(owner, ConvTranspose):
        return (MatrixView.conv(shape, transposed=True, groups=owner.groups),), ""
    if isinstance(owner, Conv):
        return _conv_views(place, owner)
    transposed = is_transposed(place)
    rows, columns = shape[-2:]
    if transposed:
        rows, columns = columns, rows
    split = None if place.inside("FIRST_FACTORS") else find_split(place, rows, columns)
    if split is not None:
        return split_views(shape, split, transposed=transposed)
    return (MatrixView.whole(shape, transposed=transposed),), TRANSPOSED if transposed else ""


def _conv_views(
    place: Place,
    conv: Conv,
) -> Read:
    shape = place.shape
    if conv.groups > 1:
        return (MatrixView.conv(shape, groups=conv.groups),), f", {conv.groups} groups"
    split = None if place.inside("FIRST_FACTORS") else find_split(place, *shape[:2])
    if split is None:
        return (MatrixView.conv(shape),), ""
    return split_views(shape, split, kernel_dims=len(shape) - 2)


def is_transposed(place: Place) -> bool:
    """Tell whether a linear map is stored `(in, out)`, by the widths that its module says or by its class."""
    if stores_transposed(place.owner):
        return True
    said = declared_widths(place.owner)
    if place.shape[-2:] != (said.reads, said.gives):
        return False
    if said.reads != said.gives:
        return True
    row = _raw_layout(place)
    return row is not None and row.layout.transposed


def recurrent_views(place: Place) -> Read:
    """Read a recurrent weight gate by gate; LSTM's projection `weight_hr` is one map."""
    gates = 1
    for name in reversed(class_names(place.owner)):
        gates = GATES.get(name, gates)
    if gates == 1 or place.local.startswith("weight_hr"):
        return (MatrixView.whole(place.shape),), ""
    size = place.shape[0] // gates
    views = MatrixView.blocks(place.shape, sizes=(size,) * gates)
    return views, f", {gates} gates fused"


# ---- bare arrays


def find_raw_map(place: Place) -> tuple[RawMap, Read] | None:
    """Return the family that a bare array belongs to, with its matrices, or None.

    Args:
        place: Place of the parameter.

    Returns:
        The family and how the array is read, or None when it belongs to no known family.
    """
    row = _raw_layout(place)
    if row is None or len(place.shape) < 2:
        return None
    rows, columns = place.shape[-2:]
    split = named_split(place, rows, columns)
    if split is not None:
        return row, split_views(place.shape, split)
    note = TRANSPOSED if row.layout.transposed else ""
    views = raw_views(row.layout, place.shape)
    return row, (views, note)


def _raw_layout(place: Place) -> RawMap | None:
    for row in table_entries("RAW_MAPS"):
        if not re.fullmatch(row.local, place.local):
            continue
        if any(re.fullmatch(row.owner, name) for name in class_names(place.owner)):
            return row
    return None


def raw_views(
    layout: MapLayout,
    shape: Shape,
) -> tuple[MatrixView, ...]:
    """Read a bare array as one map or as a stack of maps."""
    if layout is MapLayout.IN_FIRST:
        order = (*range(1, len(shape)), 0)
        matrix = (1, math.prod(shape[1:]), shape[0])
        return (MatrixView(0, 0, shape[0], shape, order, matrix),)
    if layout in (MapLayout.BATCH, MapLayout.BATCH_IN_OUT):
        return (MatrixView.whole(shape, transposed=layout.transposed),)
    out = math.prod(shape[:-1]) if layout is MapLayout.OUT_IN else shape[0]
    matrix = (1, out, math.prod(shape) // out)
    return (
        MatrixView(
            0,
            0,
            shape[0],
            shape,
            tuple(range(len(shape))),
            matrix,
        ),
    )
