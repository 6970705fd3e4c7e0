"""Search for the layers that give the output.

A layer is an *output layer* when

1. Hugging Face's `get_output_embeddings` or timm's `get_classifier` returns it, or
2. it is the last layer of a module named as an output (`classifier`, `lm_head`, `head`, `score`, ...). Of several
   children it is the last one that is named as an output itself (`classifier`, `proj_out`), or
3. it is a convolution that ends a decoder or vocoder with raw channels, or
4. nothing else in the network is one, and it is the last layer of the whole network. It lies outside any stack of
   repeated blocks, and nothing but an output activation follows it. A network of one single layer has no such layer,
   and a backbone without head neither.

A forward pass decides which layer is the last one, and overrules a name whose layer only feeds others.
"""

from __future__ import annotations

import re
from functools import cached_property

from torch import nn

from lightning_gluon.partition.declared import declared_heads
from lightning_gluon.partition.evidence import RAW_CHANNELS, LayerOrder
from lightning_gluon.partition.knowledge import matching, names_match, pattern, table_entries
from lightning_gluon.partition.layers import Conv, is_map
from lightning_gluon.partition.place import Place, class_names, is_adapter, strip_wrappers

__all__ = ["OutputLayers"]

_SHARED = "output layer: projects into the shared space"


class OutputLayers:
    """The output layers of a network.

    Args:
        evidence: The network.
    """

    def __init__(self, evidence: LayerOrder) -> None:
        self.evidence = evidence
        self.network = evidence.network

    def reason(self, place: Place) -> str | None:
        """Return why the owner of a place is an output layer, or None."""
        if is_adapter(place.path) or self._gives_prompts(place):
            return None
        known = self._known.get(place.path)
        return known or self._raw_output(place) or self._last_layer(place)

    # ---- declared or named

    @cached_property
    def _known(self) -> dict[str, str]:
        """Output layers that are declared or named as such: path of the layer and the reason."""
        found = {}
        for path in self.network.layers:
            place = self.network.place(f"{path}.weight")
            reason = self._declared_or_named(place)
            if reason is not None:
                found[path] = reason
        return found

    def _declared_or_named(self, place: Place) -> str | None:
        if place.parts in self._declared:
            return f"output layer: {self._declared[place.parts]}"
        timm = self.evidence.named_by_timm(place, "classifier")
        if timm is not None:
            return f"output layer of {timm} (classifier)"
        if self.evidence.declares(place, "classifier") or self._gives_prompts(place):
            return None
        if self.evidence.execution.only_feeds(place.path):
            return None
        return self._named(place) or self._pooled(place)

    @cached_property
    def _declared(self) -> dict[tuple[str, ...], str]:
        return declared_heads(self.network)

    def _named(self, place: Place) -> str | None:
        """An output by its name: the last layer of a module called classifier, head, score, ..."""
        for index, (path, module) in enumerate(place.chain):
            name = path.split(".")[-1]
            if names_match("INPUT_SIDE", name):
                return None
            if not path or not self._may_be_head(place, index, module):
                continue
            parent, above = place.chain[index - 1]
            what = _called_head(name, above)
            if what is None or self._gives_features(place, name, parent, above):
                continue
            if self._ends(place, path) and not self._starts(path, parent):
                return what
        return None

    def _may_be_head(
        self,
        place: Place,
        index: int,
        module: nn.Module,
    ) -> bool:
        """Tell whether a module on the chain is neither one of repeated blocks nor one that pools features."""
        if pattern("NOT_HEAD_CLASSES").search(type(module).__name__):
            return False
        return not self.evidence.in_stack(place, index - 1)

    def _gives_features(
        self,
        place: Place,
        name: str,
        parent: str,
        above: nn.Module,
    ) -> bool:
        """Tell whether a module called head or the like gives features to what comes after it."""
        stem = name.removesuffix("_head")
        if stem != name and isinstance(
            getattr(above, f"{stem}_predictor", None),
            nn.Module,
        ):
            return True  # R-CNN: the box head gives features to the box predictor
        if names_match("TRANSFORMS", name) and self._precedes_output(parent, above, name):
            return True
        if names_match("LAST_OF_NETWORK", name):
            last = self.network.is_last(place, parent) and self.network.count(parent) > 1
            if not last:
                return True
        # Of a block; a transformer's own follows its blocks.
        of_block = not any(isinstance(part, nn.ModuleList) for part in above.children())
        return names_match("PROJ_OUT", name) and of_block

    def _ends(
        self,
        place: Place,
        path: str,
    ) -> bool:
        """Tell whether the place's owner gives the outputs of a head."""
        return any(self.network.is_last(place, end) for end in self._parts_of(path))

    def _parts_of(self, path: str) -> list[str]:
        """Return the parts of a head that give its outputs: each of several branches, else its last named part."""
        parts = []
        for name in self._last_parts(path):
            parts += self._parts_of(f"{path}.{name}")
        return parts or [path]

    def _last_parts(self, path: str) -> list[str]:
        """Return the names of the children of a head that give its outputs."""
        module = self.network.modules[path]
        inside = [name for name, _ in module.named_children() if f"{path}.{name}" in self.network.branches]
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            return inside
        named = [name for name in inside if _ends_a_head(name)]
        if named or not inside:
            return named[-1:]
        last = self.network.modules[f"{path}.{inside[-1]}"]
        return inside[-1:] if isinstance(last, nn.ModuleDict) else []

    def _starts(
        self,
        path: str,
        parent: str,
    ) -> bool:
        """Tell whether a module called head reads raw channels first in a larger one: a stem (`resnet_head`)."""
        first = self.network.modules[self.network.first(path) or ""]
        leads = self.network.first(parent) == self.network.first(path)
        raw = isinstance(first, Conv) and first.in_channels <= RAW_CHANNELS
        return leads and raw and self.network.count(parent) > self.network.count(path)

    def _precedes_output(
        self,
        path: str,
        module: nn.Module,
        name: str,
    ) -> bool:
        """Tell whether an output layer follows next to a module called head (ModernBERT: `head`, then `decoder`)."""
        names = [child for child, _ in module.named_children()]
        for other in names[names.index(name) + 1 :]:
            last = self.network.last(f"{path}.{other}".lstrip("."))
            if last is None:
                continue
            if names_match("OUTPUTS", other) or strip_wrappers(last) in self._declared:
                return True
        return False

    def _pooled(self, place: Place) -> str | None:
        """The projection of an attention pool with its own positions: the ResNets of CLIP."""
        if not place.holders or not names_match("POOL_OUTPUTS", place.layer):
            return None
        _, pool = place.holders[0]
        for name in table_entries("POOL_INPUTS"):
            if not isinstance(
                getattr(pool, name, None),
                nn.Module,
            ):
                return None
        for name in table_entries("POOL_POSITIONS"):
            if hasattr(pool, name):
                return _SHARED
        return None

    @staticmethod
    def _gives_prompts(place: Place) -> bool:
        """Tell whether the place lies in a small network that produces prompts."""
        if place.inside("PROMPT_PARTS"):
            return True
        kinds = [type(module).__name__ for _, module in place.ancestors()]
        prompts = pattern("PROMPT_CLASSES")
        return any(prompts.search(kind) for kind in kinds)

    # ---- by their order

    def _last_layer(self, place: Place) -> str | None:
        """The last layer of a plain network, or of a sub-network that is named as one of its own."""
        if not is_map(place.owner) or self.evidence.in_stack(place):
            return None
        if _is_backbone(place) or not _ends_sequences(place):
            return None
        for path, _ in place.chain[:-1]:
            name = path.split(".")[-1]
            whole = path == "" or names_match("NETWORKS", name)
            if not whole or self.network.count(path) < 2:
                continue
            reason = self._last_of(place, path)
            if reason is not None:
                return None if self._has_head(place, path) else reason
        return None

    def _last_of(
        self,
        place: Place,
        path: str,
    ) -> str | None:
        """Return the reason of the last layer of a network, which a forward pass shows or its order suggests."""
        last = self.network.is_last(place, path)
        execution = self.evidence.any_execution if last else self.evidence.execution
        if path == "" and execution.ran(place.path):
            if execution.gives_output(place.path):
                return "output layer: forward returns what it gives"
            return None
        if not last:
            return None
        what = path or "the network"
        return f"output layer: the last layer of {what}{self.evidence.inferred()}"

    def _raw_output(self, place: Place) -> str | None:
        """A convolution to raw channels at the end of a decoder (autoencoders, vocoders)."""
        owner = place.owner
        if not isinstance(owner, Conv):
            return None
        raw = owner.out_channels <= RAW_CHANNELS and owner.out_channels < owner.in_channels
        if not raw or self.evidence.in_stack(place):
            return None
        if self.evidence.declares(place, "classifier"):
            return None
        for index, (path, module) in enumerate(place.chain[:-1]):
            if not _is_decoder(path, module) or _is_member(place, index):
                continue
            last = self.network.is_last(place, path)
            if last and self.network.count(path) > 1:
                what = path or "the network"
                return f"output layer: gives {owner.out_channels} raw channels last in {what}"
        return None

    def _has_head(
        self,
        place: Place,
        path: str,
    ) -> bool:
        """Tell whether the network that the place belongs to has an output layer already."""
        models = [prefix for prefix, module in place.ancestors() if "PreTrainedModel" in class_names(module)]
        scope = path or place.path.split(".")[0]
        if models and not path:
            scope = models[0]
        alone = not path and not models
        for head in self._known:
            if self.network.in_frozen_network(head):
                continue
            inside = not scope or f"{head}.".startswith(f"{scope}.")
            if inside or (alone and names_match("HEADS", head.split(".")[0])):
                return True
        return False


def _is_decoder(path: str, module: nn.Module) -> bool:
    """Tell whether a module is called a decoder, or is one by its class."""
    texts = [
        path.split(".")[-1].lower(),
        type(module).__name__.lower(),
    ]
    return bool(matching("DECODERS", texts))


def _is_member(
    place: Place,
    index: int,
) -> bool:
    """Tell whether a module on the chain is one of several of its class in a stack."""
    if index == 0:
        return False
    module = place.chain[index][1]
    parent = place.chain[index - 1][1]
    alike = sum(type(other) is type(module) for other in parent.children())
    return isinstance(parent, table_entries("STACK_CLASSES")) and alike > 1


def _ends_a_head(name: str) -> bool:
    """Tell whether a part of a head is named as the one that gives its outputs."""
    return names_match("LAST_OF_HEAD", name) or _is_head(name)


def _is_head(name: str) -> bool:
    """Tell whether a module of this name gives outputs."""
    return names_match("HEADS", name) and not names_match("NOT_HEADS", name)


def _called_head(name: str, above: nn.Module) -> str | None:
    """Return the reason of a module that is named as an output, or None."""
    if names_match("SHARED_SPACES", name) and _contrasts(above):
        return _SHARED
    if _is_head(name) or names_match("SIDE_OUTPUTS", name):
        return f"output layer: {name}"
    return None


def _contrasts(module: nn.Module) -> bool:
    """Tell whether a model compares its towers' outputs (CLIP and its relatives)."""
    for name, _ in module.named_parameters(recurse=False):
        if names_match("CONTRAST_SCALES", name):
            return True
    return "WithProjection" in type(module).__name__


def _is_backbone(place: Place) -> bool:
    """Tell whether the place lies in a model that would have named its head, if it had one."""
    for _, module in place.ancestors():
        if isinstance(getattr(module, "pretrained_cfg", None), dict):
            return True
        if "PreTrainedModel" in class_names(module):
            return not re.search("For[A-Z]", type(module).__name__)
        if isinstance(module, table_entries("BACKBONE_CLASSES")):
            return True
    return False


def _ends_sequences(place: Place) -> bool:
    """Tell whether nothing but an output activation follows the layer in the sequences around it."""
    for (_, parent), (_, child) in zip(
        place.chain[:-1],
        place.chain[1:],
        strict=True,
    ):
        if not isinstance(parent, nn.Sequential):
            continue
        members = list(parent.children())
        position = [member is child for member in members].index(True)
        after = members[position + 1 :]
        if not all(isinstance(module, table_entries("OUTPUT_ACTIVATIONS")) for module in after):
            return False
    return True
