"""The rules: what a parameter is, from the module that owns it. The first rule that answers decides.

A rule takes a `Place` and what is known of the network's output and input layers, and returns a `Finding` or None.
Vectors and scalars come last among the arrays that are no map, so that a class token of shape `(dim,)` is still a
token. The rules hold the mechanism; names and classes stand in `known`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from lightning_gluon.norms.views import MatrixView
from lightning_gluon.partition.adapters import adapter_factor, adapter_pair, adapter_table
from lightning_gluon.partition.arrays import (
    bare_map,
    bias,
    declared_map,
    experts,
    mixed_convolution,
    no_map,
    raw_map,
    router,
    scale,
    shared_space,
    table,
    vector,
)
from lightning_gluon.partition.experts import ROUTER_REASON, leads_to_experts
from lightning_gluon.partition.finding import Finding, depthwise_filter, whole_array
from lightning_gluon.partition.heads import OutputLayers
from lightning_gluon.partition.inputs import input_reason
from lightning_gluon.partition.knowledge import matching, names_match, pattern
from lightning_gluon.partition.layers import Conv, is_weight_layer
from lightning_gluon.partition.layouts import (
    is_depthwise,
    layer_views,
    recurrent_views,
)
from lightning_gluon.partition.place import Place, is_adapter

__all__ = ["ROLE_RULES", "find"]


def find(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Return the finding of the first rule that fits a parameter, or None when none does.

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
    factor = is_adapter(place.path) or names_match("ADAPTER_FACTORS", place.path.split(".")[-1])
    if not finding.is_degenerate or factor or not _steps_as_map(finding):
        return finding
    return Finding("bias", f"{finding.reason}; one row or column only, so a vector")


def _steps_as_map(finding: Finding) -> bool:
    return finding.role in ("hidden", "router")


# ---- layers


def lookup_table(
    place: Place,
    heads: OutputLayers,
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
    return Finding("embedding", f"lookup table ({place.kind})", whole_array(place))


def _of_relations(place: Place) -> bool:
    """Tell whether a table lies next to a table of entities, or in a network of nothing but tables."""
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
    heads: OutputLayers,
) -> Finding | None:
    """The magnitudes that weight norm takes out of a weight."""
    return Finding("bias", "magnitudes of weight norm") if place.gain else None


_NORM_PARTS = {"weight": "gain", "gamma": "gain", "bias": "bias", "beta": "bias"}


def norm_gain(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Gains and biases of normalisation layers, whatever their shape."""
    what = _NORM_PARTS.get(place.local)
    if what and place.owned_by("Norm") and not is_weight_layer(place.owner):
        return Finding("bias", f"{what} of {place.kind}")
    return None


def weight_of_layer(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Linear layers and convolutions: input layer, output layer, filter, or map between features."""
    owner = place.owner
    if place.local != "weight" or not is_weight_layer(owner) or len(place.shape) < 2:
        return None
    if is_depthwise(owner):
        return depthwise_filter(place)
    views, note = layer_views(place)
    if leads_to_experts(place):
        return Finding("router", f"{ROUTER_REASON} ({place.kind})", views)
    reason = heads.reason(place)
    if reason is not None:
        return Finding("head", reason + note, views)
    reason = input_reason(place, heads.evidence)
    if reason is not None:
        return Finding("input", reason + note, _of_patches(owner, views))
    return Finding("hidden", _hidden_reason(place) + note, views)


def _hidden_reason(place: Place) -> str:
    """Return the name of a kind of map between features."""
    if place.inside("LORA_PARTS"):
        return "LoRA factor"
    if isinstance(place.owner, nn.Bilinear):
        return "bilinear map, one matrix per output"
    verb = "convolution" if isinstance(place.owner, Conv) else "linear map"
    return f"{verb} between features ({place.kind})"


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
    heads: OutputLayers,
) -> Finding | None:
    """`torch.nn.MultiheadAttention`: its own fused or separate projections."""
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
        return Finding("hidden", reason, whole_array(place))
    return None


def recurrent_weight(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Weights of LSTM, GRU and RNN."""
    if isinstance(place.owner, nn.RNNBase | nn.RNNCellBase) and place.local.startswith("weight_"):
        views, note = recurrent_views(place)
        return Finding("hidden", f"recurrent map ({place.kind}){note}", views)
    return None


ROLE_RULES: tuple[Callable[[Place, OutputLayers], Finding | None], ...] = (
    adapter_pair,
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
