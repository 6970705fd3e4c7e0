"""Rules for bare arrays: maps that a module keeps without a layer, tables, and arrays that are no map."""

from __future__ import annotations

import math
from dataclasses import replace

from lightning_gluon.norms.views import MatrixView
from lightning_gluon.partition.experts import ROUTER_REASON, expert_views, leads_to_experts
from lightning_gluon.partition.finding import Finding, depthwise_filter, whole_array
from lightning_gluon.partition.heads import OutputLayers
from lightning_gluon.partition.knowledge import names_match, pattern, table_entries
from lightning_gluon.partition.layers import declared_widths, is_weight_layer
from lightning_gluon.partition.layouts import (
    find_raw_map,
)
from lightning_gluon.partition.place import Place

__all__ = [
    "bare_map",
    "bias",
    "declared_map",
    "experts",
    "mixed_convolution",
    "no_map",
    "raw_map",
    "router",
    "scale",
    "shared_space",
    "table",
    "vector",
]


# ---- bare arrays that are maps


def experts(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Experts stacked in one parameter."""
    if len(place.shape) < 2 or not names_match("EXPERT_PARAMETERS", place.local) or not place.owned_by("Expert"):
        return None
    bare = place.local == "weight"
    if place.owned_by("Router", "Gate") or (bare and len(place.shape) < 3):
        return None
    counted = any(hasattr(place.owner, name) for name in table_entries("EXPERT_COUNTS"))
    if len(place.shape) == 2 and not counted:
        return None
    views, note = expert_views(place)
    return Finding("hidden", f"maps between features ({place.kind}){note}", views)


def mixed_convolution(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Kernels of several experts in one row each, mixed by example before use (timm's `CondConv2d`)."""
    kernel = getattr(place.owner, "weight_shape", None)
    if place.local != "weight" or not isinstance(kernel, tuple):
        return None
    if place.shape[1:] != (math.prod(kernel),):
        return None
    if kernel[1] == 1 < kernel[0]:
        return depthwise_filter(place)
    count = place.shape[0]
    view = MatrixView.conv(
        (count * kernel[0], *kernel[1:]),
        groups=count,
    )
    reason = f"convolution between features ({place.kind}), {count} experts"
    return Finding("hidden", reason, (replace(view, stop=count),))


def router(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Routers kept as a bare `weight`: maps from features to experts."""
    if not _is_bare_weight(place, "ROUTER_CLASSES"):
        return None
    role = "router" if leads_to_experts(place) else "hidden"
    return Finding(role, f"{ROUTER_REASON} ({place.kind})", whole_array(place))


def bare_map(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Other maps that are kept as a bare `weight`."""
    if not _is_bare_weight(place, "BARE_MAP_CLASSES"):
        return None
    return Finding("hidden", f"linear map between features ({place.kind})", whole_array(place))


def _is_bare_weight(
    place: Place,
    table: str,
) -> bool:
    if place.local != "weight" or len(place.shape) != 2 or is_weight_layer(place.owner):
        return False
    return any(place.owned_by(*entry.split("|")) for entry in table_entries(table))


def shared_space(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """OpenAI's CLIP keeps its output projections as bare arrays stored `(in, out)`."""
    towers = any(hasattr(place.owner, name) for name in table_entries("TOWER_PARTS"))
    if len(place.shape) != 2 or not towers or not names_match("TOWER_PROJECTIONS", place.local):
        return None
    reason = "output layer: projects into the shared space, stored transposed"
    return Finding("head", reason, whole_array(place, transposed=True))


def raw_map(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Maps kept as bare arrays by modules we know."""
    known = find_raw_map(place)
    if known is None:
        return None
    row, (views, note) = known
    return Finding(
        row.role,
        f"{row.what} kept as a bare array ({place.kind}.{place.local}){note}",
        views,
    )


def declared_map(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Maps kept as bare arrays by a module that says its widths: relational graph convolutions, say."""
    said = declared_widths(place.owner)
    if len(place.shape) < 2 or not said.known:
        return None
    transposed = place.shape[-2:] == (said.reads, said.gives) != (said.gives, said.reads)
    if not transposed and place.shape[-2:] != (said.gives, said.reads):
        return None
    reason = heads.reason(place) or f"linear map between features, of the widths that {place.kind} says"
    role = "head" if heads.reason(place) else "hidden"
    note = ", stored transposed" if transposed else ""
    return Finding(role, reason + note, whole_array(place, transposed=transposed))


def table(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Rows that are looked up, kept as a bare array: codebooks, entities, rows that replace those of a table."""
    names = (place.label, place.local)
    if len(place.shape) >= 2 and any(names_match("TABLES", name) for name in names):
        return Finding("embedding", f"lookup table kept as a bare array ({place.label})", whole_array(place))
    return None


# ---- arrays that are no map

_PLAIN_NAMES = ("weight", "bias")
_NO_MAP = {
    "RELATIVE_POSITIONS": "relative-position table: added to scores, no map",
    "SCALES": "logit scale: multiplies scores, no map",
    "TOKENS": "learned token: added to or put beside the inputs, no map",
    "POSITIONS": "learned positions: added to the inputs, no map",
    "FILTERS": "depthwise filters: each channel by itself, no map",
    "RATES": "table of a recurrence's rates: acts entry by entry, no map",
}


def no_map(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Bare arrays that act entry by entry: tokens, positions, relative positions, logit scales, rates."""
    name = place.label
    if name in _PLAIN_NAMES:
        return None
    for kind, reason in _NO_MAP.items():
        if names_match(kind, name):
            return Finding("elementwise", f"{reason} ({name})")
    gain = len(place.shape) < 2 or names_match("GAINS", name)
    positions = any(pattern("POSITION_CLASSES").search(type(module).__name__) for module in place.around[:2])
    if positions and not gain:
        return Finding("elementwise", f"learned positions: added to the inputs, no map ({name} of {place.kind})")
    return None


def bias(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Biases, those of stacked experts included."""
    return Finding("bias", f"bias of {place.kind}") if names_match("BIASES", place.label) else None


def scale(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Layer scales kept several to an array."""
    if names_match("GAINS", place.label):
        return Finding("bias", f"scale of {place.kind}: multiplies entry by entry")
    return None


def vector(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Every other vector or scalar: gains, layer scales, mixing weights."""
    return Finding("bias", f"vector of {place.kind}") if place.is_vector else None
