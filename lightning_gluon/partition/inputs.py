"""Search for the layers that read the raw input.

A layer is an *input layer* when

1. timm's `pretrained_cfg` names it (`first_conv`), or
2. it is the first layer of a module called patch embedding, stem or value embedding, and reads raw channels. It may
   also be the first of the whole network and called `embedding`, `input_proj` or the like, or
3. it is a convolution that comes first in the whole network, or first in a part of it and reads raw channels: at most
   four (grey, colour, alpha), or as many as the configuration says an input has (mel bins, bands).

A forward pass decides about the second and third: who reads what another layer gives is no input layer. A linear layer
that merely comes first stays `hidden`: its map is a spectral one in both cases.
"""

from __future__ import annotations

from torch import nn

from lightning_gluon.partition.evidence import IMAGE, RAW_CHANNELS, LayerOrder
from lightning_gluon.partition.knowledge import names_match, pattern
from lightning_gluon.partition.layers import Conv, ConvTranspose
from lightning_gluon.partition.place import Place, is_adapter

__all__ = ["input_reason"]


def input_reason(
    place: Place,
    evidence: LayerOrder,
) -> str | None:
    """Return why the owner of a place reads the raw input, or None.

    Args:
        place: Place of a weight.
        evidence: The network around it.

    Returns:
        The reason, or None.
    """
    if is_adapter(place.path):
        return None
    timm = evidence.named_by_timm(place, "first_conv")
    if timm is not None:
        return f"input layer of {timm} (first_conv)"
    if not isinstance(place.owner, Conv | nn.Linear) or isinstance(place.owner, ConvTranspose):
        return None
    execution = evidence.execution
    if not execution.ran(place.path):
        return _first_registered(place, evidence)
    if execution.reads_input(place.path):
        return _executed(place, evidence)
    return None


def _executed(
    place: Place,
    evidence: LayerOrder,
) -> str | None:
    """Return the reason of a layer that read no other layer's output."""
    called = _called_input(place, evidence)
    if called is not None:
        return f"input layer: first layer of {called}"
    if isinstance(place.owner, Conv):
        return "input layer: a convolution that reads the inputs of forward"
    said = _called_first(place)
    return None if said is None else f"input layer: reads the inputs of forward, called {said}"


def _first_registered(place: Place, evidence: LayerOrder) -> str | None:
    """Return the reason of a layer that comes first by the order of registration."""
    network = evidence.network
    leads = network.leads(place)
    if leads is None or isinstance(network.modules[leads], nn.ModuleList):  # the list is no part by itself
        return _elsewhere(place, evidence)
    called = _called_input(place, evidence)
    if called is not None and _may_read(place, leads, evidence):
        return None if evidence.reads_code(place) else f"input layer: first layer of {called}"
    if leads == "":
        return _first_of_network(place, evidence)
    return _first_of_part(place, leads, evidence)


def _may_read(place: Place, leads: str, evidence: LayerOrder) -> bool:
    """Tell whether a layer that is called an input layer is one where it lies."""
    if leads == "" or isinstance(place.owner, nn.Linear):
        return True
    return evidence.reads_raw(place)


def _first_of_network(place: Place, evidence: LayerOrder) -> str | None:
    """Return the reason of the network's first layer, if its name says so or it is a convolution."""
    said = _called_first(place)
    if said is not None:
        return f"input layer: first of the network, called {said}"
    if not isinstance(place.owner, Conv):
        return None
    shown = evidence.any_execution
    if not shown.ran(place.path):
        return f"input layer: the network's first convolution{evidence.inferred()}"
    if shown.reads_input(place.path):
        return _executed(place, evidence)
    return None


def _first_of_part(place: Place, leads: str, evidence: LayerOrder) -> str | None:
    """Return the reason of a convolution that reads raw channels first in a part of the network."""
    owner = place.owner
    if not isinstance(owner, Conv) or evidence.network.count(leads) < 2:
        return None
    if evidence.in_stack(place) or not evidence.reads_raw(place):
        return None
    return f"input layer: reads {owner.in_channels} raw channels first in {leads}"


def _elsewhere(
    place: Place,
    evidence: LayerOrder,
) -> str | None:
    """An input layer that comes not first: called so (CrossViT), or a convolution of a grey or colour image."""
    owner = place.owner
    called = _called_input(place, evidence)
    if called is not None and (evidence.reads_raw(place) or isinstance(owner, nn.Linear)):
        return f"input layer: {called}"
    if not isinstance(owner, Conv) or evidence.in_stack(place) or evidence.reads_code(place):
        return None
    if owner.in_channels in IMAGE and owner.out_channels > RAW_CHANNELS:
        return f"input layer: reads {owner.in_channels} raw channels"
    return None


def _called_input(
    place: Place,
    evidence: LayerOrder,
) -> str | None:
    """Return the module around the place that is called an input layer and starts with it."""
    for path, module in reversed(place.chain):
        name = path.split(".")[-1]
        kind = type(module).__name__
        if names_match("INPUT_PARTS", name) or pattern("INPUT_CLASSES").search(kind):
            starts = module is place.owner or evidence.network.first(path) == place.path
            return f"{name} ({kind})" if starts else None
    return None


def _called_first(place: Place) -> str | None:
    """Return the name around the place that says so of a first linear layer."""
    said = [part for part in place.parts if names_match("FIRST_LINEAR", part)]
    return said[-1] if said else None
