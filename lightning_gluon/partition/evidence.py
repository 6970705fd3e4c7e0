"""Questions that the evidence for input layers and for output layers shares, and the sources of the evidence.

Names and declarations come first. If the order of layers decides, it is taken from a forward pass when there are
inputs for one, and otherwise from the order in which the layers are registered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import nn

from lightning_gluon.partition.branches import may_follow
from lightning_gluon.partition.execution import Execution, execute
from lightning_gluon.partition.knowledge import matching, names_match, pattern, table_entries
from lightning_gluon.partition.layers import Conv, is_weight_layer
from lightning_gluon.partition.network import Network
from lightning_gluon.partition.place import Place, class_names, strip_wrappers

__all__ = ["IMAGE", "RAW_CHANNELS", "LayerOrder"]

RAW_CHANNELS = 4  # grey, colour, alpha
IMAGE = (1, 3)  # channels of a grey or colour image


class LayerOrder:
    """A network with the order of its layers, as far as it is known.

    Args:
        network: The module tree.
        batch: Inputs of `forward`, or None.
    """

    def __init__(
        self,
        network: Network,
        batch: object = None,
    ) -> None:
        self.network = network
        self._batch = batch if batch is not None else getattr(network.root, "example_input_array", None)

    # ---- the order of layers

    @cached_property
    def execution(self) -> Execution:
        """The forward pass on the inputs that were given or that the module keeps; an empty one without any."""
        if self._batch is None:
            return Execution({})
        return execute(self.network.root, self.network.layers, self._batch)

    @cached_property
    def any_execution(self) -> Execution:
        """The same, or else the forward pass on a Hugging Face model's own dummy inputs."""
        if self._batch is not None:
            return self.execution
        dummy = _dummy_inputs(self.network.root)
        return Execution({}) if dummy is None else execute(self.network.root, self.network.layers, dummy)

    def inferred(self) -> str:
        """Return the end of a reason that rests on the order of registration."""
        failure = self.execution.failure
        why = f" (forward failed on the example: {failure})" if failure else ""
        return f", inferred from the order of its layers{why}"

    # ---- places

    def named_by_timm(
        self,
        place: Place,
        key: str,
    ) -> str | None:
        """Return the class of a timm model around the place whose configuration names it under `key`."""
        for path, module in place.ancestors():
            config = getattr(module, "pretrained_cfg", None)
            if isinstance(config, dict):
                inside = ".".join(place.parts[len(strip_wrappers(path)) :])
                if inside in _texts(config.get(key)):
                    return type(module).__name__
        return None

    @staticmethod
    def declares(
        place: Place,
        key: str,
    ) -> bool:
        """Tell whether a timm model around the place names its first or last layers, so that no other can be one."""
        configs = [getattr(module, "pretrained_cfg", None) for _, module in place.ancestors()]
        return any(bool(config.get(key)) for config in configs if isinstance(config, dict))

    def in_stack(
        self,
        place: Place,
        end: int | None = None,
    ) -> bool:
        """Tell whether a module on the chain, up to position `end`, is one of a stack of blocks of the same class."""
        end = len(place.chain) - 1 if end is None else end
        for index in range(end):
            parent = place.chain[index][1]
            path, child = place.chain[index + 1]
            if not isinstance(parent, table_entries("STACK_CLASSES")) or self.network.count(path) < 2:
                continue
            if isinstance(parent, nn.ModuleDict) and isinstance(child, table_entries("STACK_CLASSES")):
                continue  # parts with names of their own, not repeated blocks
            if self._is_repeated(parent, child, path):
                return True
        return False

    def _is_repeated(
        self,
        parent: nn.Module,
        child: nn.Module,
        path: str,
    ) -> bool:
        """Tell whether a member of a stack is a block like the others."""
        if matching("MESSAGE_CLASSES", class_names(child)):
            return False  # a graph convolution is one layer
        members = [member for member in parent.children() if type(member) is type(child)]
        listed = isinstance(parent, nn.ModuleList)
        if len(members) == 1:
            return listed
        if listed and isinstance(child, nn.Sequential) and not self._may_follow(path):
            return False  # several networks side by side
        return not _ends_otherwise(members, child)

    def _may_follow(self, path: str) -> bool:
        """Tell whether a member of a list can read what a member of the same list gives."""
        branches = self.network.branches
        inside = path.rpartition(".")[0]
        members = [branch for key, branch in branches.items() if key.rpartition(".")[0] == inside and key]
        return any(may_follow(branches[path], member) for member in members)

    def reads_raw(self, place: Place) -> bool:
        """Tell whether a convolution reads as few channels as an image has, or as many as an input is said to have."""
        owner = place.owner
        if not isinstance(owner, Conv) or self.reads_code(place):
            return False
        declared = []
        for _, module in place.ancestors():
            config = getattr(module, "config", None)
            declared += [getattr(config, name, None) for name in table_entries("CHANNELS")]
        return owner.in_channels <= RAW_CHANNELS or owner.in_channels in declared

    @staticmethod
    def reads_code(place: Place) -> bool:
        """Tell whether a convolution in a decoder reads a code of few channels."""
        if not isinstance(place.owner, Conv):
            return False
        for (_, parent), (path, _) in zip(
            place.chain[:-1],
            place.chain[1:],
            strict=True,
        ):
            name = path.split(".")[-1]
            if not re.fullmatch(pattern("DECODERS"), name.lower()) or path == place.path:
                continue
            coded = any(names_match("ENCODERS", sibling) for sibling, _ in parent.named_children())
            if coded or place.owner.in_channels not in IMAGE:
                return True
        return False


def _ends_otherwise(members: list[nn.Module], child: nn.Module) -> bool:
    """Tell whether the last of several blocks leaves out the activation or norm that ends the others."""
    *others, last = members
    if child is not last or not _only_outputs(_tail(child)):
        return False
    return not any(_only_outputs(_tail(other)) for other in others)


def _tail(module: nn.Module) -> list[nn.Module]:
    """Return the modules without layers that follow the last layer inside a module."""
    tail: list[nn.Module] = []
    for part in module.modules():
        if is_weight_layer(part):
            tail = []
        elif not list(part.children()):
            tail.append(part)
    return tail


def _only_outputs(modules: list[nn.Module]) -> bool:
    """Tell whether modules are such as may follow an output layer."""
    return all(isinstance(module, table_entries("OUTPUT_ACTIVATIONS")) for module in modules)


def _texts(value: object) -> tuple[str, ...]:
    """Return a name or several names as a tuple."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (tuple, list)):
        return tuple(entry for entry in value if isinstance(entry, str))
    return ()


def _dummy_inputs(module: nn.Module) -> Mapping[str, Any] | None:
    """Return the dummy inputs of a Hugging Face model, if they are of the kind that it reads."""
    try:
        dummy = getattr(module, "dummy_inputs", None)
    except Exception:  # a model's own code
        return None
    fits = isinstance(dummy, Mapping) and getattr(module, "main_input_name", None) in dummy
    return dummy if fits else None
