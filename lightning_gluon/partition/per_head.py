"""Maps of an attention read head by head: queries, keys and values, the parts of MLA and of Mamba 2."""

from __future__ import annotations

import re
from dataclasses import replace

from torch import nn

from lightning_gluon.norms.views import MatrixView
from lightning_gluon.partition.finding import Finding
from lightning_gluon.partition.formula import formula_value
from lightning_gluon.partition.knowledge import matching, names_match, table_entries
from lightning_gluon.partition.place import Place, is_adapter
from lightning_gluon.partition.splits import Scope, find_split

__all__ = ["apart"]

_ATTENTION_LEVELS = 2  # how far up the attention lies that holds a layer, behind a list or a layer with its norm
_FUSED_PROJECTION = ("q", "k", "v")


def apart(finding: Finding, place: Place) -> Finding:
    """Return a finding whose maps of an attention are one matrix per head; any other as it is."""
    if not finding.views or is_adapter(place.path):
        return finding
    layer, holder = _attention(place)
    if len(finding.views) == 1 and not matching("QUERY_LAYERS", [*holder._modules, *holder._parameters]):
        return finding
    names = _maps(place, layer, finding.views)
    views = []
    for name, view in zip(names, finding.views, strict=True):
        size = _rows_of_head(name, layer, holder, place, view)
        if size is not None:
            view = view.by_rows(size)
        views.append(view)
    if tuple(views) == finding.views:
        return finding
    reason = f"{finding.reason}, head by head"
    return replace(finding, views=tuple(views), reason=reason)


def _attention(place: Place) -> tuple[str, nn.Module]:
    """Return the name of a layer in its attention, and that module; of a bare array its own name and module."""
    if place.local != "weight":
        return place.local, place.owner
    for name, holder in place.holders[:_ATTENTION_LEVELS]:
        if not name.isdigit() and not names_match("INNER_LAYERS", name):
            return name, holder
    return place.layer, place.owner


def _maps(place: Place, layer: str, views: tuple[MatrixView, ...]) -> tuple[str, ...]:
    """Return the names of the maps that a weight holds."""
    if len(views) == 1:
        return (layer,)
    if names_match("FUSED_PROJECTIONS", place.local):
        return _FUSED_PROJECTION
    rows = sum(view.matrix[1] for view in views)
    split = find_split(place, rows, views[0].matrix[2])
    if split is None or len(split.parts) != len(views):
        return ("",) * len(views)
    return split.parts


def _rows_of_head(
    name: str,
    layer: str,
    holder: nn.Module,
    place: Place,
    view: MatrixView,
) -> int | None:
    """Return how many rows of a map belong to one head; `None` if it has no heads."""
    batch, rows, columns = view.matrix
    if batch != 1:
        return None
    first = place.around.index(holder)
    around = place.around[first:]
    scope = Scope(layer, holder, around, rows, columns)
    together = rows // view.groups
    known = False
    for row in table_entries("HEAD_ROWS"):
        if not re.fullmatch(row.part, name):
            continue
        if row.when and not formula_value(row.when, scope.condition):
            continue
        known = True
        size = formula_value(row.rows, scope.value)
        if size and together % size == 0:
            return int(size)
    if known and view.groups > 1:
        return together
    return None
