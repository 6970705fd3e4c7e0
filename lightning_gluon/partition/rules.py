"""The rules: what a parameter is, from the module that owns it. The first rule that answers decides.

A rule takes a `Place` and what is known of the network's output and input layers, and returns a `Finding` or None.
Vectors and scalars come last among the arrays that are no map, so that a class token of shape `(dim,)` is still a
token. The rules hold the mechanism; names and classes stand in `known`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from lightning_gluon.norms.views import MatrixView
from lightning_gluon.partition.experts import expert_views
from lightning_gluon.partition.heads import Heads
from lightning_gluon.partition.inputs import input_reason
from lightning_gluon.partition.knowledge import entries, matching, names_match, pattern
from lightning_gluon.partition.layers import Conv, declared_widths, is_weight_layer
from lightning_gluon.partition.layouts import (
    find_raw_map,
    is_depthwise,
    layer_views,
    recurrent_views,
)
from lightning_gluon.partition.place import Place, is_adapter

__all__ = ["ROLE_RULES", "Finding", "find"]


@dataclass(frozen=True)
class Finding:
    """A role with its reason and matrices."""

    role: str
    reason: str
    views: tuple[MatrixView, ...] = ()

    @property
    def is_degenerate(self) -> bool:
        """True for one single matrix of one row or one column, such as a gate."""
        shapes = [shape for view in self.views for shape in view.shapes]
        return len(shapes) == 1 and min(shapes[0]) == 1


def find(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """Return what the first fitting rule says about a parameter, or None when no rule fits.

    Args:
        place: Place of the parameter.
        heads: The output layers of the network, with the evidence for them.

    Returns:
        The finding, or None.
    """
    for rule in ROLE_RULES:
        finding = rule(place, heads)
        if finding is not None:
            return _as_vector(finding, place)
    return None


def _as_vector(
    finding: Finding,
    place: Place,
) -> Finding:
    """Treat a map between features with one row or one column as a vector; an adapter's rank is its own affair."""
    factor = is_adapter(place.path) or names_match("FACTORS", place.path.split(".")[-1])
    if not finding.is_degenerate or factor or not _steps_as_map(finding):
        return finding
    return Finding("bias", f"{finding.reason}; one row or column only, so a vector")


def _steps_as_map(finding: Finding) -> bool:
    return finding.role == "hidden"


def _whole(
    place: Place,
    *,
    transposed: bool = False,
) -> tuple[MatrixView, ...]:
    return (MatrixView.whole(place.shape, transposed=transposed),)


# ---- adapters


def adapter_table(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """Adapter of a lookup table: the first factor is a table, the second a map."""
    parts = [part for part in place.path.split(".") if names_match("TABLE_FACTORS", part)]
    if not parts or len(place.shape) != 2:
        return None
    if parts[0].endswith("A"):
        return Finding("embedding", "LoRA factor of a lookup table", _whole(place, transposed=True))
    return Finding("hidden", "LoRA factor", _whole(place))


def adapter_factor(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """Low-rank factors that an adapter keeps as bare arrays `(out, in)`."""
    if len(place.shape) == 2 and names_match("FACTORS", place.path.split(".")[-1]):
        return Finding("hidden", "low-rank factor of an adapter", _whole(place))
    return None


# ---- layers


def lookup_table(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """Tables: one row per entry."""
    if place.local != "weight" or len(place.shape) != 2:
        return None
    table = isinstance(place.owner, nn.Embedding | nn.EmbeddingBag)
    own = place.owned_by("Embedding") and not is_weight_layer(place.owner)
    if not table and not own:
        return None
    name = place.layer
    relative = names_match("RELATIVE_POSITIONS", name) and not _of_relations(place)
    if relative or pattern("RELATIVE_CLASSES").search(place.kind):
        return Finding("elementwise", f"table over relative positions ({name})")
    return Finding("embedding", f"lookup table ({place.kind})", _whole(place))


def _of_relations(place: Place) -> bool:
    """Tell whether a table lies beside a table of entities, or in a network of nothing but tables."""
    if not place.holders:
        return False
    _, holder = place.holders[0]
    siblings = [name for name, child in holder.named_children() if child is not place.owner]
    return bool(matching("ENTITIES", siblings)) or _is_all_tables(place.around[-1])


def _is_all_tables(root: nn.Module) -> bool:
    """Tell whether a network consists of several lookup tables."""
    layers = [module for module in root.modules() if is_weight_layer(module)]
    tables = [layer for layer in layers if isinstance(layer, nn.Embedding | nn.EmbeddingBag)]
    return len(layers) == len(tables) > 1


def gain_of_weight_norm(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """The magnitudes that weight norm takes out of a weight."""
    return Finding("bias", "magnitudes of weight norm") if place.gain else None


_NORM_PARTS = {"weight": "gain", "gamma": "gain", "bias": "bias", "beta": "bias"}


def norm_gain(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """Gains and biases of normalisation layers, whatever their shape."""
    what = _NORM_PARTS.get(place.local)
    if what and place.owned_by("Norm") and not is_weight_layer(place.owner):
        return Finding("bias", f"{what} of {place.kind}")
    return None


def weight_of_layer(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """Linear layers and convolutions: input layer, output layer, filter, or map between features."""
    owner = place.owner
    if place.local != "weight" or not is_weight_layer(owner) or len(place.shape) < 2:
        return None
    if is_depthwise(owner):
        return _filters(place)
    views, note = layer_views(place)
    reason = heads.reason(place)
    if reason is not None:
        return Finding("head", reason + note, views)
    reason = input_reason(place, heads.evidence)
    if reason is not None:
        return Finding("input", reason + note, _of_patches(owner, views))
    return Finding("hidden", _hidden_reason(place) + note, views)


def _hidden_reason(place: Place) -> str:
    """Return what a map between features is called."""
    if place.inside("LORA_PARTS"):
        return "LoRA factor"
    if isinstance(place.owner, nn.Bilinear):
        return "bilinear map, one matrix per output"
    verb = "convolution" if isinstance(place.owner, Conv) else "linear map"
    return f"{verb} between features ({place.kind})"


def _filters(place: Place) -> Finding:
    return Finding("elementwise", f"depthwise filters ({place.kind}): each channel by itself, no map")


def _of_patches(
    owner: nn.Module,
    views: tuple[MatrixView, ...],
) -> tuple[MatrixView, ...]:
    """Read the kernel of a patch embedding, whose taps share no input, as a plain matrix."""
    if isinstance(owner, Conv) and tuple(owner.stride) == tuple(owner.kernel_size):
        return tuple(replace(view, kernel=1) for view in views)
    return views


def attention_projection(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """`torch.nn.MultiheadAttention`: fused or separate projections of its own."""
    if len(place.shape) != 2:
        return None
    reason = f"attention projection ({place.kind})"
    if names_match("FUSED_PROJECTIONS", place.local):
        views = MatrixView.blocks(
            place.shape,
            sizes=(place.shape[0] // 3,) * 3,
        )
        return Finding("hidden", f"{reason}, q + k + v fused", views)
    if names_match("SEPARATE_PROJECTIONS", place.local):
        return Finding("hidden", reason, _whole(place))
    return None


def recurrent_weight(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """Weights of LSTM, GRU and RNN."""
    if isinstance(place.owner, nn.RNNBase | nn.RNNCellBase) and place.local.startswith("weight_"):
        views, note = recurrent_views(place)
        return Finding("hidden", f"recurrent map ({place.kind}){note}", views)
    return None


# ---- bare arrays that are maps


def experts(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """Experts stacked in one parameter."""
    if len(place.shape) < 2 or not names_match("EXPERT_PARAMETERS", place.local) or not place.owned_by("Expert"):
        return None
    bare = place.local == "weight"
    if place.owned_by("Router", "Gate") or (bare and len(place.shape) < 3):
        return None
    counted = any(hasattr(place.owner, name) for name in entries("EXPERT_COUNTS"))
    if len(place.shape) == 2 and not counted:
        return None
    views, note = expert_views(place)
    return Finding("hidden", f"maps between features ({place.kind}){note}", views)


def mixed_convolution(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """Kernels of several experts in one row each, mixed by example before use (timm's `CondConv2d`)."""
    kernel = getattr(place.owner, "weight_shape", None)
    if place.local != "weight" or not isinstance(kernel, tuple):
        return None
    if place.shape[1:] != (math.prod(kernel),):
        return None
    if kernel[1] == 1 < kernel[0]:
        return _filters(place)
    count = place.shape[0]
    view = MatrixView.conv(
        (count * kernel[0], *kernel[1:]),
        groups=count,
    )
    reason = f"convolution between features ({place.kind}), {count} experts"
    return Finding("hidden", reason, (replace(view, stop=count),))


def router(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """Routers kept as a bare `weight`: maps from features to experts."""
    if not _is_bare_weight(place, "ROUTER_CLASSES"):
        return None
    return Finding("hidden", f"router: linear map to the experts ({place.kind})", _whole(place))


def bare_map(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """Other maps that are kept as a bare `weight`."""
    if not _is_bare_weight(place, "BARE_MAP_CLASSES"):
        return None
    return Finding("hidden", f"linear map between features ({place.kind})", _whole(place))


def _is_bare_weight(
    place: Place,
    table: str,
) -> bool:
    if place.local != "weight" or len(place.shape) != 2 or is_weight_layer(place.owner):
        return False
    return any(place.owned_by(*entry.split("|")) for entry in entries(table))


def shared_space(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """OpenAI's CLIP keeps its output projections as bare arrays stored `(in, out)`."""
    towers = any(hasattr(place.owner, name) for name in entries("TOWER_PARTS"))
    if len(place.shape) != 2 or not towers or not names_match("TOWER_PROJECTIONS", place.local):
        return None
    reason = "output layer: projects into the shared space, stored transposed"
    return Finding("head", reason, _whole(place, transposed=True))


def raw_map(
    place: Place,
    heads: Heads,
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
    heads: Heads,
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
    return Finding(role, reason + note, _whole(place, transposed=transposed))


def table(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """Rows that are looked up, kept as a bare array: codebooks, entities, rows that replace those of a table."""
    names = (place.label, place.local)
    if len(place.shape) >= 2 and any(names_match("TABLES", name) for name in names):
        return Finding("embedding", f"lookup table kept as a bare array ({place.label})", _whole(place))
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
    heads: Heads,
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
    heads: Heads,
) -> Finding | None:
    """Biases, those of stacked experts included."""
    return Finding("bias", f"bias of {place.kind}") if names_match("BIASES", place.label) else None


def scale(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """Layer scales kept several to an array."""
    if names_match("GAINS", place.label):
        return Finding("bias", f"scale of {place.kind}: multiplies entry by entry")
    return None


def vector(
    place: Place,
    heads: Heads,
) -> Finding | None:
    """Every other vector or scalar: gains, layer scales, mixing weights."""
    return Finding("bias", f"vector of {place.kind}") if place.is_vector else None


ROLE_RULES: tuple[Callable[[Place, Heads], Finding | None], ...] = (
    adapter_table,
    gain_of_weight_norm,
    lookup_table,
    norm_gain,
    weight_of_layer,
    attention_projection,
    recurrent_weight,
    experts,
    mixed_convolution,
    router,
    bare_map,
    shared_space,
    raw_map,
    table,
    no_map,
    bias,
    scale,
    adapter_factor,
    vector,
    declared_map,
)
