"""Rules for low-rank adapters: factors with their pair, and factors that stand alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightning_gluon.partition.finding import Finding, OtherFactor, whole_array
from lightning_gluon.partition.heads import OutputLayers
from lightning_gluon.partition.knowledge import names_match
from lightning_gluon.partition.layouts import layer_views
from lightning_gluon.partition.place import Place

__all__ = ["adapter_factor", "adapter_pair", "adapter_table"]

OTHER = {"lora_A": "lora_B", "lora_B": "lora_A"}


@dataclass(frozen=True)
class _Site:
    """Place of one factor in the layer that adapts a map.

    Args:
        parts: The parameter's qualified name in parts.
        index: Which of them says A or B.
        layer: The module with both factors.
    """

    parts: list[str]
    index: int
    layer: nn.Module

    @classmethod
    def of(cls, place: Place) -> _Site | None:
        """Find the layer around a factor; `None` for any other parameter."""
        parts = place.name.split(".")
        own = [index for index, part in enumerate(parts) if part in OTHER]
        if not own or place.local != "weight" or not isinstance(place.owner, nn.Linear):
            return None
        layer = dict(place.chain).get(".".join(parts[: own[-1]]))
        return None if layer is None else cls(parts, own[-1], layer)

    @property
    def adapter(self) -> str:
        """Name of the adapter in peft; empty where the factor is a layer itself."""
        return ".".join(self.parts[self.index + 1 : -1])

    @property
    def other(self) -> str:
        """Name of the other factor."""
        return OTHER[self.parts[self.index]]

    @property
    def other_name(self) -> str:
        """Qualified name of the other factor's weight."""
        return ".".join([*self.parts[: self.index], self.other, *self.parts[self.index + 1 :]])

    def other_layer(self) -> nn.Linear | None:
        """Return the layer that holds the other factor."""
        found = getattr(self.layer, self.other, None)
        if isinstance(found, nn.ModuleDict):
            found = dict(found.items()).get(self.adapter)
        return found if isinstance(found, nn.Linear) else None

    def gain(self) -> float | None:
        """Return the factor of the product: peft's `scaling` by adapter, or a layer's own, or `alpha / rank`."""
        scaling = getattr(self.layer, "scaling", None)
        if isinstance(scaling, dict):
            scaling = scaling.get(self.adapter)
        alpha, rank = getattr(self.layer, "alpha", None), getattr(self.layer, "rank", None)
        if scaling is None and alpha and rank:
            scaling = alpha / rank
        return float(scaling) if isinstance(scaling, int | float) and scaling > 0 else None


def adapter_pair(
    place: Place,
    heads: OutputLayers,
) -> Finding | None:
    """LoRA's two factors of a linear map `(out, in)`: A (r, in) and B (out, r), of the change `scaling B A`."""
    site = _Site.of(place)
    if site is None:
        return None
    other, gain = site.other_layer(), site.gain()
    if other is None or gain is None or not _make_product(place.shape, tuple(other.weight.shape)):
        return None
    views, note = layer_views(place)
    of_other, _ = layer_views(heads.network.place(site.other_name, tuple(other.weight.shape)))
    rows = min(shape[0] for view in of_other for shape in view.shapes)
    pair = OtherFactor(site.other_name, gain, rows if len(of_other) > 1 else None)
    return Finding("adapter", f"LoRA factor, {gain:g} B A{note}", views, pair)


def _make_product(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Tell whether two factors make a product, with a rank that tells which is which."""
    inner = shape[0] == other[1] or shape[1] == other[0]
    return inner and shape != other


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
