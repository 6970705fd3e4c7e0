"""Experts that are stacked in one parameter, read as a batch of maps, and the routers that choose them."""

from __future__ import annotations

import math

from torch import Tensor, nn

from lightning_gluon.norms.views import MatrixView
from lightning_gluon.partition.knowledge import names_match, pattern, table_entries
from lightning_gluon.partition.layouts import TRANSPOSED, Read, split_views
from lightning_gluon.partition.place import Place, class_names, look_up
from lightning_gluon.partition.splits import Split

__all__ = ["ROUTER_REASON", "expert_views", "leads_to_experts"]

ROUTER_REASON = "router: linear map to the experts"

_GATED = ("gate", "up")


def expert_views(place: Place) -> Read:
    """Read stacked experts, as transformers keeps them in one parameter each, as a batch of maps."""
    shape = place.shape
    if len(shape) == 2:
        return _flat_experts(place)
    transposed = _are_transposed(place.owner)
    count = math.prod(shape[:-2])
    note = f", {count} experts stacked"
    if transposed:
        note += TRANSPOSED
    if not _is_gated(place):
        return (MatrixView.whole(shape, transposed=transposed),), note
    rows = shape[-1] if transposed else shape[-2]
    views, fused = split_views(
        shape,
        _halves(place.owner, rows // 2),
        transposed=transposed,
    )
    return views, note + fused


def _is_gated(place: Place) -> bool:
    """Tell whether a stack holds gate and value of every expert."""
    if names_match("GATED_EXPERTS", place.local):
        return True
    return place.local == "weight" and names_match("GATED_EXPERT_LAYERS", place.layer)


def _halves(owner: nn.Module, half: int) -> Split:
    """Return how gate and value lie: one after the other, or row by row."""
    if getattr(owner, "is_concatenated", True):
        return Split(_GATED, (half, half))
    return Split(_GATED, (1, 1), half)


def _flat_experts(place: Place) -> Read:
    """Read experts stacked as `(experts * inner, hidden)`."""
    count = 1
    for name in reversed(table_entries("EXPERT_COUNTS")):
        count = getattr(place.owner, name, None) or count
    rows, columns = place.shape
    tall = MatrixView.whole(
        (count, rows // count, columns),
        transposed=names_match("EXPERTS_BY_COLUMN", place.local),
    )
    view = MatrixView(
        0,
        0,
        rows,
        tall.split,
        tall.permute,
        tall.matrix,
    )
    return (view,), f", {count} experts stacked"


def _are_transposed(owner: nn.Module) -> bool:
    """Tell whether stacked experts are stored `(experts, in, out)`."""
    declared = getattr(owner, "is_transposed", None)
    if declared is not None:
        return bool(declared)
    first = getattr(owner, "gate_up_proj", None)
    second = getattr(owner, "down_proj", None)
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    # (E, hidden, 2 * inner) with (E, inner, hidden), against (E, 2 * inner, hidden) with (E, hidden, inner)
    hidden, doubled = first.shape[-2:]
    inner, gives = second.shape[-2:]
    return bool(doubled == 2 * inner and hidden == gives)


def leads_to_experts(place: Place) -> bool:
    """Tell whether a map chooses among experts: a router by name or class, beside experts, with one row for each."""
    holders = [holder for _, holder in place.holders[:2]]  # of a layer in a router the router, and the block around it
    router = names_match("ROUTER_LAYERS", place.layer)
    around = [place.owner, *holders[:1]]
    if not router and not any(map(_is_router, around)):
        return False
    if not any(map(_holds_experts, holders)):
        return False
    names = table_entries("ROUTED_COUNTS")
    count = look_up(place.around, *names)
    return not isinstance(count, int) or count in place.shape[-2:]


def _is_router(module: nn.Module) -> bool:
    return any(pattern("ROUTER_CLASSES").search(name) for name in class_names(module))


def _holds_experts(module: nn.Module) -> bool:
    """Tell whether a child of a module holds experts, by its name or class."""
    for name, child in module.named_children():
        kind = type(child).__name__
        if names_match("EXPERT_PARTS", name) or pattern("EXPERT_CLASSES").search(kind):
            return True
    return False
