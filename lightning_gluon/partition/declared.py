"""Output layers that a model names itself: `get_output_embeddings` of Hugging Face, `get_classifier` of timm."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from lightning_gluon.partition.knowledge import table_entries
from lightning_gluon.partition.layers import is_weight_layer
from lightning_gluon.partition.network import Network
from lightning_gluon.partition.place import strip_wrappers

__all__ = ["declared_heads"]


def declared_heads(network: Network) -> dict[tuple[str, ...], str]:
    """Return the output layers that models inside a network declare.

    Args:
        network: The module tree.

    Returns:
        Components of the path of every layer, and who says by which method that it gives outputs.
    """
    paths: dict[int, str] = {}
    for path, module in network.modules.items():
        paths.setdefault(id(module), path)
    found: dict[tuple[str, ...], str] = {}
    for module, method, layer in _declarations(network):
        path = paths.get(id(layer))
        if path is None:
            continue
        what = f"{method}() of {type(module).__name__}"
        for inner in _layers_of(network, path, layer):
            parts = strip_wrappers(inner)
            found.setdefault(parts, what)
    return found


def _layers_of(
    network: Network,
    path: str,
    module: nn.Module,
) -> list[str]:
    """Return the last layer inside a declared module, and itself if it is one (IDEFICS holds another one)."""
    layers = []
    last = network.last(path)
    if last is not None:
        layers.append(last)
    if is_weight_layer(module):
        layers.append(path)
    return layers


def _declarations(network: Network) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield who declares by which method what to be an output layer."""
    for module in network.modules.values():
        for method in table_entries("HEAD_METHODS"):
            for layer in _ask(module, method):
                yield module, method, layer


def _ask(
    module: nn.Module,
    method: str,
) -> list[nn.Module]:
    """Ask a model for its output layers; models that cannot say are skipped."""
    if not callable(getattr(type(module), method, None)):
        return []
    try:
        answer = getattr(module, method)()
    except Exception:  # a model's own code: NotImplementedError, AttributeError, whatever it likes
        return []
    answers = answer if isinstance(answer, tuple | list) else (answer,)
    return [layer for layer in answers if isinstance(layer, nn.Module)]
