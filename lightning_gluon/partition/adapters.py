"""Rules for low-rank adapters: factors with their pair, and factors that stand alone."""

from __future__ import annotations

from torch import nn

from lightning_gluon.partition.finding import Finding, Pair, whole_array
from lightning_gluon.partition.heads import OutputLayers
from lightning_gluon.partition.knowledge import names_match
from lightning_gluon.partition.layouts import layer_views
from lightning_gluon.partition.place import Place

__all__ = ["adapter_factor", "adapter_pair", "adapter_table"]

OTHER = {"lora_A": "lora_B", "lora_B": "lora_A"}


def adapter_pair(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """LoRA's two factors of a linear map `(out, in)`: A (r, in) and B (out, r), of the change `scaling B A`."""
    parts = place.name.split(".")
    own = [index for index, part in enumerate(parts) if part in OTHER]
    if not own or not isinstance(place.owner, nn.Linear) or place.local != "weight":
        return None
    index = own[-1]
    layer = dict(place.chain).get(".".join(parts[:index]))
    below = ".".join(parts[index + 1 : -1])  # peft's name of the adapter; nothing where the factor is a layer itself
    other = _find(layer, OTHER[parts[index]], below)
    gain = _gain(layer, below)
    if layer is None or other is None or gain is None or not _is_low_rank(place.shape, tuple(other.weight.shape)):
        return None
    name = ".".join([*parts[:index], OTHER[parts[index]], *parts[index + 1 :]])
    views, note = layer_views(place)
    of_other, _ = layer_views(heads.network.place(name, tuple(other.weight.shape)))
    rows = min(shape[0] for view in of_other for shape in view.shapes)
    pair = Pair(name, gain, rows if len(of_other) > 1 else None)
    return Finding("adapter", f"LoRA factor, {gain:g} B A{note}", views, pair)


def _find(layer: nn.Module | None, name: str, below: str) -> nn.Linear | None:
    """Return the layer that holds the other factor."""
    found = getattr(layer, name, None)
    if below and isinstance(found, nn.ModuleDict):
        found = dict(found.items()).get(below)
    return found if isinstance(found, nn.Linear) else None


def _gain(layer: nn.Module | None, below: str) -> float | None:
    """Return the factor of the product: peft's `scaling` by adapter, or a layer's own, or `alpha / rank`."""
    scaling = getattr(layer, "scaling", None)
    if isinstance(scaling, dict):
        scaling = scaling.get(below)
    alpha, rank = getattr(layer, "alpha", None), getattr(layer, "rank", None)
    if scaling is None and alpha and rank:
        scaling = alpha / rank
    return float(scaling) if isinstance(scaling, int | float) and scaling > 0 else None


def _is_low_rank(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Tell whether two factors fit, with a rank that tells which is which."""
    return len(shape) == len(other) == 2 and (shape[0] == other[1] or shape[1] == other[0]) and shape != other


def adapter_table(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Adapter of a lookup table: the first factor is a table, the second a map."""
    parts = [part for part in place.path.split(".") if names_match("TABLE_FACTORS", part)]
    if not parts or len(place.shape) != 2:
        return None
    if parts[0].endswith("A"):
        return Finding("embedding", "LoRA factor of a lookup table", whole_array(place, transposed=True))
    return Finding("hidden", "LoRA factor", whole_array(place))


def adapter_factor(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """Low-rank factors that an adapter keeps as bare arrays `(out, in)`."""
    if len(place.shape) == 2 and names_match("ADAPTER_FACTORS", place.path.split(".")[-1]):
        return Finding("hidden", "low-rank factor of an adapter", whole_array(place))
    return None
