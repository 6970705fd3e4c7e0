"""Layers: modules with their own weight, and their widths."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lightning_gluon.partition.knowledge import table_entries
from lightning_gluon.partition.place import class_names, look_up

__all__ = [
    "Conv",
    "ConvTranspose",
    "Widths",
    "declared_widths",
    "is_map",
    "is_weight_layer",
    "stores_transposed",
    "widths",
]

Conv = nn.modules.conv._ConvNd
ConvTranspose = nn.modules.conv._ConvTransposeNd
_NO_MAPS = (nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)
# Where weight norm, spectral norm and pruning keep a weight.
_STORED = ("weight", "weight_v", "weight_orig")


@dataclass(frozen=True)
class Widths:
    """Features that a layer reads and gives; None if they cannot be told."""

    reads: int | None
    gives: int | None

    @property
    def known(self) -> bool:
        """True when both are known."""
        return self.reads is not None and self.gives is not None


def is_weight_layer(module: nn.Module) -> bool:
    """Tell whether a module maps inputs by its own weight: a linear map, a convolution or a lookup table."""
    if isinstance(module, table_entries("LAYER_CLASSES")):
        return True
    weight = own_weight(module)
    return weight is not None and weight.ndim > 1 and _applies(module, weight)


def _applies(module: nn.Module, weight: Tensor) -> bool:
    """Tell whether a module is a linear map by its class, or says the widths of its weight."""
    if isinstance(module, nn.Linear) or stores_transposed(module):
        return True
    if type(module).__name__.endswith("Linear"):  # not all are subclasses of torch's
        return True
    return _fits_widths(weight, declared_widths(module))


def is_map(module: nn.Module) -> bool:
    """Tell whether a module is a linear map or a convolution: the layers that may read inputs or give outputs."""
    return is_weight_layer(module) and not isinstance(module, _NO_MAPS)


def own_weight(module: nn.Module) -> Tensor | None:
    """Return the weight that a module owns, also one that a reparametrization stores; wrappers own none."""
    for name in _STORED:
        weight = module._parameters.get(name)
        if weight is not None:
            return weight
    if "parametrizations" in module._modules and hasattr(module._modules["parametrizations"], "weight"):
        weight = getattr(module, "weight", None)
        return weight if isinstance(weight, Tensor) else None
    return None


def declared_widths(module: nn.Module) -> Widths:
    """Return the widths that a module says itself (`in_features`, `out_channels`)."""
    return Widths(_declared(module, "WIDTHS_IN"), _declared(module, "WIDTHS_OUT"))


def _declared(
    module: nn.Module,
    table: str,
) -> int | None:
    for name in table_entries(table):
        value = module.__dict__.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _fits_widths(
    weight: Tensor,
    said: Widths,
) -> bool:
    """Tell whether the last two dimensions of a weight are the widths that its module says."""
    if not said.known:
        return False
    return tuple(weight.shape[-2:]) in ((said.reads, said.gives), (said.gives, said.reads))


def widths(module: nn.Module) -> Widths:
    """Return how many features a layer reads and gives."""
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        projected = look_up((module,), "proj_size")
        return Widths(module.input_size, projected or module.hidden_size)
    if isinstance(module, nn.MultiheadAttention):
        return Widths(module.embed_dim, module.embed_dim)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return Widths(None, module.embedding_dim)
    said = declared_widths(module)
    return said if said.known else _stored_widths(module)


def _stored_widths(module: nn.Module) -> Widths:
    """Return the widths that the shape of a weight tells."""
    weight = own_weight(module)
    if weight is None or weight.ndim < 2:
        return Widths(None, None)
    shape = weight.shape[:2]
    if not isinstance(module, Conv):
        shape = weight.shape[-2:]
    gives, reads = map(int, shape)
    if stores_transposed(module):
        return Widths(gives, reads)
    return Widths(reads, gives)


def stores_transposed(module: nn.Module) -> bool:
    """Tell whether the class of a linear map stores it `(in, out)`."""
    known = table_entries("TRANSPOSED_CLASSES")
    return any(name in known for name in class_names(module))
